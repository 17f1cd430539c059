"""GS-LRM: views, scenes, transforms, precision, presets, errors."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gslrm_recipe import TINY, random_params
from jax.sharding import Mesh, PartitionSpec
from lgm_recipe import random_views

from facelift_jax.checkpoints.tree import first_match, flatten_names
from facelift_jax.convert import abstract_params
from facelift_jax.models import get_model, gslrm
from facelift_jax.models.lora import merge_adapters

REORDERED = {"rtol": 0, "atol": 2e-5}  # float32 sums in another order, values near 2


@pytest.fixture(scope="module")
def tiny():
    model = get_model("gslrm", **TINY)
    params = random_params(model)
    inputs = random_views(2, 3, 16)

    def apply(params, inputs):
        gaussians, aux = model.apply({"params": params}, inputs)
        return gaussians.means, gaussians.scales, aux["raw"]

    return apply, params, inputs, jax.jit(apply)(params, inputs)


def assert_close(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a.reshape(b.shape), b, **REORDERED)


@pytest.mark.parametrize("num_views", [1, 2, 5])
def test_any_number_of_views(tiny, num_views):
    apply, params, *_ = tiny
    means, _, raw = jax.jit(apply)(params, random_views(1, num_views, 16))
    assert raw.shape == (1, 2 + num_views * 256, 14)
    assert np.isfinite(means).all()


def test_scenes_never_mix(tiny):
    apply, params, inputs, expected = tiny
    other = jax.tree.map(lambda x: np.stack([x[0], x[1, ::-1]]), inputs)
    outputs = jax.jit(apply)(params, other)
    for a, b in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert np.abs(a[1] - b[1]).max() > 1e-3


def test_pixel_gaussians_lie_on_their_rays(tiny):
    """The order is view, patch row, patch column, row, column."""
    _, _, inputs, (means, *_) = tiny
    cameras = inputs.cameras
    order = np.arange(16 * 16).reshape(2, 8, 2, 8).swapaxes(1, 2).reshape(-1)
    means = np.asarray(means[:, 2:]).reshape(2, 3, 256, 3)
    viewmats, Ks = np.asarray(cameras.viewmats), np.asarray(cameras.Ks)
    local = np.einsum("bvij,bvnj->bvni", viewmats[..., :3, :3], means)
    local = local + viewmats[..., None, :3, 3]
    pixels = np.einsum("bvij,bvnj->bvni", Ks, local / local[..., 2:])
    column, row = order % 16 + 0.5, order // 16 + 0.5
    np.testing.assert_allclose(pixels[..., 0] - column, 0, atol=2e-3)
    np.testing.assert_allclose(pixels[..., 1] - row, 0, atol=2e-3)
    sources = get_model("gslrm", **TINY).source_views(3, 16)
    assert sources.tolist() == [-1, -1, *np.repeat([0, 1, 2], 256)]


def test_rematerialized_blocks_change_nothing(tiny):
    _, params, inputs, _ = tiny
    gradients = []
    for remat in (False, True):
        model = get_model("gslrm", **TINY, remat=remat)

        def loss(params, model=model):
            return model.apply({"params": params}, inputs)[1]["raw"].sum()

        gradients.append(jax.jit(jax.grad(loss))(params))
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_half_precision_stays_close_and_returns_float32(tiny):
    _, params, inputs, (_, _, raw) = tiny
    model = get_model("gslrm", **TINY, dtype="bfloat16")
    gaussians, aux = jax.jit(model.apply)({"params": params}, inputs)
    assert {x.dtype.name for x in jax.tree.leaves((gaussians, aux))} == {"float32"}
    error = np.abs(aux["raw"] - raw)
    assert 1e-5 < error.mean() < 2e-2


def test_transforms(tiny):
    apply, params, inputs, expected = tiny
    assert_close(apply(params, inputs), expected)
    single = jax.tree.map(lambda x: x[:, None], inputs)
    mapped = jax.jit(jax.vmap(apply, in_axes=(None, 0)))(params, single)
    assert_close(mapped, expected)
    devices = jax.devices()[:2]
    mapped = jax.pmap(apply, in_axes=(None, 0), devices=devices)(params, single)
    assert_close([jax.device_get(x) for x in mapped], expected)
    mesh = Mesh(np.array(devices), ("data",))
    whole, scenes = PartitionSpec(), PartitionSpec("data")
    sharded = jax.shard_map(
        apply, mesh=mesh, in_specs=(whole, scenes), out_specs=scenes
    )
    outputs = jax.jit(sharded)(params, inputs)
    assert_close([jax.device_get(x) for x in outputs], expected)


def test_starts_gray_small_and_faint():
    """log-scale -2.3, opacity 0.12, gray, at the rays' points nearest the origin."""
    model = get_model("gslrm", **TINY)
    inputs = random_views(1, 2, 16)
    params = jax.jit(model.init)(jax.random.key(0), inputs)["params"]
    gaussians, _ = jax.jit(model.apply)({"params": params}, inputs)
    assert abs(np.log(gaussians.scales[:, 2:]).mean() + 2.3) < 0.2
    assert abs(gaussians.opacities.mean() - 0.12) < 0.05
    assert np.abs(gaussians.sh).mean() < 0.5


PRESETS = {  # number of blocks that train, by depth; whether tokens and heads train
    "none": (lambda depth: depth, True, True),
    "first_half": (lambda depth: depth // 2, False, True),
    "last_quarter": (lambda depth: math.ceil(depth / 4), False, True),
    "heads": (lambda depth: 0, False, True),
    "layer_decay": (lambda depth: depth, True, True),
}


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("variant", sorted(gslrm.VARIANTS))
def test_presets_fit_every_depth(variant, name):
    """The blocks nearest the heads train, each as a whole."""
    model = get_model("gslrm", variant)
    names = list(flatten_names(abstract_params(model)))
    # raises if a rule or a name is unused
    values = first_match(names, model.freeze_presets[name])
    count, tokens, heads = PRESETS[name]
    trained = {n.split("/")[0] for n in names if values[n] is not None}
    frozen = {n.split("/")[0] for n in names if values[n] is None}
    assert not trained & frozen
    expected = {
        f"block_{i:02d}" for i in range(model.depth)[::-1][: count(model.depth)]
    }
    expected |= {"patch_embedder", "global_tokens", "input_norm"} if tokens else set()
    expected |= {"global_head", "pixel_head"} if heads else set()
    assert trained == expected


def test_lora_trains_the_adapters_of_every_block():
    model = get_model("gslrm", "mini", adapter_rank=4)
    names = list(flatten_names(abstract_params(model)))
    values = first_match(names, model.freeze_presets["lora"])
    trained = {name for name in names if values[name] is not None}
    assert len(trained) == model.depth * 4 * 2
    assert all(re.search("/adapter_[ab]$", name) for name in trained)


def test_the_rate_falls_towards_the_input():
    rules = dict(get_model("gslrm").freeze_presets["layer_decay"])
    rates = [rules[rf"^block_({i:02d})/.*$"] for i in range(24)]
    assert rates == sorted(rates)
    assert rates[-1] == 1.0
    np.testing.assert_allclose(np.divide(rates[:-1], rates[1:]), 0.9)


def test_adapters_start_at_zero_and_merge_into_the_kernels():
    inputs = random_views(1, 2, 16)
    plain = get_model("gslrm", **TINY)
    adapted = get_model("gslrm", **TINY, adapter_rank=3)
    params = jax.jit(adapted.init)(jax.random.key(0), inputs)["params"]
    base = merge_adapters(params)
    assert jax.tree.structure(base) == jax.tree.structure(abstract_params(plain))
    raw, adapted_raw = (
        jax.jit(lambda params, m=m: m.apply({"params": params}, inputs)[1]["raw"])
        for m in (plain, adapted)
    )
    expected = raw(base)
    np.testing.assert_allclose(adapted_raw(params), expected, rtol=0, atol=1e-6)

    rng = np.random.default_rng(0)
    moved = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            x + (path[-1].key == "adapter_b") * rng.normal(0, 0.3, x.shape).astype("f4")
        ),
        params,
    )
    merged = raw(merge_adapters(moved))
    largest = np.abs(merged).max()
    assert np.abs(merged - expected).max() > 0.05 * largest
    np.testing.assert_allclose(adapted_raw(moved), merged, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"width": 100}, "gslrm: width=100 is not a multiple of head_dim=64"),
        ({"depth": 0}, "gslrm: depth=0: must be >= 1"),
        ({"adapter_rank": -1}, "gslrm: adapter_rank=-1: must be >= 0"),
        ({"num_global": -1}, "gslrm: num_global=-1: must be >= 0"),
        ({"scale_factor": -1.0}, "gslrm: scale_factor=-1.0: must be positive"),
    ],
)
def test_bad_sizes_are_refused(overrides, message):
    with pytest.raises(ValueError, match="gslrm") as caught:
        get_model("gslrm", **overrides)
    assert str(caught.value) == message


def test_images_that_no_patch_divides_are_refused(tiny):
    apply, params, *_ = tiny
    with pytest.raises(ValueError, match="side 20 px") as caught:
        apply(params, random_views(1, 2, 20))
    assert str(caught.value) == (
        "inputs.images: side 20 px is not a multiple of 8, the patch's side; "
        "resize to 24"
    )


def test_no_learned_tokens(tiny):
    model = get_model("gslrm", **TINY, num_global=0)
    _, aux = jax.jit(model.apply)(
        {"params": random_params(model)}, random_views(1, 2, 16)
    )
    assert aux["raw"].shape == (1, 2 * 256, 14)
    assert "global_head" not in abstract_params(model)
    assert jnp.isfinite(aux["raw"]).all()
