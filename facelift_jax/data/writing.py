"""Sets of scenes on disk: whose folder it is, and whole files.

Every file appears under its name only when it is complete, and a scene's camera file
comes last: a scene without one is unfinished.
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
_PNG_LEVEL = 3  # of 9: a tenth larger files than 9 in a fraction of the time


def claim_folder(out: Path, asked: dict[str, Any], what: str) -> dict[str, Any]:
    """What the marker of a folder of ours says; {} where the folder is new.

    Raises:
      ValueError: it was made with something else than `asked`, or holds no `what`.
    """
    marker = out / MARKER
    if marker.exists():
        found = read_marker(marker)
        for key, value in asked.items():
            if found.get(key) != value:
                raise ValueError(
                    f"{marker}: made with {key} {found.get(key)!r}, asked for "
                    f"{value!r}; choose another folder, or remove this one"
                )
        return found
    started = MARKER + atomic.SUFFIX  # a marker that was never finished
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
    """A JSON object that we wrote."""
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
    """Writes a JSON file that is either whole or not there; floats keep every bit."""
    atomic.write_text(path, json.dumps(document, indent=1, allow_nan=False))


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Writes a PNG that is either whole or not there."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", compress_level=_PNG_LEVEL)
    atomic.write_bytes(path, buffer.getvalue())


def camera_entry(cameras: Cameras, view: int) -> dict[str, Any]:
    """A camera of [v] as a frame of `opencv_cameras.json` states it."""
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
