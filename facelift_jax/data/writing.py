"""Writes data sets: marks their folders, and writes files that are always complete.

A file appears under its name when it is complete. The camera file of a scene is written
last: a scene without it is unfinished.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from facelift_jax.io import atomic
from facelift_jax.structs import Cameras

MARKER = "dataset.json"
_PNG_LEVEL = 3  # of 9: files 10 % larger than with 9, written much faster


def claim_folder(out: Path, settings: dict[str, Any], what: str) -> dict[str, Any]:
    """The contents of the folder's marker file; {} if the folder is new.

    `what` names the expected kind of folder in error messages.

    Raises:
      ValueError: the folder was made with other `settings`, or is not `what`.
    """
    marker = out / MARKER
    if marker.exists():
        stored = read_marker(marker)
        for key, value in settings.items():
            if stored.get(key) != value:
                raise ValueError(
                    f"{marker}: made with {key} {stored.get(key)!r}, not {value!r}; "
                    "choose another folder, or remove this one"
                )
        return stored
    started = MARKER + atomic.SUFFIX  # left by a run that was killed
    if out.exists() and (
        not out.is_dir() or any(path.name != started for path in out.iterdir())
    ):
        raise ValueError(
            f"{out}: exists and is not {what} (it has no {MARKER}); choose another "
            "folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    return {}


def read_marker(path: Path) -> dict[str, Any]:
    """The object in a JSON file that was written by `write_json`.

    Raises:
      ValueError: the file is not a JSON object.
    """
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path}: not readable as JSON ({error}); remove it"
        ) from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected a JSON object; remove the file")
    return document


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes a JSON file, complete or not at all; floats are exact."""
    atomic.write_text(path, json.dumps(document, indent=1, allow_nan=False))


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Writes pixels [h w] or [h w c] as a PNG file, complete or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", compress_level=_PNG_LEVEL)
    atomic.write_bytes(path, buffer.getvalue())


def camera_entry(cameras: Cameras, view: int) -> dict[str, Any]:
    """The camera fields of a frame of `opencv_cameras.json`, for one of cameras [v]."""
    viewmat, K = np.asarray(cameras.viewmats[view]), np.asarray(cameras.Ks[view])
    return {
        "w": cameras.width,
        "h": cameras.height,
        "fx": float(K[0, 0]),
        "fy": float(K[1, 1]),
        "cx": float(K[0, 2]),
        "cy": float(K[1, 2]),
        "w2c": viewmat.tolist(),
    }


def image_path(view: int) -> str:
    """Path of a view's image in the folder of its scene."""
    return f"images/cam_{view:03d}.png"
