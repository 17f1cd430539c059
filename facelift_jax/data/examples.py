"""One scene to one example, in four steps: views, rig, pictures, augmentation.

Everything random comes from the generator, so an index and a seed reproduce an example.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from facelift_jax.data.augment import augment
from facelift_jax.data.normalize import normalize_rig
from facelift_jax.data.options import DataOptions
from facelift_jax.data.resize import to_views
from facelift_jax.data.scenes import Scene, StoredScene
from facelift_jax.data.view_selection import (
    evaluation_world,
    select_evaluation_views,
    select_input_views,
    select_views,
)
from facelift_jax.structs import Batch, Views


def training_example(
    scene: Scene | StoredScene, rng: np.random.Generator, options: DataOptions
) -> Batch:
    """A random example: inputs over [v], targets over [t], scene_id [] int32.

    Inputs come without depth: none is ever given to a network.

    Raises:
      DataError: the scene has too few views, cannot be normalised or cannot be read;
        one line that names it.
    """
    inputs, targets = select_views(scene, rng, options)
    inputs, targets = normalize_rig(
        inputs, targets, scene.cameras, options.radius, options.frame
    )
    seen = to_views(inputs, options.input_size, options.background)
    seen = augment(seen, rng, options.grid_distortion, options.camera_jitter)
    compared = to_views(targets, options.target_size, options.background)
    return _example(seen, compared, scene)


def evaluation_example(scene: Scene | StoredScene, options: DataOptions) -> Batch:
    """The example a scene is judged by: nothing is random, nothing augmented.

    The first v targets are the inputs; at most `eval_targets` held-out views follow.

    Raises:
      DataError: as `training_example`.
    """
    return _plain(scene, *select_evaluation_views(scene, options), options)


def reconstruction_example(scene: Scene | StoredScene, options: DataOptions) -> Batch:
    """`evaluation_example` without held-out views, which the scene need not have.

    Raises:
      DataError: as `training_example`.
    """
    return _plain(scene, *select_input_views(scene, options), options)


def normalised_from_stored(
    scene: Scene | StoredScene, options: DataOptions
) -> Float[np.ndarray, "4 4"]:
    """What takes points of a scene's stored world to the world of its example.

    Of `evaluation_example` and `reconstruction_example`; one similarity.

    Raises:
      DataError: as `training_example`.
    """
    world = evaluation_world(scene, options)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = world.scale * world.rotation, world.translation
    return matrix


def _plain(
    scene: Scene | StoredScene, inputs: Scene, targets: Scene, options: DataOptions
) -> Batch:
    inputs, targets = normalize_rig(
        inputs, targets, scene.cameras, options.radius, options.frame
    )
    seen = to_views(inputs, options.input_size, options.background)
    compared = to_views(targets, options.target_size, options.background)
    return _example(seen, compared, scene)


def _example(seen: Views, compared: Views, scene: Scene | StoredScene) -> Batch:
    return Batch(
        inputs=dataclasses.replace(seen, depths=None),
        targets=compared,
        scene_id=np.array(scene.index, np.int32),
    )
