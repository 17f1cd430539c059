"""One image of a run: curves of losses and metrics, and the collapse monitor."""

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

_LINE_LENGTH = 280  # characters that fit the width of the image
_HELD_OUT, _TRUTH, _ALARM = "tab:blue", "tab:green", "tab:red"


class _MonitorPanel(NamedTuple):
    """A panel of the collapse monitor.

    Attributes:
      title: of the panel.
      names: metrics that are drawn as curves.
      limits: where alarms begin; may be a function of the ground truth's value.
      truth: the metric of the ground truth.
    """

    title: str
    names: tuple[str, ...]
    limits: tuple[float, ...] | Callable[[float], tuple[float, ...]] = ()
    truth: str | None = None


_MONITOR_PANELS = (
    _MonitorPanel(
        "contrast",
        ("monitor/contrast",),
        lambda truth: (collapse_monitor.contrast_limit(truth),),
        "monitor/contrast_truth",
    ),
    _MonitorPanel(
        "color_distance", ("monitor/color_distance",), truth="monitor/contrast_truth"
    ),
    _MonitorPanel(
        "coverage",
        ("monitor/coverage",),
        collapse_monitor.coverage_limits,
        "monitor/coverage_truth",
    ),
    _MonitorPanel("opacity", ("monitor/opacity_p50", "monitor/opacity_p95")),
    _MonitorPanel(
        "steps not taken", ("monitor/not_taken",), (collapse_monitor.MAX_NOT_TAKEN,)
    ),
    _MonitorPanel(
        "background_error",
        ("monitor/background_error",),
        (collapse_monitor.MAX_BACKGROUND_ERROR,),
    ),
    _MonitorPanel(
        "own_view_share",
        ("inputs/own_view_share",),
        (collapse_monitor.MAX_OWN_VIEW_SHARE,),
    ),
    _MonitorPanel(
        "lovo_drop", ("inputs/lovo_drop",), (collapse_monitor.MAX_LOVO_DROP,)
    ),
)


def write_curves(path: str | Path, rows: Rows) -> None:
    """Draws the loss terms and metrics in the rows of `metrics.jsonl` over steps.

    Input views and held-out views share a panel, with different line styles. Coverage,
    which is constant, and the latest gap are printed as numbers at the bottom. The last
    row of panels is the collapse monitor: values of the ground truth are a band, limits
    are dotted. The latest alarms are printed at the top.
    """
    names = {key.partition("/")[2] for row in rows for key in row}
    drawn = [x for x in METRICS if x in names and x != "coverage"]
    columns = max(len(_MONITOR_PANELS), len(drawn) // 2 + 1) // 2 * 2
    figure = Figure(figsize=(3 * columns, 11), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, columns)
    _draw_metrics(axes[:2].ravel(), rows, drawn)
    _draw_monitor(axes[2], rows)
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


def _draw_metrics(axes: Sequence[Axes], rows: Rows, drawn: Sequence[str]) -> None:
    for term in ("total", *TERMS):
        _draw(axes[0], rows, f"train/{term}", term)
    axes[0].set_title("training: total loss and unweighted terms")
    if axes[0].get_lines():
        axes[0].set_yscale("log")
    for panel, metric in zip(axes[1:], drawn, strict=False):
        _draw(panel, rows, f"inputs/{metric}", "input views", "--", "tab:orange")
        _draw(panel, rows, f"held_out/{metric}", "held-out views", "-", _HELD_OUT)
        panel.set_title(f"{metric}, dB" if metric.startswith("psnr") else metric)


def _draw_monitor(axes: Sequence[Axes], rows: Rows) -> None:
    for panel, spec in zip(axes, _MONITOR_PANELS, strict=False):
        truth = np.nan
        if spec.truth is not None:
            low, high = _span(rows, spec.truth)
            panel.axhspan(low, high, color=_TRUTH, alpha=0.25, label="ground truth")
            truth = (low + high) / 2
        for name in spec.names:
            _draw(panel, rows, name, name.partition("/")[2])
        limits = spec.limits(truth) if callable(spec.limits) else spec.limits
        for number, limit in enumerate(limits):
            label = "alarm" if number == 0 else None
            panel.axhline(limit, ls=":", color=_ALARM, label=label)
        panel.set_title(f"monitor: {spec.title}")


def _span(rows: Rows, key: str) -> tuple[float, float]:
    """Smallest and largest value of a column; NaN if it has no values."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return (min(values), max(values)) if values else (np.nan, np.nan)


def _latest(rows: Rows) -> str:
    texts = {
        "gap": "latest gap in psnr_fg, inputs minus held-out: {:.2f} dB",
        "inputs/coverage": "coverage of input views {:.3f}",
        "held_out/coverage": "of held-out views {:.3f}",
    }
    latest = {
        key: row[key] for row in rows for key in texts if row.get(key) is not None
    }
    return ",  ".join(
        text.format(latest[key]) for key, text in texts.items() if key in latest
    )


def _alarms(rows: Rows) -> list[str]:
    """The last three alarms, one text each."""
    alarms = [f"step {row['step']}: {x}" for row in rows for x in row.get("alarms", [])]
    return [textwrap.fill(line, _LINE_LENGTH) for line in alarms[-3:]]


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
