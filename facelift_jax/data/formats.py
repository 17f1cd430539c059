"""The two camera file formats, and the files a scene folder holds.

`opencv_cameras.json` (our format):

    {"frames": [{"file_path", "w", "h", "fx", "fy", "cx", "cy", "w2c",
                 "mask_path"?, "depth_path"?, "split"?: "input" | "novel"}],
     "depth_unit"?, "recording"?, "time"?, "part"?: "train" | "val" | "test"}

`w2c` is world to camera with OpenCV axes; lengths are in pixels and world units. A
frame's "split" is its role. For a scene from a recording, "recording" is its name,
"time" the seconds since its start, and "part" the part of the data set that the scene
belongs to. Files written by earlier versions store the part under "split".

`transforms.json` (NeRF): "frames" with "file_path" (the file extension may be missing),
"transform_matrix" (camera to world, OpenGL axes), "mask_path"?, "split"?. Intrinsics
are "camera_angle_x" in radians, or "fl_x", "fl_y", "cx", "cy", given once or per frame.
"w" and "h" default to the size of the image, "cx" and "cy" to its center.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from facelift_jax.data.io import (
    IMAGE_SUFFIXES,
    DataError,
    ScenePath,
    check_size,
    image_header,
    located,
    path_inside,
    read_json,
)
from facelift_jax.geometry.rigid import opengl_to_opencv_c2w
from facelift_jax.geometry.rotations import invert_rigid
from facelift_jax.structs import Cameras, check

OPENCV_FILE = "opencv_cameras.json"
NERF_FILE = "transforms.json"
CAMERA_FILES = (OPENCV_FILE, NERF_FILE)
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_PINHOLE_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV")
# keeps camera values finite in float32, and their squares finite in float64
MAX_NUMBER = 1e30
FRAME_ROLES = ("input", "novel")
PARTS = ("train", "val", "test")  # of a data set


class Frame(NamedTuple):
    """One view: its files, its camera (OpenCV axes, pixels, float64) and its role."""

    image: ScenePath
    mask: ScenePath | None
    depth: ScenePath | None
    width: int
    height: int
    K: np.ndarray
    viewmat: np.ndarray
    role: str | None


class Origin(NamedTuple):
    """The recording of a scene, its time in seconds, and its part of the data set."""

    recording: str = ""
    time: float | None = None
    part: str | None = None


NO_ORIGIN = Origin()


class SceneFormat(NamedTuple):
    """A checked camera file: frames, world units per depth step, origin."""

    frames: tuple[Frame, ...]
    depth_unit: float | None
    origin: Origin


def camera_file(folder: ScenePath) -> ScenePath:
    """The one camera file of a scene folder."""
    paths = [folder / name for name in CAMERA_FILES if (folder / name).is_file()]
    if len(paths) != 1:
        how_many = "neither" if not paths else "both"
        raise DataError(
            f"{folder}: contains {how_many} of {' and '.join(CAMERA_FILES)}; a scene "
            "needs exactly one camera file"
        )
    return paths[0]


def read_scene_format(folder: ScenePath, name: str) -> SceneFormat:
    """Reads and checks a scene's camera file and image headers; decodes no image.

    Raises:
      DataError: the first error; one line with scene, view and path.
    """
    path = camera_file(folder)
    parse = opencv_frame if path.name == OPENCV_FILE else _nerf_frame
    with located(f"scene {name} ({path})"):
        document = read_json(path)
        raw_frames = document.get("frames")
        if not isinstance(raw_frames, list) or not raw_frames:
            raise DataError('"frames" must be a list of at least one frame')
    frames = []
    for view, raw in enumerate(raw_frames):
        with located(f"scene {name}, view {view} ({path})"):
            if not isinstance(raw, dict):
                raise DataError(f"a frame must be an object, found {_shown(raw)}")
            frame = parse(document, raw, folder)
            check_camera(frame.viewmat, frame.K, (frame.width, frame.height))
            _refuse_distortion(document | raw)
            _check_role(frame)
        with located(f"scene {name}, view {view} ({frame.image})"):
            _check_image(frame)
        frames.append(frame)
    with located(f"scene {name} ({path})"):
        _check_consistency(frames)
        depth_unit = _depth_unit(document, frames)
        origin = _origin(document)
    with located(f"scene {name} ({folder})"):
        _refuse_extra_images(frames)
    return SceneFormat(tuple(frames), depth_unit, origin)


def _check_image(frame: Frame) -> None:
    header = image_header(frame.image)
    check_size(header, (frame.width, frame.height))
    if header.mode not in ("RGB", "RGBA"):
        raise DataError(f"image of Pillow mode {header.mode}, expected RGB or RGBA")
    if header.mode == "RGB" and frame.mask is None:
        raise DataError(
            'RGB image without a "mask_path": add one, or store RGBA, so that the '
            "pixels of the object are known"
        )
    if header.mode == "RGBA" and frame.mask is not None:
        raise DataError(
            'the image has an alpha channel and a "mask_path"; the mask must come from '
            "exactly one of them"
        )


def check_camera(
    viewmat: np.ndarray, K: np.ndarray, size: tuple[int, int] | None
) -> None:
    """Raises for a pose or intrinsics that are invalid for images of `size` pixels.

    `viewmat` [4 4] is world to camera, `K` [3 3] in pixels; `size` (width, height) may
    be unknown.
    """
    width, height = size or (1, 1)
    try:
        check(Cameras(viewmat, K, width, height))
    except ValueError as error:
        reason = str(error).replace("Cameras.viewmats[0]", "w2c")
        raise DataError(reason.replace("Cameras.Ks[0]", "K")) from error
    cx, cy = K[0, 2], K[1, 2]
    if size and not (0 <= cx <= width and 0 <= cy <= height):
        raise DataError(
            f"principal point ({cx:.1f}, {cy:.1f}) is outside an image of {width} "
            f"x {height} px: were the images resized without their cameras?"
        )


def _check_role(frame: Frame) -> None:
    if frame.role not in (None, *FRAME_ROLES):
        raise DataError(
            f'"split" must be one of {FRAME_ROLES}, found {_shown(frame.role)}'
        )


def _check_consistency(frames: list[Frame]) -> None:
    seen: dict[object, int] = {}
    for view, frame in enumerate(frames):
        if (frame.width, frame.height) != (frames[0].width, frames[0].height):
            raise DataError(
                f"view {view} is {frame.width} x {frame.height} px, view 0 is "
                f"{frames[0].width} x {frames[0].height}; all images of a scene need "
                "the same size"
            )
        pose = (frame.viewmat.tobytes(), frame.K.tobytes())
        for what, key in (("image", frame.image.resolve()), ("camera", pose)):
            first = seen.setdefault(key, view)
            if first != view:
                raise DataError(
                    f"duplicate frames: views {first} and {view} have the same {what}"
                )
    num_roles = sum(frame.role is not None for frame in frames)
    if num_roles not in (0, len(frames)):
        raise DataError(
            f'"split" given for {num_roles} of {len(frames)} frames; give all or none'
        )


def _depth_unit(document: dict, frames: list[Frame]) -> float | None:
    num_depths = sum(frame.depth is not None for frame in frames)
    if num_depths == 0:
        return None
    if num_depths < len(frames):
        raise DataError(
            f'"depth_path" given for {num_depths} of {len(frames)} frames; give all or '
            "none"
        )
    unit = _number(document, "depth_unit")
    if unit <= 0:
        raise DataError(f'"depth_unit" must be positive world units, found {unit}')
    return unit


def _origin(document: dict) -> Origin:
    recording = document.get("recording", "")
    key = "part" if "part" in document else "split"  # the key of earlier versions
    part = document.get(key)
    time = None if document.get("time") is None else _number(document, "time")
    if not isinstance(recording, str):
        raise DataError(f'"recording" must be a name, found {_shown(recording)}')
    if part not in (None, *PARTS):
        raise DataError(f'"{key}" must be one of {PARTS}, found {_shown(part)}')
    return Origin(recording, time, part)


def _refuse_extra_images(frames: list[Frame]) -> None:
    used = {p.resolve() for f in frames for p in (f.image, f.mask, f.depth) if p}
    for folder in sorted({frame.image.parent for frame in frames}):
        extra = sorted(
            path.name
            for path in folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and path.resolve() not in used
        )
        if extra:
            raise DataError(
                f"{len(extra)} images in {folder.name} have no camera (first: "
                f"{extra[0]!r}); remove them or add their cameras"
            )


def opencv_frame(document: dict, raw: dict, folder: ScenePath) -> Frame:
    """A frame of `opencv_cameras.json`; its camera is not checked yet."""
    del document  # every value is in the frame
    return Frame(
        image=path_inside(folder, raw.get("file_path")),
        mask=_optional_path(folder, raw, "mask_path"),
        depth=_optional_path(folder, raw, "depth_path"),
        width=_size(raw, "w"),
        height=_size(raw, "h"),
        K=_intrinsics(*(_number(raw, key) for key in ("fx", "fy", "cx", "cy"))),
        viewmat=_matrix(raw, "w2c"),
        role=raw.get("split"),
    )


def _nerf_frame(document: dict, raw: dict, folder: ScenePath) -> Frame:
    values = document | raw
    image = _image_with_suffix(folder, raw.get("file_path"))
    if "w" in values:
        width, height = _size(values, "w"), _size(values, "h")
    else:
        with located(str(image)):
            width, height, _ = image_header(image)
    if "fl_x" in values:
        fx = _number(values, "fl_x")
    else:
        fx = _focal(_number(values, "camera_angle_x"), width)
    fy = _number(values, "fl_y") if "fl_y" in values else fx
    cx = _number(values, "cx") if "cx" in values else 0.5 * width
    cy = _number(values, "cy") if "cy" in values else 0.5 * height
    c2w = opengl_to_opencv_c2w(_matrix(raw, "transform_matrix"))
    return Frame(
        image=image,
        mask=_optional_path(folder, raw, "mask_path"),
        depth=None,
        width=width,
        height=height,
        K=_intrinsics(fx, fy, cx, cy),
        viewmat=np.asarray(invert_rigid(c2w)),
        role=raw.get("split"),
    )


def _refuse_distortion(values: dict) -> None:
    model = values.get("camera_model", "PINHOLE")
    nonzero = [key for key in _DISTORTION if values.get(key, 0) != 0]
    if model not in _PINHOLE_MODELS or nonzero:
        what = f"{nonzero[0]} is not 0" if nonzero else f"camera_model {_shown(model)}"
        raise DataError(
            f"lens distortion ({what}); undistort the images first, as "
            "facelift_jax.prepare does"
        )


def _image_with_suffix(folder: ScenePath, file_path: Any) -> ScenePath:
    """The image of a NeRF-style `file_path`, whose extension may be missing."""
    path = path_inside(folder, file_path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return path
    paths = [path_inside(folder, file_path + suffix) for suffix in IMAGE_SUFFIXES]
    return next((path for path in paths if path.is_file()), paths[0])


def _optional_path(folder: ScenePath, raw: dict, key: str) -> ScenePath | None:
    return path_inside(folder, raw[key], key) if raw.get(key) is not None else None


def _number(values: dict, key: str) -> float:
    value = values.get(key)
    is_bool = isinstance(value, bool)  # bool is a subclass of int
    if isinstance(value, int | float) and not is_bool and abs(value) < MAX_NUMBER:
        return float(value)
    raise DataError(f'"{key}" must be a finite number, found {_shown(value)}')


def _shown(value: Any) -> str:
    """A short description of any JSON value, for error messages."""
    if isinstance(value, str | int | float):
        return repr(value)[:40]
    return "nothing" if value is None else f"a {type(value).__name__}"


def _size(values: dict, key: str) -> int:
    value = _number(values, key)
    if value != int(value) or value < 1:
        raise DataError(f'"{key}" must be a whole number of pixels, found {value}')
    return int(value)


def _focal(angle: float, width: int) -> float:
    if not 0 < angle < math.pi:
        raise DataError(f'"camera_angle_x" must be in (0, pi) radians, found {angle}')
    return 0.5 * width / math.tan(0.5 * angle)


def _intrinsics(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _matrix(values: dict, key: str) -> np.ndarray:
    try:
        matrix = np.array(values.get(key), np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f'"{key}" must be a 4 x 4 matrix of numbers') from error
    if matrix.shape != (4, 4):
        raise DataError(f'"{key}" must be a 4 x 4 matrix, found shape {matrix.shape}')
    is_valid = np.abs(matrix) < MAX_NUMBER  # False for NaN
    if not is_valid.all():
        value = float(matrix[~is_valid][0])
        raise DataError(f'"{key}" must contain finite numbers, found {_shown(value)}')
    return matrix
