"""Many scenes in many processes: resumable, and the same files whoever makes them."""

import errno
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

from facelift_jax.data.formats import OPENCV_FILE
from facelift_jax.data.rodent.rigs import NUM_INPUTS
from facelift_jax.data.rodent.scene import (
    VERSION,
    Options,
    make_scene,
    sample_parameters,
    scene_name,
)
from facelift_jax.data.rodent.write import view_paths, write_scene
from facelift_jax.data.writing import MARKER, claim_folder, read_marker, write_json
from facelift_jax.io.progress import watched

KIND = "facelift_jax rodent scenes"


def generate(
    out: Path | str,
    scenes: int,
    size: int,
    seed: int = 0,
    workers: int | None = None,
    *,
    views: int = 12,
    fov_degrees: float = 50.0,
    radius: float = 2.7,
    uneven: bool = False,
    progress: Callable[[str], None] = print,
) -> int:
    """Makes the scenes that `out` still lacks and returns how many that were.

    Scene i depends on the options, `seed` and i alone, bit for bit, whatever `workers`
    (None: one a core). Complete scenes stay if their stored parameters are the same.
    `progress` is called with one line of text every few seconds.

    Raises:
      ValueError: an option out of range, or `out` holds something else.
      OSError: the disk is full, or a file cannot be written.
      RuntimeError: a worker process died; a further call finishes the work.
    """
    options = Options(size, seed, views, float(fov_degrees), float(radius), uneven)
    workers = (os.cpu_count() or 1) if workers is None else workers
    if scenes < 1 or workers < 1:
        raise ValueError(
            f"{scenes} scenes with {workers} workers: expected at least one of each"
        )
    out = Path(out)
    _claim_folder(out, scenes, options)
    missing = [i for i in range(scenes) if not _is_complete(out, i, options)]
    if len(missing) < scenes:
        progress(
            f"rodent: {scenes - len(missing)} of {scenes} scenes are there already"
        )
    finished = _make_all(out, missing, options, min(workers, len(missing)))
    there = scenes - len(missing)
    try:
        for _ in watched(finished, "rodent", scenes, progress, there):
            pass
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"{out}: a worker process died (killed, or out of memory) with "
            f"{_num_complete(out, scenes)} of {scenes} scenes complete; start again to "
            "finish"
        ) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            f"{out}: the disk is full with {_num_complete(out, scenes)} of {scenes} "
            "scenes complete; make room and start again to finish"
        ) from error
    return len(missing)


def _make_all(
    out: Path, indices: list[int], options: Options, workers: int
) -> Iterator[int]:
    """Makes and writes scenes, yielding each index when its files are complete."""
    if workers <= 1:
        for index in indices:
            yield _make_and_write(out, index, options)
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    try:
        jobs = [pool.submit(_make_and_write, out, i, options) for i in indices]
        for job in as_completed(jobs):
            yield job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _make_and_write(out: Path, index: int, options: Options) -> int:
    write_scene(out / scene_name(index), make_scene(index, options))
    return index


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends with the parent should it be killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _claim_folder(out: Path, scenes: int, options: Options) -> None:
    """Makes or recognises our folder; refuses any other."""
    asked = {"kind": KIND, "version": VERSION, **asdict(options)}
    found = claim_folder(out, asked, "a rodent data set")
    if found and not isinstance(found.get("scenes"), int):
        raise ValueError(f'{out / MARKER}: "scenes" must be a whole number')
    if not found or scenes > found["scenes"]:  # else perhaps no right to write
        write_json(out / MARKER, {**asked, "scenes": scenes})


def _is_complete(out: Path, index: int, options: Options) -> bool:
    """Whether a scene's files are all there; refuses one with other parameters."""
    folder = out / scene_name(index)
    path = folder / OPENCV_FILE
    if not path.exists():
        return False
    document = read_marker(path)
    asked = sample_parameters(index, options)
    if document.get("rodent") != asked:
        raise ValueError(
            f"{path}: its parameters are not those of scene {index} with seed "
            f"{options.seed}; choose another folder, or remove this scene"
        )
    views = range(NUM_INPUTS + options.views)
    return all((folder / path).is_file() for v in views for path in view_paths(v))


def _num_complete(out: Path, scenes: int) -> int:
    return sum((out / scene_name(i) / OPENCV_FILE).exists() for i in range(scenes))
