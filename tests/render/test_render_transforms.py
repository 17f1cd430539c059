"""jit, vmap, pmap and shard_map give what a plain call gives.

The expected numbers are those of the reference's plain call under jit, for every
backend: `test_conformance.py` and `test_goldens.py` test the other backends' own.
"""

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
    config_for,
    cotangents,
    image_loss,
    ring,
    stack,
)

from facelift_jax.render import render
from facelift_jax.structs import Cameras

pytestmark = pytest.mark.usefixtures("one_saved_slice")

WIDTH, HEIGHT = 20, 17


def slow(backend):
    """A case whose code a quick case runs too, of a backend that compiles slowly."""
    return pytest.param(backend, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def scenes():
    gaussians = stack(cloud(0, 9), cloud(1, 9))
    cameras = ring(2, WIDTH, HEIGHT)
    return gaussians, stack(cameras, cameras)


def _value_and_grad(backend):
    """(gaussians, cameras) -> (RenderOutput, gradients to gaussians and viewmats)."""
    weights = cotangents(WIDTH, HEIGHT)

    def loss(gaussians, cameras):
        config = config_for(backend)
        out = render(gaussians, cameras, jnp.ones(3), config=config, backend=backend)
        return image_loss(out, weights), out

    def value_and_grad(gaussians, cameras):
        def of_inputs(gaussians, viewmats):
            return loss(gaussians, Cameras(viewmats, cameras.Ks, WIDTH, HEIGHT))

        gradient = jax.grad(of_inputs, argnums=(0, 1), has_aux=True)
        gradients, out = gradient(gaussians, cameras.viewmats)
        return out, gradients

    return value_and_grad


@functools.cache
def _compiled_reference():
    return jax.jit(_value_and_grad("reference"))


@pytest.fixture(scope="module")
def expected(scenes):
    return _compiled_reference()(*scenes)


def test_without_jit(expected, scenes):
    out = render(*scenes, jnp.ones(3))
    assert_trees_close(out, expected[0])


# pallas: `test_vmap_of_one_argument` runs the same batching rules
@pytest.mark.parametrize("backend", ["reference", "xla", slow("pallas")])
def test_vmap(backend, expected, scenes):
    actual = jax.jit(jax.vmap(_value_and_grad(backend)))(*scenes)
    assert_trees_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_of_one_argument(backend, scenes):
    """Only the cameras are batched; the Gaussians are shared."""
    gaussians, cameras = scenes
    first = jax.tree.map(lambda x: x[0], gaussians)
    vmapped = jax.vmap(_value_and_grad(backend), in_axes=(None, 0))
    actual = jax.jit(vmapped)(first, cameras)
    repeated = jax.tree.map(lambda x: jnp.stack([x, x]), first)
    assert_trees_close(actual, _compiled_reference()(repeated, cameras))


# reference: it has no batching rule of its own; pallas: compiles for a minute
@pytest.mark.parametrize("backend", [slow("reference"), "xla", slow("pallas")])
def test_vmap_of_the_backward_pass_alone(backend, scenes):
    """Three targets for one image: the forward pass has no such axis."""
    gaussians, cameras = jax.tree.map(lambda x: x[0], scenes)
    rng = np.random.default_rng(0)
    targets = jnp.asarray(rng.standard_normal((3, 2, HEIGHT, WIDTH, 3)), jnp.float32)

    def loss(gaussians, target):
        config = config_for(backend)
        out = render(gaussians, cameras, jnp.ones(3), config=config, backend=backend)
        return jnp.sum(out.colors * target)

    gradient = jax.grad(loss)
    together = jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(gaussians, targets)
    alone = jax.jit(lambda g, t: jax.lax.map(lambda x: gradient(g, x), t))
    assert_trees_close(together, alone(gaussians, targets))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pmap(backend, expected, scenes):
    """One scene per device; the plain call draws both scenes together."""
    pmapped = jax.pmap(_value_and_grad(backend), devices=jax.devices()[:2])
    assert_trees_close(jax.device_get(pmapped(*scenes)), expected)


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
    actual = jax.eval_shape(sharded, gaussians, cameras)
    assert jax.tree.map(jnp.shape, actual) == jax.tree.map(jnp.shape, gaussians)


# reference, pallas: pmap runs the same program per device, and the test above traces
# what shard_map checks
@pytest.mark.parametrize("backend", [slow("reference"), "xla", slow("pallas")])
def test_shard_map(backend, expected, scenes):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    sharded = jax.shard_map(
        _value_and_grad(backend),
        mesh=mesh,
        in_specs=(P("data"), P("data")),
        out_specs=P("data"),
        # Pallas' interpreter mixes arrays that vary over devices with constants
        check_vma=backend != "pallas",
    )
    assert_trees_close(jax.device_get(jax.jit(sharded)(*scenes)), expected)


def _lower(platform, backend, scenes):
    def loss(gaussians, viewmats):
        moved = Cameras(viewmats, scenes[1].Ks, WIDTH, HEIGHT)
        out = render(gaussians, moved, backend=backend)
        return image_loss(out, cotangents(WIDTH, HEIGHT))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    traced = gradient.trace(scenes[0], scenes[1].viewmats)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("backend", ["reference", "xla"])
def test_lowers_for_tpus(backend, scenes):
    """Plain JAX: no operation that only another platform has."""
    text = _lower("tpu", backend, scenes)
    assert "stablehlo.while" in text
    assert "custom_call" not in text


def test_kernels_do_not_lower_for_tpus(scenes):
    with pytest.raises(NotImplementedError, match='"pallas" runs on NVIDIA GPUs'):
        _lower("tpu", "pallas", scenes)
