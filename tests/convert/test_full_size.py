"""Converts files with the released layouts at full size; measures peak memory."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import gslrm_recipe
import lgm_recipe
import numpy as np
import pytest
from safetensors.numpy import save_file

from facelift_jax.checkpoints.checkpoint import load_params
from facelift_jax.checkpoints.tree import flatten_names
from facelift_jax.losses import vgg19_shapes

ROOT = Path(__file__).parents[2]
PREFIX = "loss_calculator.perceptual_loss_module.net."
# in sizes of the float32 parameters: they themselves, then also the pages of the source
# or of the file being written
PEAK = 2.0
PROCESS = 600 * 2**20  # bytes, of the program itself


def lgm_state():
    keys = lgm_recipe.KEYS["big"]
    return {k: lgm_recipe.weight(k, s).astype(np.float16) for k, s in keys.items()}


def gslrm_state():
    shapes = {PREFIX + name: shape for name, shape in vgg19_shapes().items()}
    vgg19 = {key: gslrm_recipe.weight(key, shape) for key, shape in shapes.items()}
    return gslrm_recipe.state_dict(width=1024, depth=24) | vgg19


def convert(name, src, dst):
    """Peak resident bytes of the command in its own process, with mapped files."""
    script = (
        "import sys; from facelift_jax.convert.__main__ import main;"
        "main(sys.argv[1:]); print(open('/proc/self/status').read())"
    )
    arguments = ["--model", name, "--src", str(src), "--dst", str(dst)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", done.stdout)[0])


# function that makes the file, tensors, parameters, one tensor and our name of it
RELEASED = {
    "lgm": (
        *(lgm_state, 376, 415_042_848),
        "unet.mid_block.attns.0.attn.qkv.weight",
        "unet/mid_block/attns_0/attn/qkv/kernel",
    ),
    "gslrm": (
        *(gslrm_state, 183, 303_565_824),
        "transformer_layers.23.mlp.mlp.0.weight",
        "block_23/mlp_in/kernel",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_released_layouts_convert_in_little_memory(name, tmp_path):
    make, num_tensors, num_ours, key, leaf = RELEASED[name]
    state = make()
    assert len(state) == num_tensors
    num_bytes = 4 * sum(tensor.size for tensor in state.values())
    save_file(state, tmp_path / "released.safetensors")
    start = time.monotonic()
    peak = convert(name, tmp_path / "released.safetensors", tmp_path / "out")
    seconds, share = time.monotonic() - start, peak / num_bytes
    print(f"\n{name}: {seconds:.1f} s, peak {peak / 1e9:.2f} GB, {share:.2f} x float32")
    assert peak <= PEAK * num_bytes + PROCESS
    params = flatten_names(load_params(tmp_path / "out")[0])
    assert sum(leaf.size for leaf in params.values()) == num_ours
    np.testing.assert_array_equal(params[leaf].T, state[key])
