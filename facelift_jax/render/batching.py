"""Batches of scenes: the same bits alone and in a batch; `vmap` and `shard_map`.

How a compiler fuses arithmetic, and so how it rounds, depends on the shapes of arrays.
`map_scenes` runs one loop body of fixed shapes behind barriers, which leaves the
compiler no choice: the bits of a scene do not depend on how many scenes there are.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facelift_jax.geometry.numerics import Array

Tree = TypeVar("Tree")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def map_scenes(function: Callable[[Any], Any], scenes: Any) -> Any:
    """`jax.vmap(function)(scenes)`, one scene after the other.

    Its backward pass computes the function again. Reverse-mode derivatives only. Under
    `shard_map` all arrays differ between devices where one does.
    """
    return _loop(function, scenes)


def _forward(function, scenes):
    return _loop(function, scenes), scenes


def _backward(function, scenes, cotangent):
    leaves, treedef = jax.tree.flatten(cotangent)
    has_gradient = [leaf.dtype != jax.dtypes.float0 for leaf in leaves]

    def pull_back(operands):
        scene, given = operands
        given = iter(given)
        out, vjp = jax.vjp(function, scene)
        filled = [
            next(given) if is_real else np.zeros(x.shape, jax.dtypes.float0)
            for x, is_real in zip(jax.tree.leaves(out), has_gradient, strict=True)
        ]
        return vjp(treedef.unflatten(filled))[0]

    given = [
        leaf for leaf, is_real in zip(leaves, has_gradient, strict=True) if is_real
    ]
    return (_loop(pull_back, (scenes, given)),)


map_scenes.defvjp(_forward, _backward)


def _loop(function, scenes):
    leaf = jax.tree.leaves(scenes)[0]
    # hidden from the compiler, which would merge a single turn with what is around it
    stop = lax.optimization_barrier(jnp.int32(leaf.shape[0]))

    def one(turn):
        scene = jax.tree.map(
            lambda x: lax.dynamic_index_in_dim(x, turn, keepdims=False), scenes
        )
        return lax.optimization_barrier(function(lax.optimization_barrier(scene)))

    def write(turn, out):
        return jax.tree.map(
            lambda o, x: lax.dynamic_update_index_in_dim(o, x, turn, 0), out, one(turn)
        )

    shapes = jax.eval_shape(one, jnp.int32(0))
    blank = jax.tree.map(
        lambda x: jnp.zeros((leaf.shape[0], *x.shape), x.dtype), shapes
    )
    return lax.fori_loop(0, stop, write, match_varying_axes(blank, leaf))


def flatten_batch(tree: Any, is_batched: Any, axis_size: int) -> Any:
    """[axis i ...] arrays as [axis * i ...]; those without the axis are repeated."""

    def flatten(x, has_axis):
        x = x if has_axis else jnp.broadcast_to(x[None], (axis_size, *x.shape))
        return x.reshape(-1, *x.shape[2:])

    return jax.tree.map(flatten, tree, is_batched)


def unflatten_batch(tree: Any, axis_size: int) -> tuple[Any, Any]:
    """[axis * i ...] arrays as [axis i ...], and that all of them have the axis."""
    tree = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), tree)
    return tree, jax.tree.map(lambda _: True, tree)


def vmap_over_images(function: Callable[..., Any], settings: Any) -> Callable[..., Any]:
    """function(settings, *images) whose `vmap` folds the new axis into the images'.

    A while loop under plain `vmap` would run every member until the last one ends and
    select between old and new carry each time.
    """
    folding = jax.custom_batching.custom_vmap(functools.partial(function, settings))

    @folding.def_vmap
    def _batching_rule(axis_size, is_batched, *args):
        out = folding(*flatten_batch(args, tuple(is_batched), axis_size))
        return unflatten_batch(out, axis_size)

    return folding


def match_varying_axes(tree: Tree, like: Array) -> Tree:
    """Marks arrays as differing between devices wherever `like` does.

    A loop's carry must have the same type before and after an iteration; constants
    start as equal on all devices and differ after one. Outside `shard_map` nothing
    happens.
    """

    def vary(x):
        missing = jax.typeof(like).mat.varying - jax.typeof(x).mat.varying
        return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x

    return jax.tree.map(vary, tree)


def unify_varying_axes(tree: Tree) -> Tree:
    """Marks all arrays of a tree as differing between devices wherever one does."""
    for leaf in jax.tree.leaves(tree):
        tree = match_varying_axes(tree, leaf)
    return tree


def shape_like(
    shape: tuple[int, ...], dtype: jax.typing.DTypeLike, like: Array
) -> jax.ShapeDtypeStruct:
    """Shape of a kernel's output that differs between devices wherever `like` does."""
    return jax.ShapeDtypeStruct(
        shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type
    )
