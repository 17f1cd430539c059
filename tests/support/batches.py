"""Options and helpers for tests of the data pipeline."""

import itertools

import jax
import numpy as np

from facelift_jax.data.options import DataOptions
from facelift_jax.data.pipeline import training_batches

OPTIONS = DataOptions(
    input_size=8,
    target_size=12,
    num_inputs=2,
    input_views=(0, 1, 2),
    num_targets=3,
    min_held_out=2,
    grid_distortion=0.5,
    camera_jitter=0.5,
)


def first_batches(count, source, options=OPTIONS, batch_size=2, seed=0, **kwargs):
    """The first batches of a new training iterator."""
    iterator = training_batches(source, options, batch_size, seed, **kwargs)
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def assert_same(batches, others):
    """Raises unless both lists of batches are equal bit for bit."""
    assert len(batches) == len(others)
    for one, two in zip(batches, others, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)


def scene_ids(batches):
    """The scene ids of all examples, in order."""
    return [int(i) for batch in batches for i in batch.scene_id]
