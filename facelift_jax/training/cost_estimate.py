"""Memory and time of a training step, estimated before anything expensive is built.

The memory estimate counts the values that are kept for the backward pass, which follow
from tracing shapes, without compilation. On a CPU the estimate is close to what a step
needs. On other devices, compilers fuse most operations, so only the results of
convolutions and matrix products are counted. Time is estimated for CPUs only.
"""

import dataclasses
import math
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from facelift_jax.builders import build_model, make_renderer
from facelift_jax.geometry.paths import dummy_views
from facelift_jax.losses import is_used, load_networks, term_weights, weighted_loss
from facelift_jax.structs import Batch, RenderOutput

PARAM_COPIES = 4  # the parameters, their gradients and the two moments of Adam
EFFICIENCY = 0.35  # of a whole network on a CPU, relative to a matrix product
BLEND_SECONDS = 2.5e-7  # per rendered pixel, forward and backward, on a CPU
MEMORY_SHARE = 0.9  # share of the machine's memory that a step may need


def announce(config: Any) -> None:
    """Logs the memory that a step needs, and its seconds on a CPU.

    Raises:
      ValueError: the step does not fit the memory of this machine.
    """
    num_bytes, flops = step_cost(config)
    available = memory_bytes()
    device = jax.devices()[0]
    demo = f"--config configs/{config.model.name}.py:demo"
    name = f"{config.model.name} {config.model.variant}, {config.run.batch_size} scenes"
    text = f"{name}: a step needs about {num_bytes / 2**30:.1f} GiB"
    if device.platform == "cpu":
        pixels = config.run.batch_size * config.data.num_targets
        pixels *= config.data.target_size**2
        seconds = flops / (EFFICIENCY * matmul_rate()) + BLEND_SECONDS * pixels
        text += f" and about {seconds:.2g} s on this CPU"
    if num_bytes > MEMORY_SHARE * available:
        raise ValueError(
            f"{text}, but this machine has {available / 2**30:.1f} GiB; "
            f"{demo} fits two CPU cores"
        )
    if device.platform == "cpu":
        text += f"; {demo} is meant for two CPU cores"
    logging.info(text)


def step_cost(config: Any) -> tuple[int, float]:
    """Bytes and floating-point operations of one step on one device.

    Raises:
      ValueError: a loss term whose inputs the network does not return.
    """
    data, run = config.data, config.run
    model = build_model(config.model)
    render_fn = make_renderer(data.background, **config.render)
    inputs = dummy_views(run.batch_size, data.num_inputs, data.input_size)
    targets = dummy_views(run.batch_size, data.num_targets, data.target_size)
    targets = dataclasses.replace(targets, depths=targets.masks)
    batch = Batch(inputs, targets, np.zeros(run.batch_size, np.int32))
    weights = {k: 1.0 for k, v in term_weights(config.loss).items() if is_used(v)}
    networks = load_networks(config.loss)

    def network(params: Any, batch: Batch):
        return model.apply({"params": params}, batch.inputs)

    def loss(params: Any, batch: Batch):
        gaussians, aux = network(params, batch)
        output = render_fn(gaussians, batch.targets.cameras)
        return weighted_loss(output, batch.targets, aux | networks, weights)[0]

    params = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs)["params"])
    is_cpu = jax.devices()[0].platform == "cpu"  # its devices share one memory
    if not is_cpu:
        loss = jax.checkpoint(loss, policy=is_product)
    kept = jax.eval_shape(lambda p, b: jax.vjp(loss, p, b)[1], params, batch)
    share = 1 if is_cpu else jax.device_count()
    num_bytes = PARAM_COPIES * size_in_bytes(params) // run.fsdp
    num_bytes += (size_in_bytes(kept) + size_in_bytes(batch)) // share
    rendered = RenderOutput(
        targets.images, targets.masks, targets.masks, np.zeros(targets.masks.shape[:2])
    )

    # loss terms with a network of their own
    terms = {name: 1.0 for name in ("lpips", "perceptual") if name in weights}

    def perceptual_loss(rendered: RenderOutput, networks: Any):
        return weighted_loss(rendered, targets, networks, terms)[0]

    forward = count_flops(network, params, batch)
    forward += count_flops(perceptual_loss, rendered, networks) if terms else 0
    return num_bytes, 3 * forward / share  # a backward pass costs two forward passes


def count_flops(function: Any, *arguments: Any) -> float:
    """Floating-point operations of a call; NaN if the compiler does not report them."""
    analysis = jax.jit(function).lower(*arguments).cost_analysis()
    return analysis["flops"] if analysis else math.nan


def is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether a primitive is so expensive that a compiler keeps its result."""
    return primitive.name in ("conv_general_dilated", "dot_general")


def size_in_bytes(tree: Any) -> int:
    """Bytes of all leaves of a tree of arrays or shapes."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def memory_bytes() -> int:
    """Memory of the first device, or of the machine if it is a CPU."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(physical, int(text)) if text.isdecimal() else physical


def matmul_rate(size: int = 1024) -> float:
    """Floating-point operations per second of a float32 matrix product, best of 3."""
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
