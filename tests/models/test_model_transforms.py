"""The network under jit, grad, vmap, shard_map and pmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from lgm_recipe import NANO, random_params, random_views

from facelift_jax.models import get_model

REORDERED = {"rtol": 0, "atol": 2e-5}  # float32 sums in another order, values near 2


@pytest.fixture(scope="module")
def nano():
    model = get_model("lgm", **NANO)
    views = random_views(2, 2, 8)
    params = random_params(model)

    def apply(params, inputs):
        gaussians, aux = model.apply({"params": params}, inputs)
        return gaussians.means, gaussians.sh, aux["raw"]

    return apply, params, views, jax.jit(apply)(params, views)


def assert_close(outputs, expected):
    for a, b in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(a.reshape(b.shape), b, **REORDERED)


def split(views):
    """Splits two scenes along a new leading axis."""
    return jax.tree.map(lambda leaf: leaf[:, None], views)


def test_jit_equals_eager(nano):
    apply, params, views, expected = nano
    assert_close(apply(params, views), expected)


def test_vmap(nano):
    apply, params, views, expected = nano
    outputs = jax.jit(jax.vmap(apply, in_axes=(None, 0)))(params, split(views))
    assert_close(outputs, expected)


def test_pmap_on_two_devices(nano):
    apply, params, views, expected = nano
    devices = jax.devices()[:2]
    outputs = jax.pmap(apply, in_axes=(None, 0), devices=devices)(params, split(views))
    assert {shard.device for shard in outputs[0].addressable_shards} == set(devices)
    assert_close([jax.device_get(x) for x in outputs], expected)


def test_shard_map_on_two_devices(nano):
    apply, params, views, expected = nano
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    whole, scenes = PartitionSpec(), PartitionSpec("data")
    sharded = jax.shard_map(
        apply, mesh=mesh, in_specs=(whole, scenes), out_specs=scenes
    )
    assert_close([jax.device_get(x) for x in jax.jit(sharded)(params, views)], expected)


def test_gradients_reach_parameters_images_and_cameras(nano):
    apply, params, views, _ = nano

    @jax.jit
    def loss(params, views):
        return jnp.mean(apply(params, views)[2] ** 2)

    grads, d_views = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, views)
    for leaf in jax.tree.leaves(grads):
        assert jnp.isfinite(leaf).all()
        assert (leaf != 0).any()
    for leaf in (d_views.images, d_views.cameras.viewmats, d_views.cameras.Ks):
        assert jnp.isfinite(leaf).all()
        assert (leaf != 0).any()
    # finite difference along one direction of the last kernel, float32
    kernel = params["conv"]["kernel"]
    direction = jax.random.normal(jax.random.key(1), kernel.shape)

    def along(t):
        return loss({**params, "conv": {**params["conv"], "kernel": kernel + t}}, views)

    step = 1e-2 * direction
    slope = (along(step) - along(-step)) / 2e-2
    expected = jnp.vdot(grads["conv"]["kernel"], direction)
    np.testing.assert_allclose(slope, expected, rtol=1e-3)
