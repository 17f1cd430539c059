"""Activation tables: against the original, and at extreme values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gslrm_recipe import TINY
from lgm_recipe import GOLDENS, NANO, random_params, random_views

from facelift_jax import structs
from facelift_jax.geometry.numerics import SH_C0
from facelift_jax.models import get_model
from facelift_jax.models.heads import (
    GSLRM_MAX_LOG_SCALE,
    LGM_HEADS,
    activate,
    num_channels,
)


def test_lgm_rows_match_the_original():
    golden = np.load(GOLDENS / "activations.npz")
    gaussians = activate(jnp.asarray(golden["raw"]), LGM_HEADS)
    structs.check(gaussians)
    expected = golden["activated"]
    np.testing.assert_allclose(gaussians.means, expected[:, :3])
    # each exponential may be off by an ulp of float32 near 1
    np.testing.assert_allclose(gaussians.opacities, expected[:, 3], rtol=3e-7)
    np.testing.assert_allclose(gaussians.scales, expected[:, 4:7], rtol=1e-6)
    np.testing.assert_allclose(gaussians.quats, expected[:, 7:11], atol=3e-7)
    rgb = SH_C0 * gaussians.sh[:, 0] + 0.5
    np.testing.assert_allclose(rgb, expected[:, 11:], atol=2e-7)


def test_channels_add_up():
    assert num_channels(LGM_HEADS) == 14


def test_values_and_gradients_are_finite_at_the_extremes():
    rows = jnp.float32([0, 1e-20, -1e-20, 50, -50, 1e6, -1e6])
    raw = jnp.tile(rows[:, None], (1, 14))

    def total(raw):
        return sum(leaf.sum() for leaf in jax.tree.leaves(activate(raw, LGM_HEADS)))

    value, grad = jax.value_and_grad(total)(raw)
    assert jnp.isfinite(value)
    assert jnp.isfinite(grad).all()


def test_position_gradient_stops_at_the_box():
    raw = jnp.zeros((3, 14)).at[:, 0].set(jnp.float32([0.5, 1.5, -1.5]))
    grad = jax.grad(lambda raw: activate(raw, LGM_HEADS).means.sum())(raw)
    np.testing.assert_array_equal(grad[:, 0], [1, 0, 0])


@pytest.mark.parametrize(
    ("name", "sizes", "adjustments"),
    [
        ("lgm", NANO, {"scale_factor": 0.25, "opacity_logit": -2.0}),
        ("gslrm", TINY, {"scale_factor": 0.25}),
    ],
)
def test_adjusted_networks_differ_only_in_scales_and_opacities(
    name, sizes, adjustments
):
    inputs = random_views(1, 2, 16)
    usual, other = get_model(name, **sizes), get_model(name, **sizes, **adjustments)
    params = jax.tree.map(lambda leaf: 3 * leaf, random_params(usual))

    @jax.jit  # one program, so that both have the same raw channels
    def apply(params):
        return [m.apply({"params": params}, inputs)[0] for m in (usual, other)]

    before, after = apply(params)
    if name == "gslrm":  # the cap on its scales is reached
        assert before.scales.max() == np.exp(np.float32(GSLRM_MAX_LOG_SCALE))
    np.testing.assert_array_equal(after.scales, 0.25 * before.scales)
    logit = np.log(before.opacities / (1 - before.opacities))
    logit += adjustments.get("opacity_logit", 0.0)
    np.testing.assert_allclose(after.opacities, 1 / (1 + np.exp(-logit)), rtol=1e-4)
    for field in ("means", "quats", "sh"):
        np.testing.assert_array_equal(getattr(after, field), getattr(before, field))
