"""Reads JSON and image files from untrusted sources, with every value checked.

All functions raise `DataError`, whose message is one printable line.
"""

import contextlib
import dataclasses
import io
import json
import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Shaped
from PIL import ExifTags, Image

MAX_JSON_BYTES = 32 * 2**20  # 100,000 frames take about 60 MB; a scene has hundreds
MAX_PIXELS = 64 * 10**6
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_FORMATS = ("PNG", "JPEG")  # the only decoders Pillow may use

# Process-wide, because a warning filter around each call is not thread-safe.
warnings.simplefilter("error", Image.DecompressionBombWarning)
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,  # raised by Pillow for a PNG with broken chunks
    ValueError,
    EOFError,
    Image.DecompressionBombWarning,
    Image.DecompressionBombError,
)


class DataError(ValueError):
    """An error in the data: what was found, where, and what to change; one line."""

    def __init__(self, message: str):
        super().__init__(printable(" ".join(message.split())))


def printable(text: str) -> str:
    """The text with every non-printable character replaced by a question mark."""
    return "".join(c if c.isprintable() else "?" for c in text)


class ImageHeader(NamedTuple):
    """Size in pixels and Pillow mode of an image file, read without decoding it."""

    width: int
    height: int
    mode: str


@dataclasses.dataclass(frozen=True, order=True)
class PackedPath:
    """A file or folder of a scene held in memory; has the methods of `Path` used here.

    Attributes:
      root: the path of the scene, for messages.
      inner: the path relative to the scene's folder.
      files: the contents of all files of the scene.
    """

    root: Path
    inner: PurePosixPath
    files: Mapping[PurePosixPath, bytes] = dataclasses.field(compare=False, repr=False)

    def __truediv__(self, name: str) -> "PackedPath":
        return dataclasses.replace(self, inner=self.inner / name)

    def __str__(self) -> str:
        return str(self.root / self.inner)

    @property
    def name(self) -> str:
        """The last component."""
        return self.inner.name

    @property
    def suffix(self) -> str:
        """The file extension, with its dot."""
        return self.inner.suffix

    @property
    def parent(self) -> "PackedPath":
        """The containing folder."""
        return dataclasses.replace(self, inner=self.inner.parent)

    def resolve(self) -> "PackedPath":
        """The path itself: a packed scene has no links."""
        return self

    def is_file(self) -> bool:
        """Whether the scene has this file."""
        return self.inner in self.files

    def iterdir(self) -> Iterator["PackedPath"]:
        """The files directly in this folder."""
        inside = (file for file in self.files if file.parent == self.inner)
        return (dataclasses.replace(self, inner=file) for file in inside)

    def open(self, mode: str) -> io.BytesIO:
        """The file as a stream; `mode` must be "rb"."""
        assert mode == "rb"
        return io.BytesIO(self.files[self.inner])

    def read_bytes(self) -> bytes:
        """The contents of the file."""
        return self.files[self.inner]


ScenePath = Path | PackedPath  # a scene's folder, or a file in it
AnyPath = TypeVar("AnyPath", bound=ScenePath)
_File = io.BufferedReader | io.BytesIO


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Prefixes the message of a `DataError` raised inside with `where`."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}") from error.__cause__


def read_json(path: ScenePath, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file of at most `max_bytes`; NaN and Infinity are errors."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size > max_bytes:
                raise DataError(
                    f"the JSON file has {size / 2**20:.0f} MB; at most "
                    f"{max_bytes >> 20} MB are allowed"
                )
            file.seek(0)
            text = file.read().decode("utf-8")
        document = json.loads(text, parse_constant=_refuse_constant)
    except DataError:
        raise
    except RecursionError as error:
        raise DataError("not a readable JSON file (nested too deeply)") from error
    except (OSError, ValueError) as error:
        raise DataError(f"not a readable JSON file ({error})") from error
    if not isinstance(document, dict):
        raise DataError(f"expected a JSON object, found a {type(document).__name__}")
    return document


def _refuse_constant(word: str) -> float:
    raise DataError(f"contains {word}; every number must be finite")


def path_inside(folder: AnyPath, file_path: Any, key: str = "file_path") -> AnyPath:
    """`folder / file_path`; the path must be relative and stay inside the folder."""
    if not isinstance(file_path, str) or not 0 < len(file_path) < 1024:
        raise DataError(f'"{key}" must be a path of 1 to 1023 characters')
    if "\0" in file_path or Path(file_path).is_absolute():
        raise DataError(f'"{key}" {file_path!r} must be relative to the scene folder')
    if ".." in Path(file_path).parts:
        raise DataError(f'"{key}" {file_path!r} contains "..", which is not allowed')
    path: AnyPath = folder / file_path  # type: ignore[assignment]
    if isinstance(path, PackedPath):
        return path
    real, root = os.path.realpath(str(path)), os.path.realpath(str(folder))
    if os.path.commonpath((real, root)) != root:
        raise DataError(
            f'"{key}" {file_path!r} leaves the scene folder through a symbolic link'
        )
    return path


def image_header(path: ScenePath) -> ImageHeader:
    """Size and mode of an image of at most 64 megapixels, without decoding it."""
    with _open_image(path) as image:
        return ImageHeader(*image.size, image.mode)


def check_size(header: ImageHeader, size: tuple[int, int]) -> None:
    """Raises if an image does not have its camera's `size` (width, height)."""
    if (header.width, header.height) != size:
        raise DataError(
            f"the image is {header.width} x {header.height} px, but its camera is for "
            f"{size[0]} x {size[1]} px; scale the intrinsics with the images"
        )


def decode_image(
    path: ScenePath, size: tuple[int, int], modes: tuple[str, ...]
) -> Shaped[np.ndarray, "h w *c"]:
    """The pixels of an image of `size` (width, height) in one of Pillow's `modes`.

    [h w] for gray images, [h w c] for color; the stored values in their integer type.
    """
    with _open_image(path) as image:
        check_size(ImageHeader(*image.size, image.mode), size)
        if image.mode not in modes:
            raise DataError(
                f"image of Pillow mode {image.mode}, expected {' or '.join(modes)}"
            )
        try:
            pixels = image.convert("L") if image.mode == "1" else image
            return np.array(pixels)
        except _PILLOW_ERRORS as error:
            raise DataError(f"truncated or damaged image ({error})") from error


@contextlib.contextmanager
def _open_image(path: ScenePath) -> Iterator[Image.Image]:
    with _open_file(path) as file, _decoder(file) as image:
        if image.width * image.height > MAX_PIXELS:
            raise DataError(
                f"the header says {image.width} x {image.height} px; at most "
                f"{MAX_PIXELS // 10**6} megapixels are allowed"
            )
        _refuse_orientation(image)
        yield image


def _refuse_orientation(image: Image.Image) -> None:
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except (*_PILLOW_ERRORS, struct.error) as error:
        raise DataError(f"damaged EXIF data ({error})") from error
    if orientation not in (0, 1):  # unknown, upright
        raise DataError(
            f"EXIF orientation {orientation!r}: viewers rotate the image, but the "
            "camera belongs to the stored pixels; remove the EXIF orientation"
        )


def _open_file(path: ScenePath) -> _File:
    is_on_disk = isinstance(path, Path)
    # opening a pipe would block forever
    if not (os.path.isfile(path) if is_on_disk else path.is_file()):
        exists = is_on_disk and os.path.lexists(path)
        what = "not a file" if exists else "the image file does not exist"
        raise DataError(f"{what}; every camera needs its own image")
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"the image cannot be read ({error.strerror})") from error


def _decoder(file: _File) -> Image.Image:
    try:
        return Image.open(file, formats=_FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"the header says more than the {MAX_PIXELS // 10**6} megapixels allowed"
        ) from error
    except _PILLOW_ERRORS as error:
        reason = str(error).replace(repr(file), "it")
        raise DataError(f"not a readable PNG or JPEG file ({reason})") from error
