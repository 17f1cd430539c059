"""Geometry against values from LGM and closed forms, and NumPy against JAX."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_geometry import blender_to_opengl_c2w, covariances
from scipy.spatial.transform import Rotation

from facelift_jax.geometry import paths, rays, rigid, rotations
from facelift_jax.geometry.rotations import invert_rigid
from facelift_jax.structs import Cameras

GOLDEN = np.load(Path(__file__).parent.parent / "goldens/geometry/lgm_cameras.npz")
FLOAT32 = {"rtol": 0, "atol": 2e-6}  # a few ulp of world units around 1.5


def lgm_cameras(poses_gl, size):
    """Golden OpenGL camera-to-world poses as our cameras, fovy 49.1 degrees."""
    viewmats = invert_rigid(rigid.opengl_to_opencv_c2w(poses_gl))
    K = paths.fov_intrinsics(49.1, size)
    return Cameras(
        viewmats, np.broadcast_to(K, (*viewmats.shape[:-2], 3, 3)), size, size
    )


def to_jax(cameras):
    return jax.tree.map(jnp.asarray, cameras)


def random_rig(seed=0, num_views=5, size=12):
    rng = np.random.default_rng(seed)
    eyes = 2.5 * rng.standard_normal((num_views, 3)).astype(np.float32)
    targets = np.broadcast_to(np.float32([0.3, -0.2, 0.1]), eyes.shape)
    viewmats = paths.look_at(eyes, targets, np.array([0.0, 0.0, 1.0]))
    Ks = np.tile(np.float32([[20, 0, 5], [0, 22, 7], [0, 0, 1]]), (num_views, 1, 1))
    return Cameras(viewmats, Ks, size, size)


@pytest.mark.parametrize("convert", [lambda c: c, to_jax])
def test_plucker_rays_match_lgm(convert):
    cameras = convert(lgm_cameras(GOLDEN["poses_gl"], 64))
    embedding = np.moveaxis(np.asarray(rays.plucker_rays(cameras)), -1, 2)
    np.testing.assert_allclose(embedding[..., ::7, ::7], GOLDEN["rays_64"], **FLOAT32)
    corners = rays.plucker_rays(lgm_cameras(GOLDEN["poses_gl"], 256))
    corners = corners[..., (0, 0, 255, 255), (0, 255, 0, 255), :]
    corners = np.moveaxis(corners, -1, 2)
    np.testing.assert_allclose(corners, GOLDEN["rays_256_corners"], **FLOAT32)


def test_projection_matches_lgm():
    cameras = lgm_cameras(GOLDEN["pose_gl"], 512)
    view_rows = np.swapaxes(GOLDEN["cam_view"], -1, -2)
    np.testing.assert_allclose(cameras.viewmats, view_rows, **FLOAT32)
    points = np.broadcast_to(GOLDEN["points"], (8, 6, 3))
    pixels, depths = rays.project(cameras, points)
    # the rasterizer of LGM has pixel centers at integers
    np.testing.assert_allclose(pixels - 0.5, GOLDEN["points_pix_512"], atol=2e-3)
    np.testing.assert_allclose(depths, GOLDEN["points_depth"], **FLOAT32)


def test_first_camera_frame_matches_lgm():
    first = int(GOLDEN["rel_first_index"])
    order = [first, *range(first), *range(first + 1, 8)]
    cameras = lgm_cameras(GOLDEN["pose_gl"][order], 8)
    move = rigid.first_camera_frame(cameras, radius=1.5)
    moved = rigid.transform_world(cameras, move[:3, :3], move[:3, 3], 1.0)
    poses_gl = rigid.opengl_to_opencv_c2w(moved.c2w)
    np.testing.assert_allclose(poses_gl, GOLDEN["pose_rel"][order], **FLOAT32)


def test_blender_frames_match_lgm():
    converted = blender_to_opengl_c2w(GOLDEN["blender_opencv_c2w"])
    np.testing.assert_allclose(converted, GOLDEN["blender_to_gl_c2w"], **FLOAT32)


@pytest.mark.parametrize(
    "function",
    [
        rays.pixel_directions,
        rays.ray_directions,
        rays.plucker_rays,
        rays.nearest_point_rays,
        rigid.rig_center,
        lambda c: rigid.rig_radius(c, rigid.rig_center(c)),
        lambda c: rigid.first_camera_frame(c, 1.5),
        lambda c: rays.unproject(c, jnp.ones((5, 12, 12, 1), jnp.float32)),
    ],
)
def test_numpy_and_jax_agree(function):
    cameras = random_rig()
    in_jax = jax.jit(function)(to_jax(cameras))
    np.testing.assert_allclose(function(cameras), in_jax, rtol=1e-5, atol=5e-6)


def test_unproject_and_project_are_inverse():
    cameras = random_rig()
    depths = np.random.default_rng(1).uniform(1, 4, (5, 12, 12, 1)).astype(np.float32)
    points = rays.unproject(cameras, depths)
    pixels, z = rays.project(cameras, points.reshape(5, -1, 3))
    cols, rows = np.meshgrid(np.arange(12) + 0.5, np.arange(12) + 0.5)
    expected = np.stack([cols, rows], -1).reshape(1, -1, 2)
    np.testing.assert_allclose(pixels, np.tile(expected, (5, 1, 1)), atol=1e-4)
    np.testing.assert_allclose(z, depths.reshape(5, -1), rtol=1e-5)


def test_the_nearest_point_is_on_the_ray_and_nearest():
    cameras = random_rig()
    encoding = rays.nearest_point_rays(cameras)
    directions, nearest = encoding[..., :3], encoding[..., 3:]
    np.testing.assert_allclose((directions * nearest).sum(-1), 0, atol=1e-5)
    offset = nearest - cameras.centers[:, None, None, :]
    np.testing.assert_allclose(np.cross(offset, directions), 0, atol=1e-5)


def test_rig_center_and_radius():
    cameras = random_rig()
    center = rigid.rig_center(cameras)
    np.testing.assert_allclose(center, [0.3, -0.2, 0.1], atol=1e-5)
    expected = np.linalg.norm(cameras.centers - center, axis=-1).mean()
    np.testing.assert_allclose(rigid.rig_radius(cameras, center), expected, rtol=1e-6)


def test_transform_world_moves_points_and_depths_together():
    cameras = random_rig()
    rotation = Rotation.from_rotvec([0.3, -1.0, 0.4]).as_matrix().astype(np.float32)
    shift, scale = np.float32([0.5, 1.0, -2.0]), 1.7
    points = np.random.default_rng(2).standard_normal((5, 9, 3)).astype(np.float32)
    moved_points = (scale * points @ rotation.T + shift).astype(np.float32)
    moved = rigid.transform_world(cameras, rotation, shift, scale)
    before, z_before = rays.project(cameras, points)
    after, z_after = rays.project(moved, moved_points)
    np.testing.assert_allclose(z_after, scale * z_before, rtol=1e-5, atol=1e-5)
    is_in_front = z_before > 0.2
    np.testing.assert_allclose(after[is_in_front], before[is_in_front], atol=2e-2)


def test_rotations_agree_with_scipy():
    rng = np.random.default_rng(3)
    quats = rng.standard_normal((20, 4))
    expected = Rotation.from_quat(quats, scalar_first=True).as_matrix()
    np.testing.assert_allclose(rotations.quat_to_matrix(quats), expected, atol=1e-12)
    vectors = rng.standard_normal((20, 3))
    expected = Rotation.from_rotvec(vectors).as_matrix()
    actual = rotations.rotation_vector_to_matrix(vectors)
    np.testing.assert_allclose(actual, expected, atol=1e-12)
    scales = rng.uniform(0.1, 2, (20, 3))
    R = rotations.quat_to_matrix(quats)
    expected = R @ (np.eye(3) * scales[:, None] ** 2) @ np.swapaxes(R, -1, -2)
    np.testing.assert_allclose(covariances(quats, scales), expected, atol=1e-12)
    zero = jax.grad(lambda v: rotations.rotation_vector_to_matrix(v).sum())(
        jnp.zeros(3)
    )
    assert jnp.isfinite(zero).all()


def test_look_at_straight_down_is_rigid():
    eyes = np.float32([[0, 0, 3], [0, 0, -3]])
    viewmats = paths.look_at(eyes, np.zeros((2, 3)), np.array([0.0, 0.0, 1.0]))
    for viewmat in viewmats:
        np.testing.assert_allclose(
            viewmat[:3, :3] @ viewmat[:3, :3].T, np.eye(3), atol=1e-6
        )
        assert np.linalg.det(viewmat[:3, :3]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 1, 0), (0, 0, -1), (0.6, 0, 0.8)])
def test_orbits_have_one_elevation(up):
    up = np.asarray(up, np.float64)
    K = paths.fov_intrinsics(40.0, 16)
    cameras = paths.orbit_cameras(np.arange(6) * 60.0, np.full(6, 25.0), 2.0, K, 16, up)
    np.testing.assert_allclose(np.linalg.norm(cameras.centers, axis=-1), 2, rtol=1e-6)
    heights = cameras.centers @ up
    np.testing.assert_allclose(heights, 2 * np.sin(np.deg2rad(25)), atol=1e-6)
    # up in the world is up in the image: the y axis of a camera points down
    assert (cameras.viewmats[:, 1, :3] @ up < -0.5).all()


def test_upright_axis_of_an_uneven_rig():
    azimuths, elevations = np.array([-147.0, 34, 86, -11]), np.array([11.0, 31, 20, 14])
    up, K = np.array([0.48, -0.6, 0.64]), paths.fov_intrinsics(50.0, 8)
    rig = paths.orbit_cameras(azimuths, elevations, 2.0, K, 8, up)
    np.testing.assert_allclose(rigid.rig_up(rig), up, atol=1e-6)
    one = jax.tree.map(lambda x: x[:1], rig)
    np.testing.assert_allclose(rigid.rig_up(one), -rig.viewmats[0, 1, :3], atol=1e-6)


def test_a_turntable_has_the_distance_and_elevation_of_the_rig():
    rig = paths.orbit_cameras(
        np.arange(6) * 60.0, np.full(6, 10.0), 1.5, paths.fov_intrinsics(49.1, 64), 64
    )
    table = paths.turntable_cameras(rig, num_frames=12, size=32)
    np.testing.assert_allclose(np.linalg.norm(table.centers, axis=-1), 1.5, rtol=1e-5)
    np.testing.assert_allclose(table.Ks[0], paths.fov_intrinsics(49.1, 32), rtol=1e-5)
    np.testing.assert_allclose(
        table.centers[:, 2], 1.5 * np.sin(np.deg2rad(10)), rtol=1e-4
    )
