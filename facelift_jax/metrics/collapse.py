"""Metrics of one training step that show a collapse before any evaluation does.

Notation: M is the foreground of the targets (alpha > .5). I is the rendered image,
clipped to [0, 1], and A its alpha; GT is the target image. Each metric is one number
per batch, so that every step can compute it. Where a metric also exists for the ground
truth, it is reported as `<name>_truth`: a batch of uniformly colored objects has
little contrast to begin with.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from facelift_jax.geometry.numerics import Array, safe_divide
from facelift_jax.metrics.image import ALPHA_CUTOFF
from facelift_jax.structs import Gaussians, RenderOutput, Views

MONITOR_DEFINITIONS = {
    "contrast": "root mean square distance, over M of all views, of I from its mean "
    "over the view's M: 0 for a blob of one color",
    "contrast_truth": "the same for GT",
    "color_distance": "root mean square distance, over M, of I from the mean of GT "
    "over M; the value of the ground truth itself is contrast_truth",
    "coverage": "mean of A over the image",
    "coverage_truth": "mean alpha of the targets",
    "opacity_p50": "median opacity of a scene's Gaussians, mean over scenes",
    "opacity_p95": "95 % quantile of the opacities, mean over scenes",
    "background_error": "mean absolute difference between GT and the background of the "
    "renderer, where the alpha of the targets is below 1/255",
}
"""Metric name -> definition."""


def monitor_metrics(
    output: RenderOutput,
    gaussians: Gaussians,
    targets: Views,
    background: Float[Array, "3"],
) -> dict[str, Float[Array, ""]]:
    """The metrics of `MONITOR_DEFINITIONS` of one batch [b t], without gradients.

    Foreground metrics are zero where the targets have no foreground pixel, and
    `background_error` is zero where they have no background pixel.
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
    # per scene: the scenes of a batch may be on several devices
    quantiles = jnp.quantile(gaussians.opacities, jnp.array([0.50, 0.95]), axis=-1)
    return {
        "contrast": distance(images, mean(images)),
        "contrast_truth": distance(truth, mean(truth)),
        "color_distance": distance(images, mean(truth)),
        "coverage": jnp.mean(output.alphas),
        "coverage_truth": jnp.mean(targets.masks),
        "opacity_p50": quantiles[0].mean(),
        "opacity_p95": quantiles[1].mean(),
        "background_error": safe_divide(error.sum(), 3 * is_empty.sum()),
    }
