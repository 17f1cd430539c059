"""GS-LRM against the original, with the same weights, images and cameras."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gslrm_recipe import (
    GOLDENS,
    REDUCED,
    TINY,
    generator,
    golden_cameras,
    golden_views,
    state_dict,
)

from facelift_jax.checkpoints.tree import flatten_names
from facelift_jax.convert import convert_state, from_torch
from facelift_jax.convert.gslrm import RULES
from facelift_jax.convert.rules import convert_tensors
from facelift_jax.geometry.rays import nearest_point_rays
from facelift_jax.models import get_model
from facelift_jax.models.attention import attend
from facelift_jax.models.gslrm import to_patches

# The goldens are float32 themselves, 3e-6 from a float64 run at values of a few units.
TOLERANCE = 2e-5
# Float32 sums over all tokens, relative to the largest entry of a gradient.
GRADIENT_TOLERANCE = 2e-5
NAMES = ("xyz", "features", "scaling", "rotation", "opacity")


def decoded(gaussians, raw):
    """The inputs of the original's rasterizer, from our raw channels."""
    return {
        "xyz": gaussians.means,
        "features": raw[..., 3:6][..., None, :],
        "scaling": jnp.minimum(raw[..., 6:9] - 2.3, -1.2),
        "rotation": raw[..., 9:13],
        "opacity": raw[..., 13:] - 2,
    }


@pytest.fixture(scope="module")
def tiny():
    golden = np.load(GOLDENS / "tiny.npz")
    model = get_model("gslrm", **TINY)
    params = from_torch("gslrm", state_dict(**TINY), **TINY)
    inputs = golden_views("tiny", golden, 32)
    weights = {
        name: generator(f"cotangent_{name}").standard_normal(golden[name].shape)
        for name in NAMES
    }

    @jax.jit
    def step(params):
        def loss(params):
            (gaussians, aux), state = model.apply(
                {"params": params},
                inputs,
                capture_intermediates=True,
                mutable=["intermediates"],
            )
            outputs = decoded(gaussians, aux["raw"])
            total = sum(jnp.mean(outputs[n] * jnp.float32(weights[n])) for n in NAMES)
            return total, (gaussians, aux["raw"], outputs, state["intermediates"])

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, (gaussians, raw, outputs, inside)), grads = step(params)
    return golden, inputs, value, gaussians, raw, outputs, inside, grads


def worst(actual, expected):
    assert actual.shape == expected.shape
    return float(np.abs(np.asarray(actual) - expected).max())


def test_input_channels(tiny):
    golden, inputs, *_ = tiny
    rays = nearest_point_rays(inputs.cameras)
    posed = np.concatenate([2 * inputs.images - 1, rays], axis=-1)
    assert worst(np.moveaxis(posed, -1, 2), golden["posed_images"]) < 2e-6
    patches = to_patches(jnp.asarray(posed), 8).reshape(golden["patches"].shape)
    assert worst(patches, golden["patches"]) < 2e-6


def test_every_intermediate(tiny):
    golden, *_, inside, _ = tiny
    block = inside["block_00"]

    def out(module):
        return module["__call__"][0]

    q, k, v = jnp.moveaxis(out(block["attn"]["qkv"]).reshape(1, 34, 3, 2, 32), 2, 0)
    outputs = {
        "patch_tokens": out(inside["patch_embedder"]).reshape(2, 16, 64),
        "tokens_ln": out(inside["input_norm"]),
        "b0_norm1": out(block["norm1"]),
        "b0_qkv": out(block["attn"]["qkv"]),
        "b0_attn_ctx": attend(q, k, v).reshape(1, 34, 64),
        "b0_attn_out": out(block["attn"]),
        "b0_norm2": out(block["norm2"]),
        "b0_mlp_gelu": jax.nn.gelu(out(block["mlp_in"]), approximate=False),
        "b0_mlp_out": out(block["mlp_out"]),
        "block0": out(block),
        "block1": out(inside["block_01"]),
        "gaussian_params": out(inside["global_head"]),
        "pixel_params": out(inside["pixel_head"]),
    }
    errors = {name: worst(value, golden[name]) for name, value in outputs.items()}
    print("\n", {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) <= TOLERANCE


def test_gaussians(tiny):
    golden, _, value, gaussians, raw, outputs, _, _ = tiny
    assert raw.shape == (1, 2050, 14)
    errors = {name: worst(outputs[name], golden[name]) for name in NAMES}
    errors["scales"] = worst(gaussians.scales[0], golden["act_scaling"])
    errors["quats"] = worst(gaussians.quats[0], golden["act_rotation"])
    errors["opacities"] = worst(gaussians.opacities[0], golden["act_opacity"][:, 0])
    assert worst(gaussians.sh, golden["features"]) <= TOLERANCE
    print("\n", {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) <= TOLERANCE
    np.testing.assert_allclose(value, golden["functional"], rtol=1e-5)


def test_every_parameter_gradient(tiny):
    golden, *_, grads = tiny
    theirs = {
        key.removeprefix("grad."): golden[key]
        for key in golden.files
        if key.startswith("grad.")
    }
    # the converter changes the layout of a gradient as it does that of its weight
    expected = flatten_names(convert_tensors(theirs, theirs.get, RULES, grads))
    actual = flatten_names(grads)
    errors = {
        name: worst(actual[name], value) / np.abs(value).max()
        for name, value in expected.items()
    }
    print(f"\n{len(errors)} gradients, worst {max(errors.values()):.1e}")
    assert len(errors) == 19
    assert max(errors.values()) <= GRADIENT_TOLERANCE


def test_reduced():
    """Six views of 64 px, three blocks: 24,578 Gaussians."""
    golden = np.load(GOLDENS / "reduced.npz")
    model = get_model("gslrm", **REDUCED)
    params = from_torch("gslrm", state_dict(**REDUCED), **REDUCED)
    inputs = golden_views("reduced", golden, 64)
    apply = functools.partial(
        model.apply, capture_intermediates=True, mutable=["intermediates"]
    )
    (gaussians, aux), state = jax.jit(apply)({"params": params}, inputs)
    raw = aux["raw"]
    assert raw.shape == (1, 24578, 14)
    errors = {
        name: worst(value[:, ::8], golden[name])
        for name, value in decoded(gaussians, raw).items()
    }
    (tokens,) = state["intermediates"]["block_02"]["__call__"]
    errors["block2"] = worst(tokens[:, ::8], golden["block2_every8"])
    errors["global"] = worst(raw[:, :2], golden["gaussian_params"])
    pixels = raw[:, 2:].reshape(1, 384, 896)[:, ::12]
    errors["pixels"] = worst(pixels, golden["pixel_params_every12"])
    print("\n", {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) <= TOLERANCE


def test_rays():
    golden = np.load(GOLDENS / "rays.npz")
    rows = golden["rows_cols"]
    rays = nearest_point_rays(golden_cameras(golden, 512))
    rays = np.asarray(rays)[0][np.ix_(range(6), rows, rows)]
    assert worst(rays[..., :3], np.moveaxis(golden["ray_d"], 1, -1)) < 2e-7
    assert worst(rays[..., 3:], np.moveaxis(golden["nearest"], 1, -1)) < 2e-6
    # the original's mixed precision rounds rays; ours are within half a unit of that
    for kind, dtype in (("fp16", jnp.float16), ("bf16", jnp.bfloat16)):
        rounded = np.moveaxis(golden[f"ray_d_emul_{kind}"], 1, -1)
        eps = float(jnp.finfo(dtype).eps)
        assert 0.1 * eps < worst(rays[..., :3], rounded) < 0.5 * eps


def test_a_full_size_dictionary_without_memory():
    """Rules match all 183 published names; every tensor here has the wrong shape."""
    state = {key: np.empty(0) for key in state_dict(8, 24)}
    state |= {
        f"loss_calculator.perceptual_loss_module.net.conv{i}.{kind}": np.empty(0)
        for i in range(1, 17)
        for kind in ("weight", "bias")
    }
    assert len(state) == 183
    with pytest.raises(ValueError, match="183 problems") as caught:
        convert_state("gslrm", get_model("gslrm"), list(state), state.__getitem__)
    assert "extra" not in str(caught.value)
    assert "missing" not in str(caught.value)
