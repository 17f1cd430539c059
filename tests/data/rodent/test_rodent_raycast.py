"""The ray caster against analytic spheres and boxes, and against all triangles."""

import numpy as np
import pytest

from facelift_jax.data.rodent import RodentOptions, make_scene, posed_mesh
from facelift_jax.data.rodent.asset import icosphere, vertex_normals
from facelift_jax.data.rodent.raycast import RayCaster
from facelift_jax.data.rodent.render import cast_pixels
from facelift_jax.data.rodent.rigs import input_rig
from facelift_jax.structs import Cameras

SIZE = 40
# float32 rays over distances of about 3
EXACT = 2e-6
# the 20,480 flat faces of the icosphere are up to 3e-4 inside the sphere;
# viewed at no more than 70 degrees from the normal
FACETED = 1.2e-3


@pytest.fixture(params=[False, True], ids=["even", "uneven"])
def camera(request):
    rig = input_rig(np.random.default_rng(3), SIZE, 50.0, 2.7, request.param)
    return Cameras(rig.viewmats[2], rig.Ks[2], SIZE, SIZE)


def pixel_rays(camera):
    """Camera center and directions with z = 1 in float64, from the pinhole model."""
    rows, cols = np.indices((SIZE, SIZE)).reshape(2, -1)
    viewmat, K = camera.viewmats.astype(float), camera.Ks.astype(float)
    local = np.linalg.inv(K) @ np.stack([cols + 0.5, rows + 0.5, np.ones(SIZE**2)])
    rotation = viewmat[:3, :3]
    return rows, cols, -rotation.T @ viewmat[:3, 3], (rotation.T @ local).T


def cast_depth(vertices, faces, camera):
    rows, cols, _, _ = pixel_rays(camera)
    caster = RayCaster(vertices.astype(np.float32), faces)
    hits, _ = cast_pixels(caster, camera, cols + 0.5, rows + 0.5)
    return np.where(hits.is_hit, hits.distances, 0)


def test_depth_of_a_box_is_exact(camera):
    low, high = np.array([-0.5, -0.3, -0.2]), np.array([0.4, 0.6, 0.5])
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4)]
    quads.append((1, 5, 7, 3))
    faces = [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]
    depth = cast_depth(low + corners * (high - low), np.array(faces), camera)

    _, _, center, directions = pixel_rays(camera)
    sides = np.sort((np.stack([low, high])[:, None] - center) / directions, axis=0)
    enter, leave = sides[0].max(-1), sides[1].min(-1)
    clear = np.abs(leave - enter) > 1e-4  # away from edges, where rounding decides
    expected = np.where(leave > enter, enter, 0)
    assert (expected > 0).sum() > 50
    np.testing.assert_allclose(depth[clear], expected[clear], atol=EXACT)


def test_depth_of_a_sphere(camera):
    center, radius = np.array([0.1, -0.2, 0.15]), 0.5
    points, faces = icosphere(5)
    depth = cast_depth(center + radius * points, faces, camera)

    _, _, eye, directions = pixel_rays(camera)
    a = (directions**2).sum(-1)
    b = directions @ (eye - center)
    root = b**2 - a * (((eye - center) ** 2).sum() - radius**2)
    expected = (-b - np.sqrt(np.maximum(root, 0))) / a
    cosine = np.sqrt(np.maximum(root, 0) / a) / radius
    seen = cosine > np.cos(np.deg2rad(70))
    assert seen.sum() > 50
    np.testing.assert_allclose(depth[seen], expected[seen], atol=FACETED)
    assert not depth[root < 0].any()


def test_depth_and_mask_of_the_animal_match_its_triangles():
    """Every pixel center against every projected triangle, in float64."""
    scene = make_scene(3, RodentOptions(24, views=2))
    vertices, faces = posed_mesh(scene.parameters)
    for view in (1, 7):
        camera = Cameras(scene.cameras.viewmats[view], scene.cameras.Ks[view], 24, 24)
        expected = nearest_triangle_depth(vertices.astype(float), faces, camera)
        depth = scene.depths[view]
        differ = np.abs(depth - expected) > 1e-5
        assert (expected > 0).sum() > 20
        assert differ.sum() <= 1  # one pixel center may be on the outline
        covered = scene.rgba[view, ..., 3]
        assert (depth[covered == 255] > 0).all()
        assert (covered[depth > 0] > 0).all()


def nearest_triangle_depth(vertices, faces, camera):
    local = vertices @ camera.viewmats[:3, :3].T.astype(float) + camera.viewmats[:3, 3]
    pixels = local[:, :2] / local[:, 2:] * camera.Ks[0, 0] + camera.Ks[:2, 2]
    a, b, c = (pixels[faces[:, k]] for k in range(3))
    inverse_z = 1 / local[faces, 2]
    area = cross_2d(b - a, c - a)
    depth = np.zeros((camera.height, camera.width))
    for row, col in np.ndindex(depth.shape):
        p = np.array([col + 0.5, row + 0.5])
        shares = [
            cross_2d(c - b, p - b),
            cross_2d(a - c, p - c),
            cross_2d(b - a, p - a),
        ]
        shares = np.stack(shares, -1) / np.where(area == 0, np.inf, area)[:, None]
        inside = (shares > 0).all(-1)
        if inside.any():
            depth[row, col] = 1 / (shares[inside] * inverse_z[inside]).sum(-1).max()
    return depth


def cross_2d(u, v):
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def test_a_plate_occludes_the_sky_only_from_below():
    plate = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    caster = RayCaster(plate, np.array([[0, 1, 2], [0, 2, 3]]))
    origins = np.array([[0.2, 0.1, 0.5], [0.2, 0.1, -0.5], [3, 0, -0.5]], np.float32)
    up = np.broadcast_to(np.array([0, 0, 1], np.float32), (3, 3))
    assert caster.is_unoccluded(origins, up).tolist() == [True, False, True]


def test_casting_twice_gives_the_same_bits():
    points, faces = icosphere(3)
    camera = input_rig(np.random.default_rng(0), SIZE, 50.0, 2.7, False)
    camera = Cameras(camera.viewmats[0], camera.Ks[0], SIZE, SIZE)
    first = cast_depth(points, faces, camera)
    for _ in range(3):
        np.testing.assert_array_equal(cast_depth(points, faces, camera), first)


def test_welded_vertices_share_a_normal():
    """Two triangles with duplicated corners along their common edge, a texture seam."""
    vertices = np.array(
        [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, -1], [0, 1, 0]], float
    )
    faces = np.array([[0, 1, 2], [3, 4, 5]])
    weld = np.array([0, 1, 2, 1, 3, 2])
    normals = vertex_normals(vertices, faces, weld)
    np.testing.assert_array_equal(normals[1], normals[3])
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)
    np.testing.assert_allclose(normals[0], [0, 0, 1])


def test_icosphere_is_a_closed_outward_sphere():
    points, faces = icosphere(2)
    assert (len(points), len(faces)) == (162, 320)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1)
    corners = points[faces]
    assert (np.linalg.det(corners) > 0).all()
    volume = np.linalg.det(corners).sum() / 6  # slightly less than the ball
    assert volume == pytest.approx(4 / 3 * np.pi, rel=0.04)
