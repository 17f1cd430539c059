"""The image of a run's curves."""

import matplotlib
import numpy as np
from PIL import Image

from facelift_jax.metrics import METRICS, MONITOR_DEFINITIONS
from facelift_jax.training import curves

RED, GREEN = (
    np.array(matplotlib.colors.to_rgb(f"tab:{name}")) for name in ("red", "green")
)
BAND_OPACITY = 0.25  # of the ground truth's band


def rows_of(coverage):
    """Nine training lines; one is an evaluation, one has undefined metrics."""
    monitored = dict.fromkeys((f"monitor/{name}" for name in MONITOR_DEFINITIONS), 0.1)
    monitored |= {"monitor/not_taken": 0.0, "monitor/coverage": coverage}
    rows = [
        {"step": i, "train/total": 1 / (i + 1), "train/ssim": 0.5, **monitored}
        for i in range(9)
    ]
    rows[3]["monitor/contrast_truth"] = 0.2  # so that the band has a height
    metrics = {f"{side}/{m}": 0.5 for side in ("inputs", "held_out") for m in METRICS}
    rows[4] |= {"gap": 1.5, "inputs/own_view_share": 0.4, **metrics}
    rows[8] |= {"held_out/absrel": None, "held_out/iou": float("nan")}
    return rows


def draw(path, rows):
    curves.write_curves(path, rows)
    return np.asarray(Image.open(path).convert("RGB"), np.int32)


def count(image, color):
    """Pixels of that color, but for rounding."""
    return int((np.abs(image - np.rint(255 * color)) <= 2).all(-1).sum())


def test_curves_of_a_run(tmp_path):
    path = tmp_path / "curves.png"
    full, empty = draw(path, rows_of(0.1)), draw(path, [])
    assert full.shape == empty.shape
    assert (full != empty).any(-1).sum() > 2000
    band = BAND_OPACITY * GREEN + (1 - BAND_OPACITY)
    assert count(full, band) > 2000
    assert count(empty, band) < 500  # the legends
    assert count(full, RED) > 100  # the limits
    assert list(tmp_path.iterdir()) == [path]


def test_alarms_are_printed_at_the_top(tmp_path):
    path = tmp_path / "curves.png"
    rows = rows_of(0.1)
    assert count(draw(path, rows)[:30], RED) == 0
    rows[5]["alarms"] = ["frustums are filled; likely cause: every target is an input"]
    assert count(draw(path, rows)[:30], RED) > 100
