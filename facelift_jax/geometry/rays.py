"""Rays through pixel centers, the two ray encodings, projection and unprojection."""

from jaxtyping import Float

from facelift_jax.geometry.numerics import Array, einsum, namespace, normalize
from facelift_jax.structs import Cameras


def pixel_directions(cameras: Cameras) -> Float[Array, "*b h w 3"]:
    """Camera-frame directions through the pixel centers, scaled to z = 1."""
    xp = namespace(cameras.Ks)
    Ks = cameras.Ks[..., None, None, :, :]
    shape = (*cameras.Ks.shape[:-2], cameras.height, cameras.width)
    cols = xp.broadcast_to(xp.arange(cameras.width, dtype=Ks.dtype) + 0.5, shape)
    rows = xp.arange(cameras.height, dtype=Ks.dtype)[:, None] + 0.5
    rows = xp.broadcast_to(rows, shape)
    x = (cols - Ks[..., 0, 2]) / Ks[..., 0, 0]
    y = (rows - Ks[..., 1, 2]) / Ks[..., 1, 1]
    return xp.stack([x, y, xp.ones_like(x)], axis=-1)


def ray_directions(cameras: Cameras) -> Float[Array, "*b h w 3"]:
    """Unit world-frame directions through the pixel centers."""
    rotations = cameras.viewmats[..., :3, :3]
    directions = normalize(pixel_directions(cameras))
    return einsum("...ji,...hwj->...hwi", rotations, directions)


def directions_through(
    cameras: Cameras, pixels: Float[Array, "*b n 2"]
) -> Float[Array, "*b n 3"]:
    """Unit world-frame directions through pixel coordinates (column, row)."""
    xp = namespace(cameras.Ks, pixels)
    focal = cameras.Ks[..., None, (0, 1), (0, 1)]
    local = (pixels - cameras.Ks[..., None, :2, 2]) / focal
    local = xp.concatenate([local, xp.ones_like(local[..., :1])], axis=-1)
    return normalize(einsum("...ji,...nj->...ni", cameras.viewmats[..., :3, :3], local))


def plucker_rays(cameras: Cameras) -> Float[Array, "*b h w 6"]:
    """Moment (origin x direction) first, unit direction second, world frame (LGM)."""
    xp = namespace(cameras.Ks)
    directions = ray_directions(cameras)
    origins = xp.broadcast_to(cameras.centers[..., None, None, :], directions.shape)
    return xp.concatenate([xp.cross(origins, directions), directions], axis=-1)


def nearest_point_rays(cameras: Cameras) -> Float[Array, "*b h w 6"]:
    """Unit direction first, then the ray's point nearest the world origin (GS-LRM)."""
    xp = namespace(cameras.Ks)
    directions = ray_directions(cameras)
    origins = cameras.centers[..., None, None, :]
    along = (origins * directions).sum(-1, keepdims=True)
    return xp.concatenate([directions, origins - along * directions], axis=-1)


def unproject(
    cameras: Cameras, depths: Float[Array, "*b h w 1"]
) -> Float[Array, "*b h w 3"]:
    """World points at the given camera-z depths on the rays through pixel centers."""
    c2w = cameras.c2w
    points = pixel_directions(cameras) * depths
    points = einsum("...ij,...hwj->...hwi", c2w[..., :3, :3], points)
    return points + c2w[..., None, None, :3, 3]


def project(
    cameras: Cameras, points: Float[Array, "*b n 3"]
) -> tuple[Float[Array, "*b n 2"], Float[Array, "*b n"]]:
    """Pixel coordinates (column, row) and camera-z depths of world points.

    Points on the camera plane (depth 0) give infinities: cull by depth.
    """
    viewmats = cameras.viewmats
    local = einsum("...ij,...nj->...ni", viewmats[..., :3, :3], points)
    local = local + viewmats[..., None, :3, 3]
    depths = local[..., 2]
    focal = cameras.Ks[..., None, (0, 1), (0, 1)]
    center = cameras.Ks[..., None, :2, 2]
    return focal * local[..., :2] / depths[..., None] + center, depths
