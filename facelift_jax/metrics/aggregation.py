"""From figures of views to figures of scenes, and of a set of scenes with intervals."""

import collections
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float

Moment = tuple[str, float | None]  # a scene's recording, seconds in it where known
NUM_RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
LEAST_UNITS = 6  # independent ones, of which a verdict is made
ANGLES = (0, 15, 30, 45, 60, 90, 180)  # degrees to the nearest input: edges of classes


def scene_figures(
    per_view: Mapping[str, Float[np.ndarray, "t"]], num_inputs: int
) -> tuple[dict[str, float], dict[str, int]]:
    """Means over a scene's input views and over its held-out views, apart.

    The first `num_inputs` views are the input cameras, the rest were never given as
    input. Returns two dictionaries with keys `inputs/<metric>` and `held_out/<metric>`:
    the figures (and `gap` = inputs/psnr_fg - held_out/psnr_fg, dB), and the number of
    views left out of each because the metric is undefined there. A figure that no view
    defines is NaN. A side without views has no keys.
    """
    sides = {"inputs": slice(None, num_inputs), "held_out": slice(num_inputs, None)}
    figures: dict[str, float] = {}
    undefined: dict[str, int] = {}
    for side, views in sides.items():
        for name, values in per_view.items():
            values = np.asarray(values, np.float64)[views]
            if values.size == 0:
                continue
            undefined[f"{side}/{name}"] = int(np.isnan(values).sum())
            figures[f"{side}/{name}"] = _mean(values)
    if {"inputs/psnr_fg", "held_out/psnr_fg"} <= figures.keys():
        figures["gap"] = figures["inputs/psnr_fg"] - figures["held_out/psnr_fg"]
    return figures, undefined


def summarize_scenes(
    scenes: Sequence[Mapping[str, float]],
    moments: Sequence[Moment] | None = None,
) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, int]]:
    """Means over scenes, their intervals, and how many scenes each is a mean of.

    `moments` of the scenes tell which are neighbours, see `bootstrap_interval`. Scenes
    weigh alike. One that lacks a figure, or has NaN there, does not enter that mean; a
    figure of no scene is NaN.
    """
    means: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    counts: dict[str, int] = {}
    for name in dict.fromkeys(name for scene in scenes for name in scene):
        values = np.array([scene.get(name, np.nan) for scene in scenes], np.float64)
        means[name] = _mean(values)
        known = np.flatnonzero(~np.isnan(values)).tolist()
        near = None if moments is None else [moments[i] for i in known]
        intervals[name] = bootstrap_interval(values[known], near)
        counts[name] = len(known)
    return means, intervals, counts


def bootstrap_interval(
    values: Float[np.ndarray, "n"], moments: Sequence[Moment] | None = None
) -> tuple[float, float]:
    """95 % interval of the mean of n scenes: percentiles of resampled means.

    The scenes are drawn anew `NUM_RESAMPLES` times, n with replacement (Efron 1979).
    Neighbouring `moments` of one recording are not independent: where the longest has m
    of them, scenes are drawn in blocks of m^(1/3) that follow one another in time
    (Kuensch 1989; the ends joined, Politis & Romano 1992). What is alike for longer
    still makes the interval too narrow. NaN for fewer than two scenes. The same values
    give the same interval.
    """
    count = len(values)
    if count < 2:
        return float("nan"), float("nan")
    timed = [
        x if x[1] is not None else ("", 0.0) for x in moments or [("", 0.0)] * count
    ]
    order = sorted(range(count), key=timed.__getitem__)
    sizes = collections.Counter(x for x, time in moments or () if time is not None)
    length = round(max(sizes.values(), default=1) ** (1 / 3))
    starts = np.random.default_rng(0).integers(
        count, size=(NUM_RESAMPLES, -(-count // length), 1)
    )
    places = (starts + np.arange(length)).reshape(NUM_RESAMPLES, -1)[:, :count]
    means = values[order][places % count].mean(axis=1)
    low, high = np.percentile(means, INTERVAL)
    return float(low), float(high)


def paired_interval(
    differences: Float[np.ndarray, "n"], moments: Sequence[Moment]
) -> tuple[float, tuple[float, float]]:
    """Mean of n differences, scene by scene, and its 95 % interval by Student's t.

    Both are of independent units. A scene is one; but m scenes of one recording, their
    times known, are only sqrt(m): means of runs of neighbours (batch means, Flegal &
    Jones 2010). What is alike for longer still makes the interval too narrow. NaN does
    not enter, and is the interval of fewer than `LEAST_UNITS` units.
    """
    units: list[float] = []
    timed: dict[str, list[tuple[float, float]]] = {}
    for difference, (recording, time) in zip(
        differences.tolist(), moments, strict=True
    ):
        if math.isnan(difference):
            continue
        if time is None:
            units.append(difference)
        else:
            timed.setdefault(recording, []).append((time, difference))
    for pairs in timed.values():
        ordered = np.array([difference for _, difference in sorted(pairs)])
        runs = np.array_split(ordered, math.isqrt(len(ordered)))
        units += [float(run.mean()) for run in runs]
    mean, count = _mean(np.array(units)), len(units)
    if count < LEAST_UNITS:
        return mean, (math.nan, math.nan)
    t = scipy.stats.t.ppf(INTERVAL[1] / 100, count - 1)
    half = float(t * np.std(units, ddof=1) / math.sqrt(count))
    return mean, (mean - half, mean + half)


def by_angle(
    angles: Sequence[Sequence[float]], values: Sequence[Sequence[float]]
) -> list[dict[str, float | int]]:
    """Means of a metric over views in classes of their angle to the nearest input.

    Both hold a value a view for every scene. Views weigh alike; those where the metric
    is NaN are left out. Rows hold `from` and `to` in degrees, `views` (how many) and
    `mean` (NaN for none).
    """
    angle, value = (
        np.concatenate([np.asarray(row, np.float64) for row in x])
        for x in (angles, values)
    )
    rows = []
    for low, high in itertools.pairwise(ANGLES):
        is_last = high == ANGLES[-1]
        chosen = (angle >= low) & ((angle < high) | is_last) & ~np.isnan(value)
        rows.append(
            {
                "from": low,
                "to": high,
                "views": int(chosen.sum()),
                "mean": _mean(value[chosen]),
            }
        )
    return rows


def _mean(values: Float[np.ndarray, "n"]) -> float:
    """Mean of what is defined; NaN where nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
