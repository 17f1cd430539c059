"""Loss terms by name, and their weighted sum.

A term is a pure function of a rendering over [b t], its targets over [b t] and `aux`,
the named intermediates of the model; it returns one number per scene [b]. Values and
gradients are finite for every input, including empty masks.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float

from facelift_jax.geometry.numerics import Array, safe_divide, safe_sqrt
from facelift_jax.losses.network_terms import (
    lpips,
    perceptual,
    pixel_align,
    points_distance,
)
from facelift_jax.metrics.image import require_same_shapes, ssim
from facelift_jax.structs import RenderOutput, Views

Aux = Mapping[str, Any]
MIN_COVERAGE = 0.01  # of a scene's pixels: the smallest divisor in `rgb_mse_fg`
MIN_DEPTH_SPREAD = 1e-3  # relative to the depth; the depths of a view are flat below it

_IMAGE = (-3, -2, -1)
_SCENE = (-4, -3, -2, -1)


def rgb_mse(render: RenderOutput, targets: Views, aux: Aux) -> Float[Array, "b"]:
    """Squared color error, mean over all pixels of all views (LGM)."""
    return jnp.mean((render.colors - targets.images) ** 2, axis=_SCENE)


def rgb_mse_fg(render: RenderOutput, targets: Views, aux: Aux) -> Float[Array, "b"]:
    """`rgb_mse` divided by the share of the scene's pixels that the object covers.

    All pixels count, so that floaters are penalized too, but in units of the object's
    area: a small object has the same weight as one that fills the frame. Coverages
    below `MIN_COVERAGE` are raised to it.
    """
    coverage = jnp.mean(targets.masks, axis=_SCENE)
    return rgb_mse(render, targets, aux) / jnp.maximum(coverage, MIN_COVERAGE)


def alpha_mse(render: RenderOutput, targets: Views, aux: Aux) -> Float[Array, "b"]:
    """Squared silhouette error, mean over all pixels of all views (LGM)."""
    return jnp.mean((render.alphas - targets.masks) ** 2, axis=_SCENE)


def ssim_loss(render: RenderOutput, targets: Views, aux: Aux) -> Float[Array, "b"]:
    """1 - SSIM (`metrics.image.ssim`), mean over views; colors are not clipped."""
    return 1 - ssim(render.colors, targets.images).mean(axis=-1)


def depth_l1(render: RenderOutput, targets: Views, aux: Aux) -> Float[Array, "b"]:
    """Absolute error of camera-z depth in world units, mean over valid pixels.

    A pixel is valid where the target's depth is known (> 0) and its mask is > .5. The
    pixels of all views of a scene have equal weight. Zero for a scene without valid
    pixels.
    """
    depths, is_valid = _target_depths(targets, "depth_l1")
    error = jnp.where(is_valid, jnp.abs(render.depths - depths), 0)
    return safe_divide(error.sum(axis=_SCENE), _count(is_valid, _SCENE, error.dtype))


def depth_scale_invariant(
    render: RenderOutput, targets: Views, aux: Aux
) -> Float[Array, "b"]:
    """1 - Pearson correlation of depths, mean over views, in [0, 2].

    This equals half the mean squared difference of the standardized depths, so it does
    not change when either depth is shifted, or scaled by a positive factor, per view.
    Monocular depth is known up to such a change (Zhu et al. 2024, FSGS, equation 6).
    Pixels count where the target depth is known, the mask is > .5 and the rendered
    alpha is > 0. Views whose target is flat there (standard deviation below
    `MIN_DEPTH_SPREAD` times its root mean square) are left out; a rendered depth that
    is flatter than that is divided by the bound instead.
    """
    depths, is_valid = _target_depths(targets, "depth_scale_invariant")
    is_valid = is_valid & (render.alphas > 0)
    x, spread_x, bound_x = _centered(render.depths, is_valid)
    y, spread_y, bound_y = _centered(depths, is_valid)
    correlation = safe_divide(
        (x * y).sum(axis=_IMAGE), jnp.maximum(spread_x, bound_x) * spread_y
    )
    is_varied = spread_y > bound_y
    loss = jnp.where(is_varied, 1 - correlation, 0).sum(axis=-1)
    return safe_divide(loss, _count(is_varied, (-1,), loss.dtype))


TERMS: dict[str, Callable[[RenderOutput, Views, Aux], Float[Array, "b"]]] = {
    "rgb_mse": rgb_mse,
    "rgb_mse_fg": rgb_mse_fg,
    "alpha_mse": alpha_mse,
    "ssim": ssim_loss,
    "depth_l1": depth_l1,
    "depth_scale_invariant": depth_scale_invariant,
    "lpips": lpips,
    "perceptual": perceptual,
    "points_distance": points_distance,
    "pixel_align": pixel_align,
}
"""Name of a term in a config -> its function."""


def weighted_loss(
    render: RenderOutput,
    targets: Views,
    aux: Aux,
    weights: Mapping[str, float | int | Array],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weighted sum of loss terms, and each term unweighted; both are means over scenes.

    A weight is a number, or a scalar array if it follows a schedule. Terms whose weight
    is the number zero are neither computed nor returned. Terms whose weight is an array
    of value zero are not computed and are returned as zero.

    Raises:
      ValueError: an unknown term, a term whose input is missing, or a rendering whose
        shapes differ from the targets'.
    """
    require_known(weights)
    require_same_shapes(render, targets)
    total = zero = jnp.zeros((), render.colors.dtype)
    terms = {}
    for name, weight in weights.items():
        if isinstance(weight, float | int) and weight == 0:
            continue

        def term(name=name):
            return TERMS[name](render, targets, aux).mean()

        if isinstance(weight, float | int):
            terms[name] = term()
        else:
            terms[name] = lax.cond(weight > 0, term, lambda: zero)
        total = total + weight * terms[name]
    return total, terms


def require_known(weights: Mapping[str, Any]) -> None:
    """Raises ValueError if a weight's name is not the name of a term."""
    unknown = [name for name in weights if name not in TERMS]
    if unknown:
        raise ValueError(
            f"loss: unknown term {', '.join(unknown)}; known terms: {', '.join(TERMS)}"
        )


def _target_depths(
    targets: Views, term: str
) -> tuple[Float[Array, "b t h w 1"], Bool[Array, "b t h w 1"]]:
    """The targets' depths, and the pixels of the object where they are known."""
    if targets.depths is None:
        raise ValueError(
            f"loss.{term}: the targets have no depths; use data with depth maps or set "
            "its weight to 0"
        )
    return targets.depths, (targets.depths > 0) & (targets.masks > 0.5)


def _centered(
    depths: Float[Array, "b t h w 1"], mask: Bool[Array, "b t h w 1"]
) -> tuple[Float[Array, "b t h w 1"], Float[Array, "b t"], Float[Array, "b t"]]:
    """Depths minus their mean over `mask`, the norm of the result, flatness bound."""
    depths = jnp.where(mask, depths, 0)
    count = mask.sum(axis=_IMAGE, keepdims=True).astype(depths.dtype)
    mean = safe_divide(depths.sum(axis=_IMAGE, keepdims=True), count)
    centered = jnp.where(mask, depths - mean, 0)
    bound = MIN_DEPTH_SPREAD * _norm(jax.lax.stop_gradient(depths))
    return centered, _norm(centered), bound


def _norm(values: Float[Array, "b t h w 1"]) -> Float[Array, "b t"]:
    return safe_sqrt((values * values).sum(axis=_IMAGE))


def _count(
    mask: Bool[Array, "..."], axes: tuple[int, ...], dtype: jnp.dtype
) -> Float[Array, "..."]:
    return mask.sum(axis=axes).astype(dtype)
