"""The metrics of the collapse monitor against closed forms."""

import dataclasses

import jax
import numpy as np
import pytest

from facelift_jax.geometry.paths import dummy_views
from facelift_jax.metrics import MONITOR_DEFINITIONS, monitor_metrics
from facelift_jax.structs import Gaussians, RenderOutput

SIZE, COVERAGE = 8, 0.25
WHITE = np.ones(3, np.float32)


def targets_of(truth, num_targets=2):
    """Two scenes on white; the object `truth` [h w 3] is the upper left quarter."""
    views = dummy_views(2, num_targets, SIZE)
    masks = np.zeros(views.masks.shape, np.float32)
    masks[:, :, : SIZE // 2, : SIZE // 2] = 1
    images = np.where(masks > 0, truth, WHITE).astype(np.float32)
    return dataclasses.replace(views, images=images, masks=masks)


def stripes(low, high):
    """Columns of two alternating grays; the deviation is half their difference."""
    columns = np.where(np.arange(SIZE) % 2, high, low)
    return np.broadcast_to(columns[None, :, None], (SIZE, SIZE, 3)).astype(np.float32)


def compute_metrics(targets, colors, alphas, opacities=(0.5,)):
    shape = targets.images.shape
    output = RenderOutput(
        np.broadcast_to(colors, shape).astype(np.float32),
        np.broadcast_to(alphas, (*shape[:-1], 1)).astype(np.float32),
        np.zeros((*shape[:-1], 1), np.float32),
        np.zeros(shape[:2], np.int32),
    )
    n = np.shape(opacities)[-1]
    gaussians = Gaussians(
        np.zeros((2, n, 3), np.float32),
        np.zeros((2, n, 4), np.float32),
        np.ones((2, n, 3), np.float32),
        np.broadcast_to(np.float32(opacities), (2, n)),
        np.zeros((2, n, 1, 3), np.float32),
    )
    metrics = jax.jit(monitor_metrics)(output, gaussians, targets, WHITE)
    assert set(metrics) == set(MONITOR_DEFINITIONS)
    return {name: float(value) for name, value in metrics.items()}


def test_a_perfect_rendering_has_the_metrics_of_the_ground_truth():
    targets = targets_of(stripes(0.2, 0.6))
    metrics = compute_metrics(targets, targets.images, targets.masks)
    assert metrics["contrast"] == metrics["contrast_truth"] == pytest.approx(0.2)
    assert metrics["color_distance"] == pytest.approx(0.2)
    assert metrics["coverage"] == metrics["coverage_truth"] == pytest.approx(COVERAGE)
    assert metrics["background_error"] == 0


def test_a_blob_of_one_color_has_no_contrast():
    targets = targets_of(stripes(0.2, 0.6))
    metrics = compute_metrics(targets, 0.5, targets.masks)
    assert metrics["contrast"] == pytest.approx(0, abs=1e-6)
    assert metrics["color_distance"] == pytest.approx(0.1)


def test_filled_frustums_and_images_on_another_background():
    targets = targets_of(stripes(0.2, 0.6))
    images = np.where(targets.masks > 0, targets.images, np.float32(0.5))
    targets = dataclasses.replace(targets, images=images)
    metrics = compute_metrics(targets, 1.0, 1.0)
    assert metrics["coverage"] == 1
    assert metrics["background_error"] == pytest.approx(0.5)


def test_views_are_centered_separately_and_pixels_have_equal_weight():
    """A dark and a bright view of one color each, one of them half as large."""
    shades = np.array([0.2, 0.8]).reshape(2, 1, 1, 1)
    targets = targets_of(shades)
    targets.masks[:, 1, :, : SIZE // 4] = 0
    metrics = compute_metrics(targets, 0.4, 0.0)
    assert metrics["contrast_truth"] == pytest.approx(0, abs=1e-6)
    expected = np.sqrt((2 * 0.2**2 + 0.4**2) / 3)
    assert metrics["color_distance"] == pytest.approx(expected)


def test_opacity_quantiles_are_taken_per_scene():
    targets = targets_of(stripes(0.2, 0.6))
    ramp = np.linspace(0, 1, 101)
    metrics = compute_metrics(targets, 1.0, 0.0, opacities=np.stack([ramp, 0.5 * ramp]))
    assert metrics["opacity_p50"] == pytest.approx(0.75 * 0.5)
    assert metrics["opacity_p95"] == pytest.approx(0.75 * 0.95)


def test_without_foreground_the_metrics_are_zero_and_finite():
    targets = targets_of(stripes(0.2, 0.6))
    targets = dataclasses.replace(targets, masks=0 * targets.masks)
    metrics = compute_metrics(targets, 1.0, 0.0)
    assert (
        metrics["contrast"]
        == metrics["color_distance"]
        == metrics["coverage_truth"]
        == 0
    )
    assert all(np.isfinite(value) for value in metrics.values())
