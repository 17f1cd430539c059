"""Pictures and cameras to Gaussians: networks by name."""

import dataclasses
import importlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

# those with published weights
DEFAULT_VARIANTS = {"lgm": "big", "gslrm": "facelift"}


def get_model(
    name: str, variant: str | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> nn.Module:
    """The network `name` in the sizes of `variant`, computing in `dtype`.

    `overrides` replace single sizes of the variant by name; `variant=None` is the one
    with published weights.

    Raises:
      ValueError: unknown name, variant or override (the known ones are listed), or
        sizes that do not fit together.
    """
    module = _module(name)
    variant = DEFAULT_VARIANTS[name] if variant is None else variant
    if variant not in module.VARIANTS:
        raise ValueError(
            f"unknown {name} variant {variant!r}; known: {_listed(module.VARIANTS)}"
        )
    fields = {field.name for field in dataclasses.fields(module.Model)}
    known = fields - {"parent", "name", "dtype"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(
            f"unknown {name} override {_listed(unknown)}; known: {_listed(known)}"
        )
    sizes = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in {**module.VARIANTS[variant], **overrides}.items()
    }
    return module.Model(dtype=jnp.dtype(dtype), **sizes)


def _module(name: str) -> Any:
    if name not in DEFAULT_VARIANTS:
        raise ValueError(f"unknown model {name!r}; known: {_listed(DEFAULT_VARIANTS)}")
    return importlib.import_module(f"facelift_jax.models.{name}")


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))
