"""The networks, by name; each maps images with cameras to Gaussians."""

import dataclasses
import importlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

# the variants with published weights
DEFAULT_VARIANTS = {"lgm": "big", "gslrm": "facelift"}


def get_model(
    name: str, variant: str | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> nn.Module:
    """Returns the network `name` with the sizes of `variant`.

    Args:
      name: "lgm" or "gslrm".
      variant: a key of the network's `VARIANTS`; None takes `DEFAULT_VARIANTS`.
      dtype: compute type of the network. Parameters, rays and Gaussians are float32.
      **overrides: replace single fields of the variant.

    Raises:
      ValueError: unknown name, variant or override (the message lists the known ones),
        or sizes that do not fit together.
    """
    module = _module(name)
    variant = DEFAULT_VARIANTS[name] if variant is None else variant
    if variant not in module.VARIANTS:
        raise ValueError(
            f"unknown {name} variant {variant!r}; known: {_listed(module.VARIANTS)}"
        )
    fields = {field.name for field in dataclasses.fields(module.Model)}
    fields -= {"parent", "name", "dtype"}
    unknown = set(overrides) - fields
    if unknown:
        raise ValueError(
            f"unknown {name} override {_listed(unknown)}; known: {_listed(fields)}"
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
