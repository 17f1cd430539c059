"""Metrics that compare rendered views with ground truth, per view.

Notation: M is the foreground, where ground-truth alpha > .5; I and GT are the predicted
(clipped to [0, 1]) and true images; A is the predicted alpha; D and D* are predicted
and true camera-z depth; R is the radius of the object (`object_radius`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from facelift_jax.geometry.numerics import Array, einsum, safe_divide
from facelift_jax.geometry.rays import ray_directions, unproject
from facelift_jax.geometry.rigid import rig_center
from facelift_jax.metrics.lpips import lpips_distance
from facelift_jax.structs import RenderOutput, Views

DEFINITIONS = {
    "psnr_fg": "PSNR over the foreground M: -10 log10 of the mean squared error, dB",
    "psnr_box": "PSNR over the bounding box of M with sides 10 % longer, dB",
    "psnr_full": "PSNR over the whole image, dB",
    "ssim": "structural similarity of the whole image: 11x11 Gaussian windows of sigma "
    "1.5 that fit inside it, mean over windows and channels",
    "iou": "intersection over union of predicted (A > .5) and true foreground M",
    "depth_error": "mean |D - D*| / R over pixels in M with A > .5 and known D*",
    "depth_within_02R": "share of the pixels of depth_error where |D - D*| < .02 R",
    "depth_within_05R": "share of the pixels of depth_error where |D - D*| < .05 R",
    "absrel": "mean |D - D*| / D* over the pixels of depth_error; low for flat images "
    "too",
    "alpha_entropy": "mean of -A log2 A - (1 - A) log2 (1 - A) where A > 1/255, bits: "
    "0 if every pixel is opaque or empty",
    "coverage": "share of the image that the foreground M covers",
    "lpips_vgg16": "LPIPS with VGG-16 and the v0.1 heads, at the size of the image; "
    "only if its weights are given",
}
"""Name of each metric -> its definition, for reports."""

METRICS = tuple(DEFINITIONS)

MIN_SQUARED_ERROR = 1e-10  # a perfect image has 100 dB instead of infinity
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # Wang et al. 2004, section III-B
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # for values in [0, 1]; ibid., equation 13
RADIUS_QUANTILE = 0.99  # of distances; a stray depth pixel has no influence
ALPHA_CUTOFF = 1 / 255  # the renderer skips lower alphas, 8-bit images round them to 0


def view_metrics(
    render: RenderOutput,
    targets: Views,
    radius: Float[Array, "b"],
    lpips: Mapping[str, Any] | None = None,
) -> dict[str, Float[Array, "b t"]]:
    """The metrics of `DEFINITIONS` for each of the views [b t].

    LPIPS is computed only if its parameters `lpips` (from `load_lpips`) are given.

    NaN marks undefined values: foreground metrics without foreground; depth metrics
    without true depth, without a radius, or if A > .5 and M have no pixel in common;
    the entropy of an empty image. `average_views` counts them.

    Raises:
      ValueError: `render` and `targets` differ in shape.
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
    metrics |= _depth_metrics(render, targets, radius)
    opacity = jnp.clip(render.alphas, 0, 1)
    entropy = -(_times_log2(opacity) + _times_log2(1 - opacity))
    metrics["alpha_entropy"] = _mean(entropy, opacity > ALPHA_CUTOFF)
    if lpips is not None:
        # one view at a time: VGG-16's first features take 21 times an image's memory
        flat = (
            x.reshape(-1, *x.shape[2:]) for x in (images, jnp.asarray(targets.images))
        )
        distances = jax.lax.map(lambda pair: lpips_distance(lpips, *pair), tuple(flat))
        metrics["lpips_vgg16"] = distances.reshape(images.shape[:2])
    return {name: metrics[name] for name in METRICS if name in metrics}


def psnr_fg(images: Float[Array, "b t h w 3"], targets: Views) -> Float[Array, "b t"]:
    """`DEFINITIONS["psnr_fg"]` of images that are not yet clipped."""
    squared_error = (jnp.clip(images, 0, 1) - targets.images) ** 2
    mask = jnp.asarray(targets.masks) > 0.5
    return _psnr(jnp.mean(squared_error, axis=-1, keepdims=True), mask)


def ssim(
    images: Float[Array, "*b h w c"], targets: Float[Array, "*b h w c"]
) -> Float[Array, "*b"]:
    """Structural similarity (Wang et al. 2004, equation 13) of images in [0, 1].

    Mean over channels and over the windows that fit inside the image.

    Raises:
      ValueError: the images are smaller than the window.
    """
    height, width = images.shape[-3:-1]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"ssim: images of {width} x {height} px are smaller than its "
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
    """Radius R of each scene's object, world units; NaN if there is no foreground.

    With true depths, the foreground pixels of known depth of all views [b t] are
    unprojected to world points; R is the .99 quantile of their distances from their
    centroid. Without true depths, R is the .99 quantile of the distances between the
    rays of the foreground pixels and the point nearest to the optical axes.
    """
    if targets.depths is None:
        cameras = jax.tree.map(jnp.asarray, targets.cameras)
        rays = ray_directions(cameras)
        center = rig_center(cameras)[:, None, None, None]
        offsets = center - cameras.centers[:, :, None, None]
        along = jnp.sum(offsets * rays, axis=-1, keepdims=True)
        distances = jnp.linalg.norm(offsets - along * rays, axis=-1)
        is_known = jnp.asarray(targets.masks)[..., 0] > 0.5
    else:
        is_known = (jnp.asarray(targets.masks) > 0.5) & (targets.depths > 0)
        points = jnp.asarray(unproject(targets.cameras, targets.depths))
        count = is_known.sum(axis=(1, 2, 3)).astype(points.dtype)
        total = jnp.where(is_known, points, 0).sum(axis=(1, 2, 3))
        centroid = (total / count)[:, None, None, None]
        distances = jnp.linalg.norm(points - centroid, axis=-1)
        is_known = is_known[..., 0]
    distances = jnp.where(is_known, distances, jnp.nan)
    num_scenes = len(distances)
    return jnp.nanquantile(distances.reshape(num_scenes, -1), RADIUS_QUANTILE, axis=-1)


def require_same_shapes(render: RenderOutput, targets: Views) -> None:
    """Checks that a rendering has the shapes of the target views.

    Raises:
      ValueError: names the first pair of arrays whose shapes differ.
    """
    pairs = [("colors", "images"), ("alphas", "masks")]
    if targets.depths is not None:
        pairs.append(("depths", "depths"))
    for rendered, target in pairs:
        shape, expected = (
            getattr(render, rendered).shape,
            getattr(targets, target).shape,
        )
        if shape != expected:
            raise ValueError(
                f"render.{rendered} is {shape} but targets.{target} is {expected}: "
                "render with the cameras of the targets"
            )


def _depth_metrics(
    render: RenderOutput, targets: Views, radius: Float[Array, "b"]
) -> dict[str, Float[Array, "b t"]]:
    if targets.depths is None:
        names = ("depth_error", "depth_within_02R", "depth_within_05R", "absrel")
        return dict.fromkeys(names, jnp.full(render.colors.shape[:2], jnp.nan))
    is_known = (jnp.asarray(render.alphas) > 0.5) & (jnp.asarray(targets.masks) > 0.5)
    is_known &= targets.depths > 0
    error = jnp.abs(render.depths - targets.depths)
    relative = error / jnp.asarray(radius)[:, None, None, None, None]

    def share_below(bound: float) -> Float[Array, "b t"]:
        share = _mean((relative < bound).astype(error.dtype), is_known)
        return jnp.where(jnp.isnan(radius)[:, None], jnp.nan, share)

    return {
        "depth_error": _mean(relative, is_known),
        "depth_within_02R": share_below(0.02),
        "depth_within_05R": share_below(0.05),
        "absrel": _mean(safe_divide(error, targets.depths), is_known),
    }


def _times_log2(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """x log2 x; 0 at 0."""
    return x * jnp.log2(jnp.where(x > 0, x, 1))


def _window_mean(images: Float[Array, "*b h w c"]) -> Float[Array, "*b y x c"]:
    """Means under the Gaussian window, at the positions where the window fits.

    The separable convolution is two products with banded matrices: ten times faster
    than a one-channel convolution on CPUs, and suited to the matrix units of others.
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
    """Mean over the pixels of `mask`; NaN without any."""
    count = mask.sum(axis=(-3, -2, -1)).astype(values.dtype)
    return jnp.where(mask, values, 0).sum(axis=(-3, -2, -1)) / count


def _ratio(
    part: Bool[Array, "b t h w 1"], whole: Bool[Array, "b t h w 1"], dtype: jnp.dtype
) -> Float[Array, "b t"]:
    axes = (-3, -2, -1)
    return part.sum(axis=axes).astype(dtype) / whole.sum(axis=axes).astype(dtype)


def _grown_box(mask: Bool[Array, "b t h w 1"]) -> Bool[Array, "b t h w 1"]:
    """Pixels with their center in the bounding box of `mask`, sides 10 % longer."""

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
