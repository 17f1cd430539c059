"""Leaf names, rules over them, and structure differences."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facelift_jax.checkpoints import tree

NAMES = ["unet/conv_in/kernel", "unet/conv_in/bias", "unet/up/kernel", "head/kernel"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    params: Any
    step: int


def test_names_are_paths_joined_by_slashes_in_leaf_order():
    state = State({"unet": {"b": 1, "a": (2, [3])}}, step=4)
    named = tree.flatten_names(state)
    assert named == {
        "params/unet/a/0": 2,
        "params/unet/a/1/0": 3,
        "params/unet/b": 1,
        "step": 4,
    }
    assert list(named.values()) == jax.tree.leaves(state)


def test_names_flatten_to_themselves_and_nest_back():
    nested = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    named = tree.flatten_names(nested)
    assert tree.flatten_names(named) == named
    assert tree.nest_names(named) == nested


def test_two_leaves_with_one_name_are_refused():
    with pytest.raises(ValueError, match="two leaves are named 'a/b': rename one"):
        tree.flatten_names({"a": {"b": 1}, "a/b": 2})


def test_the_first_matching_rule_gives_the_value():
    rules = [("unet/conv_in/.*", None), ("unet/.*", 0.1), (".*", 1.0)]
    assert tree.first_match(NAMES, rules) == dict(
        zip(NAMES, [None, None, 0.1, 1.0], strict=True)
    )


def test_a_rule_matches_the_whole_name():
    with pytest.raises(ValueError, match="no rule covers"):
        tree.first_match(NAMES, [("unet", 1.0), (".*/bias", 1.0)])


@pytest.mark.parametrize(
    ("rules", "line"),
    [
        (
            [("unet/.*", 1.0)],
            "no rule covers head/kernel: add a rule, such as '.*' at the end",
        ),
        (
            [("decoder/.*", None), (".*", 1.0)],
            "rule 0 'decoder/.*' matches no full name: correct it or remove it",
        ),
        (
            [(".*", 1.0), ("head/.*", None)],
            "rule 1 'head/.*' has no effect, earlier rules match all its names: "
            "move it up or remove it",
        ),
        (
            [("conv", None), ("unet/.*", 1.0)],
            "no rule covers head/kernel: add a rule, such as '.*' at the end; "
            "rule 0 'conv' matches no full name: correct it or remove it",
        ),
        (
            [("(", None)],
            "rule 0 '(': not a regular expression "
            "(missing ), unterminated subpattern at position 0)",
        ),
    ],
)
def test_rules_that_do_not_fit(rules, line):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the line is compared)
        tree.first_match(NAMES, rules)
    assert str(error.value) == line


def test_many_names_are_counted():
    with pytest.raises(ValueError, match=r"n9 and 5 more: add") as error:
        tree.first_match([f"n{i}" for i in range(15)], [])
    assert "\n" not in str(error.value)


def test_structure_diff_names_every_difference():
    expected = {"a": {"w": jnp.zeros((3, 4)), "b": np.zeros(4, np.float32)}, "n": 1}
    actual = {"a": {"w": jnp.zeros((3, 5)), "c": jnp.zeros(2, jnp.int32)}, "n": 2}
    assert tree.structure_diff(expected, actual) == {
        "a/b": "missing a/b float32[4]",
        "a/c": "extra a/c int32[2]",
        "a/w": "reshaped a/w float32[3,4], found float32[3,5]",
    }
    assert tree.structure_diff(expected, expected) == {}


def test_another_dtype_is_a_difference():
    difference = tree.structure_diff({"a": jnp.ones(2)}, {"a": np.ones(2)})
    assert list(difference.values()) == ["reshaped a float32[2], found float64[2]"]


def test_a_struct_and_its_shapes_have_the_same_structure():
    state = State({"w": jnp.ones((2, 3))}, step=0)
    shapes = jax.eval_shape(lambda: {"params": {"w": jnp.ones((2, 3))}})
    assert tree.structure_diff({"params": state.params}, shapes) == {}
