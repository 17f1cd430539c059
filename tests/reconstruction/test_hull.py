"""The visual hull: carving against brute force, a ball in closed form, odd rigs."""

import itertools

import numpy as np
import pytest
from ball import CENTER, RADIUS, ball_cameras, ball_views

from facelift_jax.data import rodent
from facelift_jax.data.resize import composite
from facelift_jax.data.scenes import open_source
from facelift_jax.geometry.numerics import SH_C0
from facelift_jax.geometry.rays import project
from facelift_jax.geometry.rotations import quat_to_matrix
from facelift_jax.reconstruction import hull
from facelift_jax.structs import Cameras, Views, check


def of_opaque(gaussians):
    keep = gaussians.opacities > 0
    colors = SH_C0 * gaussians.sh[keep, 0] + 0.5
    return gaussians.means[keep], colors, gaussians.scales[keep]


def test_a_ball_anywhere_in_the_world():
    views = ball_views(ball_cameras(24))
    gaussians = hull.visual_hull(views)
    check(gaussians, "hull")
    num = len(gaussians.means)
    assert num in 2 * 4 ** np.arange(10)
    means, colors, scales = of_opaque(gaussians)
    assert 0.25 * num < len(means) <= num
    pixel = 3.0 / float(views.cameras.Ks[0, 0, 0])
    np.testing.assert_allclose(scales, hull.SIGMA * pixel, rtol=1e-2)
    offsets = means - CENTER
    distances = np.linalg.norm(offsets, axis=-1)
    # moved inwards by one voxel; the hull is larger than the ball between the views
    expected = RADIUS - hull.INSET * pixel
    assert abs(np.median(distances) - expected) < 0.6 * pixel
    assert np.abs(distances - expected).max() < 3 * pixel
    normals = offsets / distances[:, None]
    assert np.abs(colors - (0.5 + 0.5 * normals)).mean() < 0.05


def test_coarse_to_fine_carving_equals_brute_force(tmp_path):
    """On a rodent, which has thin parts, and an uneven rig."""
    rodent.generate(tmp_path / "set", 1, 32, workers=1, views=0, uneven=True)
    scene = open_source(tmp_path / "set")[0]
    inputs = composite(scene.take(np.arange(6)), (1.0, 1.0, 1.0))
    views = [hull._silhouette(inputs, view) for view in range(6)]
    cells, corner, size = hull.carve(views)
    side = hull.START
    while side <= cells.max():
        side *= 2
    grid = np.array(list(itertools.product(range(side), repeat=3)))
    for view in views:
        grid = grid[hull.is_inside(view, corner + (grid + 0.5) * size)]
    assert len(grid) > 50
    assert {*map(tuple, cells.tolist())} == {*map(tuple, grid.tolist())}


@pytest.mark.parametrize("max_outside", [0, 1])
def test_voxels_that_are_not_tested_are_in_the_hull(max_outside, monkeypatch):
    """By brute force, with an object that leaves the images, and a wrong mask."""
    cameras = ball_cameras(5, 40)
    views = ball_views(cameras)
    masks = views.masks[:, :26].copy()
    masks[1, :, 20:] = 0
    cameras = Cameras(cameras.viewmats, cameras.Ks, 40, 26)
    inputs = Views(views.images[:, :26], masks, None, cameras)
    silhouettes = hull._silhouettes(inputs)
    with monkeypatch.context() as patch:
        tested = collect_tested_points(patch)
        cells, corner, size = hull.carve(silhouettes, max_outside)
    tested = np.rint((np.concatenate(tested) - corner) / size - 0.5).astype(int)
    untested = {*map(tuple, cells.tolist())} - {*map(tuple, tested.tolist())}
    assert len(untested) > 0.1 * len(cells)
    around = range(cells.min() - 16, cells.max() + 17)
    grid = np.array(list(itertools.product(around, repeat=3)))
    centers = corner + (grid + 0.5) * size
    num_outside, is_seen = np.zeros((2, len(grid)))
    for index, view in enumerate(silhouettes):
        num_outside += ~hull.is_inside(view, centers)
        camera = Cameras(cameras.viewmats[index], cameras.Ks[index], 40, 26)
        pixels, depths = project(camera, centers)
        is_in_image = ((pixels >= 0) & (pixels <= (40, 26))).all(-1)
        is_seen += np.asarray(is_in_image & (depths > size))
    expected = grid[(num_outside <= max_outside) & (is_seen > 0)]
    assert len(cells) == len(expected) > 1000
    assert {*map(tuple, cells.tolist())} == {*map(tuple, expected.tolist())}


def test_the_margin_of_certain_voxels_covers_interpolation_at_holes():
    """Mask values just above and just below one half make every neighbor matter."""
    rng = np.random.default_rng(0)
    views = ball_views(ball_cameras(4))
    holes = rng.random(views.masks.shape) < 0.01
    masks = np.where((views.masks > 0) & ~holes, 0.503, np.where(holes, 0, 0.497))
    inputs = Views(views.images, masks.astype(np.float32), None, views.cameras)
    silhouettes = hull._silhouettes(inputs)
    pixel = 3.0 / float(views.cameras.Ks[0, 0, 0])
    points = CENTER + rng.uniform(-1.2, 1.2, (40_000, 3)) * RADIUS
    corners = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
    for size in (0.2 * pixel, 2 * pixel):
        may_overlap, is_inner = hull._overlap(silhouettes, points, size, max_outside=0)
        assert is_inner.sum() > 100
        assert (~may_overlap).sum() > 100
        for corner in size * corners:
            inside = [hull.is_inside(view, points + corner) for view in silhouettes]
            in_all = np.all(inside, axis=0)
            assert in_all[is_inner].all()
            assert not in_all[~may_overlap].any()


def collect_tested_points(patch) -> list[np.ndarray]:
    """A list of the points that each call of `is_inside` gets from now on."""
    tested, is_inside = [], hull.is_inside

    def collect(view, points):
        tested.append(points)
        return is_inside(view, points)

    patch.setattr(hull, "is_inside", collect)
    return tested


def test_tested_voxels_increase_with_the_surface_not_the_volume(monkeypatch):
    tested = collect_tested_points(monkeypatch)
    counts = []
    for size in (48, 96):
        views = ball_views(ball_cameras(6, size))
        tested.clear()
        cells, _, _ = hull.carve(hull._silhouettes(views))
        counts.append((sum(map(len, tested)), len(cells)))
    (small, small_volume), (large, large_volume) = counts
    assert large_volume > 7 * small_volume
    assert large < 4.5 * small


def test_an_object_that_leaves_an_image_is_not_cut_off():
    views = ball_views(ball_cameras(24))
    whole = of_opaque(hull.visual_hull(views))[0]
    half = views.cameras.width // 2
    images, masks = views.images.copy(), views.masks.copy()
    Ks = views.cameras.Ks.copy()
    images[0], masks[0] = 1, 0
    images[0, :, :half] = views.images[0, :, half:]  # the ball's other half is outside
    masks[0, :, :half] = views.masks[0, :, half:]
    Ks[0, 0, 2] -= half
    cameras = Cameras(views.cameras.viewmats, Ks, 48, 48)
    cut = of_opaque(hull.visual_hull(Views(images, masks, None, cameras)))[0]
    assert len(whole) <= len(cut) < 1.05 * len(whole)


def test_an_object_that_leaves_every_image_ends_where_no_view_sees_it():
    """All images are cut through the middle of the ball."""
    cameras = ball_cameras(12, elevations=(10.0,))
    views = ball_views(cameras)
    half = cameras.height // 2
    cameras = Cameras(cameras.viewmats, cameras.Ks, cameras.width, half)
    cut = Views(views.images[:, :half], views.masks[:, :half], None, cameras)
    means = of_opaque(hull.visual_hull(cut))[0]
    distances = np.linalg.norm(means - CENTER, axis=-1)
    pixel = 3.0 / float(cameras.Ks[0, 0, 0])
    pixels, _ = project(cameras, np.repeat(means[None], 12, axis=0))
    rows = np.asarray(pixels)[..., 1].min(axis=0)
    assert rows.max() < half + 2  # splats are moved inwards, here up by one voxel
    upper = rows < half - 4
    assert upper.sum() > 100
    assert distances[upper].max() < RADIUS + 2 * pixel


def test_masks_without_a_common_hull_give_transparent_gaussians():
    views = ball_views(ball_cameras(4))
    masks = views.masks.copy()
    masks[:2] = 0
    inputs = Views(views.images, masks, None, views.cameras)
    for gaussians in (hull.visual_hull(inputs), hull.hull_surface(inputs)[0]):
        check(gaussians, "hull")
        assert gaussians.opacities.tolist() == [0, 0]


@pytest.mark.parametrize("missing", ["part", "all"])
def test_the_surface_survives_one_bad_mask(missing):
    views = ball_views(ball_cameras(6))
    expected, weights = hull.hull_surface(views)
    assert (weights == 1).all()
    masks = views.masks.copy()
    masks[1, (24 if missing == "part" else 0) :] = 0
    bad = Views(views.images, masks, None, views.cameras)
    means = of_opaque(hull.hull_surface(bad)[0])[0]
    assert len(of_opaque(hull.visual_hull(bad))[0]) < 0.75 * len(
        of_opaque(hull.visual_hull(views))[0]
    )
    # the points of the good masks' surface are there
    pixel = 3.0 / float(views.cameras.Ks[0, 0, 0])
    gaps = np.linalg.norm(of_opaque(expected)[0][:, None] - means, axis=-1).min(-1)
    assert np.quantile(gaps, 0.95) < 3 * pixel
    weights = hull.hull_surface(bad)[1]
    assert (weights[[0, 2, 3, 4, 5]] == 1).mean() > 0.99
    is_lost = (views.masks[1] > 0.5) & (masks[1] < 0.5)
    assert weights[1][is_lost].mean() < 0.1
    # a margin of three pixels around the ball is left out too
    assert (weights[1][views.masks[1] == masks[1]] == 0).mean() < 0.25


def test_the_surface_of_a_ball_is_covered_by_flat_gaussians():
    views = ball_views(ball_cameras(24))
    gaussians, _ = hull.hull_surface(views)
    check(gaussians, "hull")
    means, colors, scales = of_opaque(gaussians)
    num = len(means)
    assert num < 0.4 * len(of_opaque(hull.visual_hull(views))[0])
    offsets = means - CENTER
    distances = np.linalg.norm(offsets, axis=-1)
    pixel = 3.0 / float(views.cameras.Ks[0, 0, 0])
    # an average over a curved piece of the surface is slightly inside of it
    assert abs(np.median(distances) - (RADIUS - hull.INSET * pixel)) < 0.8 * pixel
    normals = offsets / distances[:, None]
    axes = quat_to_matrix(gaussians.quats[:num])[..., 2]  # of the smallest scale
    np.testing.assert_allclose(scales[:, 2] / scales[:, 0], 0.1 / 0.65, rtol=1e-5)
    assert np.quantile((axes * normals).sum(-1), 0.05) > 0.9
    assert np.abs(colors - (0.5 + 0.5 * normals)).mean() < 0.05
    # nowhere a hole: every point of the ball has a splat within two standard deviations
    directions = np.random.default_rng(0).normal(size=(500, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    points = CENTER + np.median(distances) * directions
    gaps = np.linalg.norm(points[:, None] - means, axis=-1).min(-1)
    assert gaps.max() < 2 * scales[0, 0]


def test_normals_along_the_z_axis_have_rotations():
    quats = hull._rotations_of_z(np.array([[0, 0, 1.0], [0, 0, -2.0], [0, 0, 0]]))
    np.testing.assert_allclose(
        quat_to_matrix(quats)[..., 2], [[0, 0, 1], [0, 0, -1], [0, 0, 1]], atol=1e-12
    )
