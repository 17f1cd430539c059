"""An evaluation as one page, report.html: no server, no network, no script.

Every name is escaped, and the page's own policy lets nothing in but what it carries.
"""

import base64
import dataclasses
import datetime
import hashlib
import io
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL.PngImagePlugin import PngImageFile

import facelift_jax
from facelift_jax.data.io import printable
from facelift_jax.data.options import DataOptions
from facelift_jax.data.packed import PackedScene
from facelift_jax.data.scenes import FolderSource
from facelift_jax.evaluation.results import Evaluation, angle_classes, number, rows
from facelift_jax.io import atomic
from facelift_jax.io.revision import source_revision
from facelift_jax.metrics import paired_interval

TEMPLATE = Path(__file__).with_suffix(".html")
SHOWN_SETS = 3  # paths that stand in the page; others are counted
MAX_SHEET = (2200, 16_000)  # px; the PNG beside the page are whole
WEBP = {"quality": 85, "method": 2}  # of much less effort than its default
PAPER = "#f3f3f1"  # what sheets are drawn on
COMPARED = {"held_out/psnr_fg": "colour", "held_out/iou": "silhouette"}
UNITS = {"psnr_fg": " dB", "gap": " dB"}
COLUMNS = {  # of the table of scenes: heading -> figure
    "psnr_fg, input views": "inputs/psnr_fg",
    "psnr_fg": "held_out/psnr_fg",
    "gap": "gap",
    "iou": "held_out/iou",
    "ssim": "held_out/ssim",
    "depth_error": "held_out/depth_error",
    "depth_within_05R": "held_out/depth_within_05R",
}


@dataclasses.dataclass(frozen=True)
class Judged:
    """Whose Gaussians an evaluation is of.

    Attributes:
      checkpoint: where the network's weights are; None: the visual hull.
      settings: that it was made by, as JSON values.
    """

    checkpoint: str | None
    settings: dict[str, Any]


def write_report(
    directory: Path,
    evaluation: Evaluation,
    judged: Judged,
    source: FolderSource,
    options: DataOptions,
) -> None:
    """Writes report.html of an evaluation whose hull, sheets and turntable are there.

    Raises:
      OSError: one of these files cannot be read, or the page not be written.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"digest": _digest, "number": number}
    settings = judged.settings | {"examples": dataclasses.asdict(options)}
    sheets = [
        (printable(name), {kind: _shrunk(path) for kind, path in files.items()})
        for name, files in evaluation.sheets.items()
    ]
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        judged=printable(judged.checkpoint or "the visual hull"),
        is_hull=judged.checkpoint is None,
        facts=_facts(evaluation, source, options),
        comparison=_compare(evaluation),
        figures={row.label: row for row in rows(evaluation)},
        units=UNITS,
        video=_data_uri("video/mp4", (directory / "turntable.mp4").read_bytes()),
        sheets=sheets,
        curve=_data_uri("image/png", _draw_by_angle(evaluation)),
        classes=angle_classes(evaluation),
        gap=evaluation.figures.get("gap", math.nan),
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
    """What was judged, in words."""
    places = [
        x.root if isinstance(x, PackedScene) else x.parent for x in source.folders
    ]
    sets = [printable(str(place)) for place in dict.fromkeys(places)]
    more = f" and {len(sets) - SHOWN_SETS} more" if len(sets) > SHOWN_SETS else ""
    counts = [len(scene["held_out_views"]["angle"]) for scene in evaluation.scenes]
    least, most = min(counts), max(counts)
    bad = evaluation.violations
    broken = f", {bad} of them fail the data checks" if bad else ""
    return {
        "data set": ", ".join(sets[:SHOWN_SETS]) + more,
        "scenes": f"{len(evaluation.scenes)}{broken}",
        "input views": f"{options.num_inputs} a scene",
        "held-out views": f"{least if least == most else f'{least} to {most}'} a scene",
        "date": f"{datetime.datetime.now().astimezone():%-d %B %Y, %H:%M %Z}",
    }


def _compare(evaluation: Evaluation) -> list[dict[str, str]]:
    """Held-out figures minus the hull's, scene by scene: ahead, behind or not clear.

    Clear is a difference whose 95 % interval, see `paired_interval`, leaves out zero.
    """
    assert evaluation.hull is not None
    pairs = list(zip(evaluation.scenes, evaluation.hull.scenes, strict=True))
    moments = [scene["moment"] for scene in evaluation.scenes]
    found = []
    for name, what in COMPARED.items():
        figure = name.split("/")[1]
        differences = [
            ours.get(name, math.nan) - hulls.get(name, math.nan)
            for ours, hulls in pairs
        ]
        mean, (low, high) = paired_interval(np.array(differences), moments)
        word = "ahead" if low > 0 else "behind" if high < 0 else "not clear"
        interval = f"[{number(low)}, {number(high)}]"
        if math.isnan(low):
            word, interval = "too few scenes to tell", ""
        sign = "+" if mean > 0 else ""
        difference = f"{sign}{number(mean)}{UNITS.get(figure, '')}"
        found.append({"what": what, "figure": figure, "word": word})
        found[-1] |= {"difference": difference, "interval": interval}
    return found


def _scene_rows(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    """Name and `COLUMNS`: means, the hull's, then scenes, of least held-out psnr_fg.

    Those that do not define it come last.
    """
    hull = evaluation.hull
    assert hull is not None

    def worst_first(scene: dict[str, Any]) -> float:
        psnr_fg = scene.get("held_out/psnr_fg", math.nan)
        return math.inf if math.isnan(psnr_fg) else psnr_fg

    scenes = sorted(evaluation.scenes, key=worst_first)
    named = [("mean", evaluation.figures), ("visual hull, mean", hull.figures)]
    named += [(printable(scene["scene"]), scene) for scene in scenes]
    return [
        (name, [number(found.get(x, math.nan)) for x in COLUMNS.values()])
        for name, found in named
    ]


def _draw_by_angle(evaluation: Evaluation) -> bytes:
    """PNG: a dot a held-out view, psnr_fg over degrees to the nearest input."""
    assert evaluation.hull is not None
    views = [scene["held_out_views"] for scene in evaluation.scenes]
    figure = Figure((8.6, 3.6), dpi=160, layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor(PAPER)
    angles, psnr_fg = (
        np.concatenate([np.asarray(view[key], np.float64) for view in views])
        for key in ("angle", "psnr_fg")
    )
    axes.plot(
        angles, psnr_fg, ".", color="tab:blue", alpha=0.5, ms=8, mew=0, label="views"
    )
    for found, style, label in (
        (evaluation, {"color": "tab:blue", "lw": 2.5}, "their mean"),
        (evaluation.hull, {"color": "0.3", "ls": "--"}, "visual hull, mean"),
    ):
        classes = [row for row in found.by_angle if row["views"]]
        ends = [[row["from"], min(row["to"], angles.max())] for row in classes]
        means = [row["mean"] for row in classes]
        if classes:  # else no view defines it
            axes.hlines(means, *np.transpose(ends), label=label, **style)
    axes.set_xlabel("degrees to the nearest input view")
    axes.set_ylabel("held-out psnr_fg, dB")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _shrunk(path: Path) -> str:
    """A sheet for the page: WebP takes a fifth of the PNG, half of a JPEG."""
    # the class itself, as Image.open refuses sheets of very many views
    sheet = PngImageFile(path).convert("RGB")
    sheet.thumbnail(MAX_SHEET)
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", **WEBP)
    return _data_uri("image/webp", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _digest(style: str) -> str:
    """What a content policy calls a style sheet by."""
    digest = hashlib.sha256(style.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
