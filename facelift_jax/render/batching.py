"""Loops over scenes, batching rules for `vmap`, and device-varying types.

XLA fuses arithmetic depending on array shapes, and fusion changes rounding.
`map_scenes` runs one loop body of fixed shapes between optimization barriers, so the
bits of a scene do not depend on how many other scenes are in the batch.
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
    """`jax.vmap(function)(scenes)`, computed one scene after the other.

    Supports reverse-mode derivatives only; the backward pass computes `function` again.
    Under `shard_map`, all input arrays must vary over the same mesh axes: see
    `unify_varying_axes`.
    """
    return _loop(function, scenes)


def _forward(function, scenes):
    return _loop(function, scenes), scenes


def _backward(function, scenes, cotangent):
    leaves, treedef = jax.tree.flatten(cotangent)
    has_gradient = [leaf.dtype != jax.dtypes.float0 for leaf in leaves]

    def pull_back(operands):
        scene, cotangents = operands
        cotangents = iter(cotangents)
        out, vjp = jax.vjp(function, scene)
        filled = [
            next(cotangents) if is_real else np.zeros(x.shape, jax.dtypes.float0)
            for x, is_real in zip(jax.tree.leaves(out), has_gradient, strict=True)
        ]
        return vjp(treedef.unflatten(filled))[0]

    cotangents = [
        leaf for leaf, is_real in zip(leaves, has_gradient, strict=True) if is_real
    ]
    return (_loop(pull_back, (scenes, cotangents)),)


map_scenes.defvjp(_forward, _backward)


def _loop(function, scenes):
    leaf = jax.tree.leaves(scenes)[0]
    # With a constant trip count of one, XLA would inline the body and fuse it with the
    # code around it. The barrier hides the count.
    num_scenes = lax.optimization_barrier(jnp.int32(leaf.shape[0]))

    def compute(index):
        scene = jax.tree.map(
            lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), scenes
        )
        return lax.optimization_barrier(function(lax.optimization_barrier(scene)))

    def body(index, results):
        return jax.tree.map(
            lambda all_results, x: lax.dynamic_update_index_in_dim(
                all_results, x, index, 0
            ),
            results,
            compute(index),
        )

    shapes = jax.eval_shape(compute, jnp.int32(0))
    results = jax.tree.map(
        lambda x: jnp.zeros((leaf.shape[0], *x.shape), x.dtype), shapes
    )
    return lax.fori_loop(0, num_scenes, body, match_varying_axes(results, leaf))


def flatten_batch(tree: Any, is_batched: Any, axis_size: int) -> Any:
    """[axis i ...] arrays as [axis * i ...]; unbatched [i ...] arrays are repeated."""

    def flatten(x, has_axis):
        x = x if has_axis else jnp.broadcast_to(x[None], (axis_size, *x.shape))
        return x.reshape(-1, *x.shape[2:])

    return jax.tree.map(flatten, tree, is_batched)


def unflatten_batch(tree: Any, axis_size: int) -> tuple[Any, Any]:
    """[axis * i ...] arrays as [axis i ...], and a tree of True: all are batched."""
    tree = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), tree)
    return tree, jax.tree.map(lambda _: True, tree)


def vmap_over_images(function: Callable[..., Any], settings: Any) -> Callable[..., Any]:
    """function(settings, *args) whose batching rule merges the axis into the images.

    All args have images as their leading axis. JAX's own batching rule for while loops
    would run every batch element until the last one ends, and select between the old
    and the new carry in every iteration.
    """
    batched = jax.custom_batching.custom_vmap(functools.partial(function, settings))

    @batched.def_vmap
    def _batching_rule(axis_size, is_batched, *args):
        out = batched(*flatten_batch(args, tuple(is_batched), axis_size))
        return unflatten_batch(out, axis_size)

    return batched


def match_varying_axes(tree: Tree, like: Array) -> Tree:
    """Marks arrays as varying over the mesh axes over which `like` varies.

    A loop carry must keep its type. Constants start as equal on all devices and vary
    after one iteration, so they are marked beforehand. No effect outside `shard_map`.
    """

    def vary(x):
        missing = jax.typeof(like).mat.varying - jax.typeof(x).mat.varying
        return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x

    return jax.tree.map(vary, tree)


def unify_varying_axes(tree: Tree) -> Tree:
    """Marks every array of a tree as varying over the mesh axes of all its arrays."""
    for leaf in jax.tree.leaves(tree):
        tree = match_varying_axes(tree, leaf)
    return tree


def shape_like(
    shape: tuple[int, ...], dtype: jax.typing.DTypeLike, like: Array
) -> jax.ShapeDtypeStruct:
    """Shape of a kernel's output, which varies over the same mesh axes as `like`."""
    return jax.ShapeDtypeStruct(
        shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type
    )
