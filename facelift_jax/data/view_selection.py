"""Selects the input views of a scene, and the target views of the loss or metrics."""

import numpy as np
from jaxtyping import Int

from facelift_jax.data.io import DataError
from facelift_jax.data.normalize import Similarity, rig_similarity
from facelift_jax.data.options import DataOptions
from facelift_jax.data.scenes import Scene, StoredScene, take_cameras


def select_views(
    scene: Scene | StoredScene, rng: np.random.Generator, options: DataOptions
) -> tuple[Scene, Scene]:
    """Random input and target views of a scene, decoded.

    If more than `num_inputs` views may be inputs, inputs are drawn in random order;
    otherwise they keep the stored order. Then `min_held_out` targets are drawn from the
    other views within `max_angle` of an input. The remaining targets are drawn from the
    inputs and the rest of those views, without repetition.

    Raises:
      DataError: the scene has too few views, or an image cannot be used.
    """
    pool = _input_pool(scene, options)
    inputs = pool
    if len(pool) > options.num_inputs:
        inputs = rng.choice(pool, options.num_inputs, replace=False)
    num_views = len(scene.is_input)
    others = np.setdiff1d(np.arange(num_views), inputs)
    condition = "not inputs"
    if options.max_angle < 180:
        others = _near(scene, inputs, others, options.max_angle)
        condition += f" and within max_angle={options.max_angle:g} degrees of one"
    others = rng.permutation(others)
    num_usable = len(inputs) + len(others)
    if len(others) < options.min_held_out or num_usable < options.num_targets:
        raise DataError(
            f"scene {scene.name} ({scene.path}): {num_views} views, "
            f"{len(others)} of them {condition}; "
            f"num_targets={options.num_targets} and "
            f"min_held_out={options.min_held_out} need more; reduce them"
        )
    held_out = others[: options.min_held_out]
    remaining = np.concatenate([inputs, others[options.min_held_out :]])
    rest = rng.choice(remaining, options.num_targets - len(held_out), replace=False)
    return _take(scene, inputs, np.concatenate([held_out, rest]))


def select_evaluation_views(
    scene: Scene | StoredScene, options: DataOptions
) -> tuple[Scene, Scene]:
    """Input views, and target views (first the inputs, then held-out views), decoded.

    If there is a choice, views evenly spaced in stored order are taken; at most
    `eval_targets` views are held out.

    Raises:
      DataError: as `select_views`, or there is no held-out view.
    """
    inputs, held_out = evaluation_positions(scene, options)
    return _take(scene, inputs, np.concatenate([inputs, held_out]))


def evaluation_positions(
    scene: Scene | StoredScene, options: DataOptions
) -> tuple[Int[np.ndarray, "v"], Int[np.ndarray, "o"]]:
    """Positions in the scene of the input and held-out views of its evaluation.

    Raises:
      DataError: the scene has too few views, or there is no held-out view.
    """
    inputs = input_positions(scene, options)
    others = np.setdiff1d(np.arange(len(scene.is_input)), inputs)
    if len(others) == 0:
        raise DataError(
            f"scene {scene.name} ({scene.path}): all {len(inputs)} views are inputs "
            "and none is held out; reduce num_inputs"
        )
    return inputs, _evenly(others, min(options.eval_targets, len(others)))


def evaluation_world(scene: Scene | StoredScene, options: DataOptions) -> Similarity:
    """From the stored world to the world of evaluation and reconstruction examples.

    Raises:
      DataError: as `rig_similarity`, or the scene has too few views.
    """
    where = f"scene {scene.name} ({scene.path})"
    cameras = take_cameras(scene.cameras, input_positions(scene, options))
    return rig_similarity(cameras, scene.cameras, options.radius, options.frame, where)


def input_positions(
    scene: Scene | StoredScene, options: DataOptions
) -> Int[np.ndarray, "v"]:
    """Positions in the scene of the input views for evaluation and reconstruction.

    Raises:
      DataError: the scene has too few views.
    """
    return _evenly(_input_pool(scene, options), options.num_inputs)


def _input_pool(
    scene: Scene | StoredScene, options: DataOptions
) -> Int[np.ndarray, "p"]:
    """The views that may be inputs, as positions in the scene."""
    where = f"scene {scene.name} ({scene.path})"
    all_views = np.arange(len(scene.is_input))
    if options.input_views is not None:
        pool, kind = np.unique(options.input_views), "views in input_views"
        unknown = np.setdiff1d(pool, all_views)
        if len(unknown) > 0:
            raise DataError(
                f"{where}: input_views contains view {unknown[0]}, but the scene has "
                f"{len(all_views)} views"
            )
    elif scene.is_input.any():
        pool, kind = np.flatnonzero(scene.is_input), "views marked as inputs"
    else:
        pool, kind = all_views, "views"
    if len(pool) < options.num_inputs:
        raise DataError(
            f"{where}: {len(pool)} {kind}, but num_inputs={options.num_inputs} needs "
            "more; reduce it"
        )
    return _evenly(pool, options.num_inputs) if kind == "views" else pool


def _near(
    scene: Scene | StoredScene,
    inputs: Int[np.ndarray, "v"],
    others: Int[np.ndarray, "o"],
    max_angle: float,
) -> Int[np.ndarray, "n"]:
    """The views of `others` within `max_angle` degrees of some input.

    As in GS-LRM, a target should see what some input sees. FaceLift's code uses the dot
    product of two camera positions as the cosine without normalizing them: at its
    camera distance of 2.7, its limit of 60 degrees is in fact 86 degrees.
    """
    cameras = scene.cameras
    where = f"scene {scene.name} ({scene.path})"
    world = rig_similarity(take_cameras(cameras, inputs), cameras, 1.0, "world", where)
    positions = world.scale * cameras.centers + world.translation
    directions = positions / np.linalg.norm(positions, axis=-1, keepdims=True)
    cosines = np.einsum("oi,vi->ov", directions[others], directions[inputs])
    return others[cosines.max(axis=-1) >= np.cos(np.deg2rad(max_angle))]


def _evenly(views: Int[np.ndarray, "n"], count: int) -> Int[np.ndarray, "count"]:
    return views[np.arange(count) * len(views) // count]


def _take(
    scene: Scene | StoredScene,
    inputs: Int[np.ndarray, "v"],
    targets: Int[np.ndarray, "t"],
) -> tuple[Scene, Scene]:
    """The input and target views; an image in both is decoded once."""
    views = np.union1d(inputs, targets)
    decoded = scene.take(views)
    return (
        decoded.take(np.searchsorted(views, inputs)),
        decoded.take(np.searchsorted(views, targets)),
    )
