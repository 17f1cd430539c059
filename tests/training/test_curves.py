"""The picture of a run's curves."""

import matplotlib
import numpy as np
from PIL import Image

from facelift_jax.metrics import METRICS, MONITOR_DEFINITIONS
from facelift_jax.training import curves

RED, GREEN = (
    np.array(matplotlib.colors.to_rgb(f"tab:{name}")) for name in ("red", "green")
)
ON_WHITE = 0.25  # opacity of the truth's band


def rows_of(coverage):
    """Nine lines of training, an evaluation, and one whose figures are not known."""
    watched = dict.fromkeys((f"monitor/{name}" for name in MONITOR_DEFINITIONS), 0.1)
    watched |= {"monitor/not_taken": 0.0, "monitor/coverage": coverage}
    rows = [
        {"step": i, "train/total": 1 / (i + 1), "train/ssim": 0.5, **watched}
        for i in range(9)
    ]
    rows[3]["monitor/contrast_truth"] = 0.2  # the truth's band has a height
    figures = {f"{side}/{m}": 0.5 for side in ("inputs", "held_out") for m in METRICS}
    rows[4] |= {"gap": 1.5, "inputs/own_view_share": 0.4, **figures}
    rows[8] |= {"held_out/absrel": None, "held_out/iou": float("nan")}
    return rows


def drawn(path, rows):
    curves.write_curves(path, rows)
    return np.asarray(Image.open(path).convert("RGB"), np.int32)


def count(picture, color):
    return int((np.abs(picture - np.rint(255 * color)) <= 2).all(-1).sum())


def test_curves_of_a_run(tmp_path):
    path = tmp_path / "curves.png"
    full, empty = drawn(path, rows_of(0.1)), drawn(path, [])
    assert full.shape == empty.shape
    assert (full != empty).any(-1).sum() > 2000
    band = ON_WHITE * GREEN + (1 - ON_WHITE)
    assert count(full, band) > 2000
    assert count(empty, band) < 500  # of legends alone
    assert count(full, RED) > 100  # where alarms begin
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_watch_said_stands_at_the_top(tmp_path):
    path = tmp_path / "curves.png"
    rows = rows_of(0.1)
    assert count(drawn(path, rows)[:30], RED) == 0
    rows[5]["notes"] = ["frustums are filled; likely cause: every target is an input"]
    assert count(drawn(path, rows)[:30], RED) > 100
