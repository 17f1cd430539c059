"""Checks of a few training examples at the start of a run, for the collapse monitor."""

import dataclasses
import math

import jax
import numpy as np

from facelift_jax.data.examples import training_example
from facelift_jax.data.io import DataError
from facelift_jax.data.options import DataOptions
from facelift_jax.data.pipeline import Source
from facelift_jax.data.validation.silhouettes import agreement, look_at_rig, silhouettes
from facelift_jax.metrics import nearest_input_angles
from facelift_jax.structs import Batch, Cameras

EXAMPLE_DEFINITIONS = {
    "agreement": "share of the rays through a mask with a point inside all other "
    "masks, in the view where it is smallest; mean over a few examples without "
    "augmentation",
    "unseen_targets": "share of these examples' targets that are not input cameras",
}
"""Name of each `monitor/...` metric of this module -> definition."""

SAME_CAMERA = 1.0  # degrees between two cameras, seen from the center of the rig
NUM_SCENES = 4  # checked at most


def check_examples(source: Source, options: DataOptions) -> dict[str, float]:
    """The metrics of `EXAMPLE_DEFINITIONS`, for scenes spread over the source.

    Augmentation is switched off, because it distorts the inputs on purpose. A metric
    is NaN if none of the scenes can be used.
    """
    options = dataclasses.replace(
        options,
        target_size=options.input_size,
        grid_distortion=0.0,
        camera_jitter=0.0,
    )
    agreements, unseen = [], []
    for index in range(0, len(source), math.ceil(len(source) / NUM_SCENES)):
        rng = np.random.default_rng(index)
        try:
            example = training_example(source[index], rng, options)
            unseen.append(unseen_share(example))
            agreements.append(worst_agreement(example))
        except DataError:
            continue  # training counts the scenes that it cannot use
    values = {"agreement": agreements, "unseen_targets": unseen}
    return {
        f"monitor/{name}": float(np.mean(numbers)) if numbers else math.nan
        for name, numbers in values.items()
    }


def unseen_share(example: Batch) -> float:
    """Share of the targets that are more than `SAME_CAMERA` degrees from all inputs."""
    targets, inputs = jax.tree.map(
        lambda x: x[None], (example.targets.cameras, example.inputs.cameras)
    )
    return float((nearest_input_angles(targets, inputs) > SAME_CAMERA).mean())


def worst_agreement(example: Batch) -> float:
    """Smallest share of a view's object rays with a point that all other masks contain.

    The minimum is over all input and target views whose masks are not empty. The
    example has no batch axis.

    Raises:
      DataError: the cameras of these views do not look at a common point.
    """
    parts = (
        (x.masks, x.cameras.viewmats, x.cameras.Ks)
        for x in (example.inputs, example.targets)
    )
    masks, viewmats, Ks = map(np.concatenate, zip(*parts, strict=True))
    alphas = np.rint(255 * masks[..., 0]).astype(np.uint8)
    is_visible = alphas.max(axis=(1, 2)) > 127
    size = example.inputs.cameras.width
    rig = look_at_rig(Cameras(viewmats[is_visible], Ks[is_visible], size, size))
    return agreement(silhouettes(alphas[is_visible]), rig).shares.min()
