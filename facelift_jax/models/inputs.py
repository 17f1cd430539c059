"""Checks of the input images that all networks share."""

import math

import jax.numpy as jnp

from facelift_jax.structs import Views, check


def check_square(inputs: Views, stride: int, reason: str) -> tuple[int, int, int]:
    """Sizes (b, v, side) of float32 square images over [b v]; side in pixels.

    The side must be a multiple of `stride`; the error message states the `reason`.

    Raises:
      ValueError: another shape, size or type.
    """
    check(inputs, "inputs")
    leading, (height, width) = inputs.images.shape[:-3], inputs.images.shape[-3:-1]
    if len(leading) != 2 or 0 in leading:
        raise ValueError(
            f"inputs: expected two leading axes (scene, view), found {leading}"
        )
    if inputs.images.dtype != jnp.float32:
        raise ValueError(
            "inputs.images: expected float32 in [0, 1], found "
            f"{inputs.images.dtype}; divide 8-bit images by 255"
        )
    if height != width:
        raise ValueError(
            f"inputs.images: expected square images, found {width} x {height} "
            "px; crop or pad them together with their Ks"
        )
    if width % stride:
        raise ValueError(
            f"inputs.images: side {width} px is not a multiple of {stride}, {reason}; "
            f"resize to {math.ceil(width / stride) * stride}"
        )
    return leading[0], leading[1], width
