"""A function of every scene whose bits do not depend on how many scenes there are.

How a compiler fuses arithmetic, and so how it rounds, depends on the shapes of arrays.
One loop body of fixed shapes behind barriers leaves it no choice.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facelift_jax.render.manual_axes import vary_like


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
    return lax.fori_loop(0, stop, write, vary_like(blank, leaf))
