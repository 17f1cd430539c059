"""Camera JSON and pictures nobody vouches for, checked before they are used.

Every function raises `DataError`, whose message is one printable line.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped
from PIL import Image

MAX_JSON_BYTES = 32 * 2**20  # 100,000 frames take about 60 MB; a scene has hundreds
MAX_PIXELS = 64 * 10**6
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
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


class PictureHeader(NamedTuple):
    """What a picture file says about itself before it is decoded; pixels."""

    width: int
    height: int
    mode: str


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Puts `where` in front of the message of a `DataError` raised inside."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}") from error.__cause__


def read_json(path: Path, most_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file of bounded size without NaN or Infinity."""
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise DataError(
                f"{size / 2**20:.0f} MB of JSON, more than the {most_bytes >> 20} MB "
                "such a file may have"
            )
        text = path.read_bytes().decode("utf-8")
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


def path_inside(folder: Path, file_path: Any, key: str = "file_path") -> Path:
    """`folder / file_path`, if that is a relative path which stays in the folder."""
    if not isinstance(file_path, str) or not 0 < len(file_path) < 1024:
        raise DataError(f'"{key}" must be a path of 1 to 1023 characters')
    if "\0" in file_path or Path(file_path).is_absolute():
        raise DataError(f'"{key}" {file_path!r} must be relative to the scene folder')
    if ".." in Path(file_path).parts:
        raise DataError(f'"{key}" {file_path!r} holds "..", which is not allowed')
    path = folder / file_path
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath((real, root)) != root:
        raise DataError(f'"{key}" {file_path!r} leaves the scene folder through a link')
    return path


def picture_header(path: Path) -> PictureHeader:
    """Size and mode of a picture, without decoding it; at most 64 megapixels."""
    with _open_picture(path) as picture:
        return PictureHeader(*picture.size, picture.mode)


def check_size(header: PictureHeader, size: tuple[int, int]) -> None:
    """Refuses a picture that is not of its camera's `size` (width, height)."""
    if (header.width, header.height) != size:
        raise DataError(
            f"the picture is {header.width} x {header.height} px, but its camera was "
            f"made for {size[0]} x {size[1]}; resize Ks with the pictures"
        )


def decode_picture(
    path: Path, size: tuple[int, int], modes: tuple[str, ...]
) -> Shaped[np.ndarray, "h w *c"]:
    """The pixels of a picture of `size` (width, height) in one of Pillow's `modes`.

    [h w] for grey pictures, [h w c] for colour; the stored values and integer type.
    """
    with _open_picture(path) as picture:
        check_size(PictureHeader(*picture.size, picture.mode), size)
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
def _open_picture(path: Path) -> Iterator[Image.Image]:
    if not os.path.isfile(path):  # a pipe would block for ever
        what = "not a file" if os.path.lexists(path) else "there is no such picture"
        raise DataError(f"{what}; each camera needs its own")
    try:
        picture = Image.open(path, formats=_FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"the header promises more than {MAX_PIXELS // 10**6} megapixels"
        ) from error
    except _PILLOW_ERRORS as error:
        reason = str(error).replace(repr(str(path)), "it")
        raise DataError(f"not a readable PNG or JPEG ({reason})") from error
    with picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise DataError(
                f"the header promises {picture.width} x {picture.height} px, more than "
                f"{MAX_PIXELS // 10**6} megapixels"
            )
        yield picture
