"""Agreement of rays and masks, in cases with a known answer."""

import dataclasses

import numpy as np
import pytest
from lump_scenes import LUMP, aimed, lump_scene, ring

from facelift_jax.data.io import DataError
from facelift_jax.data.validation.silhouettes import (
    Silhouettes,
    agreeing_pixels,
    agreement,
    agreement_without,
    grown,
    locate,
    look_at_rig,
    silhouettes,
)
from facelift_jax.geometry.rays import directions_through, project
from facelift_jax.structs import Cameras

SIZE = 40


def far_cameras():
    """Cameras at +x and +y, so distant that a row is nearly a fixed height in both."""
    return aimed(np.array([[100.0, 0, 0], [0, 100.0, 0]]), SIZE, 100.0)


def masks(*rows):
    """One mask per pair (first row, last row), over the middle columns."""
    mask = np.zeros((len(rows), SIZE, SIZE), bool)
    for view, (first, last) in enumerate(rows):
        mask[view, first : last + 1, 10:30] = True
    return Silhouettes(mask, mask)


def test_the_share_of_agreeing_rays_is_the_overlap_of_heights():
    rig = look_at_rig(far_cameras())
    whole = agreement(masks((8, 27), (8, 27)), rig)
    np.testing.assert_array_equal(whole.seen, [1, 1])
    np.testing.assert_array_equal(whole.num_rays, [400, 400])
    half = agreement(masks((8, 27), (18, 37)), rig)
    np.testing.assert_array_equal(half.seen, [0.5, 0.5])
    nothing = agreement(masks((0, 9), (20, 39)), rig)
    np.testing.assert_array_equal(nothing.seen, [0, 0])
    # the other view does not exclude positions outside its image
    np.testing.assert_array_equal(nothing.shares, [1, 1])
    stopped = agreement(masks((0, 9), (20, 39)), rig, stop_below=0.97)
    np.testing.assert_array_equal(stopped.num_rays, [200, 0])
    second = agreement(masks((8, 17), (8, 27)), rig, views=[1], max_rays=100)
    np.testing.assert_array_equal(second.seen, [0.5])
    np.testing.assert_array_equal(second.num_rays, [100])


def test_a_soft_mask_has_exact_bounds_and_a_binary_one_within_a_pixel():
    soft = np.zeros((1, 8, 8), np.uint8)
    soft[0, 2:6, 2:6] = 255
    soft[0, 2:6, 6] = 100
    actual = silhouettes(soft)
    np.testing.assert_array_equal(actual.full, soft == 255)
    np.testing.assert_array_equal(actual.partial, soft > 0)
    hard = np.where(soft > 127, 255, 0).astype(np.uint8)
    actual = silhouettes(hard)
    expected = np.zeros((2, 8, 8), bool)
    expected[0, 3:5, 3:5] = True
    expected[1, 1:7, 1:7] = True
    np.testing.assert_array_equal(actual.full[0], expected[0])
    np.testing.assert_array_equal(actual.partial[0], expected[1])
    # no pixel of a line has all neighbors set; no pixel of a haze is fully covered
    for thin in (np.diag([255] * 8), np.diag([140, 200] * 4)):
        actual = silhouettes(thin[None].astype(np.uint8))
        np.testing.assert_array_equal(actual.full[0], thin > 127)
        np.testing.assert_array_equal(actual.partial[0], grown(thin > 127, 1))


def test_dilation_adds_rows_and_columns():
    mask = np.zeros((7, 9), bool)
    mask[3, 0] = True
    expected = np.zeros((7, 9), bool)
    expected[1:6, :3] = True
    np.testing.assert_array_equal(grown(mask, 2), expected)


@pytest.mark.parametrize("size", [16, 24, 48])
@pytest.mark.parametrize("threshold", [None, 127])
def test_correct_cameras_agree_exactly_at_every_resolution(size, threshold):
    scene = lump_scene(ring(8, size=size, elevations=(20.0, -30.0, 60.0)))
    alphas = scene.rgba[..., 3]
    if threshold:
        alphas = np.where(alphas > threshold, np.uint8(255), np.uint8(0))
    actual = agreement(silhouettes(alphas), look_at_rig(scene.cameras))
    np.testing.assert_array_equal(actual.seen, np.ones(8))
    assert actual.num_rays.min() > 3


def test_views_that_contradict_the_others_are_identified():
    scene = lump_scene(ring(7, elevations=(20.0, -30.0, 60.0)))
    alphas = scene.rgba[..., 3].copy()
    alphas[2] = alphas[2, ::-1, ::-1]
    rig = look_at_rig(scene.cameras)
    without = agreement_without(silhouettes(alphas), rig)
    np.testing.assert_array_equal(without, without.T)
    np.testing.assert_array_equal(without[2], np.ones(7))
    others = np.delete(np.arange(7), 2)
    assert without[np.ix_(others, others)].max() < 0.95
    # equal to testing the other views only
    cameras = scene.cameras
    alone = Cameras(cameras.viewmats[others], cameras.Ks[others], 48, 48)
    assert agreement(silhouettes(alphas[others]), look_at_rig(alone)).shares.min() == 1
    alphas[5] = alphas[5, ::-1, ::-1]
    without = agreement_without(silhouettes(alphas), rig)
    assert without[2, 5] == 1
    assert np.sort(without.ravel())[-3] < 0.97


def test_the_centroids_locate_the_object():
    ball = np.array([[0.1, -0.2, 0.15, 0.3]])
    scene = lump_scene(ring(6, size=64), ball)
    rig = look_at_rig(scene.cameras)
    np.testing.assert_allclose(rig.center, 0, atol=1e-6)
    np.testing.assert_allclose(rig.distances, 2.7, rtol=1e-6)
    actual = locate(scene.rgba[..., 3], rig)
    np.testing.assert_allclose(actual.point, ball[0, :3], atol=0.01)
    assert np.abs(actual.offsets).max() < 0.5
    assert actual.is_in_frame.all()
    moved = locate(scene.rgba[..., 3], rig, actual.point + np.array([0, 0, 3.0]))
    assert not moved.is_in_frame.any()
    assert moved.is_in_front.all()
    turned = np.diag([1, -1, -1, 1]) @ scene.cameras.viewmats
    turned = dataclasses.replace(scene.cameras, viewmats=turned)
    assert not locate(scene.rgba[..., 3], look_at_rig(turned)).is_in_front.any()


def test_positions_of_agreeing_pixels_are_close_to_the_object():
    scene = lump_scene(ring(9, elevations=(20.0, -30.0, 60.0)))
    actual, rig = silhouettes(scene.rgba[..., 3]), look_at_rig(scene.cameras)
    is_tested, agrees, positions = agreeing_pixels(actual, rig, 0, stride=2)
    np.testing.assert_array_equal(is_tested, actual.full[0, ::2, ::2])
    np.testing.assert_array_equal(agrees, is_tested)
    camera = Cameras(rig.cameras.viewmats[0], rig.cameras.Ks[0], 48, 48)
    pixels, _ = project(camera, positions)
    expected = 2 * np.argwhere(is_tested)[:, ::-1] + 0.5
    np.testing.assert_allclose(pixels, expected, atol=1e-3)
    away = np.linalg.norm(positions[:, None] - LUMP[:, :3], axis=-1) - LUMP[:, 3]
    assert away.min(axis=1).max() < 0.2  # the hull of nine masks is not much larger


def test_rays_pass_through_their_pixels():
    rig = look_at_rig(ring(3))
    pixels = np.array([[[0.0, 0.0], [12.3, 40.1]]] * 3)
    rays = directions_through(rig.cameras, pixels)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1)
    points = rig.cameras.centers[:, None] + 3 * rays
    np.testing.assert_allclose(project(rig.cameras, points)[0], pixels, atol=1e-5)


NO_RIG = {
    "there is only one view, and nothing to compare it with; add views": ring(1),
    "all optical axes are parallel; a rig needs two axes that are not": aimed(
        np.array([[2.0, 0, 0], [-3.0, 0, 0]]), SIZE, 1.0
    ),
    "camera 2 is at the point that the cameras look at": aimed(
        np.array([[2.0, 0, 0], [0, 2.0, 0], [0.01, 0.01, 0.0]]), SIZE, 1.0
    ),
}


@pytest.mark.parametrize("line", NO_RIG)
def test_cameras_without_a_common_point_raise(line):
    with pytest.raises(DataError, match=f"^{line}$"):
        look_at_rig(NO_RIG[line])
