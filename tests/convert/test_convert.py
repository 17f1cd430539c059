"""Published names and layouts to our parameters; every mismatch is reported."""

import logging

import jax
import numpy as np
import pytest
from lgm_recipe import KEYS, MICRO, micro_state

from facelift_jax.checkpoints.tree import flatten_names
from facelift_jax.convert import abstract_params, from_torch, rules
from facelift_jax.convert.lgm import RULES
from facelift_jax.convert.rules import Rule, convert_tensors, strip_common_prefix
from facelift_jax.models import get_model


@pytest.mark.parametrize("variant", ["big", "small", "lrm", "tiny"])
def test_published_keys_and_parameters_are_a_bijection(variant):
    """Zeros with no memory behind them go through the rules at full size."""
    keys = KEYS["small" if variant == "lrm" else variant]
    expected = flatten_names(abstract_params(get_model("lgm", variant=variant)))
    filled = {}
    for key, shape in keys.items():
        tensor = np.broadcast_to(np.float32(0), shape)
        names = [(rule, rule.to_ours(key)) for rule in RULES]
        ((rule, name),) = [(rule, name) for rule, name in names if name]  # never two
        assert rule.to_published(name) == key
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


def test_all_kinds_of_problems_are_in_one_line():
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
        "missing unet.conv_in.weight (unet/conv_in/kernel)"
    )


def test_weights_of_another_variant_are_refused():
    with pytest.raises(ValueError, match="1 problem in the state dictionary: extra "):
        from_torch("lgm", {**micro_state(), "conv.gain": np.ones(1)}, "big", **MICRO)
    with pytest.raises(ValueError, match=r"missing unet\.down_blocks\.2\.downsample"):
        from_torch("lgm", micro_state(), variant="tiny")


def test_two_tensors_for_one_parameter_are_refused():
    rules = (Rule("old.bias", "bias"), Rule("new.bias", "bias"))
    tensors = {"old.bias": np.zeros(2), "new.bias": np.ones(2)}
    expected = {"bias": jax.ShapeDtypeStruct((2,), np.float32)}
    with pytest.raises(ValueError, match=r"new\.bias and old\.bias both fill bias"):
        convert_tensors(tensors, tensors.__getitem__, rules, expected)


def test_long_lists_of_problems_are_counted_by_kind():
    """Many extra and missing tensors do not hide the only one of another shape."""
    state = {f"foreign.{i}": np.zeros(1, np.float32) for i in range(300)}
    state["conv.bias"] = np.zeros(13, np.float32)
    with pytest.raises(ValueError, match="problems") as caught:
        from_torch("lgm", state, variant="big", **MICRO)
    line = str(caught.value)
    assert len(line) < 1000
    assert line.startswith("482 problems in the state dictionary: conv.bias has shape")
    assert line.count("; extra ") == line.count("; missing ") == rules.MAX_LISTED
    assert "; 296 more extra tensors; " in line
    assert line.endswith("; 177 more missing tensors")


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "lgm.model."]
)
def test_a_prefix_of_all_names_is_removed_and_logged(prefix, caplog):
    state = micro_state()
    expected = from_torch("lgm", state, variant="big", **MICRO)
    assert not caplog.records
    prefixed = {prefix + key: tensor for key, tensor in state.items()}
    params = from_torch("lgm", prefixed, variant="big", **MICRO)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert (
        record.getMessage() == f"removed {prefix!r} from the names of all 182 tensors"
    )


def test_without_the_prefix_the_other_problems_are_reported():
    state = micro_state()
    del state["unet.down_blocks.1.nets.0.conv1.weight"]
    state["lpips.weight"] = np.zeros(3, np.float32)
    prefixed = {f"module.{key}": tensor for key, tensor in state.items()}
    with pytest.raises(ValueError, match="problems") as caught:
        from_torch("lgm", prefixed, variant="big", **MICRO)
    assert str(caught.value) == (
        "2 problems in the state dictionary: extra lpips.weight; missing "
        "unet.down_blocks.1.nets.0.conv1.weight "
        "(unet/down_blocks_1/nets_0/conv1/kernel)"
    )


def test_prefixes_that_are_no_wrappers_stay():
    """Names that a rule matches, that share no prefix, or that no rule matches."""
    for keys in (
        ["unet.conv_in.weight", "unet.conv_in.bias"],
        ["module.conv.weight", "conv.bias"],
        ["module.foreign.weight", "module.foreign.bias"],
        ["module", "module.conv.bias"],
        [],
    ):
        assert strip_common_prefix(keys, RULES) == {key: key for key in keys}


def test_block_numbers_are_translated_without_leading_zeros():
    rule = Rule("layers.{i}.norm.weight", "block_{i:02d}/norm/scale")
    for number in (0, 9, 10, 100):
        ours = f"block_{number:02d}/norm/scale"
        assert rule.to_ours(f"layers.{number}.norm.weight") == ours
        assert rule.to_published(ours) == f"layers.{number}.norm.weight"
    for name in (
        "layers.00.norm.weight",
        "layers.x.norm.weight",
        "layers_0.norm.weight",
    ):
        assert rule.to_ours(name) is None
    assert rule.to_published("block_0/norm/scale") is None
