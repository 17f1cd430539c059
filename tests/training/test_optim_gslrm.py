"""Rates and optimizer steps of the GS-LRM recipe against FaceLift's numbers."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import gslrm
from facelift_jax.builders import optim_config
from facelift_jax.training import optim

GOLDENS = Path(__file__).parents[1] / "goldens/training"
TOLERANCE = {
    "rate": 1e-6,  # of the peak; float32 schedule against torch's float64
    "adamw": 1e-6,  # three float32 steps of 1e-2
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "gslrm_optim.npz") as arrays:
        return dict(arrays)


def recipe(stage, **changes):
    """The optimizer of a stage of `configs/gslrm.py`."""
    return dataclasses.replace(optim_config(gslrm.get_config(stage)), **changes)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [("pretrain256", {}), ("finetune", {"total_steps": 21125})],  # whole epochs there
)
def test_rates_equal_facelift(golden, stage, changes):
    config = recipe(stage, **changes)
    step, expected = golden[f"{stage}_rates"].T
    rates = jax.vmap(optim.learning_rate(config))(step)
    assert expected[0] == 0
    error = np.abs(rates - expected).max()
    assert error <= TOLERANCE["rate"] * config.learning_rate


def test_steps_of_the_gslrm_recipe_equal_facelift(golden):
    """Only the matrix decays; the gradients exceed the clipping norm."""
    config = recipe("finetune", learning_rate=1e-2, warmup_steps=0, total_steps=10**9)
    names = ("w", "n")
    rows = {name: golden[f"adamw_{name}"] for name in names}
    params = {name: jnp.asarray(rows[name][0]) for name in names}
    optimizer, _ = optim.make_optimizer(config, params)
    state = optimizer.init(params)
    for i, norm in enumerate(golden["adamw_grad_norms"]):
        grads = {n: jnp.asarray(golden[f"adamw_{n}_grads"][i]) for n in names}
        assert float(optax.tree.norm(grads)) == pytest.approx(norm, rel=1e-6)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for name in names:
            error = np.abs(params[name] - rows[name][i + 1]).max()
            assert error <= TOLERANCE["adamw"]
    assert config.skip_norm == 20
