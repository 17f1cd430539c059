"""The synthetic failure cases: metrics separate flat images from the true shape."""

import numpy as np
import pytest

from benchmarks import synthetic_failures
from facelift_jax.data import rodent


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Metrics of each case, by name."""
    path = tmp_path_factory.mktemp("rodents") / "set"
    rodent.generate(path, 1, 48, workers=1)
    evaluations = synthetic_failures.evaluate_all(path, 48, num_frames=40)
    return {name: evaluation.metrics for name, evaluation in evaluations.items()}


@pytest.mark.slow
def test_flat_images_match_their_input_views_only(cases):
    metrics = cases["billboards"]
    assert metrics["inputs/psnr_full"] >= 35
    assert metrics["gap"] >= 10
    assert metrics["inputs/own_view_share"] >= 0.9
    assert metrics["inputs/lovo_drop"] >= 10
    assert metrics["inputs/xva_05"] < 0.1
    assert metrics["held_out/iou"] < 0.15
    assert metrics["surface/f_01"] < 0.01


@pytest.mark.slow
def test_the_true_shape_is_best_on_held_out_views(cases):
    metrics = cases["perfect"]
    assert metrics["gap"] < 2
    assert metrics["inputs/own_view_share"] < 0.5
    assert abs(metrics["inputs/lovo_drop"]) < 1
    assert metrics["surface/chamfer"] < 0.01
    assert metrics["surface/f_01"] > 0.8
    assert metrics["turntable/p6"] < 0.03
    for name in ("psnr_fg", "ssim", "iou", "depth_within_05R"):
        best = max(cases, key=lambda case, n=name: cases[case][f"held_out/{n}"])
        assert best == "perfect", name


@pytest.mark.slow
def test_every_metric_of_every_case_is_defined(cases):
    assert cases.keys() == synthetic_failures.CASES.keys()
    assert len({tuple(metrics) for metrics in cases.values()}) == 1
    for name, metrics in cases.items():
        undefined = [key for key, value in metrics.items() if np.isnan(value)]
        assert not undefined, name
