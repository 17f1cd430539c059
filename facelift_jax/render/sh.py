"""Spherical harmonics to colors."""

import jax.numpy as jnp
from jaxtyping import Float

from facelift_jax.geometry.numerics import SH_C0, Array, normalize

_C1 = 0.4886025119029199  # sqrt(3 / (4 pi))
_C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
_C3 = (
    0.5900435899266435,
    2.890611442640554,
    0.4570457994644658,
    0.3731763325901154,
    1.445305721320277,
)


def sh_basis(
    directions: Float[Array, "*b 3"], num_coefficients: int
) -> Float[Array, "*b k"]:
    """The first k = 1, 4, 9 or 16 real spherical harmonics at unit directions.

    Order and signs are those of 3DGS files: degree by degree, m from -l to l, with the
    Condon-Shortley phase (Sloan, "Efficient Spherical Harmonic Evaluation", 2013).
    """
    x, y, z = jnp.moveaxis(directions, -1, 0)
    basis = [jnp.full_like(x, SH_C0)]
    if num_coefficients >= 4:
        basis += [-_C1 * y, _C1 * z, -_C1 * x]
    xx, yy, zz = x * x, y * y, z * z
    if num_coefficients >= 9:
        basis += [
            _C2[0] * x * y,
            -_C2[0] * y * z,
            _C2[1] * (2 * zz - xx - yy),
            -_C2[0] * x * z,
            _C2[2] * (xx - yy),
        ]
    if num_coefficients >= 16:
        basis += [
            -_C3[0] * y * (3 * xx - yy),
            _C3[1] * x * y * z,
            -_C3[2] * y * (4 * zz - xx - yy),
            _C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            -_C3[2] * x * (4 * zz - xx - yy),
            _C3[4] * z * (xx - yy),
            -_C3[0] * x * (xx - 3 * yy),
        ]
    return jnp.stack(basis, axis=-1)


def sh_colors(
    sh: Float[Array, "n k 3"], means: Float[Array, "n 3"], center: Float[Array, "3"]
) -> Float[Array, "n 3"]:
    """Colors of n Gaussians seen from one camera center: max(0, harmonics + 0.5).

    The direction points from the camera center to the mean, both in the world frame.
    The gradient is zero where the sum is negative, and passes where it is exactly 0.
    """
    if sh.shape[-2] == 1:  # constant color: independent of the direction
        colors = SH_C0 * sh[..., 0, :] + 0.5
    else:
        basis = sh_basis(normalize(means - center[None]), sh.shape[-2])
        colors = jnp.sum(basis[..., None] * sh, axis=-2) + 0.5
    return jnp.where(colors < 0, 0, colors)
