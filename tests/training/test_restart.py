"""Where a run starts: a resumed run continues its state, data and record."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import OPTIONS, assert_same
from tiny_scenes import write_scenes

from facelift_jax.checkpoints.checkpoint import save_checkpoint
from facelift_jax.data.pipeline import training_batches
from facelift_jax.data.scenes import open_source
from facelift_jax.training.restart import RunRecord, restore_or_init
from facelift_jax.training.step import TrainState

RUN = types.SimpleNamespace(init_from="", init_ignore=())


def state_at(step):
    params = {"a": jnp.full(2, step, jnp.float32)}
    key = jax.random.key(0)
    return TrainState(jnp.int32(step), jnp.int32(0), params, {}, key)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    return open_source(write_scenes(root, 5, num_views=5, width=12, height=12))


@pytest.fixture
def open_batches(source):
    """A function that returns a new iterator; all are closed after the test."""
    iterators = []

    def open_iterator():
        iterators.append(training_batches(source, OPTIONS, 2, 0, num_threads=2))
        return iterators[-1]

    yield open_iterator
    for iterator in iterators:
        iterator.close()


def save_step_3(checkpoints, batches):
    """Reads three batches and saves; the record has a skipped step and a bad scene."""
    for _ in range(3):
        next(batches)
    record = RunRecord(["fingerprint"], skipped_steps=[2], bad_scenes={1})
    metadata = record.metadata({})
    save_checkpoint(
        checkpoints, 3, state_at(3), metadata=metadata, keep=1, data_iterator=batches
    )


def test_a_resumed_run_continues_state_data_and_record(tmp_path, open_batches):
    batches = open_batches()
    save_step_3(tmp_path, batches)
    expected = [next(batches) for _ in range(3)]
    resumed, record = open_batches(), RunRecord(["fingerprint"])
    bad_scenes = record.bad_scenes  # the reader of the data shares this set
    state = restore_or_init(RUN, tmp_path, state_at(0), resumed, record)
    assert int(state.step) == 3
    np.testing.assert_array_equal(state.params["a"], [3, 3])
    assert_same([next(resumed) for _ in range(3)], expected)
    assert record.skipped_steps == [2]
    assert record.bad_scenes is bad_scenes
    assert bad_scenes == {1}


def test_other_training_scenes_than_at_the_start_are_refused(tmp_path, open_batches):
    save_step_3(tmp_path, open_batches())
    with pytest.raises(ValueError, match="the scenes to train on differ from those at"):
        restore_or_init(RUN, tmp_path, state_at(0), open_batches(), RunRecord(["new"]))


def test_a_new_run_starts_from_its_own_state(tmp_path, open_batches):
    batches, expected = open_batches(), next(open_batches())
    state = state_at(0)
    assert restore_or_init(RUN, tmp_path, state, batches, RunRecord([])) is state
    assert_same([next(batches)], [expected])
