"""One scene to one example: select views, normalize the rig, resize, augment.

All random numbers come from the generator, so that an index and a seed reproduce an
example. Cameras are float64 up to the finished example, which is float32.
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
    select_views,
)
from facelift_jax.structs import Batch, Cameras, Views


def training_example(
    scene: Scene | StoredScene, rng: np.random.Generator, options: DataOptions
) -> Batch:
    """A random example: inputs over [v], targets over [t], scene_id [] int32.

    The inputs have no depth, because networks never see depth.

    Raises:
      DataError: the scene has too few views, cannot be normalized, or cannot be read;
        one line with its name.
    """
    inputs, targets = select_views(scene, rng, options)
    inputs, targets = normalize_rig(
        inputs, targets, scene.cameras, options.radius, options.frame
    )
    input_views = to_views(inputs, options.input_size, options.background)
    input_views = augment(
        input_views, rng, options.grid_distortion, options.camera_jitter
    )
    target_views = to_views(targets, options.target_size, options.background)
    return _example(input_views, target_views, scene)


def evaluation_example(scene: Scene | StoredScene, options: DataOptions) -> Batch:
    """The example a scene is evaluated with: not random, not augmented.

    The first v targets are the inputs; at most `eval_targets` held-out views follow.

    Raises:
      DataError: as `training_example`.
    """
    return _deterministic_example(
        scene, *select_evaluation_views(scene, options), options
    )


def reconstruction_example(
    scene: Scene | StoredScene, inputs: Scene, options: DataOptions
) -> Batch:
    """`evaluation_example` without held-out views, for scenes that have none.

    `inputs` are the views of the scene at `input_positions`, decoded.

    Raises:
      DataError: as `training_example`.
    """
    return _deterministic_example(scene, inputs, inputs, options)


def normalised_from_stored(
    scene: Scene | StoredScene, options: DataOptions
) -> Float[np.ndarray, "4 4"]:
    """The similarity from a scene's stored world to the world of its example.

    Applies to `evaluation_example` and `reconstruction_example`.

    Raises:
      DataError: as `training_example`.
    """
    world = evaluation_world(scene, options)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = world.scale * world.rotation, world.translation
    return matrix


def _deterministic_example(
    scene: Scene | StoredScene, inputs: Scene, targets: Scene, options: DataOptions
) -> Batch:
    inputs, targets = normalize_rig(
        inputs, targets, scene.cameras, options.radius, options.frame
    )
    input_views = to_views(inputs, options.input_size, options.background)
    target_views = to_views(targets, options.target_size, options.background)
    return _example(input_views, target_views, scene)


def _example(inputs: Views, targets: Views, scene: Scene | StoredScene) -> Batch:
    return Batch(
        inputs=dataclasses.replace(_float32_cameras(inputs), depths=None),
        targets=_float32_cameras(targets),
        scene_id=np.array(scene.index, np.int32),
    )


def _float32_cameras(views: Views) -> Views:
    cameras = views.cameras
    viewmats = np.asarray(cameras.viewmats, np.float32)
    Ks = np.asarray(cameras.Ks, np.float32)
    return dataclasses.replace(
        views, cameras=Cameras(viewmats, Ks, cameras.width, cameras.height)
    )
