"""Figures of a training step that give a collapse away before any evaluation.

Notation: M is the foreground of the targets, alpha > .5; I and GT are the rendered
(clipped to [0, 1]) and the true pictures, A is the rendered alpha. All are one number
for a batch, so that every step can afford them; the truth's own, where it has one,
stands beside them: a batch of dull objects has little contrast.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from facelift_jax.geometry.numerics import Array, safe_divide
from facelift_jax.metrics.image import ALPHA_CUTOFF
from facelift_jax.structs import Gaussians, RenderOutput, Views

WATCH_DEFINITIONS = {
    "contrast": "root mean square distance, over M of all views, of I from its mean "
    "over the view's M: 0 for a blob of one colour",
    "contrast_truth": "the same of GT",
    "color_distance": "root mean square distance, over M, of I from the mean of GT "
    "there; the truth's own is contrast_truth",
    "coverage": "mean of A over the picture",
    "coverage_truth": "mean of the targets' alpha",
    "opacity_p50": "median opacity of a scene's Gaussians, mean over scenes",
    "opacity_p95": "the same of the 95 % quantile",
    "background_error": "mean difference of GT from the render's background where the "
    "targets' alpha is below 1/255",
}
"""Name -> what it is; `_truth` names the truth's own."""


def watch_figures(
    output: RenderOutput,
    gaussians: Gaussians,
    targets: Views,
    background: Float[Array, "3"],
) -> dict[str, Float[Array, ""]]:
    """The figures of `WATCH_DEFINITIONS` of one batch [b t]; nothing is differentiated.

    Without foreground, or without background, its figures are zero.
    """
    output, gaussians = jax.lax.stop_gradient((output, gaussians))
    mask = (jnp.asarray(targets.masks) > 0.5).astype(targets.images.dtype)
    pixels = (-3, -2)

    def mean(values: Float[Array, "b t h w c"]) -> Float[Array, "b t 1 1 c"]:
        total = (values * mask).sum(axis=pixels, keepdims=True)
        return safe_divide(total, mask.sum(axis=pixels, keepdims=True))

    def distance(values, center) -> Float[Array, ""]:
        squares = (mask * (values - center) ** 2).sum()
        return jnp.sqrt(safe_divide(squares, 3 * mask.sum()))

    images, truth = jnp.clip(output.colors, 0, 1), targets.images
    is_empty = (jnp.asarray(targets.masks) < ALPHA_CUTOFF).astype(mask.dtype)
    error = is_empty * jnp.abs(truth - jnp.broadcast_to(background, truth.shape))
    # scene by scene: scenes may lie on several devices
    quantiles = jnp.quantile(gaussians.opacities, jnp.array([0.50, 0.95]), axis=-1)
    return {
        "contrast": distance(images, mean(images)),
        "contrast_truth": distance(truth, mean(truth)),
        "color_distance": distance(images, mean(truth)),
        "coverage": output.alphas.mean(),
        "coverage_truth": targets.masks.mean(),
        "opacity_p50": quantiles[0].mean(),
        "opacity_p95": quantiles[1].mean(),
        "background_error": safe_divide(error.sum(), 3 * is_empty.sum()),
    }
