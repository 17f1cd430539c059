"""Reads calibration files of three programs into this package's camera convention.

The files differ in the coordinates of the top-left pixel's center; this package uses
(0.5, 0.5).

`opencv_cameras.json` (this package's format, see `data.formats`): a camera is named
after its `file_path` without folder and suffix; a frame may have k1, k2, p1, p2, k3.

`*.toml` (anipose, aniposelib): per camera a table with `name`, `size` [width, height],
`matrix` (K), `distortions` (k1 k2 p1 p2 k3), `rotation` (axis x angle, radians) and
`translation`: x_camera = R x + t. OpenCV counts pixel centers from 0: c = c_file + 0.5.

`*.mat` (DANNCE's label3d): cells `params` of structs `K`, `r`, `t`, `RDistort`,
`TDistort`, and cells `camnames`. MATLAB multiplies row vectors from the left,
[u v 1] ~ [x y z 1] [r; t] K: rotation and K are the transposes of `r` and `K`. MATLAB
counts pixel centers from 1: c = c_file - 0.5. RDistort is k1 k2 (k3), TDistort p1 p2.
"""

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io

from facelift_jax.data.formats import MAX_NUMBER, check_camera, opencv_frame
from facelift_jax.data.io import MAX_JSON_BYTES, DataError, located, read_json
from facelift_jax.data.recordings.lens import NUM_COEFFICIENTS
from facelift_jax.geometry.rotations import rotation_vector_to_matrix

_COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3")
_FROM_OPENCV, _FROM_MATLAB = 0.5, -0.5  # added to the principal point


class CalibratedCamera(NamedTuple):
    """One real camera, float64: OpenCV axes, pixels, length units of the calibration.

    Attributes:
      name: its name in the calibration file.
      viewmat: [4 4] world to camera.
      K: [3 3] intrinsics in pixels.
      distortion: [5] k1 k2 p1 p2 k3, see `lens`.
      size: (width, height) of the calibration images, or None if the file has none.
    """

    name: str
    viewmat: np.ndarray
    K: np.ndarray
    distortion: np.ndarray
    size: tuple[int, int] | None


def read_calibration(path: Path) -> list[CalibratedCamera]:
    """The cameras of a calibration file, in the order of the file.

    Raises:
      DataError: the file or one of its cameras cannot be used; one line.
    """
    readers = {
        ".json": (_opencv_entries, _opencv_camera),
        ".toml": (_anipose_entries, _anipose_camera),
        ".mat": (_label3d_entries, _label3d_camera),
    }
    with located(str(path)):
        if path.suffix not in readers:
            raise DataError(
                "not a calibration file; expected an opencv_cameras.json, an anipose "
                ".toml or a label3d .mat of DANNCE"
            )
        if not path.is_file():
            raise DataError("the file does not exist")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise DataError(f"larger than {MAX_JSON_BYTES >> 20} MB")
        read_entries, parse = readers[path.suffix]
        cameras: dict[str, CalibratedCamera] = {}
        for name, entry in read_entries(path):
            with located(f"camera {str(name)[:40]!r}"):
                if not (isinstance(name, str) and name.isprintable() and name):
                    raise DataError("expected a printable name")
                if not isinstance(entry, dict):
                    raise DataError("expected a table of values")
                if name in cameras:
                    raise DataError("two cameras have this name")
                cameras[name] = parse(name, entry)
                check_camera(*cameras[name][1:3], cameras[name].size)
        if len(cameras) < 2:
            raise DataError(f"{len(cameras)} cameras; depth needs at least two")
    return list(cameras.values())


def _opencv_entries(path: Path) -> list[tuple[Any, Any]]:
    frames = read_json(path).get("frames")
    if not isinstance(frames, list):
        raise DataError('"frames" must be a list')
    names = [f.get("file_path") if isinstance(f, dict) else None for f in frames]
    stems = [Path(name).stem if isinstance(name, str) else name for name in names]
    return list(zip(stems, frames, strict=True))


def _opencv_camera(name: str, entry: dict) -> CalibratedCamera:
    frame = opencv_frame({}, entry, Path())
    lens = _array({"lens": [entry.get(key, 0.0) for key in _COEFFICIENTS]}, "lens", 5)
    size = (frame.width, frame.height)
    return CalibratedCamera(name, frame.viewmat, frame.K, lens, size)


def _anipose_entries(path: Path) -> list[tuple[Any, Any]]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"not a readable TOML file ({error})") from error
    document.pop("metadata", None)
    return [
        (table.get("name", key) if isinstance(table, dict) else key, table)
        for key, table in document.items()
    ]


def _anipose_camera(name: str, entry: dict) -> CalibratedCamera:
    if entry.get("fisheye", False):
        raise DataError(
            "a fisheye lens is not supported; calibrate with the standard model, or "
            "undistort the images first"
        )
    rotation = rotation_vector_to_matrix(_array(entry, "rotation", 3))
    K = _array(entry, "matrix", 9).reshape(3, 3)
    K[:2, 2] += _FROM_OPENCV
    lens = _coefficients(_array(entry, "distortions"))
    width, height = _array(entry, "size", 2).astype(int).tolist()
    viewmat = _viewmat(np.asarray(rotation), _array(entry, "translation", 3))
    return CalibratedCamera(name, viewmat, K, lens, (width, height))


def _label3d_entries(path: Path) -> list[tuple[Any, Any]]:
    names = ["params", "camnames"]
    try:
        document = scipy.io.loadmat(path, variable_names=names, simplify_cells=True)
        params, camnames = (np.atleast_1d(document[name]) for name in names)
    except NotImplementedError as error:
        raise DataError(
            "a MATLAB 7.3 file; save it again in MATLAB with -v7"
        ) from error
    except KeyError as error:
        raise DataError(f"has no {error}; expected a file of label3d") from error
    except Exception as error:  # damaged files raise many types
        raise DataError(f"not a readable .mat file ({error})") from error
    if len(params) != len(camnames):
        raise DataError(
            f"{len(params)} params for {len(camnames)} camnames; every camera needs "
            "one of each"
        )
    return list(zip(map(str, camnames), params, strict=True))


def _label3d_camera(name: str, entry: dict) -> CalibratedCamera:
    K = _array(entry, "K", 9).reshape(3, 3).T.copy()
    K[:2, 2] += _FROM_MATLAB
    rotation = _array(entry, "r", 9).reshape(3, 3).T
    radial, (p1, p2) = _array(entry, "RDistort"), _array(entry, "TDistort", 2)
    lens = _coefficients(np.concatenate([radial[:2], [p1, p2], radial[2:]]))
    viewmat = _viewmat(rotation, _array(entry, "t", 3))
    return CalibratedCamera(name, viewmat, K, lens, None)


def _viewmat(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    viewmat = np.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = rotation, translation
    return viewmat


def _coefficients(values: np.ndarray) -> np.ndarray:
    """k1 k2 p1 p2 k3 from four or more values; those from the sixth on must be zero."""
    higher = values[NUM_COEFFICIENTS:]
    if len(values) < NUM_COEFFICIENTS - 1 or higher.any():
        raise DataError(
            f"{len(values)} distortion coefficients; supported are k1 k2 p1 p2 (k3)"
        )
    return np.append(values, 0.0)[:NUM_COEFFICIENTS]


def _array(entry: dict, key: str, size: int | None = None) -> np.ndarray:
    """A flat float64 array of bounded numbers, of length `size` if given."""
    try:
        array = np.array(entry.get(key), np.float64).ravel()
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f'"{key}" must contain numbers') from error
    if size is not None and array.size != size:
        raise DataError(f'"{key}" must contain {size} numbers, found {array.size}')
    if not (np.abs(array) < MAX_NUMBER).all():  # False for NaN
        raise DataError(f'"{key}" must contain finite numbers')
    return array
