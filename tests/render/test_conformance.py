"""What every backend draws: closed forms, invariants, limits.

Compiling is most of the time here. Tests therefore fill their scenes up to the shapes
of `scene`, so that one program per backend and setting serves all of them.
"""

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
    config_for,
    cotangents,
    intrinsics,
    max_error,
    render_and_grad,
    ring,
)

from facelift_jax.render import RenderConfig, render
from facelift_jax.render.projection import project
from facelift_jax.render.tiling import Grid, depth_order, tile_rectangles
from facelift_jax.structs import Cameras, Gaussians

pytestmark = pytest.mark.usefixtures("one_saved_slice")

WIDTH, HEIGHT = 37, 22  # not multiples of any tile size
NUM_GAUSSIANS, NUM_COEFFICIENTS = 30, 9
BACKGROUND = jnp.asarray([0.2, 0.4, 0.9])
BACKGROUNDS = jnp.asarray([[0.1, 0.5, 0.9], [1.0, 0.0, 0.3]])  # of two views


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def spheres(means, scales, opacities, colors):
    """Isotropic Gaussians with the same color from everywhere."""
    means, scales, opacities, colors = (
        np.asarray(a, np.float32) for a in (means, scales, opacities, colors)
    )
    quats = np.tile(np.float32([1, 0, 0, 0]), (len(means), 1))
    sh = np.zeros((len(means), NUM_COEFFICIENTS, 3), np.float32)
    sh[:, 0] = (colors - 0.5) / np.float32(SH_C0)
    scales = np.tile(scales[:, None], (1, 3))
    arrays = (means, quats, scales, opacities, sh)
    return Gaussians(*(jnp.asarray(a) for a in arrays))


def fill_up(gaussians):
    """The Gaussians and, behind them, transparent ones up to NUM_GAUSSIANS."""
    number = NUM_GAUSSIANS - len(gaussians.means)
    filling = cloud(4, number, NUM_COEFFICIENTS)
    filling = dataclasses.replace(filling, opacities=jnp.zeros(number))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), gaussians, filling)


def front_cameras(focal=40.0, principal=(0.5, 0.5)):
    """The same camera twice, at the origin, looking along +z."""
    K = intrinsics(WIDTH, HEIGHT, focal, principal)
    return Cameras(jnp.stack([jnp.eye(4)] * 2), jnp.stack([K, K]), WIDTH, HEIGHT)


def splat(u, v, variance, opacity):
    """Alpha of an isotropic splat at every pixel, cut off below 1/255."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    alpha = opacity * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * variance))
    return np.where(alpha >= 1 / 255, alpha, 0)[..., None]


def draw(gaussians, cameras, backend, background=BACKGROUND):
    """Images of up to NUM_GAUSSIANS Gaussians from two cameras."""
    background = jnp.broadcast_to(background, (2, 3))
    return render_and_grad(fill_up(gaussians), cameras, background, backend=backend)[0]


@pytest.mark.parametrize("principal", [(0.5, 0.5), (0.3, 0.8)])
def test_one_splat(backend, principal):
    """On the axis the footprint is a circle of variance (f s / z)^2 + 0.3."""
    gaussians = spheres([(0, 0, 2.0)], [0.1], [0.7], [(1.0, 0.5, 0.0)])
    out = draw(gaussians, front_cameras(principal=principal), backend)
    alpha = splat(principal[0] * WIDTH, principal[1] * HEIGHT, 4.0 + 0.3, 0.7)
    color = alpha * np.array([1.0, 0.5, 0.0]) + (1 - alpha) * np.asarray(BACKGROUND)
    for view in range(2):
        assert max_error(out.alphas[view], alpha) < 2e-6
        assert max_error(out.colors[view], color) < 2e-6
        assert max_error(out.depths[view], np.where(alpha > 0, 2.0, 0)) < 2e-5
    assert (out.dropped == 0).all()


def test_nearer_splat_covers_the_farther_one(backend):
    """The nearer Gaussian has the higher index."""
    gaussians = spheres(
        [(0, 0, 4.0), (0, 0, 2.0)], [0.2, 0.05], [0.9, 0.6], [(1, 0, 0), (0, 0, 1)]
    )
    out = draw(gaussians, front_cameras(), backend)
    far = splat(WIDTH / 2, HEIGHT / 2, 4.0 + 0.3, 0.9)
    near = splat(WIDTH / 2, HEIGHT / 2, 1.0 + 0.3, 0.6)
    w_near, w_far = near, (1 - near) * far
    transmittance = (1 - near) * (1 - far)
    color = (
        w_far * np.array([1, 0, 0])
        + w_near * np.array([0, 0, 1])
        + transmittance * np.asarray(BACKGROUND)
    )
    assert max_error(out.colors[0], color) < 3e-6
    assert max_error(out.alphas[0], 1 - transmittance) < 3e-6
    depth = (2 * w_near + 4 * w_far) / np.maximum(1 - transmittance, 1e-9)
    assert max_error(out.depths[0], depth) < 3e-5


def test_pixel_ends_before_transmittance_reaches_the_limit(backend):
    """0.9 three times leaves 1e-3; a fourth would leave 1e-4 and is not drawn."""
    z = [1.0, 1.1, 1.2, 1.3]
    gaussians = spheres(
        [(0, 0, d) for d in z], [5.0] * 4, [0.9, 0.9, 0.9, 0.9001], [(0, 0, 0)] * 4
    )
    out = draw(gaussians, front_cameras(), backend)
    assert max_error(out.alphas[0, HEIGHT // 2, WIDTH // 2], 0.999) < 1e-6


def test_alpha_is_capped_without_gradient(backend):
    """The Gaussian is so wide that the cap acts on every pixel."""
    gaussians = spheres([(0, 0, 2.0)], [50.0], [1.0], [(1, 1, 1)])
    out, (d_gaussians, _, _) = render_and_grad(
        fill_up(gaussians), front_cameras(), BACKGROUNDS, backend=backend
    )
    assert max_error(out.alphas, 0.99) < 1e-6
    assert d_gaussians.opacities[0] == 0
    assert (d_gaussians.scales[0] == 0).all()
    assert (d_gaussians.sh[0, 0] != 0).all()  # color is drawn and has a gradient


def test_equal_depths_are_drawn_by_index(backend):
    colors = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    gaussians = spheres([(0, 0, 2.0)] * 3, [5.0] * 3, [0.5] * 3, colors)
    out = draw(gaussians, front_cameras(), backend, background=jnp.zeros(3))
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
        # A cut-off that flips within the step moves one pixel by 1/255, so pixels with
        # a large difference are left out.
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
        smooth_weights = weights * is_smooth

        def loss(*inputs):
            return jnp.sum(images(*inputs) * smooth_weights)

        gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs)
        slope = sum(
            float(np.sum(np.asarray(g) * d))
            for g, d in zip(
                jax.tree.leaves(gradients), jax.tree.leaves(step), strict=True
            )
        )
        difference = float(np.sum(np.asarray(ahead - behind) * smooth_weights))
        expected = difference / (2 * h)
        assert abs(slope - expected) < 1e-5 * abs(expected)


@pytest.fixture(scope="module")
def scene():
    """A cloud, two cameras, two backgrounds, and (name -> what a backend draws)."""
    gaussians = cloud(0, NUM_GAUSSIANS, NUM_COEFFICIENTS)
    inputs = gaussians, ring(2, WIDTH, HEIGHT), BACKGROUNDS
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
    black = draw(gaussians, cameras, backend, background=jnp.zeros(3))
    expected = black.colors + (1 - out.alphas) * background[:, None, None]
    assert max_error(out.colors, expected) < 2e-6
    weights = cotangents(WIDTH, HEIGHT)[0]
    expected = np.sum((1 - np.asarray(out.alphas)) * weights[None], axis=(1, 2))
    assert max_error(d_background, expected) < 1e-3


def test_order_of_gaussians_does_not_matter(scene, backend):
    gaussians, cameras, background, drawn = scene
    order = np.random.default_rng(0).permutation(NUM_GAUSSIANS)
    shuffled = jax.tree.map(lambda x: x[order], gaussians)
    out, (d_gaussians, *rest) = render_and_grad(
        shuffled, cameras, background, backend=backend
    )
    back = jax.tree.map(lambda x: x[np.argsort(order)], d_gaussians)
    assert_trees_close((out, (back, *rest)), drawn(backend))


def test_transparent_padding_changes_nothing(scene, backend):
    """Against the reference's images of the Gaussians alone."""
    _, cameras, background, _ = scene
    gaussians = cloud(0, 19, NUM_COEFFICIENTS)
    expected = render_and_grad(gaussians, cameras, background, backend="reference")
    out, (d_gaussians, *rest) = render_and_grad(
        fill_up(gaussians), cameras, background, backend=backend
    )
    assert all((x[19:] == 0).all() for x in jax.tree.leaves(d_gaussians))
    d_gaussians = jax.tree.map(lambda x: x[:19], d_gaussians)
    assert_trees_close((out, (d_gaussians, *rest)), expected)


def test_moving_world_and_cameras_together_changes_nothing(scene, backend):
    """With constant colors: higher harmonics are functions of the world's axes."""
    gaussians, cameras, _, _ = scene
    gaussians = dataclasses.replace(gaussians, sh=gaussians.sh.at[:, 1:].set(0))
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
    before = draw(gaussians, cameras, backend)
    after = draw(moved, moved_cameras, backend)
    assert max_error(before.colors, after.colors) < 5e-5


def test_two_runs_give_the_same_bits(scene, backend):
    gaussians, cameras, background, drawn = scene
    again = render_and_grad(gaussians, cameras, background, backend=backend)
    assert_same_bits(again, drawn(backend))


@pytest.mark.parametrize(("backend", "size"), [("xla", 5), ("pallas", 16)])
def test_tile_size_and_enabled_float64_change_nothing(scene, backend, size):
    """One program for both; no dtype may come from JAX's default."""
    gaussians, cameras, background, drawn = scene
    with jax.enable_x64(True):
        actual = render_and_grad(
            gaussians, cameras, background, backend=backend, tile_size=size
        )
    assert {x.dtype for x in jax.tree.leaves(actual[1])} == {jnp.dtype("float32")}
    assert actual[0].dropped.dtype == jnp.int32
    assert_trees_close(actual, drawn(backend))


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_slices_change_nothing(scene, backend):
    """The smallest slices that make progress: the same images bit for bit.

    A Gaussian is never split between slices, so its gradient's sum keeps its order too.
    """
    gaussians, cameras, background, drawn = scene
    actual = render_and_grad(
        gaussians, cameras, background, backend=backend, slice_entries=1
    )
    assert_same_bits(actual[0], drawn(backend)[0])
    if backend == "pallas":  # xla adds neighboring rows by doubling strides
        assert_same_bits(actual[1], drawn(backend)[1])
    assert_trees_close(actual[1], drawn(backend)[1], rtol=1e-6)


def draw_capped(scene, backend, max_entries):
    """RenderOutput under an explicit cap."""
    gaussians, cameras, background, _ = scene
    config = config_for(backend, max_entries=max_entries)

    @jax.jit
    def forward(gaussians):
        return render(gaussians, cameras, background, config=config, backend=backend)

    return forward(gaussians)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_explicit_cap_drops_the_farthest_and_counts(scene, backend):
    """The image is that of the nearest Gaussians whose entries fit."""
    gaussians, cameras, background, _ = scene
    cap = 60
    capped = draw_capped(scene, backend, cap)
    grid = Grid(WIDTH, HEIGHT, RenderConfig().tile_size)
    for view in range(2):
        camera = jax.tree.map(lambda x, v=view: x[v], cameras)
        splats = project(gaussians, camera, RenderConfig())
        order = np.asarray(depth_order(splats))
        x0, y0, x1, y1 = np.asarray(tile_rectangles(splats, grid))[order].T
        ends = np.cumsum((x1 - x0) * (y1 - y0))
        nearest = order[ends <= cap]
        assert 0 < len(nearest) < len(order)
        assert int(capped.dropped[view]) == ends[-1] - ends[len(nearest) - 1]
        opacities = jnp.zeros(NUM_GAUSSIANS)
        opacities = opacities.at[nearest].set(gaussians.opacities[nearest])
        thinned = dataclasses.replace(gaussians, opacities=opacities)
        expected, _ = render_and_grad(thinned, cameras, background, backend=backend)
        assert max_error(capped.colors[view], expected.colors[view]) < 2e-6


# pallas caps by `tiling.drop_farthest`, which test_tiling.py tests with a large cap too
@pytest.mark.parametrize(
    "backend", ["xla", pytest.param("pallas", marks=pytest.mark.slow)]
)
def test_large_cap_drops_nothing(scene, backend):
    *_, drawn = scene
    capped = draw_capped(scene, backend, 10**6)
    assert (capped.dropped == 0).all()
    assert max_error(capped.colors, drawn(backend)[0].colors) < 2e-6


CLOUD = cloud(0, NUM_GAUSSIANS, NUM_COEFFICIENTS)
EMPTY = {
    "no Gaussians": jax.tree.map(lambda x: x[:0], CLOUD),
    "all transparent": dataclasses.replace(CLOUD, opacities=0 * CLOUD.opacities),
    "all behind": dataclasses.replace(CLOUD, means=0 * CLOUD.means + 50),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_nothing_to_draw(kind, backend):
    cameras = jax.tree.map(lambda x: x[jnp.asarray([0, 0])], ring(3, WIDTH, HEIGHT))
    out, gradients = render_and_grad(EMPTY[kind], cameras, BACKGROUNDS, backend=backend)
    blank = np.broadcast_to(BACKGROUNDS[:, None, None], out.colors.shape)
    np.testing.assert_array_equal(out.colors, blank)
    assert (out.alphas == 0).all()
    assert (out.depths == 0).all()
    assert (out.dropped == 0).all()
    assert all((x == 0).all() for x in jax.tree.leaves(gradients[:2]))


def test_extremes_stay_finite(backend):
    """Values and gradients over thirty orders of magnitude in one scene."""
    n = NUM_GAUSSIANS
    rng = np.random.default_rng(0)
    base = cloud(1, n, NUM_COEFFICIENTS)
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
