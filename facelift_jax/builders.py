"""Builds the model, renderer, data options and optimizer settings from a config.

Every command and benchmark builds them here, from the sections of a config (`model`,
`render`, `data`, `optim`; configs/README.md lists the fields). `restore` builds them
from the config that a checkpoint stores in its metadata.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from facelift_jax.checkpoints.checkpoint import load_params
from facelift_jax.checkpoints.run_format import require_run_format
from facelift_jax.data.options import DataOptions
from facelift_jax.data.scenes import StoredScene
from facelift_jax.models import get_model
from facelift_jax.reconstruction import refine
from facelift_jax.render import RenderConfig, render
from facelift_jax.structs import RefineFn, RenderFn
from facelift_jax.training.optim import OptimConfig

# Defaults without a network: time and memory of a refined hull grow with the number of
# views and of pixels.
MAX_DEFAULT_INPUTS = 8
MAX_SIZE = 256  # px


def build_model(section: Mapping[str, Any]) -> Any:
    """The Flax module that a config's `model` section describes.

    Raises:
      ValueError: an unknown model, variant, type or override, or a value of the wrong
        kind.
    """
    name, variant, dtype = (section[key] for key in ("name", "variant", "dtype"))
    try:
        return get_model(name, variant, dtype, **section["overrides"])
    except TypeError as error:
        raise ValueError(f"model: {error}") from error


def make_renderer(
    background: tuple[float, ...], antialiased: bool = False, backend: str = ""
) -> RenderFn:
    """`render` with a fixed background (RGB in [0, 1]) and a config's `render` section.

    An empty `backend` lets the renderer choose one. The same settings give the same
    object, so functions that take it as a static argument are compiled once.
    """
    return _make_renderer(background, antialiased, backend)


@functools.cache
def _make_renderer(
    background: tuple[float, ...], antialiased: bool, backend: str
) -> RenderFn:
    return functools.partial(
        render,
        background=np.asarray(background, np.float32),
        config=RenderConfig(antialiased=antialiased),
        backend=backend or None,
    )


def make_refiner(
    background: tuple[float, ...], antialiased: bool = False, backend: str = ""
) -> RefineFn:
    """`refine` with the background and renderer of `make_renderer`."""
    return functools.partial(
        refine,
        background=np.asarray(background, np.float32),
        config=RenderConfig(antialiased=antialiased),
        backend=backend or None,
    )


def data_options(section: Mapping[str, Any], num_held_out_views: int) -> DataOptions:
    """How scenes become examples, from a config's `data` section.

    Evaluation uses `num_held_out_views` held-out views per scene.
    """
    names = {field.name for field in dataclasses.fields(DataOptions)}
    chosen = {name: section[name] for name in section if name in names}
    for name in {"background", "input_views"} & chosen.keys():
        chosen[name] = tuple(chosen[name]) or None  # a stored config has JSON lists
    return DataOptions(**chosen, eval_targets=num_held_out_views)


def baseline_options(
    scene: StoredScene, num_held_out_views: int | None, num_inputs: int | None
) -> DataOptions:
    """Data options for a reconstruction or an evaluation without a network.

    Images have the stored size, but at most `MAX_SIZE`. The inputs are the views marked
    as inputs or, without marks, at most `MAX_DEFAULT_INPUTS` evenly spaced views;
    `num_inputs` overrides their number. An evaluation needs held-out views: without
    marks, at most three quarters of the views are inputs. A reconstruction needs none:
    its `num_held_out_views` is None.
    """
    num_views = len(scene.is_input)
    if num_inputs is None and scene.is_input.any():
        num_inputs = int(scene.is_input.sum())
    elif num_inputs is None:
        usable = num_views if num_held_out_views is None else 3 * num_views // 4
        num_inputs = max(1, min(usable, MAX_DEFAULT_INPUTS))
        if num_inputs < num_views:
            logging.info(
                "%s: %d of %d views are inputs; --inputs N changes the number",
                scene.name,
                num_inputs,
                num_views,
            )
    side = min(scene.cameras.width, scene.cameras.height)
    size = min(side, MAX_SIZE)
    if size < side:
        logging.info("%s: images of %d px are reduced to %d px", scene.name, side, size)
    section = {"input_size": size, "target_size": size, "num_inputs": num_inputs}
    if num_held_out_views is None:
        num_held_out_views = 1  # not used; DataOptions needs a value
    return data_options(section, num_held_out_views)


def optim_config(config: Any) -> OptimConfig:
    """Optimizer settings from a complete config (an `ml_collections.ConfigDict`).

    The rules of the `optim` section come before those of its freeze preset, which the
    model defines.

    Raises:
      ValueError: an unknown preset, or settings that do not fit together.
    """
    section = config.optim.to_dict()
    presets = build_model(config.model).freeze_presets
    preset = section.pop("freeze")
    if preset not in presets:
        raise ValueError(
            f"optim.freeze={preset!r}: unknown preset; known: {', '.join(presets)}"
        )
    rules = (*section.pop("rules"), *presets[preset])
    return OptimConfig(**section, total_steps=config.run.num_steps, rules=rules)


class Restored(NamedTuple):
    """The network of a checkpoint, with its data options and its renderer.

    Attributes:
      params: nested dictionaries of NumPy arrays.
      model: the Flax module.
      options: how scenes become inputs and targets of the network.
      render_fn: renders the network's Gaussians on the background of its training.
      refine_fn: refines Gaussians with this background and these renderer settings.
      config: the config stored in the checkpoint's metadata.
      trained_on: fingerprints of the training scenes; empty if not stored.
    """

    params: Any
    model: Any
    options: DataOptions
    render_fn: RenderFn
    refine_fn: RefineFn
    config: dict[str, Any]
    trained_on: list[str]


def restore(
    checkpoint: str, num_held_out_views: int, num_inputs: int | None = None
) -> Restored:
    """Restores the latest step of a run directory or of converted weights.

    The network receives `num_inputs` views; None means as many as in its training.

    Raises:
      ValueError, OSError: there is no checkpoint, its metadata names no network, or the
        run directory has another format version.
    """
    params, config = load_params(checkpoint)
    require_run_format(checkpoint, config)
    if "model" not in config:
        raise ValueError(
            f"{checkpoint}: the metadata names no network: give a run directory or the "
            "output of facelift_jax.convert"
        )
    section = dict(config.get("data", {}))
    if num_inputs is not None:
        section["num_inputs"] = num_inputs
    options = data_options(section, num_held_out_views)
    render_section = config.get("render", {})
    render_fn = make_renderer(options.background, **render_section)
    refine_fn = make_refiner(options.background, **render_section)
    model, trained_on = build_model(config["model"]), config.pop("trained_on", [])
    return Restored(params, model, options, render_fn, refine_fn, config, trained_on)
