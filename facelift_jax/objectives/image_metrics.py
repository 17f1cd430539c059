"""Figures that compare rendered views with ground truth, view by view.

Notation: M is the foreground, ground-truth alpha > .5; I and GT are the predicted
(clipped to [0, 1]) and true pictures; A is the predicted alpha; D and D* are predicted
and true camera-z depth; R is the radius of the object (`object_radius`).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from facelift_jax.geometry.rays import unproject
from facelift_jax.numerics import Array, einsum, safe_divide
from facelift_jax.objectives.lpips import lpips_distance
from facelift_jax.structs import RenderOutput, Views

DEFINITIONS = {
    "psnr_fg": "-10 log10 of the mean squared error over M, dB",
    "psnr_box": "the same over the bounding box of M with sides made 10 % longer, dB",
    "psnr_full": "the same over the whole picture, dB",
    "ssim": "structural similarity, 11x11 Gaussian window of sigma 1.5, mean over all "
    "windows inside the picture and over channels",
    "iou": "intersection over union of A > .5 and M",
    "depth_within_05R": "share of |D - D*| < .05 R where A > .5, M and D* is known",
    "absrel": "mean |D - D*| / D* where A > .5, M and D* is known",
    "coverage": "share of the picture that M covers",
    "lpips_vgg16": "LPIPS by VGG-16, v0.1 heads, at the picture's own size; only where "
    "its weights are given",
}
"""Name of each metric -> what it is, for reports."""

METRICS = tuple(DEFINITIONS)

MIN_SQUARED_ERROR = 1e-10  # a perfect picture reads 100 dB instead of infinity
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # Wang et al. 2004, section III-B
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # for values in [0, 1]; ibid., equation 13
RADIUS_QUANTILE = 0.99  # of foreground points: one stray depth pixel decides nothing


def view_metrics(
    render: RenderOutput,
    targets: Views,
    radius: Float[Array, "b"],
    lpips: Mapping[str, Any] | None = None,
) -> dict[str, Float[Array, "b t"]]:
    """Every metric of `DEFINITIONS` for each of the views [b t].

    LPIPS only with its parameters `lpips`, as `load_lpips` gives them.

    NaN marks what a view does not define: foreground figures of a view without
    foreground, depth figures without depth, without a radius or where A > .5 and M have
    no common pixel. `reduce_metrics` counts these.
    """
    require_same_shapes(render, targets)
    images = jnp.clip(render.colors, 0, 1)
    alphas = jnp.asarray(render.alphas) > 0.5
    mask = jnp.asarray(targets.masks) > 0.5
    squared_error = jnp.mean((images - targets.images) ** 2, axis=-1, keepdims=True)
    everything = jnp.ones_like(mask)
    metrics = {
        "psnr_fg": _psnr(squared_error, mask),
        "psnr_box": _psnr(squared_error, _grown_box(mask)),
        "psnr_full": _psnr(squared_error, everything),
        "ssim": ssim(images, targets.images),
        "iou": jnp.where(
            jnp.any(mask, axis=(-3, -2, -1)),
            _ratio(alphas & mask, alphas | mask, squared_error.dtype),
            jnp.nan,
        ),
        "coverage": _ratio(mask, everything, squared_error.dtype),
    }
    if targets.depths is None:
        undefined = jnp.full_like(metrics["ssim"], jnp.nan)
        depth_metrics = {"depth_within_05R": undefined, "absrel": undefined}
    else:
        is_known = alphas & mask & (targets.depths > 0)
        error = jnp.abs(render.depths - targets.depths)
        bound = 0.05 * jnp.asarray(radius)[:, None, None, None, None]
        within = _mean((error < bound).astype(error.dtype), is_known)
        depth_metrics = {
            "depth_within_05R": jnp.where(jnp.isnan(radius)[:, None], jnp.nan, within),
            "absrel": _mean(safe_divide(error, targets.depths), is_known),
        }
    metrics |= depth_metrics
    if lpips is not None:
        truth = jnp.asarray(targets.images)
        metrics["lpips_vgg16"] = lpips_distance(lpips, images, truth)
    return {name: metrics[name] for name in METRICS if name in metrics}


def ssim(
    images: Float[Array, "*b h w c"], targets: Float[Array, "*b h w c"]
) -> Float[Array, "*b"]:
    """Structural similarity (Wang et al. 2004, equation 13) of pictures in [0, 1].

    Mean over channels and over the windows that lie wholly inside the picture.

    Raises:
      ValueError: pictures smaller than the window.
    """
    height, width = images.shape[-3:-1]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"ssim: pictures of {width} x {height} px are smaller than its "
            f"{SSIM_WINDOW} x {SSIM_WINDOW} window"
        )
    mean_x, mean_y = _window_mean(images), _window_mean(targets)
    variance_x = _window_mean(images * images) - mean_x * mean_x
    variance_y = _window_mean(targets * targets) - mean_y * mean_y
    covariance = _window_mean(images * targets) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + SSIM_C1) * (2 * covariance + SSIM_C2)
    similarity /= (mean_x * mean_x + mean_y * mean_y + SSIM_C1) * (
        variance_x + variance_y + SSIM_C2
    )
    return similarity.mean(axis=(-3, -2, -1))


def object_radius(targets: Views) -> Float[Array, "b"]:
    """Radius R of each scene's object in world units, from true depth and masks.

    The foreground pixels with known depth of all views [b t] are lifted to world
    points; R is the .99 quantile of their distances from their centroid. NaN where a
    scene has no such pixel, or no depths: only depth figures use R, and they need the
    same pixels.
    """
    num_scenes = targets.images.shape[0]
    if targets.depths is None:
        return jnp.full((num_scenes,), jnp.nan, jnp.float32)
    depths = jnp.asarray(targets.depths)
    points = jnp.asarray(unproject(targets.cameras, targets.depths))
    points = points.reshape(num_scenes, -1, 3)
    is_known = (depths > 0) & (jnp.asarray(targets.masks) > 0.5)
    is_known = is_known.reshape(num_scenes, -1)
    count = is_known.sum(axis=-1)[:, None].astype(points.dtype)
    total = jnp.where(is_known[..., None], points, 0).sum(axis=1)
    distances = jnp.linalg.norm(points - (total / count)[:, None], axis=-1)
    return jnp.nanquantile(
        jnp.where(is_known, distances, jnp.nan), RADIUS_QUANTILE, axis=-1
    )


def reduce_metrics(
    per_view: Mapping[str, Float[np.ndarray, "b t"]], num_inputs: int
) -> tuple[dict[str, float], dict[str, int]]:
    """Means over views, then over scenes, of the inputs and of held-out views apart.

    The first `num_inputs` views of every scene are its input cameras, the rest were
    never given as input. Returns two dictionaries with keys `inputs/<metric>` and
    `held_out/<metric>`: the figures (and `gap` = inputs/psnr_fg - held_out/psnr_fg, dB)
    and the number of views left out of each because the metric is undefined there. A
    figure that no view defines is NaN. A side without views has no keys.
    """
    sides = {"inputs": slice(None, num_inputs), "held_out": slice(num_inputs, None)}
    figures: dict[str, float] = {}
    undefined: dict[str, int] = {}
    for side, views in sides.items():
        for name, values in per_view.items():
            values = np.asarray(values, np.float64)[:, views]
            if values.size == 0:
                continue
            is_undefined = np.isnan(values)
            undefined[f"{side}/{name}"] = int(is_undefined.sum())
            scenes = [row[~np.isnan(row)] for row in values]
            means = [row.mean() for row in scenes if row.size]
            figures[f"{side}/{name}"] = float(np.mean(means)) if means else float("nan")
    if {"inputs/psnr_fg", "held_out/psnr_fg"} <= figures.keys():
        figures["gap"] = figures["inputs/psnr_fg"] - figures["held_out/psnr_fg"]
    return figures, undefined


def require_same_shapes(render: RenderOutput, targets: Views) -> None:
    """Refuses a rendering that belongs to other views than `targets`.

    Raises:
      ValueError: names the first pair of arrays whose shapes differ.
    """
    pairs = [("colors", "images"), ("alphas", "masks")]
    if targets.depths is not None:
        pairs.append(("depths", "depths"))
    for ours, theirs in pairs:
        found, expected = getattr(render, ours).shape, getattr(targets, theirs).shape
        if found != expected:
            raise ValueError(
                f"render.{ours} is {found} but targets.{theirs} is {expected}: render "
                "with the targets' own cameras"
            )


def _window_mean(images: Float[Array, "*b h w c"]) -> Float[Array, "*b y x c"]:
    """Gaussian-window means at the positions where the window fits.

    The separable convolution is written as two products with banded matrices: ten times
    faster than a one-channel convolution on CPUs, and a matrix unit's work elsewhere.
    """
    height, width = images.shape[-3:-1]
    rows, cols = (jnp.asarray(_band(n), images.dtype) for n in (height, width))
    images = einsum("yh,...hwc->...ywc", rows, images)
    return einsum("xw,...ywc->...yxc", cols, images)


def _band(size: int) -> Float[np.ndarray, "m n"]:
    """[size - 10, size] matrix whose row i holds the window's weights from column i."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    starts = np.arange(size - SSIM_WINDOW + 1)
    band = np.zeros((len(starts), size))
    band[starts[:, None], starts[:, None] + np.arange(SSIM_WINDOW)] = (
        weights / weights.sum()
    )
    return band


def _psnr(
    squared_error: Float[Array, "b t h w 1"], mask: Bool[Array, "b t h w 1"]
) -> Float[Array, "b t"]:
    mean = _mean(squared_error, mask)
    return -10 * jnp.log10(jnp.maximum(mean, MIN_SQUARED_ERROR))


def _mean(
    values: Float[Array, "b t h w 1"], mask: Bool[Array, "b t h w 1"]
) -> Float[Array, "b t"]:
    """Mean over the pixels of `mask`; NaN where there is none."""
    count = mask.sum(axis=(-3, -2, -1)).astype(values.dtype)
    return jnp.where(mask, values, 0).sum(axis=(-3, -2, -1)) / count


def _ratio(
    part: Bool[Array, "b t h w 1"], whole: Bool[Array, "b t h w 1"], dtype: jnp.dtype
) -> Float[Array, "b t"]:
    axes = (-3, -2, -1)
    return part.sum(axis=axes).astype(dtype) / whole.sum(axis=axes).astype(dtype)


def _grown_box(mask: Bool[Array, "b t h w 1"]) -> Bool[Array, "b t h w 1"]:
    """Pixels whose centre lies in the box of `mask` with sides 10 % longer."""

    def grown_interval(is_set: Bool[Array, "b t n"]) -> Bool[Array, "b t n"]:
        size = is_set.shape[-1]
        index = jnp.arange(size)[None, None, :]
        low = jnp.min(jnp.where(is_set, index, size), axis=-1, keepdims=True)
        high = jnp.max(jnp.where(is_set, index + 1, 0), axis=-1, keepdims=True)
        margin = 0.05 * (high - low).astype(jnp.float32)
        center = index.astype(jnp.float32) + 0.5
        is_inside = (center >= low.astype(jnp.float32) - margin) & (
            center <= high.astype(jnp.float32) + margin
        )
        return is_inside & (high > low)

    rows = grown_interval(jnp.any(mask, axis=(-2, -1)))
    cols = grown_interval(jnp.any(mask, axis=(-3, -1)))
    return (rows[..., :, None] & cols[..., None, :])[..., None]
