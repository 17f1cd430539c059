"""Data between the stages of the renderer: projected Gaussians and pixels."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int

from facelift_jax.geometry.numerics import Array


class Splats(NamedTuple):
    """Gaussians projected to an image plane; culled ones have opacity 0 and radii 0.

    Attributes:
      means2d: [*i n 2] pixels, (x, y).
      conics: [*i n 3] (A, B, C) of the inverse covariance [[A B] [B C]], 1 / pixels^2.
      opacities: [*i n] peak opacity on the image plane.
      colors: [*i n 3] as seen from this camera.
      depths: [*i n] camera z, world units; 0 where culled.
      radii: [*i n 2] half sides of the box outside which alpha < ALPHA_MIN, pixels.
      levels: [*i n] exponent at which alpha is ALPHA_MIN, plus slack for rounding.
      is_visible: [*i n] not culled.
    """

    means2d: Float[Array, "*i n 2"]
    conics: Float[Array, "*i n 3"]
    opacities: Float[Array, "*i n"]
    colors: Float[Array, "*i n 3"]
    depths: Float[Array, "*i n"]
    radii: Float[Array, "*i n 2"]
    levels: Float[Array, "*i n"]
    is_visible: Bool[Array, "*i n"]


class Pixels(NamedTuple):
    """Rasterized images before the background is added.

    Attributes:
      colors: [*i h w 3] sum of weight * color.
      depths: [*i h w] sum of weight * camera z, world units.
      transmittances: [*i h w] share of the background that remains visible.
      dropped: [*i] list entries dropped by an explicit cap.
    """

    colors: Float[Array, "*i h w 3"]
    depths: Float[Array, "*i h w"]
    transmittances: Float[Array, "*i h w"]
    dropped: Int[Array, "*i"]
