"""The four planted scenes: our figures damn what the predecessor's praise."""

import numpy as np
import pytest

from benchmarks import synthetic_failures
from facelift_jax.data import rodent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Figures of each planted scene, by name."""
    path = tmp_path_factory.mktemp("rodents") / "set"
    rodent.generate(path, 1, 48, workers=1)
    evaluations = synthetic_failures.judge_all(path, 48, num_frames=40)
    return {name: evaluation.figures for name, evaluation in evaluations.items()}


@pytest.mark.slow
def test_flat_pictures_read_well_on_their_inputs_and_nowhere_else(found):
    figures = found["billboards"]
    assert figures["inputs/psnr_full"] >= 35
    assert figures["gap"] >= 10
    assert figures["inputs/own_view_share"] >= 0.9
    assert figures["inputs/lovo_drop"] >= 10
    assert figures["inputs/xva_05"] < 0.1
    assert figures["held_out/iou"] < 0.15
    assert figures["surface/f_01"] < 0.01


@pytest.mark.slow
def test_the_truth_is_acquitted(found):
    figures = found["perfect"]
    assert figures["gap"] < 2
    assert figures["inputs/own_view_share"] < 0.5
    assert abs(figures["inputs/lovo_drop"]) < 1
    assert figures["surface/chamfer"] < 0.01
    assert figures["surface/f_01"] > 0.8
    assert figures["turntable/p6"] < 0.03
    for name in ("psnr_fg", "ssim", "iou", "depth_within_05R"):
        best = max(found, key=lambda scene, n=name: found[scene][f"held_out/{n}"])
        assert best == "perfect", name


@pytest.mark.slow
def test_every_figure_of_every_scene_is_in_the_table(found):
    evaluations = {name: found[name] for name in synthetic_failures.SCENES}
    assert len({tuple(figures) for figures in evaluations.values()}) == 1
    for name, figures in evaluations.items():
        undefined = [key for key, value in figures.items() if np.isnan(value)]
        assert not undefined, name
