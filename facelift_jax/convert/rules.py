"""PyTorch tensors to our parameters by an ordered table of rules.

A rule renames one kind of tensor and changes its layout. The first rule whose pattern
matches a whole source name decides. A conversion is a bijection: every source tensor
is used, every parameter is filled, each once.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from facelift_jax.checkpoints.tree import flatten_names, nest_names


def unchanged(tensor: np.ndarray) -> np.ndarray:
    """The layout that both sides share: biases, gains."""
    return tensor


def dense_kernel(tensor: np.ndarray) -> np.ndarray:
    """[out in] to [in out]."""
    return np.einsum("oi->io", tensor)


def conv_kernel(tensor: np.ndarray) -> np.ndarray:
    """[out in h w] to [h w in out]."""
    return np.einsum("oihw->hwio", tensor)


class Rule(NamedTuple):
    """A source name that matches `pattern` becomes `target` (\\1: its first group)."""

    pattern: str
    target: str
    layout: Callable[[np.ndarray], np.ndarray] = unchanged


def convert_tensors(
    names: Iterable[str],
    read: Callable[[str], np.ndarray],
    rules: tuple[Rule, ...],
    expected: Any,
) -> dict[str, Any]:
    """Nested dictionary of float32 NumPy arrays in the structure of `expected`.

    `read` gives the tensor of a source name and is called once for each, so that a
    file need not be in memory at once; `expected` has leaves with a shape.

    Raises:
      ValueError: one line with every problem: extra, missing and doubly filled
        tensors, wrong types and shapes, values that are not finite.
    """
    wanted = {name: tuple(leaf.shape) for name, leaf in flatten_names(expected).items()}
    sources: dict[str, str] = {}
    converted: dict[str, np.ndarray] = {}
    problems = []
    for name in names:
        rule = next((r for r in rules if re.fullmatch(r.pattern, name)), None)
        target = rule and re.sub(rule.pattern, rule.target, name)
        if rule is None or target is None or target not in wanted:
            problems.append(f"extra {name}")
        elif target in sources:
            problems.append(f"{name} and {sources[target]} both fill {target}")
        else:
            sources[target] = name
            tensor, problem = _convert(read(name), rule, wanted[target])
            converted[target] = tensor
            problems += [f"{name} {problem}"] if problem else []
    problems += [f"missing {target}" for target in wanted if target not in sources]
    if problems:
        count = f"{len(problems)} problem" + "s" * (len(problems) > 1)
        raise ValueError(f"{count} in the state dictionary: {'; '.join(problems)}")
    return nest_names({target: converted[target] for target in wanted})


def _convert(
    tensor: np.ndarray, rule: Rule, shape: tuple[int, ...]
) -> tuple[np.ndarray, str]:
    """A fresh float32 array in our layout, and what is wrong with it, if anything."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return tensor, f"holds {tensor.dtype}, not floating-point numbers"
    try:
        ours = rule.layout(tensor)
    except ValueError:  # another number of axes
        return tensor, f"has shape {tensor.shape}, which cannot become {shape}"
    if ours.shape != shape:
        return (
            tensor,
            f"has shape {tensor.shape}, in our layout {ours.shape}, not {shape}",
        )
    ours = np.array(ours, np.float32, order="C")
    num_bad = int(ours.size - np.isfinite(ours).sum())
    return ours, f"holds {num_bad} values that are not finite" if num_bad else ""
