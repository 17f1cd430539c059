"""Loop carries under `shard_map`."""

from typing import TypeVar

import jax

from facelift_jax.numerics import Array

Tree = TypeVar("Tree")


def vary_like(tree: Tree, like: Array) -> Tree:
    """Marks arrays as differing between devices wherever `like` does.

    A loop's carry must have the same type before and after an iteration; constants
    start as equal on all devices and differ after one. Outside `shard_map` nothing
    happens.
    """

    def vary(x):
        missing = jax.typeof(like).mat.varying - jax.typeof(x).mat.varying
        return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x

    return jax.tree.map(vary, tree)


def vary_alike(tree: Tree) -> Tree:
    """Marks all arrays of a tree as differing between devices wherever one does."""
    for leaf in jax.tree.leaves(tree):
        tree = vary_like(tree, leaf)
    return tree


def shape_like(
    shape: tuple[int, ...], dtype: jax.typing.DTypeLike, like: Array
) -> jax.ShapeDtypeStruct:
    """Shape of a kernel's output that differs between devices wherever `like` does."""
    return jax.ShapeDtypeStruct(
        shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type
    )
