"""`vmap` that folds its axis into the pictures."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def fold(tree: Any, is_batched: Any, axis_size: int) -> Any:
    """[axis i ...] arrays as [axis * i ...]; those without the axis are repeated."""

    def fold_one(x, has_axis):
        x = x if has_axis else jnp.broadcast_to(x[None], (axis_size, *x.shape))
        return x.reshape(-1, *x.shape[2:])

    return jax.tree.map(fold_one, tree, is_batched)


def unfold(tree: Any, axis_size: int) -> tuple[Any, Any]:
    """[axis * i ...] arrays as [axis i ...], and that all of them have the axis."""
    tree = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), tree)
    return tree, jax.tree.map(lambda _: True, tree)


def folding_vmap(function: Callable[..., Any], settings: Any) -> Callable[..., Any]:
    """function(settings, *pictures) whose `vmap` folds the new axis into the pictures'.

    A while loop under plain `vmap` would run every member until the last one ends and
    select between old and new carry each time.
    """
    folding = jax.custom_batching.custom_vmap(functools.partial(function, settings))

    @folding.def_vmap
    def _fold(axis_size, is_batched, *args):
        out = folding(*fold(args, tuple(is_batched), axis_size))
        return unfold(out, axis_size)

    return folding
