"""Whether Gaussians are one object: do those of different input views agree?

Notation: G are all Gaussians of a scene, G_v those that come from input view v, of
which learned Gaussians are none; I, A and D are colour, opacity and camera-z depth as
rendered, D_{i->j} and A_{i->j} from G_i alone at camera j; R is the object's radius
(`object_radius`). The blend weight of a Gaussian at a pixel is its opacity there times
the transmittance before it: those of all Gaussians add up to A.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from facelift_jax.geometry.numerics import SH_C0, Array, normalize
from facelift_jax.metrics.image import ALPHA_CUTOFF, psnr_fg
from facelift_jax.structs import Cameras, Gaussians, RenderFn, RenderOutput, Views

OWN_VIEW_DEFINITIONS = {
    "own_view_share": "blend weight of G_v at camera v over all blend weight there: 1 "
    "for pictures painted in front of the cameras, about 1 / (input views that see a "
    "point) for one surface",
    "lovo_drop": "psnr_fg at camera v of G minus that of G without G_v (leave own view "
    "out), dB",
    "xva_02": "cross-view agreement: share of |D_{i->v} - D_{v->v}| < .02 R over the "
    "pixels where A_{i->v} and A_{v->v} > .5, all other views i together",
    "xva_05": "the same within .05 R",
    "xva_overlap": "share of the pixels of A_{v->v} > .5 where A_{i->v} > .5 too, mean "
    "over the other views i",
}
"""Name -> what it is, per input view; nothing here needs more than the input views."""

HEALTH_DEFINITIONS = {
    "visible": "number of Gaussians of opacity above 1/255",
    "anisotropy_p50": "median over these of the largest over the smallest scale",
    "anisotropy_p95": "its 95 % quantile",
    "half_opaque_share": "share of these with opacity in (.1, .9)",
}


def nearest_input_angles(cameras: Cameras, inputs: Cameras) -> Float[Array, "b t"]:
    """Degrees between each of the cameras [b t] and the nearest of the inputs [b v].

    Seen from the world's origin, where a normalised rig has its centre.
    """
    here, there = (normalize(c.centers) for c in (cameras, inputs))
    # the chord, as the arc cosine is inaccurate at small angles
    chords = jnp.linalg.norm(here[..., :, None, :] - there[..., None, :, :], axis=-1)
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

    `source_views` says from which of them each Gaussian comes, -1 for learned ones;
    `rendered` is G from their cameras. Agreement alone decides nothing: where i shows
    a side that v does not see, D_{i->v} is that of the far side, so even the truth
    reads below 1, and a fog, the same from everywhere, agrees with itself. NaN marks
    what is undefined: no foreground, one view alone.
    """
    num_scenes, v = views.images.shape[:2]
    pairs, without, marked, empty = _pictures(
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


def _pictures(
    render_fn: RenderFn,
    gaussians: Gaussians,
    source_views: Int[Array, "n"],
    cameras: Cameras,
) -> list[RenderOutput]:
    """What parts of the Gaussians look like from the input cameras [b v].

    Over [b v * v]: only those of i from j, j fastest. Over [b v]: all but those of j;
    all, those of j red and the others black. Over [b 1]: none. One picture is rendered
    after another by one program, so many views need no more memory than one.
    """
    v = cameras.viewmats.shape[1]
    view = range(v)
    nothing, everything, nobody = -4, -3, -2  # learned Gaussians are -1
    jobs = [(i, nobody, False, j) for i in view for j in view]
    jobs += [(everything, j, False, j) for j in view]
    jobs += [(everything, nobody, True, j) for j in view]
    jobs += [(nothing, nobody, False, 0)]
    black = jnp.zeros_like(gaussians.sh).at[..., 0, :].set(-0.5 / SH_C0)

    def picture(job: tuple[Array, ...]) -> RenderOutput:
        only, without, is_marked, at = job
        is_kept = (only == everything) | (source_views == only)
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
    output = jax.lax.map(picture, columns)
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
    """XVA at each camera j, from the Gaussians of each view i alone, [b i j ...]."""
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
    """The figures of `HEALTH_DEFINITIONS` of scenes [b n]; NaN if none is visible."""
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


def blend_weights(
    render_fn: RenderFn, gaussians: Gaussians, cameras: Cameras
) -> Float[Array, "b n"]:
    """Blend weight of every Gaussian, summed over the pixels of all cameras [b t].

    A picture is the sum of colours times blend weights: its derivative by a Gaussian's
    colour is that Gaussian's weight.
    """

    def total_red(sh: Float[Array, "b n k 3"]) -> Float[Array, ""]:
        grey = dataclasses.replace(gaussians, sh=sh)
        return render_fn(grey, cameras).colors[..., 0].sum()

    grey = jnp.zeros_like(gaussians.sh[..., :1, :])
    return jax.grad(total_red)(grey)[..., 0, 0] / SH_C0
