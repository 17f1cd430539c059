"""Times the networks: inference, forward + backward, model FLOPs, peak memory.

    python -m benchmarks.networks --out networks.json lgm-8 gslrm-6x512

Random weights and pictures, bfloat16 arithmetic. Each load runs in a process of its
own. Times are medians after warm-up of the network alone; the gradients are those of
all parameters. Utilisation is model FLOPs (of matrix products, convolutions and
attention; three times as many with a backward pass) over what the device could do.
"""

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
from facelift_jax import command
from facelift_jax.geometry.paths import dummy_views
from facelift_jax.models import get_model

# name -> network, variant, scenes, views, side in pixels
LOADS: dict[str, tuple[str, str, int, int, int]] = {
    "lgm-1": ("lgm", "big", 1, 4, 256),
    "lgm-8": ("lgm", "big", 8, 4, 256),
    "gslrm-4x256": ("gslrm", "facelift", 1, 4, 256),
    "gslrm-6x256": ("gslrm", "facelift", 1, 6, 256),
    "gslrm-4x512": ("gslrm", "facelift", 1, 4, 512),
    "gslrm-6x512": ("gslrm", "facelift", 1, 6, 512),
    "smoke-lgm": ("lgm", "mini", 1, 2, 32),
    "smoke-gslrm": ("gslrm", "mini", 1, 2, 32),
}
PASSES = ("inference", "both", "remat")
PEAK_TFLOPS = {"NVIDIA H200": 989.5, "NVIDIA H100 80GB HBM3": 989.5}  # bfloat16, dense


def parse(arguments: list[str]):
    """Flags of the command."""
    parser = command.Parser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("loads", nargs="+", choices=sorted(LOADS))
    parser.add_argument(
        "--passes", nargs="+", choices=PASSES, default=["inference", "both"]
    )
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--alone", action="store_true", help="in this very process")
    return parser.parse_args(arguments)


def measure(name: str, passes: list[str], repeats: int) -> dict[str, float]:
    """Everything about one load, in this process."""
    network, variant, scenes, views, side = LOADS[name]
    shapes = dummy_views(scenes, views, side)
    images = np.random.default_rng(0).random(shapes.images.shape, np.float32)
    inputs = jax.device_put(jax.tree.map(jnp.asarray, shapes))
    inputs = type(inputs)(jnp.asarray(images), inputs.masks, None, inputs.cameras)
    plain = get_model(network, variant, "bfloat16")
    params = jax.jit(plain.init)(jax.random.key(0), inputs)["params"]
    peak = PEAK_TFLOPS.get(jax.devices()[0].device_kind, math.nan) * 1e9  # a ms
    row: dict[str, float] = {}
    for kind in passes:
        model = get_model(network, variant, "bfloat16", **_overrides(kind))

        def forward(params, inputs, model=model):
            return model.apply({"params": params}, inputs)[0]

        def loss(params, inputs, forward=forward):
            gaussians = forward(params, inputs)
            return sum(jnp.mean(x * x) for x in jax.tree.leaves(gaussians))

        flops = count_flops(jax.make_jaxpr(forward)(params, inputs).jaxpr)
        function = jax.jit(forward if kind == "inference" else jax.grad(loss))
        start = time.perf_counter()
        function = function.lower(params, inputs).compile()
        row[f"{kind}_compile_s"] = time.perf_counter() - start
        ms = milliseconds(function, params, inputs, repeats=repeats)
        row[f"{kind}_ms"] = ms
        row["forward_tflops"] = flops / 1e12
        factor = 1 if kind == "inference" else 3
        row[f"{kind}_utilised"] = factor * flops / (ms * peak)
    stats = jax.devices()[0].memory_stats() or {}
    row["peak_gib"] = stats.get("peak_bytes_in_use", math.nan) / 2**30
    return row


def _overrides(kind: str) -> dict[str, bool]:
    return {"remat": True} if kind == "remat" else {}


def count_flops(jaxpr: Any) -> float:
    """Operations of the products, convolutions and attentions of a program."""
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
            inner = sum(count_flops(sub) for sub in _inner(equation.params.values()))
            total += equation.params.get("length", 1) * inner
    return total


def _inner(values: Iterable[Any]) -> Iterator[Any]:
    """The programs among an equation's parameters: bodies and branches."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _inner(value)
        elif hasattr(getattr(value, "jaxpr", value), "eqns"):
            yield getattr(value, "jaxpr", value)


def main(arguments: list[str]) -> None:
    """Runs the command; exit code 1 if a load failed."""
    flags = parse(arguments)
    if flags.alone:
        print(json.dumps(measure(flags.loads[0], flags.passes, flags.repeats)))
        return
    options = [f"--repeats={flags.repeats}", "--alone", "--passes", *flags.passes]
    rows: dict[str, Any] = {
        name: in_child("benchmarks.networks", [name, *options]) for name in flags.loads
    }
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(table(rows))
    if flags.out:
        flags.out.write_text(json.dumps(rows, indent=1) + "\n")
    if any("failed" in row for row in rows.values()):
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
