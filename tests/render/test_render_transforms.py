"""jit, vmap, pmap and shard_map give what a plain call gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from render_scenes import (
    BACKENDS,
    assert_trees_close,
    cloud,
    cotangents,
    image_loss,
    ring,
    settings,
    stack,
)

from facelift_jax.render import render
from facelift_jax.structs import Cameras

WIDTH, HEIGHT = 20, 17


@pytest.fixture(scope="module")
def scenes():
    gaussians = stack(cloud(0, 9), cloud(1, 9))
    cameras = ring(2, WIDTH, HEIGHT)
    return gaussians, stack(cameras, cameras)


def _value_and_grad(backend):
    weights = cotangents(WIDTH, HEIGHT)

    def loss(gaussians, cameras):
        config = settings(backend)
        out = render(gaussians, cameras, jnp.ones(3), config=config, backend=backend)
        return image_loss(out, weights), out

    def value_and_grad(gaussians, cameras):
        def of_inputs(gaussians, viewmats):
            return loss(gaussians, Cameras(viewmats, cameras.Ks, WIDTH, HEIGHT))

        gradient = jax.grad(of_inputs, argnums=(0, 1), has_aux=True)
        gradients, out = gradient(gaussians, cameras.viewmats)
        return out, gradients

    return value_and_grad


@pytest.fixture(scope="module")
def results(scenes):
    """What a plain call makes of the scenes, by a backend's name."""
    return functools.cache(lambda name: jax.jit(_value_and_grad(name))(*scenes))


@pytest.fixture(params=BACKENDS)
def plain(request, results):
    return _value_and_grad(request.param), results(request.param)


def test_without_jit(results, scenes):
    out = render(*scenes, jnp.ones(3))
    assert_trees_close(out, results("xla")[0])


def test_vmap(plain, scenes):
    function, expected = plain
    assert_trees_close(jax.jit(jax.vmap(function))(*scenes), expected)


def test_vmap_of_one_argument(plain, scenes):
    """Only the cameras are batched; the Gaussians are shared."""
    function, _ = plain
    gaussians, cameras = scenes
    first = jax.tree.map(lambda x: x[0], gaussians)
    found = jax.jit(jax.vmap(function, in_axes=(None, 0)))(first, cameras)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), first)
    assert_trees_close(found, jax.jit(jax.vmap(function))(both, cameras))


DEAR = pytest.param("pallas", marks=pytest.mark.slow)  # compiles for a minute


@pytest.mark.parametrize("backend", ["reference", "xla", DEAR])
def test_vmap_of_the_backward_pass_alone(backend, scenes):
    """Three targets for one drawing: the forward pass has no such axis."""
    gaussians, cameras = jax.tree.map(lambda x: x[0], scenes)
    rng = np.random.default_rng(0)
    targets = jnp.asarray(rng.standard_normal((3, 2, HEIGHT, WIDTH, 3)), jnp.float32)

    def loss(gaussians, target):
        config = settings(backend)
        out = render(gaussians, cameras, jnp.ones(3), config=config, backend=backend)
        return jnp.sum(out.colors * target)

    gradient = jax.grad(loss)
    together = jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(gaussians, targets)
    alone = jax.jit(lambda g, t: jax.lax.map(lambda x: gradient(g, x), t))
    assert_trees_close(together, alone(gaussians, targets))


def test_pmap(plain, scenes):
    function, expected = plain
    found = jax.pmap(function, devices=jax.devices()[:2])(*scenes)
    assert_trees_close(jax.device_get(found), expected)


@pytest.mark.parametrize("specs", [("data", "data"), (None, "data")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_shard_map_traces_with_its_checks(backend, specs, scenes):
    """Scenes sharded, and one scene's views sharded; no kernel is interpreted."""
    gaussians, cameras = scenes
    if specs[0] is None:
        gaussians, cameras = jax.tree.map(lambda x: x[0], scenes)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))

    def gradient(gaussians, cameras):
        def loss(gaussians):
            out = render(gaussians, cameras, backend=backend)
            return jax.lax.psum(out.colors.sum() + out.depths.sum(), "data")

        return jax.grad(loss)(gaussians)

    sharded = jax.shard_map(
        gradient, mesh=mesh, in_specs=tuple(map(P, specs)), out_specs=P(specs[0])
    )
    found = jax.eval_shape(sharded, gaussians, cameras)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, gaussians)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shard_map(backend, results, scenes):
    function, expected = _value_and_grad(backend), results(backend)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    sharded = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(P("data"), P("data")),
        out_specs=P("data"),
        check_vma=backend != "pallas",  # Pallas' interpreter mixes marked and unmarked
    )
    assert_trees_close(jax.device_get(jax.jit(sharded)(*scenes)), expected)
