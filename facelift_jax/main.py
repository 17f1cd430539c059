"""Command: one config, one run directory; trains and evaluates, or evaluates only.

python -m facelift_jax.main --config configs/lgm.py:demo --workdir runs/demo
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from facelift_jax import atomic, command, cost, evaluate
from facelift_jax.data import rodent
from facelift_jax.data.mix import Part, check_mix, join
from facelift_jax.data.pipeline import require_evaluation_views
from facelift_jax.data.sources import FolderSource, open_source, split_source
from facelift_jax.data.verdicts import VERDICTS, require_contract
from facelift_jax.objectives import asks_for_lpips, load_lpips
from facelift_jax.report import Judged
from facelift_jax.results import Evaluation, table
from facelift_jax.train import check_settings, plain, train
from facelift_jax.training.checkpoint import load_params

config_flags.DEFINE_config_file(
    "config",
    "configs/lgm.py",
    "Config file, with its argument after a colon; its fields are flags of their own, "
    "--config.run.seed=1: configs/README.md lists them.",
)
flags.DEFINE_string("workdir", "", "Run directory; default runs/<config>-<argument>.")
flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate only.")
FLAGS = flags.FLAGS
NAME = "main"


def main(arguments: Sequence[str]) -> None:
    """Runs the mode that the flags ask for; bad input ends with one line, exit 2."""
    if len(arguments) > 1:
        command.fail(
            NAME, f"unexpected argument {arguments[1]!r}; a config is given by --config"
        )
    config = FLAGS.config
    workdir = Path(FLAGS.workdir or default_workdir())
    try:
        check_data_settings(config.data)
        if FLAGS.mode == "eval":
            evaluation = evaluate_run(config, workdir)
        else:
            check_settings(config)
            cost.announce(config)
            evaluation = train(config, workdir, lambda: open_checked(config, workdir))
    except (ValueError, OSError, RuntimeError) as error:
        command.fail(NAME, error)
    print(table(evaluation))
    print(
        f"{workdir}: report.html, config, metrics, checkpoints, pictures, scene.ply, "
        "turntable.mp4"
    )


def default_workdir() -> str:
    """`runs/lgm-demo` for `configs/lgm.py:demo`."""
    name = config_flags.get_config_filename(FLAGS["config"])
    file, _, argument = name.partition(":")
    return "-".join(["runs/" + Path(file).stem, *argument.split(",")]).rstrip("-")


def check_data_settings(section: Any) -> None:
    """Refuses a `data` section whose sets are not there; none may be, or be made.

    Raises:
      ValueError: one line.
    """
    mixed = [path for path, _ in check_mix(section.mix)]
    if section.path and mixed:
        raise ValueError("data.path and data.mix are given: choose one")
    for path in mixed or filter(None, [section.path]):
        if not Path(path).exists():
            raise ValueError(f"{path}: there is no such folder or list")


def open_parts(section: Any) -> list[Part]:
    """The sets that a config names, each split; makes the rodents where it has none."""
    wanted = check_mix(section.mix)
    if section.path:
        wanted = ((Path(section.path), 1.0),)
    sources = [(path, weight, open_source(path)) for path, weight in wanted]
    if not wanted:
        path = Path(f"data/rodent-{section.size}")
        rodent.generate(path, section.num_scenes, section.size)
        source = open_source(path)
        # another recipe may have made more: this one keeps to its own number
        first = slice(section.num_scenes)
        source = FolderSource(source.folders[first], source.names[first])
        sources = [(path, 1.0, source)]
    return [
        Part(path, weight, *split_source(source, section.num_held_out_scenes))
        for path, weight, source in sources
    ]


def open_checked(config: Any, workdir: Path) -> tuple[FolderSource, FolderSource]:
    """Scenes to train on and held-out scenes, all as good as the data contract asks.

    `contract.json` in the run says how.

    Raises:
      ValueError: it does not; names the first reason and the command that shows all.
    """
    parts = open_parts(config.data)
    options = evaluate.data_options(config.data, config.eval.num_targets)
    is_writer = jax.process_index() == 0
    record = require_contract(parts, options, evaluate.show_progress, is_writer)
    if is_writer:
        atomic.write_text(workdir / VERDICTS, json.dumps(record, indent=2) + "\n")
    train_on, held_out = join(parts)
    require_evaluation_views(held_out, options)
    names = {name for part in record["sets"].values() for name in part["held_out"]}
    breaches = len(names & record["used_all_the_same"].keys())
    return train_on, dataclasses.replace(held_out, breaches=breaches)


def evaluate_run(config: Any, workdir: Path) -> Evaluation:
    """Judges the run's last checkpoint on the config's held-out scenes.

    Raises:
      ValueError: no checkpoint, one of another config, or scenes it was trained on.
    """
    lpips = load_lpips(config.run.lpips) if asks_for_lpips(config) else None
    params, stored = load_params(workdir)
    asked = plain(config)
    changed = [
        f"{section}.{key}"
        for section in ("model", "data", "render")
        for key in asked[section]
        if asked[section][key] != stored[section].get(key)
    ]
    if changed:
        raise ValueError(
            f"{workdir}: trained with another {', '.join(changed)}; give the config it "
            "was started with"
        )
    parts = open_parts(config.data)
    options = evaluate.data_options(config.data, config.eval.num_targets)
    held_out = evaluate.leave_out_trained(join(parts)[1], stored["trained_on"])
    breaches = [
        evaluate.count_breaches(part.path, part.held_out, options.background)
        for part in parts
    ]
    render_fn = evaluate.make_renderer(options.background, **config.render)
    model = evaluate.build_model(config.model)
    return evaluate.report(
        workdir / "evaluation",
        evaluate.make_eval_step(model, render_fn, lpips),
        params,
        dataclasses.replace(held_out, breaches=sum(breaches)),
        options,
        render_fn,
        config.eval.num_picture_scenes,
        config.eval.turntable_frames,
        Judged(str(workdir), asked),
    )


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """absl's parser, but bad flags and configs end like any other bad input."""
    try:
        return FLAGS(arguments)
    except (KeyError, AttributeError) as error:  # ml_collections' for unknown keys
        key = str(error).strip("\"'")
        command.fail(
            NAME, f"unknown config key '{key}'; the config file has the known ones"
        )
    except (flags.Error, ValueError, OSError) as error:
        # a config's own error comes last, behind a traceback and its class
        line = str(error).strip().splitlines()[-1]
        command.fail(NAME, line.removeprefix("ValueError: "))


if __name__ == "__main__":
    command.log_own_lines()
    app.run(main, flags_parser=parse_flags)
