"""From metrics of views to metrics of scenes, and of a set of scenes with intervals."""

import collections
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float

Timestamp = tuple[str, float | None]
"""A scene's recording, and the seconds in it if they are known."""

NUM_RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
MIN_SAMPLES = 6  # independent samples that `paired_interval` needs
ANGLE_EDGES = (0, 15, 30, 45, 60, 90, 180)  # degrees to the nearest input view


class AngleBin(NamedTuple):
    """Views in a range of angles to the nearest input view.

    Attributes:
      low, high: the range, degrees.
      num_views: number of views in it that define the metric.
      mean: of the metric over these views; NaN for none.
    """

    low: float
    high: float
    num_views: int
    mean: float


def average_views(
    per_view: Mapping[str, Float[np.ndarray, "t"]], num_inputs: int
) -> tuple[dict[str, float], dict[str, int]]:
    """Means over a scene's input views and, separately, over its held-out views.

    The first `num_inputs` views are the input views. Returns two dictionaries with the
    keys `inputs/<metric>` and `held_out/<metric>`: the means (and `gap` =
    inputs/psnr_fg - held_out/psnr_fg, dB), and the number of views that each mean
    leaves out because the metric is undefined (NaN) there. A metric without any defined
    view is NaN. A scene without held-out views has no `held_out/` keys.
    """
    sides = {"inputs": slice(None, num_inputs), "held_out": slice(num_inputs, None)}
    metrics: dict[str, float] = {}
    undefined: dict[str, int] = {}
    for side, views in sides.items():
        for name, values in per_view.items():
            values = np.asarray(values, np.float64)[views]
            if values.size == 0:
                continue
            undefined[f"{side}/{name}"] = int(np.isnan(values).sum())
            metrics[f"{side}/{name}"] = _mean(values)
    if {"inputs/psnr_fg", "held_out/psnr_fg"} <= metrics.keys():
        metrics["gap"] = metrics["inputs/psnr_fg"] - metrics["held_out/psnr_fg"]
    return metrics, undefined


def summarize_scenes(
    scenes: Sequence[Mapping[str, float]],
    timestamps: Sequence[Timestamp] | None = None,
) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, int]]:
    """Means over scenes, their 95 % intervals, and the number of scenes in each mean.

    `timestamps` say which scenes are neighbors, see `bootstrap_interval`. All scenes
    have the same weight. A scene that lacks a metric, or has NaN, does not enter its
    mean; a metric that no scene defines is NaN.
    """
    means: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    counts: dict[str, int] = {}
    for name in dict.fromkeys(name for scene in scenes for name in scene):
        values = np.array([scene.get(name, np.nan) for scene in scenes], np.float64)
        means[name] = _mean(values)
        defined = np.flatnonzero(~np.isnan(values)).tolist()
        times = None if timestamps is None else [timestamps[i] for i in defined]
        intervals[name] = bootstrap_interval(values[defined], times)
        counts[name] = len(defined)
    return means, intervals, counts


def bootstrap_interval(
    values: Float[np.ndarray, "n"], timestamps: Sequence[Timestamp] | None = None
) -> tuple[float, float]:
    """95 % interval of the mean of n scenes: percentiles of resampled means.

    The scenes are resampled `NUM_RESAMPLES` times, n with replacement (Efron 1979).
    Neighboring `timestamps` of one recording are not independent: if the longest
    recording has m scenes, blocks of m^(1/3) consecutive scenes are resampled (Kuensch
    1989; with the ends joined, Politis & Romano 1992). If scenes are correlated over
    more than a block, the interval is too narrow. NaN for fewer than two scenes. The
    same values give the same interval.
    """
    count = len(values)
    if count < 2:
        return float("nan"), float("nan")
    times = [
        x if x[1] is not None else ("", 0.0) for x in timestamps or [("", 0.0)] * count
    ]
    order = sorted(range(count), key=times.__getitem__)
    sizes = collections.Counter(x for x, time in timestamps or () if time is not None)
    length = round(max(sizes.values(), default=1) ** (1 / 3))
    starts = np.random.default_rng(0).integers(
        count, size=(NUM_RESAMPLES, -(-count // length), 1)
    )
    drawn = (starts + np.arange(length)).reshape(NUM_RESAMPLES, -1)[:, :count]
    means = values[order][drawn % count].mean(axis=1)
    low, high = np.percentile(means, INTERVAL)
    return float(low), float(high)


def paired_interval(
    differences: Float[np.ndarray, "n"], timestamps: Sequence[Timestamp]
) -> tuple[float, tuple[float, float]]:
    """Mean of n differences, one per scene, and its 95 % interval by Student's t.

    Both are computed from independent samples. A scene is one sample; m scenes of one
    recording with known times count as sqrt(m) samples, the means of runs of
    neighbors (batch means, Flegal & Jones 2010). If scenes are correlated over more
    than a run, the interval is too narrow. NaN differences are left out. The interval
    of fewer than `MIN_SAMPLES` samples is NaN.
    """
    samples: list[float] = []
    recordings: dict[str, list[tuple[float, float]]] = {}
    for difference, (recording, time) in zip(
        differences.tolist(), timestamps, strict=True
    ):
        if math.isnan(difference):
            continue
        if time is None:
            samples.append(difference)
        else:
            recordings.setdefault(recording, []).append((time, difference))
    for pairs in recordings.values():
        ordered = np.array([difference for _, difference in sorted(pairs)])
        runs = np.array_split(ordered, math.isqrt(len(ordered)))
        samples += [float(run.mean()) for run in runs]
    mean, count = _mean(np.array(samples)), len(samples)
    if count < MIN_SAMPLES:
        return mean, (math.nan, math.nan)
    t = scipy.stats.t.ppf(INTERVAL[1] / 100, count - 1)
    half = float(t * np.std(samples, ddof=1) / math.sqrt(count))
    return mean, (mean - half, mean + half)


def mean_by_angle(
    angles: Sequence[Sequence[float]], values: Sequence[Sequence[float]]
) -> list[AngleBin]:
    """Means of a metric over views, in bins of their angle to the nearest input view.

    Both arguments hold one value per view for every scene. All views have the same
    weight; those where the metric is NaN are left out.
    """
    angle, value = (
        np.concatenate([np.asarray(row, np.float64) for row in x])
        for x in (angles, values)
    )
    bins = []
    for low, high in itertools.pairwise(ANGLE_EDGES):
        is_last = high == ANGLE_EDGES[-1]
        is_inside = (angle >= low) & ((angle < high) | is_last) & ~np.isnan(value)
        bins.append(AngleBin(low, high, int(is_inside.sum()), _mean(value[is_inside])))
    return bins


def _mean(values: Float[np.ndarray, "n"]) -> float:
    """Mean of the values that are not NaN; NaN if all are."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
