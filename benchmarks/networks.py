"""Times the networks: inference, gradients, training steps, model FLOPs, peak memory.

    python -m benchmarks.networks --out networks.json lgm-8 gslrm-6x512

Passes: `inference` and `gradients` (forward and backward, all parameters) are only the
network, `remat` is gradients with rematerialized blocks (GS-LRM), `step` is the whole
training step of the recipe with 8 rendered targets per scene. Weights and images are
random, arithmetic is bfloat16. Each pass runs in its own process; times are medians
after warm-up. Utilization is model FLOPs over the peak of the device. Model FLOPs are
those of matrix products, convolutions and attention; a backward pass triples them, and
what it recomputes does not count.
"""

import dataclasses
import functools
import importlib
import itertools
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.render import REPEATS, in_child, milliseconds, table
from facelift_jax.builders import build_model, make_renderer, optim_config
from facelift_jax.geometry.paths import dummy_views
from facelift_jax.io import command
from facelift_jax.losses import term_weights
from facelift_jax.models import get_model
from facelift_jax.structs import Batch, Views
from facelift_jax.training import optim

# name -> network, variant, scenes, views, side in pixels, side of the targets
LOADS: dict[str, tuple[str, str, int, int, int, int]] = {
    "lgm-1": ("lgm", "big", 1, 4, 256, 512),
    "lgm-8": ("lgm", "big", 8, 4, 256, 512),
    "gslrm-4x256": ("gslrm", "facelift", 1, 4, 256, 256),
    "gslrm-6x256": ("gslrm", "facelift", 1, 6, 256, 256),
    "gslrm-8-6x256": ("gslrm", "facelift", 8, 6, 256, 256),
    "gslrm-4x512": ("gslrm", "facelift", 1, 4, 512, 512),
    "gslrm-6x512": ("gslrm", "facelift", 1, 6, 512, 512),
    "smoke-lgm": ("lgm", "mini", 1, 2, 32, 32),
    "smoke-gslrm": ("gslrm", "mini", 1, 2, 32, 32),
}
PASSES = ("inference", "gradients", "remat", "step")
STEPS = {"lgm": "", "gslrm": "finetune"}  # arguments of the recipe
NUM_TARGETS = 8  # per scene of a training step
PEAK_TFLOPS = {"NVIDIA H200": 989.5, "NVIDIA H100 80GB HBM3": 989.5}  # bfloat16, dense


def parse(arguments: list[str]):
    """Flags of the command."""
    parser = command.Parser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("loads", nargs="+", choices=sorted(LOADS))
    parser.add_argument(
        "--passes", nargs="+", choices=PASSES, default=["inference", "gradients"]
    )
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument(
        "--alone", action="store_true", help="one load and pass, in this process"
    )
    return parser.parse_args(arguments)


def measure(name: str, kind: str, repeats: int) -> dict[str, float]:
    """One pass of a load, in this process."""
    network, variant, scenes, views, side, target_side = LOADS[name]
    overrides = {"remat": True} if kind == "remat" else {}
    model = get_model(network, variant, "bfloat16", **overrides)
    inputs = random_views(scenes, views, side)
    params = random_params(model)

    def forward(params, inputs):
        return model.apply({"params": params}, inputs)[0]

    def loss(params, inputs):
        return sum(jnp.mean(x * x) for x in jax.tree.leaves(forward(params, inputs)))

    flops = product_flops(jax.make_jaxpr(forward)(params, inputs).jaxpr)
    start = time.perf_counter()
    if kind == "step":
        targets = random_views(scenes, NUM_TARGETS, target_side)
        batch = Batch(inputs, targets, jnp.arange(scenes))
        call = training_step(network, variant, params, batch)
    else:
        function = jax.jit(forward if kind == "inference" else jax.grad(loss))
        call = functools.partial(function, params, inputs)
    jax.block_until_ready(call())
    seconds = time.perf_counter() - start
    ms = milliseconds(call, repeats=repeats)
    device = jax.devices()[0]
    peak = PEAK_TFLOPS.get(device.device_kind, math.nan) * 1e9  # per millisecond
    times = 1 if kind == "inference" else 3
    stats = device.memory_stats() or {}
    return {
        "forward_tflops": flops / 1e12,
        f"{kind}_ms": ms,
        f"{kind}_utilised": times * flops / (ms * peak),
        f"{kind}_gib": stats.get("peak_bytes_in_use", math.nan) / 2**30,
        f"{kind}_first_s": seconds,
    }


def random_params(model: Any) -> dict[str, Any]:
    """Normal kernels of unit gain, unit scales, zero biases; faster than `init`."""
    small = dummy_views(1, 1, 2 * model.stride)  # shapes do not depend on its size
    shapes = jax.eval_shape(model.init, jax.random.key(0), small)["params"]
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any):
        if leaf.ndim == 1:
            return np.full(leaf.shape, path[-1].key == "scale", np.float32)
        gain = math.prod(leaf.shape[:-1]) ** -0.5
        return gain * rng.standard_normal(leaf.shape, np.float32)

    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))


def random_views(scenes: int, views: int, side: int) -> Views:
    """Random images [b v] with cameras on an orbit, on the device."""
    shapes = dummy_views(scenes, views, side)
    images = np.random.default_rng(0).random(shapes.images.shape, np.float32)
    return jax.tree.map(jnp.asarray, dataclasses.replace(shapes, images=images))


def training_step(network: str, variant: str, params: Any, batch: Batch):
    """A function without arguments that takes the next step of the recipe."""
    from facelift_jax.training.step import TrainState, make_train_step

    argument = ",".join(filter(None, (variant, STEPS[network])))
    recipe = importlib.import_module(f"configs.{network}").get_config(argument)
    settings = optim_config(recipe)
    model = build_model(recipe.model)
    render_fn = make_renderer(recipe.data.background, **recipe.render)
    optimizer, _ = optim.make_optimizer(settings, params)
    weights = term_weights(recipe.loss)
    background = recipe.data.background
    step = make_train_step(model, render_fn, weights, optimizer, settings, background)
    step = jax.jit(step, donate_argnums=0)
    zero, key = jnp.zeros((), jnp.int32), jax.random.key(0)
    state = TrainState(zero, zero, params, optimizer.init(params), key)
    state = jax.tree.map(jnp.copy, state)  # the step donates the buffers of its state

    def call():
        nonlocal state
        state, measurements = step(state, batch, {})
        return measurements

    return call


def product_flops(jaxpr: Any) -> float:
    """FLOPs of the products, convolutions and attentions of a program."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, equation.outvars[0].aval
        operands = [v.aval for v in equation.invars]
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(operands[0].shape[axis] for axis in contracted)
            total += 2 * out.size * depth
        elif name == "conv_general_dilated":
            kernel, spec = operands[1], equation.params["dimension_numbers"].rhs_spec
            total += 2 * out.size * kernel.size / kernel.shape[spec[0]]
        elif name.startswith("dot_product_attention"):
            total += 4 * operands[0].size * operands[1].shape[1]  # [b l heads c]
        else:
            inner = sum(product_flops(sub) for sub in _inner(equation.params.values()))
            total += equation.params.get("length", 1) * inner
    return total


def _inner(values: Iterable[Any]) -> Iterator[Any]:
    """The programs in an equation's parameters: bodies and branches."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _inner(value)
        elif hasattr(getattr(value, "jaxpr", value), "eqns"):
            yield getattr(value, "jaxpr", value)


def main(arguments: list[str]) -> None:
    """Runs the command; exit code 1 if a load failed."""
    flags = parse(arguments)
    if flags.alone:
        print(json.dumps(measure(flags.loads[0], flags.passes[0], flags.repeats)))
        return
    rows: dict[str, Any] = {name: {} for name in flags.loads}
    for name, kind in itertools.product(flags.loads, flags.passes):
        if kind == "remat" and LOADS[name][0] != "gslrm":
            continue
        words = [name, f"--repeats={flags.repeats}", "--alone", "--passes", kind]
        rows[name] |= in_child("benchmarks.networks", words)
        print(f"{name} {kind}", *rows[name].items(), file=sys.stderr, flush=True)
        if flags.out:
            flags.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(table(rows))
    if any("failed" in row for row in rows.values()):
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
