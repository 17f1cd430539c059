"""A profile of some steps: which ones, and what it holds."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from facelift_jax.training import profiling


def test_steps_of_a_profile():
    assert profiling.parse_steps("", 10) == range(0)
    assert profiling.parse_steps("3:5", 10) == range(3, 6)
    assert profiling.parse_steps("10:10", 10) == range(10, 11)


@pytest.mark.parametrize("text", ["3", "3:", "0:4", "5:4", "9:11", "3:4:5", "-1:4"])
def test_other_steps_are_refused(text):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the line is compared)
        profiling.parse_steps(text, 10)
    assert str(error.value) == (
        f"run.profile={text!r}: expected START:STOP, the first and the last step to "
        "profile, between 1 and run.num_steps=10"
    )


def steps_in(directory):
    """Numbers of the steps that a profile marks."""
    (path,) = directory.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    marks = [event for event in events if event.get("name") == "train"]
    return [int(mark["args"]["step_num"]) for mark in marks]


@pytest.mark.parametrize(("start", "expected"), [(1, [3, 4]), (4, [4])])
def test_a_profile_marks_its_steps(start, expected, tmp_path):
    """A run that is resumed at step 4 profiles only that one; results are the same."""
    step_fn = profiling.profiled(jax.jit(lambda x: x + 1), range(3, 5), tmp_path)
    x = jnp.zeros(2)
    for step in range(start, 7):
        x = step_fn(step, x)
    assert x.tolist() == [7 - start] * 2
    assert steps_in(tmp_path) == expected


def test_no_profile(tmp_path):
    step_fn = profiling.profiled(lambda x: x + 1, range(0), tmp_path)
    assert step_fn(1, 1) == 2
    assert not list(tmp_path.iterdir())
