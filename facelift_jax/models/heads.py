"""Tables that map the raw channels of a network to activated Gaussians.

A table lists the groups of channels in order: the field of `Gaussians` that a group
fills, and the function that maps the group to the field's range and unit.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from facelift_jax.geometry.numerics import SH_C0, Array, normalize
from facelift_jax.structs import Gaussians

LGM_BOX = 1.0  # objects are in [-1, 1]^3 (LGM, arXiv 2402.05054, released code)
LGM_SCALE = 0.1  # world units at softplus(x) = 1 (LGM, released code)
# GS-LRM, FaceLift's config: log of the scale (world units) where the channel is 0, the
# largest log of the scale, and the logit of the opacity where the channel is 0
GSLRM_LOG_SCALE = -2.3
GSLRM_MAX_LOG_SCALE = -1.2
GSLRM_OPACITY_LOGIT = -2.0


class Head(NamedTuple):
    """`size` consecutive channels that fill one field of `Gaussians`."""

    field: str
    size: int
    activate: Callable[[Any], Array]


def clip_to_box(x: Float[Array, "*b 3"]) -> Float[Array, "*b 3"]:
    """World positions clamped to the object's box; the gradient outside is zero."""
    return jnp.clip(x, -LGM_BOX, LGM_BOX)


def softplus_scale(x: Float[Array, "*b 3"]) -> Float[Array, "*b 3"]:
    """Standard deviations in world units."""
    return LGM_SCALE * jax.nn.softplus(x)


def tanh_color(x: Float[Array, "*b 3"]) -> Float[Array, "*b 3"]:
    """Degree-0 coefficients of rgb = SH_C0 * sh + 0.5 = sigmoid(2 x)."""
    return 0.5 / SH_C0 * jnp.tanh(x)


LGM_HEADS = (
    Head("means", 3, clip_to_box),
    Head("opacities", 1, jax.nn.sigmoid),
    Head("scales", 3, softplus_scale),
    Head("quats", 4, normalize),  # (w, x, y, z); zero stays zero: no rotation
    Head("sh", 3, tanh_color),
)


def unchanged(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """The channels are the field's values."""
    return x


def capped_exp_scale(x: Float[Array, "*b 3"]) -> Float[Array, "*b 3"]:
    """Standard deviations in world units; the gradient is zero where capped."""
    return jnp.exp(jnp.minimum(x + GSLRM_LOG_SCALE, GSLRM_MAX_LOG_SCALE))


def low_opacity(x: Float[Array, "*b 1"]) -> Float[Array, "*b 1"]:
    """Opacities, about 0.12 where the channel is 0."""
    return jax.nn.sigmoid(x + GSLRM_OPACITY_LOGIT)


GSLRM_HEADS = (
    Head("means", 3, unchanged),  # already on their rays
    Head("sh", 3, unchanged),
    Head("scales", 3, capped_exp_scale),
    Head("quats", 4, normalize),  # (w, x, y, z)
    Head("opacities", 1, low_opacity),
)


def adjusted(
    heads: tuple[Head, ...], scale_factor: float = 1.0, opacity_logit: float = 0.0
) -> tuple[Head, ...]:
    """A table whose scales get a factor and whose opacity logits get an offset."""

    def adjust(head: Head) -> Head:
        if head.field == "scales":
            return head._replace(activate=lambda x: scale_factor * head.activate(x))
        if head.field == "opacities":
            return head._replace(activate=lambda x: head.activate(x + opacity_logit))
        return head

    return tuple(map(adjust, heads))


def num_channels(heads: tuple[Head, ...]) -> int:
    """The number of channels that a table takes."""
    return sum(head.size for head in heads)


def activate(raw: Float[Array, "*b n c"], heads: tuple[Head, ...]) -> Gaussians:
    """Raw float32 channels to Gaussians over [*b n]; colors are of degree 0."""
    fields, start = {}, 0
    for head in heads:
        fields[head.field] = head.activate(raw[..., start : start + head.size])
        start += head.size
    fields["opacities"] = fields["opacities"][..., 0]
    fields["sh"] = fields["sh"][..., None, :]
    return Gaussians(**fields)
