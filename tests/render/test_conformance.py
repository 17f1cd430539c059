"""What every backend must draw: closed forms, invariants, limits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from render_scenes import (
    BACKENDS,
    SH_C0,
    assert_same_bits,
    assert_trees_close,
    cloud,
    cotangents,
    intrinsics,
    max_error,
    render_and_grad,
    ring,
    settings,
    stack,
)

from facelift_jax.render import RenderConfig, render
from facelift_jax.render.projection import project
from facelift_jax.render.tiling import Grid, depth_order, tile_rectangles
from facelift_jax.structs import Cameras, Gaussians

WIDTH, HEIGHT = 37, 22  # multiples of no tile
BACKGROUND = jnp.asarray([0.2, 0.4, 0.9])
BACKGROUNDS = jnp.asarray([[0.1, 0.5, 0.9], [1.0, 0.0, 0.3]])  # of two views


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def spheres(means, scales, opacities, colors):
    """Isotropic Gaussians of plain colour."""
    means, scales, opacities, colors = (
        np.asarray(a, np.float32) for a in (means, scales, opacities, colors)
    )
    quats = np.tile(np.float32([1, 0, 0, 0]), (len(means), 1))
    sh = (colors - 0.5) / np.float32(SH_C0)
    scales = np.tile(scales[:, None], (1, 3))
    return Gaussians(
        *(jnp.asarray(a) for a in (means, quats, scales, opacities, sh[:, None]))
    )


def front_camera(focal=40.0, principal=(0.5, 0.5)):
    K = intrinsics(WIDTH, HEIGHT, focal, principal)
    return Cameras(jnp.eye(4)[None], jnp.asarray(K)[None], WIDTH, HEIGHT)


def splat(u, v, variance, opacity):
    """Alpha of an isotropic splat at every pixel, cut off below 1/255."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    alpha = opacity * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * variance))
    return np.where(alpha >= 1 / 255, alpha, 0)[..., None]


def draw(gaussians, cameras, backend, background=BACKGROUND, **config):
    config = settings(backend, **config)

    def call(gaussians, cameras, background):
        return render(gaussians, cameras, background, config=config, backend=backend)

    return jax.jit(call)(gaussians, cameras, background)


@pytest.mark.parametrize("principal", [(0.5, 0.5), (0.3, 0.8)])
def test_one_splat(backend, principal):
    """On the axis the footprint is a circle of variance (f s / z)^2 + 0.3."""
    gaussians = spheres([(0, 0, 2.0)], [0.1], [0.7], [(1.0, 0.5, 0.0)])
    out = draw(gaussians, front_camera(principal=principal), backend)
    alpha = splat(principal[0] * WIDTH, principal[1] * HEIGHT, 4.0 + 0.3, 0.7)
    color = alpha * np.array([1.0, 0.5, 0.0]) + (1 - alpha) * np.asarray(BACKGROUND)
    assert max_error(out.alphas[0], alpha) < 2e-6
    assert max_error(out.colors[0], color) < 2e-6
    assert max_error(out.depths[0], np.where(alpha > 0, 2.0, 0)) < 2e-5
    assert (out.dropped == 0).all()


def test_two_splats_nearer_first(backend):
    """The nearer one is listed second; it must cover the farther one."""
    gaussians = spheres(
        [(0, 0, 4.0), (0, 0, 2.0)], [0.2, 0.05], [0.9, 0.6], [(1, 0, 0), (0, 0, 1)]
    )
    out = draw(gaussians, front_camera(), backend)
    far = splat(WIDTH / 2, HEIGHT / 2, 4.0 + 0.3, 0.9)
    near = splat(WIDTH / 2, HEIGHT / 2, 1.0 + 0.3, 0.6)
    w_near, w_far = near, (1 - near) * far
    left = (1 - near) * (1 - far)
    color = (
        w_far * np.array([1, 0, 0])
        + w_near * np.array([0, 0, 1])
        + left * np.asarray(BACKGROUND)
    )
    assert max_error(out.colors[0], color) < 3e-6
    assert max_error(out.alphas[0], 1 - left) < 3e-6
    depth = (2 * w_near + 4 * w_far) / np.maximum(1 - left, 1e-9)
    assert max_error(out.depths[0], depth) < 3e-5


def test_stop_leaves_out_the_gaussian_that_would_pass_it(backend):
    """0.9 three times leaves 1e-3; a fourth would leave 1e-4 and is not drawn."""
    z = [1.0, 1.1, 1.2, 1.3]
    gaussians = spheres(
        [(0, 0, d) for d in z], [5.0] * 4, [0.9, 0.9, 0.9, 0.9001], [(0, 0, 0)] * 4
    )
    out = draw(gaussians, front_camera(), backend)
    assert max_error(out.alphas[0, HEIGHT // 2, WIDTH // 2], 0.999) < 1e-6


def test_alpha_is_capped_without_gradient(backend):
    gaussians = spheres([(0, 0, 2.0)], [5.0], [1.0], [(1, 1, 1)])

    def center(opacities):
        moved = dataclasses.replace(gaussians, opacities=opacities)
        config = settings(backend)
        out = render(moved, front_camera(), config=config, backend=backend)
        return out.alphas[0, HEIGHT // 2, WIDTH // 2, 0]

    alpha, slope = jax.jit(jax.value_and_grad(center))(gaussians.opacities)
    assert abs(alpha - 0.99) < 1e-6
    assert slope[0] == 0


def test_equal_depths_go_to_the_lower_index(backend):
    colors = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    gaussians = spheres([(0, 0, 2.0)] * 3, [5.0] * 3, [0.5] * 3, colors)
    out = draw(gaussians, front_camera(), backend, background=jnp.zeros(3))
    middle = out.colors[0, HEIGHT // 2, WIDTH // 2]
    assert max_error(middle, [0.5, 0.25, 0.125]) < 1e-3


def test_finite_differences_in_float64():
    """The reference's derivative along a random direction of all inputs together."""
    with jax.enable_x64(True):
        gaussians, cameras = jax.tree.map(
            lambda x: x.astype(jnp.float64), (cloud(2, 5, 4), ring(2, WIDTH, HEIGHT))
        )
        rng = np.random.default_rng(1)
        inputs = (gaussians, cameras.viewmats, BACKGROUND.astype(jnp.float64))
        shift = np.zeros((2, 4, 4))
        shift[:, :3, 3] = rng.standard_normal((2, 3))
        step = (
            jax.tree.map(lambda x: rng.standard_normal(x.shape), gaussians),
            shift,
            rng.standard_normal(3),
        )
        # Smooth weights: a cut-off that flips within the step moves the sum by 1/255 of
        # one pixel, so pixels that a larger step flips are left out.
        weights = rng.standard_normal((2, HEIGHT, WIDTH, 5))
        h = 1e-7

        def images(gaussians, viewmats, background):
            moved = Cameras(viewmats, cameras.Ks, WIDTH, HEIGHT)
            out = render(gaussians, moved, background, backend="reference")
            return jnp.concatenate([out.colors, out.alphas, out.depths], axis=-1)

        both = jax.jit(images)
        ahead = both(*jax.tree.map(lambda x, d: x + h * d, inputs, step))
        behind = both(*jax.tree.map(lambda x, d: x - h * d, inputs, step))
        is_smooth = np.abs(np.asarray(ahead - behind)).max(-1, keepdims=True) < 1e-4
        assert is_smooth.mean() > 0.99
        kept = weights * is_smooth

        def loss(*inputs):
            return jnp.sum(images(*inputs) * kept)

        gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs)
        slope = sum(
            float(np.sum(np.asarray(g) * d))
            for g, d in zip(
                jax.tree.leaves(gradients), jax.tree.leaves(step), strict=True
            )
        )
        expected = float(np.sum(np.asarray(ahead - behind) * kept)) / (2 * h)
        assert abs(slope - expected) < 1e-5 * abs(expected)


@pytest.fixture(scope="module")
def scene():
    """A cloud, two cameras and backgrounds, and what a named backend makes of them."""
    inputs = cloud(0, 30, 9), ring(2, WIDTH, HEIGHT), BACKGROUNDS
    drawn = functools.cache(lambda name: render_and_grad(*inputs, backend=name))
    return *inputs, drawn


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_backends_agree(scene, backend):
    *_, drawn = scene
    assert_trees_close(drawn(backend), drawn("reference"))


def test_backgrounds_per_view(scene, backend):
    """colors = drawing + transmittance x background, and its gradient the same sum."""
    gaussians, cameras, background, drawn = scene
    out, (_, _, d_background) = drawn(backend)
    black = draw(gaussians, cameras, backend, background=None)
    expected = black.colors + (1 - out.alphas) * background[:, None, None]
    assert max_error(out.colors, expected) < 2e-6
    weights = cotangents(WIDTH, HEIGHT)[0]
    expected = np.sum((1 - np.asarray(out.alphas)) * weights[None], axis=(1, 2))
    assert max_error(d_background, expected) < 1e-3


def test_a_batch_equals_its_parts(scene, backend):
    gaussians, cameras, background, drawn = scene
    other = cloud(9, 30, 9)
    together = render_and_grad(
        stack(gaussians, other),
        stack(cameras, cameras),
        jnp.stack([background, background]),
        backend=backend,
    )
    assert_trees_close(jax.tree.map(lambda x: x[0], together), drawn(backend))


def test_order_of_gaussians_does_not_matter(scene, backend):
    gaussians, cameras, background, drawn = scene
    order = np.random.default_rng(0).permutation(30)
    shuffled = jax.tree.map(lambda x: x[order], gaussians)
    out, (d_gaussians, *rest) = render_and_grad(
        shuffled, cameras, background, backend=backend
    )
    back = jax.tree.map(lambda x: x[np.argsort(order)], d_gaussians)
    assert_trees_close((out, (back, *rest)), drawn(backend))


def test_transparent_padding_changes_nothing(scene, backend):
    gaussians, cameras, background, drawn = scene
    padding = dataclasses.replace(cloud(4, 11, 9), opacities=jnp.zeros(11))
    padded = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), gaussians, padding)
    out, (d_gaussians, *rest) = render_and_grad(
        padded, cameras, background, backend=backend
    )
    assert all((x[30:] == 0).all() for x in jax.tree.leaves(d_gaussians))
    d_gaussians = jax.tree.map(lambda x: x[:30], d_gaussians)
    assert_trees_close((out, (d_gaussians, *rest)), drawn(backend))


def test_world_and_cameras_move_together(scene, backend):
    """Degree 0: harmonics of higher degree live in world axes."""
    gaussians = dataclasses.replace(scene[0], sh=scene[0].sh[:, :1])
    cameras = scene[1]
    half = np.sqrt(0.5).astype(np.float32)
    turn = np.float32([[0, -1, 0, 0.3], [1, 0, 0, -0.2], [0, 0, 1, 0.5], [0, 0, 0, 1]])
    w, x, y, z = np.asarray(gaussians.quats).T
    moved = dataclasses.replace(
        gaussians,
        means=jnp.asarray(np.asarray(gaussians.means) @ turn[:3, :3].T + turn[:3, 3]),
        quats=jnp.asarray(half * np.stack([w - z, x - y, y + x, z + w], axis=-1)),
    )
    viewmats = np.asarray(cameras.viewmats) @ np.linalg.inv(turn)
    moved_cameras = dataclasses.replace(
        cameras, viewmats=jnp.asarray(viewmats, jnp.float32)
    )
    here = draw(gaussians, cameras, backend)
    there = draw(moved, moved_cameras, backend)
    assert max_error(here.colors, there.colors) < 5e-5


def test_twice_the_same_bits(scene, backend):
    gaussians, cameras, background, drawn = scene
    again = render_and_grad(gaussians, cameras, background, backend=backend)
    assert_same_bits(again, drawn(backend))


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_float32_where_float64_is_enabled(scene, backend):
    """Nothing inside takes its dtype from JAX's default."""
    gaussians, cameras, background, drawn = scene
    with jax.enable_x64(True):
        found = render_and_grad(gaussians, cameras, background, backend=backend)
    assert {x.dtype for x in jax.tree.leaves(found[1])} == {jnp.dtype("float32")}
    assert found[0].dropped.dtype == jnp.int32
    assert_trees_close(found, drawn(backend))


@pytest.mark.parametrize(("backend", "size"), [("xla", 5), ("pallas", 16)])
def test_tile_size_changes_nothing(scene, backend, size):
    gaussians, cameras, background, drawn = scene
    found = render_and_grad(
        gaussians, cameras, background, backend=backend, tile_size=size
    )
    assert_trees_close(found, drawn(backend))


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_slices_change_nothing(scene, backend):
    """The smallest slices that make progress: the same images bit for bit.

    A Gaussian is never split between slices, so its gradient's sum keeps its order too.
    """
    gaussians, cameras, background, drawn = scene
    found = render_and_grad(
        gaussians, cameras, background, backend=backend, slice_entries=1
    )
    assert_same_bits(found[0], drawn(backend)[0])
    if backend == "pallas":  # xla adds neighbouring rows by doubling strides
        assert_same_bits(found[1], drawn(backend)[1])
    assert_trees_close(found[1], drawn(backend)[1], rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_explicit_cap_drops_the_farthest_and_counts(scene, backend):
    """What is drawn is the image of the nearest Gaussians whose entries fit."""
    gaussians, cameras, background, drawn = scene
    cap = 60

    def draw_with(opacities, max_entries):
        thinned = dataclasses.replace(gaussians, opacities=opacities)
        config = settings(backend, max_entries=max_entries)
        out = render(thinned, cameras, background, config=config, backend=backend)
        return out.colors, out.dropped

    limited = jax.jit(draw_with, static_argnums=1)
    colors, dropped = limited(gaussians.opacities, cap)
    roomy, none_dropped = limited(gaussians.opacities, 10**6)
    assert (none_dropped == 0).all()
    assert max_error(roomy, drawn(backend)[0].colors) < 2e-6
    grid = Grid(WIDTH, HEIGHT, RenderConfig().tile_size)
    for view in range(2):
        camera = jax.tree.map(lambda x, v=view: x[v], cameras)
        splats = project(gaussians, camera, RenderConfig())
        order = np.asarray(depth_order(splats))
        x0, y0, x1, y1 = np.asarray(tile_rectangles(splats, grid))[order].T
        ends = np.cumsum((x1 - x0) * (y1 - y0))
        kept = order[ends <= cap]
        assert 0 < len(kept) < len(order)
        assert int(dropped[view]) == ends[-1] - ends[len(kept) - 1]
        opacities = jnp.zeros(30).at[kept].set(gaussians.opacities[kept])
        expected, _ = limited(opacities, 10**6)
        assert max_error(colors[view], expected[view]) < 2e-6


EMPTY = {
    "no Gaussians": jax.tree.map(lambda x: x[:0], cloud(0, 3)),
    "all transparent": dataclasses.replace(cloud(0, 3), opacities=jnp.zeros(3)),
    "all behind": dataclasses.replace(cloud(0, 3), means=jnp.full((3, 3), 50.0)),
}


def test_nothing_to_draw(backend):
    cameras = jax.tree.map(lambda x: x[:1], ring(3, WIDTH, HEIGHT))
    for kind, gaussians in EMPTY.items():
        out, gradients = render_and_grad(
            gaussians, cameras, BACKGROUND[None], backend=backend
        )
        blank = np.broadcast_to(BACKGROUND, out.colors.shape)
        np.testing.assert_array_equal(out.colors, blank, err_msg=kind)
        assert (out.alphas == 0).all(), kind
        assert (out.depths == 0).all(), kind
        assert (out.dropped == 0).all(), kind
        assert all((x == 0).all() for x in jax.tree.leaves(gradients[:2])), kind


def test_extremes_stay_finite(backend):
    """Values and gradients over thirty orders of magnitude in one scene.

    Its shapes are those of `scene`: one program draws both.
    """
    n = 30
    rng = np.random.default_rng(0)
    base = cloud(1, n, 9)
    extreme = dataclasses.replace(
        base,
        means=base.means
        * jnp.asarray(10.0 ** rng.uniform(-3, 15, (n, 1)), jnp.float32),
        scales=jnp.asarray(10.0 ** rng.uniform(-20, 10, (n, 3)), jnp.float32),
        quats=base.quats.at[:4].set(0.0),
        opacities=base.opacities.at[::3].set(1.0).at[1::5].set(0.0),
    )
    out, gradients = render_and_grad(
        extreme, ring(2, WIDTH, HEIGHT, radius=0.5), BACKGROUNDS, backend=backend
    )
    for leaf in jax.tree.leaves((out, gradients)):
        assert np.isfinite(leaf).all()
