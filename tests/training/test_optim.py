"""The optimizer: schedules, AdamW, frozen parameters, steps that are not finite."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from facelift_jax.training import optim

GOLDENS = Path(__file__).parents[1] / "goldens/training"

TOLERANCE = {
    "rate": 1e-6,  # of the peak; float32 schedule against PyTorch's float64
    "end_rate": 1e-5,  # relative, where the rate is 1/250,000 of the peak
    "beta1": 1e-6,
    "adamw": 1e-6,  # five float32 steps of 4e-4
    "optax": 1e-6,  # relative; the order of float32 operations differs
}

LGM = optim.OptimConfig(
    schedule="one_cycle",
    learning_rate=4e-4,
    total_steps=10_000,
    warmup_steps=3000,
    beta1=0.95,
    beta1_peak=0.85,
    beta2=0.95,
    eps=1e-8,
    weight_decay=0.05,
    clip_norm=1.0,
)
COSINE = dataclasses.replace(
    LGM,
    schedule="warmup_cosine",
    learning_rate=1e-2,
    total_steps=100,
    warmup_steps=10,
    beta1_peak=None,
    clip_norm=None,
    decay="matrices",
)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "onecycle_adamw.npz") as arrays:
        return dict(arrays)


def make_params():
    key = jax.random.key(0)
    return {
        "encoder": {"kernel": jax.random.normal(key, (4, 3)), "bias": jnp.zeros(3)},
        "head": {"kernel": jax.random.normal(key, (3, 2)), "bias": jnp.ones(2)},
    }


def make_grads(params, seed=1, scale=1.0):
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    grads = [
        scale * jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)
    ]
    return treedef.unflatten(grads)


def run(optimizer, params, num_steps=5, scale=1.0):
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for seed in range(num_steps):
        params, state = step(params, state, make_grads(params, seed, scale))
    return params, state


def as_bytes(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_one_cycle_equals_pytorch(golden):
    rate = jax.vmap(optim.learning_rate(LGM))(golden["step"])
    assert np.abs(rate - golden["lr"]).max() <= TOLERANCE["rate"] * 4e-4
    np.testing.assert_allclose(
        rate[-2:], golden["lr"][-2:], rtol=TOLERANCE["end_rate"], atol=0
    )


def test_the_cycle_of_beta1_equals_pytorch(golden):
    beta1 = jax.vmap(optim.beta1(LGM))(golden["step"])
    assert np.abs(beta1 - golden["beta1"]).max() <= TOLERANCE["beta1"]


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (2, 0), (2, 1), (10, 2), (3, 2)])
@pytest.mark.parametrize("base", [LGM, COSINE])
def test_short_runs_have_finite_rates(base, total, warmup):
    config = dataclasses.replace(base, total_steps=total, warmup_steps=warmup)
    for schedule in (optim.learning_rate(config), optim.beta1(config)):
        values = [float(schedule(step)) for step in range(total)]
        assert np.isfinite(values).all()
        assert min(values) >= 0
    rates = [float(optim.learning_rate(config)(step)) for step in range(total)]
    assert max(rates) <= config.learning_rate * (1 + 1e-6)


def test_warmup_cosine_equals_optax():
    rate = optim.learning_rate(COSINE)
    reference = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 100)
    for step in (0, 1, 5, 10, 11, 50, 99, 100, 200):
        assert float(rate(step)) == pytest.approx(float(reference(step)), abs=1e-8)
    assert float(rate(0)) == 0
    assert float(rate(10)) == pytest.approx(1e-2)


def test_adamw_steps_equal_pytorch(golden):
    config = dataclasses.replace(LGM, total_steps=100, warmup_steps=30)
    params = {"a": jnp.asarray(golden["adamw_params"][0])}
    optimizer, _ = optim.make_optimizer(config, params)
    state = optimizer.init(params)
    for grads, expected in zip(
        golden["adamw_grads"], golden["adamw_params"][1:], strict=True
    ):
        updates, state = optimizer.update({"a": jnp.asarray(grads)}, state, params)
        params = optax.apply_updates(params, updates)
        assert np.abs(params["a"] - expected).max() <= TOLERANCE["adamw"]


def test_with_constant_beta1_adamw_equals_optax():
    config = dataclasses.replace(
        LGM, beta1_peak=None, clip_norm=None, total_steps=20, warmup_steps=6
    )
    params = make_params()
    optimizer, _ = optim.make_optimizer(config, params)
    rate = optim.learning_rate(config)
    reference = optax.adamw(rate, 0.95, 0.95, 1e-8, weight_decay=0.05)
    ours, _ = run(optimizer, params, 10)
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        theirs, _ = run(reference, params, 10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, TOLERANCE["optax"], 1e-8),
        ours,
        theirs,
    )


def test_the_first_step_uses_the_schedule_at_zero():
    params = {"w": jnp.zeros(1)}
    config = dataclasses.replace(LGM, weight_decay=0.0)
    optimizer, _ = optim.make_optimizer(config, params)
    updates, _ = optimizer.update({"w": jnp.ones(1)}, optimizer.init(params), params)
    assert float(updates["w"][0]) == pytest.approx(-4e-4 / 25, rel=1e-5)


def test_decay_only_on_matrices():
    params = make_params()
    config = dataclasses.replace(COSINE, warmup_steps=0)
    optimizer, _ = optim.make_optimizer(config, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(
        updates["head"]["kernel"], -1e-2 * 0.05 * params["head"]["kernel"], rtol=1e-6
    )
    assert not updates["head"]["bias"].any()


def test_a_multiplier_scales_step_and_decay():
    params = make_params()
    config = dataclasses.replace(LGM, rules=(("encoder/.*", 0.1), (".*", 1.0)))
    scaled, _ = optim.make_optimizer(config, params)
    plain, _ = optim.make_optimizer(LGM, params)
    grads = make_grads(params)
    slow, _ = scaled.update(grads, scaled.init(params), params)
    fast, _ = plain.update(grads, plain.init(params), params)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(
            slow["encoder"][name], 0.1 * fast["encoder"][name], rtol=1e-6
        )
        np.testing.assert_array_equal(slow["head"][name], fast["head"][name])


# Freezing


FROZEN = dataclasses.replace(LGM, rules=(("encoder/.*", None), (".*", 1.0)))


def test_frozen_leaves_keep_every_bit():
    params = make_params()
    params["encoder"]["bias"] = jnp.asarray([-0.0, 0.0, 1e-40])
    optimizer, _ = optim.make_optimizer(FROZEN, params)
    after, _ = run(optimizer, params, 10)
    assert as_bytes(after["encoder"]) == as_bytes(params["encoder"])
    for name in ("kernel", "bias"):
        assert (after["head"][name] != params["head"][name]).all()


def test_frozen_leaves_have_no_moments():
    params = make_params()
    optimizer, _ = optim.make_optimizer(FROZEN, params)
    sizes = [leaf.size for leaf in jax.tree.leaves(optimizer.init(params))]
    assert sorted(sizes) == [1, 1, 2, 2, 6, 6]  # two counts, two moments of the head


def test_the_clipping_norm_leaves_out_frozen_gradients():
    params = make_params()
    optimizer, _ = optim.make_optimizer(FROZEN, params)
    alone, _ = optim.make_optimizer(LGM, params["head"])
    grads = make_grads(params)
    grads["encoder"] = jax.tree.map(lambda g: 1e6 * g, grads["encoder"])
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    expected, _ = alone.update(
        grads["head"], alone.init(params["head"]), params["head"]
    )
    assert as_bytes(updates["head"]) == as_bytes(expected)


def test_clipping_scales_the_global_norm_of_the_trained_leaves():
    params = make_params()
    config = dataclasses.replace(LGM, eps=1e6, weight_decay=0.0)  # then linear in g
    clipped, _ = optim.make_optimizer(config, params)
    free, _ = optim.make_optimizer(dataclasses.replace(config, clip_norm=None), params)
    grads = make_grads(params, scale=10.0)
    norm = float(optax.tree.norm(grads))
    small, _ = clipped.update(grads, clipped.init(params), params)
    large, _ = free.update(grads, free.init(params), params)
    ratio = float(optax.tree.norm(large) / optax.tree.norm(small))
    assert ratio == pytest.approx(norm, rel=1e-4)


def test_nan_gradients_of_a_frozen_leaf_have_no_effect():
    params = make_params()
    optimizer, _ = optim.make_optimizer(FROZEN, params)
    grads = make_grads(params)
    grads["encoder"] = jax.tree.map(lambda g: g * jnp.nan, grads["encoder"])
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    assert optim.all_finite(updates, state)


def test_select_trained():
    params = make_params()
    trained = optim.select_trained(params, FROZEN.rules)
    assert list(trained) == ["head/bias", "head/kernel"]
    assert trained["head/kernel"] is params["head"]["kernel"]


def test_freeze_report():
    params = make_params()
    rules = (("encoder/kernel", None), ("encoder/.*", 0.1), (".*", 1.0))
    config = dataclasses.replace(LGM, rules=rules)
    _, report = optim.make_optimizer(config, params)
    assert report.splitlines() == [
        "rule            tensors    parameters    share  learning rate",
        "encoder/kernel        1            12   52.2 %  frozen",
        "encoder/.*            1             3   13.0 %  x 0.1",
        ".*                    2             8   34.8 %  x 1",
        "trained               3            11   47.8 %  of 23",
    ]


def test_rules_must_match_the_parameters():
    config = dataclasses.replace(LGM, rules=(("decoder/.*", 1.0), (".*", None)))
    with pytest.raises(ValueError, match=r"rule 0 'decoder/\.\*' matches no full name"):
        optim.make_optimizer(config, make_params())


def test_freezing_everything_is_refused():
    config = dataclasses.replace(LGM, rules=((".*", None),))
    with pytest.raises(ValueError, match="freeze every parameter: nothing to train"):
        optim.make_optimizer(config, make_params())


# Settings


def test_settings_come_from_a_config_section():
    section = ConfigDict(
        {f.name: getattr(LGM, f.name) for f in dataclasses.fields(LGM)}
    )
    assert optim.OptimConfig(**section) == LGM


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"schedule": "cosine"},
            "optim: schedule='cosine' must be 'one_cycle' or 'warmup_cosine'",
        ),
        (
            {"warmup_steps": 10_000},
            "optim: a warm-up of 10000 steps does not fit in total_steps=10000: "
            "shorten it",
        ),
        ({"decay": "kernels"}, "optim: decay='kernels' must be 'all' or 'matrices'"),
        ({"learning_rate": 0.0}, "optim: learning_rate=0.0 must be positive"),
        ({"clip_norm": float("nan")}, "optim: clip_norm=nan must be positive"),
        ({"beta2": 1.0}, "optim: beta2=1.0 must be in [0, 1)"),
        ({"weight_decay": -1.0}, "optim: weight_decay=-1.0 must be zero or more"),
        (
            {"schedule": "warmup_cosine"},
            "optim: beta1_peak=0.85 must be None unless schedule='one_cycle'",
        ),
        (
            {"rules": ((".*", 0.0),)},
            "optim: rules '.*'=0.0 must be positive, or None to freeze",
        ),
        ({"total_steps": 0}, "optim: total_steps=0 must be at least 1"),
    ],
)
def test_bad_settings(change, line):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the line is compared)
        dataclasses.replace(LGM, **change)
    assert str(error.value) == line


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="momentum"):
        optim.OptimConfig(**dataclasses.asdict(LGM), momentum=0.9)


# Steps that are not finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite(bad):
    params = make_params()
    assert optim.all_finite(jnp.float32(1), params)
    params["head"]["kernel"] = params["head"]["kernel"].at[1, 1].set(bad)
    assert not optim.all_finite(jnp.float32(1), params)
    assert not optim.all_finite(jnp.float32(bad), make_params())


def test_a_nonfinite_step_changes_no_bit():
    params = make_params()
    params["head"]["bias"] = jnp.asarray([-0.0, 1e-40])
    optimizer, _ = optim.make_optimizer(LGM, params)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, new_state = optimizer.update(grads, state, params)
        new = (optax.apply_updates(params, updates), new_state)
        return optim.where_taken(optim.all_finite(grads), new, (params, state))

    _, state = step(params, state, make_grads(params))
    bad = make_grads(params)
    bad["encoder"]["bias"] = bad["encoder"]["bias"].at[0].set(jnp.nan)
    skipped = step(params, state, bad)
    assert as_bytes(skipped) == as_bytes((params, state))
    taken = step(params, state, make_grads(params))
    assert as_bytes(taken) != as_bytes((params, state))


def test_where_taken_accepts_keys_and_integers():
    new = {"key": jax.random.key(1), "count": jnp.int32(2)}
    old = {"key": jax.random.key(0), "count": jnp.int32(1)}
    kept = optim.where_taken(jnp.asarray(False), new, old)
    assert jax.random.key_data(kept["key"]).tolist() == [0, 0]
    assert int(kept["count"]) == 1


def test_ten_skipped_steps_in_a_row_stop_the_run():
    assert optim.stop_reason(13, []) is None
    assert optim.stop_reason(13, range(5, 14)) is None
    assert optim.stop_reason(20, [*range(5, 14), 15]) is None
    line = "step 20: 10 of 10 steps in a row were not finite (steps 5 to 14)"
    assert optim.stop_reason(20, [1, *range(5, 15), 19]) == (line, 5)


def test_more_than_one_percent_of_a_thousand_stop_the_run():
    skipped = range(0, 1000, 100)  # ten of them
    assert optim.stop_reason(999, skipped) is None
    assert optim.stop_reason(1000, [*skipped, 1000]) is None  # step 0 has left
    line = "step 5000: 11 of 1,000 steps in a row were not finite (steps 0 to 999)"
    assert optim.stop_reason(5000, [*skipped, 999]) == (line, 0)
