"""Which views of a scene the network sees, and which it is compared with."""

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

    Where more views than `num_inputs` may be inputs, some are drawn, in random order;
    else they keep the stored order. Then `min_held_out` targets are drawn from the
    other views near enough to an input, and the rest from all such views left, inputs
    among them; none twice.

    Raises:
      DataError: fewer views than asked for, or a picture cannot be used.
    """
    pool = _input_pool(scene, options)
    inputs = pool
    if len(pool) > options.num_inputs:
        inputs = rng.choice(pool, options.num_inputs, replace=False)
    num_views = len(scene.is_input)
    others = np.setdiff1d(np.arange(num_views), inputs)
    what = "not inputs"
    if options.max_angle < 180:
        others = _near(scene, inputs, others, options.max_angle)
        what += f" and within max_angle={options.max_angle:g} degrees of one"
    others = rng.permutation(others)
    num_usable = len(inputs) + len(others)
    if len(others) < options.min_held_out or num_usable < options.num_targets:
        raise DataError(
            f"scene {scene.name} ({scene.path}): {num_views} views, "
            f"{len(others)} of them {what}, but num_targets={options.num_targets} "
            f"and min_held_out={options.min_held_out} were asked for"
        )
    held_out = others[: options.min_held_out]
    left = np.concatenate([inputs, others[options.min_held_out :]])
    rest = rng.choice(left, options.num_targets - len(held_out), replace=False)
    return _take(scene, inputs, np.concatenate([held_out, rest]))


def select_evaluation_views(
    scene: Scene | StoredScene, options: DataOptions
) -> tuple[Scene, Scene]:
    """Input views, and target views (the inputs first, then held-out ones), decoded.

    Where there is a choice, views evenly spaced in stored order are taken; at most
    `eval_targets` are held out.

    Raises:
      DataError: as `select_views`, or no view is left to judge from.
    """
    inputs, held_out = evaluation_positions(scene, options)
    return _take(scene, inputs, np.concatenate([inputs, held_out]))


def evaluation_positions(
    scene: Scene | StoredScene, options: DataOptions
) -> tuple[Int[np.ndarray, "v"], Int[np.ndarray, "o"]]:
    """Positions in the scene of the input and held-out views it is judged by.

    Raises:
      DataError: fewer views than asked for, or no view is left to judge from.
    """
    inputs = input_positions(scene, options)
    others = np.setdiff1d(np.arange(len(scene.is_input)), inputs)
    if len(others) == 0:
        raise DataError(
            f"scene {scene.name} ({scene.path}): all {len(inputs)} views are inputs, "
            "so no view is left to judge from; ask for fewer inputs"
        )
    return inputs, _evenly(others, min(options.eval_targets, len(others)))


def evaluation_world(scene: Scene | StoredScene, options: DataOptions) -> Similarity:
    """From the stored world to that of the scene's evaluation and reconstruction.

    Raises:
      DataError: as `rig_similarity`, or fewer views than asked for.
    """
    where = f"scene {scene.name} ({scene.path})"
    cameras = take_cameras(scene.cameras, input_positions(scene, options))
    return rig_similarity(cameras, scene.cameras, options.radius, options.frame, where)


def select_input_views(
    scene: Scene | StoredScene, options: DataOptions
) -> tuple[Scene, Scene]:
    """The input views of `select_evaluation_views`, as inputs and as targets.

    Raises:
      DataError: fewer views than asked for, or a picture cannot be used.
    """
    inputs = input_positions(scene, options)
    return _take(scene, inputs, inputs)


def input_positions(
    scene: Scene | StoredScene, options: DataOptions
) -> Int[np.ndarray, "v"]:
    """Positions in the scene of the input views that nothing random chooses.

    Raises:
      DataError: fewer views than asked for.
    """
    return _evenly(_input_pool(scene, options), options.num_inputs)


def _input_pool(
    scene: Scene | StoredScene, options: DataOptions
) -> Int[np.ndarray, "p"]:
    """The views that may be inputs, as positions in the scene."""
    where = f"scene {scene.name} ({scene.path})"
    everything = np.arange(len(scene.is_input))
    if options.input_views is not None:
        pool, what = np.unique(options.input_views), "views named in input_views"
        unknown = np.setdiff1d(pool, everything)
        if len(unknown) > 0:
            raise DataError(
                f"{where}: input_views names view {unknown[0]}, but the scene has "
                f"{len(everything)} views"
            )
    elif scene.is_input.any():
        pool, what = np.flatnonzero(scene.is_input), "views flagged as inputs"
    else:
        pool, what = everything, "views"
    if len(pool) < options.num_inputs:
        raise DataError(
            f"{where}: {len(pool)} {what}, but num_inputs={options.num_inputs} were "
            "asked for"
        )
    return _evenly(pool, options.num_inputs) if what == "views" else pool


def _near(
    scene: Scene | StoredScene,
    inputs: Int[np.ndarray, "v"],
    others: Int[np.ndarray, "o"],
    max_angle: float,
) -> Int[np.ndarray, "n"]:
    """The views of `others` that stand within an angle of some input.

    GS-LRM's rule asks that a target see what some input saw. FaceLift's program takes
    products of positions that have not length one for cosines: at its distance of 2.7
    its 60 degrees are 86.
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
    """The scene's input and target views; a picture both need is decoded once."""
    views = np.union1d(inputs, targets)
    read = scene.take(views)
    return (
        read.take(np.searchsorted(views, inputs)),
        read.take(np.searchsorted(views, targets)),
    )
