"""Own-view metrics, blend weights, health and angles against closed forms.

Each Gaussian here is so large that it covers every image with one opacity, at the depth
of its center.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facelift_jax.geometry.numerics import SH_C0
from facelift_jax.geometry.paths import fov_intrinsics, orbit_cameras
from facelift_jax.metrics import (
    OWN_VIEW_DEFINITIONS,
    blend_weights,
    gaussian_health,
    nearest_input_angles,
    own_view_metrics,
)
from facelift_jax.render import render
from facelift_jax.structs import Cameras, Gaussians, Views

SIZE, DISTANCE, RADIUS = 12, 2.0, 1.0
AZIMUTHS = np.array([0.0, 120.0, 240.0])
TOLERANCE = 2e-5  # float32 sums over 144 pixels
OPACITY = 0.8
BACKGROUND = np.array([0.9, 0.3, 0.6], np.float32)  # not gray: its red must not count
RED, GREEN, BLUE = np.eye(3)
render_fn = functools.partial(render, background=BACKGROUND, backend="reference")


def rig(azimuths=AZIMUTHS) -> Cameras:
    """Over [1 v], level, around the origin."""
    cameras = orbit_cameras(
        azimuths, 0 * azimuths, DISTANCE, fov_intrinsics(50.0, SIZE), SIZE
    )
    return jax.tree.map(lambda x: x[None], cameras)


def towards(azimuth_degrees: float, distance: float) -> list[float]:
    azimuth = np.deg2rad(azimuth_degrees)
    return [distance * np.cos(azimuth), distance * np.sin(azimuth), 0.0]


def sheets(means, colors, num_coefficients=1, opacities=OPACITY) -> Gaussians:
    """One very large Gaussian at each of the means, over [1 n]."""
    num = len(means)
    sh = np.zeros((1, num, num_coefficients, 3), np.float32)
    sh[0, :, 0] = (np.array(colors) - 0.5) / SH_C0
    opacities = np.broadcast_to(np.array(opacities, np.float32), (1, num))
    return Gaussians(
        means=np.array(means, np.float32)[None],
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (1, num, 1)),
        scales=np.full((1, num, 3), 1e4, np.float32),
        opacities=opacities,
        sh=sh,
    )


def measure(gaussians, sources, color=RED, cameras=None):
    """Own-view metrics [v] of an object of one color that fills every image."""
    cameras = rig() if cameras is None else cameras
    v = cameras.viewmats.shape[1]
    images = np.broadcast_to(color.astype(np.float32), (1, v, SIZE, SIZE, 3))
    views = Views(images, np.ones((1, v, SIZE, SIZE, 1), np.float32), None, cameras)

    @jax.jit
    def run(gaussians, sources):
        rendered = render_fn(gaussians, cameras)
        radius = jnp.full(1, RADIUS)
        return own_view_metrics(render_fn, gaussians, sources, views, rendered, radius)

    metrics = run(gaussians, np.array(sources))
    assert metrics.keys() == OWN_VIEW_DEFINITIONS.keys()
    return {name: np.asarray(values)[0] for name, values in metrics.items()}


def layered(*colors) -> np.ndarray:
    """Layers of opacity .8 on the background, the first one in front."""
    color = BACKGROUND.astype(np.float64)
    for layer in reversed(colors):
        color = OPACITY * np.array(layer) + (1 - OPACITY) * color
    return color


def psnr(color, truth) -> float:
    return float(-10 * np.log10(((color - np.array(truth)) ** 2).mean()))


@pytest.mark.parametrize("num_coefficients", [1, 4])
def test_flat_images_in_front_of_each_camera(num_coefficients):
    """The own red sheet in front, a learned green one, then blue ones of others."""
    means = [towards(azimuth, 0.5) for azimuth in AZIMUTHS]
    for view in range(3):
        colors = [BLUE] * 3
        colors[view] = RED
        gaussians = sheets([*means, [0, 0, 0]], [*colors, GREEN], num_coefficients)
        metrics = measure(gaussians, [0, 1, 2, -1])
        share = OPACITY / (1 - (1 - OPACITY) ** 4)
        np.testing.assert_allclose(metrics["own_view_share"], share, atol=TOLERANCE)
        full = psnr(layered(RED, GREEN, BLUE, BLUE), RED)
        without = psnr(layered(GREEN, BLUE, BLUE), RED)
        assert metrics["lovo_drop"][view] == pytest.approx(full - without, abs=1e-3)
        for name in ("xva_02", "xva_05"):
            np.testing.assert_array_equal(metrics[name], 0)
        np.testing.assert_array_equal(metrics["xva_overlap"], 1)


def test_one_surface_shared_by_all_views():
    """All three at one place: the views agree and have similar shares."""
    gaussians = sheets([[0, 0, 0]] * 3, [RED] * 3, opacities=[0.6, 0.6, 0.6])
    metrics = measure(gaussians, [0, 1, 2])
    total = 1 - 0.4**3  # at equal depth the lower index is in front
    shares = 0.6 * np.array([1, 0.4, 0.16]) / total
    np.testing.assert_allclose(metrics["own_view_share"], shares, atol=TOLERANCE)
    for name in ("xva_02", "xva_05", "xva_overlap"):
        np.testing.assert_array_equal(metrics[name], 1)
    # the error is the visible background, .4 times as much with one more layer
    drop = -20 * np.log10(0.4)
    np.testing.assert_allclose(metrics["lovo_drop"], drop, atol=1e-3)


def test_agreement_is_counted_pair_by_pair():
    """View 2's Gaussian is .03 R nearer to camera 0 and .015 R farther from 1 and 2."""
    gaussians = sheets([[0, 0, 0], [0, 0, 0], towards(0, 0.03)], [RED] * 3)
    metrics = measure(gaussians, [0, 1, 2])
    np.testing.assert_array_equal(metrics["xva_02"], [0.5, 1, 1])
    np.testing.assert_array_equal(metrics["xva_05"], [1, 1, 1])


def test_transparent_views_do_not_count_for_the_overlap():
    gaussians = sheets([[0, 0, 0]] * 3, [RED] * 3, opacities=[0.9, 0.9, 0.3])
    metrics = measure(gaussians, [0, 1, 2])
    np.testing.assert_array_equal(metrics["xva_overlap"], [0.5, 0.5, np.nan])
    np.testing.assert_array_equal(metrics["xva_05"], [1, 1, np.nan])


def test_with_one_view_agreement_is_undefined():
    gaussians = sheets([[0, 0, 0]], [RED])
    metrics = measure(gaussians, [0], cameras=rig(AZIMUTHS[:1]))
    assert metrics["own_view_share"] == pytest.approx(1, abs=TOLERANCE)
    assert np.isnan([metrics["xva_05"], metrics["xva_overlap"]]).all()


def test_blend_weights_add_up_to_opacity():
    """The front one has .8 of every pixel, the other .2 of that; from both sides."""
    cameras = rig(np.array([0.0, 180.0, 0.0]))
    gaussians = sheets([towards(0, 0.5), towards(180, 0.5)], [RED, GREEN])
    weigh = jax.jit(functools.partial(blend_weights, render_fn))
    weights = np.asarray(weigh(gaussians, cameras))
    behind = 1 - OPACITY
    expected = SIZE**2 * OPACITY * np.array([[2 + behind, 1 + 2 * behind]])
    np.testing.assert_allclose(weights, expected, rtol=TOLERANCE)
    alphas = render_fn(gaussians, cameras).alphas
    assert weights.sum() == pytest.approx(float(alphas.sum()), rel=TOLERANCE)


def test_health_of_five_gaussians():
    """Five Gaussians: one invisible, the others stretched, two half opaque."""
    scales = np.ones((1, 5, 3), np.float32)
    scales[0, :, 1] = [1, 2, 4, 8, 1000]
    gaussians = sheets(
        [[0, 0, 0]] * 5, [RED] * 5, opacities=[0.05, 0.2, 0.5, 0.95, 0.003]
    )
    gaussians = dataclasses.replace(gaussians, scales=scales)
    health = {k: float(v[0]) for k, v in jax.jit(gaussian_health)(gaussians).items()}
    assert health == pytest.approx(
        {
            "visible": 4,
            "anisotropy_p50": 3.0,
            "anisotropy_p95": 4 + 0.85 * 4,
            "half_opaque_share": 0.5,
        }
    )


def test_angles_to_the_nearest_input():
    inputs = rig(np.array([0.0, 90.0]))
    cameras = rig(np.array([0.0, 20.0, 80.0, 180.0, 225.0]))
    angles = jax.jit(nearest_input_angles)(cameras, inputs)
    np.testing.assert_allclose(angles, [[0, 20, 10, 90, 135]], atol=1e-3)
