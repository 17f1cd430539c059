"""The weights of the loss terms: which are in use, schedules, validation."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from facelift_jax.geometry.numerics import Array
from facelift_jax.losses.terms import TERMS, require_known

Weight = float | int | Array | tuple[float | int, ...]

NETWORK_FILES = ("lpips_weights", "vgg19_weights")
"""Fields of a config's `loss` section that name files and are not terms."""

NO_STOP = 2**31 - 1  # last int32; no run has that many steps


def term_weights(section: Any) -> dict[str, Any]:
    """The weight of every term in a config's `loss` section."""
    return {name: x for name, x in section.items() if name not in NETWORK_FILES}


def weights_at(
    weights: Mapping[str, Weight], step: Array
) -> dict[str, float | int | Array]:
    """The weights in force at `step`, an int32 scalar that counts from zero.

    (weight, start) and (weight, start, stop) are zero before `start` and from `stop`
    on. (weight,) is the number itself: a flag that replaces a schedule by a number
    arrives in this form.
    """

    def at_step(weight):
        if not isinstance(weight, tuple):
            return weight
        value, *steps = weight
        if value == 0 or not steps:
            return value
        start, stop = (*steps, NO_STOP)[:2]
        return jnp.where((step >= start) & (step < stop), jnp.float32(value), 0)

    return {name: at_step(weight) for name, weight in weights.items()}


def validate_weights(weights: Mapping[str, Any]) -> None:
    """Refuses weights that `weights_at` cannot use, before anything is built.

    Raises:
      ValueError: an unknown term; a weight that is not a finite number >= 0, alone or
        with its first and last step; all weights zero.
    """
    require_known(weights)
    for name, weight in weights.items():
        parts: tuple = weight if isinstance(weight, tuple) and weight else (weight,)
        value, steps = parts[0], list(parts[1:])
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0:
            raise ValueError(
                f"loss.{name}: expected a finite weight >= 0, found {value!r}"
            )
        is_ordered = all(isinstance(x, int) for x in steps) and steps == sorted(steps)
        if len(steps) > 2 or not is_ordered or min(steps, default=0) < 0:
            raise ValueError(
                f"loss.{name}: expected (weight, first step) or (weight, first step, "
                f"step to stop at), found {weight!r}"
            )
    if not any(is_used(weight) for weight in weights.values()):
        raise ValueError(
            f"loss: no term has a weight above zero; choose from {', '.join(TERMS)}"
        )


def describe_weights(weights: Mapping[str, Weight]) -> str:
    """One line: the terms in use with their weights, then the names of the others."""
    used = [f"{name} {weight}" for name, weight in weights.items() if is_used(weight)]
    unused = [name for name, weight in weights.items() if not is_used(weight)]
    return f"{', '.join(used)}; not used: {', '.join(unused) or 'none'}"


def is_used(weight: Weight) -> bool:
    """Whether a term of this weight is computed at any step."""
    value = weight[0] if isinstance(weight, tuple) else weight
    return not (isinstance(value, float | int) and value == 0)
