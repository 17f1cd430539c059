"""From a scene to an example, checked against an exact ball."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_scenes import points_and_normals

from facelift_jax.data.examples import (
    evaluation_example,
    normalised_from_stored,
    training_example,
)
from facelift_jax.data.options import DataOptions
from facelift_jax.structs import check

SMALL = DataOptions(
    input_size=16, target_size=24, num_inputs=3, num_targets=5, min_held_out=3
)


def ball_frames(example, side):
    """Points and normals of all views of one side of an example."""
    views = getattr(example, side)
    for view in range(len(views.images)):
        solid = views.masks[view, ..., 0] == 1
        yield points_and_normals(
            views.images[view],
            views.depths[view, ..., 0] * solid,
            views.cameras.viewmats[view],
            views.cameras.Ks[view],
        )


@pytest.mark.parametrize("frame", ["first_camera", "world"])
def test_the_ball_stays_a_ball_in_an_example(scene, frame):
    options = dataclasses.replace(SMALL, frame=frame, input_views=(5, 2, 0, 7))
    example = training_example(scene, np.random.default_rng(2), options)
    points, normals = (
        np.concatenate(parts)
        for parts in zip(*ball_frames(example, "targets"), strict=True)
    )
    radius = np.linalg.norm(points, axis=-1)
    # the errors come from depth steps of 1e-4 and color steps of 1/255
    assert radius.std() < 1e-3
    turn = np.linalg.lstsq(normals, points / radius.mean(), rcond=None)[0].T
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=2e-2)
    assert np.abs(points - radius.mean() * normals @ turn.T).max() < 2e-2
    if frame == "world":
        np.testing.assert_allclose(turn, np.eye(3), atol=1e-2)


@pytest.mark.parametrize("frame", ["first_camera", "world"])
def test_stored_points_map_to_the_world_of_the_example(scene, frame):
    """A point of the stored world projects to the same pixels in both worlds."""
    options = dataclasses.replace(SMALL, frame=frame, target_size=scene.cameras.width)
    example = evaluation_example(scene, options)
    matrix = normalised_from_stored(scene, options)
    turn = matrix[:3, :3] / np.cbrt(np.linalg.det(matrix[:3, :3]))
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)
    point = np.array([0.1, -0.2, 0.15, 1])

    def pixels(cameras, point):
        local = np.einsum("vij,j->vi", np.float64(cameras.viewmats), point)[:, :3]
        ray = np.einsum("vij,vj->vi", np.float64(cameras.Ks), local)
        return ray[:, :2] / ray[:, 2:]

    stored = pixels(scene.cameras, point)
    mapped = pixels(example.targets.cameras, matrix @ point)
    for view in mapped:
        assert np.abs(stored - view).max(-1).min() < 1e-3


def test_an_example_is_a_batch_without_its_first_axis(scene):
    example = training_example(scene, np.random.default_rng(0), SMALL)
    axes = check(jax.tree.map(lambda array: array[None], example))
    assert axes == {"b": 1, "v": 3, "t": 5}
    assert example.inputs.images.shape == (3, 16, 16, 3)
    assert example.targets.images.shape == (5, 24, 24, 3)
    assert example.inputs.depths is None
    assert example.targets.depths.shape == (5, 24, 24, 1)
    assert example.scene_id.dtype == np.int32
    leaves = [*jax.tree.leaves(example.inputs), *jax.tree.leaves(example.targets)]
    assert all(leaf.dtype == np.float32 for leaf in leaves)


def test_an_evaluation_example_repeats_the_inputs_as_targets(scene):
    options = dataclasses.replace(
        SMALL, target_size=16, grid_distortion=1.0, camera_jitter=1.0
    )
    example = evaluation_example(scene, options)
    for field in ("images", "masks"):
        np.testing.assert_array_equal(
            getattr(example.inputs, field), getattr(example.targets, field)[:3]
        )
    cameras = (example.inputs.cameras, example.targets.cameras)
    np.testing.assert_array_equal(cameras[0].viewmats, cameras[1].viewmats[:3])
    np.testing.assert_array_equal(cameras[0].Ks, cameras[1].Ks[:3])
    again = evaluation_example(scene, options)
    jax.tree.map(np.testing.assert_array_equal, example, again)


def test_an_example_is_a_function_of_scene_and_generator(scene):
    options = dataclasses.replace(
        SMALL, grid_distortion=0.5, camera_jitter=0.5, input_views=(0, 1, 2, 3)
    )
    np.random.seed(0)  # noqa: NPY002 - the global state must not matter
    one = training_example(scene, np.random.default_rng(7), options)
    two = training_example(scene, np.random.default_rng(7), options)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    other = training_example(scene, np.random.default_rng(8), options)
    assert not np.array_equal(one.targets.images, other.targets.images)


def test_only_the_inputs_are_augmented(scene):
    options = dataclasses.replace(SMALL, min_held_out=2)
    plain = training_example(scene, np.random.default_rng(3), options)
    both = dataclasses.replace(options, grid_distortion=1.0, camera_jitter=1.0)
    augmented = training_example(scene, np.random.default_rng(3), both)
    jax.tree.map(np.testing.assert_array_equal, plain.targets, augmented.targets)
    assert not np.array_equal(plain.inputs.images, augmented.inputs.images)
    difference = plain.inputs.cameras.viewmats != augmented.inputs.cameras.viewmats
    assert difference.any((1, 2)).tolist() == [False, True, True]
