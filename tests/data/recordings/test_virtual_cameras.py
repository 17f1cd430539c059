"""Virtual cameras against closed forms: positions of points, size of the object."""

import math

import arena
import numpy as np
import pytest

from facelift_jax.data.recordings.calibration import read_calibration
from facelift_jax.data.recordings.virtual_cameras import (
    UnusableMaskError,
    downscale_factor,
    focal_length,
    masked_points,
    resample_image,
    source_pixels,
    triangulate_object,
    undistorted_pixels,
    virtual_camera,
)
from facelift_jax.geometry.rays import project

SHRINK, SIZE = 4, 96
RADIUS, CENTER = 30.0, np.array([9.0, -6.0, 5.0])


@pytest.fixture(scope="module")
def cameras(tmp_path_factory):
    path = tmp_path_factory.mktemp("rig") / "c.toml"
    arena.write_anipose(path, SHRINK)
    return read_calibration(path)


@pytest.fixture(scope="module")
def points(cameras):
    return [undistorted_pixels(camera, camera.size) for camera in cameras]


@pytest.fixture(scope="module")
def masks():
    """Masks of a ball, from the poses and lenses in `arena`."""
    viewmats, Ks, (width, height) = arena.rig(SHRINK)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    masks = []
    for viewmat, K, lens in zip(viewmats, Ks, arena.LENSES, strict=True):
        across, down = (columns - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1]
        x, y = arena.undistort(across, down, lens)
        rays = np.stack([x, y, np.ones_like(x)], axis=-1)
        local = viewmat[:3, :3] @ CENTER + viewmat[:3, 3]
        cosines = rays @ local / np.linalg.norm(rays, axis=-1) / np.linalg.norm(local)
        masks.append(cosines > math.sqrt(1 - RADIUS**2 / (local @ local)))
    return masks


def test_points_are_resampled_to_where_the_virtual_camera_projects_them(
    cameras, points, masks
):
    """Dots at the distorted projections of 3D points, located in the new images."""
    world_points = CENTER + np.random.default_rng(1).uniform(-16, 16, (9, 3))
    errors = []
    for view, (viewmat, K) in enumerate(zip(*arena.rig(SHRINK)[:2], strict=True)):
        camera, mask = cameras[view], masks[view]
        columns, rows = np.meshgrid(*(np.arange(n) + 0.5 for n in mask.shape[::-1]))
        distance = np.linalg.norm(viewmat[:3, :3] @ CENTER + viewmat[:3, 3])
        focal = focal_length(distance, RADIUS, 0.9, SIZE)
        virtual = virtual_camera(camera, CENTER, focal, SIZE)
        drawn = arena.project(world_points, viewmat, K, arena.LENSES[view])
        expected = project(virtual, world_points)[0]
        for some in (slice(0, 3), slice(3, 6), slice(6, 9)):  # one color each
            squares = (columns[..., None] - drawn[some, 0]) ** 2
            squares = squares + (rows[..., None] - drawn[some, 1]) ** 2
            image = np.rint(255 * np.exp(-squares / 8)).astype(np.uint8)
            rgba = resample_image(image, mask, points[view], camera, virtual)
            weights = rgba[..., :3].astype(float) * (rgba[..., :3] > 8)
            grid = np.stack(np.meshgrid(*[np.arange(SIZE) + 0.5] * 2), axis=-1)
            spots = (
                np.einsum("hwc,hwk->ck", weights, grid) / weights.sum((0, 1))[:, None]
            )
            errors.append(np.linalg.norm(spots - expected[some], axis=-1))
    assert np.max(errors) < 0.06
    assert np.mean(errors) < 0.025


def test_source_pixels_are_the_distorted_projections_of_the_rays(cameras):
    """Within 1e-3 px of the real image, up to the corners of the virtual one."""
    positions = np.linspace(0, SIZE, 13)
    window = (-4, -4, SIZE + 4, SIZE + 4)  # one sample in the center of each 8 x 8 px
    for view, (viewmat, K) in enumerate(zip(*arena.rig(SHRINK)[:2], strict=True)):
        virtual = virtual_camera(cameras[view], CENTER, 220.0, SIZE)
        pixels = source_pixels(cameras[view], virtual, window, 1 / 8)
        x, y = np.meshgrid(*[(positions - SIZE / 2) / 220.0] * 2)
        rays = np.stack([x, y, np.ones_like(x)], axis=-1)
        world = rays @ virtual.viewmats[:3, :3] + virtual.centers
        expected = arena.project(world.reshape(-1, 3), viewmat, K, arena.LENSES[view])
        np.testing.assert_allclose(pixels.reshape(-1, 2), expected, atol=2e-4)


def test_a_virtual_camera_is_rotated_about_its_own_center(cameras):
    for camera in cameras:
        virtual = virtual_camera(camera, CENTER, 300.0, SIZE)
        rotation = camera.viewmat[:3, :3]
        np.testing.assert_allclose(virtual.centers, -rotation.T @ camera.viewmat[:3, 3])
        np.testing.assert_allclose(project(virtual, CENTER[None])[0], [[SIZE / 2] * 2])
        turn = virtual.viewmats[:3, :3] @ rotation.T
        # the axis is orthogonal to z: no roll
        assert turn[0, 1] == pytest.approx(turn[1, 0])


def test_the_object_is_triangulated_and_fills_its_share(cameras, points, masks):
    seen = [masked_points(m, p) for m, p in zip(masks, points, strict=True)]
    estimate = triangulate_object(cameras, seen)
    # half a pixel is .4 mm
    np.testing.assert_allclose(estimate.center, CENTER, atol=0.3)
    assert estimate.radius == pytest.approx(RADIUS, abs=0.6)
    # the outline of a ball is not exactly centered on it
    assert estimate.offsets.max() < 1
    white = np.full((*masks[0].shape, 3), 200, np.uint8)
    for camera, mask, rays, distance, reach in zip(
        cameras, masks, points, estimate.distances, estimate.reaches, strict=True
    ):
        focal = focal_length(distance, RADIUS, 0.8, SIZE)
        assert focal * reach == pytest.approx(0.4 * SIZE, abs=1)
        virtual = virtual_camera(camera, estimate.center, focal, SIZE)
        rgba = resample_image(white, mask, rays, camera, virtual)
        radius = math.sqrt((rgba[..., 3] / 255).sum() / math.pi)
        assert radius == pytest.approx(0.4 * SIZE, abs=0.3)
        local = camera.viewmat[:3, :3] @ estimate.center + camera.viewmat[:3, 3]
        expected = camera.K[0, 0] / focal * local[2] / np.linalg.norm(local)
        assert downscale_factor(camera, virtual) == pytest.approx(expected, rel=0.2)


def test_colors_around_the_mask_do_not_mix_into_the_object(cameras, points, masks):
    mask = masks[0]
    image = np.where(mask[..., None], [180, 20, 90], [0, 255, 0]).astype(np.uint8)
    virtual = virtual_camera(cameras[0], CENTER, 250.0, SIZE)
    rgba = resample_image(image, mask, points[0], cameras[0], virtual)
    seen = rgba[..., 3] > 0
    assert 0.1 < seen.mean() < 0.9
    assert ((rgba[..., 3] > 0) & (rgba[..., 3] < 255)).any()
    assert np.abs(rgba[seen][:, :3].astype(int) - [180, 20, 90]).max() <= 1
    assert not rgba[~seen].any()


def test_masks_that_do_not_show_the_whole_object_are_refused(points, masks):
    mask = masks[0]
    assert len(masked_points(mask, points[0])) == mask.sum()
    with pytest.raises(UnusableMaskError, match="the mask is empty"):
        masked_points(np.zeros_like(mask), points[0])
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        touching = mask.copy()
        touching[edge] = True
        with pytest.raises(UnusableMaskError, match="touches the edge of the image"):
            masked_points(touching, points[0])
    folded = np.where(mask[..., None], np.nan, points[0])
    with pytest.raises(UnusableMaskError, match="where the lens model folds over"):
        masked_points(mask, folded)
