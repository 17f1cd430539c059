"""The curves of a run: its losses, its figures, and what the collapse watch sees."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from facelift_jax.io import atomic
from facelift_jax.losses import TERMS
from facelift_jax.metrics import METRICS
from facelift_jax.training import collapse_monitor

Rows = Sequence[Mapping[str, Any]]

_LETTERS = 280  # of a line that fits the page
_OURS, _TRUTH, _ALARM = "tab:blue", "tab:green", "tab:red"


class _Watched(NamedTuple):
    """A panel of the watch: its curves, where alarms begin, the truth's figure."""

    title: str
    names: tuple[str, ...]
    limits: tuple[float, ...] | Callable[[float], tuple[float, ...]] = ()  # of a truth
    truth: str | None = None


_WATCHED = (
    _Watched(
        "contrast",
        ("monitor/contrast",),
        lambda truth: (collapse_monitor.contrast_limit(truth),),
        "monitor/contrast_truth",
    ),
    _Watched(
        "color_distance", ("monitor/color_distance",), truth="monitor/contrast_truth"
    ),
    _Watched(
        "coverage",
        ("monitor/coverage",),
        collapse_monitor.coverage_limits,
        "monitor/coverage_truth",
    ),
    _Watched("opacity", ("monitor/opacity_p50", "monitor/opacity_p95")),
    _Watched("steps not taken", ("monitor/not_taken",), (collapse_monitor.NOT_TAKEN,)),
    _Watched(
        "background_error",
        ("monitor/background_error",),
        (collapse_monitor.BACKGROUND,),
    ),
    _Watched(
        "own_view_share", ("inputs/own_view_share",), (collapse_monitor.OWN_SHARE,)
    ),
    _Watched("lovo_drop", ("inputs/lovo_drop",), (collapse_monitor.OWN_DROP,)),
)


def write_curves(path: str | Path, rows: Rows) -> None:
    """Draws the loss terms and every metric of `metrics.jsonl`'s rows over steps.

    Input views and held-out views share a panel in different strokes; coverage, which
    does not move, and the latest gap are given in numbers at the bottom. The last row
    is the collapse watch: the training targets' own figures as a band, limits dotted;
    what it said last stands at the top.
    """
    found = {key.partition("/")[2] for row in rows for key in row}
    drawn = [x for x in METRICS if x in found and x != "coverage"]
    columns = max(len(_WATCHED), len(drawn) // 2 + 1) // 2 * 2
    figure = Figure(figsize=(3 * columns, 11), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, columns)
    _draw_figures(axes[:2].ravel(), rows, drawn)
    _draw_watch(axes[2], rows)
    for panel in axes.ravel():
        panel.set_xlabel("step")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        if panel.get_lines():
            panel.legend(frameon=False, fontsize=8)
        panel.set_visible(bool(panel.get_title()))
    figure.supxlabel(_latest(rows), size=9)
    figure.suptitle("\n".join(_alarms(rows)), size=9, color=_ALARM)
    with atomic.replaced(Path(path)) as partial:
        figure.savefig(partial, format="png")


def _draw_figures(axes: Sequence[Axes], rows: Rows, drawn: Sequence[str]) -> None:
    for term in ("total", *TERMS):
        _draw(axes[0], rows, f"train/{term}", term)
    axes[0].set_title("training: total, and terms unweighted")
    if axes[0].get_lines():
        axes[0].set_yscale("log")
    for panel, metric in zip(axes[1:], drawn, strict=False):
        _draw(panel, rows, f"inputs/{metric}", "input views", "--", "tab:orange")
        _draw(panel, rows, f"held_out/{metric}", "held-out views", "-", _OURS)
        panel.set_title(f"{metric}, dB" if metric.startswith("psnr") else metric)


def _draw_watch(axes: Sequence[Axes], rows: Rows) -> None:
    for panel, shown in zip(axes, _WATCHED, strict=False):
        truth = np.nan
        if shown.truth is not None:
            low, high = _span(rows, shown.truth)
            panel.axhspan(low, high, color=_TRUTH, alpha=0.25, label="ground truth")
            truth = (low + high) / 2
        for name in shown.names:
            _draw(panel, rows, name, name.partition("/")[2])
        limits = shown.limits(truth) if callable(shown.limits) else shown.limits
        for number, limit in enumerate(limits):
            label = "alarm" if number == 0 else None
            panel.axhline(limit, ls=":", color=_ALARM, label=label)
        panel.set_title(f"watch: {shown.title}")


def _span(rows: Rows, key: str) -> tuple[float, float]:
    """Smallest and largest value of a column; NaN where it has none."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return (min(values), max(values)) if values else (np.nan, np.nan)


def _latest(rows: Rows) -> str:
    notes = {
        "gap": "latest gap in psnr_fg, inputs minus held-out: {:.2f} dB",
        "inputs/coverage": "coverage of input views {:.3f}",
        "held_out/coverage": "of held-out views {:.3f}",
    }
    latest = {
        key: row[key] for row in rows for key in notes if row.get(key) is not None
    }
    return ",  ".join(
        note.format(latest[key]) for key, note in notes.items() if key in latest
    )


def _alarms(rows: Rows) -> list[str]:
    """What the watch said, the last three of it."""
    said = [f"step {row['step']}: {x}" for row in rows for x in row.get("notes", [])]
    return [textwrap.fill(line, _LETTERS) for line in said[-3:]]


def _draw(
    panel: Axes,
    rows: Rows,
    key: str,
    label: str,
    style: str = "-",
    color: str | None = None,
) -> None:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        steps, values = np.array(points, np.float64).T
        marker = "." if len(points) < 30 else None
        panel.plot(
            steps, values, style, color=color, label=label, lw=1.4, marker=marker
        )
