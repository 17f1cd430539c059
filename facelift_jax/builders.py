"""From a config's sections to objects: model, renderer, data options, checkpoints."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from facelift_jax.checkpoints.checkpoint import load_params
from facelift_jax.data.options import DataOptions
from facelift_jax.data.scenes import FolderSource
from facelift_jax.models import get_model
from facelift_jax.render import RenderConfig, render
from facelift_jax.structs import RenderFn


def build_model(section: Mapping[str, Any]) -> Any:
    """The network that a config's `model` section names.

    Raises:
      ValueError: unknown names, or values of the wrong kind.
    """
    name, variant, dtype = (section[key] for key in ("name", "variant", "dtype"))
    try:
        return get_model(name, variant, dtype, **section["overrides"])
    except TypeError as error:
        raise ValueError(f"model: {error}") from error


def make_renderer(
    background: tuple[float, ...], antialiased: bool = False, backend: str = ""
) -> RenderFn:
    """`render` on one background; `backend` "" lets the renderer choose."""
    return functools.partial(
        render,
        background=np.asarray(background, np.float32),
        config=RenderConfig(antialiased=antialiased),
        backend=backend or None,
    )


def data_options(section: Mapping[str, Any], num_held_out_views: int) -> DataOptions:
    """How scenes become examples, from a config's `data` section."""
    names = {field.name for field in dataclasses.fields(DataOptions)}
    chosen = {name: section[name] for name in section if name in names}
    for name in {"background", "input_views"} & chosen.keys():
        chosen[name] = tuple(chosen[name]) or None  # JSON has lists
    return DataOptions(**chosen, eval_targets=num_held_out_views)


class Restored(NamedTuple):
    """A checkpoint's network, and how scenes and pictures are made for it."""

    params: Any
    model: Any
    options: DataOptions
    render_fn: RenderFn
    config: dict[str, Any]
    trained_on: list[str]


def restore(
    checkpoint: str, num_held_out_views: int, num_inputs: int | None = None
) -> Restored:
    """The network of a run directory or of converted weights.

    It is given `num_inputs` views; None: as many as it was trained with.

    Raises:
      ValueError, OSError: no checkpoint, or one that names no network.
    """
    params, config = load_params(checkpoint)
    if "model" not in config:
        raise ValueError(f"{checkpoint}: its metadata do not name a network")
    section = dict(config.get("data", {}))
    if num_inputs is not None:
        section["num_inputs"] = num_inputs
    options = data_options(section, num_held_out_views)
    render_fn = make_renderer(options.background, **config.get("render", {}))
    model, trained_on = build_model(config["model"]), config.pop("trained_on", [])
    return Restored(params, model, options, render_fn, config, trained_on)


def baseline_options(
    source: FolderSource, num_held_out_views: int, num_inputs: int | None
) -> DataOptions:
    """Options for judging without a network: the scenes' own size and input views."""
    scene = source[0]
    side = min(scene.cameras.width, scene.cameras.height)
    section = {"input_size": side, "target_size": side}
    if scene.is_input.any():
        section["num_inputs"] = int(scene.is_input.sum())
    if num_inputs is not None:
        section["num_inputs"] = num_inputs
    return data_options(section, num_held_out_views)
