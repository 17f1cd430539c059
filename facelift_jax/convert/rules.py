"""Converts PyTorch tensors to this package's parameters by a table of rules.

A rule gives the published name and our name of one kind of tensor, and says how its
layout changes. A conversion is a bijection: every source tensor is used and every
parameter is filled, each exactly once.
"""

import functools
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from facelift_jax.checkpoints.tree import flatten_names, nest_names

MAX_LISTED = 4  # problems of one kind in an error message; the others are counted

_log = logging.getLogger(__name__)


def unchanged(tensor: np.ndarray) -> np.ndarray:
    """Keeps the layout: biases and gains."""
    return tensor


def dense_kernel(tensor: np.ndarray) -> np.ndarray:
    """[out in] to [in out]."""
    return np.einsum("oi->io", tensor)


def conv_kernel(tensor: np.ndarray) -> np.ndarray:
    """[out in h w] to [h w in out]."""
    return np.einsum("oihw->hwio", tensor)


class Rule(NamedTuple):
    """The published name and our name of one kind of tensor.

    Both names are format strings with the same fields, which are block numbers:
    `layers.{i}.norm.weight` and `block_{i:02d}/norm/scale`.
    """

    published: str
    ours: str
    layout: Callable[[np.ndarray], np.ndarray] = unchanged

    def to_ours(self, name: str) -> str | None:
        """Our name of a published tensor; None if the rule does not match it."""
        return _translate(name, self.published, self.ours)

    def to_published(self, name: str) -> str | None:
        """The published name of a parameter; None if the rule does not match it."""
        return _translate(name, self.ours, self.published)


def _translate(name: str, source: str, target: str) -> str | None:
    match = _pattern(source).fullmatch(name)
    if match is None:
        return None
    numbers = {field: int(digits) for field, digits in match.groupdict().items()}
    # "00" is not the name of block 0 where names have no leading zeros
    return target.format(**numbers) if source.format(**numbers) == name else None


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """The regular expression of a name's format string."""
    escaped = re.sub(r"\{(\w+)[^}]*\}|([^{]+)", _as_regex, template)
    return re.compile(escaped)


def _as_regex(part: re.Match[str]) -> str:
    field, text = part.groups()
    return rf"(?P<{field}>\d+)" if field else re.escape(text)


def strip_common_prefix(keys: Iterable[str], rules: Sequence[Rule]) -> dict[str, str]:
    """The keys of a state dictionary by their names without a wrapper's prefix.

    `DataParallel` (`module.`), `torch.compile` (`_orig_mod.`) and Lightning modules
    (`model.`) put a prefix on the name of every tensor. If no rule matches any key,
    parts that end with a dot are removed from the front of all keys until a rule
    matches one of them; the removal is logged. If the keys share no such prefix, they
    stay unchanged.
    """
    keys = list(keys)
    prefix = ""
    while keys and not any(_matches(key.removeprefix(prefix), rules) for key in keys):
        head, dot, _ = keys[0].removeprefix(prefix).partition(".")
        prefix += head + dot
        if not dot or not all(key.startswith(prefix) for key in keys):
            prefix = ""
            break
    if prefix:
        _log.warning("removed %r from the names of all %d tensors", prefix, len(keys))
    return {key.removeprefix(prefix): key for key in keys}


def _matches(name: str, rules: Sequence[Rule]) -> bool:
    return any(rule.to_ours(name) for rule in rules)


def convert_tensors(
    names: Iterable[str],
    read: Callable[[str], np.ndarray],
    rules: Sequence[Rule],
    expected: Any,
) -> dict[str, Any]:
    """Nested dictionary of float32 NumPy arrays in the structure of `expected`.

    Args:
      names: published names of the source tensors.
      read: returns the tensor of a name. It is called once per name, so a file need
        not be in memory at once.
      rules: the first rule that matches a name is applied.
      expected: the pytree to fill; its leaves have a shape.

    Raises:
      ValueError: one line with every kind of problem: wrong types and shapes, values
        that are not finite, tensors for the same parameter, extra and missing tensors.
        Of each kind the first MAX_LISTED are listed and the others counted.
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten_names(expected).items()}
    sources: dict[str, str] = {}
    converted: dict[str, np.ndarray] = {}
    problems: dict[str, list[str]] = {
        kind: [] for kind in ("unusable", "duplicate", "extra", "missing")
    }
    for name in names:
        translations = ((rule, rule.to_ours(name)) for rule in rules)
        rule, target = next(((r, t) for r, t in translations if t), (None, None))
        if rule is None or target not in shapes:
            problems["extra"].append(f"extra {name}")
        elif target in sources:
            problems["duplicate"].append(
                f"{name} and {sources[target]} both fill {target}"
            )
        else:
            sources[target] = name
            tensor, problem = _convert(read(name), rule, shapes[target])
            converted[target] = tensor
            if problem:
                problems["unusable"].append(f"{name} {problem}")
    problems["missing"] = [
        f"missing {_published_name(target, rules)}"
        for target in shapes
        if target not in sources
    ]
    if any(problems.values()):
        raise ValueError(_summarize(problems))
    return nest_names({target: converted[target] for target in shapes})


def _published_name(target: str, rules: Sequence[Rule]) -> str:
    """The published name of a parameter, followed by our name."""
    names = (rule.to_published(target) for rule in rules)
    published = next((name for name in names if name), None)
    return f"{published} ({target})" if published else target


def _summarize(problems: Mapping[str, list[str]]) -> str:
    """One line: how many problems there are, and the first ones of each kind."""
    parts = []
    for kind, lines in problems.items():
        parts += lines[:MAX_LISTED]
        if len(lines) > MAX_LISTED:
            parts.append(f"{len(lines) - MAX_LISTED} more {kind} tensors")
    count = sum(map(len, problems.values()))
    noun = "problem" if count == 1 else "problems"
    return f"{count} {noun} in the state dictionary: {'; '.join(parts)}"


def _convert(
    tensor: np.ndarray, rule: Rule, shape: tuple[int, ...]
) -> tuple[np.ndarray, str]:
    """A new float32 array in our layout, and its problem or an empty string."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return tensor, f"holds {tensor.dtype}, not floating-point numbers"
    try:
        array = rule.layout(tensor)
    except ValueError:  # another number of axes
        return tensor, f"has shape {tensor.shape}, which cannot become {shape}"
    if array.shape != shape:
        return (
            tensor,
            f"has shape {tensor.shape}, in our layout {array.shape}, not {shape}",
        )
    array = np.array(array, np.float32, order="C")
    num_bad = int(array.size - np.isfinite(array).sum())
    return array, f"holds {num_bad} values that are not finite" if num_bad else ""
