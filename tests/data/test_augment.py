"""LGM's augmentations against the original's numbers."""

from pathlib import Path

import numpy as np
import pytest

from facelift_jax.data.augment import augment, grid_line_map, jitter_poses
from facelift_jax.data.resize import sample_bilinear
from facelift_jax.geometry.rigid import opengl_to_opencv_c2w
from facelift_jax.geometry.rotations import invert_rigid
from facelift_jax.structs import Cameras, Views

GOLDEN = np.load(Path(__file__).parent.parent / "goldens" / "data" / "lgm.npz")
TOLERANCE = {
    "poses": 1e-6,  # float32, two rotations
    "grid": 1e-6,  # float32 coordinates in [-1, 1]
    "colors": 2e-5,  # 64 px times the coordinates' rounding, times color differences
}


def test_jitter_agrees_with_the_original():
    viewmats = invert_rigid(opengl_to_opencv_c2w(GOLDEN["jitter_pose_in"]))
    jittered = jitter_poses(
        viewmats, GOLDEN["jitter_u_azimuth"][:, 0], GOLDEN["jitter_u_elev"][:, 0]
    )
    expected = invert_rigid(opengl_to_opencv_c2w(GOLDEN["jitter_pose_out"]))
    np.testing.assert_allclose(jittered, expected, atol=TOLERANCE["poses"])


def test_grid_distortion_agrees_with_the_original_away_from_its_black_border():
    num_compared = 0
    for view in range(3):
        xs = grid_line_map(GOLDEN["grid_u_x"][view], 64)
        ys = grid_line_map(GOLDEN["grid_u_y"][view], 64)
        expected = GOLDEN["grid_map"][view]
        np.testing.assert_allclose(xs, expected[0, :, 0], atol=TOLERANCE["grid"])
        np.testing.assert_allclose(ys, expected[:, 0, 1], atol=TOLERANCE["grid"])
        image = GOLDEN["grid_in"][view].transpose(1, 2, 0)
        out = sample_bilinear(image, xs, ys)
        place = ((expected + 1) * 64 - 1) / 2
        inside = ((place >= 0) & (place <= 63)).all(-1)
        golden = GOLDEN["grid_out"][view].transpose(1, 2, 0)
        error = np.abs(out - golden)[inside]
        assert error.max() < TOLERANCE["colors"]
        num_compared += inside.sum()
    assert num_compared == 12_288 - 756


def test_border_pixels_are_repeated_outside_the_image():
    image = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    out = sample_bilinear(image, np.float32([-1, 1, 3]), np.float32([-1, 1]))
    np.testing.assert_array_equal(out[..., 0], [[0, 3, 3], [8, 11, 11]])


def test_plain_bilinear_resizing_agrees_with_the_original():
    for name, size in (("resize_half", 24), ("resize_frac", 20)):
        image = GOLDEN["resize_in"][0].transpose(1, 2, 0)
        centers = (2 * np.arange(size, dtype=np.float32) + 1) / size - 1
        out = sample_bilinear(image, centers, centers)
        expected = GOLDEN[name][0].transpose(1, 2, 0)
        np.testing.assert_allclose(out, expected, atol=TOLERANCE["colors"])


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    poses = invert_rigid(opengl_to_opencv_c2w(GOLDEN["jitter_pose_in"]))
    K = np.float32([[20, 0, 8], [0, 20, 8], [0, 0, 1]])
    return Views(
        rng.random((4, 16, 16, 3), np.float32),
        rng.random((4, 16, 16, 1), np.float32),
        None,
        Cameras(poses, np.broadcast_to(K, (4, 3, 3)), 16, 16),
    )


def test_augmentation_changes_all_views_but_view_0(inputs):
    before = inputs.images.copy()
    out = augment(inputs, np.random.default_rng(1), 1.0, 1.0)
    np.testing.assert_array_equal(out.images[0], inputs.images[0])
    np.testing.assert_array_equal(out.masks[0], inputs.masks[0])
    viewmats = inputs.cameras.viewmats
    np.testing.assert_array_equal(out.cameras.viewmats[0], viewmats[0])
    for view in (1, 2, 3):
        assert np.abs(out.images[view] - inputs.images[view]).max() > 0.1
        assert np.abs(out.masks[view] - inputs.masks[view]).max() > 0.1
        turn = out.cameras.viewmats[view] @ np.linalg.inv(viewmats[view])
        degrees = np.degrees(np.arccos((np.trace(turn[:3, :3]) - 1) / 2))
        assert 0.1 < degrees < 18 + 9
        # a rotation about the world's origin keeps its depth and its pixel
        np.testing.assert_allclose(
            out.cameras.viewmats[view, :3, 3], viewmats[view, :3, 3], atol=1e-6
        )
    np.testing.assert_array_equal(inputs.images, before)


def test_augmentation_has_the_given_probabilities(inputs):
    def is_changed(seed, grid_distortion, camera_jitter):
        rng = np.random.default_rng(seed)
        out = augment(inputs, rng, grid_distortion, camera_jitter)
        is_distorted = not np.array_equal(out.images, inputs.images)
        is_jittered = not np.array_equal(out.cameras.viewmats, inputs.cameras.viewmats)
        return is_distorted, is_jittered

    assert is_changed(0, 0.0, 0.0) == (False, False)
    assert is_changed(0, 1.0, 0.0) == (True, False)
    assert is_changed(0, 0.0, 1.0) == (False, True)
    counts = np.sum([is_changed(seed, 0.5, 0.2) for seed in range(200)], axis=0)
    # three standard deviations of a binomial of 200
    assert abs(counts[0] - 100) < 22
    assert abs(counts[1] - 40) < 17


def test_grid_lines_are_ordered_and_cover_the_image():
    rng = np.random.default_rng(3)
    for num_lines in range(8, 17):
        for size in (16, 64, 257):
            line_map = grid_line_map(rng.random(num_lines, np.float32), size)
            assert line_map.shape == (size,)
            assert (np.diff(line_map) >= 0).all()
            assert line_map[0] >= -1
            assert line_map[-1] <= 1
            if size >= 64:  # in smaller images a border cell may have no pixel
                assert (line_map[0], line_map[-1]) == (-1, 1)
