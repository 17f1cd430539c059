"""Writes scenes in the format that `facelift_jax.data.formats` reads."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from facelift_jax.data.formats import OPENCV_FILE
from facelift_jax.data.io import ScenePath, located, read_json
from facelift_jax.data.rodent.scene import RodentScene
from facelift_jax.data.writing import (
    camera_entry,
    image_path,
    write_image,
    write_json,
)
from facelift_jax.geometry.numerics import Array

_DEPTH_LEVELS = 2**16 - 1


def write_rodent_scene(folder: Path, scene: RodentScene) -> None:
    """Writes the images and depths of a scene and, last, its cameras."""
    for name in ("images", "depths"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    unit = depth_unit(scene.depths)
    frames = []
    for view, (rgba, depth) in enumerate(zip(scene.rgba, scene.depths, strict=True)):
        steps = np.rint(depth / unit).astype(np.uint16)
        write_image(folder / image_path(view), rgba)
        write_image(folder / depth_path(view), steps)
        frames.append(
            {
                "file_path": image_path(view),
                "depth_path": depth_path(view),
                "split": "input" if scene.is_input[view] else "novel",
                **camera_entry(scene.cameras, view),
            }
        )
    document = {
        "id": scene.name,
        "depth_unit": unit,
        "frames": frames,
        "rodent": scene.parameters,
    }
    write_json(folder / OPENCV_FILE, document)


def read_parameters(folder: ScenePath) -> dict[str, Any] | None:
    """The rodent parameters stored with a scene, or None if it has none.

    Raises:
      DataError: the camera file is not readable; one line that names it.
    """
    path = folder / OPENCV_FILE
    if not path.is_file():
        return None
    with located(str(path)):
        parameters = read_json(path).get("rodent")
    return parameters if isinstance(parameters, dict) else None


def depth_path(view: int) -> str:
    """Path of a view's depth image in the folder of its scene."""
    return f"depths/cam_{view:03d}.png"


def depth_unit(depths: Array) -> float:
    """World units per step of a 16-bit depth image; a power of two, so it is exact."""
    return 2.0 ** math.ceil(math.log2(max(float(depths.max()), 1.0) / _DEPTH_LEVELS))
