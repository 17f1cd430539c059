"""One scene to one example, in four steps: views, rig, pictures, augmentation.

Everything random comes from the generator, so an index and a seed reproduce an example.
"""

import dataclasses

import numpy as np

from facelift_jax.data.augment import augment
from facelift_jax.data.options import DataOptions
from facelift_jax.data.resample import square_views
from facelift_jax.data.rig import normalize_rig
from facelift_jax.data.selection import draw_views, evaluation_views, select_views
from facelift_jax.data.sources import Scene, StoredScene
from facelift_jax.structs import Batch


def training_example(
    scene: Scene | StoredScene, rng: np.random.Generator, options: DataOptions
) -> Batch:
    """A random example: inputs over [v], targets over [t], scene_id [] int32.

    Inputs come without depth. Raises `DataError` naming the scene when it has too few
    views, cannot be normalised or cannot be read.
    """
    inputs, targets = select_views(scene, *draw_views(scene, rng, options))
    inputs, targets = normalize_rig(inputs, targets, options.radius, options.frame)
    example = _make_example(inputs, targets, options)
    augmented = augment(
        example.inputs, rng, options.grid_distortion, options.camera_jitter
    )
    return dataclasses.replace(example, inputs=augmented)


def evaluation_example(scene: Scene | StoredScene, options: DataOptions) -> Batch:
    """The example a scene is judged by: nothing is random, nothing augmented.

    The first v targets are the inputs; at most `eval_targets` held-out views follow.
    """
    inputs, targets = select_views(scene, *evaluation_views(scene, options))
    inputs, targets = normalize_rig(inputs, targets, options.radius, options.frame)
    return _make_example(inputs, targets, options)


def _make_example(inputs: Scene, targets: Scene, options: DataOptions) -> Batch:
    views = square_views(inputs, options.input_size, options.background)
    return Batch(
        inputs=dataclasses.replace(views, depths=None),
        targets=square_views(targets, options.target_size, options.background),
        scene_id=np.array(inputs.index, np.int32),
    )
