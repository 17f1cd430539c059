"""The visual hull: carving against brute force, a ball in closed form, odd rigs."""

import itertools

import numpy as np

from facelift_jax.data import rodent
from facelift_jax.data.resize import composite
from facelift_jax.data.scenes import open_source
from facelift_jax.evaluation import visual_hull
from facelift_jax.geometry.numerics import SH_C0
from facelift_jax.geometry.paths import fov_intrinsics, orbit_cameras
from facelift_jax.geometry.rays import ray_directions
from facelift_jax.structs import Cameras, Views, check

CENTER, RADIUS = np.array([5.0, -3.0, 2.0]), 0.7  # nowhere near a unit box


def ball_views(num_views=8, size=48, elevations=(10.0, -30.0, 50.0)) -> Views:
    """Images of a ball on white, colored by its normal; exact at pixel centers."""
    azimuths = np.arange(num_views) * (360.0 / num_views)
    K = fov_intrinsics(40.0, size) * np.array([[1], [1.04], [1]], np.float32)
    cameras = orbit_cameras(
        azimuths, np.resize(elevations, num_views), 3.0, K, size, center=CENTER
    )
    directions = ray_directions(cameras).astype(np.float64)
    offsets = (cameras.centers - CENTER)[:, None, None].astype(np.float64)
    along = (offsets * directions).sum(-1)
    root = along**2 - (offsets**2).sum(-1) + RADIUS**2
    mask = (root > 0)[..., None]
    distance = -along - np.sqrt(np.maximum(root, 0))
    normals = (offsets + distance[..., None] * directions) / RADIUS
    images = np.where(mask, 0.5 + 0.5 * normals, 1)
    return Views(images.astype(np.float32), mask.astype(np.float32), None, cameras)


def of_opaque(gaussians):
    keep = gaussians.opacities > 0
    colors = SH_C0 * gaussians.sh[keep, 0] + 0.5
    return gaussians.means[keep], colors, gaussians.scales[keep]


def test_a_ball_anywhere_in_the_world():
    views = ball_views(24)
    gaussians = visual_hull.visual_hull(views)
    check(gaussians, "hull")
    num = len(gaussians.means)
    assert num in 4 ** np.arange(10)
    means, colors, scales = of_opaque(gaussians)
    assert 0.25 * num < len(means) <= num
    pixel = 3.0 / float(views.cameras.Ks[0, 0, 0])
    np.testing.assert_allclose(scales, visual_hull.SIGMA * pixel, rtol=1e-2)
    offsets = means - CENTER
    distances = np.linalg.norm(offsets, axis=-1)
    # moved inwards by one voxel; the hull is larger than the ball between the views
    expected = RADIUS - visual_hull.INSET * pixel
    assert abs(np.median(distances) - expected) < 0.6 * pixel
    assert np.abs(distances - expected).max() < 3 * pixel
    normals = offsets / distances[:, None]
    assert np.abs(colors - (0.5 + 0.5 * normals)).mean() < 0.05


def test_coarse_to_fine_carving_equals_brute_force(tmp_path):
    """On a rodent, which has thin parts, and an uneven rig."""
    rodent.generate(tmp_path / "set", 1, 32, workers=1, views=0, uneven=True)
    scene = open_source(tmp_path / "set")[0]
    inputs = composite(scene.take(np.arange(6)), (1.0, 1.0, 1.0))
    views = [visual_hull._silhouette(inputs, view) for view in range(6)]
    cells, corner, size = visual_hull.carve(views)
    side = visual_hull.START
    while side <= cells.max():
        side *= 2
    grid = np.array(list(itertools.product(range(side), repeat=3)))
    for view in views:
        grid = grid[visual_hull.is_inside(view, corner + (grid + 0.5) * size)]
    assert len(grid) > 50
    assert {*map(tuple, cells.tolist())} == {*map(tuple, grid.tolist())}


def test_an_object_that_leaves_an_image_is_not_cut_off():
    views = ball_views(24)
    whole = of_opaque(visual_hull.visual_hull(views))[0]
    half = views.cameras.width // 2
    images, masks = views.images.copy(), views.masks.copy()
    Ks = views.cameras.Ks.copy()
    images[0], masks[0] = 1, 0
    images[0, :, :half] = views.images[0, :, half:]  # the ball's other half is outside
    masks[0, :, :half] = views.masks[0, :, half:]
    Ks[0, 0, 2] -= half
    cameras = Cameras(views.cameras.viewmats, Ks, 48, 48)
    cut = of_opaque(visual_hull.visual_hull(Views(images, masks, None, cameras)))[0]
    assert len(whole) <= len(cut) < 1.05 * len(whole)


def test_masks_without_a_common_hull_give_one_transparent_gaussian():
    views = ball_views(4)
    masks = views.masks.copy()
    masks[0] = 0
    gaussians = visual_hull.visual_hull(Views(views.images, masks, None, views.cameras))
    check(gaussians, "hull")
    assert gaussians.opacities.tolist() == [0]
