"""Image metrics against closed forms and independent implementations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from facelift_jax.geometry.paths import fov_intrinsics, orbit_cameras
from facelift_jax.geometry.rays import ray_directions
from facelift_jax.metrics import DEFINITIONS, METRICS, object_radius, ssim, view_metrics
from facelift_jax.structs import Cameras, RenderOutput, Views

TOLERANCES = {
    "ssim": 1e-4,  # float32 rounding of variances (6e-8) against C2 = 9e-4
    "decibel": 1e-4,  # float32 means of squared errors, times 4.3
    "ratio": 1e-6,
}

SIZE = 40
DEPTH_METRICS = {"depth_error", "depth_within_02R", "depth_within_05R", "absrel"}
RADIUS = np.ones(1, np.float32)


def one_view(mask: np.ndarray) -> tuple[RenderOutput, Views]:
    """A perfect rendering [1 1] of a gray image with a mask [h w]."""
    mask = mask.astype(np.float32)[None, None, :, :, None]
    camera = orbit_cameras(
        np.zeros(1), np.zeros(1), 2.0, fov_intrinsics(50.0, SIZE), SIZE
    )
    cameras = Cameras(camera.viewmats[None], camera.Ks[None], SIZE, SIZE)
    images = np.full((1, 1, SIZE, SIZE, 3), 0.5, np.float32)
    targets = Views(images, mask, 2 * mask, cameras)
    return RenderOutput(images, mask, 2 * mask, np.zeros((1, 1), np.int32)), targets


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top : top + side, left : left + side] = True
    return mask


WITHOUT_WEIGHTS = METRICS[:-1]  # LPIPS, the last one, is tested in test_lpips.py

jitted_view_metrics = jax.jit(view_metrics)


def measure(render: RenderOutput, targets: Views) -> dict[str, float]:
    metrics = jitted_view_metrics(render, targets, RADIUS)
    return {name: float(value[0, 0]) for name, value in metrics.items()}


def test_metrics_have_their_documented_names_and_order():
    assert METRICS == (
        "psnr_fg",
        "psnr_box",
        "psnr_full",
        "ssim",
        "iou",
        "depth_error",
        "depth_within_02R",
        "depth_within_05R",
        "absrel",
        "alpha_entropy",
        "coverage",
        "lpips_vgg16",
    )
    assert tuple(DEFINITIONS) == METRICS


def test_names_and_values_without_jit():
    render, targets = one_view(square(5, 8, 20))
    render = dataclasses.replace(render, colors=render.colors + np.float32(0.1))
    plain = view_metrics(render, targets, RADIUS)
    assert tuple(plain) == WITHOUT_WEIGHTS
    jitted = measure(render, targets)
    for name in WITHOUT_WEIGHTS:
        assert float(plain[name][0, 0]) == pytest.approx(jitted[name], abs=1e-4)


def test_a_perfect_rendering():
    metrics = measure(*one_view(square(10, 10, 20)))
    expected = {
        "psnr_fg": 100.0,
        "psnr_box": 100.0,
        "psnr_full": 100.0,
        "ssim": 1.0,
        "iou": 1.0,
        "depth_error": 0.0,
        "depth_within_02R": 1.0,
        "depth_within_05R": 1.0,
        "absrel": 0.0,
        "alpha_entropy": 0.0,
        "coverage": 0.25,
    }
    assert metrics == pytest.approx(expected, abs=1e-5)


def test_psnr_by_region():
    render, targets = one_view(square(10, 8, 20))
    error = np.zeros((SIZE, SIZE, 1), np.float32)
    error[square(10, 8, 20)] = 0.1  # on the object
    error[9, 20] = error[30, 20] = error[15, 7] = error[15, 28] = 0.3  # inside the box
    error[8, 20] = error[31, 20] = error[15, 6] = error[15, 29] = 0.4  # outside it
    metrics = measure(
        dataclasses.replace(render, colors=render.colors + error), targets
    )
    total = 400 * 0.01
    expected = {
        "psnr_fg": -10 * np.log10(total / 400),
        "psnr_box": -10 * np.log10((total + 4 * 0.09) / 22**2),
        "psnr_full": -10 * np.log10((total + 4 * 0.09 + 4 * 0.16) / SIZE**2),
    }
    metrics = {name: metrics[name] for name in expected}
    assert metrics == pytest.approx(expected, abs=TOLERANCES["decibel"])


def test_the_box_is_clipped_to_the_image():
    render, targets = one_view(square(0, 20, 20))
    colors = np.array(render.colors)
    colors[0, 0, 0, 19] += 0.2
    metrics = measure(dataclasses.replace(render, colors=colors), targets)
    expected = -10 * np.log10(0.04 / (21 * 21))
    assert metrics["psnr_box"] == pytest.approx(expected, abs=TOLERANCES["decibel"])


def test_predictions_are_clipped_first():
    render, targets = one_view(square(10, 10, 20))
    white = dataclasses.replace(targets, images=np.ones_like(targets.images))
    metrics = measure(dataclasses.replace(render, colors=white.images + 0.5), white)
    assert metrics["psnr_fg"] == metrics["psnr_full"] == pytest.approx(100)
    assert metrics["ssim"] == pytest.approx(1)


@pytest.mark.parametrize("shift", [0, 5, 20])
def test_iou_of_shifted_squares(shift):
    render, targets = one_view(square(10, 10, 20))
    moved = square(10, 10 + shift, 20).astype(np.float32)
    alphas = 0.1 + 0.6 * moved[None, None, :, :, None]
    metrics = measure(dataclasses.replace(render, alphas=alphas), targets)
    kept = (20 - shift) * 20
    assert metrics["iou"] == pytest.approx(kept / (800 - kept), abs=TOLERANCES["ratio"])


def test_depth_is_compared_where_truth_and_prediction_are_solid():
    render, targets = one_view(square(10, 10, 20))
    depths = np.array(render.depths)
    depths[0, 0, 10:15] *= 1.015  # off by .03, within .05 R
    depths[0, 0, 15:20] *= 1.10  # off by .2
    alphas = np.array(render.alphas)
    alphas[0, 0, 20:25] = 0.4  # not solid: its depth does not count
    depths[0, 0, 20:25] = 9
    render = dataclasses.replace(render, depths=depths, alphas=alphas)
    metrics = measure(render, targets)
    assert metrics["depth_within_05R"] == pytest.approx(2 / 3, abs=1e-6)
    assert metrics["depth_within_02R"] == pytest.approx(1 / 3, abs=1e-6)
    assert metrics["depth_error"] == pytest.approx((0.03 + 0.20 + 0) / 3, abs=1e-6)
    assert metrics["absrel"] == pytest.approx((0.015 + 0.10 + 0) / 3, abs=1e-6)


def test_alpha_entropy_of_visible_pixels():
    """A quarter at .5 (one bit), a quarter at .25, the rest below 1/255."""
    render, targets = one_view(square(10, 10, 20))
    alphas = np.full((1, 1, SIZE, SIZE, 1), 0.003, np.float32)
    alphas[:, :, :20, :20] = 0.5
    alphas[:, :, 20:, :20] = 0.25
    metrics = measure(dataclasses.replace(render, alphas=alphas), targets)
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert metrics["alpha_entropy"] == pytest.approx((1 + quarter) / 2, abs=1e-5)


def test_undefined_metrics_are_nan():
    metrics = measure(*one_view(np.zeros((SIZE, SIZE))))
    defined = {name for name, value in metrics.items() if not np.isnan(value)}
    assert defined == {"psnr_full", "ssim", "coverage"}  # empty image

    render, targets = one_view(square(10, 10, 20))
    metrics = measure(render, dataclasses.replace(targets, depths=None))
    undefined = {name for name, value in metrics.items() if np.isnan(value)}
    assert undefined == DEPTH_METRICS

    clear = dataclasses.replace(render, alphas=0 * render.alphas)
    metrics = measure(clear, targets)
    undefined = {name for name, value in metrics.items() if np.isnan(value)}
    assert undefined == {*DEPTH_METRICS, "alpha_entropy"}
    assert metrics["iou"] == 0

    unknown = np.full(1, np.nan, np.float32)
    metrics = jitted_view_metrics(render, targets, unknown)
    undefined = {name for name, value in metrics.items() if np.isnan(value[0, 0])}
    assert undefined == DEPTH_METRICS - {"absrel"}


def test_views_do_not_mix(make_scene):
    render, targets = make_scene(0)
    radius = object_radius(targets)
    metrics = jitted_view_metrics(render, targets, radius)
    for b in range(2):
        for t in range(3):
            alone = jax.tree.map(
                lambda a, b=b, t=t: np.asarray(a)[b : b + 1, t : t + 1],
                (render, targets),
            )
            single = jitted_view_metrics(*alone, radius[b : b + 1])
            for name in WITHOUT_WEIGHTS:
                expected = metrics[name][b, t]
                np.testing.assert_allclose(single[name][0, 0], expected, rtol=1e-5)


def test_shapes_must_agree(make_scene):
    render, targets = make_scene(1)
    with pytest.raises(ValueError, match=r"render\.alphas is .* but targets\.masks"):
        view_metrics(
            dataclasses.replace(render, alphas=render.alphas[:, :2]),
            targets,
            object_radius(targets),
        )


def test_ssim_matches_an_independent_implementation():
    rng = np.random.default_rng(0)
    x = ndimage.gaussian_filter(rng.random((2, 32, 45, 3)), (0, 2, 2, 0))
    y = np.clip(x + rng.normal(0, 0.02, x.shape), 0, 1)

    def mean(image):
        return ndimage.gaussian_filter(image, 1.5, truncate=3.5, axes=(1, 2))

    mx, my = mean(x), mean(y)
    sx, sy, sxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    similarity = (2 * mx * my + 1e-4) * (2 * sxy + 9e-4)
    similarity /= (mx**2 + my**2 + 1e-4) * (sx + sy + 9e-4)
    expected = similarity[:, 5:-5, 5:-5].mean(axis=(1, 2, 3))
    similarity = ssim(x.astype(np.float32), y.astype(np.float32))
    assert np.all((expected > 0.1) & (expected < 0.95))
    np.testing.assert_allclose(similarity, expected, atol=TOLERANCES["ssim"])


def test_ssim_of_constant_images():
    x, y = np.full((1, 12, 11, 3), 0.25, "f4"), np.full((1, 12, 11, 3), 0.75, "f4")
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    np.testing.assert_allclose(ssim(x, y), expected, atol=TOLERANCES["ssim"])


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="ssim") as error:
        ssim(np.zeros((1, 20, 10, 3), "f4"), np.zeros((1, 20, 10, 3), "f4"))
    assert str(error.value) == (
        "ssim: images of 10 x 20 px are smaller than its 11 x 11 window"
    )


def test_radius_of_a_sphere():
    size, radius, num_views = 48, 0.4, 12
    azimuths = np.arange(num_views) * 30.0
    elevations = np.resize([-50.0, 0.0, 50.0], num_views)
    K = fov_intrinsics(40.0, size)
    center = np.array([0.2, -0.1, 0.3])
    cameras = orbit_cameras(azimuths, elevations, 2.0, K, size, center=center)
    directions = ray_directions(cameras).astype(np.float64)
    origins = cameras.centers[:, None, None].astype(np.float64) - center
    along = (origins * directions).sum(-1)
    square_root = along**2 - (origins**2).sum(-1) + radius**2
    hits = square_root > 0
    distance = -along - np.sqrt(np.where(hits, square_root, 0))
    forward = cameras.viewmats[:, None, None, 2, :3]
    depths = np.where(hits, distance * (directions * forward).sum(-1), 0)
    targets = Views(
        images=np.zeros((1, num_views, size, size, 3), np.float32),
        masks=hits[None, ..., None].astype(np.float32),
        depths=depths[None, ..., None].astype(np.float32),
        cameras=jax.tree.map(lambda a: a[None], cameras),
    )
    assert abs(float(object_radius(targets)[0]) - radius) < 0.03 * radius
    silhouettes = dataclasses.replace(targets, depths=None)
    assert abs(float(object_radius(silhouettes)[0]) - radius) < 0.03 * radius
    stray = np.array(targets.depths)
    stray[0, 0, 24, 24] = 50.0
    stray = dataclasses.replace(targets, depths=stray)
    assert abs(float(object_radius(stray)[0]) - radius) < 0.03 * radius


def test_radius_is_nan_without_foreground(make_scene):
    _, targets = make_scene(2)
    masks = np.array(targets.masks)
    masks[1] = 0
    targets = dataclasses.replace(targets, masks=masks)
    for views in (targets, dataclasses.replace(targets, depths=None)):
        radius = object_radius(views)
        assert np.isfinite(radius[0])
        assert np.isnan(radius[1])


def test_radius_under_jit_agrees(make_scene):
    _, targets = make_scene(3)
    np.testing.assert_allclose(
        jax.jit(object_radius)(jax.tree.map(jnp.asarray, targets)),
        object_radius(targets),
        rtol=1e-6,
    )
