"""Batches without end for training, and every scene once for evaluation.

The order, every random draw and the position are functions of the seed and one number,
the position in the stream of examples, which is all a checkpoint needs to hold.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import grain
import jax
import numpy as np
from absl import logging

from facelift_jax.data.examples import evaluation_example, training_example
from facelift_jax.data.io import DataError
from facelift_jax.data.options import DataOptions
from facelift_jax.data.scenes import Scene, StoredScene
from facelift_jax.data.view_selection import evaluation_positions
from facelift_jax.structs import Batch

_Made = TypeVar("_Made")
NUM_THREADS = min(16, os.cpu_count() or 1)


@runtime_checkable
class Source(Protocol):
    """Anything with a length and integer access to scenes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene | StoredScene: ...


def training_batches(
    source: Source,
    options: DataOptions,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = NUM_THREADS,
    bad_scenes: set[int] | None = None,
    shares: Sequence[tuple[int, float]] = (),
) -> grain.DatasetIterator[Batch]:
    """Endless random batches: inputs over [b v], targets over [b t], scene_id [b].

    Each epoch is a new order of all scenes; batches run on across its end, so none is
    left out. Process i of n takes every n-th example of one stream: together they read
    what one process with n times the batch would. The number of threads changes
    nothing (0 reads in the calling thread).

    Of a mix, `shares` as `FolderSource` has them, the sets take turns by their weights,
    each in epochs and draws of its own.

    Scenes that cannot be used are added to `bad_scenes` when they are met, up to
    `bad_scenes_allowed`; those already in it count.

    `get_state` and `set_state` save and restore the position exactly, also through
    `grain.checkpoint.CheckpointSave`; `close` ends the threads.

    Raises (when iterated):
      DataError: a scene cannot be used, and `bad_scenes_allowed` is used up.
    """
    reader = _Reader(source, options, set() if bad_scenes is None else bad_scenes)
    shares = shares or [(len(source), 1.0)]
    ends = list(itertools.accumulate(count for count, _ in shares))
    streams = [
        grain.MapDataset.range(end - count, end)
        .seed(seed + number)
        .shuffle()
        .random_map(reader.training_example)
        .repeat()
        for number, (end, (count, _)) in enumerate(zip(ends, shares, strict=True))
    ]
    stream = grain.MapDataset.mix(streams, [weight for _, weight in shares])
    examples = stream[process_index::process_count]
    batches = _read_ahead(examples, batch_size, num_threads, drop_remainder=True)
    return iter(batches)


def evaluation_batches(
    source: Source,
    options: DataOptions,
    batch_size: int,
    num_threads: int = NUM_THREADS,
) -> Iterator[Batch]:
    """Every scene once, in order, by `evaluation_example`; the last batch may be short.

    Raises (when iterated):
      DataError: as `training_batches`; also scenes of one batch that differ in their
        number of target views or of which only some have depth.
    """
    reader = _Reader(source, options, set())
    examples = grain.MapDataset.range(len(source)).map(reader.evaluation_example)
    batches = _read_ahead(examples, batch_size, num_threads, drop_remainder=False)
    iterator = iter(batches)
    try:
        yield from iterator
    finally:
        iterator.close()


def require_evaluation_views(source: Source, options: DataOptions) -> None:
    """Refuses what `evaluation_batches` would for want of views; decodes nothing.

    Raises:
      DataError: as `evaluation_batches`, but for pictures that cannot be decoded.
    """
    reader = _Reader(source, options, set())
    for index in range(len(source)):
        reader.evaluation_views(index)


def stack_examples(examples: Sequence[Batch]) -> Batch:
    """Examples without a batch axis to one batch over [b]."""
    first = examples[0]
    for other in examples[1:]:
        for what, one, two in (
            ("target views", len(first.targets.images), len(other.targets.images)),
            ("depth", _has_depth(first), _has_depth(other)),
        ):
            if one != two:
                raise DataError(
                    f"scenes {first.scene_id} and {other.scene_id} cannot share a "
                    f"batch: {what}: {one} and {two}; make the scenes alike or use "
                    "batches of one scene"
                )
    return jax.tree.map(lambda *arrays: np.stack(arrays), *examples)


def _has_depth(example: Batch) -> bool:
    return example.targets.depths is not None


def _read_ahead(
    examples: grain.MapDataset[Any],
    batch_size: int,
    num_threads: int,
    drop_remainder: bool,
) -> grain.IterDataset[Batch]:
    """Batches made in the background: threads read examples, one more stacks them."""
    ahead = max(num_threads, 2 * batch_size) if num_threads else 0
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead)
    batches = examples.to_iter_dataset(options).batch(
        batch_size, drop_remainder=drop_remainder, batch_fn=stack_examples
    )
    return grain.experimental.ThreadPrefetchIterDataset(
        batches, prefetch_buffer_size=1 if num_threads else 0
    )


class _Reader:
    """Makes examples in many threads and counts the scenes that had to be left out."""

    def __init__(self, source: Source, options: DataOptions, bad_scenes: set[int]):
        self._source = source
        self._options = options
        self._lock = threading.Lock()
        self._bad_scenes = bad_scenes

    def training_example(self, index: int, rng: np.random.Generator) -> Batch | None:
        """The example, or None for a bad scene that the allowance covers."""
        return self._attempt(
            index, lambda scene: training_example(scene, rng, self._options)
        )

    def evaluation_example(self, index: int) -> Batch | None:
        """The example, or None for a bad scene that the allowance covers."""
        return self._attempt(
            index, lambda scene: evaluation_example(scene, self._options)
        )

    def evaluation_views(self, index: int) -> None:
        """Refuses a scene that cannot be judged, unless the allowance covers it."""
        self._attempt(index, lambda scene: evaluation_positions(scene, self._options))

    def _attempt(
        self, index: int, make: Callable[[Scene | StoredScene], _Made]
    ) -> _Made | None:
        try:
            return make(self._source[index])
        except DataError as error:
            allowed = self._options.bad_scenes_allowed
            with self._lock:
                is_new = index not in self._bad_scenes
                self._bad_scenes.add(index)
                count = len(self._bad_scenes)
            if allowed == 0:
                raise
            if count > allowed or count == len(self._source):
                raise DataError(
                    f"{count} of {len(self._source)} scenes cannot be used, "
                    f"bad_scenes_allowed={allowed}; the last: {error}"
                ) from error
            if is_new:
                logging.warning(
                    "left out scene %d of %d allowed: %s", count, allowed, error
                )
            return None
