"""One test for each sentence of docs/conventions.md."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from facelift_jax.data.resize import to_views
from facelift_jax.data.scenes import Scene
from facelift_jax.geometry import paths, rays
from facelift_jax.geometry.rotations import invert_rigid
from facelift_jax.render import render
from facelift_jax.structs import Cameras, Gaussians

SIZE = 32
K = np.float32([[40, 0, 16], [0, 40, 16], [0, 0, 1]])
SH_DEGREE_0 = 0.28209479177387814  # 1 / (2 sqrt(pi))


def camera(viewmat=None, K=K, size=SIZE):
    viewmat = np.eye(4, dtype=np.float32) if viewmat is None else viewmat
    return Cameras(viewmat[None], K[None], size, size)


def one_gaussian(mean, color=(1.0, 0.0, 0.0), **changes):
    gaussians = Gaussians(
        means=np.float32([mean]),
        quats=np.float32([[1, 0, 0, 0]]),
        scales=np.full((1, 3), 0.05, np.float32),
        opacities=np.float32([0.9]),
        sh=((np.float32(color) - 0.5) / np.float32(SH_DEGREE_0))[None, None],
    )
    return dataclasses.replace(gaussians, **changes)


def rendered(gaussians):
    output = render(gaussians, camera(), backend="reference")
    return jax.tree.map(lambda x: np.asarray(x[0]), output)


def centroid(alphas):
    """(column, row) of the mean covered pixel, pixel centers at + 0.5."""
    rows, cols = np.mgrid[:SIZE, :SIZE] + 0.5
    weight = alphas[..., 0] / alphas.sum()
    return np.array([(cols * weight).sum(), (rows * weight).sum()])


@pytest.mark.parametrize(
    ("mean", "moves"),
    [((0.2, 0, 2), (4, 0)), ((0, 0.2, 2), (0, 4)), ((0, 0, 2), (0, 0))],
)
def test_camera_axes_are_right_down_forward(mean, moves):
    expected = np.add((16, 16), moves)
    np.testing.assert_allclose(
        centroid(rendered(one_gaussian(mean)).alphas), expected, atol=0.02
    )
    assert rendered(one_gaussian(np.multiply(mean, -1))).alphas.max() == 0  # behind


def test_world_is_right_handed():
    eyes = np.float32([[3, 0, 0]])
    rotation = paths.look_at(eyes, np.zeros((1, 3)), np.array([0.0, 0.0, 1.0]))[
        0, :3, :3
    ]
    right, down, forward = rotation
    np.testing.assert_allclose(np.cross(right, down), forward, atol=1e-6)
    # from +x with z up, +y is on the right
    np.testing.assert_allclose(right, [0, 1, 0], atol=1e-6)


def test_poses_are_world_to_camera():
    eye = np.float32([[1, 2, 3]])
    viewmats = paths.look_at(eye, np.zeros((1, 3)), np.array([0.0, 0.0, 1.0]))
    cameras = Cameras(viewmats, K[None], SIZE, SIZE)
    np.testing.assert_allclose(
        viewmats @ np.float32([1, 2, 3, 1]), [[0, 0, 0, 1]], atol=1e-6
    )
    np.testing.assert_allclose(cameras.c2w, invert_rigid(viewmats))
    np.testing.assert_allclose(cameras.centers, eye, atol=1e-6)


def test_top_left_pixel_center_is_half_half():
    direction = rays.pixel_directions(camera())[0, 0, 0]
    np.testing.assert_allclose(direction, [(0.5 - 16) / 40, (0.5 - 16) / 40, 1])
    # a small Gaussian that projects to (0.5, 0.5) is brightest in pixel [0, 0]
    mean = 2 * direction
    alphas = rendered(one_gaussian(mean)).alphas[..., 0]
    assert np.unravel_index(alphas.argmax(), alphas.shape) == (0, 0)


def test_intrinsics_are_resized_with_the_images():
    rgba = np.zeros((1, SIZE, SIZE, 4), np.uint8)
    rgba[0, 8:12, 20:24] = 255
    scene = Scene("s", Path("s"), rgba, None, camera(), np.array([True]))
    views = to_views(scene, SIZE // 2, (0.0, 0.0, 0.0))
    np.testing.assert_allclose(views.cameras.Ks[0], [[20, 0, 8], [0, 20, 8], [0, 0, 1]])
    spot = np.argwhere(views.masks[0, ..., 0] > 0.5).mean(0) + 0.5
    np.testing.assert_allclose(spot, [5, 11])


def test_images_are_composited_without_gamma():
    rgba = np.full((1, SIZE, SIZE, 4), (200, 100, 0, 128), np.uint8)
    scene = Scene("s", Path("s"), rgba, None, camera(), np.array([True]))
    views = to_views(scene, SIZE, (1.0, 1.0, 1.0))
    alpha = 128 / 255
    expected = alpha * np.array([200, 100, 0]) / 255 + (1 - alpha)
    assert views.images.dtype == np.float32
    np.testing.assert_allclose(views.images[0, 3, 5], expected, atol=1e-6)


def test_depth_is_along_z_and_zero_where_nothing_is_rendered():
    output = rendered(one_gaussian((0.5, 0.3, 2)))
    covered = output.alphas > 0
    np.testing.assert_allclose(output.depths[covered], 2, rtol=1e-5)
    assert (output.depths[~covered] == 0).all()
    assert (~covered).any()
    depths = np.full((1, SIZE, SIZE, 1), 2, np.float32)
    np.testing.assert_allclose(rays.unproject(camera(), depths)[..., 2], 2)


def test_quaternions_are_wxyz_of_any_length():
    scales = np.float32([[0.3, 0.02, 0.02]])
    half = np.sqrt(0.5)
    quarter_turn_about_z = np.float32([[half, 0, 0, half]])
    tall = rendered(one_gaussian((0, 0, 2), scales=scales, quats=quarter_turn_about_z))
    rows = np.argwhere(tall.alphas[..., 0] > 0.1)
    assert np.ptp(rows[:, 0]) > 3 * np.ptp(rows[:, 1])
    longer = rendered(
        one_gaussian((0, 0, 2), scales=scales, quats=3 * quarter_turn_about_z)
    )
    np.testing.assert_allclose(longer.alphas, tall.alphas, atol=1e-6)


def test_scales_are_standard_deviations_and_opacities_are_activated():
    wide = np.full((1, 3), 0.2, np.float32)  # 4 px at depth 2
    output = rendered(one_gaussian((0, 0, 2), scales=wide))
    blurred = 4.0**2 + 0.3  # square pixels; the renderer's low-pass adds 0.3
    d2 = 0.5**2 + 0.5**2  # the center of pixel [16, 16] is half a pixel off
    expected = 0.9 * np.exp(-0.5 * d2 / blurred)
    assert output.alphas[16, 16, 0] == pytest.approx(expected, rel=1e-4)


def test_degree_0_is_the_color_itself():
    color = (0.2, 0.5, 0.9)
    output = rendered(one_gaussian((0, 0, 2), color))
    inside = output.alphas[..., 0] > 0.5
    shown = output.colors[inside] / output.alphas[inside]
    np.testing.assert_allclose(shown, np.broadcast_to(color, shown.shape), atol=1e-5)


def test_stored_images_have_straight_alpha(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 255, 51
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = np.asarray(Image.open(tmp_path / "a.png"))[None].repeat(1, axis=0)
    K_small = np.float32([[4, 0, 2], [0, 4, 2], [0, 0, 1]])
    scene = Scene(
        "s", tmp_path, read, None, camera(K=K_small, size=4), np.array([True])
    )
    views = to_views(scene, 4, (0.0, 0.0, 0.0))
    np.testing.assert_allclose(views.images[0, 0, 0], [0.2, 0, 0], atol=1e-6)
