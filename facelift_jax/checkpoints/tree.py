"""Names of the leaves of a pytree, rules over names, and structure differences.

A leaf's name is its path joined by slashes: `unet/conv_in/kernel`.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax

MAX_NAMES = 10  # listed in one error; the others are counted


def flatten_names(tree: Any) -> dict[str, Any]:
    """The leaves by name, in the order of `jax.tree.leaves`.

    A dictionary from names to leaves is returned unchanged.

    Raises:
      ValueError: two leaves have the same name.
    """
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in named:
            raise ValueError(f"two leaves are named {name!r}: rename one")
        named[name] = leaf
    return named


def nest_names(named: dict[str, Any]) -> dict[str, Any]:
    """The nested dictionary whose leaves have these slash-separated names."""
    nested: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return nested


def first_match(
    names: Iterable[str], rules: Sequence[tuple[str, Any]]
) -> dict[str, Any]:
    """The value of the first rule whose regular expression matches the whole name.

    Raises:
      ValueError: lists every problem: a name without a rule, a rule that matches no
        name, a rule whose names are all matched by earlier rules.
    """
    names = list(names)
    deciding = match_rules(names, [pattern for pattern, _ in rules])
    return {name: rules[deciding[name]][1] for name in names}


def match_rules(names: Sequence[str], patterns: Sequence[str]) -> dict[str, int]:
    """Index of the first pattern that matches each name; errors as in `first_match`."""
    compiled = [_compile(index, pattern) for index, pattern in enumerate(patterns)]
    deciding = {}
    for name in names:
        matches = (i for i, regex in enumerate(compiled) if regex.fullmatch(name))
        deciding[name] = next(matches, None)
    problems = []
    uncovered = [name for name, index in deciding.items() if index is None]
    if uncovered:
        problems.append(
            f"no rule covers {list_names(uncovered)}: add a rule, such as '.*' at the "
            "end"
        )
    for index, regex in enumerate(compiled):
        if index in deciding.values():
            continue
        if any(regex.fullmatch(name) for name in names):
            problem = "has no effect, earlier rules match all its names: move it up"
        else:
            problem = "matches no full name: correct it"
        problems.append(f"rule {index} {regex.pattern!r} {problem} or remove it")
    if problems:
        raise ValueError("; ".join(problems))
    return deciding


def structure_diff(expected: Any, actual: Any) -> dict[str, str]:
    """How the leaves of `actual` differ from `expected`: one line per leaf name.

    A leaf is missing, extra, or reshaped (another shape or dtype).
    """
    expected = {name: describe(leaf) for name, leaf in flatten_names(expected).items()}
    actual = {name: describe(leaf) for name, leaf in flatten_names(actual).items()}
    difference = {}
    for name, leaf in expected.items():
        if name not in actual:
            difference[name] = f"missing {name} {leaf}"
        elif actual[name] != leaf:
            difference[name] = f"reshaped {name} {leaf}, found {actual[name]}"
    for name in actual.keys() - expected.keys():
        difference[name] = f"extra {name} {actual[name]}"
    return dict(sorted(difference.items()))


def describe(leaf: Any) -> str:
    """Type and shape of a leaf: `float32[3,64]`, `int`."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    return type(leaf).__name__


def list_names(names: Sequence[str]) -> str:
    """Names for a one-line error message; those after the first ones are counted."""
    listed = ", ".join(names[:MAX_NAMES])
    rest = len(names) - MAX_NAMES
    return f"{listed} and {rest} more" if rest > 0 else listed


def _compile(index: int, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"rule {index} {pattern!r}: not a regular expression ({error})"
        ) from error
