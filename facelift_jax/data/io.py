"""Camera JSON and pictures nobody vouches for, checked before they are used.

Every function raises `DataError`, whose message is one printable line.
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
_FORMATS = ("PNG", "JPEG")  # the two decoders whose input we are ready to meet

# Pillow's documented switch. A filter set around each call would not be thread-safe.
warnings.simplefilter("error", Image.DecompressionBombWarning)
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,  # Pillow's word for a PNG with broken chunks
    ValueError,
    EOFError,
    Image.DecompressionBombWarning,
    Image.DecompressionBombError,
)


class DataError(ValueError):
    """What is wrong with the data, where, and what to change, in one line."""

    def __init__(self, message: str):
        super().__init__(printable(" ".join(message.split())))


def printable(text: str) -> str:
    """The text with what a terminal might obey shown as question marks."""
    return "".join(c if c.isprintable() else "?" for c in text)


class ImageHeader(NamedTuple):
    """What a picture file says about itself before it is decoded; pixels."""

    width: int
    height: int
    mode: str


@dataclasses.dataclass(frozen=True, order=True)
class PackedPath:
    """A file or folder of a scene that came whole into memory, used as a `Path` is.

    Attributes:
      root: where the scene came from, for messages.
      inner: the place in the scene's folder.
      files: the content of each of its files.
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
        """The last part."""
        return self.inner.name

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return self.inner.suffix

    @property
    def parent(self) -> "PackedPath":
        """The folder."""
        return dataclasses.replace(self, inner=self.inner.parent)

    def resolve(self) -> "PackedPath":
        """Itself: a packed scene holds no links."""
        return self

    def is_file(self) -> bool:
        """Whether the scene holds this file."""
        return self.inner in self.files

    def iterdir(self) -> Iterator["PackedPath"]:
        """The files of this folder."""
        inside = (file for file in self.files if file.parent == self.inner)
        return (dataclasses.replace(self, inner=file) for file in inside)

    def open(self, mode: str) -> io.BytesIO:
        """The file's bytes; `mode` is "rb"."""
        assert mode == "rb"
        return io.BytesIO(self.files[self.inner])

    def read_bytes(self) -> bytes:
        """All of the file."""
        return self.files[self.inner]


ScenePath = Path | PackedPath  # of a scene's folder or of a file in it
AnyPath = TypeVar("AnyPath", bound=ScenePath)
_File = io.BufferedReader | io.BytesIO


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Puts `where` in front of the message of a `DataError` raised inside."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}") from error.__cause__


def read_json(path: ScenePath, most_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file of bounded size without NaN or Infinity."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size > most_bytes:
                raise DataError(
                    f"{size / 2**20:.0f} MB of JSON, more than the {most_bytes >> 20} "
                    "MB such a file may have"
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
    raise DataError(f"holds {word}; every number must be finite")


def path_inside(folder: AnyPath, file_path: Any, key: str = "file_path") -> AnyPath:
    """`folder / file_path`, if that is a relative path which stays in the folder."""
    if not isinstance(file_path, str) or not 0 < len(file_path) < 1024:
        raise DataError(f'"{key}" must be a path of 1 to 1023 characters')
    if "\0" in file_path or Path(file_path).is_absolute():
        raise DataError(f'"{key}" {file_path!r} must be relative to the scene folder')
    if ".." in Path(file_path).parts:
        raise DataError(f'"{key}" {file_path!r} holds "..", which is not allowed')
    path: AnyPath = folder / file_path  # type: ignore[assignment]
    if isinstance(path, PackedPath):
        return path
    real, root = os.path.realpath(str(path)), os.path.realpath(str(folder))
    if os.path.commonpath((real, root)) != root:
        raise DataError(f'"{key}" {file_path!r} leaves the scene folder through a link')
    return path


def image_header(path: ScenePath) -> ImageHeader:
    """Size and mode of a picture, without decoding it; at most 64 megapixels."""
    with _open_picture(path) as picture:
        return ImageHeader(*picture.size, picture.mode)


def check_size(header: ImageHeader, size: tuple[int, int]) -> None:
    """Refuses a picture that is not of its camera's `size` (width, height)."""
    if (header.width, header.height) != size:
        raise DataError(
            f"the picture is {header.width} x {header.height} px, but its camera was "
            f"made for {size[0]} x {size[1]}; resize Ks with the pictures"
        )


def decode_image(
    path: ScenePath, size: tuple[int, int], modes: tuple[str, ...]
) -> Shaped[np.ndarray, "h w *c"]:
    """The pixels of a picture of `size` (width, height) in one of Pillow's `modes`.

    [h w] for grey pictures, [h w c] for colour; the stored values and integer type.
    """
    with _open_picture(path) as picture:
        check_size(ImageHeader(*picture.size, picture.mode), size)
        if picture.mode not in modes:
            raise DataError(
                f"picture of Pillow mode {picture.mode}, expected {' or '.join(modes)}"
            )
        try:
            grey = picture.convert("L") if picture.mode == "1" else picture
            return np.array(grey)
        except _PILLOW_ERRORS as error:
            raise DataError(f"truncated or damaged picture ({error})") from error


@contextlib.contextmanager
def _open_picture(path: ScenePath) -> Iterator[Image.Image]:
    with _open_file(path) as file, _decoder(file) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise DataError(
                f"the header promises {picture.width} x {picture.height} px, more than "
                f"{MAX_PIXELS // 10**6} megapixels"
            )
        _refuse_orientation(picture)
        yield picture


def _refuse_orientation(picture: Image.Image) -> None:
    exif = Image.Exif()
    try:
        exif.load(picture.info.get("exif", b""))
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except (*_PILLOW_ERRORS, struct.error) as error:
        raise DataError(f"damaged EXIF data ({error})") from error
    if orientation not in (0, 1):  # not known, upright
        raise DataError(
            f"EXIF orientation {orientation!r}: viewers turn what is stored, to which "
            "the calibration belongs; remove the orientation"
        )


def _open_file(path: ScenePath) -> _File:
    is_disk = isinstance(path, Path)
    # a pipe would block for ever
    if not (os.path.isfile(path) if is_disk else path.is_file()):
        is_there = is_disk and os.path.lexists(path)
        what = "not a file" if is_there else "there is no such picture"
        raise DataError(f"{what}; each camera needs its own")
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"not a readable picture ({error.strerror})") from error


def _decoder(file: _File) -> Image.Image:
    try:
        return Image.open(file, formats=_FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"the header promises more than {MAX_PIXELS // 10**6} megapixels"
        ) from error
    except _PILLOW_ERRORS as error:
        reason = str(error).replace(repr(file), "it")
        raise DataError(f"not a readable PNG or JPEG ({reason})") from error
