"""Loss terms by name, and their weighted sum.

A term is a pure function of a rendering over [b t], its targets and the model's named
intermediates; it answers one number per scene [b]. Values and gradients are finite for
every input, empty masks included.
"""

import math
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
Weight = float | int | Array | tuple[float | int, ...]

MIN_COVERAGE = 0.01  # of a scene's pictures: what `rgb_mse_fg` divides by at least
MIN_DEPTH_SPREAD = 1e-3  # of the depth itself: below, a view's depths are flat

NEVER = 2**31 - 1  # a step that no run reaches

_PICTURE = (-3, -2, -1)
_SCENE = (-4, -3, -2, -1)


def rgb_mse(render: RenderOutput, targets: Views, aux: Aux) -> Float[Array, "b"]:
    """Squared colour error, mean over all pixels of all views (LGM)."""
    return jnp.mean((render.colors - targets.images) ** 2, axis=_SCENE)


def rgb_mse_fg(render: RenderOutput, targets: Views, aux: Aux) -> Float[Array, "b"]:
    """`rgb_mse` divided by the share of the scene's pixels that the object covers.

    The error of all pixels, so that floaters cost what they cost, in units of the
    object's area: a small object weighs as much as one that fills the frame. Coverages
    under `MIN_COVERAGE` count as that.
    """
    coverage = jnp.mean(targets.masks, axis=_SCENE)
    return rgb_mse(render, targets, aux) / jnp.maximum(coverage, MIN_COVERAGE)


def alpha_mse(render: RenderOutput, targets: Views, aux: Aux) -> Float[Array, "b"]:
    """Squared silhouette error, mean over all pixels of all views (LGM)."""
    return jnp.mean((render.alphas - targets.masks) ** 2, axis=_SCENE)


def ssim_loss(render: RenderOutput, targets: Views, aux: Aux) -> Float[Array, "b"]:
    """1 - SSIM (`image_metrics.ssim`), mean over views; colours are not clipped."""
    return 1 - ssim(render.colors, targets.images).mean(axis=-1)


def depth_l1(render: RenderOutput, targets: Views, aux: Aux) -> Float[Array, "b"]:
    """Absolute error of camera-z depth in world units, mean over valid pixels.

    Valid: the target's depth is known (> 0) and its mask > .5; pixels of all views of a
    scene count alike. Zero for a scene without valid pixels.
    """
    depths, is_valid = _target_depths(targets, "depth_l1")
    error = jnp.where(is_valid, jnp.abs(render.depths - depths), 0)
    return safe_divide(error.sum(axis=_SCENE), _count(is_valid, _SCENE, error.dtype))


def depth_scale_invariant(
    render: RenderOutput, targets: Views, aux: Aux
) -> Float[Array, "b"]:
    """1 - Pearson correlation of depths, mean over views, in [0, 2].

    Equals half the mean squared difference of the standardised depths, so it does not
    change when either depth is scaled by a positive factor or shifted, view by view (as
    pseudo depth is known; Zhu et al. 2024, FSGS, equation 6). Over pixels with known
    target depth, mask > .5 and something rendered (alpha > 0). Views whose target is
    flat there (standard deviation under `MIN_DEPTH_SPREAD` of its root mean square) are
    left out; a rendered depth flatter than that is divided by the bound instead.
    """
    depths, is_valid = _target_depths(targets, "depth_scale_invariant")
    is_valid = is_valid & (render.alphas > 0)
    x, spread_x, bound_x = _centered(render.depths, is_valid)
    y, spread_y, bound_y = _centered(depths, is_valid)
    correlation = safe_divide(
        (x * y).sum(axis=_PICTURE), jnp.maximum(spread_x, bound_x) * spread_y
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
"""Name of each term in a config -> its function."""


def weighted_loss(
    render: RenderOutput,
    targets: Views,
    aux: Aux,
    weights: Mapping[str, float | int | Array],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weighted sum of loss terms and each term unweighted, both as means over scenes.

    A weight is a number, or a scalar array where it follows a schedule. Terms whose
    weight is the number zero are not computed and not returned; those whose array is
    zero are not computed either, and return zero.

    Raises:
      ValueError: an unknown term, a term without what it needs, or a rendering of other
        views than the targets.
    """
    _require_known(weights)
    require_same_shapes(render, targets)
    total = nothing = jnp.zeros((), render.colors.dtype)
    terms = {}
    for name, weight in weights.items():
        if _is_zero(weight):
            continue

        def term(name=name):
            return TERMS[name](render, targets, aux).mean()

        if isinstance(weight, float | int):
            terms[name] = term()
        else:
            terms[name] = lax.cond(weight > 0, term, lambda: nothing)
        total = total + weight * terms[name]
    return total, terms


def weights_at(
    weights: Mapping[str, Weight], step: Array
) -> dict[str, float | int | Array]:
    """The weights in force at `step`, an int32 scalar, counted from zero.

    (weight, start) and (weight, start, stop) are zero before `start` and from `stop`;
    (weight,), what a flag makes of a number in a schedule's place, is the number.
    """

    def at_step(weight):
        if not isinstance(weight, tuple):
            return weight
        value, *steps = weight
        if value == 0 or not steps:
            return value
        start, stop = (*steps, NEVER)[:2]
        return jnp.where((step >= start) & (step < stop), jnp.float32(value), 0)

    return {name: at_step(weight) for name, weight in weights.items()}


def validate_weights(weights: Mapping[str, Any]) -> None:
    """Refuses, before anything is built, weights that `weights_at` cannot use.

    Raises:
      ValueError: an unknown term; a weight that is no finite number >= 0, alone or with
        its first and last step; all zero.
    """
    _require_known(weights)
    for name, weight in weights.items():
        parts: tuple = weight if isinstance(weight, tuple) and weight else (weight,)
        value, steps = parts[0], list(parts[1:])
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0:
            raise ValueError(
                f"loss.{name}: expected a finite weight >= 0, found {value!r}"
            )
        is_ordered = all(isinstance(x, int) for x in steps) and steps == sorted(steps)
        if len(steps) > 2 or not is_ordered or min(steps, default=0) < 0:
            raise ValueError(
                f"loss.{name}: expected (weight, first step) or (weight, first step, "
                f"step to stop at), found {weight!r}"
            )
    if not any(is_used(weight) for weight in weights.values()):
        raise ValueError(
            f"loss: no term has a weight above zero; choose from {', '.join(TERMS)}"
        )


def describe_weights(weights: Mapping[str, Weight]) -> str:
    """The terms that are computed with their weights, and those that are not."""
    used = [f"{name} {weight}" for name, weight in weights.items() if is_used(weight)]
    unused = [name for name, weight in weights.items() if not is_used(weight)]
    return f"{', '.join(used)}; of weight 0: {', '.join(unused) or 'none'}"


def is_used(weight: Weight) -> bool:
    """Whether a term of this weight is ever computed."""
    return not _is_zero(weight[0] if isinstance(weight, tuple) else weight)


def _is_zero(weight: float | int | Array) -> bool:
    return isinstance(weight, float | int) and weight == 0


def _require_known(weights: Mapping[str, Any]) -> None:
    unknown = [name for name in weights if name not in TERMS]
    if unknown:
        raise ValueError(
            f"loss: unknown term {', '.join(unknown)}; known are {', '.join(TERMS)}"
        )


def _target_depths(
    targets: Views, term: str
) -> tuple[Float[Array, "b t h w 1"], Bool[Array, "b t h w 1"]]:
    """The targets' depths and where they are known on the object."""
    if targets.depths is None:
        raise ValueError(
            f"loss.{term}: the targets have no depths; use data with depth maps or set "
            "its weight to 0"
        )
    return targets.depths, (targets.depths > 0) & (targets.masks > 0.5)


def _centered(
    depths: Float[Array, "b t h w 1"], mask: Bool[Array, "b t h w 1"]
) -> tuple[Float[Array, "b t h w 1"], Float[Array, "b t"], Float[Array, "b t"]]:
    """Depths minus their mean over `mask`, the norm of that, and the flatness bound."""
    depths = jnp.where(mask, depths, 0)
    count = mask.sum(axis=_PICTURE, keepdims=True).astype(depths.dtype)
    mean = safe_divide(depths.sum(axis=_PICTURE, keepdims=True), count)
    centered = jnp.where(mask, depths - mean, 0)
    bound = MIN_DEPTH_SPREAD * _norm(jax.lax.stop_gradient(depths))
    return centered, _norm(centered), bound


def _norm(values: Float[Array, "b t h w 1"]) -> Float[Array, "b t"]:
    return safe_sqrt((values * values).sum(axis=_PICTURE))


def _count(
    mask: Bool[Array, "..."], axes: tuple[int, ...], dtype: jnp.dtype
) -> Float[Array, "..."]:
    return mask.sum(axis=axes).astype(dtype)
