"""LGM's network: views, samples, sizes, precision, errors, freezing."""

import dataclasses
import functools
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lgm_recipe import MICRO, NANO, random_params, random_views

from facelift_jax.checkpoints.tree import first_match, flatten_names
from facelift_jax.convert import abstract_params
from facelift_jax.geometry.rays import nearest_point_rays
from facelift_jax.models import get_model, layers
from facelift_jax.models.lgm import FREEZE_PRESETS, VARIANTS

REORDERED = {"rtol": 0, "atol": 2e-5}  # float32 sums in another order, values near 2


@pytest.fixture(scope="module")
def nano(usual_compiler):
    model = get_model("lgm", **NANO)
    params = random_params(model)
    apply = jax.jit(
        lambda params, inputs: model.apply({"params": params}, inputs),
        compiler_options=usual_compiler,
    )
    return model, params, apply


def select_views(views, index):
    """Views picked by an index over the leading axes."""
    return jax.tree.map(lambda leaf: leaf[index], views)


@pytest.mark.parametrize("num_views", [1, 3, 6])
def test_any_number_of_views_gives_one_gaussian_per_pixel(nano, num_views):
    _, params, apply = nano
    gaussians, aux = apply(params, random_views(2, num_views, 8))
    assert aux["raw"].shape == (2, num_views, 4, 4, 14)
    assert gaussians.means.shape == (2, num_views * 16, 3)
    assert gaussians.sh.shape == (2, num_views * 16, 1, 3)
    means = jnp.clip(aux["raw"][..., :3], -1, 1).reshape(2, -1, 3)
    np.testing.assert_array_equal(gaussians.means, means)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gaussians))


def test_another_scene_changes_no_bit(nano):
    _, params, apply = nano
    views, others = random_views(2, 3, 8), random_views(2, 3, 8, seed=1)
    images = np.stack([views.images[0], others.images[1]])
    changed = dataclasses.replace(views, images=images)
    before, _ = apply(params, views)
    after, _ = apply(params, changed)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert not np.array_equal(a[1], b[1])


def test_a_batch_equals_its_samples(nano):
    _, params, apply = nano
    views = random_views(3, 2, 8)
    raw = apply(params, views)[1]["raw"]
    for i in range(3):
        alone = apply(params, select_views(views, np.s_[i : i + 1]))[1]["raw"]
        np.testing.assert_allclose(raw[i], alone[0], **REORDERED)


def test_reordered_views_give_reordered_gaussians(nano):
    model, params, apply = nano
    views, order = random_views(2, 4, 8), np.array([2, 0, 3, 1])
    gaussians, aux = apply(params, views)
    others, other_aux = apply(params, select_views(views, np.s_[:, order]))
    np.testing.assert_allclose(aux["raw"][:, order], other_aux["raw"], **REORDERED)
    sources = model.source_views(4, 8)
    assert sources.shape == gaussians.opacities.shape[1:]
    for view, source in enumerate(order):
        expected = gaussians.means[:, sources == source]
        actual = others.means[:, sources == view]
        np.testing.assert_allclose(actual, expected, **REORDERED)


def test_every_view_sees_every_other(nano):
    _, params, apply = nano
    views = random_views(1, 3, 8)
    raw = apply(params, views)[1]["raw"]
    images = views.images.copy()
    images[:, 2] = 1 - images[:, 2]
    changed = apply(params, dataclasses.replace(views, images=images))[1]["raw"]
    assert (jnp.abs(raw - changed).max((0, 2, 3, 4)) > 1e-5).all()


def test_images_and_cameras_are_normalized_inside(nano):
    """A gray of the ImageNet mean and a camera at the origin leave only directions."""
    model, params, _ = nano
    views = random_views(1, 1, 8)
    mean = np.broadcast_to(np.float32([0.485, 0.456, 0.406]), views.images.shape)
    viewmats = np.eye(4, dtype=np.float32)[None, None]
    views = dataclasses.replace(
        views,
        images=mean,
        cameras=dataclasses.replace(views.cameras, viewmats=viewmats),
    )
    kernel = jnp.zeros((3, 3, 9, 8)).at[1, 1, :8, :].set(jnp.eye(8))
    conv_in = {"kernel": kernel, "bias": jnp.zeros(8)}
    params = {**params, "unet": {**params["unet"], "conv_in": conv_in}}
    apply = functools.partial(
        model.apply,
        capture_intermediates=lambda module, _: module.name == "conv_in",
        mutable=["intermediates"],
    )
    _, state = jax.jit(apply)({"params": params}, views)
    (features,) = state["intermediates"]["unet"]["conv_in"]["__call__"]
    np.testing.assert_allclose(features[..., :6], 0, atol=1e-6)
    assert (features[0, 0, 0, 6:8] < -0.1).all()  # top left: left and up in OpenCV axes
    assert (features[0, -1, -1, 6:8] > 0.1).all()


def test_half_precision_computes_close_and_emits_float32(nano):
    _, params, apply = nano
    views = random_views(1, 2, 8)
    model = get_model("lgm", dtype=jnp.bfloat16, **NANO)
    for leaf in jax.tree.leaves(abstract_params(model)):
        assert leaf.dtype == jnp.float32
    gaussians, aux = jax.jit(model.apply)({"params": params}, views)
    for leaf in jax.tree.leaves((gaussians, aux)):
        assert leaf.dtype == jnp.float32
    raw = apply(params, views)[1]["raw"]
    error = (aux["raw"] - raw).std() / raw.std()
    assert 1e-4 < error < 0.03  # 2^-9 per rounding, through ten layers


@pytest.mark.parametrize("precision", ["default", "highest"])
def test_matrix_precision_is_left_to_the_setting(nano, precision):
    model, params, _ = nano
    with jax.default_matmul_precision(precision):
        lowered = jax.jit(model.apply).lower({"params": params}, random_views(1, 2, 8))
    convolutions = re.findall(r"stablehlo\.convolution.*", lowered.as_text())
    assert convolutions
    for line in convolutions:
        assert ("HIGHEST" in line) == (precision == "highest")


class Layer(nn.Module):
    """A module that only calls a function of `layers`."""

    function: Callable

    @nn.compact
    def __call__(self, x):
        return self.function(x, name="layer")


def initialize(function, x):
    """(output, parameters) of a function of `layers`."""
    layer = Layer(function)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    return y, variables["params"]["layer"]


@pytest.mark.parametrize(
    ("function", "shape", "fan_in"),
    [
        (functools.partial(layers.conv, features=48, stride=2), (1, 4, 4, 24), 9 * 24),
        (functools.partial(layers.conv, features=48, kernel_size=1), (1, 4, 4, 96), 96),
        (functools.partial(layers.dense, features=72), (1, 4, 96), 96),
    ],
)
def test_initial_parameters_are_pytorch_defaults(function, shape, fan_in):
    _, params = initialize(function, jnp.ones(shape))
    assert sorted(params) == ["bias", "kernel"]
    bound = fan_in**-0.5
    for leaf in jax.tree.leaves(params):
        assert leaf.dtype == jnp.float32
        assert 0.8 * bound < jnp.abs(leaf).max() <= bound
    spread = bound / 3**0.5
    np.testing.assert_allclose(params["kernel"].std(), spread, rtol=0.03)


def group_norm(num_groups):
    return lambda x, name: layers.GroupNorm(num_groups, name=name)(x)


def test_norms_start_as_the_identity():
    x = 3 + 5 * jax.random.normal(jax.random.key(0), (2, 6, 6, 16))
    y, params = initialize(group_norm(4), x)
    assert (params["scale"] == 1).all()
    assert (params["bias"] == 0).all()
    groups = np.asarray(y).reshape(2, 36, 4, 4)
    np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(groups.std((1, 3)), 1, rtol=1e-5)


def test_statistics_survive_a_large_mean():
    """E[x^2] - E[x]^2 would lose every digit here."""
    norm = group_norm(2)
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    (shifted, _), (normalized, _) = initialize(norm, 4096 + x), initialize(norm, x)
    # adding 4096 rounds x to about 2^-11
    np.testing.assert_allclose(shifted, normalized, atol=1e-3)


@pytest.mark.parametrize(
    ("variant", "num_tensors", "num_parameters", "side", "map_side"),
    [
        ("lrm", 344, 412_958_240, 256, 64),
        ("small", 344, 412_958_240, 256, 64),
        ("big", 376, 415_042_848, 256, 128),
        ("tiny", 244, 59_743_360, 256, 64),
        ("mini", None, None, 64, 32),
    ],
)
def test_sizes_of_the_variants(variant, num_tensors, num_parameters, side, map_side):
    model = get_model("lgm", variant=variant)
    out = jax.eval_shape(
        model.init_with_output, jax.random.key(0), random_views(1, 2, side)
    )
    (gaussians, aux), variables = out
    leaves = jax.tree.leaves(variables["params"])
    if num_tensors is not None:
        assert len(leaves) == num_tensors
        assert sum(leaf.size for leaf in leaves) == num_parameters
    assert aux["raw"].shape == (1, 2, map_side, map_side, 14)
    assert gaussians.opacities.shape == (1, 2 * map_side**2)


PARTS = {  # parameters that train, by preset; the others are frozen
    "none": r".*",
    "encoder_mid": r"unet/(up_blocks_\d|norm_out|conv_out)/.*|conv/.*",
    "late_decoder": r"unet/(up_blocks_[2-9]|norm_out|conv_out)/.*|conv/.*",
    "last_layer": r"unet/conv_out/.*|conv/.*",
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_freeze_presets_cover_every_variant(variant):
    names = list(flatten_names(abstract_params(get_model("lgm", variant=variant))))
    assert get_model("lgm", variant).freeze_presets == dict(FREEZE_PRESETS)
    assert sorted(FREEZE_PRESETS) == sorted(PARTS)
    for preset, rules in FREEZE_PRESETS.items():
        values = first_match(names, rules)  # raises if a rule or a name is unused
        for name, value in values.items():
            trains = re.fullmatch(PARTS[preset], name) is not None
            assert value == (1.0 if trains else None), (preset, name)
    late = first_match(names, FREEZE_PRESETS["late_decoder"])
    up = {n.split("/")[1]: v for n, v in late.items() if "up_blocks" in n}
    assert round(len(up) / 2) == sum(value is None for value in up.values()) == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            {"name": "lmg"},
            "unknown model 'lmg'; known: gslrm, lgm",
        ),
        (
            {"name": "lgm", "variant": "huge"},
            "unknown lgm variant 'huge'; known: big, lrm, mini, small, tiny",
        ),
        (
            {"name": "lgm", "up_chanels": (1024,), "depth": 3},
            "unknown lgm override depth, up_chanels; known: anchor, down_attention, "
            "down_channels, layers_per_block, mid_attention, num_groups, num_heads, "
            "opacity_logit, scale_factor, up_attention, up_channels",
        ),
        (
            {"name": "lgm", "anchor": "pixel"},
            "lgm: anchor='pixel': choose origin or ray",
        ),
        (
            {"name": "lgm", "scale_factor": 0.0},
            "lgm: scale_factor=0.0: must be positive",
        ),
        (
            {"name": "lgm", "up_attention": (True,)},
            "lgm: up_channels has 5 entries, up_attention 1; give one of each "
            "per block",
        ),
        (
            {"name": "lgm", **MICRO, "down_channels": [30, 64, 128]},
            "lgm: down_channels (30, 64, 128): 30 is not a multiple of the 32 "
            "normalization groups",
        ),
        (
            {"name": "lgm", **NANO, "num_heads": 5},
            "lgm: down_channels (8, 16): attention at 16 channels is not a multiple of "
            "the 5 heads",
        ),
        (
            {"name": "lgm", **MICRO, "up_channels": (128, 32)},
            "lgm: up_channels (128, 32) must repeat the end of down_channels (32, 64, "
            "128) in reverse, here (128, 64): skips connect blocks of equal width",
        ),
    ],
)
def test_bad_sizes_are_refused(arguments, line):
    with pytest.raises(ValueError, match="lgm") as caught:
        get_model(**arguments)
    assert str(caught.value) == line


def test_lists_become_tuples():
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in NANO.items()}
    assert get_model("lgm", **lists) == get_model("lgm", **NANO)
    assert get_model("lgm", dtype="bfloat16").dtype == jnp.bfloat16


def crop(views, height, width):
    cameras = dataclasses.replace(views.cameras, height=height, width=width)
    return dataclasses.replace(
        views,
        images=views.images[..., :height, :width, :],
        masks=views.masks[..., :height, :width, :],
        cameras=cameras,
    )


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda views: crop(views, 8, 6),
            "inputs.images: expected square images, found 6 x 8 px; crop or pad them "
            "together with their Ks",
        ),
        (
            lambda views: crop(views, 7, 7),
            "inputs.images: side 7 px is not a multiple of 2, the stride of the U-Net; "
            "resize to 8",
        ),
        (
            lambda views: select_views(views, 0),
            "inputs: expected two leading axes (scene, view), found (2,)",
        ),
        (
            lambda views: select_views(views, np.s_[:, :0]),
            "inputs: expected two leading axes (scene, view), found (2, 0)",
        ),
        (
            lambda views: dataclasses.replace(views, images=np.uint8(views.images)),
            "inputs.images: expected float32 in [0, 1], found uint8; divide 8-bit "
            "images by 255",
        ),
        (
            lambda views: dataclasses.replace(views, masks=views.masks[:, :1]),
            "inputs.masks: expected shape [*b h w 1] with b=(2, 2), h=8, w=8, found "
            "(2, 1, 8, 8, 1)",
        ),
    ],
)
def test_bad_images_are_refused(nano, damage, line):
    model, params, _ = nano
    with pytest.raises(ValueError, match="inputs") as caught:
        model.apply({"params": params}, damage(random_views(2, 2, 8)))
    assert str(caught.value) == line


def test_anchored_positions_are_offsets_from_the_rays():
    """The anchors differ by the point of the ray nearest the world origin."""
    inputs = random_views(1, 2, 16)
    free = get_model("lgm", **NANO)
    anchored = get_model("lgm", **NANO, anchor="ray")
    params = jax.jit(free.init)(jax.random.key(0), inputs)["params"]

    @jax.jit  # one program, so that both have the same raw channels
    def apply(params):
        return [m.apply({"params": params}, inputs) for m in (free, anchored)]

    (gaussians, aux), (anchored_gaussians, anchored_aux) = apply(params)
    np.testing.assert_array_equal(anchored_aux["raw"], aux["raw"])
    offset = np.asarray(anchored_gaussians.means - gaussians.means).reshape(2, -1, 3)
    side = int(np.sqrt(offset.shape[1]))
    step = 16 // side  # input pixels per output pixel: compare with their mean
    points = nearest_point_rays(inputs.cameras)[0, ..., 3:]
    blocks = np.asarray(points).reshape(2, side, step, side, step, 3).mean((2, 4))
    np.testing.assert_allclose(offset, blocks.reshape(2, -1, 3), atol=5e-3)
