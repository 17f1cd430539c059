"""The figures of the collapse watch in closed form."""

import dataclasses

import jax
import numpy as np
import pytest

from facelift_jax.geometry.paths import dummy_views
from facelift_jax.metrics import WATCH_DEFINITIONS, watch_figures
from facelift_jax.structs import Gaussians, RenderOutput

SIZE, COVERAGE = 8, 0.25
WHITE = np.ones(3, np.float32)


def targets_of(truth, num_targets=2):
    """Two scenes: the object is the upper left quarter, `truth` [h w 3], on white."""
    views = dummy_views(2, num_targets, SIZE)
    masks = np.zeros(views.masks.shape, np.float32)
    masks[:, :, : SIZE // 2, : SIZE // 2] = 1
    images = np.where(masks > 0, truth, WHITE).astype(np.float32)
    return dataclasses.replace(views, images=images, masks=masks)


def stripes(low, high):
    """Columns of two greys in turn: the deviation is half of what is between them."""
    columns = np.where(np.arange(SIZE) % 2, high, low)
    return np.broadcast_to(columns[None, :, None], (SIZE, SIZE, 3)).astype(np.float32)


def figures(targets, colors, alphas, opacities=(0.5,)):
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
    found = jax.jit(watch_figures)(output, gaussians, targets, WHITE)
    assert set(found) == set(WATCH_DEFINITIONS)
    return {name: float(value) for name, value in found.items()}


def test_a_perfect_picture_reads_as_the_truth():
    targets = targets_of(stripes(0.2, 0.6))
    found = figures(targets, targets.images, targets.masks)
    assert found["contrast"] == found["contrast_truth"] == pytest.approx(0.2)
    assert found["color_distance"] == pytest.approx(0.2)
    assert found["coverage"] == found["coverage_truth"] == pytest.approx(COVERAGE)
    assert found["background_error"] == 0


def test_a_blob_has_no_contrast_and_is_as_far_as_its_colour():
    targets = targets_of(stripes(0.2, 0.6))
    found = figures(targets, 0.5, targets.masks)
    assert found["contrast"] == pytest.approx(0, abs=1e-6)
    assert found["color_distance"] == pytest.approx(0.1)


def test_filled_frustums_and_pictures_on_another_background():
    targets = targets_of(stripes(0.2, 0.6))
    images = np.where(targets.masks > 0, targets.images, np.float32(0.5))
    targets = dataclasses.replace(targets, images=images)
    found = figures(targets, 1.0, 1.0)
    assert found["coverage"] == 1
    assert found["background_error"] == pytest.approx(0.5)


def test_views_are_centred_apart_and_pixels_weigh_alike():
    """A dark and a bright view of one colour each, one of them half as large."""
    shades = np.array([0.2, 0.8]).reshape(2, 1, 1, 1)
    targets = targets_of(shades)
    targets.masks[:, 1, :, : SIZE // 4] = 0
    found = figures(targets, 0.4, 0.0)
    assert found["contrast_truth"] == pytest.approx(0, abs=1e-6)
    expected = np.sqrt((2 * 0.2**2 + 0.4**2) / 3)
    assert found["color_distance"] == pytest.approx(expected)


def test_opacities_are_sorted_scene_by_scene():
    targets = targets_of(stripes(0.2, 0.6))
    ramp = np.linspace(0, 1, 101)
    found = figures(targets, 1.0, 0.0, opacities=np.stack([ramp, 0.5 * ramp]))
    assert found["opacity_p50"] == pytest.approx(0.75 * 0.5)
    assert found["opacity_p95"] == pytest.approx(0.75 * 0.95)


def test_an_empty_picture_defines_nothing_and_breaks_nothing():
    targets = targets_of(stripes(0.2, 0.6))
    targets = dataclasses.replace(targets, masks=0 * targets.masks)
    found = figures(targets, 1.0, 0.0)
    assert found["contrast"] == found["color_distance"] == found["coverage_truth"] == 0
    assert all(np.isfinite(value) for value in found.values())
