"""The data options of reconstructions and evaluations without a network."""

import logging

import numpy as np
import pytest
from tiny_scenes import write_scene

from facelift_jax.builders import (
    MAX_DEFAULT_INPUTS,
    MAX_SIZE,
    baseline_options,
    make_renderer,
)
from facelift_jax.data.scenes import open_source
from facelift_jax.data.view_selection import evaluation_positions


def scene(folder, **kwargs):
    write_scene(folder / "scene", **kwargs)
    return open_source(folder)[0]


@pytest.mark.parametrize(
    ("num_views", "num_reconstructed", "num_evaluated"),
    [(1, 1, 1), (4, 4, 3), (5, 5, 3), (8, 8, 6), (10, 8, 7), (12, 8, 8), (40, 8, 8)],
)
def test_unmarked_views_are_inputs_but_an_evaluation_holds_out_a_quarter(
    tmp_path, caplog, num_views, num_reconstructed, num_evaluated
):
    caplog.set_level(logging.INFO, "absl")
    unmarked = scene(tmp_path, num_views=num_views, num_inputs=0)
    for num_held_out, num_inputs in ((None, num_reconstructed), (12, num_evaluated)):
        caplog.clear()
        options = baseline_options(unmarked, num_held_out, None)
        assert options.num_inputs == num_inputs <= MAX_DEFAULT_INPUTS
        line = f"scene: {num_inputs} of {num_views} views are inputs; --inputs N"
        lines = [message.startswith(line) for message in caplog.messages]
        assert lines == [True] * (num_inputs < num_views)
    if num_views > 1:
        inputs, held_out = evaluation_positions(unmarked, options)
        assert (len(inputs), len(held_out)) == (
            num_inputs,
            min(12, num_views - num_inputs),
        )
        assert np.ptp(np.diff(inputs)) <= 1  # evenly spaced


def test_marks_and_flags_come_before_the_default_number_of_inputs(tmp_path, caplog):
    caplog.set_level(logging.INFO, "absl")
    marked = scene(tmp_path, num_views=12, num_inputs=10)
    for num_held_out in (None, 3):
        assert baseline_options(marked, num_held_out, None).num_inputs == 10
        assert baseline_options(marked, num_held_out, 2).num_inputs == 2
    assert baseline_options(marked, 3, None).eval_targets == 3
    assert not caplog.messages


@pytest.mark.parametrize("num_held_out", [None, 12])
def test_large_images_are_reduced_and_reported(tmp_path, caplog, num_held_out):
    caplog.set_level(logging.INFO, "absl")
    for width, height, side in ((320, 300, MAX_SIZE), (24, 30, 24)):
        folder = tmp_path / str(width)
        size = {"width": width, "height": height}
        options = baseline_options(scene(folder, **size), num_held_out, None)
        assert (options.input_size, options.target_size) == (side, side)
    assert caplog.messages == ["scene: images of 300 px are reduced to 256 px"]


def test_the_same_settings_give_the_same_renderer():
    """So functions that take a renderer as a static argument are compiled once."""
    assert make_renderer((1.0, 1.0, 1.0)) is make_renderer((1.0,) * 3)
    section = {"backend": "", "antialiased": False}
    assert make_renderer((1.0,) * 3) is make_renderer((1.0,) * 3, **section)
    assert make_renderer((1.0,) * 3) is not make_renderer((0.0,) * 3)
