"""Terms that need more than the rendering: LGM's LPIPS, and the terms of GS-LRM.

They read `aux`: the parameters of the perceptual networks, and the positions and rays
of the model's pixel-aligned Gaussians, over input views [b v]. terms.py defines what a
term is. GS-LRM: Zhang et al., ECCV 2024; LGM: Tang et al., ECCV 2024.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Float

from facelift_jax.geometry.numerics import Array, safe_sqrt
from facelift_jax.losses.perceptual import perceptual_distance
from facelift_jax.metrics.lpips import lpips_distance
from facelift_jax.structs import RenderOutput, Views

RELATIVE_SPREAD = 0.5  # target standard deviation in `points_distance`
MIN_DEVIATION = 1e-8  # added to the standard deviation before division
LPIPS_SIZE = 256  # side in pixels of the images that LGM's LPIPS compares


def lpips(render: RenderOutput, targets: Views, aux: Mapping) -> Float[Array, "b"]:
    """LGM's LPIPS, mean over views, with the parameters `aux["lpips"]`.

    `metrics.lpips.lpips_distance` of images that are first resized to 256 x 256 px:
    bilinear, half-pixel centers, without antialiasing. Colors are not clipped.
    """
    (params,) = _need(aux, "lpips", "lpips")
    shape = (*render.colors.shape[:-3], LPIPS_SIZE, LPIPS_SIZE, 3)
    images, truth = (
        jax.image.resize(jnp.asarray(x), shape, "bilinear", antialias=False)
        for x in (render.colors, targets.images)
    )
    return lpips_distance(params, images, truth).mean(axis=-1)


def perceptual(render: RenderOutput, targets: Views, aux: Mapping) -> Float[Array, "b"]:
    """`perceptual.perceptual_distance` with the VGG-19 weights `aux["vgg19"]`."""
    (weights,) = _need(aux, "perceptual", "vgg19")
    return perceptual_distance(weights, render.colors, jnp.asarray(targets.images))


def points_distance(
    render: RenderOutput, targets: Views, aux: Mapping
) -> Float[Array, "b"]:
    """Pulls the points of every view to the depth of a scene at the origin.

    The targets are the distances of a view's points from its camera, standardized, with
    a standard deviation of half a unit around the camera's distance from the origin.
    The loss is the mean squared difference. It is used at the start of training, when
    the points of a network can be anywhere along their rays.
    """
    means, origins = _need(aux, "points_distance", "means", "origins")
    offsets = means - origins[..., None, None, :]
    distances = safe_sqrt((offsets**2).sum(axis=-1))
    fixed = jax.lax.stop_gradient(distances)
    mean = fixed.mean(axis=(-2, -1), keepdims=True)
    count = fixed.shape[-2] * fixed.shape[-1]
    variance = ((fixed - mean) ** 2).sum(axis=(-2, -1), keepdims=True) / (count - 1)
    standardized = (fixed - mean) / (safe_sqrt(variance) + MIN_DEVIATION)
    to_origin = safe_sqrt((origins**2).sum(axis=-1))[..., None, None]
    goal = standardized * RELATIVE_SPREAD + to_origin
    return ((distances - goal) ** 2).mean(axis=(-3, -2, -1))


def pixel_align(
    render: RenderOutput, targets: Views, aux: Mapping
) -> Float[Array, "b"]:
    """Mean distance of the object's points from the rays of their pixels, world units.

    Pixels are weighted by their mask. Zero for a network that places points on rays.
    """
    names = ("means", "origins", "directions", "masks")
    means, origins, directions, masks = _need(aux, "pixel_align", *names)
    offsets = means - origins[..., None, None, :]
    along = (jax.lax.stop_gradient(offsets) * directions).sum(axis=-1, keepdims=True)
    across = offsets - along * directions
    distances = safe_sqrt((across**2).sum(axis=-1, keepdims=True))
    return (distances * masks).mean(axis=(-4, -3, -2, -1))


def _need(aux: Mapping, term: str, *names: str) -> list:
    missing = [name for name in names if name not in aux]
    if missing:
        raise ValueError(
            f"loss.{term}: needs {', '.join(missing)}, which this model does not "
            "return; set its weight to 0"
        )
    return [aux[name] for name in names]
