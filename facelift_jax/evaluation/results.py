"""What an evaluation found, and how it is shown: tables, figures.json, sheets."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from facelift_jax.evaluation import visualize
from facelift_jax.export.ply import FILTERS, Filter, write_ply
from facelift_jax.io import atomic
from facelift_jax.io.image_files import to_uint8, write_png, write_video
from facelift_jax.metrics import (
    DEFINITIONS,
    HEALTH_DEFINITIONS,
    METRICS,
    OWN_VIEW_DEFINITIONS,
    SURFACE_DEFINITIONS,
    TURNTABLE_DEFINITIONS,
)
from facelift_jax.structs import Batch, Cameras, Gaussians, RenderOutput

VIDEO_FPS = 24
HULL_METRICS = ("psnr_fg", "ssim", "iou", "depth_error", "depth_within_02R")
HULL_METRICS += ("depth_within_05R", "absrel", "chamfer")  # of its row; others are "-"
SIDES = {"inputs": "input views", "held_out": "held-out views"}
GAP = "psnr_fg of input views minus that of held-out views, dB; large for pictures "
GAP += "painted in front of each camera"
DEFINED = {
    "": {**DEFINITIONS, "gap": GAP},
    "inputs": OWN_VIEW_DEFINITIONS,
    "health": HEALTH_DEFINITIONS,
    "turntable": TURNTABLE_DEFINITIONS,
    "true_turntable": TURNTABLE_DEFINITIONS,
    "surface": SURFACE_DEFINITIONS,
}
"""Kind of figure -> name -> what it is."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
      figures: means over views, then over scenes, by name: see `judge.scene_row` and
        `judge.make_shape_step`; `gap`.
      intervals: per figure, the ends of its 95 % interval, see `bootstrap_interval`.
      counts: per figure, the number of scenes it is a mean of.
      undefined: per figure, the number of views it leaves out as undefined there.
      by_angle: held-out psnr_fg in classes of the angle to the nearest input.
      scenes: one dictionary a scene: its name, its `moment` (recording and seconds in
        it), its own figures and, per held-out view, `angle` and `psnr_fg`.
      gaussians: of the first scene, [n].
      inputs: cameras [v] the first scene's Gaussians come from.
      sheets: files of the scenes that have any: name of the scene -> kind -> PNG.
      hull: the evaluation of the visual hull of the same scenes.
      violations: scenes that fail the data checks; None: not asked.
    """

    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    counts: dict[str, int]
    undefined: dict[str, int]
    by_angle: list[dict[str, float | int]]
    scenes: list[dict[str, Any]]
    gaussians: Gaussians
    inputs: Cameras
    sheets: dict[str, dict[str, Path]] = dataclasses.field(default_factory=dict)
    hull: "Evaluation | None" = None
    violations: int | None = None


class Row(NamedTuple):
    """A figure as tables show it: numbers, "-" if undefined, "" if not of that column.

    Attributes:
      kind: of figure: the part of its name before "/"; "" for those of pictures.
      label: what it is called.
      definition: one line.
      inputs, held_out: means; figures that are of no views stand in the second.
      interval: 95 %, of `held_out`, or of `inputs` where there is no other.
      hull: the visual hull's `held_out`.
      notes: views left out as undefined, and scenes if it is a mean of fewer than all.
    """

    kind: str
    label: str
    definition: str
    inputs: str
    held_out: str
    interval: str
    hull: str
    notes: str


def number(value: float) -> str:
    """Four digits, from a thousand on whole numbers; "-" for what is not finite."""
    if not math.isfinite(value):
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.4g}".rstrip(".")


def rows(evaluation: Evaluation) -> list[Row]:
    """Every figure: of both kinds of views, of input views alone, then the rest."""
    names = list(evaluation.figures)
    pairs = [x for x in METRICS if {f"inputs/{x}", f"held_out/{x}"} & set(names)]
    shown = {f"{side}/{metric}" for side in SIDES for metric in METRICS}
    others = [name for name in names if name not in shown]
    others.sort(key=lambda name: (name != "gap", not name.startswith("inputs/")))
    found = [
        _row(evaluation, "", metric, [f"{side}/{metric}" for side in SIDES])
        for metric in pairs
    ]
    for name in others:
        kind, _, figure = name.rpartition("/")
        is_of_inputs = kind == "inputs"
        label, columns = (figure, [name, ""]) if is_of_inputs else (name, ["", name])
        found.append(_row(evaluation, kind, label, columns))
    return found


def _row(evaluation: Evaluation, kind: str, label: str, columns: list[str]) -> Row:
    """The row of the figures of both columns, "" for one that stays empty."""
    name = columns[1] or columns[0]
    inputs, held_out = (
        number(evaluation.figures.get(column, math.nan)) if column else ""
        for column in columns
    )
    low, high = evaluation.intervals.get(name, (math.nan, math.nan))
    hull = {} if evaluation.hull is None else evaluation.hull.figures
    figure = name.split("/")[-1]
    is_given = name in hull and figure in HULL_METRICS
    left_out = [
        f"{count} {SIDES[column.split('/')[0]]}"
        for column in columns
        if (count := evaluation.undefined.get(column, 0))
    ]
    notes = [f"undefined in {' and '.join(left_out)}"] if left_out else []
    num_scenes, count = len(evaluation.scenes), evaluation.counts.get(name, 0)
    notes += [f"of {count} scenes"] if count < num_scenes else []
    return Row(
        kind,
        label,
        DEFINED[kind][figure],
        inputs,
        held_out,
        "" if math.isnan(low) else f"[{number(low)}, {number(high)}]",
        number(hull[name]) if is_given else "-",
        ", ".join(notes),
    )


def table(evaluation: Evaluation) -> str:
    """Input views beside held-out views and the hull's, then the rest, as text."""
    lines = [f"{'':<28}{'input views':>12}{'held-out views':>16}  {'95 %':<22}"]
    lines[0] += "hull, held-out views"
    for row in rows(evaluation):
        figures = f"{row.label:<28}{row.inputs:>12}{row.held_out:>16}"
        lines.append(f"{figures}  {row.interval:<22}{row.hull}")
    lines.append("held-out psnr_fg by degrees to the nearest input (views):")
    lines.append(f"  {', '.join(angle_classes(evaluation))}")
    left_out = {name: n for name, n in evaluation.undefined.items() if n}
    if left_out:
        counts = ", ".join(f"{name} {n}" for name, n in left_out.items())
        lines.append(f"views left out where a figure is undefined: {counts}")
    lines.append(f"means over views, then over scenes: {_counts(evaluation)}")
    return "\n".join(lines)


def angle_classes(evaluation: Evaluation) -> list[str]:
    """`30-45: 12.34 (8)`: degrees to the nearest input, held-out psnr_fg, views."""
    return [
        f"{row['from']:g}-{row['to']:g}: {number(row['mean'])} ({row['views']})"
        for row in evaluation.by_angle
        if row["views"]
    ]


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


def write_figures(path: Path, evaluation: Evaluation) -> None:
    """Writes the figures of the set and of each scene."""
    names = ("figures", "intervals", "counts", "undefined", "by_angle", "scenes")
    content = {name: getattr(evaluation, name) for name in names}
    if evaluation.violations is not None:
        content["violations"] = evaluation.violations
    if evaluation.hull is not None:
        hull = evaluation.hull
        content["hull"] = {name: getattr(hull, name) for name in names}
    write_record(path, content)


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Writes strict JSON: a figure that is undefined is null."""
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
) -> dict[str, Path]:
    """Inputs, GT | prediction pairs and maps of the one scene in a batch, as PNG.

    Returns the file of each kind: `inputs`, `sheet`, `maps`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    inputs, targets, output = jax.tree.map(
        lambda x: np.asarray(x)[0], (batch.inputs, batch.targets, output)
    )
    num_inputs = len(inputs.images)
    labels = visualize.view_labels(targets.cameras)
    sheets = {
        "inputs": visualize.inputs_strip(
            inputs.images, labels[:num_inputs], f"{name}   what the network is given"
        ),
        "sheet": visualize.supervision_sheet(
            targets.images,
            output.colors,
            num_inputs,
            labels,
            psnr_fg[0],
            name,
        ),
        "maps": visualize.map_sheet(targets, output, num_inputs, labels, name),
    }
    files = {kind: directory / f"{name}_{kind}.png" for kind in sheets}
    for kind, sheet in sheets.items():
        write_png(files[kind], sheet)
    return files


def write_scene(
    directory: Path,
    gaussians: Gaussians,
    frames: RenderOutput,
    chosen: Filter = FILTERS["opacity"],
    layout: str = "lgm",
) -> list[str]:
    """Gaussians [n] as `scene.ply`, and frames [f] of all of them as `turntable.mp4`.

    `chosen` and `layout` as in `export.write_ply`. Returns one line about each file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ply, video = directory / "scene.ply", directory / "turntable.mp4"
    written, pruned = write_ply(ply, gaussians, chosen, layout)
    num_frames, size = frames.colors.shape[:2]
    write_video(video, to_uint8(frames.colors), VIDEO_FPS)
    return [
        f"{ply}: layout {layout}, {written:,} Gaussians ({pruned:,} left out: "
        f"{chosen.describe()})",
        f"{video}: {num_frames} frames of {size} px",
    ]
