"""Terms that look at more than the rendering: LGM's LPIPS, and those of GS-LRM.

They read `aux`: the weights of the perceptual networks, and what the model says of its
pixels' Gaussians, over input views [b v]. `losses.py` says what a term is. GS-LRM:
Zhang et al., ECCV 2024; LGM: Tang et al., ECCV 2024.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Float

from facelift_jax.geometry.numerics import Array, safe_sqrt
from facelift_jax.losses.perceptual import perceptual_distance
from facelift_jax.metrics.lpips import lpips_distance
from facelift_jax.structs import RenderOutput, Views

RELATIVE_SPREAD = 0.5  # what `points_distance` makes of a standard deviation
MIN_DEVIATION = 1e-8  # of the distances it divides by
LPIPS_SIZE = 256  # side in pixels of what LGM's LPIPS looks at


def lpips(render: RenderOutput, targets: Views, aux: Mapping) -> Float[Array, "b"]:
    """LPIPS as LGM has it, mean over views; by the parameters of `aux["lpips"]`.

    `lpips.lpips_distance` of pictures that, whatever their size, are first made 256 x
    256 px: bilinear, half-pixel centres, without antialiasing. Colours are not clipped.
    """
    (params,) = _need(aux, "lpips", "lpips")
    shape = (*render.colors.shape[:-3], LPIPS_SIZE, LPIPS_SIZE, 3)
    images, truth = (
        jax.image.resize(jnp.asarray(x), shape, "bilinear", antialias=False)
        for x in (render.colors, targets.images)
    )
    return lpips_distance(params, images, truth).mean(axis=-1)


def perceptual(render: RenderOutput, targets: Views, aux: Mapping) -> Float[Array, "b"]:
    """`perceptual.perceptual_distance` by the VGG-19 of `aux["vgg19"]`."""
    (weights,) = _need(aux, "perceptual", "vgg19")
    return perceptual_distance(weights, render.colors, jnp.asarray(targets.images))


def points_distance(
    render: RenderOutput, targets: Views, aux: Mapping
) -> Float[Array, "b"]:
    """Pulls every view's points to where a scene at the origin would be.

    The distances of a view's points from its camera, standardised and spread by half a
    unit about the camera's distance from the origin, are the aim: mean squared
    difference. Starts a network whose points lie anywhere along their rays.
    """
    means, origins = _need(aux, "points_distance", "means", "origins")
    offsets = means - origins[..., None, None, :]
    distances = safe_sqrt((offsets**2).sum(axis=-1))
    now = jax.lax.stop_gradient(distances)
    mean = now.mean(axis=(-2, -1), keepdims=True)
    count = now.shape[-2] * now.shape[-1]
    variance = ((now - mean) ** 2).sum(axis=(-2, -1), keepdims=True) / (count - 1)
    away = safe_sqrt((origins**2).sum(axis=-1))[..., None, None]
    aim = (now - mean) / (safe_sqrt(variance) + MIN_DEVIATION) * RELATIVE_SPREAD + away
    return ((distances - aim) ** 2).mean(axis=(-3, -2, -1))


def pixel_align(
    render: RenderOutput, targets: Views, aux: Mapping
) -> Float[Array, "b"]:
    """Mean distance of the object's pixels' points from their rays, world units.

    Pixels count by their coverage. Zero where a network places its points on rays.
    """
    names = ("means", "origins", "directions", "masks")
    means, origins, directions, masks = _need(aux, "pixel_align", *names)
    offsets = means - origins[..., None, None, :]
    along = (jax.lax.stop_gradient(offsets) * directions).sum(axis=-1, keepdims=True)
    beside = offsets - along * directions
    distances = safe_sqrt((beside**2).sum(axis=-1, keepdims=True))
    return (distances * masks).mean(axis=(-4, -3, -2, -1))


def _need(aux: Mapping, term: str, *names: str) -> list:
    missing = [name for name in names if name not in aux]
    if missing:
        raise ValueError(
            f"loss.{term}: needs {', '.join(missing)}, which this model does not give; "
            "set its weight to 0"
        )
    return [aux[name] for name in names]
