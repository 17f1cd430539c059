"""What an evaluation found, and how it is shown: tables, figures.json, sheets."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from facelift_jax import atomic, export, pictures
from facelift_jax.objectives import METRICS
from facelift_jax.structs import Batch, Cameras, Gaussians, RenderOutput

VIDEO_FPS = 24
HULL_METRICS = ("psnr_fg", "ssim", "iou", "depth_error", "depth_within_02R")
HULL_METRICS += ("depth_within_05R", "absrel", "chamfer")  # of its row; others are "-"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
      figures: means over views, then over scenes, by name: see `judge.scene_row` and
        `judge.make_shape_step`; `gap`.
      intervals: per figure, the ends of the bootstrapped 95 % interval over scenes.
      counts: per figure, the number of scenes it is a mean of.
      undefined: per figure, the number of views it leaves out as undefined there.
      by_angle: held-out psnr_fg in classes of the angle to the nearest input.
      scenes: one dictionary a scene: its name, its own figures and, per held-out view,
        `angle` and `psnr_fg`.
      gaussians: of the first scene, [n].
      inputs: cameras [v] the first scene's Gaussians come from.
      hull: the evaluation of the visual hull of the same scenes.
    """

    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    counts: dict[str, int]
    undefined: dict[str, int]
    by_angle: list[dict[str, float | int]]
    scenes: list[dict[str, Any]]
    gaussians: Gaussians
    inputs: Cameras
    hull: "Evaluation | None" = None


def table(evaluation: Evaluation) -> str:
    """Input views beside held-out views and the hull's, then the rest, as text."""
    hull = {} if evaluation.hull is None else evaluation.hull.figures
    lines = [f"{'':<28}{'input views':>12}{'held-out views':>16}  {'95 %':<22}"]
    lines[0] += "hull, held-out views"
    sides = ("inputs", "held_out")
    for metric in (x for x in METRICS if f"inputs/{x}" in evaluation.figures):
        values = [evaluation.figures.get(f"{s}/{metric}", math.nan) for s in sides]
        name = f"held_out/{metric}"
        lines.append(f"{metric:<28}{values[0]:>12.4f}{values[1]:>16.4f}")
        lines[-1] += _interval(evaluation, name) + _hulls(hull, name)
    shown = {f"{side}/{metric}" for side in sides for metric in METRICS}
    others = [name for name in evaluation.figures if name not in shown]
    others.sort(key=lambda name: not name.startswith("inputs/"))
    for name in others:
        value, is_of_inputs = evaluation.figures[name], name.startswith("inputs/")
        label, column = name.removeprefix("inputs/"), 12 if is_of_inputs else 28
        cells = f"{label:<28}{f'{value:.4f}':>{column}}"
        lines.append(f"{cells:<56}{_interval(evaluation, name)}{_hulls(hull, name)}")
    classes = [
        f"{row['from']:g}-{row['to']:g}: {row['mean']:.2f} ({row['views']})"
        for row in evaluation.by_angle
        if row["views"]
    ]
    lines.append("held-out psnr_fg by degrees to the nearest input (views):")
    lines.append(f"  {', '.join(classes)}")
    left_out = {name: n for name, n in evaluation.undefined.items() if n}
    if left_out:
        counts = ", ".join(f"{name} {n}" for name, n in left_out.items())
        lines.append(f"views left out where a figure is undefined: {counts}")
    lines.append(f"means over views, then over scenes: {_counts(evaluation)}")
    return "\n".join(lines)


def _counts(evaluation: Evaluation) -> str:
    """How many scenes figures are means of; a kind's in one where they are the same."""
    num_scenes = len(evaluation.scenes)
    kinds: dict[str, dict[str, int]] = {}
    for name, count in evaluation.counts.items():
        kinds.setdefault(name.split("/")[0], {})[name] = count
    parts = [str(num_scenes)]
    for kind, counts in kinds.items():
        if len(set(counts.values())) == 1:
            counts = {f"{kind}/...": next(iter(counts.values()))}
        parts += [f"{name} {n}" for name, n in counts.items() if n < num_scenes]
    return ", ".join(parts)


def _interval(evaluation: Evaluation, name: str) -> str:
    low, high = evaluation.intervals.get(name, (math.nan, math.nan))
    return f"  {'' if math.isnan(low) else f'[{low:.4g}, {high:.4g}]':<22}"


def _hulls(hull: Mapping[str, float], name: str) -> str:
    is_given = name in hull and name.split("/")[-1] in HULL_METRICS
    return f"{hull[name]:.4f}" if is_given else "-"


def write_figures(path: Path, evaluation: Evaluation) -> None:
    """Figures of the set and of each scene as strict JSON (undefined ones null)."""
    names = ("figures", "intervals", "counts", "undefined", "by_angle", "scenes")
    content = {name: getattr(evaluation, name) for name in names}
    if evaluation.hull is not None:
        hull = evaluation.hull
        content["hull"] = {name: getattr(hull, name) for name in names}
    strict = jax.tree.map(
        lambda x: None if isinstance(x, float) and not np.isfinite(x) else x, content
    )
    atomic.write_text(path, json.dumps(strict, indent=2, allow_nan=False) + "\n")


def write_sheets(
    directory: Path,
    name: str,
    batch: Batch,
    output: RenderOutput,
    psnr_fg: Float[np.ndarray, "1 t"],
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
            psnr_fg[0],
            name,
        ),
        "maps": pictures.map_sheet(targets, output, num_inputs, labels, name),
    }
    for kind, sheet in sheets.items():
        pictures.write_png(directory / f"{name}_{kind}.png", sheet)


def write_scene(
    directory: Path,
    gaussians: Gaussians,
    frames: RenderOutput,
    chosen: export.Filter = export.FILTERS["opacity"],
    layout: str = "lgm",
) -> list[str]:
    """Gaussians [n] as `scene.ply`, and frames [f] of all of them as `turntable.mp4`.

    `chosen` and `layout` as in `export.write_ply`. Returns one line about each file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ply, video = directory / "scene.ply", directory / "turntable.mp4"
    written, pruned = export.write_ply(ply, gaussians, chosen, layout)
    num_frames, size = frames.colors.shape[:2]
    pictures.write_video(video, pictures.to_uint8(frames.colors), VIDEO_FPS)
    return [
        f"{ply}: layout {layout}, {written:,} Gaussians ({pruned:,} left out: "
        f"{chosen.describe()})",
        f"{video}: {num_frames} frames of {size} px",
    ]
