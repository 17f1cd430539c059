"""Reference rasterizer: every pixel against every Gaussian, front to back.

It defines the correct image: no tile lists, no hand-written derivative. The scan over
depth-sorted Gaussians runs in chunks that are rematerialized in the backward pass, so
differentiation keeps (chunk length + number of chunks) images instead of one per
Gaussian.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from facelift_jax.render.batching import match_varying_axes
from facelift_jax.render.config import RenderConfig
from facelift_jax.render.constants import ALPHA_MIN, TRANSMITTANCE_MIN
from facelift_jax.render.splats import Pixels, Splats


def rasterize(splats: Splats, width: int, height: int, config: RenderConfig) -> Pixels:
    """Rasterizes the images of splats [i n ...], one after the other."""
    return lax.map(lambda one: _rasterize_image(one, width, height, config), splats)


def _rasterize_image(splats, width, height, config):
    order = jnp.argsort(jnp.where(splats.is_visible, splats.depths, jnp.inf))
    sources = (splats.means2d, splats.conics, splats.opacities, splats.colors)
    chunks = _in_chunks([field[order] for field in (*sources, splats.depths)])
    dtype = splats.means2d.dtype
    columns = jnp.arange(width, dtype=dtype)[None] + 0.5
    rows = jnp.arange(height, dtype=dtype)[:, None] + 0.5

    def blend(state, gaussian):
        return _blend(state, gaussian, columns, rows, config.alpha_max), None

    @jax.checkpoint
    def blend_chunk(state, chunk):
        return lax.scan(blend, state, chunk)

    colors = jnp.zeros((height, width, 3), dtype)
    depths = jnp.zeros((height, width), dtype)
    start = (colors, depths, jnp.ones_like(depths), jnp.zeros(depths.shape, bool))
    start = match_varying_axes(start, splats.means2d)
    (colors, depths, transmittances, _), _ = lax.scan(blend_chunk, start, chunks)
    return Pixels(colors, depths, transmittances, jnp.zeros((), jnp.int32))


def _in_chunks(fields):
    """[n ...] -> [num_chunks, length, ...], both about sqrt(n), padded with zeros."""
    n = fields[0].shape[0]
    length = max(1, math.isqrt(n))
    num_chunks = -(-n // length)

    def split(field):
        padding = [(0, num_chunks * length - n)] + [(0, 0)] * (field.ndim - 1)
        padded = jnp.pad(field, padding)
        return padded.reshape(num_chunks, length, *field.shape[1:])

    return jax.tree.map(split, tuple(fields))


def _blend(state, gaussian, columns, rows, alpha_max):
    """Blends one Gaussian into all pixels; skipping and ending have no gradient."""
    total, depth, transmittance, is_done = state
    (u, v), (A, B, C), opacity, color, z = gaussian
    dx, dy = u - columns, v - rows
    exponent = 0.5 * (A * dx * dx + C * dy * dy) + B * dx * dy
    is_valid = exponent >= 0
    alpha = opacity * jnp.exp(-jnp.where(is_valid, exponent, 0))
    alpha = jnp.where(alpha > alpha_max, alpha_max, alpha)
    is_seen = is_valid & (alpha >= ALPHA_MIN)
    after = transmittance * (1 - alpha)
    is_done |= is_seen & (after <= TRANSMITTANCE_MIN)
    is_blended = is_seen & ~is_done
    weight = jnp.where(is_blended, transmittance * alpha, 0)
    return (
        total + weight[..., None] * color[None, None],
        depth + weight * z,
        jnp.where(is_blended, after, transmittance),
        is_done,
    )
