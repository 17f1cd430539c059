"""PyTorch weights to our parameters."""

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facelift_jax.convert.rules import convert_tensors
from facelift_jax.models import get_model
from facelift_jax.structs import Cameras, Views


def from_torch(
    name: str,
    state_dict: Mapping[str, np.ndarray],
    variant: str | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Parameters of `get_model(name, variant, **overrides)` from the published tensors.

    The structure is that of `model.init(...)["params"]`, every leaf float32.

    Raises:
      ValueError: one line with every extra, missing or unfit tensor; or as `get_model`.
    """
    params = convert_state(
        name, state_dict, state_dict.__getitem__, variant, **overrides
    )
    return jax.tree.map(jnp.asarray, params)


def convert_state(
    name: str,
    keys: Iterable[str],
    read: Callable[[str], np.ndarray],
    variant: str | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """`from_torch` tensor by tensor: NumPy arrays, `read` gives the tensor of a key."""
    model = get_model(name, variant, **overrides)
    table = importlib.import_module(f"facelift_jax.convert.{name}")
    keys = [key for key in keys if not re.fullmatch(table.NOT_OURS, key)]
    return convert_tensors(keys, read, table.RULES, abstract_params(model))


def abstract_params(model: Any) -> dict[str, Any]:
    """Shapes and types of the model's parameters, found without computing any."""
    side = model.stride
    camera = Cameras(
        np.eye(4, dtype=np.float32)[None, None],
        np.eye(3, dtype=np.float32)[None, None],
        side,
        side,
    )
    black = np.zeros((1, 1, side, side, 4), np.float32)
    inputs = Views(black[..., :3], black[..., 3:], None, camera)
    return jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
