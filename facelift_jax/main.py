"""Command: trains a network from a config file and evaluates it, or evaluates only.

python -m facelift_jax.main --config configs/lgm.py:demo --workdir runs/demo
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from facelift_jax.builders import data_options, restore
from facelift_jax.data.mixture import (
    check_data_settings,
    join,
    open_checked,
    open_parts,
)
from facelift_jax.evaluation.evaluator import evaluate_held_out
from facelift_jax.evaluation.results import EvaluatedModel, Evaluation, table
from facelift_jax.evaluation.steps import make_eval_step
from facelift_jax.io import command
from facelift_jax.losses import uses_lpips
from facelift_jax.metrics import load_lpips

FLAGS = flags.FLAGS
NAME = "main"
EVALUATION = "evaluation"  # folder of `--mode eval` in the run directory

with command.required_extra(NAME, "train", __name__):
    from ml_collections import config_flags

    from facelift_jax.training import cost_estimate
    from facelift_jax.training.settings import check_settings, plain
    from facelift_jax.training.train import train


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    config_flags.DEFINE_config_file(
        "config",
        "configs/lgm.py",
        "Config file, with its argument after a colon. Each of its fields is a flag "
        "too, for example --config.run.seed=1: configs/README.md lists them.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "workdir",
        "",
        "Run directory; default runs/<config>-<argument>.",
        flag_values=values,
    )
    modes = ["train", "eval"]
    text = "Train, or evaluate only."
    flags.DEFINE_enum("mode", "train", modes, text, flag_values=values)


def main(arguments: Sequence[str]) -> None:
    """Trains or evaluates; bad input ends with one line on stderr and exit code 2."""
    if len(arguments) > 1:
        command.fail(
            NAME, f"unexpected argument {arguments[1]!r}; set the config with --config"
        )
    config = FLAGS.config
    workdir = Path(FLAGS.workdir or default_workdir())
    try:
        check_data_settings(config.data)
        if FLAGS.mode == "eval":
            evaluation = evaluate_run(config, workdir)
        else:
            check_settings(config)
            cost_estimate.announce(config)
            options = data_options(config.data, config.eval.num_targets)
            open_data = functools.partial(open_checked, config.data, options, workdir)
            evaluation = train(config, workdir, open_data)
    except command.USER_ERRORS as error:
        command.fail(NAME, error)
    print(table(evaluation))
    if FLAGS.mode == "eval":
        folder, files = workdir / EVALUATION, "report.html, metrics.json, images"
    else:
        folder, files = workdir, "report.html, config, metrics, checkpoints, images"
    print(f"{folder}: {files}, scene.ply, turntable.mp4")


def default_workdir() -> str:
    """`runs/lgm-demo` for `configs/lgm.py:demo`."""
    name = config_flags.get_config_filename(FLAGS["config"])
    file, _, argument = name.partition(":")
    return "-".join(["runs/" + Path(file).stem, *argument.split(",")]).rstrip("-")


def evaluate_run(config: Any, workdir: Path) -> Evaluation:
    """Evaluates the run's last checkpoint on the config's held-out scenes.

    Writes to the folder `EVALUATION` of the run directory.

    Raises:
      ValueError: there is no checkpoint, it was trained with another config, or it was
        trained on every held-out scene.
    """
    lpips = None
    if uses_lpips(config.loss):
        lpips = load_lpips(config.loss.lpips_weights)
    restored = restore(str(workdir), config.eval.num_targets)
    settings = plain(config)
    changed = [
        f"{section}.{key}"
        for section in ("model", "data", "render")
        for key in settings[section]
        if settings[section][key] != restored.config[section].get(key)
    ]
    if changed:
        raise ValueError(
            f"{workdir}: trained with a different {', '.join(changed)}; use the config "
            "of the training run"
        )
    parts = open_parts(config.data)
    return evaluate_held_out(
        workdir / EVALUATION,
        make_eval_step(
            restored.model, restored.render_fn, restored.refine_fn, lpips=lpips
        ),
        restored.params,
        join(parts)[1],
        restored.options,
        restored.render_fn,
        restored.refine_fn,
        lpips,
        EvaluatedModel(str(workdir), settings),
        data_sets={part.path: part.held_out for part in parts},
        trained_on=restored.trained_on,
        num_image_scenes=config.eval.num_image_scenes,
        num_turntable_frames=config.eval.turntable_frames,
    )


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses the flags; reports bad flags and configs like any other bad input."""
    try:
        return FLAGS(arguments)
    except (KeyError, AttributeError) as error:  # ml_collections: unknown keys
        key = str(error).strip("\"'")
        command.fail(
            NAME, f"unknown config key '{key}'; configs/README.md lists the fields"
        )
    except (flags.Error, ValueError, OSError) as error:
        # an error in a config file has a traceback; its last line is the message
        line = str(error).strip().splitlines()[-1]
        command.fail(NAME, line.removeprefix("ValueError: "))


if __name__ == "__main__":
    define_flags(FLAGS)
    command.log_own_lines()
    app.run(main, flags_parser=parse_flags)
