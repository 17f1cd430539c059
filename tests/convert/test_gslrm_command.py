"""GS-LRM's published weights and the perceptual network in the same file."""

import json

import jax
import numpy as np
import pytest
from gslrm_recipe import TINY, state_dict
from safetensors.numpy import save_file

from facelift_jax.checkpoints.checkpoint import load_params
from facelift_jax.convert import from_torch
from facelift_jax.convert.__main__ import main
from facelift_jax.losses import load_vgg19, vgg19_shapes

PREFIX = "loss_calculator.perceptual_loss_module.net."


def published():
    """A small network's tensors and the whole VGG-19's, as in a released file."""
    rng = np.random.default_rng(0)
    vgg19 = {
        PREFIX + name: rng.random(shape, np.float32)
        for name, shape in vgg19_shapes().items()
    }
    return state_dict(**TINY) | vgg19


def convert(src, dst):
    arguments = ["--model", "gslrm", "--src", str(src), "--dst", str(dst)]
    main([*arguments, "--overrides", json.dumps(TINY)])


def assert_converted(dst, state):
    params, note = load_params(dst)
    expected = from_torch("gslrm", state, **TINY)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert "non-commercial" in note["licence"]
    assert json.loads((dst / "conversion.json").read_text()) == note
    for name, tensor in load_vgg19(dst / "vgg19.safetensors").items():
        np.testing.assert_array_equal(tensor, state[PREFIX + name])


def test_a_released_file_becomes_a_checkpoint_and_a_perceptual_network(
    tmp_path, capsys
):
    state = published()
    save_file(state, tmp_path / "gslrm.safetensors")
    convert(tmp_path / "gslrm.safetensors", tmp_path / "out")
    assert_converted(tmp_path / "out", state)
    printed = capsys.readouterr().out
    assert "vgg19.safetensors: VGG-19 of the perceptual loss" in printed
    assert "Adobe Research License" in printed


def test_a_training_checkpoint_is_unwrapped(tmp_path):
    torch = pytest.importorskip("torch")
    state = published()
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    checkpoint = {"model": tensors, "optimizer": {"state": {}}, "fwdbwd_pass_step": 7}
    torch.save(checkpoint, tmp_path / "ckpt_7.pt")
    convert(tmp_path / "ckpt_7.pt", tmp_path / "out")
    assert_converted(tmp_path / "out", state)


def test_problems_of_both_networks_are_in_one_line(tmp_path):
    state = published()
    del state["input_layer_norm.weight"]
    state["transformer_layers.0.attn.fc.weight"] = np.zeros((3, 3), np.float32)
    state["view_type_embeddings"] = np.zeros((2, 64), np.float32)
    del state[PREFIX + "conv7.bias"]
    state[PREFIX + "conv17.bias"] = np.zeros(512, np.float32)
    save_file(state, tmp_path / "gslrm.safetensors")
    with pytest.raises(ValueError, match="problems") as caught:
        convert(tmp_path / "gslrm.safetensors", tmp_path / "out")
    line = str(caught.value)
    assert line.startswith("5 problems in the state dictionary: ")
    for part in (
        "missing input_layer_norm.weight (input_norm/scale)",
        "extra view_type_embeddings",
        f"missing {PREFIX}conv7.bias (vgg19/conv7.bias)",
        f"extra {PREFIX}conv17.bias",
        "transformer_layers.0.attn.fc.weight has shape (3, 3), in our layout (3, 3)",
    ):
        assert part in line
    assert not (tmp_path / "out").exists()
