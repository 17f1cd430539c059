"""A whole evaluation: every scene of a source, the visual hull, and the files."""

import collections
import dataclasses
from pathlib import Path
from typing import Any

import jax
from absl import logging

from facelift_jax.data.formats import NO_ORIGIN
from facelift_jax.data.options import DataOptions
from facelift_jax.data.pipeline import Source, evaluation_batches
from facelift_jax.data.scenes import FolderSource, StoredScene
from facelift_jax.data.validation.dataset_report import find_violations
from facelift_jax.evaluation.report import Judged, write_report
from facelift_jax.evaluation.results import (
    Evaluation,
    write_figures,
    write_scene,
    write_sheets,
)
from facelift_jax.evaluation.steps import (
    EvalStep,
    ShapeStep,
    Turntable,
    make_hull_step,
    make_shape_step,
    make_turntable,
    scene_row,
)
from facelift_jax.io.progress import show_on_first_process, watched
from facelift_jax.metrics import by_angle, summarize_scenes
from facelift_jax.structs import RenderFn, RenderOutput

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
    batches = watched(batches, "judge", len(source), show_on_first_process)
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
        origin = scene.origin if isinstance(scene, StoredScene) else NO_ORIGIN
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
    that, report.html; both count the source's `violations`.
    """
    hull = evaluation
    if judged.checkpoint is not None:
        shape_step = make_shape_step(render_fn, None)
        step = make_hull_step(render_fn)
        hull = evaluate(step, None, source, options, shape_step=shape_step)
    frames, _ = turn(evaluation.gaussians, evaluation.inputs)
    for line in write_scene(directory, evaluation.gaussians, frames):
        logging.info(line)
    evaluation = dataclasses.replace(
        evaluation, hull=hull, violations=source.violations
    )
    write_figures(directory / "figures.json", evaluation)
    write_report(directory, evaluation, judged, source, options)
    return evaluation


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


def refuse_dropped(name: str, output: RenderOutput) -> None:
    """Refuses pictures that are not all of a scene's Gaussians."""
    dropped = int(output.dropped.sum())
    if dropped:
        raise ValueError(
            f"scene {name}: the renderer dropped {dropped} list entries, so its "
            "pictures are not the network's; raise or remove max_entries"
        )


def count_violations(
    path: Path, source: FolderSource, background: tuple[float, float, float]
) -> int:
    """The number of violations, as in `find_violations`; its line becomes a warning."""
    violations, line = find_violations(path, source, background, show_on_first_process)
    if violations:
        logging.warning("judged all the same: %s", line)
    return violations
