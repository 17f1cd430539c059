"""Many scenes in many processes: resumable, and the same files whoever makes them."""

import errno
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

from facelift_jax import atomic
from facelift_jax.data.rodent.rigs import NUM_INPUTS
from facelift_jax.data.rodent.scene import (
    VERSION,
    Options,
    make_scene,
    sample_parameters,
    scene_name,
)
from facelift_jax.data.rodent.write import (
    CAMERA_FILE,
    view_paths,
    write_json,
    write_scene,
)

MARKER = "dataset.json"
KIND = "facelift_jax rodent scenes"
_SECONDS_BETWEEN_REPORTS = 5.0


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
    try:
        _report(finished, len(missing), scenes, NUM_INPUTS + views, progress)
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


def _report(
    finished: Iterator[int],
    missing: int,
    scenes: int,
    views: int,
    progress: Callable[[str], None],
) -> None:
    """Runs through the finished scenes and now and then says how far the work is."""
    start = last = time.monotonic()
    for made, _ in enumerate(finished, start=1):
        now = time.monotonic()
        rate = made / max(now - start, 1e-9)
        if made == missing:
            progress(
                f"rodent: {made} scenes of {views} views made in "
                f"{_duration(now - start)}, {rate * views:.1f} views/s"
            )
        elif now - last >= _SECONDS_BETWEEN_REPORTS:
            last = now
            progress(
                f"rodent: {scenes - missing + made}/{scenes} scenes, "
                f"{rate * views:.1f} views/s, {_duration((missing - made) / rate)} left"
            )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


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
    marker = out / MARKER
    if marker.exists():
        found = _read_json(marker)
        for key, value in asked.items():
            if found.get(key) != value:
                raise ValueError(
                    f"{marker}: made with {key} {found.get(key)!r}, asked for "
                    f"{value!r}; choose another folder, or remove this one"
                )
        if not isinstance(found.get("scenes"), int):
            raise ValueError(f'{marker}: "scenes" must be a whole number')
        if scenes <= found["scenes"]:
            return  # nothing to change, perhaps no right to
    elif out.exists() and (not out.is_dir() or _holds_anything(out)):
        raise ValueError(
            f"{out}: exists and is not a rodent data set (it has no {MARKER}); choose "
            "another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(marker, {**asked, "scenes": scenes})


def _holds_anything(folder: Path) -> bool:
    """Whether there is more than a marker that was never finished."""
    return any(path.name != MARKER + atomic.SUFFIX for path in folder.iterdir())


def _is_complete(out: Path, index: int, options: Options) -> bool:
    """Whether a scene's files are all there; refuses one with other parameters."""
    folder = out / scene_name(index)
    path = folder / CAMERA_FILE
    if not path.exists():
        return False
    document = _read_json(path)
    asked = sample_parameters(index, options)
    if document.get("rodent") != asked:
        raise ValueError(
            f"{path}: its parameters are not those of scene {index} with seed "
            f"{options.seed}; choose another folder, or remove this scene"
        )
    views = range(NUM_INPUTS + options.views)
    return all((folder / path).is_file() for v in views for path in view_paths(v))


def _num_complete(out: Path, scenes: int) -> int:
    return sum((out / scene_name(i) / CAMERA_FILE).exists() for i in range(scenes))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path}: not readable as JSON ({error}); remove it"
        ) from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected a JSON object; remove the file")
    return document
