"""Checkpoints come back bit for bit; a directory of steps stays complete."""

import dataclasses
import os
import shutil
import tracemalloc
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from facelift_jax.checkpoints import checkpoint
from facelift_jax.training import optim

METADATA = {"model": {"name": "lgm", "variant": "mini"}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    key: Any


def make_state(step=0):
    key = jax.random.key(step)
    params = {
        "a": {"kernel": jax.random.normal(key, (8, 4)), "bias": jnp.ones(3)},
        "half": jnp.asarray([1.5, -0.0], jnp.bfloat16),
    }
    config = optim.OptimConfig(
        schedule="warmup_cosine",
        learning_rate=1e-3,
        total_steps=10,
        warmup_steps=2,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
        weight_decay=0.05,
        clip_norm=1.0,
        rules=(("half", None), (".*", 1.0)),
    )
    optimizer, _ = optim.make_optimizer(config, params)
    return State(jnp.int32(step), params, optimizer.init(params), key)


def save(directory, step, state=None, **kwargs):
    state = make_state(step) if state is None else state
    arguments = {"metadata": METADATA, "keep": 5} | kwargs
    checkpoint.save_checkpoint(directory, step, state, **arguments)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert type(a) is type(b)
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(a) == jax.random.key_impl(b)
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


# Saving and restoring


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = make_state(7)
    save(tmp_path, 7, state)
    restored, metadata = checkpoint.restore_checkpoint(tmp_path, make_state(0))
    assert_same(restored, state)
    assert metadata == METADATA


def test_scalars_numpy_and_both_kinds_of_key_come_back(tmp_path):
    state = {
        "int": 7,
        "float": 0.1,
        "numpy": np.arange(6).reshape(2, 3),
        "scalar": np.float32(1 / 3),
        "params": [jnp.ones(2), (jnp.zeros((2, 2)),)],
        "keys": jax.random.split(jax.random.key(1), 3),
        "rbg": jax.random.key(2, impl="rbg"),
    }
    save(tmp_path, 1, state)
    like = jax.tree.map(lambda x: x, state) | {"int": 0, "float": 0.0}
    restored, _ = checkpoint.restore_checkpoint(tmp_path, like)
    assert_same(restored, state)


def test_numpy_arrays_are_written_without_a_copy(tmp_path):
    params = {"a": np.arange(2**22, dtype=np.float32)}
    save(tmp_path, 0)  # what Orbax allocates once
    tracemalloc.start()
    save(tmp_path, 1, {"params": params})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < params["a"].nbytes / 2
    assert_same(checkpoint.load_params(tmp_path)[0], params)


def test_shapes_alone_are_enough_to_restore(tmp_path):
    save(tmp_path, 7)
    shapes = jax.eval_shape(make_state, 0)
    restored, _ = checkpoint.restore_checkpoint(tmp_path, shapes)
    assert_same(restored, make_state(7))


def test_sharded_arrays_come_back_to_their_shards(tmp_path, mesh):
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    keys = jax.random.split(jax.random.key(1), 8)
    state = {
        "params": jax.device_put(jnp.arange(32.0).reshape(8, 4), split),
        "keys": jax.device_put(keys, split),
    }
    save(tmp_path, 1, state)
    restored, _ = checkpoint.restore_checkpoint(tmp_path, state)
    assert_same(restored, state)
    assert restored["params"].sharding == split
    assert restored["keys"].sharding == split


@pytest.mark.parametrize(
    "spec", [PartitionSpec(), PartitionSpec(None, "fsdp"), PartitionSpec("data")]
)
def test_restoring_to_another_sharding(tmp_path, mesh, spec):
    values = jax.random.normal(jax.random.key(0), (8, 4))
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    save(tmp_path, 1, {"params": jax.device_put(values, split)})
    other = NamedSharding(mesh, spec)
    like = {"params": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=other)}
    restored, _ = checkpoint.restore_checkpoint(tmp_path, like)
    assert restored["params"].sharding == other
    assert np.asarray(restored["params"]).tobytes() == np.asarray(values).tobytes()


def test_uncommitted_arrays_stay_uncommitted(tmp_path, mesh):
    save(tmp_path, 1)
    restored, _ = checkpoint.restore_checkpoint(tmp_path, make_state())
    everywhere = NamedSharding(mesh, PartitionSpec())
    ones = jax.device_put(jnp.ones(3), everywhere)
    total = jax.jit(jnp.add)(restored.params["a"]["bias"], ones)
    assert total.sharding.device_set == everywhere.device_set


def test_the_data_iterator_continues_where_it_was(tmp_path):
    def start():
        dataset = grain.MapDataset.range(40).seed(3).shuffle().repeat().batch(4)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return iter(dataset.to_iter_dataset(options))

    iterator = start()
    for _ in range(12):  # into the second epoch
        next(iterator)
    save(tmp_path, 12, data_iterator=iterator)
    expected = [next(iterator).tolist() for _ in range(5)]
    resumed = start()
    checkpoint.restore_checkpoint(tmp_path, make_state(), data_iterator=resumed)
    assert [next(resumed).tolist() for _ in range(5)] == expected


# Steps


def test_the_newest_steps_are_kept(tmp_path):
    assert checkpoint.latest_step(tmp_path / "absent") is None
    for step in (5, 10, 100):
        save(tmp_path, step, keep=2)
    assert checkpoint.all_steps(tmp_path) == [10, 100]
    assert sorted(os.listdir(tmp_path)) == ["10", "100"]
    restored, _ = checkpoint.restore_checkpoint(tmp_path, make_state())
    assert int(restored.step) == 100


def test_the_last_step_before_another(tmp_path):
    assert checkpoint.last_step_before(tmp_path / "absent", 5) is None
    for step in (5, 10, 100):
        save(tmp_path, step, {"params": np.ones(1)})
    (tmp_path / "7").mkdir()  # incomplete
    steps = [checkpoint.last_step_before(tmp_path, x) for x in (5, 6, 10, 11, 999)]
    assert steps == [None, 5, 5, 10, 100]


def test_a_step_cannot_be_saved_twice(tmp_path):
    save(tmp_path, 3)
    with pytest.raises(ValueError, match="3: this step exists already"):
        save(tmp_path, 3)


def test_an_incomplete_directory_is_not_a_checkpoint(tmp_path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    (tmp_path / "2" / checkpoint.COMMITTED).unlink()
    (tmp_path / "3").mkdir()
    (tmp_path / "4").touch()
    assert checkpoint.latest_step(tmp_path) == 1
    save(tmp_path, 2)
    assert checkpoint.latest_step(tmp_path) == 2
    assert_same(checkpoint.restore_checkpoint(tmp_path, make_state())[0], make_state(2))


def test_a_half_deleted_step_does_not_look_complete(tmp_path, monkeypatch):
    def delete_one_file(path, ignore_errors):
        (path / "1/state/_METADATA").unlink()

    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", delete_one_file)
        save(tmp_path, 2, keep=1)
    assert sorted(os.listdir(tmp_path)) == ["2", checkpoint.DELETED]
    assert checkpoint.all_steps(tmp_path) == [2]
    save(tmp_path, 3, keep=1)
    assert os.listdir(tmp_path) == ["3"]


# Failures


def test_a_checkpoint_of_another_shape(tmp_path):
    save(tmp_path, 1, {"params": {"a": jnp.ones((3, 4)), "b": jnp.ones(2)}, "n": 1})
    like = {"params": {"a": jnp.ones((3, 5)), "c": jnp.ones(2)}, "n": 1}
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the line is compared)
        checkpoint.restore_checkpoint(tmp_path, like)
    assert str(error.value) == (
        f"{tmp_path}/1: does not fit: "
        "reshaped params/a float32[3,5], found float32[3,4], "
        "extra params/b float32[2], missing params/c float32[2]"
    )


@pytest.mark.parametrize(
    "damaged", ["state/d/*", "state/_METADATA", "metadata/metadata"]
)
def test_a_damaged_checkpoint(tmp_path, damaged):
    save(tmp_path, 1, {"params": jnp.ones(3)})
    for path in (tmp_path / "1").glob(damaged):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="/1: cannot be read: ") as error:
        checkpoint.restore_checkpoint(tmp_path, {"params": jnp.ones(3)})
    assert "\n" not in str(error.value)


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no complete checkpoint"):
        checkpoint.load_params(tmp_path / "nowhere")


def test_no_data_position(tmp_path):
    save(tmp_path, 1)
    iterator = iter(grain.MapDataset.range(4).to_iter_dataset())
    with pytest.raises(ValueError, match="/1: holds no position of the data iterator"):
        checkpoint.restore_checkpoint(tmp_path, make_state(), data_iterator=iterator)


def test_metadata_is_strict_json_and_keep_is_positive(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, 1, metadata={"loss": float("nan")})
    with pytest.raises(ValueError, match="keep=0: at least one"):
        save(tmp_path, 1, keep=0)
    assert checkpoint.latest_step(tmp_path) is None


# Parameters alone


def test_params_alone_come_back_as_numpy(tmp_path):
    params = make_state(3).params
    checkpoint.save_params(tmp_path / "weights", params, METADATA)
    loaded, metadata = checkpoint.load_params(tmp_path / "weights")
    assert metadata == METADATA
    assert_same(loaded, jax.tree.map(np.asarray, params))


@pytest.mark.parametrize("given", ["run", "run/checkpoints"])
def test_params_of_a_training_run(tmp_path, mesh, given):
    state = make_state(2)
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    kernel = jax.device_put(state.params["a"]["kernel"], split)
    state.params["a"]["kernel"] = kernel
    save(tmp_path / "run/checkpoints", 1)
    save(tmp_path / "run/checkpoints", 2, state)
    loaded, metadata = checkpoint.load_params(tmp_path / given)
    assert metadata == METADATA
    assert_same(loaded, jax.tree.map(np.asarray, state.params))


def test_params_are_saved_to_an_empty_directory_only(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="not empty: choose another directory"):
        checkpoint.save_params(tmp_path, {"a": jnp.ones(2)}, {})


def test_a_state_without_params_is_not_the_checkpoint_of_a_model(tmp_path):
    save(tmp_path, 1, {"weights": jnp.ones(2)})
    with pytest.raises(ValueError, match="holds no leaf under params/"):
        checkpoint.load_params(tmp_path)


# Starting from a checkpoint


def test_init_from_restores_and_places_every_leaf(tmp_path, mesh):
    params = make_state(3).params
    checkpoint.save_params(tmp_path, params, METADATA)
    everywhere = NamedSharding(mesh, PartitionSpec())
    like = jax.device_put(make_state(0).params, everywhere)
    started, ignored = checkpoint.init_from(tmp_path, like)
    assert ignored == []
    assert_same(started, params)
    assert started["a"]["kernel"].sharding == everywhere


def test_init_from_refuses_differences_that_are_not_ignored(tmp_path):
    saved = {"body": jnp.full(3, 2.0), "old": jnp.ones(1), "head": jnp.ones((2, 2))}
    checkpoint.save_params(tmp_path, saved, {})
    like = {"body": jnp.zeros(3), "new": jnp.full(1, 5.0), "head": jnp.zeros((2, 3))}
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the line is compared)
        checkpoint.init_from(tmp_path, like, ["head"])
    assert str(error.value) == (
        f"{tmp_path}: does not fit: missing new float32[1], extra old float32[1]; "
        "allow differences with run.init_ignore"
    )
    started, ignored = checkpoint.init_from(tmp_path, like, ["head", "old|new"])
    assert ignored == [
        "reshaped head float32[2,3], found float32[2,2]",
        "missing new float32[1]",
        "extra old float32[1]",
    ]
    assert_same(started, like | {"body": saved["body"]})


def test_an_ignore_pattern_that_matches_no_difference(tmp_path):
    params = {"a": jnp.ones(2)}
    checkpoint.save_params(tmp_path, params, {})
    with pytest.raises(
        ValueError, match=r"run\.init_ignore: 'a' matches no difference: remove it"
    ):
        checkpoint.init_from(tmp_path, params, ["a"])
