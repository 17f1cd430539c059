"""Means over views, scenes and data sets, and their intervals."""

import numpy as np
import pytest

from facelift_jax.metrics import (
    average_views,
    mean_by_angle,
    paired_interval,
    summarize_scenes,
)
from facelift_jax.metrics.aggregation import bootstrap_interval

NAN = float("nan")


def test_inputs_and_held_out_views_are_averaged_apart_and_nan_is_counted():
    psnr = np.array([20.0, 30.0, 10.0, NAN])
    absrel = np.array([NAN, NAN, 0.1, 0.3])
    metrics, undefined = average_views({"psnr_fg": psnr, "absrel": absrel}, 2)
    expected = {"inputs/psnr_fg": 25.0, "held_out/psnr_fg": 10.0, "gap": 15.0}
    expected |= {"inputs/absrel": NAN, "held_out/absrel": 0.2}
    assert metrics == pytest.approx(expected, nan_ok=True)
    assert undefined == {
        "inputs/psnr_fg": 0,
        "held_out/psnr_fg": 1,
        "inputs/absrel": 2,
        "held_out/absrel": 0,
    }


def test_a_scene_without_held_out_views_has_no_held_out_metric():
    metrics, undefined = average_views({"psnr_fg": np.array([1.0, 3.0])}, 2)
    assert metrics == {"inputs/psnr_fg": 2.0}
    assert undefined == {"inputs/psnr_fg": 0}


def test_scenes_have_equal_weight_and_defined_ones_are_counted():
    scenes = [{"a": 1.0, "b": NAN, "c": 2.0}, {"a": 3.0, "b": 5.0}, {"a": 8.0}]
    means, intervals, counts = summarize_scenes(scenes)
    assert means == {"a": 4.0, "b": 5.0, "c": 2.0}
    assert counts == {"a": 3, "b": 1, "c": 1}
    low, high = intervals["a"]
    assert 1.0 <= low < 4.0 < high <= 8.0
    assert np.isnan(intervals["b"]).all()
    means, _, counts = summarize_scenes([{"a": NAN}])
    assert np.isnan(means["a"])
    assert counts == {"a": 0}


def test_the_bootstrap_interval_is_that_of_the_mean():
    """Half ones, half zeros: the mean of 400 has standard deviation .5 / 20."""
    low, high = bootstrap_interval(np.tile([0.0, 1.0], 200))
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)
    assert bootstrap_interval(np.full(9, 3.0)) == (3.0, 3.0)
    again = bootstrap_interval(np.tile([0.0, 1.0], 200))
    assert again == (low, high)


def test_correlated_neighbors_widen_the_bootstrap_interval():
    """Runs of eight equal frames: blocks of eight overlap two runs, so their means have
    2/3 of a run's variance, and 512 frames count as 64 blocks."""
    rng = np.random.default_rng(1)
    runs = rng.normal(size=64)
    values, timestamps = np.repeat(runs, 8), [("rat", 0.1 * i) for i in range(512)]
    low, high = bootstrap_interval(values, timestamps)
    width = 2 * 1.96 * (2 / 3 * runs.var() / 64) ** 0.5
    assert high - low == pytest.approx(width, rel=0.2)
    alone = bootstrap_interval(values)
    assert alone[1] - alone[0] < 0.5 * (high - low)
    # the order of the scenes does not matter, their times do
    order = rng.permutation(512)
    shuffled = bootstrap_interval(values[order], [timestamps[i] for i in order])
    assert shuffled == (low, high)
    # without times, or one scene per recording, scenes are independent
    assert bootstrap_interval(values, [("rat", None)] * 512) == alone
    each = [(f"{i:03}", 0.0) for i in range(512)]
    assert bootstrap_interval(values, each) == alone


def false_positive_rate(differences, timestamps):
    """Share of rows whose interval excludes zero, although their true mean is zero."""
    intervals = [paired_interval(row, timestamps)[1] for row in differences]
    return np.mean([low > 0 or high < 0 for low, high in intervals])


def test_paired_intervals_miss_the_true_mean_in_one_of_twenty():
    rng = np.random.default_rng(0)
    for count in (6, 20):
        rows = rng.normal(size=(2000, count))
        rate = false_positive_rate(rows, [("", None)] * count)
        assert rate == pytest.approx(0.05, abs=0.015)  # three standard errors
    # a recording whose scenes have a correlation of .8 with the one before
    rows = rng.normal(size=(2000, 196))
    for i in range(1, 196):
        rows[:, i] = 0.8 * rows[:, i - 1] + 0.6 * rows[:, i]
    assert false_positive_rate(rows, [("", None)] * 196) > 0.4
    timestamps = [("rat", 0.1 * i) for i in range(196)]
    assert false_positive_rate(rows, timestamps) < 0.12


def test_a_paired_interval_needs_six_independent_scenes():
    mean, interval = paired_interval(np.array([1.0, 2, 3, 4, 5, NAN]), [("", None)] * 6)
    assert mean == 3.0
    assert np.isnan(interval).all()
    mean, interval = paired_interval(np.arange(1.0, 7), [("", None)] * 6)
    assert (mean, *interval) == pytest.approx((3.5, 1.537, 5.463), abs=1e-3)
    recording = [("rat", float(i)) for i in range(36)]
    assert np.isnan(paired_interval(np.ones(35), recording[:35])[1]).all()
    assert paired_interval(np.ones(36), recording) == (1.0, (1.0, 1.0))


def test_angle_bins_hold_every_view_once():
    angles = [[0.0, 14.9, 15.0], [44.0, 180.0, 70.0]]
    psnr = [[30.0, 20.0, 18.0], [15.0, 9.0, NAN]]
    bins = mean_by_angle(angles, psnr)
    assert [(x.low, x.high) for x in bins[:2]] == [(0, 15), (15, 30)]
    assert [x.num_views for x in bins] == [2, 1, 1, 0, 0, 1]
    means = [x.mean for x in bins]
    assert means == pytest.approx([25.0, 18.0, 15.0, NAN, NAN, 9.0], nan_ok=True)
