"""The files of a recording: a video or a folder of images for every camera.

Errors are one line that names the camera and the file.
"""

import contextlib
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, UInt8

from facelift_jax.data.formats import check_camera
from facelift_jax.data.io import (
    IMAGE_SUFFIXES,
    DataError,
    decode_image,
    image_header,
    located,
    path_inside,
)
from facelift_jax.data.recordings.calibration import CalibratedCamera, read_calibration
from facelift_jax.data.recordings.video import VIDEO_SUFFIXES, probe_video, read_video

_MAX_LENGTH_DIFFERENCE = 0.01  # share of frames that one video may be shorter
_Item = TypeVar("_Item")
_IMAGE_MODES = ("RGB", "L", "1")
_MASK_MODES = ("L", "1", "RGB")


class Footage(NamedTuple):
    """All images or all masks of one camera, in the order of time.

    Attributes:
      label: the camera and the file or folder, for error messages.
      paths: the one video, or the image files.
      times: [n] float64 seconds from the first frame; None for image files, which have
        no timestamps.
      count: number of frames n.
      size: (width, height) in pixels.
    """

    label: str
    paths: tuple[Path, ...]
    times: np.ndarray | None
    count: int
    size: tuple[int, int]


class Recording(NamedTuple):
    """What v cameras recorded at the same n times.

    Attributes:
      cameras, images, masks: [v] each.
      times: [n] seconds.
    """

    cameras: list[CalibratedCamera]
    images: list[Footage]
    masks: list[Footage]
    times: np.ndarray

    def frames(self, scenes: int, progress: Callable[[str], None]) -> range:
        """The numbers of the frames to use, evenly spaced; reports unused frames.

        Raises:
          ValueError: there are fewer frames than scenes.
        """
        if scenes > len(self.times):
            raise ValueError(
                f"{scenes} scenes from a recording of {len(self.times)} frames: set "
                f"--scenes to at most {len(self.times)}"
            )
        step, unused = divmod(len(self.times), scenes)
        if unused >= step:
            progress(
                f"frames are used in steps of {step}; the last {unused} of "
                f"{len(self.times)} are not used"
            )
        return range(0, scenes * step, step)


def open_recording(
    calibration: Path,
    images: Path,
    masks: Path,
    names: list[str] | None,
    fps: float | None,
    progress: Callable[[str], None],
) -> Recording:
    """Reads the calibration and the headers of all files; decodes no video.

    Args:
      calibration: see `calibration`.
      images, masks: folders with a video or a folder of images per camera.
      names: the cameras to use; None for all.
      fps: frames per second of image files; None for videos, which have timestamps.
      progress: is called with a line of text for everything that is not used.

    Raises:
      DataError: a file is missing or inconsistent with the others; one line.
    """
    cameras = read_calibration(calibration)
    calibrated = [camera.name for camera in cameras]
    unknown = [name for name in names or () if name not in calibrated]
    if unknown:
        raise DataError(
            f"{calibration}: no camera {unknown[0]!r}; the file has "
            f"{', '.join(calibrated)}"
        )
    unused = [name for name in calibrated if names and name not in names]
    cameras = [camera for camera in cameras if camera.name not in unused]
    if len(cameras) < 2:
        raise DataError(f"{len(cameras)} camera selected; depth needs at least two")
    if unused:
        progress(f"{len(unused)} calibrated cameras are not used: {', '.join(unused)}")
    image_footage = [open_footage(images, camera.name) for camera in cameras]
    mask_footage = [open_footage(masks, camera.name) for camera in cameras]
    for folder in (images, masks):
        file_names = {p.name: {p.name, p.stem} for p in folder.iterdir()}
        others = sorted(n for n, x in file_names.items() if x.isdisjoint(calibrated))
        if others:
            progress(f"{folder}: files of no calibrated camera: {', '.join(others)}")
    for camera, image, mask in zip(cameras, image_footage, mask_footage, strict=True):
        with located(image.label):
            for what, size in (("masks", mask.size), ("calibration", camera.size)):
                if size and size != image.size:
                    raise DataError(
                        f"the images are {image.size[0]} x {image.size[1]} px, but the "
                        f"{what} {size[0]} x {size[1]}; they must have the same size"
                    )
            check_camera(camera.viewmat, camera.K, image.size)
            is_folder = image.times is None
            if is_folder and image_header(image.paths[0]).mode == "RGBA":
                raise DataError(
                    "the images have an alpha channel, but the silhouette comes from "
                    "the masks; store the images as RGB and the alpha as masks"
                )
    times = _common_times(image_footage, mask_footage, fps, progress)
    return Recording(cameras, image_footage, mask_footage, times)


def open_footage(root: Path, name: str) -> Footage:
    """The footage of camera `name`: `root/name.mp4` (mov, avi, mkv) or `root/name/`.

    A folder holds one video, or images in the order of the numbers in their names.

    Raises:
      DataError: there is none, more than one, or it is not readable.
    """
    with located(f"camera {name!r} ({root})"):
        folder = path_inside(root, name, "name")
        inside = sorted(folder.iterdir(), key=_number_order) if folder.is_dir() else []
        videos = [folder.with_name(folder.name + suffix) for suffix in VIDEO_SUFFIXES]
        videos = [path for path in videos if path.is_file()]
        videos += [path for path in inside if path.suffix.lower() in VIDEO_SUFFIXES]
        images = [path for path in inside if path.suffix.lower() in IMAGE_SUFFIXES]
        if len(videos) + bool(images) != 1:
            present = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
            raise DataError(
                f"expected one video {name}.mp4 or one folder {name} with images or a "
                f"video, found {len(videos)} videos and {len(images)} images (the "
                f"folder contains {', '.join(present[:8]) or 'nothing'})"
            )
    path = videos[0] if videos else folder
    label = f"camera {name!r} ({path})"
    with located(label):
        if videos:
            size, times = probe_video(path)
            return Footage(label, (path,), times, len(times), size)
        width, height, _ = image_header(images[0])
        return Footage(label, tuple(images), None, len(images), (width, height))


def read_images(
    footage: Footage, frames: range
) -> Generator[UInt8[np.ndarray, "h w 3"], None, None]:
    """The RGB images of these frames."""
    for image in _read(footage, frames, is_mask=False):
        yield image if image.ndim == 3 else image[..., None].repeat(3, axis=-1)


def read_masks(
    footage: Footage, frames: range
) -> Generator[Bool[np.ndarray, "h w"], None, None]:
    """The masks of these frames: true above half of the full range.

    Lossy compression blurs a mask, but the middle of its edge keeps its position.
    """
    for mask in _read(footage, frames, is_mask=True):
        yield (mask if mask.ndim == 2 else mask.max(axis=-1)) > 127


def read_together(
    streams: list[Generator[_Item, None, None]],
) -> Iterator[tuple[_Item, ...]]:
    """One item of every stream at a time; closes all streams at the end."""
    with contextlib.ExitStack() as stack:
        for stream in streams:
            stack.enter_context(contextlib.closing(stream))
        yield from zip(*streams, strict=True)


def _common_times(
    images: list[Footage],
    masks: list[Footage],
    fps: float | None,
    progress: Callable[[str], None],
) -> Float[np.ndarray, "n"]:
    """Seconds of the frames that all files have."""
    all_footage = (*images, *masks)
    shortest = min(all_footage, key=lambda footage: footage.count)
    longest = max(all_footage, key=lambda footage: footage.count)
    count = shortest.count
    if count < longest.count:
        difference = (
            f"{shortest.label} has {count} frames, {longest.label} {longest.count}"
        )
        are_videos = all(footage.times is not None for footage in all_footage)
        allowed = max(2, _MAX_LENGTH_DIFFERENCE * longest.count) if are_videos else 0
        if longest.count - count > allowed:
            raise DataError(
                f"{difference}; frames with the same number must show the same time"
            )
        progress(f"{difference}: the last frames are not used")
    clocks = [footage.times for footage in images if footage.times is not None]
    if bool(clocks) == bool(fps):
        raise ValueError(
            "videos have timestamps; remove --fps"
            if clocks
            else "image files have no timestamps; give the frames per second as --fps"
        )
    if fps:
        return np.arange(count) / fps
    times = clocks[0][:count]
    drift = max(np.abs(clock[:count] - times).max() for clock in clocks)
    if count > 1 and drift > 0.5 * times[-1] / (count - 1):
        progress(
            f"the timestamps of the cameras differ by up to {drift:.3g} s; frames with "
            "the same number are treated as simultaneous"
        )
    return times


def _number_order(path: Path) -> list[tuple[bool, int, str]]:
    """Sort key that puts frame_2 before frame_10."""
    words = re.findall(r"\d+|\D+", path.name)
    return [(w.isdecimal(), int(w) if w.isdecimal() else 0, w) for w in words]


def _read(
    footage: Footage, frames: range, is_mask: bool
) -> Iterator[UInt8[np.ndarray, "h w *c"]]:
    if footage.times is not None:
        with located(footage.label):
            path, size, count = footage.paths[0], footage.size, footage.count
            yield from read_video(path, frames, size, count, is_gray=is_mask)
        return
    modes = _MASK_MODES if is_mask else _IMAGE_MODES
    for frame in frames:
        path = footage.paths[frame]
        with located(f"{footage.label}, {path.name}"):
            image = decode_image(path, footage.size, modes)
        yield image
