"""Makes many scenes in parallel processes, resumable and reproducible bit for bit."""

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
    RodentOptions,
    make_scene,
    sample_parameters,
    scene_name,
)
from facelift_jax.data.rodent.write import depth_path, write_rodent_scene
from facelift_jax.data.writing import (
    MARKER,
    claim_folder,
    image_path,
    read_marker,
    write_json,
)
from facelift_jax.io.progress import with_progress

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
    """Makes the scenes that are missing in `out`; returns how many were made.

    Scene i depends only on the options, `seed` and i, bit for bit, and not on `workers`
    (None: one per core). Complete scenes with the same stored parameters are kept.
    `progress` is called with one line of text every few seconds.

    Raises:
      ValueError: an option is out of range, or `out` holds other data.
      OSError: the disk is full, or a file cannot be written.
      ImportError: the package embreex is not installed.
      RuntimeError: a worker process died; call again to finish.
    """
    options = RodentOptions(
        size, seed, views, float(fov_degrees), float(radius), uneven
    )
    workers = (os.cpu_count() or 1) if workers is None else workers
    if scenes < 1 or workers < 1:
        raise ValueError(
            f"{scenes} scenes with {workers} workers: expected at least one of each"
        )
    out = Path(out)
    _claim_folder(out, scenes, options)
    missing = [i for i in range(scenes) if not _is_complete(out, i, options)]
    if len(missing) < scenes:
        progress(f"rodent: {scenes - len(missing)} of {scenes} scenes already exist")
    finished = _make_all(out, missing, options, min(workers, len(missing)))
    num_complete = scenes - len(missing)
    try:
        for _ in with_progress(finished, "rodent", scenes, progress, num_complete):
            pass
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"{out}: a worker process died (killed, or out of memory) with "
            f"{_num_complete(out, scenes)} of {scenes} scenes complete; run again to "
            "finish"
        ) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            f"{out}: the disk is full with {_num_complete(out, scenes)} of {scenes} "
            "scenes complete; free some space and run again to finish"
        ) from error
    return len(missing)


def _make_all(
    out: Path, indices: list[int], options: RodentOptions, workers: int
) -> Iterator[int]:
    """Makes and writes scenes; yields each index when its files are complete."""
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


def _make_and_write(out: Path, index: int, options: RodentOptions) -> int:
    write_rodent_scene(out / scene_name(index), make_scene(index, options))
    return index


def _start_worker() -> None:
    """Ignores Ctrl-C, which the parent handles, and exits when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _claim_folder(out: Path, scenes: int, options: RodentOptions) -> None:
    """Creates the folder, or checks that it holds a set made with these options."""
    settings = {"kind": KIND, "version": VERSION, **asdict(options)}
    marker = claim_folder(out, settings, "a rodent data set")
    if marker and not isinstance(marker.get("scenes"), int):
        raise ValueError(f'{out / MARKER}: "scenes" must be a whole number')
    if not marker or scenes > marker["scenes"]:  # a complete set may be read-only
        write_json(out / MARKER, {**settings, "scenes": scenes})


def _is_complete(out: Path, index: int, options: RodentOptions) -> bool:
    """Whether all files of a scene exist.

    Raises:
      ValueError: the scene has other parameters.
    """
    folder = out / scene_name(index)
    path = folder / OPENCV_FILE
    if not path.exists():
        return False
    document = read_marker(path)
    if document.get("rodent") != sample_parameters(index, options):
        raise ValueError(
            f"{path}: its parameters are not those of scene {index} with seed "
            f"{options.seed}; choose another folder, or remove this scene"
        )
    views = range(NUM_INPUTS + options.views)
    paths = [path(view) for view in views for path in (image_path, depth_path)]
    return all((folder / path).is_file() for path in paths)


def _num_complete(out: Path, scenes: int) -> int:
    return sum((out / scene_name(i) / OPENCV_FILE).exists() for i in range(scenes))
