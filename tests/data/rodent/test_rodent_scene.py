"""One scene: parameters, mesh, cameras, images."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.ndimage

from facelift_jax.data.rodent import (
    RodentOptions,
    make_scene,
    posed_mesh,
    render_images,
    sample_parameters,
)
from facelift_jax.data.rodent.asset import REGIONS, load_rodent
from facelift_jax.data.rodent.coat import COATS
from facelift_jax.data.rodent.pose import pose_mesh
from facelift_jax.data.rodent.render import srgb_from_linear
from facelift_jax.data.rodent.rigs import (
    UNEVEN_AZIMUTHS_DEGREES,
    input_rig,
    sphere_rig,
)
from facelift_jax.data.rodent.scene import sample_cameras
from facelift_jax.structs import check

# Bounds for points of view A reprojected into view B, pooled over PAIRS at 256 px.
# Measured: median 5e-5, consistent 0.906, floating 5e-5 and off 0. Depth is exact to
# 1e-6; the remaining error comes from interpolating B's depth between pixel centers.
REPROJECTION = 2e-4  # median error, in camera distances
CONSISTENT = 0.87  # the other points are occluded in B by another part of the animal
INCONSISTENT = 1e-3  # share of points in front of B's surface or off B's silhouette
PAIRS = ((0, 1), (3, 2), (6, 4), (5, 7))


@pytest.fixture(scope="module")
def scene():
    return make_scene(2, RodentOptions(256, views=2))


def test_depth_is_consistent_between_views(scene):
    """A point at A's depth has B's depth in B, unless it is occluded there."""
    error, consistent, floating, off = reproject_pairs(scene.depths, scene.cameras)
    print(
        f"median reprojection error {error:.2g} camera distances at 256 px; of the "
        f"points that face B {consistent:.3f} consistent; {floating:.1g} floating, "
        f"{off:.1g} off"
    )
    assert error < REPROJECTION
    assert consistent > CONSISTENT
    assert max(floating, off) < INCONSISTENT


@pytest.mark.parametrize("view", range(8))
def test_wrong_depth_on_half_an_animal_in_one_view_is_detected(scene, view):
    depths = scene.depths.copy()
    middle = int(np.median(np.nonzero(depths[view])[1]))
    depths[view, :, :middle] *= 1.03
    # the median over the consistent points need not change, so it is not checked
    _, consistent, floating, off = reproject_pairs(depths, scene.cameras)
    assert consistent < CONSISTENT or max(floating, off) > INCONSISTENT
    if view < 4:  # in the pairs of neighbors, most points face both cameras
        assert consistent < CONSISTENT


def reproject_pairs(depths, cameras):
    """Over PAIRS: median error, and the shares consistent, floating and off.

    consistent: of the points whose normal faces B, those with B's depth; floating: of
    the points on a smooth part of B's depth, those clearly in front of it; off: of all
    points, those off B's silhouette.
    """
    parts = [reproject(depths.astype(float), cameras, a, b) for a, b in PAIRS]
    assert all(agree.sum() > 100 for _, agree, *_ in parts)
    errors, agree, facing, smooth, off = map(np.concatenate, zip(*parts, strict=True))
    floating = smooth & (errors > 0.02)
    return (
        np.median(np.abs(errors[agree])) / 2.7,
        agree[facing].mean(),
        floating.sum() / smooth.sum(),
        off.mean(),
    )


def reproject(depths, cameras, a, b):
    """For each point of A [n]: B's depth minus its own, and whether it agrees, faces B,
    is on a smooth part of B's depth, and is off B's silhouette."""
    viewmats, Ks = cameras.viewmats.astype(float), cameras.Ks.astype(float)
    pixels = np.moveaxis(np.indices(depths[a].shape)[::-1] + 0.5, 0, -1)
    rays = np.dstack([pixels, np.ones_like(depths[a])]) @ np.linalg.inv(Ks[a]).T
    a_to_b = viewmats[b] @ np.linalg.inv(viewmats[a])
    points = (rays * depths[a][..., None]) @ a_to_b[:3, :3].T + a_to_b[:3, 3]
    # down x right points from any surface that A sees towards camera A
    normals = np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1))
    lengths = np.linalg.norm(normals, axis=-1) * np.linalg.norm(points, axis=-1)
    inside = scipy.ndimage.minimum_filter(depths[a], 3) > 0
    facing = inside & (-(normals * points).sum(-1) > 0.3 * lengths)

    on_animal = depths[a] > 0
    local = points[on_animal].T
    x, y = (Ks[b] @ local)[:2] / local[2] - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    corners = [depths[b][top + i, left + j] for i in (0, 1) for j in (0, 1)]
    s, t = x - left, y - top
    weights = [(1 - t) * (1 - s), (1 - t) * s, t * (1 - s), t * s]
    errors = sum(w * d for w, d in zip(weights, corners, strict=True)) - local[2]
    smooth = (np.min(corners, 0) > 0) & (np.ptp(corners, axis=0) < 0.05)
    agree = smooth & (np.abs(errors) < 0.02)
    return errors, agree, facing[on_animal], smooth, np.max(corners, 0) == 0


def test_stored_parameters_give_the_rendered_mesh(scene):
    stored = json.loads(json.dumps(scene.parameters))
    vertices, faces = posed_mesh(stored)
    rendered = pose_mesh(load_rodent(), scene.parameters["pose"]).vertices
    assert vertices.tobytes() == rendered.tobytes()
    assert vertices.dtype == np.float32
    assert faces.max() == len(vertices) - 1
    assert 0.99 < np.linalg.norm(vertices, axis=1).max() < 1 + 1e-6


@pytest.mark.parametrize("uneven", [False, True])
def test_the_mesh_projects_into_the_masks(uneven):
    scene = make_scene(11, RodentOptions(64, views=3, uneven=uneven))
    vertices, _ = posed_mesh(scene.parameters)
    for view in range(9):
        viewmat, K = scene.cameras.viewmats[view], scene.cameras.Ks[view]
        local = vertices @ viewmat[:3, :3].T + viewmat[:3, 3]
        cols, rows = np.floor(((local / local[:, 2:]) @ K.T)[:, :2]).astype(int).T
        alpha = scene.rgba[view, ..., 3]
        near = scipy.ndimage.maximum_filter(alpha, 3)
        assert (near[rows, cols] > 0).all()
        # at the tip of the tail, many vertices may share a pixel of which the tail
        # covers less than a sixteenth
        assert (alpha[rows, cols] > 0).mean() > 0.95
        assert (alpha > 0).any(1).nonzero()[0][[0, -1]] == pytest.approx(
            [rows.min(), rows.max()], abs=1
        )
        assert (alpha > 0).any(0).nonzero()[0][[0, -1]] == pytest.approx(
            [cols.min(), cols.max()], abs=1
        )


def test_images_have_straight_alpha_and_antialiased_edges(scene):
    alpha = scene.rgba[..., 3]
    assert not scene.rgba[alpha == 0].any()
    levels = np.unique(alpha)
    assert len(levels) == 17  # sixteen samples per pixel on the silhouette
    assert 0.02 < (alpha == 255).mean() < 0.2
    # straight alpha: edges are as bright as the inside, not darkened by coverage
    edge = scene.rgba[..., :3][(alpha > 0) & (alpha < 128)].mean()
    assert edge > 0.6 * scene.rgba[..., :3][alpha == 255].mean()


def test_a_scene_depends_on_its_seed_and_index_only():
    options = RodentOptions(32, views=1)
    first, again = make_scene(4, options), make_scene(4, options)
    assert first.rgba.tobytes() == again.rgba.tobytes()
    assert first.depths.tobytes() == again.depths.tobytes()
    assert first.parameters == again.parameters
    for other in (make_scene(5, options), make_scene(4, RodentOptions(32, 1, views=1))):
        assert other.parameters["pose"] != first.parameters["pose"]


def test_rig_and_size_do_not_change_the_animal():
    plain = sample_parameters(7, RodentOptions(32))
    other = sample_parameters(7, RodentOptions(64, views=3, uneven=True))
    for part in ("pose", "coat", "light"):
        assert plain[part] == other[part]


def test_more_held_out_cameras_do_not_change_the_first_ones():
    few, many = (sample_cameras(3, RodentOptions(32, views=n))[0] for n in (4, 9))
    np.testing.assert_array_equal(few.viewmats, many.viewmats[:10])


GOLDEN_COATS = ["agouti", "white", "grey", "black", "white", "agouti"]
GOLDEN_MEAN_POSITION = [0.4518299, 0.2141954, 0.1559080]
GOLDEN_MEAN_PIXEL = [7.6604, 6.4309, 5.3030, 12.3926]


def test_a_seed_gives_the_same_scene_in_every_version():
    """These numbers change only together with scene.VERSION."""
    scene = make_scene(0, RodentOptions(64, views=1))
    vertices, _ = posed_mesh(scene.parameters)
    coats = [sample_parameters(i, RodentOptions(64))["coat"]["coat"] for i in range(6)]
    assert coats == GOLDEN_COATS
    np.testing.assert_allclose(
        np.abs(vertices).mean(0), GOLDEN_MEAN_POSITION, rtol=1e-5
    )
    np.testing.assert_allclose(scene.rgba[0].mean((0, 1)), GOLDEN_MEAN_PIXEL, atol=0.02)


def test_animals_differ_and_every_coat_occurs():
    coats = [sample_parameters(i, RodentOptions(32))["coat"] for i in range(80)]
    assert {coat["coat"] for coat in coats} == set(COATS)
    patched = np.mean([coat["patch_coat"] is not None for coat in coats])
    assert 0.08 < patched < 0.4


def test_jaws_are_closed_and_joints_are_within_their_limits():
    skeleton = load_rodent().skeleton
    for index in range(10):
        angles = sample_parameters(index, RodentOptions(32))["pose"]["joint_radians"]
        for joint, name in enumerate(skeleton.joint_names):
            low, high = skeleton.joint_limits[joint]
            assert (angles[joint] < low) == (name == "mandible")
            assert angles[joint] <= high


def test_the_even_ring_is_even():
    cameras, is_input = sample_cameras(0, RodentOptions(128, views=5))
    assert is_input.tolist() == [True] * 6 + [False] * 5
    assert check(cameras)["b"] == (11,)
    centers = cameras.centers[:6]
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 2.7, rtol=1e-6)
    elevations = np.rad2deg(np.arcsin(centers[:, 2] / 2.7))
    np.testing.assert_allclose(elevations, 20, atol=1e-4)
    azimuths = np.rad2deg(np.arctan2(centers[:, 1], centers[:, 0])) % 360
    np.testing.assert_allclose(azimuths, np.arange(6) * 60, atol=1e-3)
    np.testing.assert_allclose(cameras.Ks[:, 0, 0], 64 / np.tan(np.deg2rad(25)))
    np.testing.assert_allclose(cameras.Ks[:, :2, 2], 64)


def test_all_cameras_look_at_the_object_and_see_all_of_it():
    for uneven in (False, True):
        for index in range(20):
            cameras, _ = sample_cameras(index, RodentOptions(100, uneven=uneven))
            axis_points = cameras.viewmats[:, :3, 3]  # the origin in camera frames
            np.testing.assert_allclose(axis_points[:, :2], 0, atol=1e-6)
            distances = axis_points[:, 2]
            reach = 1 / np.sqrt(distances**2 - 1)  # of the unit ball, at z = 1
            for k in (0, 1):
                room = np.minimum(cameras.Ks[:, k, 2], 100 - cameras.Ks[:, k, 2])
                assert (cameras.Ks[:, k, k] * reach <= room + 1e-3).all()


def test_the_uneven_rig_is_uneven():
    rigs = [
        input_rig(np.random.default_rng(i), 200, 50.0, 2.7, True) for i in range(40)
    ]
    centers = np.stack([rig.centers for rig in rigs])
    distances = np.linalg.norm(centers, axis=-1)
    azimuths = np.rad2deg(np.arctan2(centers[..., 1], centers[..., 0]))
    off = (azimuths - np.array(UNEVEN_AZIMUTHS_DEGREES) + 180) % 360 - 180
    assert 2 < np.abs(off).max() <= 4
    elevations = np.rad2deg(np.arcsin(centers[..., 2] / distances))
    assert 11 <= elevations.min() < 13
    assert 29 < elevations.max() <= 31
    assert np.ptp(distances) > 0.5
    Ks = np.stack([rig.Ks for rig in rigs])
    assert np.ptp(Ks[..., 0, 0]) > 40
    assert 3 < np.abs(Ks[..., :2, 2] - 100).max() <= 5


def test_held_out_cameras_cover_the_whole_sphere():
    cameras = sphere_rig(np.random.default_rng(0), 2000, 64, 50.0, 2.7)
    heights = np.sort(cameras.centers[:, 2] / 2.7)
    # uniform in area means uniform in height (Archimedes)
    np.testing.assert_allclose(heights, np.linspace(-1, 1, 2000), atol=0.06)
    assert np.abs(cameras.centers[:, :2].mean(0)).max() < 0.1
    check(cameras)


def test_the_model_is_consistent():
    rodent = load_rodent()
    assert rodent.regions.shape == (len(rodent.texture), len(REGIONS))
    np.testing.assert_allclose(rodent.regions.sum(1), 1, atol=1e-12)
    assert rodent.regions.min() >= 0
    np.testing.assert_allclose(rodent.weights.sum(1), 1, atol=1e-12)
    assert rodent.weld.max() + 1 == 5376 + 2 * 162  # seams are welded
    assert (rodent.skeleton.parents[1:] < np.arange(1, 66)).all()


def test_srgb_curve():
    linear = np.array([[0, 0.001, 0.0031308], [0.2140411, 1, 7]])
    expected = [[0, 0.01292, 0.04045], [0.5, 1, 1]]
    np.testing.assert_allclose(srgb_from_linear(linear), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 4}, "size 4: expected a side of 8 to 8000"),
        ({"views": -1}, "neither may be negative"),
        ({"radius": 0.9}, "expected a radius above 1"),
        ({"fov_degrees": 30.0}, "at this radius 43.5 degrees are needed"),
        ({"uneven": True, "radius": 1.1, "fov_degrees": 150.0}, "is inside the object"),
    ],
)
def test_impossible_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        dataclasses.replace(RodentOptions(64), **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "version None, expected 1"),
        ({"version": 1}, "without a usable pose"),
        ({"version": 1, "pose": {"joint_radians": [0.0]}}, "without a usable pose"),
    ],
)
def test_unusable_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        posed_mesh(parameters)


def test_an_unknown_coat_is_refused(scene):
    parameters = {**scene.parameters, "coat": {"coat": "plaid"}}
    with pytest.raises(ValueError, match="without a usable pose, coat or light"):
        render_images(parameters, scene.cameras)
