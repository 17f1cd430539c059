"""A complete evaluation: every scene of a data set, the baselines, and all files."""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from absl import logging

from facelift_jax.data.formats import NO_ORIGIN
from facelift_jax.data.options import DataOptions
from facelift_jax.data.pipeline import Source, evaluation_batches
from facelift_jax.data.scenes import FolderSource, StoredScene
from facelift_jax.data.validation.dataset_report import find_violations
from facelift_jax.data.validation.leakage import leave_out_trained
from facelift_jax.evaluation.report import require_report_packages, write_report
from facelift_jax.evaluation.results import (
    BASELINES,
    METRICS_FILE,
    EvaluatedModel,
    Evaluation,
    SceneResult,
    summarize,
    write_metrics,
    write_ply_and_turntable,
    write_sheets,
)
from facelift_jax.evaluation.steps import (
    EvalStep,
    ShapeStep,
    Turntable,
    make_hull_step,
    make_shape_step,
    make_turntable,
    require_nothing_dropped,
    scene_metrics,
)
from facelift_jax.io.progress import show_on_first_process, with_progress
from facelift_jax.structs import RefineFn, RenderFn

NUM_SHAPE_SCENES = 4  # scenes for which the slow metrics of a `ShapeStep` are computed


def evaluate(
    eval_step: EvalStep,
    params: Any,
    source: Source,
    options: DataOptions,
    num_image_scenes: int = 0,
    image_dir: Path | None = None,
    shape_step: ShapeStep | None = None,
    label: str = "evaluate",
) -> Evaluation:
    """Metrics of every scene of a source, at its input views and at held-out views.

    The first `num_image_scenes` scenes get sheets in `image_dir`. With a `shape_step`,
    the first `NUM_SHAPE_SCENES` scenes get its metrics as well. `label` starts the
    lines of progress.

    Raises:
      ValueError: the renderer dropped list entries (an explicit cap).
    """
    results: list[SceneResult] = []
    shapes: list[Future[dict[str, float]]] = []
    first, sheets = None, {}
    batches = evaluation_batches(source, options, batch_size=1)
    batches = with_progress(batches, label, len(source), show_on_first_process)
    pool = ThreadPoolExecutor(1)  # measures the shape of one scene during the next
    try:
        for index, batch in enumerate(batches):
            scene = source[int(batch.scene_id[0])]
            gaussians, outputs = jax.device_get(eval_step(params, batch))
            require_nothing_dropped(scene.name, outputs.output)
            metrics, undefined = scene_metrics(outputs, options.num_inputs)
            gaussians, inputs = jax.tree.map(
                lambda x: x[0], (gaussians, batch.inputs.cameras)
            )
            if shape_step is not None and index < NUM_SHAPE_SCENES:
                radius = float(outputs.radius[0])
                arguments = (gaussians, batch, scene, options, radius)
                if shapes:
                    shapes[-1].result()  # raises its error
                shapes.append(pool.submit(shape_step, *arguments))
            origin = scene.origin if isinstance(scene, StoredScene) else NO_ORIGIN
            held_out = slice(options.num_inputs, None)
            psnr_fg = outputs.view_metrics["psnr_fg"]
            results.append(
                SceneResult(
                    scene.name,
                    (origin.recording, origin.time),
                    metrics,
                    undefined,
                    outputs.angles[0, held_out].tolist(),
                    psnr_fg[0, held_out].tolist(),
                )
            )
            if image_dir is not None and index < num_image_scenes:
                sheets[scene.name] = write_sheets(
                    image_dir, scene.name, batch, outputs.output, psnr_fg
                )
            first = first or (gaussians, inputs)
        for result, shape in zip(results, shapes, strict=False):  # of the first scenes
            result.metrics.update(shape.result())
    finally:
        pool.shutdown(cancel_futures=True)
    assert first is not None, "a source holds at least one scene"
    return summarize(results, *first, sheets)


def write_evaluation(
    directory: Path,
    evaluation: Evaluation,
    render_fn: RenderFn,
    refine_fn: RefineFn,
    lpips: Any,
    turn: Turntable,
    source: FolderSource,
    options: DataOptions,
    evaluated: EvaluatedModel,
) -> Evaluation:
    """Adds the baselines on the same scenes to an evaluation and writes its files.

    Writes scene.ply and turntable.mp4 of the first scene, then metrics.json, then
    report.html. `lpips` as in `make_eval_step`. Refinement needs two input views; with
    one, there is no refined hull.
    """
    baselines = {}
    shape_step = make_shape_step(render_fn, turn, with_true_turntable=False)
    for name, baseline in BASELINES.items():
        is_possible = options.num_inputs > 1 or not baseline.num_refine_steps
        if evaluated.is_baseline(baseline) or not is_possible:
            continue
        step = make_hull_step(render_fn, refine_fn, baseline.num_refine_steps, lpips)
        label = f"evaluate {baseline.label}"
        baselines[name] = evaluate(
            step, None, source, options, shape_step=shape_step, label=label
        )
    frames, _ = turn(evaluation.gaussians, evaluation.inputs)
    for line in write_ply_and_turntable(directory, evaluation.gaussians, frames):
        logging.info(line)
    evaluation = dataclasses.replace(
        evaluation, baselines=baselines, violations=source.violations
    )
    write_metrics(directory / METRICS_FILE, evaluation, evaluated)
    write_report(directory, evaluation, evaluated, source, options)
    return evaluation


def evaluate_held_out(
    directory: Path,
    eval_step: EvalStep,
    params: Any,
    source: FolderSource,
    options: DataOptions,
    render_fn: RenderFn,
    refine_fn: RefineFn,
    lpips: Any,
    evaluated: EvaluatedModel,
    data_sets: Mapping[Path, FolderSource],
    trained_on: Sequence[str],
    num_image_scenes: int,
    num_turntable_frames: int,
) -> Evaluation:
    """Evaluates the scenes that a model was not trained on; writes all files.

    `source` holds the scenes of all `data_sets` (path -> its scenes); `trained_on` are
    the fingerprints of training scenes; `lpips` is for the baselines, as in
    `make_eval_step`. Evaluated scenes that fail the data checks are
    counted and reported as a warning.

    Raises:
      ValueError: every scene was trained on, or `directory` holds other files.
      ImportError: the packages of the report are missing.
    """
    require_report_packages()
    is_evaluation = (directory / METRICS_FILE).is_file()
    if directory.is_dir() and any(directory.iterdir()) and not is_evaluation:
        raise ValueError(
            f"{directory}: not empty, but holds no {METRICS_FILE} of an earlier "
            "evaluation; choose another folder"
        )
    if trained_on:
        source = leave_out_trained(source, list(trained_on))
    violations = sum(
        _count_violations(path, _common(data_set, source), options.background)
        for path, data_set in data_sets.items()
    )
    source = dataclasses.replace(source, violations=violations)
    directory.mkdir(parents=True, exist_ok=True)
    turn = make_turntable(render_fn, num_turntable_frames)
    evaluation = evaluate(
        eval_step,
        params,
        source,
        options,
        num_image_scenes,
        directory / "images",
        make_shape_step(render_fn, turn),
    )
    return write_evaluation(
        directory,
        evaluation,
        render_fn,
        refine_fn,
        lpips,
        turn,
        source,
        options,
        evaluated,
    )


def _common(data_set: FolderSource, source: FolderSource) -> FolderSource:
    """The scenes of a data set that are also in `source`."""
    kept = set(map(str, source.folders))
    pairs = zip(data_set.folders, data_set.names, strict=True)
    pairs = [(folder, name) for folder, name in pairs if str(folder) in kept]
    folders, names = (tuple(pair[i] for pair in pairs) for i in (0, 1))
    return dataclasses.replace(data_set, folders=folders, names=names)


def _count_violations(
    path: Path, source: FolderSource, background: tuple[float, float, float]
) -> int:
    """How many scenes fail the data checks; logs a warning if any does."""
    violations, line = find_violations(path, source, background, show_on_first_process)
    if violations:
        logging.warning("evaluated anyway: %s", line)
    return violations
