"""Rigs (the cameras of one scene): center, upright axis and changes of world frame.

The only module that converts between axis conventions.
"""

import numpy as np
from jaxtyping import Float

from facelift_jax.geometry.numerics import Array, einsum, namespace
from facelift_jax.structs import Cameras


def opengl_to_opencv_c2w(c2w: Float[Array, "*b 4 4"]) -> Float[Array, "*b 4 4"]:
    """Camera axes (right, up, backward) to (right, down, forward); its own inverse."""
    xp = namespace(c2w)
    signs = xp.asarray([1, -1, -1, 1], dtype=c2w.dtype)
    return c2w * xp.broadcast_to(signs, c2w.shape)


def rig_center(cameras: Cameras) -> Float[Array, "*b 3"]:
    """Point nearest, in the least-squares sense, to the optical axes of a rig [*b v].

    Needs at least two axes that are not parallel.
    """
    return nearest_point(cameras.centers, cameras.viewmats[..., 2, :3])


def nearest_point(
    origins: Float[Array, "*b v 3"], directions: Float[Array, "*b v 3"]
) -> Float[Array, "*b 3"]:
    """Point nearest, in the least-squares sense, to lines with unit directions.

    Solves sum_v (I - d d^T) x = sum_v (I - d d^T) o over directions d and origins o.
    """
    xp = namespace(origins, directions)
    outer = directions[..., :, None] * directions[..., None, :]
    projectors = xp.broadcast_to(xp.eye(3, dtype=outer.dtype), outer.shape) - outer
    right = einsum("...vij,...vj->...i", projectors, origins)
    return xp.linalg.solve(projectors.sum(-3), right[..., None])[..., 0]


def rig_radius(cameras: Cameras, center: Float[Array, "*b 3"]) -> Float[Array, "*b"]:
    """Mean distance of a rig's camera centers [*b v] from `center`, world units."""
    xp = namespace(cameras.viewmats)
    offsets = cameras.centers - center[..., None, :]
    return xp.asarray(xp.linalg.norm(offsets, axis=-1).mean(-1))


def pixel_size(cameras: Cameras) -> Float[Array, "*b"]:
    """Side of a pixel at the center of a rig [*b v], world units, mean over its views.

    Uses the horizontal focal lengths. Needs the same rigs as `rig_center`.
    """
    xp = namespace(cameras.viewmats)
    offsets = cameras.centers - rig_center(cameras)[..., None, :]
    distances = xp.linalg.norm(offsets, axis=-1)
    return xp.asarray((distances / cameras.Ks[..., 0, 0]).mean(-1))


def rig_up(cameras: Cameras) -> Float[np.ndarray, "3"]:
    """Unit upright axis of a rig [v]: the one nearest to perpendicular to all x axes.

    Exact for cameras without roll, at any position. NumPy, float64.
    """
    viewmats = np.asarray(cameras.viewmats, np.float64)
    rights, ups = viewmats[:, 0, :3], -viewmats[:, 1, :3]
    # the x axis of a single view does not determine the axis: the second term does
    up = np.linalg.eigh(rights.T @ rights - 1e-6 * ups.T @ ups)[1][:, 0]
    return up * np.sign(up @ ups.mean(0))


def first_camera_frame(cameras: Cameras, radius: float) -> Float[Array, "*b 4 4"]:
    """World-to-world rotation and shift that moves camera 0 of a rig to (0, 0, radius).

    In the new world the OpenGL axes of camera 0 are the axes of the world: x right,
    y up, looking along -z (the frame that LGM was trained in).
    """
    xp = namespace(cameras.viewmats)
    place = np.diag([1.0, -1.0, -1.0, 1.0])
    place[2, 3] = radius
    viewmats = cameras.viewmats[..., 0, :, :]
    return einsum("ij,...jk->...ik", xp.asarray(place, viewmats.dtype), viewmats)


def transform_world(
    cameras: Cameras,
    rotation: Float[Array, "*b 3 3"],
    translation: Float[Array, "*b 3"],
    scale: Float[Array, "*b"] | float,
) -> Cameras:
    """Cameras of a rig [*b v] after the world moves by x -> scale R x + translation.

    One similarity for the whole rig: depths are multiplied by `scale`, images do not
    change.
    """
    xp = namespace(cameras.viewmats)
    old_shift = cameras.viewmats[..., :3, 3]
    scale = xp.asarray(scale, dtype=old_shift.dtype)
    scale = xp.broadcast_to(scale, old_shift.shape[:-2])[..., None, None]
    new_rotation = einsum(
        "...vij,...kj->...vik", cameras.viewmats[..., :3, :3], rotation
    )
    shift = scale * old_shift - einsum("...vij,...j->...vi", new_rotation, translation)
    top = xp.concatenate([new_rotation, shift[..., None]], axis=-1)
    viewmats = xp.concatenate([top, cameras.viewmats[..., 3:, :]], axis=-2)
    return Cameras(viewmats, cameras.Ks, cameras.width, cameras.height)
