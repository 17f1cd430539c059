"""Converts PyTorch weights to the parameters of this package's networks."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facelift_jax.convert.rules import convert_tensors, strip_common_prefix
from facelift_jax.losses import vgg19_shapes
from facelift_jax.models import get_model
from facelift_jax.structs import Cameras, Views

VGG19 = "vgg19"  # the perceptual network's tensors, next to the parameters


def from_torch(
    name: str,
    state_dict: Mapping[str, np.ndarray],
    variant: str | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Parameters of `get_model(name, variant, **overrides)` from published tensors.

    The structure is that of `model.init(...)["params"]`, with float32 leaves. A prefix
    that all names share, such as `module.`, is removed and logged. The VGG-19 in
    GS-LRM's state dictionary is left out.

    Raises:
      ValueError: one line that lists all extra, missing and unusable tensors; or the
        errors of `get_model`.
    """
    model, table = get_model(name, variant, **overrides), rule_table(name)
    keys = strip_common_prefix(state_dict, (*table.RULES, *table.PERCEPTUAL_RULES))
    tensors = {
        published: state_dict[key]
        for published, key in keys.items()
        if not any(rule.to_ours(published) for rule in table.PERCEPTUAL_RULES)
    }
    params, _ = convert_state(name, model, tensors, tensors.__getitem__)
    return jax.tree.map(jnp.asarray, params)


def convert_state(
    name: str, model: Any, keys: Iterable[str], read: Callable[[str], np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Parameters of `model`, and those of GS-LRM's VGG-19 if any key belongs to it.

    Both are NumPy float32 arrays. `read` returns the tensor of a key and is called once
    per key. A prefix that all keys share is removed and logged. The VGG-19's tensors
    have the names that `losses.load_vgg19` reads.

    Raises:
      ValueError: one line that lists all extra, missing and unusable tensors of both.
    """
    table, expected = rule_table(name), abstract_params(model)
    rules = (*table.RULES, *table.PERCEPTUAL_RULES)
    published = strip_common_prefix(keys, rules)
    if any(rule.to_ours(key) for key in published for rule in table.PERCEPTUAL_RULES):
        expected[VGG19] = {
            tensor: jax.ShapeDtypeStruct(shape, np.float32)
            for tensor, shape in vgg19_shapes().items()
        }
    params = convert_tensors(
        published, lambda key: read(published[key]), rules, expected
    )
    vgg19 = params.pop(VGG19, {})
    return params, vgg19


def abstract_params(model: Any) -> dict[str, Any]:
    """Shapes and types of the model's parameters; nothing is computed."""
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
    """The module with a network's rules, license and data settings."""
    return importlib.import_module(f"facelift_jax.convert.{name}")
