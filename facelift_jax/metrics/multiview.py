"""Whether the Gaussians of different input views describe one common object.

Notation: G are all Gaussians of a scene, G_v those that come from input view v (the
Gaussians of learned tokens come from no view); I, A and D are rendered color, opacity
and camera-z depth; D_{i->j} and A_{i->j} are those of G_i alone at camera j; R is the
object's radius (`object_radius`). The blend weight of a Gaussian at a pixel is its
opacity there times the transmittance in front of it; the blend weights of all Gaussians
add up to A.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from facelift_jax.geometry.numerics import SH_C0, Array, normalize
from facelift_jax.metrics.image import ALPHA_CUTOFF, psnr_fg
from facelift_jax.structs import Cameras, Gaussians, RenderFn, RenderOutput, Views

OWN_VIEW_DEFINITIONS = {
    "own_view_share": "share of the blend weight at camera v that G_v has: 1 for flat "
    "images in front of each camera, about 1 / (number of views that see a point) for "
    "one common surface",
    "lovo_drop": "leave own view out: psnr_fg at camera v of all Gaussians minus that "
    "without G_v, dB",
    "xva_02": "cross-view agreement: share of |D_{i->v} - D_{v->v}| < .02 R over all "
    "other views i and their pixels with A_{i->v} and A_{v->v} > .5",
    "xva_05": "cross-view agreement within .05 R",
    "xva_overlap": "share of the pixels with A_{v->v} > .5 where A_{i->v} > .5 too, "
    "mean over the other views i",
}
"""Name -> definition, per input view; none of them needs held-out views."""

HEALTH_DEFINITIONS = {
    "visible": "number of visible Gaussians, those with opacity above 1/255",
    "anisotropy_p50": "median over visible Gaussians of largest over smallest scale",
    "anisotropy_p95": "95 % quantile over visible Gaussians of largest over smallest "
    "scale",
    "half_opaque_share": "share of the visible Gaussians with opacity in (.1, .9)",
}
"""Name -> definition, per scene."""


def nearest_input_angles(cameras: Cameras, inputs: Cameras) -> Float[Array, "b t"]:
    """Degrees between each of the cameras [b t] and the nearest of the inputs [b v].

    Angles are seen from the world origin, the center of a normalized rig.
    """
    targets, sources = (normalize(c.centers) for c in (cameras, inputs))
    # from the chord, because the arc cosine is inaccurate at small angles
    offsets = targets[..., :, None, :] - sources[..., None, :, :]
    chords = jnp.linalg.norm(offsets, axis=-1)
    return jnp.rad2deg(2 * jnp.arcsin(jnp.clip(chords.min(-1) / 2, 0, 1)))


def own_view_metrics(
    render_fn: RenderFn,
    gaussians: Gaussians,
    source_views: Int[Array, "n"],
    views: Views,
    rendered: RenderOutput,
    radius: Float[Array, "b"],
) -> dict[str, Float[Array, "b v"]]:
    """The metrics of `OWN_VIEW_DEFINITIONS` at the input views [b v].

    `source_views` is the view each Gaussian comes from, -1 for those of learned tokens;
    `rendered` is G rendered at their cameras. Agreement alone is not evidence of
    correct geometry: a fog agrees with itself, and the true object has agreement below
    1, since D_{i->v} is the depth of the far side wherever v does not see what i sees.
    NaN marks undefined values: no foreground, or only one view.
    """
    num_scenes, v = views.images.shape[:2]
    pairs, without, marked, empty = _render_parts(
        render_fn, gaussians, source_views, views.cameras
    )
    own = marked.colors[..., :1] - (1 - marked.alphas) * empty.colors[..., :1, :1, :1]
    return {
        "own_view_share": _total(own) / _total(marked.alphas),
        "lovo_drop": psnr_fg(rendered.colors, views) - psnr_fg(without.colors, views),
        **_agreement(
            pairs.depths.reshape(num_scenes, v, v, *pairs.depths.shape[2:]),
            pairs.alphas.reshape(num_scenes, v, v, *pairs.alphas.shape[2:]) > 0.5,
            radius,
        ),
    }


def _render_parts(
    render_fn: RenderFn,
    gaussians: Gaussians,
    source_views: Int[Array, "n"],
    cameras: Cameras,
) -> list[RenderOutput]:
    """Renderings of parts of the Gaussians at the input cameras [b v].

    Four groups: over [b v * v] G_i at camera j, j fastest; over [b v] all without G_j
    at camera j; over [b v] all, with G_j red and the others black; over [b 1] none. The
    images are rendered one after another, so many views need no more memory than one.
    """
    v = cameras.viewmats.shape[1]
    view = range(v)
    # (view kept, view left out, whether to mark the own view, camera)
    none, every, no_view = -4, -3, -2  # not -1: Gaussians of learned tokens
    jobs = [(i, no_view, False, j) for i in view for j in view]
    jobs += [(every, j, False, j) for j in view]
    jobs += [(every, no_view, True, j) for j in view]
    jobs += [(none, no_view, False, 0)]
    black = jnp.zeros_like(gaussians.sh).at[..., 0, :].set(-0.5 / SH_C0)

    def render_job(job: tuple[Array, ...]) -> RenderOutput:
        only, without, is_marked, at = job
        is_kept = (only == every) | (source_views == only)
        is_kept &= source_views != without
        is_own = (source_views == at).astype(black.dtype)
        red = black.at[..., 0, 0].add(is_own[None] / SH_C0)
        part = dataclasses.replace(
            gaussians,
            opacities=jnp.where(is_kept[None], gaussians.opacities, 0),
            sh=jnp.where(is_marked, red, gaussians.sh),
        )
        camera = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, at, 1, axis=1), cameras
        )
        return jax.tree.map(lambda x: x[:, 0], render_fn(part, camera))

    columns = tuple(jnp.asarray(column) for column in zip(*jobs, strict=True))
    output = jax.lax.map(render_job, columns)
    parts = np.split(np.arange(len(jobs)), np.cumsum([v * v, v, v]))
    return [
        jax.tree.map(lambda x, part=part: jnp.moveaxis(x[part], 0, 1), output)
        for part in parts
    ]


def _agreement(
    depths: Float[Array, "b v v h w 1"],
    is_solid: Bool[Array, "b v v h w 1"],
    radius: Float[Array, "b"],
) -> dict[str, Float[Array, "b v"]]:
    """Cross-view agreement at each camera j of G_i alone, [b i j ...]."""
    v = depths.shape[1]
    own = jnp.arange(v)
    error = jnp.abs(depths - depths[:, own, own][:, None])
    is_other = ~jnp.eye(v, dtype=bool)[None, :, :, None, None, None]
    is_own_solid = is_solid[:, own, own][:, None]
    both = is_solid & is_own_solid & is_other

    def count(pixels: Bool[Array, "b v v h w 1"]) -> Float[Array, "b v"]:
        return pixels.sum(axis=(1, 3, 4, 5)).astype(depths.dtype)

    bound = radius[:, None, None, None, None, None]
    return {
        "xva_02": count(both & (error < 0.02 * bound)) / count(both),
        "xva_05": count(both & (error < 0.05 * bound)) / count(both),
        "xva_overlap": count(both) / count(is_own_solid & is_other),
    }


def _total(values: Float[Array, "b v h w 1"]) -> Float[Array, "b v"]:
    return values.sum(axis=(-3, -2, -1))


def gaussian_health(gaussians: Gaussians) -> dict[str, Float[Array, "b"]]:
    """The metrics of `HEALTH_DEFINITIONS` of scenes [b n]; NaN if none is visible."""
    opacities, scales = gaussians.opacities, gaussians.scales
    is_visible = opacities > ALPHA_CUTOFF
    visible = is_visible.sum(axis=-1).astype(opacities.dtype)
    ratios = jnp.where(is_visible, scales.max(-1) / scales.min(-1), jnp.nan)
    is_half = is_visible & (opacities > 0.1) & (opacities < 0.9)
    return {
        "visible": visible,
        "anisotropy_p50": jnp.nanquantile(ratios, 0.50, axis=-1),
        "anisotropy_p95": jnp.nanquantile(ratios, 0.95, axis=-1),
        "half_opaque_share": is_half.sum(axis=-1).astype(opacities.dtype) / visible,
    }


@functools.partial(jax.jit, static_argnames="render_fn")
def blend_weights(
    render_fn: RenderFn, gaussians: Gaussians, cameras: Cameras
) -> Float[Array, "b n"]:
    """Blend weight of every Gaussian, summed over the pixels of all cameras [b t].

    An image is the sum of colors times blend weights, so its derivative with respect
    to a Gaussian's color is the blend weight of that Gaussian. Jitted.
    """

    def total_red(sh: Float[Array, "b n k 3"]) -> Float[Array, ""]:
        gray = dataclasses.replace(gaussians, sh=sh)
        return render_fn(gray, cameras).colors[..., 0].sum()

    gray = jnp.zeros_like(gaussians.sh[..., :1, :])
    return jax.grad(total_red)(gray)[..., 0, 0] / SH_C0
