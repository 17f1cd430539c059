"""PyTorch weights to our parameters."""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facelift_jax.convert.rules import Rule, convert_tensors
from facelift_jax.losses import vgg19_shapes
from facelift_jax.models import get_model
from facelift_jax.structs import Cameras, Views

VGG19 = "vgg19"  # where the perceptual network's tensors go beside the parameters


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
    model = get_model(name, variant, **overrides)
    pattern = rule_table(name).NOT_OURS
    keys = [key for key in state_dict if not re.fullmatch(pattern, key)]
    params, _ = convert_state(name, model, keys, state_dict.__getitem__)
    return jax.tree.map(jnp.asarray, params)


def convert_state(
    name: str, model: Any, keys: Sequence[str], read: Callable[[str], np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Parameters of `model` and, where the keys hold any of it, GS-LRM's VGG-19.

    NumPy float32 arrays; `read` gives the tensor of a key and is called once for each.
    The VGG-19 has the names of its own file, see `objectives.load_vgg19`.

    Raises:
      ValueError: one line with every extra, missing or unfit tensor of both.
    """
    table, expected = rule_table(name), abstract_params(model)
    if any(re.fullmatch(table.NOT_OURS, key) for key in keys):
        expected[VGG19] = {
            tensor: jax.ShapeDtypeStruct(shape, np.float32)
            for tensor, shape in vgg19_shapes().items()
        }
    rules = (*table.RULES, Rule(table.NOT_OURS, rf"{VGG19}/\1"))
    params = convert_tensors(keys, read, rules, expected)
    vgg19 = params.pop(VGG19, {})
    return params, vgg19


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


def rule_table(name: str) -> Any:
    """The module of a network's rules and licence."""
    return importlib.import_module(f"facelift_jax.convert.{name}")
