"""Refines Gaussians by gradient steps on the input views.

The start is a visual hull (`hull.hull_surface`) or the output of a network. Learning
rates, loss and number of steps were chosen on held-out views: the error on the input
views still decreases where that on held-out views does not.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from facelift_jax.geometry.numerics import Array, einsum, normalize
from facelift_jax.geometry.rigid import pixel_size
from facelift_jax.geometry.rotations import quat_to_matrix
from facelift_jax.reconstruction.hull import hull_surface, visual_hull
from facelift_jax.render import RenderConfig, render
from facelift_jax.render.constants import ALPHA_MIN
from facelift_jax.structs import Gaussians, RefineFn, Views, check

NUM_STEPS = 60
# Learning rates of the unconstrained parameters: means in pixels of the input cameras
# at the center of the rig, quaternions, logarithms of scales, logits of opacities, sh.
RATES = Gaussians(means=0.8, quats=0.08, scales=0.08, opacities=0.1, sh=0.05)  # type: ignore[arg-type]
BETA1, BETA2 = 0.9, 0.99
TINY = 1e-12  # added to the divisor of a step; gradients are far larger
ALPHA_WEIGHT = 0.3  # of the silhouette error
# The colors are compared on this background. A background unlike the object would turn
# every error of the silhouette into a large error of the color.
GRAY = 0.5
# `subdivide`: shift of the centers and factor of the scales, in standard deviations of
# the divided Gaussian, and the share of its optical depth that each of the four gets
SHIFT, SHRINK, FADE = 0.7, 0.6, 0.3
LOGIT_RANGE = (1e-4, 1 - 1e-4)  # opacities whose logits are finite


def refine(
    gaussians: Gaussians,
    inputs: Views,
    background: Float[Array, "3"],
    num_steps: int = NUM_STEPS,
    weights: Float[Array, "b v h w 1"] | None = None,
    *,
    config: RenderConfig | None = None,
    backend: str | None = None,
) -> Gaussians:
    """Gaussians [b n] after gradient steps on the input views [b v] of their scenes.

    Minimizes, per scene, the squared color error plus `ALPHA_WEIGHT` times the squared
    silhouette error, both averaged over all pixels. All parameters of Gaussians that
    can be drawn move. Scenes do not influence one another, and the same call gives the
    same bits. Jitted; all numbers of steps share one compilation.

    The optimizer is Adam (Kingma and Ba 2015) with one change: a step is divided by the
    root of the Gaussian's own second moment plus the mean second moment of the scene.
    Adam takes steps of the same size for all Gaussians, so those that the input views
    hardly determine drift; here they stay where they are.

    Args:
      background: RGB in [0, 1] that the input images are composited on.
      weights: of the pixels in both errors, for example 0 where a mask is wrong; None:
        all pixels have weight 1.
      config: settings of the renderer; None: its defaults.
      backend: of the renderer; None: chosen by platform.

    Raises:
      ValueError: fewer than two input views, shapes that do not fit together, or a
        negative number of steps.
    """
    axes, view_axes = check(gaussians), check(inputs)
    if len(view_axes["b"]) != 2 or axes["b"] != view_axes["b"][:1]:
        raise ValueError(
            f"refine: expected Gaussians [b n] and views [b v], found {axes['b']} and "
            f"{view_axes['b']}"
        )
    if view_axes["b"][1] < 2:
        raise ValueError("refine: needs at least two input views, found 1")
    if num_steps < 0:
        raise ValueError(f"refine: num_steps must be at least 0, found {num_steps}")
    if weights is None:
        weights = jnp.ones_like(inputs.masks)
    elif weights.shape != inputs.masks.shape:
        raise ValueError(
            f"refine: expected weights of shape {inputs.masks.shape}, as the masks, "
            f"found {weights.shape}"
        )
    background = jnp.asarray(background, jnp.float32)
    config = config or RenderConfig()
    return _refine(gaussians, inputs, background, weights, num_steps, config, backend)


def refine_hull(
    inputs: Views, refine_fn: RefineFn, num_steps: int = NUM_STEPS
) -> Gaussians:
    """Reconstructs one scene from its input views [v]: Gaussians [n], NumPy.

    The start is `hull_surface`, refined by `num_steps` steps of `refine_fn` and divided
    by `subdivide`. Without steps the result is `visual_hull`, as it is for masks
    without a common hull. `refine_fn` is `refine` with the background of the images,
    for example from `builders.make_refiner`.

    Raises:
      ValueError: as `refine`.
    """
    if num_steps == 0:
        return visual_hull(inputs)
    start, weights = hull_surface(inputs)
    if not (start.opacities > 0).any():
        return start
    scene = jax.tree.map(lambda x: x[None], (start, inputs, weights))
    start, inputs, weights = scene
    refined = refine_fn(start, inputs, num_steps=num_steps, weights=weights)
    return jax.tree.map(lambda x: x[0], jax.device_get(subdivide(refined)))


@jax.jit
def subdivide(gaussians: Gaussians) -> Gaussians:
    """Four smaller Gaussians [*b 4n] instead of each flat one [*b n] after `refine`.

    They are shifted along the two first axes of the Gaussian, whose third axis is the
    normal of the surface. A large flat Gaussian reaches beyond a curved surface, and
    refinement moves it inwards until its silhouette fits; small ones are nearer to the
    surface. So this improves depth, Chamfer distance and the colors of held-out views,
    at the cost of input views. The numbers were chosen together with `hull.SPACING`.
    """
    signs = jnp.array([(-1.0, -1, 0), (-1, 1, 0), (1, -1, 0), (1, 1, 0)])
    axes = quat_to_matrix(gaussians.quats) * gaussians.scales[..., None, :]
    shifts = SHIFT * einsum("...ij,kj->...ki", axes, signs)
    factors = jnp.array([SHRINK, SHRINK, 1.0])
    scales = gaussians.scales * jnp.broadcast_to(factors, gaussians.scales.shape)
    opacities = 1 - (1 - gaussians.opacities) ** FADE

    def repeat(x):
        return jnp.repeat(x, 4, axis=gaussians.opacities.ndim - 1)

    means = repeat(gaussians.means) + shifts.reshape(*shifts.shape[:-3], -1, 3)
    return Gaussians(
        means,
        repeat(gaussians.quats),
        repeat(scales),
        repeat(opacities),
        repeat(gaussians.sh),
    )


@functools.partial(jax.jit, static_argnames=("config", "backend"))
def _refine(gaussians, inputs, background, weights, num_steps, config, backend):
    shift = jnp.reshape(GRAY - background, (1, 1, 1, 1, 3))
    images = inputs.images + shift * (1 - inputs.masks)

    def loss(params: Gaussians) -> Array:
        gray = jnp.full(3, GRAY)
        output = render(
            _constrain(params), inputs.cameras, gray, config=config, backend=backend
        )
        color = weights * (output.colors - images) ** 2
        alpha = weights * (output.alphas - inputs.masks) ** 2
        color, alpha = (jnp.mean(x, axis=(1, 2, 3, 4)) for x in (color, alpha))
        return jnp.sum(color + ALPHA_WEIGHT * alpha)

    def step(index, carry):
        params, first, second = carry
        gradients = jax.grad(loss)(params)
        first = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, first, gradients)
        second = jax.tree.map(
            lambda v, g: BETA2 * v + (1 - BETA2) * g * g, second, gradients
        )
        count = jnp.asarray(index + 1, jnp.float32)
        scale1, scale2 = (1 / (1 - beta**count) for beta in (BETA1, BETA2))

        def move(x, m, v, rate):
            v = scale2 * v
            v = v + _mean_over_scene(v)
            return x - rate * scale1 * m / (jnp.sqrt(v) + TINY)

        return jax.tree.map(move, params, first, second, rates), first, second

    size = pixel_size(inputs.cameras)[:, None, None]
    rates = Gaussians(
        RATES.means * size, RATES.quats, RATES.scales, RATES.opacities, RATES.sh
    )
    params = _unconstrain(gaussians)
    zeros = jax.tree.map(jnp.zeros_like, params)
    params, _, _ = lax.fori_loop(0, num_steps, step, (params, zeros, zeros))
    refined = _constrain(params)
    is_drawn = gaussians.opacities >= ALPHA_MIN  # the others do not change
    return Gaussians(
        refined.means,
        refined.quats,
        refined.scales,
        jnp.where(is_drawn, refined.opacities, gaussians.opacities),
        refined.sh,
    )


def _mean_over_scene(moments: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Mean of the second moments of each scene over those that are not zero."""
    axes = tuple(range(1, moments.ndim))
    is_moving = moments > 0
    count = jnp.sum(is_moving, axis=axes, keepdims=True, dtype=moments.dtype)
    return jnp.sum(moments, axis=axes, keepdims=True) / jnp.maximum(count, 1)


def _unconstrain(gaussians: Gaussians) -> Gaussians:
    """Unit quaternions, logarithms of scales and logits of opacities."""
    opacities = jnp.clip(gaussians.opacities, *LOGIT_RANGE)
    return Gaussians(
        jnp.asarray(gaussians.means),
        jnp.asarray(normalize(gaussians.quats)),
        jnp.log(gaussians.scales),
        jax.scipy.special.logit(opacities),
        jnp.asarray(gaussians.sh),
    )


def _constrain(params: Gaussians) -> Gaussians:
    """Inverse of `_unconstrain`."""
    return Gaussians(
        params.means,
        params.quats,
        jnp.exp(params.scales),
        jax.nn.sigmoid(params.opacities),
        params.sh,
    )
