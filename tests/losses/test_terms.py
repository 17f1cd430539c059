"""Loss terms on images against closed forms; weights, schedules and messages."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facelift_jax.losses import (
    TERMS,
    describe_weights,
    validate_weights,
    weighted_loss,
    weights_at,
)
from facelift_jax.structs import Cameras, RenderOutput, Views

GOLDENS = Path(__file__).parents[1] / "goldens" / "losses"

TOLERANCES = {
    "value": 2e-6,  # float32 means of a few thousand numbers of order one
    "difference": 1e-7,  # float64 central differences of step 1e-5, relative
}


# the others, which use more than images: test_network_terms.py, test_lpips.py
IMAGE_TERMS = [
    name
    for name in TERMS
    if name not in ("lpips", "perceptual", "points_distance", "pixel_align")
]
KNOWN = ", ".join(TERMS)

jitted_terms = {name: jax.jit(TERMS[name]) for name in IMAGE_TERMS}


def term(name: str, render: RenderOutput, targets: Views) -> np.ndarray:
    return np.asarray(jitted_terms[name](render, targets, {}))


def test_mse_terms_match_lgm():
    golden = np.load(GOLDENS / "lgm_loss.npz")

    def channels_last(name: str) -> np.ndarray:
        return np.moveaxis(golden[f"loss_{name}"], 2, -1)

    cameras = Cameras(
        np.broadcast_to(np.eye(4, dtype=np.float32), (1, 2, 4, 4)),
        np.broadcast_to(np.eye(3, dtype=np.float32), (1, 2, 3, 3)),
        8,
        8,
    )
    masks = channels_last("gt_masks")
    targets = Views(channels_last("gt_composited"), masks, None, cameras)
    colors, alphas = channels_last("pred_images"), channels_last("pred_alphas")
    render = RenderOutput(colors, alphas, alphas, np.zeros((1, 2), np.int32))
    weights = {"rgb_mse": 1.0, "alpha_mse": 1.0}
    total, terms = weighted_loss(render, targets, {}, weights)
    assert abs(total - golden["loss_mse"]) < TOLERANCES["value"]
    psnr = -10 * np.log10(terms["rgb_mse"])
    assert abs(psnr - golden["loss_psnr"]) < 1e-5


def test_closed_forms(make_scene):
    _, targets = make_scene(0)
    targets = dataclasses.replace(targets, masks=np.round(targets.masks))
    coverage = targets.masks[0, 0].mean()
    render = RenderOutput(
        colors=targets.images + np.float32(0.1),
        alphas=1 - targets.masks,
        depths=targets.depths + np.float32(0.25),
        dropped=np.zeros((2, 3), np.int32),
    )
    expected = {
        "rgb_mse": 0.01,
        "rgb_mse_fg": 0.01 / coverage,
        "alpha_mse": 1.0,
        "depth_l1": 0.25,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(term(name, render, targets), value, rtol=2e-5)


def test_used_and_unused_terms_are_described():
    weights = {"rgb_mse": 1.0, "lpips": 0.0, "perceptual": (0.5, 10), "ssim": 0}
    text = "rgb_mse 1.0, perceptual (0.5, 10); not used: lpips, ssim"
    assert describe_weights(weights) == text
    assert describe_weights({"ssim": 1}) == "ssim 1; not used: none"


def test_a_perfect_rendering_costs_nothing(make_scene):
    _, targets = make_scene(1)
    render = RenderOutput(
        targets.images, targets.masks, targets.depths, np.zeros((2, 3), np.int32)
    )
    for name in IMAGE_TERMS:
        value = term(name, render, targets)
        np.testing.assert_allclose(value, 0, atol=TOLERANCES["value"], err_msg=name)


def test_depth_counts_known_pixels_on_the_object_only(make_scene):
    render, targets = make_scene(2)
    masks, depths = np.array(targets.masks), np.array(targets.depths)
    masks[:, :, :8], depths[:, :, :, :8] = 0.4, 0.0
    changed = dataclasses.replace(targets, masks=masks, depths=depths)
    valid = (masks > 0.5) & (depths > 0)
    error = np.abs(np.asarray(render.depths) - depths)
    expected = [error[b][valid[b]].mean() for b in range(2)]
    actual = term("depth_l1", render, changed)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("side", ["prediction", "target"])
def test_scale_invariant_depth_ignores_scale_and_shift_of_a_view(make_scene, side):
    render, targets = make_scene(3)
    scale = np.array([[3.0, 0.2, 1.0], [7.0, 0.5, 2.0]], np.float32)
    scale, shift = scale[..., None, None, None], np.float32(0.7)
    if side == "prediction":
        moved = dataclasses.replace(render, depths=scale * render.depths + shift)
        after = term("depth_scale_invariant", moved, targets)
    else:
        depths = np.where(targets.depths > 0, scale * targets.depths + shift, 0)
        moved = dataclasses.replace(targets, depths=depths)
        after = term("depth_scale_invariant", render, moved)
    before = term("depth_scale_invariant", render, targets)
    np.testing.assert_allclose(after, before, rtol=1e-5)
    assert np.all(before > 0.5)


def test_scale_invariant_depth_is_one_minus_correlation(make_scene):
    render, targets = make_scene(4)
    valid = (targets.depths > 0) & (targets.masks > 0.5)
    expected = [
        np.mean(
            [
                1 - np.corrcoef(render.depths[b, t][v], targets.depths[b, t][v])[0, 1]
                for t, v in enumerate(valid[b])
            ]
        )
        for b in range(2)
    ]
    actual = term("depth_scale_invariant", render, targets)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    mirrored = dataclasses.replace(render, depths=5 - jnp.asarray(targets.depths))
    actual = term("depth_scale_invariant", mirrored, targets)
    np.testing.assert_allclose(actual, 2, rtol=1e-5)


def test_scale_invariant_depth_leaves_flat_targets_out(make_scene):
    render, targets = make_scene(5)
    depths = np.array(targets.depths)
    depths[:, 1] = np.where(depths[:, 1] > 0, 2.0, 0.0)
    flat = dataclasses.replace(targets, depths=depths)

    def without_view_1(struct):
        return jax.tree.map(lambda a: a[:, [0, 2]], struct)

    expected = term(
        "depth_scale_invariant", without_view_1(render), without_view_1(targets)
    )
    actual = term("depth_scale_invariant", render, flat)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("name", IMAGE_TERMS)
def test_gradients_match_central_differences(make_scene, name):
    with jax.enable_x64(True):
        render, targets = make_scene(6)
        render, targets = jax.tree.map(
            lambda a: jnp.asarray(a, jnp.float64), (render, targets)
        )
        rng = np.random.default_rng(7)
        direction = jax.tree.map(
            lambda a: jnp.asarray(rng.normal(size=a.shape)), render
        )

        @jax.jit
        def value(step):
            moved = jax.tree.map(lambda a, d: a + step * d, render, direction)
            return TERMS[name](moved, targets, {}).sum()

        h = 1e-5
        difference = (value(h) - value(-h)) / (2 * h)
        slope = jax.grad(value)(0.0)
        assert abs(slope) > 1e-6
        assert abs(difference - slope) < TOLERANCES["difference"] * max(1, abs(slope))


@pytest.mark.parametrize("name", IMAGE_TERMS)
def test_values_and_gradients_are_finite_without_valid_pixels(make_scene, name):
    render, targets = make_scene(8)
    zeros = jax.tree.map(np.zeros_like, targets)
    nothing = dataclasses.replace(
        targets, images=zeros.images, masks=zeros.masks, depths=zeros.depths
    )
    flat = dataclasses.replace(render, depths=jnp.full_like(render.depths, 2.0))
    black = jax.tree.map(jnp.zeros_like, render)

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(arrays, views):
        return TERMS[name](RenderOutput(*arrays, render.dropped), views, {}).sum()

    for rendering in (render, flat, black):
        for views in (targets, nothing):
            arrays = (rendering.colors, rendering.alphas, rendering.depths)
            result, grads = value_and_grad(arrays, views)
            assert np.isfinite(result)
            assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("name", IMAGE_TERMS)
def test_scenes_do_not_mix_and_vmap_agrees(make_scene, name):
    """Equal up to rounding: thousands of summands in another order, 1.5e-6 here."""
    render, targets = make_scene(9)
    both = term(name, render, targets)
    for b in range(2):
        alone = jax.tree.map(lambda a, b=b: a[b : b + 1], (render, targets))
        np.testing.assert_allclose(term(name, *alone)[0], both[b], rtol=1e-5)

    def one(render, targets):
        return TERMS[name](*jax.tree.map(lambda a: a[None], (render, targets)), {})[0]

    np.testing.assert_allclose(jax.vmap(one)(render, targets), both, rtol=1e-5)


def test_weighted_sum_without_unused_terms(make_scene):
    render, targets = make_scene(10)
    without_depth = dataclasses.replace(targets, depths=None)
    weights = {"rgb_mse": 2, "alpha_mse": 0.5, "depth_l1": 0.0}
    total, terms = jax.jit(lambda r, t: weighted_loss(r, t, {}, weights))(
        render, without_depth
    )
    assert set(terms) == {"rgb_mse", "alpha_mse"}
    expected = 2 * terms["rgb_mse"] + 0.5 * terms["alpha_mse"]
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(
        terms["rgb_mse"], term("rgb_mse", render, targets).mean(), rtol=1e-6
    )


def test_a_weight_can_be_an_array(make_scene):
    render, targets = make_scene(11)

    @jax.jit
    def total(weight):
        return weighted_loss(render, targets, {}, {"rgb_mse": weight})[0]

    assert float(total(jnp.float32(0))) == 0
    np.testing.assert_allclose(
        total(jnp.float32(3)), 3 * term("rgb_mse", render, targets).mean(), rtol=1e-6
    )


def test_weights_in_force_at_a_step():
    """A schedule of weight zero is the number zero: its networks are not needed."""
    weights = {
        "ssim": (0.5,),
        "perceptual": (0.0, 5),
        "rgb_mse": (2, 1),
        "alpha_mse": 3,
    }
    validate_weights(weights)
    for step, rgb in ((0, 0), (1, 2)):
        now = weights_at(weights, jnp.int32(step))
        assert float(now.pop("rgb_mse")) == rgb
        assert now == {"ssim": 0.5, "perceptual": 0, "alpha_mse": 3}
    now = weights_at({"ssim": (0.5, 1, 3)}, jnp.arange(5))
    assert now["ssim"].tolist() == [0, 0.5, 0.5, 0, 0]


def test_a_term_whose_weight_is_an_array_of_zero_is_not_computed(make_scene):
    """It is compiled as a branch that is not taken."""
    render, targets = make_scene(11)
    nan = dataclasses.replace(render, colors=jnp.full_like(render.colors, jnp.nan))

    @jax.jit
    @jax.value_and_grad
    def total(colors, weight):
        drawn = dataclasses.replace(nan, colors=colors)
        weights = {"rgb_mse": weight, "alpha_mse": 1.0}
        return weighted_loss(drawn, targets, {}, weights)[0]

    value, gradient = total(nan.colors, jnp.float32(0))
    assert np.isfinite(value)
    assert (np.asarray(gradient) == 0).all()
    assert np.isnan(total(nan.colors, jnp.float32(1))[0])


def test_shapes_are_compared_before_subtraction(make_scene):
    render, targets = make_scene(12)
    wide = dataclasses.replace(render, colors=render.colors[:, :1])
    with pytest.raises(ValueError, match="render") as error:
        weighted_loss(wide, targets, {}, {"rgb_mse": 1.0})
    assert str(error.value) == (
        "render.colors is (2, 1, 16, 16, 3) but targets.images is (2, 3, 16, 16, 3): "
        "render with the cameras of the targets"
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"rgb_mse": 1.0, "lpip": 0.1},
            f"loss: unknown term lpip; known terms: {KNOWN}",
        ),
        ({"ssim": -1.0}, "loss.ssim: expected a finite weight >= 0, found -1.0"),
        ({"ssim": "1"}, "loss.ssim: expected a finite weight >= 0, found '1'"),
        (
            {"ssim": float("nan")},
            "loss.ssim: expected a finite weight >= 0, found nan",
        ),
        ({"ssim": True}, "loss.ssim: expected a finite weight >= 0, found True"),
        (
            {"ssim": 0.0},
            f"loss: no term has a weight above zero; choose from {KNOWN}",
        ),
        (
            {"ssim": (0.0, 5)},
            f"loss: no term has a weight above zero; choose from {KNOWN}",
        ),
        ({"ssim": (-1.0, 5)}, "loss.ssim: expected a finite weight >= 0, found -1.0"),
        (
            {"ssim": (1.0, 5, 3)},
            "loss.ssim: expected (weight, first step) or (weight, first step, step to "
            "stop at), found (1.0, 5, 3)",
        ),
        (
            {"ssim": (1.0, 0.5)},
            "loss.ssim: expected (weight, first step) or (weight, first step, step to "
            "stop at), found (1.0, 0.5)",
        ),
    ],
)
def test_bad_weights_are_refused_early(weights, message):
    with pytest.raises(ValueError, match="loss") as error:
        validate_weights(weights)
    assert str(error.value) == message


def test_good_weights_pass():
    validate_weights({"rgb_mse": 1, "alpha_mse": 0.3, "depth_l1": 0})
    validate_weights({"rgb_mse": (1, 0, 5), "alpha_mse": (0.3, 10)})


def test_weighted_loss_refuses_an_unknown_term(make_scene):
    with pytest.raises(ValueError, match="unknown term lpip; known terms: rgb_mse"):
        weighted_loss(*make_scene(13), {}, {"lpip": 1.0})


@pytest.mark.parametrize("name", ["depth_l1", "depth_scale_invariant"])
def test_depth_terms_require_depths(make_scene, name):
    render, targets = make_scene(14)
    with pytest.raises(ValueError, match="no depths") as error:
        TERMS[name](render, dataclasses.replace(targets, depths=None), {})
    assert str(error.value) == (
        f"loss.{name}: the targets have no depths; use data with depth maps or set its "
        "weight to 0"
    )
