"""An evaluation as one page, report.html: no server, no network, no script.

All text is escaped, and the content security policy of the page allows only the images,
the video and the style sheet that are embedded in it. Needs the extra "report".
"""

import base64
import dataclasses
import datetime
import hashlib
import importlib
import io
import json
import math
import shlex
import sys
from pathlib import Path

import numpy as np
from PIL.PngImagePlugin import PngImageFile

import facelift_jax
from facelift_jax.data.io import printable
from facelift_jax.data.options import DataOptions
from facelift_jax.data.packed import PackedScene
from facelift_jax.data.scenes import FolderSource
from facelift_jax.evaluation.results import (
    BASELINES,
    EvaluatedModel,
    Evaluation,
    SceneResult,
    describe_angle_bins,
    format_number,
    metric_rows,
)
from facelift_jax.io import atomic
from facelift_jax.io.extras import extra
from facelift_jax.io.revision import source_revision
from facelift_jax.metrics import paired_interval

TEMPLATE = Path(__file__).with_suffix(".html")
MAX_DATA_SETS = 3  # paths listed on the page; the others are counted
MAX_SHEET = (2200, 16_000)  # px; the PNG files have the full size
WEBP = {"quality": 85, "method": 2}  # much faster than the default method
SHEET_COLOR = "#f3f3f1"  # background of sheets
# metrics in the comparison with a baseline; higher is better
COMPARED = {"held_out/psnr_fg": "color", "held_out/iou": "silhouette"}
COMPARED_DEPTH = {"held_out/depth_within_05R": "depth"}  # of data with true depth
BASELINE_STYLES = {  # of their lines in the curve
    "hull": {"color": "0.3", "ls": "--"},
    "hull_refined": {"color": "tab:orange", "ls": "-."},
}
UNITS = {"psnr_fg": " dB", "gap": " dB"}
COLUMNS = {  # of the table of scenes: heading -> metric
    "psnr_fg, input views": "inputs/psnr_fg",
    "psnr_fg": "held_out/psnr_fg",
    "gap": "gap",
    "iou": "held_out/iou",
    "ssim": "held_out/ssim",
    "depth_error": "held_out/depth_error",
    "depth_within_05R": "held_out/depth_within_05R",
}


def require_report_packages() -> None:
    """Imports the packages of the report, so that a missing one is reported early.

    Raises:
      ImportError: one of them is missing; one line.
    """
    with extra("report"):
        for name in ("jinja2", "matplotlib.figure"):
            importlib.import_module(name)


def write_report(
    directory: Path,
    evaluation: Evaluation,
    evaluated: EvaluatedModel,
    source: FolderSource,
    options: DataOptions,
) -> None:
    """Writes report.html. The baselines, the sheets and turntable.mp4 must exist.

    Raises:
      OSError: one of these files cannot be read, or the page cannot be written.
    """
    with extra("report"):
        import jinja2
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"digest": _digest, "number": format_number}
    settings = evaluated.settings | {"examples": dataclasses.asdict(options)}
    sheets = [
        (printable(name), {kind: _shrink(path) for kind, path in files.items()})
        for name, files in evaluation.sheets.items()
    ]
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        evaluated=printable(evaluated.name),
        kind=evaluated.kind,
        facts=_facts(evaluation, source, options),
        baselines={key: BASELINES[key] for key in evaluation.baselines},
        comparisons={
            key: _compare(evaluation, baseline)
            for key, baseline in evaluation.baselines.items()
        },
        rows={row.label: row for row in metric_rows(evaluation)},
        units=UNITS,
        video=_data_uri("video/mp4", (directory / "turntable.mp4").read_bytes()),
        sheets=sheets,
        curve=_data_uri("image/png", _draw_by_angle(evaluation)),
        angle_bins=describe_angle_bins(evaluation),
        gap=evaluation.metrics.get("gap", math.nan),
        columns=list(COLUMNS),
        scenes=_scene_rows(evaluation),
        command=printable(shlex.join(sys.orig_argv)),
        settings=json.dumps(settings, indent=2),
        version=f"facelift_jax {facelift_jax.__version__}",
        revision=source_revision(),
    )
    atomic.write_text(directory / "report.html", page)


def _facts(
    evaluation: Evaluation, source: FolderSource, options: DataOptions
) -> dict[str, str]:
    """What was evaluated, in words."""
    folders = [
        x.root if isinstance(x, PackedScene) else x.parent for x in source.folders
    ]
    data_sets = [printable(str(folder)) for folder in dict.fromkeys(folders)]
    num_others = len(data_sets) - MAX_DATA_SETS
    others = f" and {num_others} more" if num_others > 0 else ""
    counts = [len(scene.angles) for scene in evaluation.scenes]
    least, most = min(counts), max(counts)
    held_out = f"{least}" if least == most else f"{least} to {most}"
    num_bad = evaluation.violations
    bad = f", {num_bad} of them fail the data checks" if num_bad else ""
    return {
        "data set": ", ".join(data_sets[:MAX_DATA_SETS]) + others,
        "scenes": f"{len(evaluation.scenes)}{bad}",
        "input views": f"{options.num_inputs} per scene",
        "held-out views": f"{held_out} per scene",
        "date": f"{datetime.datetime.now().astimezone():%-d %B %Y, %H:%M %Z}",
    }


def _compare(evaluation: Evaluation, baseline: Evaluation) -> list[dict[str, str]]:
    """Compares held-out metrics: ahead, behind or no clear difference.

    A difference is clear if its 95 % interval over scenes, see `paired_interval`, does
    not contain zero.
    """
    pairs = list(zip(evaluation.scenes, baseline.scenes, strict=True))
    timestamps = [scene.timestamp for scene in evaluation.scenes]
    depth = [baseline.metrics.get(name, math.nan) for name in COMPARED_DEPTH]
    compared = COMPARED if np.isnan(depth).all() else COMPARED | COMPARED_DEPTH
    comparison = []
    for name, what in compared.items():
        metric = name.split("/")[1]
        differences = [
            scene.metrics.get(name, math.nan) - other.metrics.get(name, math.nan)
            for scene, other in pairs
        ]
        mean, (low, high) = paired_interval(np.array(differences), timestamps)
        word = "ahead" if low > 0 else "behind" if high < 0 else "no clear difference"
        interval = f"[{format_number(low)}, {format_number(high)}]"
        if math.isnan(low):
            word, interval = "too few scenes", ""
        sign = "+" if mean > 0 else ""
        difference = f"{sign}{format_number(mean)}{UNITS.get(metric, '')}"
        comparison.append(
            {
                "what": what,
                "metric": metric,
                "word": word,
                "difference": difference,
                "interval": interval,
            }
        )
    return comparison


def _scene_rows(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    """Name and `COLUMNS` of the mean, of the baselines' means, then of every scene.

    Scenes are sorted by held-out psnr_fg, the lowest first and NaN last.
    """

    def psnr_fg(scene: SceneResult) -> float:
        value = scene.metrics.get("held_out/psnr_fg", math.nan)
        return math.inf if math.isnan(value) else value

    scenes = sorted(evaluation.scenes, key=psnr_fg)
    rows = [("mean", evaluation.metrics)]
    for key, baseline in evaluation.baselines.items():
        rows.append((f"mean of {BASELINES[key].label}", baseline.metrics))
    rows += [(printable(scene.name), scene.metrics) for scene in scenes]
    return [
        (name, [format_number(metrics.get(x, math.nan)) for x in COLUMNS.values()])
        for name, metrics in rows
    ]


def _draw_by_angle(evaluation: Evaluation) -> bytes:
    """PNG: psnr_fg over degrees to the nearest input view, a dot per held-out view."""
    with extra("report"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure((8.6, 3.6), dpi=160, layout="constrained", facecolor=SHEET_COLOR)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor(SHEET_COLOR)
    angles = np.array([x for scene in evaluation.scenes for x in scene.angles], float)
    psnr_fg = np.array([x for scene in evaluation.scenes for x in scene.psnr_fg], float)
    axes.plot(
        angles, psnr_fg, ".", color="tab:blue", alpha=0.5, ms=8, mew=0, label="views"
    )
    lines = [(evaluation, {"color": "tab:blue", "lw": 2.5}, "mean of views")]
    lines += [
        (baseline, BASELINE_STYLES[key], f"{BASELINES[key].label}: mean of views")
        for key, baseline in evaluation.baselines.items()
    ]
    for drawn, style, label in lines:
        bins = [angle_bin for angle_bin in drawn.by_angle if angle_bin.num_views]
        ends = [[x.low, min(x.high, angles.max())] for x in bins]
        if bins:  # otherwise no view defines psnr_fg
            means = [angle_bin.mean for angle_bin in bins]
            axes.hlines(means, *np.transpose(ends), label=label, **style)
    axes.set_xlabel("degrees to the nearest input view")
    axes.set_ylabel("held-out psnr_fg, dB")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _shrink(path: Path) -> str:
    """A sheet as WebP: a fifth of the size of the PNG, half of a JPEG."""
    # Image.open refuses very large sheets; PngImageFile does not
    sheet = PngImageFile(path).convert("RGB")
    sheet.thumbnail(MAX_SHEET)
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", **WEBP)
    return _data_uri("image/webp", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _digest(style: str) -> str:
    """The hash by which a content security policy allows a style sheet."""
    digest = hashlib.sha256(style.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
