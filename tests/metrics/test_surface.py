"""Chamfer and F-score against closed forms on a square sheet."""

import numpy as np
import pytest

from facelift_jax.metrics import surface_metrics
from facelift_jax.metrics.surface import sample_surface

# side 2: the corners are sqrt(2) from the middle
VERTICES = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
FACES = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
RADIUS = np.sqrt(2)
SPACING = 0.005  # of points on the sheet and of centers: the error of distances
TRIMMED = 0.006  # of recall, since the centers with the last .01 of weight are left out
HALF = np.arange(-1, 1, SPACING) + SPACING / 2


def centers(height: float, xs=HALF) -> np.ndarray:
    """A dense grid of centers at a height above the sheet, in radii."""
    x, y = np.meshgrid(xs, HALF)
    points = np.stack([x, y, np.full_like(x, height * RADIUS)], axis=-1)
    return points.reshape(-1, 3).astype(np.float32)


def measure(means, weights=None):
    weights = np.ones(len(means), np.float32) if weights is None else weights
    return surface_metrics(means, weights, VERTICES, FACES)


def test_centers_on_the_mesh():
    metrics = measure(centers(0.0))
    assert metrics["chamfer"] < 0.6 * SPACING / RADIUS
    assert metrics["f_01"] == pytest.approx(1, abs=TRIMMED)
    assert metrics["f_005"] == pytest.approx(1, abs=TRIMMED)


def test_centers_at_a_height():
    metrics = measure(centers(0.008))
    assert metrics["chamfer"] == pytest.approx(0.008, abs=5e-4)
    assert metrics["f_01"] == pytest.approx(1, abs=TRIMMED)
    assert metrics["f_005"] == 0


def test_half_a_sheet_has_full_precision_and_half_the_recall():
    metrics = measure(centers(0.0, HALF[HALF < 0]))
    assert metrics["f_01"] == pytest.approx(2 * 0.507 / 1.507, abs=TRIMMED)
    # the mean distance of the other half is .5 / sqrt(2) radii
    assert metrics["chamfer"] == pytest.approx(0.25 * 0.5 / RADIUS, abs=2e-3)


def test_centers_count_by_their_weight():
    near, far = centers(0.0, HALF[HALF < 0]), centers(0.0, HALF[HALF > 0])
    stray = np.array([[0, 0, 5 * RADIUS]], np.float32)
    means = np.concatenate([near, far, stray])
    weights = np.concatenate([np.ones(len(near)), np.full(len(far), 1e-6), [0.0]])
    metrics = measure(means, weights)
    assert metrics["f_01"] == pytest.approx(2 * 0.507 / 1.507, abs=TRIMMED)
    weights[-1] = len(near)  # half of the weight is five radii away
    metrics = measure(means, weights)
    assert metrics["f_01"] == pytest.approx(2 * 0.5 * 0.507 / 1.007, abs=TRIMMED)
    assert np.isnan(list(measure(means, 0 * weights).values())).all()


def test_sampled_points_are_spread_by_area():
    """Two triangles of areas 1 and 3 in one plane, far apart."""
    vertices = np.array(
        [[0, 0, 0], [1, 0, 0], [0, 2, 0], [10, 0, 0], [13, 0, 0], [10, 2, 0.0]]
    )
    faces = np.array([[0, 1, 2], [3, 4, 5]])
    points = sample_surface(vertices, faces, 40_000)
    is_first = points[:, 0] < 5
    assert is_first.mean() == pytest.approx(0.25, abs=1e-4)
    # the centroid of the triangle
    np.testing.assert_allclose(points[is_first].mean(0), [1 / 3, 2 / 3, 0], atol=0.01)
    inside = points[is_first]
    assert (inside[:, 0] + inside[:, 1] / 2 <= 1 + 1e-9).all()
    assert (inside >= 0).all()
