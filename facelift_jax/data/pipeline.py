"""Endless batches for training, and every scene once for evaluation.

The order of the scenes and every random draw are functions of the seed and the position
in the stream of examples. A checkpoint stores that position only.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from absl import logging

from facelift_jax.data.examples import evaluation_example, training_example
from facelift_jax.data.io import DataError
from facelift_jax.data.options import DataOptions
from facelift_jax.data.scenes import Scene, StoredScene
from facelift_jax.data.view_selection import evaluation_positions
from facelift_jax.io.extras import extra
from facelift_jax.io.progress import map_in_order
from facelift_jax.structs import Batch

if TYPE_CHECKING:
    import grain

_Result = TypeVar("_Result")
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
) -> "grain.DatasetIterator[Batch]":
    """Endless random batches: inputs over [b v], targets over [b t], scene_id [b].

    Every epoch visits all scenes in a new order. Batches continue across the end of an
    epoch, so no scene is dropped. Process i of n reads every n-th example of one
    stream: together, the processes read what one process with n times the batch size
    reads. The result does not depend on the number of threads (0 reads in the calling
    thread).

    For a mix, with `shares` as in `FolderSource`, the sets alternate according to their
    weights, and each set has its own epochs and random draws.

    Scenes that cannot be used are added to `bad_scenes` when they are first read. At
    most `bad_scenes_allowed` are allowed, including those already in `bad_scenes`.

    `get_state` and `set_state` save and restore the exact position, also through
    `grain.checkpoint.CheckpointSave`; `close` stops the threads.

    Raises:
      ImportError: the extra "train" is not installed.

    Raises (when iterated):
      DataError: a scene cannot be used, and `bad_scenes_allowed` is exceeded.
    """
    with extra("train"):
        import grain
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
    examples: grain.MapDataset[Any] = stream[process_index::process_count]
    # threads read examples ahead; one more thread stacks them into batches
    ahead = max(num_threads, 2 * batch_size) if num_threads else 0
    reading = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead)
    batches = examples.to_iter_dataset(reading).batch(
        batch_size, drop_remainder=True, batch_fn=stack_examples
    )
    prefetched = grain.experimental.ThreadPrefetchIterDataset(
        batches, prefetch_buffer_size=1 if num_threads else 0
    )
    return iter(prefetched)


def evaluation_batches(
    source: Source,
    options: DataOptions,
    batch_size: int,
    num_threads: int = NUM_THREADS,
) -> Iterator[Batch]:
    """Every scene once, in order, by `evaluation_example`; the last batch may be short.

    Threads read examples ahead (0 reads in the calling thread).

    Raises (when iterated):
      DataError: as `training_batches`; also if the scenes of one batch differ in their
        number of target views, or if only some of them have depth.
    """
    reader = _Reader(source, options, set())
    indices = range(len(source))
    if num_threads:
        arguments = ((index,) for index in indices)
        examples = map_in_order(reader.evaluation_example, arguments, num_threads)
    else:
        examples = map(reader.evaluation_example, indices)
    batch = []
    for example in examples:
        if example is not None:
            batch.append(example)
        if len(batch) == batch_size:
            yield stack_examples(batch)
            batch = []
    if batch:
        yield stack_examples(batch)


def require_evaluation_views(source: Source, options: DataOptions) -> None:
    """Raises if a scene has too few views for `evaluation_batches`; decodes no image.

    Raises:
      DataError: as `evaluation_batches`, except for images that cannot be decoded.
    """
    reader = _Reader(source, options, set())
    for index in range(len(source)):
        reader.check_evaluation_views(index)


def stack_examples(examples: Sequence[Batch]) -> Batch:
    """Stacks examples without a batch axis into one batch over [b].

    Raises:
      DataError: the examples differ in their number of target views, or only some of
        them have depth.
    """
    first = examples[0]
    for other in examples[1:]:
        for what, one, two in (
            ("target views", len(first.targets.images), len(other.targets.images)),
            ("depth", _has_depth(first), _has_depth(other)),
        ):
            if one != two:
                raise DataError(
                    f"scenes {first.scene_id} and {other.scene_id} cannot share a "
                    f"batch: they differ in {what} ({one} and {two}); make them equal, "
                    "or use batches of one scene"
                )
    return jax.tree.map(lambda *arrays: np.stack(arrays), *examples)


def _has_depth(example: Batch) -> bool:
    return example.targets.depths is not None


class _Reader:
    """Makes examples in many threads and counts the scenes that cannot be used."""

    def __init__(self, source: Source, options: DataOptions, bad_scenes: set[int]):
        self._source = source
        self._options = options
        self._lock = threading.Lock()
        self._bad_scenes = bad_scenes

    def training_example(self, index: int, rng: np.random.Generator) -> Batch | None:
        """The example, or None for an unusable scene within `bad_scenes_allowed`."""
        return self._attempt(
            index, lambda scene: training_example(scene, rng, self._options)
        )

    def evaluation_example(self, index: int) -> Batch | None:
        """The example, or None for an unusable scene within `bad_scenes_allowed`."""
        return self._attempt(
            index, lambda scene: evaluation_example(scene, self._options)
        )

    def check_evaluation_views(self, index: int) -> None:
        """Raises for a scene that cannot be evaluated, unless it is allowed."""
        self._attempt(index, lambda scene: evaluation_positions(scene, self._options))

    def _attempt(
        self, index: int, make: Callable[[Scene | StoredScene], _Result]
    ) -> _Result | None:
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
                    f"bad_scenes_allowed={allowed}; the last one: {error}"
                ) from error
            if is_new:
                logging.warning(
                    "skipped bad scene %d of %d allowed: %s", count, allowed, error
                )
            return None
