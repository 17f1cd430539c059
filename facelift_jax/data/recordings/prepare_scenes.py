"""Makes the scenes of a whole recording, resumable at any point.

The output folder contains `dataset.json` (inputs, options, report), `measurements.json`
(one row per timestamp), a folder per scene, and `train.txt`, `val.txt`, `test.txt`.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from facelift_jax.data.formats import OPENCV_FILE, PARTS
from facelift_jax.data.recordings.footage import (
    Footage,
    Recording,
    open_recording,
    read_images,
    read_masks,
    read_together,
)
from facelift_jax.data.recordings.scenes import (
    PrepareOptions,
    Timestamp,
    measure_objects,
    plan_scenes,
    write_recording_scene,
)
from facelift_jax.data.recordings.virtual_cameras import undistorted_pixels
from facelift_jax.data.writing import (
    MARKER,
    claim_folder,
    image_path,
    read_marker,
    write_json,
)
from facelift_jax.io import atomic
from facelift_jax.io.progress import map_in_order, with_progress

KIND, VERSION = "facelift_jax prepared recording", 4
MEASUREMENTS = "measurements.json"
_DIGEST_BYTES = 2**16  # hashed at each end of a video; recordings differ there


def prepare_scenes(
    calibration: Path,
    images: Path,
    masks: Path,
    out: Path,
    options: PrepareOptions,
    *,
    cameras: list[str] | None = None,
    workers: int | None = None,
    progress: Callable[[str], None] = print,
) -> int:
    """Makes the scenes that are missing in `out`; returns how many were made.

    The files are the same bit for bit for any number of workers and interruptions.

    Args:
      calibration: file of the calibration, see `calibration`.
      images, masks: folders with a video or a folder of images per camera.
      out: folder of the scenes, new or from an earlier call with the same inputs.
      options: how scenes are made.
      cameras: names of the cameras to use; None for all calibrated cameras.
      workers: number of threads; None for one per core.
      progress: is called with lines of text.

    Raises:
      ValueError: an input cannot be used (`DataError`), or `out` holds other data.
      OSError: the disk is full, or a file cannot be written.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise ValueError(f"{workers} workers: expected at least one")
    recording = open_recording(
        calibration, images, masks, cameras, options.fps, progress
    )
    frames = recording.frames(options.scenes, progress)
    inputs = _claim_folder(out, recording, options)
    sizes = [footage.size for footage in recording.images]
    views = zip(recording.cameras, sizes, strict=True)
    points = list(map_in_order(undistorted_pixels, views, workers))
    if (out / MEASUREMENTS).exists():
        rows = read_marker(out / MEASUREMENTS)["timestamps"]
    else:
        measured = measure_objects(recording, frames, points, workers)
        rows = list(with_progress(measured, "masks", len(frames), progress))
        write_json(out / MEASUREMENTS, {"timestamps": rows})
    plan = plan_scenes(recording, rows, options)
    write_json(out / MARKER, inputs | asdict(options) | {"report": plan.report})
    for line in plan.report:
        progress(line)
    missing = [t for t in plan.timestamps if not _is_complete(out, t, len(points))]
    total, num_complete = len(plan.timestamps), len(plan.timestamps) - len(missing)
    if num_complete:
        progress(f"{num_complete} of {total} scenes already exist")

    def write(timestamp: Timestamp, footage: tuple[np.ndarray, ...]) -> None:
        write_recording_scene(out, plan, timestamp, recording.cameras, points, footage)

    decoded = _read_timestamps(recording, missing, frames.step)
    written = map_in_order(write, decoded, workers)
    for _ in with_progress(written, "scenes", total, progress, num_complete):
        pass
    for part in PARTS:
        names = [t.name for t in plan.timestamps if t.part == part]
        atomic.write_text(out / f"{part}.txt", "".join(f"{name}\n" for name in names))
    return len(missing)


def _claim_folder(
    out: Path, recording: Recording, options: PrepareOptions
) -> dict[str, Any]:
    """Creates or checks `out`; returns what identifies the recording."""
    digest = hashlib.sha256()
    for camera in recording.cameras:
        for array in (camera.viewmat, camera.K, camera.distortion):
            digest.update(array.tobytes())
    inputs = {"kind": KIND, "version": VERSION, "calibration": digest.hexdigest()}
    inputs |= {"scenes": options.scenes, "fps": options.fps}
    for what, side in (("images", recording.images), ("masks", recording.masks)):
        for camera, footage in zip(recording.cameras, side, strict=True):
            digest = _digest(footage)
            inputs[f"{what} of {camera.name}"] = f"{footage.count} frames, {digest}"
    marker = claim_folder(out, inputs, "a prepared recording")
    if not marker:
        write_json(out / MARKER, inputs)
    elif "size" in marker:  # scenes made with these options may exist
        claim_folder(out, asdict(options), "a prepared recording")
    return inputs


def _digest(footage: Footage) -> str:
    """Sixteen hex digits of SHA-256.

    For a video, over its size and the bytes at both ends. For image files, over their
    names, sizes and modification times, without opening them.
    """
    sha = hashlib.sha256()
    for path in footage.paths:
        stat = path.stat()
        if footage.times is None:
            line = f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n"
            sha.update(line.encode(errors="surrogateescape"))
            continue
        with path.open("rb") as file:
            sha.update(b"%d %b" % (stat.st_size, file.read(_DIGEST_BYTES)))
            file.seek(max(_DIGEST_BYTES, stat.st_size - _DIGEST_BYTES))
            sha.update(file.read(_DIGEST_BYTES))
    return sha.hexdigest()[:16]


def _is_complete(out: Path, timestamp: Timestamp, num_views: int) -> bool:
    files = [OPENCV_FILE, *map(image_path, range(num_views))]
    return all((out / timestamp.name / file).is_file() for file in files)


def _read_timestamps(
    recording: Recording, missing: list[Timestamp], step: int
) -> Iterator[tuple[Timestamp, tuple[np.ndarray, ...]]]:
    """Each timestamp with its images [v] and then masks [v], decoded on demand."""
    if not missing:
        return
    by_frame = {timestamp.frame: timestamp for timestamp in missing}
    frames = range(missing[0].frame, missing[-1].frame + 1, step)
    streams = [read_images(footage, frames) for footage in recording.images]
    streams += [read_masks(footage, frames) for footage in recording.masks]
    for frame, decoded in zip(frames, read_together(streams), strict=True):
        if frame in by_frame:
            yield by_frame[frame], decoded
