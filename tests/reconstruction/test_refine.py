"""Refinement: one step by hand, held-out views, scenes in a batch, bad arguments."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ball import ball_cameras, ball_views
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from facelift_jax.data import rodent
from facelift_jax.data.examples import evaluation_example
from facelift_jax.data.options import DataOptions
from facelift_jax.data.scenes import open_source
from facelift_jax.reconstruction import (
    hull_surface,
    refine,
    refine_hull,
    subdivide,
    visual_hull,
)
from facelift_jax.render import render
from facelift_jax.structs import Gaussians, Views, check

WHITE = jnp.ones(3)
ON_WHITE = functools.partial(refine, background=WHITE)
SIZE = 32


@functools.cache
def scene(num_views=5):
    """Inputs [1 v] of the ball and the surface [1 n] of their hull."""
    inputs = ball_views(ball_cameras(num_views, SIZE))
    add_axis = functools.partial(jax.tree.map, lambda x: jnp.asarray(x)[None])
    return add_axis(hull_surface(inputs)[0]), add_axis(inputs)


@functools.cache
def refined():
    return refine(*scene(), WHITE, 20)


def errors(gaussians, views: Views):
    """psnr_fg in dB and silhouette IoU, means over the views [v] of one scene."""
    first = jax.tree.map(lambda x: x[0], gaussians)
    output = jax.device_get(render(first, views.cameras, WHITE))
    mask, is_opaque = views.masks > 0.5, output.alphas > 0.5
    axes = (1, 2, 3)
    squared = np.sum(mask * (output.colors - views.images) ** 2, axes)
    psnr = -10 * np.log10(squared / (3 * mask.sum(axes)))
    iou = (is_opaque & mask).sum(axes) / (is_opaque | mask).sum(axes)
    return psnr.mean(), iou.mean()


def test_one_step_is_that_of_the_loss_on_gray():
    """The first step, from gradients of the reference renderer and plain arithmetic."""
    gaussians, inputs = scene(3)

    def loss(raw):
        activated = Gaussians(
            raw["means"],
            raw["quats"],
            jnp.exp(raw["scales"]),
            1 / (1 + jnp.exp(-raw["opacities"])),
            raw["sh"],
        )
        output = render(
            activated, inputs.cameras, jnp.full(3, 0.5), backend="reference"
        )
        gray = inputs.images - 0.5 * (1 - inputs.masks)
        color = ((output.colors - gray) ** 2).mean()
        alpha = ((output.alphas - inputs.masks) ** 2).mean()
        return color + 0.3 * alpha

    keep = gaussians.opacities[0] > 0
    kept = jax.tree.map(lambda x: x[:, keep], gaussians)
    raw = dataclasses.asdict(kept)
    raw["scales"] = jnp.log(kept.scales)
    raw["opacities"] = jnp.log(kept.opacities / (1 - kept.opacities))
    pixel = 3.0 / float(inputs.cameras.Ks[0, 0, 0, 0])
    rates = {"means": 0.8 * pixel, "quats": 0.08, "scales": 0.08}
    rates |= {"opacities": 0.1, "sh": 0.05}
    for name, gradient in jax.grad(loss)(raw).items():
        squares = gradient**2
        mean = squares.sum() / float((squares > 0).sum())
        raw[name] -= rates[name] * gradient / jnp.sqrt(squares + mean)
    after = refine(gaussians, inputs, WHITE, 1)
    after = jax.tree.map(lambda x: x[:, keep], after)
    expected = dict(raw, scales=jnp.exp(raw["scales"]))
    expected["opacities"] = jax.nn.sigmoid(raw["opacities"])
    for name, value in dataclasses.asdict(after).items():
        # a backend's gradients may differ by 1e-4 of the largest one
        atol = 2e-4 * rates[name]
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=atol)
        assert not np.allclose(value, dataclasses.asdict(kept)[name], atol=10 * atol)


def test_held_out_views_of_a_rodent_improve(tmp_path):
    """Beyond the start and beyond `visual_hull`; 48 px, uneven rig."""
    rodent.generate(tmp_path / "set", 1, 48, workers=1, views=8, uneven=True)
    stored = open_source(tmp_path / "set")[0]
    example = evaluation_example(stored, DataOptions(input_size=48, target_size=48))
    targets = jax.tree.map(lambda x: x[6:], example.targets)
    add_axis = functools.partial(jax.tree.map, lambda x: jnp.asarray(x)[None])
    start = add_axis(hull_surface(example.inputs)[0])
    after = add_axis(refine_hull(example.inputs, ON_WHITE))
    check(after, "refined")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))
    psnr, iou = errors(after, targets)
    for other in (start, add_axis(visual_hull(example.inputs))):
        other_psnr, other_iou = errors(other, targets)
        assert psnr > other_psnr + 1
        assert iou > other_iou + 0.03
    unrefined = refine_hull(example.inputs, ON_WHITE, 0)
    jax.tree.map(np.testing.assert_array_equal, unrefined, visual_hull(example.inputs))


def test_the_same_call_gives_the_same_bits():
    again = refine(*scene(), WHITE, 20)
    jax.tree.map(np.testing.assert_array_equal, again, refined())


def test_scenes_of_a_batch_do_not_influence_one_another():
    gaussians, inputs = scene()
    moved = dataclasses.replace(gaussians, means=gaussians.means + 0.05)
    both = jax.tree.map(lambda *x: jnp.concatenate(x), gaussians, moved)
    views = jax.tree.map(lambda x: jnp.concatenate([x, x]), inputs)
    together = refine(both, views, WHITE, 1)
    for index, alone in enumerate((gaussians, moved)):
        expected = refine(alone, inputs, WHITE, 1)
        # the order of sums over views may differ
        jax.tree.map(
            lambda x, y, index=index: np.testing.assert_allclose(
                x[index], y[0], rtol=1e-4, atol=1e-5
            ),
            together,
            expected,
        )


def test_without_steps_nothing_moves_and_transparent_gaussians_never_do():
    gaussians, inputs = scene()
    is_padding = gaussians.opacities == 0
    assert is_padding.any()
    np.testing.assert_array_equal(refined().opacities[is_padding], 0)
    np.testing.assert_array_equal(
        refined().means[is_padding], gaussians.means[is_padding]
    )
    same = refine(gaussians, inputs, WHITE, 0)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        *(
            (same.means, same.scales, same.opacities, same.sh),
            (gaussians.means, gaussians.scales, gaussians.opacities, gaussians.sh),
        ),
    )


def test_the_background_of_the_images_does_not_matter():
    gaussians, inputs = scene()
    black = dataclasses.replace(inputs, images=inputs.images - (1 - inputs.masks))
    on_black = refine(gaussians, black, jnp.zeros(3), 3)
    on_white = refine(gaussians, inputs, WHITE, 3)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        on_black,
        on_white,
    )


def test_the_refined_hull_ignores_where_one_mask_is_wrong():
    inputs = ball_views(ball_cameras(6, SIZE))
    inputs.masks[1, 16:], inputs.images[1, 16:] = 0, 1
    start, weights = hull_surface(inputs)
    assert (weights == 0).any()
    add_axis = functools.partial(jax.tree.map, lambda x: jnp.asarray(x)[None])
    scene = add_axis(start), add_axis(inputs), WHITE, 3
    expected = subdivide(refine(*scene, add_axis(weights)))
    actual = refine_hull(inputs, ON_WHITE, 3)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[0]), actual, expected)
    without = subdivide(refine(*scene))
    assert np.abs(without.means - expected.means).max() > 1e-3


def test_subdivision_keeps_the_surface_and_the_orientation():
    turn = np.array([[[0.6, 0.8, 0, 0]], [[1.0, 0, 0, 0]]], np.float32)  # 106 degrees
    gaussians = Gaussians(
        jnp.array([[[1.0, 2, 3]], [[0, 0, 0]]]),
        jnp.asarray(turn),
        jnp.array([[[0.1, 0.2, 0.01]], [[0.1, 0.1, 0.1]]]),
        jnp.array([[0.9], [0.0]]),
        jnp.full((2, 1, 1, 3), 0.3),
    )
    divided = jax.device_get(subdivide(gaussians))
    check(divided, "divided")
    assert divided.means.shape == (2, 4, 3)
    offsets = divided.means[0] - [1, 2, 3]
    second = 0.14 * np.array([0, 0.6**2 - 0.8**2, 2 * 0.6 * 0.8])
    corners = [(a * 0.07, *(b * second)[1:]) for a in (-1, 1) for b in (-1, 1)]
    np.testing.assert_allclose(offsets, corners, atol=1e-6)
    np.testing.assert_allclose(divided.scales[0], [[0.06, 0.12, 0.01]] * 4, rtol=1e-5)
    np.testing.assert_allclose(divided.opacities[0], 1 - 0.1**0.3, rtol=1e-5)
    np.testing.assert_array_equal(divided.opacities[1], 0)
    np.testing.assert_array_equal(divided.quats[0], np.tile(turn[0], (4, 1)))


def test_pixels_of_weight_zero_have_no_effect():
    gaussians, inputs = scene()
    weights = jnp.ones_like(inputs.masks).at[:, 1, :10].set(0)
    damaged = dataclasses.replace(
        inputs,
        images=inputs.images.at[:, 1, :10].set(0.2),
        masks=inputs.masks.at[:, 1, :10].set(inputs.masks[:, 2, 10:20]),
    )
    assert not np.array_equal(damaged.masks, inputs.masks)
    expected = refine(gaussians, inputs, WHITE, 3, weights)
    actual = refine(gaussians, damaged, WHITE, 3, weights)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        actual,
        expected,
    )


@pytest.mark.parametrize(("platform", "backend"), [("cuda", "pallas"), ("tpu", "xla")])
def test_lowers_for_other_platforms(platform, backend):
    gaussians, inputs = scene()
    step = functools.partial(refine, num_steps=1, backend=backend)
    device = AbstractDevice("NVIDIA H200", None, "gpu")  # jax 0.12 asks for it
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        traced = jax.jit(step).trace(gaussians, inputs, WHITE)
        assert traced.lower(lowering_platforms=(platform,)).as_text()


def test_arguments_that_do_not_fit_are_refused():
    gaussians, inputs = scene()
    first = jax.tree.map(lambda x: x[0], inputs)
    with pytest.raises(ValueError, match=r"refine: expected Gaussians \[b n\]"):
        refine(gaussians, first, WHITE)
    one_view = jax.tree.map(lambda x: x[:, :1], inputs)
    with pytest.raises(ValueError, match="at least two input views, found 1"):
        refine(gaussians, one_view, WHITE)
    with pytest.raises(ValueError, match=r"expected weights of shape .*32, 1\)"):
        refine(gaussians, inputs, WHITE, weights=jnp.ones((1, 5, 16, 16, 1)))
    with pytest.raises(ValueError, match="num_steps must be at least 0, found -1"):
        refine(gaussians, inputs, WHITE, -1)


def test_all_numbers_of_steps_share_one_compilation():
    gaussians, inputs = scene()
    compiled = importlib.import_module("facelift_jax.reconstruction.refine")._refine
    ON_WHITE(gaussians, inputs, num_steps=1)
    before = compiled._cache_size()
    ON_WHITE(gaussians, inputs, num_steps=2)
    assert compiled._cache_size() == before
