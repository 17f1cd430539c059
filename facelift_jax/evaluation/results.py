"""Results of an evaluation, and how they are written: tables, metrics.json, images."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
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
    AngleBin,
    Timestamp,
    mean_by_angle,
    summarize_scenes,
)
from facelift_jax.reconstruction import NUM_STEPS
from facelift_jax.structs import Batch, Cameras, Gaussians, RenderOutput

METRICS_FILE = "metrics.json"
VIDEO_FPS = 24
SIDES = {"inputs": "input views", "held_out": "held-out views"}
GAP = "psnr_fg of the input views minus psnr_fg of the held-out views, dB; large when "
GAP += "each camera sees a flat image instead of a shape"
DEFINED = {
    "": {**DEFINITIONS, "gap": GAP},
    "inputs": OWN_VIEW_DEFINITIONS,
    "health": HEALTH_DEFINITIONS,
    "turntable": TURNTABLE_DEFINITIONS,
    "true_turntable": TURNTABLE_DEFINITIONS,
    "surface": SURFACE_DEFINITIONS,
}
"""Kind of metric -> name -> definition."""


class Baseline(NamedTuple):
    """A reconstruction without a network, which stands beside every evaluated model.

    Attributes:
      label: name in tables.
      num_refine_steps: gradient steps by which the visual hull is refined.
    """

    label: str
    num_refine_steps: int


BASELINES = {
    "hull": Baseline("hull", 0),
    "hull_refined": Baseline("hull, refined", NUM_STEPS),
}
"""Key in metrics.json -> baseline."""


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """Which model an evaluation is about.

    Attributes:
      checkpoint: directory of the network's weights; None for the visual hull.
      settings: the settings it was trained with, as JSON values.
      num_refine_steps: gradient steps by which its Gaussians are refined.
    """

    checkpoint: str | None
    settings: dict[str, Any]
    num_refine_steps: int = 0

    def is_baseline(self, baseline: Baseline) -> bool:
        """Whether the model is this baseline."""
        steps = baseline.num_refine_steps
        return self.checkpoint is None and self.num_refine_steps == steps

    @property
    def kind(self) -> str:
        """Network or hull, refined or not, in words."""
        kind = "hull" if self.checkpoint is None else "network"
        return f"refined {kind}" if self.num_refine_steps else kind

    @property
    def name(self) -> str:
        """The checkpoint or the hull, and the number of steps of refinement."""
        name = self.checkpoint or "the visual hull"
        steps = self.num_refine_steps
        return f"{name}, refined by {steps} gradient steps" if steps else name


@dataclasses.dataclass(frozen=True)
class SceneResult:
    """The metrics of one scene.

    Attributes:
      name: name of the scene.
      timestamp: the recording and the seconds in it, if stored.
      metrics: by name, see `steps.scene_metrics` and `steps.make_shape_step`.
      undefined: per metric, the number of views in which it is undefined; its mean
        leaves them out.
      angles: per held-out view, degrees to the nearest input view.
      psnr_fg: per held-out view, dB.
    """

    name: str
    timestamp: Timestamp
    metrics: dict[str, float]
    undefined: dict[str, int]
    angles: list[float]
    psnr_fg: list[float]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The metrics of a data set.

    Attributes:
      scenes: in the order of the data set.
      metrics: means over views, then over scenes, by name.
      intervals: per metric, its 95 % interval, see `bootstrap_interval`.
      counts: per metric, the number of scenes in its mean.
      undefined: per metric, the number of views in which it is undefined; its mean
        leaves them out.
      by_angle: held-out psnr_fg in bins of the angle to the nearest input view.
      gaussians: of the first scene, [n].
      inputs: input cameras [v] of the first scene.
      sheets: scene name -> kind of sheet -> PNG file, for the scenes that have any.
      baselines: the evaluations of `BASELINES` on the same scenes, by key; without that
        of the evaluated model itself.
      violations: number of scenes that fail the data checks; None: not checked.
    """

    scenes: list[SceneResult]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    counts: dict[str, int]
    undefined: dict[str, int]
    by_angle: list[AngleBin]
    gaussians: Gaussians
    inputs: Cameras
    sheets: dict[str, dict[str, Path]] = dataclasses.field(default_factory=dict)
    baselines: dict[str, "Evaluation"] = dataclasses.field(default_factory=dict)
    violations: int | None = None


def summarize(
    scenes: Sequence[SceneResult],
    gaussians: Gaussians,
    inputs: Cameras,
    sheets: Mapping[str, dict[str, Path]],
) -> Evaluation:
    """The evaluation of a set of scenes; the other arguments become its attributes."""
    undefined: dict[str, int] = {}
    for scene in scenes:
        for name, count in scene.undefined.items():
            undefined[name] = undefined.get(name, 0) + count
    means, intervals, counts = summarize_scenes(
        [scene.metrics for scene in scenes], [scene.timestamp for scene in scenes]
    )
    by_angle = mean_by_angle(
        [scene.angles for scene in scenes], [scene.psnr_fg for scene in scenes]
    )
    return Evaluation(
        list(scenes),
        means,
        intervals,
        counts,
        undefined,
        by_angle,
        gaussians,
        inputs,
        dict(sheets),
    )


class MetricRow(NamedTuple):
    """One row of a table: text, "-" if undefined, "" if the column does not apply.

    Attributes:
      kind: kind of the metric, the part of its name before "/"; "" for image metrics.
      label: name in the table.
      definition: definition of the metric, one line.
      inputs, held_out: means; metrics that belong to no view are in `held_out`.
      interval: 95 % interval of `held_out`, or of `inputs` if that is the only mean.
      baselines: `inputs` and `held_out` of each baseline, by key.
      notes: number of undefined views; number of scenes if some lack the metric. Those
        of a baseline are included if they differ.
    """

    kind: str
    label: str
    definition: str
    inputs: str
    held_out: str
    interval: str
    baselines: dict[str, tuple[str, str]]
    notes: str


def format_number(value: float) -> str:
    """Four digits, integers from 1000 on, "-" for NaN and infinity."""
    if not math.isfinite(value):
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.4g}".rstrip(".")


def metric_rows(evaluation: Evaluation) -> list[MetricRow]:
    """All metrics: image metrics first, then those of input views, then the rest."""
    names = list(evaluation.metrics)
    of_images = [x for x in METRICS if {f"inputs/{x}", f"held_out/{x}"} & set(names)]
    in_both_columns = {f"{side}/{metric}" for side in SIDES for metric in METRICS}
    others = [name for name in names if name not in in_both_columns]
    others.sort(key=lambda name: (name != "gap", not name.startswith("inputs/")))
    rows = [
        _metric_row(evaluation, "", metric, [f"{side}/{metric}" for side in SIDES])
        for metric in of_images
    ]
    for name in others:
        kind, _, metric = name.rpartition("/")
        is_of_inputs = kind == "inputs"
        label, columns = (metric, [name, ""]) if is_of_inputs else (name, ["", name])
        rows.append(_metric_row(evaluation, kind, label, columns))
    return rows


def _metric_row(
    evaluation: Evaluation, kind: str, label: str, columns: list[str]
) -> MetricRow:
    """The row of the metrics named in the two columns; "" leaves a column empty."""
    name = columns[1] or columns[0]
    low, high = evaluation.intervals.get(name, (math.nan, math.nan))
    notes = [own_notes := _notes(evaluation, columns)]
    for key, baseline in evaluation.baselines.items():
        baseline_notes = _notes(baseline, columns)
        if baseline_notes not in ("", own_notes):
            notes.append(f"{BASELINES[key].label}: {baseline_notes}")
    return MetricRow(
        kind,
        label,
        DEFINED[kind][name.split("/")[-1]],
        *_means(evaluation, columns),
        "" if math.isnan(low) else f"[{format_number(low)}, {format_number(high)}]",
        {key: _means(x, columns) for key, x in evaluation.baselines.items()},
        "; ".join(filter(None, notes)),
    )


def _means(evaluation: Evaluation, columns: list[str]) -> tuple[str, str]:
    """The means of the two columns, empty for metrics that do not apply."""
    if not any(column in evaluation.metrics for column in columns):
        return "", ""
    inputs, held_out = (
        format_number(evaluation.metrics.get(column, math.nan)) if column else ""
        for column in columns
    )
    return inputs, held_out


def _notes(evaluation: Evaluation, columns: list[str]) -> str:
    """The number of undefined views; of scenes, if some lack the metric."""
    undefined = [
        f"{count} {SIDES[column.split('/')[0]]}"
        for column in columns
        if (count := evaluation.undefined.get(column, 0))
    ]
    notes = [f"undefined in {' and '.join(undefined)}"] if undefined else []
    count = evaluation.counts.get(columns[1] or columns[0])
    if count is not None and count < len(evaluation.scenes):
        notes.append(f"mean of {count} scenes")
    return ", ".join(notes)


def table(evaluation: Evaluation) -> str:
    """All metrics as text: input views, held-out views, interval, baselines."""
    labels = [BASELINES[key].label for key in evaluation.baselines]
    lines = [f"{'':<80}{''.join(f'{label:>22}' for label in labels)}"]
    lines.append(f"{'':<28}{'input views':>12}{'held-out views':>16}  {'95 %':<22}")
    lines[-1] += f"{'inputs':>11}{'held-out':>11}" * len(labels)
    for row in metric_rows(evaluation):
        means = f"{row.label:<28}{row.inputs:>12}{row.held_out:>16}"
        baselines = [f"{x:>11}" for pair in row.baselines.values() for x in pair]
        lines.append(f"{means}  {row.interval:<22}{''.join(baselines)}".rstrip())
    lines.append("held-out psnr_fg by degrees to the nearest input view (views):")
    lines.append(f"  {', '.join(describe_angle_bins(evaluation))}")
    undefined = {name: n for name, n in evaluation.undefined.items() if n}
    if undefined:
        counts = ", ".join(f"{name} {n}" for name, n in undefined.items())
        lines.append(f"views in which a metric is undefined: {counts}")
    lines.append(f"number of scenes in the means: {_describe_counts(evaluation)}")
    return "\n".join(lines)


def describe_angle_bins(evaluation: Evaluation) -> list[str]:
    """`30-45: 12.34 (8)`: degrees to the nearest input view, psnr_fg, views."""
    return [
        f"{x.low:g}-{x.high:g}: {format_number(x.mean)} ({x.num_views})"
        for x in evaluation.by_angle
        if x.num_views
    ]


def _describe_counts(evaluation: Evaluation) -> str:
    """The number of scenes, and the counts of the means over fewer scenes.

    Metrics of one kind share an entry if their counts are equal.
    """
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


def write_metrics(
    path: Path, evaluation: Evaluation, evaluated: EvaluatedModel
) -> None:
    """Writes the metrics of the data set, of each scene and of the baselines."""
    content = _as_json(evaluation)
    if evaluation.violations is not None:
        content["violations"] = evaluation.violations
    for key, baseline in BASELINES.items():
        if evaluated.is_baseline(baseline):
            content[key] = _as_json(evaluation)
        elif key in evaluation.baselines:
            content[key] = _as_json(evaluation.baselines[key])
    write_json(path, content)


def _as_json(evaluation: Evaluation) -> dict[str, Any]:
    names = ("metrics", "intervals", "counts", "undefined")
    return {
        **{name: getattr(evaluation, name) for name in names},
        "by_angle": [angle_bin._asdict() for angle_bin in evaluation.by_angle],
        "scenes": [dataclasses.asdict(scene) for scene in evaluation.scenes],
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes strict JSON: NaN and infinity become null."""
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
    """Writes the sheets of the one scene in a batch as PNG.

    Returns the file of each kind: `inputs` (input images), `sheet` (pairs of ground
    truth and prediction), `maps` (error, opacity and depth).
    """
    directory.mkdir(parents=True, exist_ok=True)
    inputs, targets, output = jax.tree.map(
        lambda x: np.asarray(x)[0], (batch.inputs, batch.targets, output)
    )
    num_inputs = len(inputs.images)
    labels = visualize.view_labels(targets.cameras)
    sheets = {
        "inputs": visualize.inputs_strip(
            inputs.images, labels[:num_inputs], f"{name}   input images"
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


def write_ply_and_turntable(
    directory: Path,
    gaussians: Gaussians,
    frames: RenderOutput,
    filter: Filter = FILTERS["opacity"],
    layout: str = "lgm",
) -> list[str]:
    """Writes Gaussians [n] as `scene.ply` and their frames [f] as `turntable.mp4`.

    `filter` and `layout` are those of `export.ply.write_ply`; the video shows all
    Gaussians. Returns one log line per file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ply, video = directory / "scene.ply", directory / "turntable.mp4"
    is_padding = gaussians.opacities == 0  # of a hull
    gaussians = jax.tree.map(lambda x: x[~is_padding], gaussians)
    written, pruned = write_ply(ply, gaussians, filter, layout)
    num_frames, size = frames.colors.shape[:2]
    write_video(video, to_uint8(frames.colors), VIDEO_FPS)
    return [
        f"{ply}: layout {layout}, {written:,} Gaussians ({pruned:,} left out: "
        f"{filter.describe()})",
        f"{video}: {num_frames} frames of {size} px",
    ]
