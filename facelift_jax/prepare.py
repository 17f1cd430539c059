"""A lab's calibration, pictures or videos, and masks to scenes in our layout.

    python -m facelift_jax.prepare --calibration calibration.toml --pictures videos \
        --masks masks --out data/mouse --scenes 1600

For every camera of the calibration, `videos` and `masks` hold a video or a folder of
pictures of its name; frames of one number show one moment. A scene is one moment: its
lenses undistorted, its cameras turned about their own centres towards the object, its
rig moved and scaled as one. The first times are for training, then val, then test, with
gaps between. The same command again goes on where it was stopped.
"""

import argparse
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from facelift_jax.data.formats import OPENCV_FILE, PARTS
from facelift_jax.data.recordings.footage import (
    Footage,
    Recording,
    open_recording,
    read_masks,
    read_pictures,
    together,
)
from facelift_jax.data.recordings.scenes import (
    Moment,
    Options,
    picture_path,
    plan,
    survey,
    write_scene,
)
from facelift_jax.data.recordings.virtual_cameras import pixel_points
from facelift_jax.data.writing import MARKER, claim_folder, read_marker, write_json
from facelift_jax.io import atomic, command
from facelift_jax.io.progress import map_in_order, with_progress

KIND, VERSION = "facelift_jax prepared recording", 3
SURVEY = "survey.json"
END_BYTES = 2**16  # looked at of a video: footage of equal length differs there


def prepare(
    calibration: Path,
    pictures: Path,
    masks: Path,
    out: Path,
    options: Options,
    *,
    cameras: list[str] | None = None,
    workers: int | None = None,
    progress: Callable[[str], None] = print,
) -> int:
    """Makes the scenes that `out` still lacks and returns how many that were.

    `cameras`: the ones to use, None for all calibrated ones. The same files, bit for
    bit, whatever `workers` (None: one a core) and however often it was stopped.

    Raises:
      ValueError: an input cannot be used (`DataError`), or `out` holds something else.
      OSError: the disk is full, or a file cannot be written.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise ValueError(f"{workers} workers: expected at least one")
    recording = open_recording(
        calibration, pictures, masks, cameras, options.fps, progress
    )
    frames = recording.frames(options.scenes, progress)
    inputs = _claim(out, recording, options)
    sizes = [footage.size for footage in recording.pictures]
    views = zip(recording.cameras, sizes, strict=True)
    points = list(map_in_order(pixel_points, views, workers))
    if (out / SURVEY).exists():
        rows = read_marker(out / SURVEY)["times"]
    else:
        looks = survey(recording, frames, points, workers)
        rows = list(with_progress(looks, "masks", len(frames), progress))
        write_json(out / SURVEY, {"times": rows})
    made = plan(recording, rows, options)
    write_json(out / MARKER, inputs | asdict(options) | {"report": made.report})
    for line in made.report:
        progress(line)
    missing = [m for m in made.moments if not _is_complete(out, m, len(points))]
    total, there = len(made.moments), len(made.moments) - len(missing)
    if there:
        progress(f"{there} of {total} scenes are there already")

    def write(moment: Moment, seen: tuple[np.ndarray, ...]) -> None:
        write_scene(out, made, moment, recording.cameras, points, seen)

    written = map_in_order(write, _moments(recording, missing, frames.step), workers)
    for _ in with_progress(written, "scenes", total, progress, there):
        pass
    for split in PARTS:
        names = [moment.name for moment in made.moments if moment.split == split]
        atomic.write_text(out / f"{split}.txt", "".join(f"{name}\n" for name in names))
    return len(missing)


def _claim(out: Path, recording: Recording, options: Options) -> dict[str, Any]:
    """What the survey depends on, once `out` is ours for this recording and options."""
    digest = hashlib.sha256()
    for camera in recording.cameras:
        for array in (camera.viewmat, camera.K, camera.distortion):
            digest.update(array.tobytes())
    inputs = {"kind": KIND, "version": VERSION, "calibration": digest.hexdigest()}
    inputs |= {"scenes": options.scenes, "fps": options.fps}
    sides = {"pictures": recording.pictures, "masks": recording.masks}
    for what, side in sides.items():
        for camera, footage in zip(recording.cameras, side, strict=True):
            digest = _digest(footage)
            inputs[f"{what} of {camera.name}"] = f"{footage.count} frames, {digest}"
    found = claim_folder(out, inputs, "a prepared recording")
    if not found:
        write_json(out / MARKER, inputs)
    elif "size" in found:  # scenes of these options may be there
        claim_folder(out, asdict(options), "a prepared recording")
    return inputs


def _digest(footage: Footage) -> str:
    """Sixteen hex digits (of SHA-256): of a video over its size, head and tail.

    Of pictures, which are many, over their names, sizes and times of change: none is
    opened.
    """
    sha = hashlib.sha256()
    for path in footage.paths:
        stat = path.stat()
        if footage.times is None:
            line = f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n"
            sha.update(line.encode(errors="surrogateescape"))
            continue
        with path.open("rb") as file:
            sha.update(b"%d %b" % (stat.st_size, file.read(END_BYTES)))
            file.seek(max(END_BYTES, stat.st_size - END_BYTES))
            sha.update(file.read(END_BYTES))
    return sha.hexdigest()[:16]


def _is_complete(out: Path, moment: Moment, num_views: int) -> bool:
    files = [OPENCV_FILE, *map(picture_path, range(num_views))]
    return all((out / moment.name / file).is_file() for file in files)


def _moments(
    recording: Recording, missing: list[Moment], step: int
) -> Iterator[tuple[Moment, tuple[np.ndarray, ...]]]:
    """Each moment with its pictures [v], then masks [v], decoded as they are drawn."""
    if not missing:
        return
    wanted = {moment.frame: moment for moment in missing}
    span = range(missing[0].frame, missing[-1].frame + 1, step)
    streams = [read_pictures(footage, span) for footage in recording.pictures]
    streams += [read_masks(footage, span) for footage in recording.masks]
    for frame, seen in zip(span, together(streams), strict=True):
        if frame in wanted:
            yield wanted[frame], seen


def parse(arguments: list[str]) -> Any:
    """Flags of the command."""
    parser = command.Parser(
        prog="python -m facelift_jax.prepare",
        description="Calibrated videos or pictures, and masks, to scenes: undistorted, "
        "aimed at the object, scaled as one rig, split by time. Resumable: start the "
        "same command again to finish.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, path = parser.add_argument, {"type": Path, "required": True}
    add("--calibration", **path, help="opencv_cameras.json, or anipose's or label3d's")
    add("--pictures", **path, help="folder of NAME.mp4 or a folder NAME a camera")
    add("--masks", **path, help="the same for the masks: the object is white")
    add("--out", **path, help="folder of the scenes, new or ours")
    add("--scenes", type=int, required=True, help="times to take, evenly spread")
    add("--size", type=int, default=Options.size, help="side of the pictures in pixels")
    add("--cameras", nargs="+", metavar="NAME", help="the ones to use; without it all")
    add("--fps", type=float, help="pictures a second, where there are no videos")
    numbers = {
        "share": "of a picture's width that the object fills, mostly at most",
        "radius": "mean distance of the cameras from the object in the scenes",
        "val": "share of the times to choose by",
        "test": "share of the times to judge by, the last ones",
        "gap": "seconds, at least, between train, val and test",
        "max-upscale": "refuse to magnify pictures more than so many times",
    }
    for name, text in numbers.items():
        default = getattr(Options, name.replace("-", "_"))
        add(f"--{name}", type=float, default=default, help=text)
    add("--workers", type=int, help="threads; without it one a core")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """The command.

    Raises:
      ValueError, OSError: one line saying what to change.
    """
    flags = vars(parse(arguments))
    settings = {field.name: flags.pop(field.name) for field in fields(Options)}
    out = flags["out"]
    prepare(
        **flags,
        options=Options(**settings),
        progress=lambda line: print(line, flush=True),
    )
    held_out = sum(len((out / f"{s}.txt").read_text().split()) for s in ("val", "test"))
    where = f"--config.data.path={out} --config.data.num_held_out_scenes="
    print(
        f"{out}: train with {where}{held_out}; the last scenes are val and test"
        if held_out
        else f"{out}: no scene of val or test, so nothing to judge by: prepare again "
        f"with --val or --test, or hold out the last N of these by {where}N"
    )


if __name__ == "__main__":
    command.run("prepare", main)
