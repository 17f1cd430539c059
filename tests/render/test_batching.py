"""`map_scenes` against `vmap`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facelift_jax.render.batching import map_scenes


def function(scene):
    """Floats and booleans of one scene."""
    means, weights = scene["means"], scene["weights"]
    return {"value": jnp.sin(means) * weights.sum(), "is_large": means > 0.5}


def scenes(number):
    rng = np.random.default_rng(0)
    means = rng.normal(size=(number, 7, 3)).astype(np.float32)
    return {"means": means, "weights": np.ones((number, 5), np.float32)}


def loss(mapped):
    def total(scenes):
        out = mapped(scenes)
        return jnp.sum(out["value"] ** 2 * (1 + out["is_large"].astype(jnp.float32)))

    return total


def by_map_scenes(scenes):
    return map_scenes(function, scenes)


@pytest.mark.parametrize("number", [1, 3])
def test_map_scenes_equals_vmap(number, usual_compiler):
    inputs = scenes(number)
    jax.tree.map(
        np.testing.assert_array_equal,
        by_map_scenes(inputs),
        jax.vmap(function)(inputs),
    )
    actual, expected = (
        jax.jit(jax.grad(loss(mapped)), compiler_options=usual_compiler)(inputs)
        for mapped in (by_map_scenes, jax.vmap(function))
    )
    for name in inputs:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5)
        assert np.abs(expected[name]).max() > 0


def test_a_single_scene_stays_a_loop(usual_compiler):
    """Otherwise it would be fused with the code around it, and round differently."""
    lowered = jax.jit(jax.grad(loss(by_map_scenes))).lower(scenes(1))
    assert lowered.compile(usual_compiler).as_text().count(" while(") == 2
