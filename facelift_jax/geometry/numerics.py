"""Arithmetic that stays finite, and the array type and constant that modules share.

Each function takes NumPy or JAX arrays and returns NumPy arrays for NumPy arrays.
"""

import types

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
SH_C0 = 0.28209479177387814  # 1 / (2 sqrt(pi)): the harmonic of degree 0


def namespace(*arrays: Array) -> types.ModuleType:
    """`numpy` if all arrays are NumPy arrays, else `jax.numpy`."""
    return np if all(isinstance(a, np.ndarray | np.generic) for a in arrays) else jnp


def is_concrete(array: object) -> bool:
    """Whether this is an array with values, not a tracer, mask, spec or shape."""
    is_array = isinstance(array, np.ndarray | jax.Array)
    return is_array and not isinstance(array, jax.core.Tracer)


def einsum(pattern: str, *arrays: Array) -> Array:
    """Einstein sum at full float32 precision (the default on a GPU is TF32)."""
    if namespace(*arrays) is np:
        return np.einsum(pattern, *arrays)
    return jnp.einsum(pattern, *arrays, precision=jax.lax.Precision.HIGHEST)


def safe_sqrt(x: Array) -> Array:
    """Square root whose value and gradient are zero at and below zero."""
    xp = namespace(x)
    is_positive = x > 0
    return xp.where(is_positive, xp.sqrt(xp.where(is_positive, x, 1)), 0)


def safe_divide(numerator: Array, denominator: Array) -> Array:
    """Quotient; value and both gradients are zero where the denominator is zero."""
    xp = namespace(numerator, denominator)
    is_nonzero = denominator != 0
    return xp.where(is_nonzero, numerator / xp.where(is_nonzero, denominator, 1), 0)


def normalize(x: Array) -> Array:
    """x / max(|x|, 1e-12) over the last axis; finite gradient at zero."""
    xp = namespace(x)
    norm = safe_sqrt(xp.sum(x * x, axis=-1, keepdims=True))
    return x / xp.maximum(norm, 1e-12)
