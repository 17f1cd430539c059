"""Aimed cameras against closed forms: where points land, what fills the picture."""

import math

import arena
import numpy as np
import pytest

from facelift_jax.data.recordings.calibration import read_calibration
from facelift_jax.data.recordings.virtual_cameras import (
    UnusableError,
    aim,
    focal_length,
    masked_points,
    pixel_points,
    shrinkage,
    sight,
    source_pixels,
    take_picture,
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
    return [pixel_points(camera, camera.size) for camera in cameras]


@pytest.fixture(scope="module")
def masks():
    """Which pixels' rays meet a ball, from the poses and lenses written in `arena`."""
    viewmats, Ks, (width, height) = arena.rig(SHRINK)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    found = []
    for viewmat, K, lens in zip(viewmats, Ks, arena.LENSES, strict=True):
        across, down = (columns - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1]
        x, y = arena.straighten(across, down, lens)
        rays = np.stack([x, y, np.ones_like(x)], axis=-1)
        local = viewmat[:3, :3] @ CENTER + viewmat[:3, 3]
        cosines = rays @ local / np.linalg.norm(rays, axis=-1) / np.linalg.norm(local)
        found.append(cosines > math.sqrt(1 - RADIUS**2 / (local @ local)))
    return found


def test_known_points_land_where_the_aimed_camera_has_them(cameras, points, masks):
    """Dots drawn where the lens puts 3D points, found again in the new pictures."""
    known = CENTER + np.random.default_rng(1).uniform(-16, 16, (9, 3))
    errors = []
    for view, (viewmat, K) in enumerate(zip(*arena.rig(SHRINK)[:2], strict=True)):
        camera, mask = cameras[view], masks[view]
        columns, rows = np.meshgrid(*(np.arange(n) + 0.5 for n in mask.shape[::-1]))
        distance = np.linalg.norm(viewmat[:3, :3] @ CENTER + viewmat[:3, 3])
        aimed = aim(camera, CENTER, focal_length(distance, RADIUS, 0.9, SIZE), SIZE)
        drawn = arena.project(known, viewmat, K, arena.LENSES[view])
        expected = project(aimed, known)[0]
        for some in (slice(0, 3), slice(3, 6), slice(6, 9)):  # a colour each
            squares = (columns[..., None] - drawn[some, 0]) ** 2
            squares = squares + (rows[..., None] - drawn[some, 1]) ** 2
            picture = np.rint(255 * np.exp(-squares / 8)).astype(np.uint8)
            seen = take_picture(picture, mask, points[view], camera, aimed)
            weights = seen[..., :3].astype(float) * (seen[..., :3] > 8)
            grid = np.stack(np.meshgrid(*[np.arange(SIZE) + 0.5] * 2), axis=-1)
            spots = (
                np.einsum("hwc,hwk->ck", weights, grid) / weights.sum((0, 1))[:, None]
            )
            errors.append(np.linalg.norm(spots - expected[some], axis=-1))
    assert np.max(errors) < 0.06
    assert np.mean(errors) < 0.025


def test_the_map_is_the_lens_of_the_turned_rays(cameras):
    """To 1e-3 px of the real picture, at any corner of the new one."""
    places = np.linspace(0, SIZE, 13)
    for view, (viewmat, K) in enumerate(zip(*arena.rig(SHRINK)[:2], strict=True)):
        aimed = aim(cameras[view], CENTER, 220.0, SIZE)
        found = source_pixels(cameras[view], aimed, places, places)
        x, y = np.meshgrid((places - SIZE / 2) / 220.0, (places - SIZE / 2) / 220.0)
        rays = np.stack([x, y, np.ones_like(x)], axis=-1)
        world = rays @ aimed.viewmats[:3, :3] + aimed.centers
        expected = arena.project(world.reshape(-1, 3), viewmat, K, arena.LENSES[view])
        np.testing.assert_allclose(found.reshape(-1, 2), expected, atol=2e-4)


def test_aiming_turns_a_camera_about_its_own_centre(cameras):
    for camera in cameras:
        aimed = aim(camera, CENTER, 300.0, SIZE)
        rotation = camera.viewmat[:3, :3]
        np.testing.assert_allclose(aimed.centers, -rotation.T @ camera.viewmat[:3, 3])
        np.testing.assert_allclose(project(aimed, CENTER[None])[0], [[SIZE / 2] * 2])
        turn = aimed.viewmats[:3, :3] @ rotation.T
        assert turn[0, 1] == pytest.approx(
            turn[1, 0]
        )  # about an axis across z: no roll


def test_the_object_is_found_and_fills_its_share(cameras, points, masks):
    seen = [masked_points(m, p) for m, p in zip(masks, points, strict=True)]
    found = sight(cameras, seen)
    np.testing.assert_allclose(found.center, CENTER, atol=0.3)  # half a pixel is .4 mm
    assert found.radius == pytest.approx(RADIUS, abs=0.6)
    assert found.offsets.max() < 1  # a ball's outline is not quite centred on it
    white = np.full((*masks[0].shape, 3), 200, np.uint8)
    for camera, mask, rays, distance, reach in zip(
        cameras, masks, points, found.distances, found.reaches, strict=True
    ):
        focal = focal_length(distance, RADIUS, 0.8, SIZE)
        assert focal * reach == pytest.approx(0.4 * SIZE, abs=1)
        aimed = aim(camera, found.center, focal, SIZE)
        rgba = take_picture(white, mask, rays, camera, aimed)
        radius = math.sqrt((rgba[..., 3] / 255).sum() / math.pi)
        assert radius == pytest.approx(0.4 * SIZE, abs=0.3)
        local = camera.viewmat[:3, :3] @ found.center + camera.viewmat[:3, 3]
        expected = camera.K[0, 0] / focal * local[2] / np.linalg.norm(local)
        assert shrinkage(camera, aimed) == pytest.approx(expected, rel=0.2)


def test_nothing_around_the_mask_runs_into_the_object(cameras, points, masks):
    mask = masks[0]
    picture = np.where(mask[..., None], [180, 20, 90], [0, 255, 0]).astype(np.uint8)
    rgba = take_picture(
        picture, mask, points[0], cameras[0], aim(cameras[0], CENTER, 250.0, SIZE)
    )
    seen = rgba[..., 3] > 0
    assert 0.1 < seen.mean() < 0.9
    assert ((rgba[..., 3] > 0) & (rgba[..., 3] < 255)).any()
    assert np.abs(rgba[seen][:, :3].astype(int) - [180, 20, 90]).max() <= 1
    assert not rgba[~seen].any()


def test_masks_that_do_not_show_the_whole_object_say_so(points, masks):
    mask = masks[0]
    assert len(masked_points(mask, points[0])) == mask.sum()
    with pytest.raises(UnusableError, match="the mask is empty"):
        masked_points(np.zeros_like(mask), points[0])
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        touching = mask.copy()
        touching[edge] = True
        with pytest.raises(UnusableError, match="touches the picture's edge"):
            masked_points(touching, points[0])
    folded = np.where(mask[..., None], np.nan, points[0])
    with pytest.raises(UnusableError, match="where the lens model folds over"):
        masked_points(mask, folded)
