"""Selection of input and target views; invalid options."""

import dataclasses

import numpy as np
import pytest
from tiny_scenes import CENTER, poses

from facelift_jax.data.examples import evaluation_example, training_example
from facelift_jax.data.io import DataError
from facelift_jax.data.options import DataOptions
from facelift_jax.data.pipeline import require_evaluation_views
from facelift_jax.data.scenes import Scene
from facelift_jax.data.view_selection import select_evaluation_views, select_views

SMALL = DataOptions(
    input_size=16, target_size=24, num_inputs=3, num_targets=5, min_held_out=3
)


def with_inputs(scene, views):
    return dataclasses.replace(
        scene.take(np.arange(8)), is_input=np.isin(np.arange(8), views)
    )


def view_numbers(views: Scene, scene):
    """The positions of the views in the stored scene, identified by their poses."""
    stored = [pose.tobytes() for pose in scene.cameras.viewmats]
    return [stored.index(pose.tobytes()) for pose in views.cameras.viewmats]


def test_marked_views_are_inputs_and_enough_targets_are_held_out(scene):
    seen = set()
    for seed in range(40):
        inputs, targets = select_views(scene, np.random.default_rng(seed), SMALL)
        assert view_numbers(inputs, scene) == [0, 1, 2]
        numbers = view_numbers(targets, scene)
        assert len(set(numbers)) == 5
        assert len(set(numbers) - {0, 1, 2}) >= 3
        seen |= set(numbers)
    assert seen == set(range(8))


def test_inputs_are_drawn_from_a_larger_pool(scene):
    options = dataclasses.replace(SMALL, input_views=(7, 3, 4, 5, 6), num_inputs=2)
    drawn = []
    for seed in range(60):
        inputs, targets = select_views(scene, np.random.default_rng(seed), options)
        drawn.append(tuple(view_numbers(inputs, scene)))
        held_out = set(view_numbers(targets, scene)) - set(drawn[-1])
        assert len(held_out) >= 3
    assert {number for pair in drawn for number in pair} == {3, 4, 5, 6, 7}
    assert any(a > b for a, b in drawn)  # in random order, too
    inputs, _ = select_evaluation_views(scene, options)
    assert view_numbers(inputs, scene) == [3, 5]


@pytest.mark.parametrize("max_angle", [50.0, 100.0])
def test_targets_stay_near_an_input(scene, max_angle):
    """Angles seen from the center of the ball, which every camera looks at."""
    options = dataclasses.replace(
        SMALL, max_angle=max_angle, min_held_out=1, num_targets=3
    )
    offsets = np.stack([c2w[:3, 3] - CENTER for c2w in poses(8)])
    directions = offsets / np.linalg.norm(offsets, axis=-1, keepdims=True)
    angles = np.rad2deg(np.arccos(np.clip(directions @ directions.T, -1, 1)))
    nearest = angles[:, :3].min(axis=1)  # the first three are the inputs
    allowed = {int(v) for v in np.flatnonzero(nearest <= max_angle)}
    assert {0, 1, 2} < allowed < set(range(8))
    seen = set()
    for seed in range(60):
        _, targets = select_views(scene, np.random.default_rng(seed), options)
        seen |= set(view_numbers(targets, scene))
    assert seen == allowed


def test_evaluation_targets_are_the_inputs_and_then_the_others(scene):
    inputs, targets = select_evaluation_views(scene, SMALL)
    assert view_numbers(inputs, scene) == [0, 1, 2]
    assert view_numbers(targets, scene) == [0, 1, 2, 3, 4, 5, 6, 7]
    fewer = dataclasses.replace(SMALL, eval_targets=2)
    _, targets = select_evaluation_views(scene, fewer)
    assert view_numbers(targets, scene) == [0, 1, 2, 3, 5]


def test_inputs_of_an_unmarked_scene_are_evenly_spaced(scene):
    unmarked = with_inputs(scene, [])
    options = dataclasses.replace(SMALL, num_inputs=4)
    inputs, _ = select_views(unmarked, np.random.default_rng(0), options)
    assert view_numbers(inputs, scene) == [0, 2, 4, 6]
    inputs, _ = select_evaluation_views(unmarked, options)
    assert view_numbers(inputs, scene) == [0, 2, 4, 6]


def test_views_and_pixels_stay_together(scene):
    everything = scene.take(np.arange(8))
    for views in select_views(scene, np.random.default_rng(5), SMALL):
        numbers = view_numbers(views, scene)
        np.testing.assert_array_equal(views.rgba, everything.rgba[numbers])
        np.testing.assert_array_equal(views.depths, everything.depths[numbers])
        np.testing.assert_array_equal(views.is_input, everything.is_input[numbers])


TOO_FEW = {
    "flags": (
        {"num_inputs": 4},
        "3 views marked as inputs, but num_inputs=4 needs more; reduce it",
    ),
    "pool": (
        {"input_views": (1, 2), "num_inputs": 4},
        "2 views in input_views, but num_inputs=4 needs more; reduce it",
    ),
    "unknown view": (
        {"input_views": (1, 2, 8)},
        "input_views contains view 8, but the scene has 8 views",
    ),
    "negative view": (
        {"input_views": (-1, 2, 5)},
        "input_views contains view -1, but the scene has 8 views",
    ),
    "held out": (
        {"min_held_out": 6, "num_targets": 6},
        "8 views, 5 of them not inputs; num_targets=6 and min_held_out=6 need more; "
        "reduce them",
    ),
    "near": (
        {"max_angle": 5.0},
        "8 views, 0 of them not inputs and within max_angle=5 degrees of one; "
        "num_targets=5 and min_held_out=3 need more; reduce them",
    ),
    "targets": (
        {"num_targets": 9},
        "8 views, 5 of them not inputs; num_targets=9 and min_held_out=3 need more; "
        "reduce them",
    ),
}


@pytest.mark.parametrize("name", TOO_FEW)
def test_too_few_views_raise_with_one_line(scene, folder, name):
    changes, expected = TOO_FEW[name]
    options = dataclasses.replace(SMALL, **changes)
    with pytest.raises(DataError) as caught:
        training_example(scene, np.random.default_rng(0), options)
    assert str(caught.value) == f"scene ball ({folder}): {expected}"


def test_a_scene_without_held_out_views_cannot_be_evaluated(scene, folder):
    options = dataclasses.replace(SMALL, num_inputs=7)
    alone = with_inputs(scene, range(8)).take(np.arange(7))
    source = [with_inputs(scene, []), alone]
    for evaluate in (
        lambda: evaluation_example(alone, options),
        lambda: require_evaluation_views(source, options),
    ):
        with pytest.raises(DataError) as caught:
            evaluate()
        assert str(caught.value) == (
            f"scene ball ({folder}): all 7 views are inputs and none is held out; "
            "reduce num_inputs"
        )
    allowed = dataclasses.replace(options, bad_scenes_allowed=1)
    require_evaluation_views(source, allowed)


BAD_OPTIONS = {
    "size": ({"input_size": 0}, "input_size must be at least 1, found 0"),
    "frame": (
        {"frame": "opengl"},
        "frame must be one of ('first_camera', 'world'), found 'opengl'",
    ),
    "angle": ({"max_angle": 0.0}, "max_angle must be in (0, 180], found 0.0"),
    "radius": ({"radius": 0.0}, "radius must be positive, found 0.0"),
    "targets": (
        {"num_targets": 3, "min_held_out": 4},
        "min_held_out=4 is more than num_targets=3; reduce it or use more targets",
    ),
    "background": (
        {"background": (255.0, 255.0, 255.0)},
        "background must be RGB in [0, 1], found (255.0, 255.0, 255.0)",
    ),
    "probability": (
        {"camera_jitter": 18.0},
        "camera_jitter must be a probability, found 18.0",
    ),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_raise(name):
    changes, expected = BAD_OPTIONS[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared in full below
        DataOptions(**changes)
    assert str(caught.value) == expected
