"""Warnings about the input views of a reconstruction."""

import numpy as np
from jaxtyping import Int

from facelift_jax.data.scenes import Scene
from facelift_jax.data.validation.checks import camera_problems

FEW_VIEWS = 3


def input_warnings(inputs: Scene, views: Int[np.ndarray, "v"]) -> list[str]:
    """What makes a reconstruction from these input views unreliable, one line each.

    `inputs` are the input views as stored, at full size; `views` are their positions in
    the scene that they come from.

    The rays of all views must agree (`silhouettes.MIN_AGREEMENT` is 0.97). Smallest
    agreement of six views of ten rodents, 128 px, five of them with uneven rigs: 1.000;
    with one mirrored image .365 to .938; with two swapped cameras .57 to .82; with one
    principal point off by 2, 4, 8 and 16 px at most .995, .975, .948 and .912. Two
    views can nearly always agree: 1.000 and, with one mirrored image, .755 to 1.000.
    """
    masks = inputs.rgba[..., 3]
    warnings = []
    if len(views) <= FEW_VIEWS:
        warnings.append(
            f"only {len(views)} input views: a visual hull of so few masks is much "
            "larger than the object, and a network has to guess more; add views"
        )
    is_set = masks > 127
    is_cut = is_set[:, [0, -1]].any((1, 2)) | is_set[:, :, [0, -1]].any((1, 2))
    if is_cut.any():
        cut = ", ".join(map(str, np.flatnonzero(is_cut)))
        warnings.append(
            f"the border of the image cuts off the object in input views {cut}: its "
            "shape outside the images is not constrained"
        )
    if len(views) > 1:
        warnings += [
            f"cameras and masks disagree: {problem}"
            for problem in camera_problems(masks, inputs.cameras)
        ]
    if warnings and not np.array_equal(views, np.arange(len(views))):
        stored = ", ".join(map(str, views))
        warnings.append(f"the input views are views {stored} of the scene")
    return warnings
