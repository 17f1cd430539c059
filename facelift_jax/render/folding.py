"""`vmap` that folds its axis into the pictures."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def folding_vmap(function: Callable[..., Any], settings: Any) -> Callable[..., Any]:
    """function(settings, *pictures) whose `vmap` folds the new axis into the pictures'.

    A while loop under plain `vmap` would run every member until the last one ends and
    select between old and new carry each time.
    """
    folding = jax.custom_batching.custom_vmap(functools.partial(function, settings))

    @folding.def_vmap
    def _fold(axis_size, is_batched, *args):
        def fold(x, has_axis):
            x = x if has_axis else jnp.broadcast_to(x[None], (axis_size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        def unfold(x):
            return x.reshape(axis_size, -1, *x.shape[1:])

        out = jax.tree.map(
            unfold, folding(*jax.tree.map(fold, args, tuple(is_batched)))
        )
        return out, jax.tree.map(lambda _: True, out)

    return folding
