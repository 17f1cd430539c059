"""Quaternions, rotation vectors and rigid transforms."""

from jaxtyping import Float

from facelift_jax.geometry.numerics import (
    Array,
    einsum,
    namespace,
    normalize,
    safe_sqrt,
)


def quat_to_matrix(quats: Float[Array, "*b 4"]) -> Float[Array, "*b 3 3"]:
    """Rotation matrices of quaternions (w, x, y, z) of any length.

    A zero quaternion gives the identity, with finite gradients.
    """
    xp = namespace(quats)
    w, x, y, z = xp.moveaxis(normalize(quats), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def rotation_vector_to_matrix(
    vectors: Float[Array, "*b 3"],
) -> Float[Array, "*b 3 3"]:
    """Rotation matrices from axis times angle in radians (Rodrigues' formula)."""
    xp = namespace(vectors)
    angle = safe_sqrt(xp.sum(vectors * vectors, axis=-1))
    x, y, z = xp.moveaxis(normalize(vectors), -1, 0)
    zero = xp.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    cross = xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)
    sin, cos = xp.sin(angle)[..., None, None], xp.cos(angle)[..., None, None]
    eye = xp.broadcast_to(xp.eye(3, dtype=vectors.dtype), cross.shape)
    return eye + sin * cross + (1 - cos) * einsum("...ij,...jk->...ik", cross, cross)


def invert_rigid(transform: Float[Array, "*b 4 4"]) -> Float[Array, "*b 4 4"]:
    """Inverse of rigid transforms: world to camera <-> camera to world."""
    xp = namespace(transform)
    rotation = xp.swapaxes(transform[..., :3, :3], -1, -2)
    translation = -einsum("...ij,...j->...i", rotation, transform[..., :3, 3])
    top = xp.concatenate([rotation, translation[..., None]], axis=-1)
    return xp.concatenate([top, transform[..., 3:, :]], axis=-2)
