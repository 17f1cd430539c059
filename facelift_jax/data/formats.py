"""The two camera files we read, and what a scene folder must hold beside them.

`opencv_cameras.json` (ours): {"depth_unit"?, "frames": [{"file_path", "w", "h", "fx",
"fy", "cx", "cy", "w2c", "mask_path"?, "depth_path"?, "split"?: "input" | "novel"}]};
w2c is world to camera with OpenCV axes, lengths are pixels and world units. Beside the
frames, "recording"? (a name), "time"? (seconds in it) and "split"? ("train" | "val" |
"test") say where a scene of a video belongs.

`transforms.json` (NeRF): "frames" of "file_path" (with or without its ending),
"transform_matrix" (camera to world, OpenGL axes), "mask_path"?, "split"?; the camera is
"camera_angle_x" in radians, or "fl_x", "fl_y", "cx", "cy", given once or in each frame;
without "w", "h" the picture's size, without "cx", "cy" its centre.
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
# what a camera holds stays finite in float32, its squares in float64
MAX_NUMBER = 1e30
_SPLITS = ("input", "novel")
PARTS = ("train", "val", "test")  # of a set


class Frame(NamedTuple):
    """One view: its files, its camera (OpenCV axes, pixels, float64) and its split."""

    picture: ScenePath
    mask: ScenePath | None
    depth: ScenePath | None
    width: int
    height: int
    K: np.ndarray
    viewmat: np.ndarray
    split: str | None


class Origin(NamedTuple):
    """The recording a scene is from, its time in it in seconds, its part of the set."""

    recording: str = ""
    time: float | None = None
    part: str | None = None


NO_ORIGIN = Origin()


class Layout(NamedTuple):
    """A checked scene folder: frames, world units per stored depth step, origin."""

    frames: tuple[Frame, ...]
    depth_unit: float | None
    origin: Origin


def camera_file(folder: ScenePath) -> ScenePath:
    """The one camera file of a scene folder."""
    found = [folder / name for name in CAMERA_FILES if (folder / name).is_file()]
    if len(found) != 1:
        what = "neither" if not found else "both"
        raise DataError(
            f"{folder}: holds {what} of {' and '.join(CAMERA_FILES)}; a scene has "
            "exactly one camera file"
        )
    return found[0]


def read_layout(folder: ScenePath, name: str) -> Layout:
    """Reads and checks a scene's camera file and picture headers; decodes nothing."""
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
            _check_split(frame)
        with located(f"scene {name}, view {view} ({frame.picture})"):
            _check_picture(frame)
        frames.append(frame)
    with located(f"scene {name} ({path})"):
        _check_together(frames)
        depth_unit = _depth_unit(document, frames)
        origin = _origin(document)
    with located(f"scene {name} ({folder})"):
        _refuse_extra_pictures(frames)
    return Layout(tuple(frames), depth_unit, origin)


def _check_picture(frame: Frame) -> None:
    header = image_header(frame.picture)
    check_size(header, (frame.width, frame.height))
    if header.mode not in ("RGB", "RGBA"):
        raise DataError(f"picture of Pillow mode {header.mode}, expected RGB or RGBA")
    if header.mode == "RGB" and frame.mask is None:
        raise DataError(
            'RGB without an alpha channel and without a "mask_path": nothing says '
            "which pixels show the object"
        )
    if header.mode == "RGBA" and frame.mask is not None:
        raise DataError(
            'an alpha channel and a "mask_path": the silhouette must come from exactly '
            "one of them"
        )


def check_camera(
    viewmat: np.ndarray, K: np.ndarray, size: tuple[int, int] | None
) -> None:
    """Refuses a pose or intrinsics that no picture of `size` (where known) can have."""
    width, height = size or (1, 1)
    try:
        check(Cameras(viewmat, K, width, height))
    except ValueError as error:
        reason = str(error).replace("Cameras.viewmats[0]", "w2c")
        raise DataError(reason.replace("Cameras.Ks[0]", "K")) from error
    cx, cy = K[0, 2], K[1, 2]
    if size and not (0 <= cx <= width and 0 <= cy <= height):
        raise DataError(
            f"principal point ({cx:.1f}, {cy:.1f}) outside a picture of {width} "
            f"x {height} px: were the pictures resized without their cameras?"
        )


def _check_split(frame: Frame) -> None:
    if frame.split not in (None, *_SPLITS):
        raise DataError(
            f'"split" must be one of {_SPLITS}, found {_shown(frame.split)}'
        )


def _check_together(frames: list[Frame]) -> None:
    seen: dict[object, int] = {}
    for view, frame in enumerate(frames):
        if (frame.width, frame.height) != (frames[0].width, frames[0].height):
            raise DataError(
                f"view {view} is {frame.width} x {frame.height} px, view 0 is "
                f"{frames[0].width} x {frames[0].height}; a scene has one picture size"
            )
        pose = (frame.viewmat.tobytes(), frame.K.tobytes())
        for what, key in (("picture", frame.picture.resolve()), ("camera", pose)):
            first = seen.setdefault(key, view)
            if first != view:
                raise DataError(
                    f"duplicate frames: views {first} and {view} name the same {what}"
                )
    num_split = sum(frame.split is not None for frame in frames)
    if num_split not in (0, len(frames)):
        raise DataError(
            f'"split" given for {num_split} of {len(frames)} frames; give all or none'
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
    recording, part = document.get("recording", ""), document.get("split")
    time = None if document.get("time") is None else _number(document, "time")
    if not isinstance(recording, str):
        raise DataError(f'"recording" must be a name, found {_shown(recording)}')
    if part not in (None, *PARTS):
        raise DataError(f'"split" must be one of {PARTS}, found {_shown(part)}')
    return Origin(recording, time, part)


def _refuse_extra_pictures(frames: list[Frame]) -> None:
    used = {p.resolve() for f in frames for p in (f.picture, f.mask, f.depth) if p}
    for folder in sorted({frame.picture.parent for frame in frames}):
        extra = sorted(
            path.name
            for path in folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and path.resolve() not in used
        )
        if extra:
            raise DataError(
                f"{len(extra)} pictures in {folder.name} have no camera (the first is "
                f"{extra[0]!r}); remove them or add their cameras"
            )


def opencv_frame(document: dict, raw: dict, folder: ScenePath) -> Frame:
    """A frame of `opencv_cameras.json`, its camera not yet checked."""
    del document  # everything stands in the frame
    return Frame(
        picture=path_inside(folder, raw.get("file_path")),
        mask=_optional_path(folder, raw, "mask_path"),
        depth=_optional_path(folder, raw, "depth_path"),
        width=_size(raw, "w"),
        height=_size(raw, "h"),
        K=_intrinsics(*(_number(raw, key) for key in ("fx", "fy", "cx", "cy"))),
        viewmat=_matrix(raw, "w2c"),
        split=raw.get("split"),
    )


def _nerf_frame(document: dict, raw: dict, folder: ScenePath) -> Frame:
    values = document | raw
    picture = _picture_with_suffix(folder, raw.get("file_path"))
    if "w" in values:
        width, height = _size(values, "w"), _size(values, "h")
    else:
        with located(str(picture)):
            width, height, _ = image_header(picture)
    if "fl_x" in values:
        fx = _number(values, "fl_x")
    else:
        fx = _focal(_number(values, "camera_angle_x"), width)
    fy = _number(values, "fl_y") if "fl_y" in values else fx
    cx = _number(values, "cx") if "cx" in values else 0.5 * width
    cy = _number(values, "cy") if "cy" in values else 0.5 * height
    c2w = opengl_to_opencv_c2w(_matrix(raw, "transform_matrix"))
    return Frame(
        picture=picture,
        mask=_optional_path(folder, raw, "mask_path"),
        depth=None,
        width=width,
        height=height,
        K=_intrinsics(fx, fy, cx, cy),
        viewmat=np.asarray(invert_rigid(c2w)),
        split=raw.get("split"),
    )


def _refuse_distortion(values: dict) -> None:
    model = values.get("camera_model", "PINHOLE")
    bent = [key for key in _DISTORTION if values.get(key, 0) != 0]
    if model not in _PINHOLE_MODELS or bent:
        what = f"camera_model {_shown(model)}" if not bent else f"{bent[0]} is not 0"
        raise DataError(
            f"lens distortion ({what}); undistort the pictures first, "
            "as facelift_jax.prepare does"
        )


def _picture_with_suffix(folder: ScenePath, file_path: Any) -> ScenePath:
    """The picture of a NeRF-style `file_path`, which may lack its ending."""
    path = path_inside(folder, file_path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return path
    paths = [path_inside(folder, file_path + suffix) for suffix in IMAGE_SUFFIXES]
    return next((path for path in paths if path.is_file()), paths[0])


def _optional_path(folder: ScenePath, raw: dict, key: str) -> ScenePath | None:
    return path_inside(folder, raw[key], key) if raw.get(key) is not None else None


def _number(values: dict, key: str) -> float:
    value = values.get(key)
    is_bool = isinstance(value, bool)  # an int to Python
    if isinstance(value, int | float) and not is_bool and abs(value) < MAX_NUMBER:
        return float(value)
    raise DataError(f'"{key}" must be a finite number, found {_shown(value)}')


def _shown(value: Any) -> str:
    """A JSON value as an error may show it: short, whatever it is."""
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
    bounded = np.abs(matrix) < MAX_NUMBER  # False for NaN
    if not bounded.all():
        found = float(matrix[~bounded][0])
        raise DataError(f'"{key}" must hold finite numbers, found {_shown(found)}')
    return matrix
