"""Projection of 3D Gaussians to the image plane (EWA splatting).

Zwicker et al., "EWA Volume Splatting" (2001), as used by Kerbl et al. (2023). Plain
JAX, differentiated by JAX. Small matrix products are written out by component: XLA
fuses them into one loop over Gaussians, and they keep full float32 precision.
"""

import jax
import jax.numpy as jnp

from facelift_jax.geometry.numerics import safe_sqrt
from facelift_jax.geometry.rotations import quat_to_matrix
from facelift_jax.render.config import RenderConfig
from facelift_jax.render.constants import (
    ALPHA_MIN,
    AXIS_LIMIT,
    FRUSTUM_MARGIN,
    MEANS2D_LIMIT,
    ROUNDING_SLACK,
)
from facelift_jax.render.sh import sh_colors
from facelift_jax.render.splats import Splats
from facelift_jax.structs import Cameras, Gaussians


def project(gaussians: Gaussians, camera: Cameras, config: RenderConfig) -> Splats:
    """Projects the n Gaussians of one scene into one camera (no leading axes).

    A Gaussian is culled if its camera z is outside [near, far], its image-plane
    covariance is not finite and positive, its mean is beyond MEANS2D_LIMIT, or its
    opacity is below ALPHA_MIN. Culled Gaussians get zero gradients.
    """
    V, t, K = camera.viewmats[:3, :3], camera.viewmats[:3, 3], camera.Ks
    means, opacities = gaussians.means, gaussians.opacities
    x, y, z = (sum(V[i, j] * means[:, j] for j in range(3)) + t[i] for i in range(3))
    in_range = (z >= config.near) & (z <= config.far)
    x, y = (jnp.where(in_range, value, 0) for value in (x, y))
    z = jnp.where(in_range, z, 1)

    factors = _image_plane_factors(gaussians, camera, (x, y, z))
    (a, b, c), det, det_sharp = _blurred_covariance(factors, config.eps2d)
    if config.antialiased:
        opacities = opacities * safe_sqrt(det_sharp / jnp.where(det > 0, det, 1))

    u = K[0, 0] * (x / z) + K[0, 2]
    v = K[1, 1] * (y / z) + K[1, 2]
    is_visible = in_range & (det > 0) & jnp.isfinite(a + c) & (opacities >= ALPHA_MIN)
    is_visible &= (jnp.abs(u) < MEANS2D_LIMIT) & (jnp.abs(v) < MEANS2D_LIMIT)
    levels, radii = _footprint(opacities, (a, c, det), is_visible)
    a, c, det = (jnp.where(is_visible, value, 1) for value in (a, c, det))
    b, u, v = (jnp.where(is_visible, value, 0) for value in (b, u, v))
    return Splats(
        means2d=jnp.stack([u, v], axis=-1),
        conics=jnp.stack([c / det, -b / det, a / det], axis=-1),
        opacities=jnp.where(is_visible, opacities, 0),
        colors=sh_colors(gaussians.sh, means, camera.centers),
        depths=jnp.where(is_visible, z, 0),
        radii=radii,
        levels=levels,
        is_visible=is_visible,
    )


def _image_plane_factors(gaussians, camera, point):
    """M = J V R diag(s), two rows of three [n] components; covariance = M M^T."""
    x, y, z = point
    V, K, scales = camera.viewmats[:3, :3], camera.Ks, gaussians.scales
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    ratio_x = _clamp_ratio(x / z, cx, fx, camera.width)
    ratio_y = _clamp_ratio(y / z, cy, fy, camera.height)
    R = quat_to_matrix(gaussians.quats)
    rotated = [
        [sum(V[i, k] * R[:, k, j] for k in range(3)) for j in range(3)]
        for i in range(3)
    ]
    row_x = [fx / z * (rotated[0][j] - ratio_x * rotated[2][j]) for j in range(3)]
    row_y = [fy / z * (rotated[1][j] - ratio_y * rotated[2][j]) for j in range(3)]
    row_x = [row_x[j] * scales[:, j] for j in range(3)]
    row_y = [row_y[j] * scales[:, j] for j in range(3)]
    lengths = [
        jnp.maximum(jnp.abs(p), jnp.abs(q)) for p, q in zip(row_x, row_y, strict=True)
    ]
    shrink = [
        jax.lax.stop_gradient(AXIS_LIMIT / jnp.maximum(length, AXIS_LIMIT))
        for length in lengths
    ]
    return (
        [row_x[j] * shrink[j] for j in range(3)],
        [row_y[j] * shrink[j] for j in range(3)],
    )


def _clamp_ratio(ratio, principal, focal, size):
    """x / z clamped to the image plus a margin, which bounds the Jacobian."""
    margin = FRUSTUM_MARGIN * 0.5 * size / focal
    lowest = -(principal / focal + margin)
    return jnp.clip(ratio, lowest, (size - principal) / focal + margin)


def _blurred_covariance(factors, eps2d):
    """(a, b, c) of M M^T + eps I, its determinant, and the determinant of M M^T.

    det(M M^T) is the sum of the squared 2x2 minors of M (Cauchy-Binet). It is never
    negative and avoids the cancellation in a c - b^2.
    """
    p, q = factors
    xx, xy, yy = (
        sum(m * n for m, n in zip(*rows, strict=True))
        for rows in ((p, p), (p, q), (q, q))
    )
    minors = [p[i] * q[j] - p[j] * q[i] for i, j in ((0, 1), (0, 2), (1, 2))]
    det_sharp = sum(m * m for m in minors)
    det = det_sharp + eps2d * (xx + yy) + eps2d * eps2d
    return (xx + eps2d, xy, yy + eps2d), det, det_sharp


def _footprint(opacities, covariance, is_visible):
    """Exponent level and box outside which alpha < ALPHA_MIN, without gradients.

    The exponent of a thin ellipse is a small difference of large terms. Its float32
    rounding grows with a c / det; the slack covers it, so that lists miss no pixel.
    """
    a, c, det = (jax.lax.stop_gradient(value) for value in covariance)
    opacities = jax.lax.stop_gradient(opacities)
    visible_opacities = jnp.where(is_visible, opacities, 1)
    thinness = jnp.where(is_visible, a * (c / det), 1)
    levels = jnp.log(visible_opacities / ALPHA_MIN)
    levels = levels * (1 + ROUNDING_SLACK * thinness) + 1e-5
    levels = jnp.where(is_visible, levels, 0)
    radii = jnp.stack([jnp.sqrt(2 * levels * a), jnp.sqrt(2 * levels * c)], axis=-1)
    return levels, jnp.where(is_visible[:, None], radii, 0)
