"""Judging a network from cameras it never saw; in the training loop or as a command.

    python -m facelift_jax.evaluate --checkpoint runs/x DATA --out figures
    python -m facelift_jax.evaluate --baseline hull DATA --out figures

Figures of input views and of held-out views have different names, always.
"""

import collections
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging

from facelift_jax import command
from facelift_jax.data.layouts import NOWHERE
from facelift_jax.data.options import DataOptions
from facelift_jax.data.packed import fingerprint
from facelift_jax.data.pipeline import Source, evaluation_batches
from facelift_jax.data.sources import FolderSource, StoredScene, open_source
from facelift_jax.data.verdicts import find_breaches
from facelift_jax.judge import (
    EvalStep,
    RenderFn,
    ShapeStep,
    Turntable,
    make_eval_step,
    make_hull_step,
    make_renderer,
    make_shape_step,
    make_turntable,
    scene_row,
)
from facelift_jax.models import get_model
from facelift_jax.objectives import by_angle, load_lpips, summarize_scenes
from facelift_jax.progress import watched
from facelift_jax.report import Judged, write_report
from facelift_jax.results import (
    Evaluation,
    table,
    write_figures,
    write_scene,
    write_sheets,
)
from facelift_jax.structs import RenderOutput
from facelift_jax.training import writer
from facelift_jax.training.checkpoint import load_params

NUM_SHAPE_SCENES = 4  # that also get the figures which cost as much as all others


def evaluate(
    eval_step: EvalStep,
    params: Any,
    source: Source,
    options: DataOptions,
    num_picture_scenes: int = 0,
    picture_dir: Path | None = None,
    shape_step: ShapeStep | None = None,
) -> Evaluation:
    """Figures of every scene of a source, from its inputs and from held-out cameras.

    The first `num_picture_scenes` scenes get sheets in `picture_dir`. With a
    `shape_step` the first `NUM_SHAPE_SCENES` scenes get its figures as well.

    Raises:
      ValueError: the renderer dropped list entries (an explicit cap).
    """
    rows, scenes, sheets, first = [], [], {}, None
    undefined: collections.Counter[str] = collections.Counter()
    batches = evaluation_batches(source, options, batch_size=1)
    batches = watched(batches, "judge", len(source), show_progress)
    for index, batch in enumerate(batches):
        scene = source[int(batch.scene_id[0])]
        gaussians, found = jax.device_get(eval_step(params, batch))
        refuse_dropped(scene.name, found.output)
        row, left_out = scene_row(found, options.num_inputs)
        gaussians, inputs = jax.tree.map(
            lambda x: x[0], (gaussians, batch.inputs.cameras)
        )
        if shape_step is not None and index < NUM_SHAPE_SCENES:
            radius = float(found.radius[0])
            row |= shape_step(gaussians, batch, scene, options, radius)
        undefined.update(left_out)
        held_out = slice(options.num_inputs, None)
        angles, psnr_fg = found.angles[0, held_out], found.views["psnr_fg"][0, held_out]
        rows.append(row)
        origin = scene.origin if isinstance(scene, StoredScene) else NOWHERE
        known = {"scene": scene.name, "moment": (origin.recording, origin.time)}
        views = {"angle": angles.tolist(), "psnr_fg": psnr_fg.tolist()}
        scenes.append({**known, **row, "held_out_views": views})
        if picture_dir is not None and index < num_picture_scenes:
            sheets[scene.name] = write_sheets(
                picture_dir, scene.name, batch, found.output, found.views["psnr_fg"]
            )
        first = first or (gaussians, inputs)
    assert first is not None, "a source holds at least one scene"
    views = [scene["held_out_views"] for scene in scenes]
    classes = by_angle(*([view[key] for view in views] for key in ("angle", "psnr_fg")))
    summary = summarize_scenes(rows, [scene["moment"] for scene in scenes])
    return Evaluation(*summary, dict(undefined), classes, scenes, *first, sheets)


def show_progress(line: str) -> None:
    """As the writer's, of process 0; the others are silent."""
    if jax.process_index() == 0:
        writer.show_progress(line)


def refuse_dropped(name: str, output: RenderOutput) -> None:
    """Refuses pictures that are not all of a scene's Gaussians."""
    dropped = int(output.dropped.sum())
    if dropped:
        raise ValueError(
            f"scene {name}: the renderer dropped {dropped} list entries, so its "
            "pictures are not the network's; raise or remove max_entries"
        )


def finish(
    directory: Path,
    evaluation: Evaluation,
    render_fn: RenderFn,
    turn: Turntable,
    source: FolderSource,
    options: DataOptions,
    judged: Judged,
) -> Evaluation:
    """Sets the visual hull beside an evaluation of the same source and writes it down.

    Writes scene.ply and turntable.mp4 of the first scene, then figures.json and, of all
    that, report.html; both count the source's `breaches`.
    """
    hull = evaluation
    if judged.checkpoint is not None:
        shape_step = make_shape_step(render_fn, None)
        step = make_hull_step(render_fn)
        hull = evaluate(step, None, source, options, shape_step=shape_step)
    frames, _ = turn(evaluation.gaussians, evaluation.inputs)
    for line in write_scene(directory, evaluation.gaussians, frames):
        logging.info(line)
    evaluation = dataclasses.replace(evaluation, hull=hull, breaches=source.breaches)
    write_figures(directory / "figures.json", evaluation)
    write_report(directory, evaluation, judged, source, options)
    return evaluation


def build_model(section: Mapping[str, Any]) -> Any:
    """The network that a config's `model` section names.

    Raises:
      ValueError: unknown names, or values of the wrong kind.
    """
    name, variant, dtype = (section[key] for key in ("name", "variant", "dtype"))
    try:
        return get_model(name, variant, dtype, **section["overrides"])
    except TypeError as error:
        raise ValueError(f"model: {error}") from error


def fingerprints(source: FolderSource) -> list[str]:
    """What tells scenes apart wherever they lie: a digest of each camera file."""
    return [fingerprint(folder) for folder in source.folders]


def leave_out_trained(source: FolderSource, trained_on: list[str]) -> FolderSource:
    """The scenes that were not trained on; says how many were.

    Raises:
      ValueError: all of them were.
    """
    seen = set(trained_on)
    fresh = [i for i, mark in enumerate(fingerprints(source)) if mark not in seen]
    num_seen = len(source) - len(fresh)
    if not fresh:
        raise ValueError(
            f"all {num_seen} scenes were trained on, so nothing is left to judge by"
        )
    if num_seen:
        logging.warning(
            "%d of %d scenes were trained on and are left out", num_seen, len(source)
        )
    return dataclasses.replace(
        source,
        folders=tuple(source.folders[i] for i in fresh),
        names=tuple(source.names[i] for i in fresh),
        shares=(),
    )


def data_options(section: Mapping[str, Any], num_held_out_views: int) -> DataOptions:
    """How scenes become examples, from a config's `data` section."""
    names = {field.name for field in dataclasses.fields(DataOptions)}
    chosen = {name: section[name] for name in section if name in names}
    for name in {"background", "input_views"} & chosen.keys():
        chosen[name] = tuple(chosen[name]) or None  # JSON has lists
    return DataOptions(**chosen, eval_targets=num_held_out_views)


class Restored(NamedTuple):
    """A checkpoint's network, and how scenes and pictures are made for it."""

    params: Any
    model: Any
    options: DataOptions
    render_fn: RenderFn
    config: dict[str, Any]
    trained_on: list[str]


def restore(
    checkpoint: str, num_held_out_views: int, num_inputs: int | None = None
) -> Restored:
    """The network of a run directory or of converted weights.

    It is given `num_inputs` views; None: as many as it was trained with.

    Raises:
      ValueError, OSError: no checkpoint, or one that names no network.
    """
    params, config = load_params(checkpoint)
    if "model" not in config:
        raise ValueError(f"{checkpoint}: its metadata do not name a network")
    section = dict(config.get("data", {}))
    if num_inputs is not None:
        section["num_inputs"] = num_inputs
    options = data_options(section, num_held_out_views)
    render_fn = make_renderer(options.background, **config.get("render", {}))
    model, trained_on = build_model(config["model"]), config.pop("trained_on", [])
    return Restored(params, model, options, render_fn, config, trained_on)


def baseline_options(
    source: FolderSource, num_held_out_views: int, num_inputs: int | None
) -> DataOptions:
    """Options for judging without a network: the scenes' own size and input views."""
    scene = source[0]
    side = min(scene.cameras.width, scene.cameras.height)
    section = {"input_size": side, "target_size": side}
    if scene.is_input.any():
        section["num_inputs"] = int(scene.is_input.sum())
    if num_inputs is not None:
        section["num_inputs"] = num_inputs
    return data_options(section, num_held_out_views)


def report(
    directory: Path,
    eval_step: EvalStep,
    params: Any,
    source: FolderSource,
    options: DataOptions,
    render_fn: RenderFn,
    num_picture_scenes: int,
    num_frames: int,
    judged: Judged,
) -> Evaluation:
    """Evaluates and writes sheets and what `finish` does.

    Raises:
      ValueError: the folder holds something else.
    """
    is_ours = (directory / "figures.json").is_file()
    if directory.is_dir() and any(directory.iterdir()) and not is_ours:
        raise ValueError(
            f"{directory}: not empty and no evaluation of ours; choose another folder"
        )
    directory.mkdir(parents=True, exist_ok=True)
    turn = make_turntable(render_fn, num_frames)
    evaluation = evaluate(
        eval_step,
        params,
        source,
        options,
        num_picture_scenes,
        directory / "pictures",
        make_shape_step(render_fn, turn),
    )
    return finish(directory, evaluation, render_fn, turn, source, options, judged)


def count_breaches(
    path: Path, source: FolderSource, background: tuple[float, float, float]
) -> int:
    """How many scenes are no good, see `find_breaches`; its line becomes a warning."""
    breaches, line = find_breaches(path, source, background, show_progress)
    if breaches:
        logging.warning("judged all the same: %s", line)
    return breaches


def parse(arguments: list[str]) -> Any:
    """Flags of the command."""
    parser = command.Parser(
        prog="python -m facelift_jax.evaluate",
        description="Held-out figures, sheets, PLY and turntable of a checkpoint, or "
        "of the visual hull.",
    )
    add = parser.add_argument
    add("data", help="folder or list of scenes, none trained on")
    add("--checkpoint", help="run directory or converted weights")
    add(
        "--baseline",
        choices=["hull"],
        help="judge the visual hull of the inputs instead of a network; with a "
        "checkpoint, of the pictures that its network is given",
    )
    add("--out", default="evaluation", help="output folder")
    add("--inputs", type=int, metavar="N", help="views given")
    add("--held-out-views", type=int, default=12, metavar="N")
    add("--picture-scenes", type=int, default=4, metavar="N")
    add(
        "--turntable-frames",
        type=int,
        default=120,
        metavar="N",
        help=f"of the video, and of the figures that {NUM_SHAPE_SCENES} scenes get",
    )
    add(
        "--lpips",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="LPIPS too, by the weight files there; without FOLDER, of the hub's cache",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """The command: any checkpoint, or the visual hull, and any data set."""
    flags = parse(arguments)
    command.log_own_lines()
    if not (flags.checkpoint or flags.baseline):
        raise ValueError("give --checkpoint, or --baseline hull to judge that alone")
    if flags.turntable_frames < 1:
        raise ValueError(f"--turntable-frames {flags.turntable_frames}: at least 1")
    lpips = None if flags.lpips is None else load_lpips(flags.lpips)
    source, params, judged = open_source(flags.data), None, Judged(None, {})
    if flags.checkpoint:
        restored = restore(flags.checkpoint, flags.held_out_views, flags.inputs)
        source = leave_out_trained(source, restored.trained_on)
        options, render_fn = restored.options, restored.render_fn
        step = make_eval_step(restored.model, render_fn, lpips)
        params = restored.params
        judged = Judged(flags.checkpoint, restored.config)
    else:
        options = baseline_options(source, flags.held_out_views, flags.inputs)
        render_fn = make_renderer(options.background)
    if flags.baseline:
        step = make_hull_step(render_fn, lpips)
        judged = dataclasses.replace(judged, checkpoint=None)
    breaches = count_breaches(Path(flags.data), source, options.background)
    evaluation = report(
        Path(flags.out),
        step,
        params,
        dataclasses.replace(source, breaches=breaches),
        options,
        render_fn,
        flags.picture_scenes,
        flags.turntable_frames,
        judged,
    )
    print(table(evaluation))
    print(f"{flags.out}: report.html, figures.json, pictures, scene.ply, turntable.mp4")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, RuntimeError) as error:
        command.fail("evaluate", error)
