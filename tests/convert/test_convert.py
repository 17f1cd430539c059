"""Published names and layouts to our parameters; every mismatch named, none passed."""

import gzip
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from facelift_jax.checkpoints.tree import flatten_names
from facelift_jax.convert import abstract_params, from_torch
from facelift_jax.convert.lgm import RULES
from facelift_jax.convert.rules import Rule, convert_tensors
from facelift_jax.models import get_model

GOLDENS = Path(__file__).parent.parent / "goldens/lgm"
KEYS = json.loads(gzip.decompress((GOLDENS / "keys.json.gz").read_bytes()))
MICRO = {
    "down_channels": (32, 64, 128),
    "down_attention": (False, True, True),
    "up_channels": (128, 64),
    "up_attention": (True, False),
}


def micro_state(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        key: rng.standard_normal(shape).astype(dtype)
        for key, shape in KEYS["micro"].items()
    }


@pytest.mark.parametrize("variant", ["big", "small", "lrm", "tiny"])
def test_published_keys_and_parameters_are_a_bijection(variant):
    """Zeros with no memory behind them go through the rules at full size."""
    keys = KEYS["small" if variant == "lrm" else variant]
    expected = flatten_names(abstract_params(get_model("lgm", variant=variant)))
    filled = {}
    for key, shape in keys.items():
        tensor = np.broadcast_to(np.float32(0), shape)
        matches = [(rule, re.fullmatch(rule.pattern, key)) for rule in RULES]
        ((rule, match),) = [(r, m) for r, m in matches if m]  # never two
        name = match.expand(rule.target)
        assert rule.layout(tensor).shape == expected[name].shape, key
        filled[name] = key
    assert len(filled) == len(keys) == len(expected)


def test_parameters_have_the_models_structure():
    params = from_torch("lgm", micro_state(), variant="big", **MICRO)
    expected = abstract_params(get_model("lgm", variant="big", **MICRO))
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for ours, leaf in zip(
        jax.tree.leaves(params), jax.tree.leaves(expected), strict=True
    ):
        assert isinstance(ours, jax.Array)
        assert (ours.shape, ours.dtype) == (leaf.shape, np.float32)


def test_layouts():
    state = micro_state()
    named = flatten_names(from_torch("lgm", state, variant="big", **MICRO))
    conv = state["unet.down_blocks.1.nets.0.conv1.weight"]
    ours = named["unet/down_blocks_1/nets_0/conv1/kernel"]
    assert ours[2, 0, 5, 7] == conv[7, 5, 2, 0]
    dense = state["unet.mid_block.attns.0.attn.qkv.weight"]
    assert (named["unet/mid_block/attns_0/attn/qkv/kernel"] == dense.T).all()
    gain = state["unet.up_blocks.0.nets.2.norm1.weight"]
    assert (named["unet/up_blocks_0/nets_2/norm1/scale"] == gain).all()


def test_half_precision_becomes_float32_exactly():
    state = micro_state(np.float16)
    params = from_torch("lgm", state, variant="big", **MICRO)
    assert params["conv"]["bias"].dtype == np.float32
    np.testing.assert_array_equal(params["conv"]["bias"], state["conv.bias"])


def test_the_callers_arrays_are_not_shared():
    state = micro_state()
    params = from_torch("lgm", state, variant="big", **MICRO)
    before = np.array(params["conv"]["bias"])
    state["conv.bias"][:] = 0
    np.testing.assert_array_equal(params["conv"]["bias"], before)


def test_every_problem_is_listed_in_one_line():
    state = micro_state()
    del state["unet.conv_in.weight"]
    state["lpips.weight"] = np.zeros(3, np.float32)
    state["conv.bias"] = np.zeros(13, np.float32)
    state["conv.weight"] = np.zeros((14, 14), np.float32)
    state["unet.conv_out.bias"][2:4] = np.nan
    state["unet.norm_out.bias"] = np.zeros(64, np.int64)
    with pytest.raises(ValueError, match="problems") as caught:
        from_torch("lgm", state, variant="big", **MICRO)
    assert str(caught.value) == (
        "6 problems in the state dictionary: "
        "unet.norm_out.bias holds int64, not floating-point numbers; "
        "unet.conv_out.bias holds 2 values that are not finite; "
        "conv.weight has shape (14, 14), which cannot become (1, 1, 14, 14); "
        "conv.bias has shape (13,), in our layout (13,), not (14,); "
        "extra lpips.weight; "
        "missing unet/conv_in/kernel"
    )


def test_weights_of_another_variant_are_refused():
    with pytest.raises(ValueError, match="1 problem in the state dictionary: extra "):
        from_torch("lgm", {**micro_state(), "conv.gain": np.ones(1)}, "big", **MICRO)
    with pytest.raises(ValueError, match="missing unet/down_blocks_3/nets_0"):
        from_torch("lgm", micro_state(), variant="tiny")


def test_two_tensors_for_one_parameter_are_refused():
    rules = (Rule(r"(old|new)\.bias", "bias"),)
    tensors = {"old.bias": np.zeros(2), "new.bias": np.ones(2)}
    expected = {"bias": jax.ShapeDtypeStruct((2,), np.float32)}
    with pytest.raises(ValueError, match=r"new\.bias and old\.bias both fill bias"):
        convert_tensors(tensors, tensors.__getitem__, rules, expected)
