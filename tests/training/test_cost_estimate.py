"""The cost of a step is reported before anything is built."""

import logging

import pytest

from configs.lgm import get_config
from facelift_jax.training import cost_estimate


@pytest.fixture
def machine(monkeypatch):
    """A step of 10 GiB and 1 TFLOP on a machine of 10 GFLOP/s; sets its memory."""
    monkeypatch.setattr(cost_estimate, "step_cost", lambda config: (10 * 2**30, 1e12))
    monkeypatch.setattr(cost_estimate, "matmul_rate", lambda: 1e10)
    return lambda gigabytes: monkeypatch.setattr(
        cost_estimate, "memory_bytes", lambda: gigabytes * 2**30
    )


def test_a_step_that_fits_is_announced(machine, caplog):
    machine(12)
    with caplog.at_level(logging.INFO, logger="absl"):
        cost_estimate.announce(get_config("demo"))
    assert "lgm mini, 4 scenes: a step needs about 10.0 GiB and about" in caplog.text
    assert "configs/lgm.py:demo is meant for two CPU cores" in caplog.text


def test_a_step_that_does_not_fit_is_refused(machine):
    machine(11)
    with pytest.raises(
        ValueError, match=r"about 10\.0 GiB .* this machine has 11\.0"
    ) as e:
        cost_estimate.announce(get_config("big"))
    assert str(e.value).startswith("lgm big, 8 scenes: a step needs about 10.0 GiB")
    assert str(e.value).endswith("--config configs/lgm.py:demo fits two CPU cores")


def test_big_needs_more_than_a_small_machine():
    """Parameters, gradients and moments alone are 6 GiB; activations dominate."""
    num_bytes, flops = cost_estimate.step_cost(get_config("big"))
    assert num_bytes > 30 * 2**30
    assert flops > 1e12
    small, _ = cost_estimate.step_cost(get_config("smoke"))
    assert small < 2**30


def test_the_networks_of_the_loss_are_included(lpips_folder):
    """VGG-16 takes 41 GFLOP per image of 256 px, twice that backwards; 16 images."""
    config = get_config("smoke,lpips").unlock()
    config.loss.lpips_weights = str(lpips_folder)
    num_bytes, flops = cost_estimate.step_cost(config)
    without, few = cost_estimate.step_cost(get_config("smoke"))
    assert num_bytes > without + 2**30
    assert flops - few == pytest.approx(3 * 16 * 40e9, rel=0.05)


def test_a_term_without_its_inputs_is_refused():
    config = get_config("smoke").unlock()
    config.loss.points_distance = 0.1
    with pytest.raises(ValueError, match="points_distance"):
        cost_estimate.step_cost(config)


def test_memory_is_that_of_a_machine():
    assert 2**28 < cost_estimate.memory_bytes() < 2**45
