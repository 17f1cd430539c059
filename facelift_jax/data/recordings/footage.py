"""What the cameras of a recording saw: a video or a folder of pictures each.

Videos are read by the ffmpeg of imageio-ffmpeg, called by argument list; it may open
nothing but the one file. Every error is one line that names the camera and the file.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import imageio_ffmpeg
import numpy as np
from jaxtyping import Bool, Float, UInt8

from facelift_jax.data.formats import check_camera
from facelift_jax.data.io import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    DataError,
    decode_image,
    image_header,
    located,
    path_inside,
)
from facelift_jax.data.recordings.calibration import CalibratedCamera, read_calibration

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv")
_LENGTHS_AGREE = 0.01  # share of frames that one video may be shorter than another
_Item = TypeVar("_Item")
_PICTURE_MODES = ("RGB", "L", "1")
_MASK_MODES = ("L", "1", "RGB")


class Footage(NamedTuple):
    """All that one camera saw, in order of time.

    Attributes:
      where: the camera and the file or folder, for errors.
      paths: the one video, or the pictures.
      times: [n] float64 seconds after the first; None for pictures, which carry none.
      count: how many frames.
      size: (width, height) in pixels.
    """

    where: str
    paths: tuple[Path, ...]
    times: np.ndarray | None
    count: int
    size: tuple[int, int]


class Recording(NamedTuple):
    """v cameras and what they saw at the same n times.

    Attributes:
      cameras, pictures, masks: [v] each.
      times: [n] seconds.
    """

    cameras: list[CalibratedCamera]
    pictures: list[Footage]
    masks: list[Footage]
    times: np.ndarray

    def frames(self, scenes: int, progress: Callable[[str], None]) -> range:
        """The numbers of the frames to take, evenly spaced; says what that leaves."""
        if scenes > len(self.times):
            raise ValueError(
                f"{scenes} scenes of a recording of {len(self.times)} frames: ask for "
                "at most as many"
            )
        step, unused = divmod(len(self.times), scenes)
        if unused >= step:
            progress(
                f"frames {step} apart are taken; the last {unused} of "
                f"{len(self.times)} are not used"
            )
        return range(0, scenes * step, step)


def open_recording(
    calibration: Path,
    pictures: Path,
    masks: Path,
    names: list[str] | None,
    fps: float | None,
    progress: Callable[[str], None],
) -> Recording:
    """Reads the calibration and looks at every file; decodes no video.

    Raises:
      DataError: something is missing or does not fit together; one line.
    """
    cameras = read_calibration(calibration)
    known = [camera.name for camera in cameras]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise DataError(
            f"{calibration}: no camera {unknown[0]!r}; it holds {', '.join(known)}"
        )
    left = [name for name in known if names and name not in names]
    cameras = [camera for camera in cameras if camera.name not in left]
    if len(cameras) < 2:
        raise DataError(f"{len(cameras)} camera chosen; depth needs at least two")
    if left:
        progress(f"{len(left)} calibrated cameras are left out: {', '.join(left)}")
    seen = [open_footage(pictures, camera.name) for camera in cameras]
    masked = [open_footage(masks, camera.name) for camera in cameras]
    for folder in (pictures, masks):
        names_there = {p.name: {p.name, p.stem} for p in folder.iterdir()}
        others = sorted(n for n, x in names_there.items() if x.isdisjoint(known))
        if others:
            progress(f"{folder}: of no calibrated camera: {', '.join(others)}")
    for camera, picture, mask in zip(cameras, seen, masked, strict=True):
        with located(picture.where):
            for what, size in (("masks", mask.size), ("calibration", camera.size)):
                if size and size != picture.size:
                    raise DataError(
                        f"pictures of {picture.size[0]} x {picture.size[1]} px, but "
                        f"{what} for {size[0]} x {size[1]}"
                    )
            check_camera(camera.viewmat, camera.K, picture.size)
            is_folder = picture.times is None
            if is_folder and image_header(picture.paths[0]).mode == "RGBA":
                raise DataError(
                    "an alpha channel beside the masks: the silhouette must come from "
                    "exactly one of them; store the pictures as RGB, and alpha as masks"
                )
    return Recording(cameras, seen, masked, _times(seen, masked, fps, progress))


def open_footage(root: Path, name: str) -> Footage:
    """What camera `name` saw: `root/name.mp4` (mov, avi, mkv) or a folder of its name.

    A folder holds one video, or pictures in the order of the numbers in their names.

    Raises:
      DataError: it is not there, there twice, or not readable.
    """
    with located(f"camera {name!r} ({root})"):
        folder = path_inside(root, name, "name")
        inside = sorted(folder.iterdir(), key=_number_order) if folder.is_dir() else []
        videos = [folder.with_name(folder.name + suffix) for suffix in VIDEO_SUFFIXES]
        videos = [path for path in videos if path.is_file()]
        videos += [path for path in inside if path.suffix.lower() in VIDEO_SUFFIXES]
        pictures = [path for path in inside if path.suffix.lower() in IMAGE_SUFFIXES]
        if len(videos) + bool(pictures) != 1:
            there = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
            raise DataError(
                f"expected one video {name}.mp4 or one folder {name} of pictures or a "
                f"video, found {len(videos)} videos and {len(pictures)} pictures (the "
                f"folder holds {', '.join(there[:8]) or 'nothing'})"
            )
    path = videos[0] if videos else folder
    where = f"camera {name!r} ({path})"
    with located(where):
        if videos:
            size, times = _probe(path)
            return Footage(where, (path,), times, len(times), size)
        width, height, _ = image_header(pictures[0])
        return Footage(where, tuple(pictures), None, len(pictures), (width, height))


def read_pictures(
    footage: Footage, frames: range
) -> Generator[UInt8[np.ndarray, "h w 3"], None, None]:
    """The pictures of these frames, RGB."""
    for picture in _read(footage, frames, is_mask=False):
        colors = picture if picture.ndim == 3 else picture[..., None].repeat(3, axis=-1)
        yield colors


def read_masks(
    footage: Footage, frames: range
) -> Generator[Bool[np.ndarray, "h w"], None, None]:
    """Which pixels of these frames show the object: those above half of full range.

    Lossy compression blurs a mask; the middle of its edge stays where it was.
    """
    for mask in _read(footage, frames, is_mask=True):
        yield (mask if mask.ndim == 2 else mask.max(axis=-1)) > 127


def together(
    streams: list[Generator[_Item, None, None]],
) -> Iterator[tuple[_Item, ...]]:
    """One item of each stream at a time; closes all of them at the end."""
    with contextlib.ExitStack() as stack:
        for stream in streams:
            stack.enter_context(contextlib.closing(stream))
        yield from zip(*streams, strict=True)


def _times(
    pictures: list[Footage],
    masks: list[Footage],
    fps: float | None,
    progress: Callable[[str], None],
) -> Float[np.ndarray, "n"]:
    """Seconds of the frames that every file has."""
    every = (*pictures, *masks)
    counts = {footage.where: footage.count for footage in every}
    (least, fewest), (most, largest) = (
        choose(counts.items(), key=lambda item: item[1]) for choose in (min, max)
    )
    if fewest < largest:
        difference = f"{least} has {fewest} frames, {most} {largest}"
        are_videos = all(footage.times is not None for footage in every)
        allowed = max(2, _LENGTHS_AGREE * largest) if are_videos else 0
        if largest - fewest > allowed:
            raise DataError(
                f"{difference}; frames of one number must be of one moment everywhere"
            )
        progress(f"{difference}: the last ones are not used")
    clocks = [footage.times for footage in pictures if footage.times is not None]
    if bool(clocks) == bool(fps):
        raise ValueError(
            "videos carry their own times; leave --fps away"
            if clocks
            else "pictures carry no times: give their number a second as --fps"
        )
    if fps:
        return np.arange(fewest) / fps
    times = clocks[0][:fewest]
    drift = max(np.abs(clock[:fewest] - times).max() for clock in clocks)
    if fewest > 1 and drift > 0.5 * times[-1] / (fewest - 1):
        progress(
            f"the cameras' clocks differ by up to {drift:.3g} s; frames of one number "
            "are taken as one moment"
        )
    return times


def _number_order(path: Path) -> list[tuple[bool, int, str]]:
    """frame_2 before frame_10."""
    words = re.findall(r"\d+|\D+", path.name)
    return [(w.isdecimal(), int(w) if w.isdecimal() else 0, w) for w in words]


def _read(
    footage: Footage, frames: range, is_mask: bool
) -> Iterator[UInt8[np.ndarray, "h w *c"]]:
    if footage.times is not None:
        yield from _read_video(footage, frames, is_mask)
        return
    modes = _MASK_MODES if is_mask else _PICTURE_MODES
    for frame in frames:
        path = footage.paths[frame]
        with located(f"{footage.where}, {path.name}"):
            picture = decode_image(path, footage.size, modes)
        yield picture


def _read_video(
    footage: Footage, frames: range, is_grey: bool
) -> Iterator[UInt8[np.ndarray, "h w *c"]]:
    """Decodes from the start, so that a frame's number is exact whatever the codec."""
    chosen = f"between(n,{frames.start},{frames[-1]})"
    chosen += f"*not(mod(n-{frames.start},{frames.step}))"
    output = ["-map", "0:v:0", "-vf", f"select='{chosen}'", "-fps_mode", "passthrough"]
    output += ["-frames:v", str(len(frames)), "-f", "image2pipe"]
    kind, pixels = ("pgm", "gray") if is_grey else ("ppm", "rgb24")
    output += ["-c:v", kind, "-pix_fmt", pixels, "-"]
    width, height = footage.size
    shape = (height, width) if is_grey else (height, width, 3)
    header = f"{'P5' if is_grey else 'P6'}\n{width} {height}\n255\n".encode()
    with located(footage.where), _ffmpeg(footage.paths[0], output) as pipe:
        for frame in frames:
            found = pipe.read(len(header))
            if found and found != header:
                raise DataError(
                    f"frame {frame} is not of {width} x {height} px, as the file says; "
                    "videos with a rotation or of changing size must be encoded anew"
                )
            values = np.frombuffer(pipe.read(int(np.prod(shape))), np.uint8)
            if values.size != np.prod(shape):
                raise DataError(
                    f"ends before frame {frame} of the {footage.count} it promises"
                )
            yield values.reshape(shape)


def _probe(path: Path) -> tuple[tuple[int, int], np.ndarray]:
    """(width, height) and the time of every frame, seconds from the first.

    ffmpeg lists the packets without decoding them: `#` lines of the stream's facts,
    then stream, dts, pts, duration, size, checksum.
    """
    output = ["-map", "0:v:0", "-c", "copy", "-f", "framecrc", "-"]
    with _ffmpeg(path, output) as pipe:
        lines = pipe.read().decode(errors="replace").splitlines()
        facts = dict(line[1:].split(" 0: ", 1) for line in lines if " 0: " in line)
        try:
            width, height = map(int, facts["dimensions"].split("x"))
            step, scale = map(int, facts["tb"].split("/"))
            stamps = [int(line.split(",")[2]) for line in lines if line[:1] == "0"]
        except (KeyError, ValueError) as error:
            raise DataError("no video ffmpeg understands") from error
        if not stamps or not 0 < width * height <= MAX_PIXELS:
            raise DataError(f"{len(stamps)} frames of {width} x {height} px")
    times = np.sort(np.array(stamps, np.float64)) * (step / scale)
    return (width, height), times - times[0]


@contextlib.contextmanager
def _ffmpeg(path: Path, output: list[str]) -> Iterator[IO[bytes]]:
    """The output of ffmpeg on a video; its complaint is the error that counts."""
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise DataError("no ffmpeg; reinstall imageio-ffmpeg") from error
    command = [program, "-v", "error", "-xerror", "-nostdin", "-threads", "1"]
    command += ["-protocol_whitelist", "file", "-i", f"file:{path.absolute()}", *output]
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints)
        assert process.stdout is not None
        try:
            yield process.stdout
        except DataError as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)  # it has ended, or waits for us to read on
            complaints.seek(0)
            first = complaints.readline(500).decode(errors="replace")
            reason = re.sub(r"^\[.*?\] ", "", first).strip()
            raise DataError(
                f"{error}" + f" (ffmpeg: {reason})" * bool(reason)
            ) from error
        finally:
            process.stdout.close()
            process.kill()
            process.wait()
