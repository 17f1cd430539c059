"""Judging a network from cameras it never saw; in the training loop or as a command.

    python -m facelift_jax.evaluate --checkpoint runs/x DATA --out figures

Figures of input views and of held-out views have different names, always.
"""

import dataclasses
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from facelift_jax import atomic, command, export, pictures
from facelift_jax.data.layouts import camera_file
from facelift_jax.data.options import DataOptions
from facelift_jax.data.pipeline import Source, evaluation_batches
from facelift_jax.data.sources import FolderSource, open_source
from facelift_jax.geometry.paths import turntable_cameras
from facelift_jax.models import get_model
from facelift_jax.objectives import (
    METRICS,
    load_lpips,
    object_radius,
    reduce_metrics,
    view_metrics,
)
from facelift_jax.render import RenderConfig, render
from facelift_jax.structs import Batch, Cameras, Gaussians, RenderOutput
from facelift_jax.training import writer
from facelift_jax.training.checkpoint import load_params

RenderFn = Callable[[Gaussians, Cameras], RenderOutput]
EvalStep = Callable[[Any, Batch], tuple[Gaussians, RenderOutput, dict[str, jax.Array]]]
VIDEO_FPS = 24
SECONDS_BETWEEN_REPORTS = 5.0


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
      figures: `inputs/<metric>`, `held_out/<metric>` and `gap`: means over views, then
        over scenes.
      undefined: per figure, the number of views it leaves out as undefined there.
      scenes: one dictionary a scene: its name and its own figures.
      gaussians: of the first scene, [n].
      inputs: cameras [v] the first scene's Gaussians come from.
    """

    figures: dict[str, float]
    undefined: dict[str, int]
    scenes: list[dict[str, Any]]
    gaussians: Gaussians
    inputs: Cameras


def make_renderer(
    background: tuple[float, ...], antialiased: bool = False, backend: str = ""
) -> RenderFn:
    """`render` on one background; `backend` "" lets the renderer choose."""
    return functools.partial(
        render,
        background=np.asarray(background, np.float32),
        config=RenderConfig(antialiased=antialiased),
        backend=backend or None,
    )


def make_eval_step(model: Any, render_fn: RenderFn, lpips: Any = None) -> EvalStep:
    """Jitted (params, batch) -> (gaussians, rendered targets, metrics [b t]).

    LPIPS is among the metrics where its parameters `lpips` are given.
    """

    @jax.jit
    def eval_step(lpips: Any, params: Any, batch: Batch):
        gaussians, _ = model.apply({"params": params}, batch.inputs)
        output = render_fn(gaussians, batch.targets.cameras)
        radius = object_radius(batch.targets)
        metrics = view_metrics(output, batch.targets, radius, lpips)
        return gaussians, output, metrics

    return functools.partial(eval_step, jax.device_put(lpips))


def evaluate(
    eval_step: EvalStep,
    params: Any,
    source: Source,
    options: DataOptions,
    num_picture_scenes: int = 0,
    picture_dir: Path | None = None,
) -> Evaluation:
    """Figures of every scene of a source, from its inputs and from held-out cameras.

    The first `num_picture_scenes` scenes get sheets in `picture_dir`.

    Raises:
      ValueError: the renderer dropped list entries (an explicit cap), or scenes differ
        in their number of held-out views.
    """
    rows, per_view, first = [], [], None
    start = shown = time.monotonic()
    for index, batch in enumerate(evaluation_batches(source, options, batch_size=1)):
        name = source[int(batch.scene_id[0])].name
        gaussians, output, metrics = jax.device_get(eval_step(params, batch))
        dropped = int(output.dropped.sum())
        if dropped:
            raise ValueError(
                f"scene {name}: the renderer dropped {dropped} list entries, so its "
                "pictures are not the network's; raise or remove max_entries"
            )
        figures, _ = reduce_metrics(metrics, options.num_inputs)
        rows.append({"scene": name, **figures})
        per_view.append(metrics)
        if picture_dir is not None and index < num_picture_scenes:
            write_sheets(picture_dir, name, batch, output, metrics)
        now, done = time.monotonic(), index + 1
        if now - shown > SECONDS_BETWEEN_REPORTS:
            shown, left = now, (now - start) / done * (len(source) - done)
            writer.show_progress(
                f"judged {done}/{len(source)} scenes  "
                f"{writer.format_seconds(left)} left"
            )
        if first is None:
            first = jax.tree.map(lambda x: x[0], (gaussians, batch.inputs.cameras))
    assert first is not None, "a source holds at least one scene"
    counts = sorted({len(metrics["psnr_fg"][0]) for metrics in per_view})
    if len(counts) > 1:
        raise ValueError(
            f"scenes are judged from {counts} views; set eval_targets so that all have "
            "the same number"
        )
    names = [name for name in METRICS if name in per_view[0]]
    together = {name: np.concatenate([m[name] for m in per_view]) for name in names}
    figures, undefined = reduce_metrics(together, options.num_inputs)
    return Evaluation(figures, undefined, rows, *first)


def write_sheets(
    directory: Path,
    name: str,
    batch: Batch,
    output: RenderOutput,
    metrics: Mapping[str, np.ndarray],
) -> None:
    """Inputs, GT | prediction pairs and maps of the one scene in a batch, as PNG."""
    directory.mkdir(parents=True, exist_ok=True)
    inputs, targets, output = jax.tree.map(
        lambda x: np.asarray(x)[0], (batch.inputs, batch.targets, output)
    )
    num_inputs = len(inputs.images)
    labels = pictures.view_labels(targets.cameras)
    sheets = {
        "inputs": pictures.inputs_strip(
            inputs.images, labels[:num_inputs], f"{name}   what the network is given"
        ),
        "sheet": pictures.supervision_sheet(
            targets.images,
            output.colors,
            num_inputs,
            labels,
            metrics["psnr_fg"][0],
            name,
        ),
        "maps": pictures.map_sheet(targets, output, num_inputs, labels, name),
    }
    for kind, sheet in sheets.items():
        pictures.write_png(directory / f"{name}_{kind}.png", sheet)


def write_scene(
    directory: Path,
    gaussians: Gaussians,
    inputs: Cameras,
    render_fn: RenderFn,
    num_frames: int,
    chosen: export.Filter = export.FILTERS["opacity"],
    layout: str = "lgm",
) -> list[str]:
    """Gaussians [n] as `scene.ply` and, all of them, as `turntable.mp4`.

    `inputs` are the cameras [v] they come from, `chosen` and `layout` as in
    `export.write_ply`. Returns one line about each file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ply, video = directory / "scene.ply", directory / "turntable.mp4"
    written, pruned = export.write_ply(ply, gaussians, chosen, layout)
    size = max(128, inputs.width)
    cameras = turntable_cameras(inputs, num_frames, size)
    frames = export.turntable_frames(jax.jit(render_fn), gaussians, cameras)
    pictures.write_video(video, frames, VIDEO_FPS)
    return [
        f"{ply}: layout {layout}, {written:,} Gaussians ({pruned:,} left out: "
        f"{chosen.describe()})",
        f"{video}: {num_frames} frames of {size} px",
    ]


def table(evaluation: Evaluation) -> str:
    """Input views beside held-out views, and what is undefined, as text."""
    figures = evaluation.figures
    lines = [f"{'':<16}  {'input views':>12}  {'held-out views':>14}"]
    for metric in (name for name in METRICS if f"inputs/{name}" in figures):
        pair = [figures[f"{side}/{metric}"] for side in ("inputs", "held_out")]
        lines.append(f"{metric:<16}  {pair[0]:>12.4f}  {pair[1]:>14.4f}")
    lines.append(f"{'gap (psnr_fg)':<16}  {figures['gap']:>12.4f}")
    left_out = {name: n for name, n in evaluation.undefined.items() if n}
    if left_out:
        counts = ", ".join(f"{name} {n}" for name, n in left_out.items())
        lines.append(f"views left out where a figure is undefined: {counts}")
    lines.append(f"means over views, then over {len(evaluation.scenes)} scenes")
    return "\n".join(lines)


def write_figures(path: Path, evaluation: Evaluation) -> None:
    """Figures of the set and of each scene as strict JSON (undefined ones null)."""
    content = {
        "figures": evaluation.figures,
        "undefined_views": evaluation.undefined,
        "scenes": evaluation.scenes,
    }
    strict = jax.tree.map(
        lambda x: None if isinstance(x, float) and not np.isfinite(x) else x, content
    )
    atomic.write_text(path, json.dumps(strict, indent=2, allow_nan=False) + "\n")


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
    files = [camera_file(folder) for folder in source.folders]
    return [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files]


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
    return FolderSource(
        tuple(source.folders[i] for i in fresh), tuple(source.names[i] for i in fresh)
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
    model, trained_on = build_model(config["model"]), config.get("trained_on", [])
    return Restored(params, model, options, render_fn, trained_on)


def report(
    directory: Path,
    model: Any,
    params: Any,
    source: Source,
    options: DataOptions,
    render_fn: RenderFn,
    num_picture_scenes: int,
    turntable_frames: int,
    lpips: Any = None,
) -> Evaluation:
    """Evaluates and writes sheets, figures.json, scene.ply and turntable.mp4."""
    is_ours = (directory / "figures.json").is_file()
    if directory.is_dir() and any(directory.iterdir()) and not is_ours:
        raise ValueError(
            f"{directory}: not empty and no evaluation of ours; choose another folder"
        )
    directory.mkdir(parents=True, exist_ok=True)
    eval_step = make_eval_step(model, render_fn, lpips)
    sheets = directory / "pictures"
    evaluation = evaluate(
        eval_step, params, source, options, num_picture_scenes, sheets
    )
    write_figures(directory / "figures.json", evaluation)
    scene = (evaluation.gaussians, evaluation.inputs)
    for line in write_scene(directory, *scene, render_fn, turntable_frames):
        logging.info(line)
    return evaluation


def main(arguments: list[str]) -> None:
    """The command: any checkpoint, any data set."""
    parser = command.Parser(
        prog="python -m facelift_jax.evaluate",
        description="Held-out figures, sheets, PLY and turntable of a checkpoint.",
    )
    parser.add_argument("data", help="folder or list of scenes, none trained on")
    parser.add_argument(
        "--checkpoint", required=True, help="run directory or converted weights"
    )
    parser.add_argument("--out", default="evaluation", help="output folder")
    parser.add_argument("--inputs", type=int, metavar="N", help="views given")
    parser.add_argument("--held-out-views", type=int, default=12, metavar="N")
    parser.add_argument("--picture-scenes", type=int, default=4, metavar="N")
    parser.add_argument("--turntable-frames", type=int, default=120, metavar="N")
    parser.add_argument(
        "--lpips",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="LPIPS too, by the weight files there; without FOLDER, of the hub's cache",
    )
    flags = parser.parse_args(arguments)
    command.log_own_lines()
    lpips = None if flags.lpips is None else load_lpips(flags.lpips)
    restored = restore(flags.checkpoint, flags.held_out_views, flags.inputs)
    evaluation = report(
        Path(flags.out),
        restored.model,
        restored.params,
        leave_out_trained(open_source(flags.data), restored.trained_on),
        restored.options,
        restored.render_fn,
        flags.picture_scenes,
        flags.turntable_frames,
        lpips,
    )
    print(table(evaluation))
    print(f"{flags.out}: figures.json, pictures, scene.ply, turntable.mp4")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, RuntimeError) as error:
        command.fail("evaluate", error)
