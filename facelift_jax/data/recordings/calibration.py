"""Other people's calibration files to our camera convention, and what their lenses do.

Three files are read, each with its own idea of where pixel (0, 0) is. Ours: the centre
of the top-left pixel is (0.5, 0.5).

`opencv_cameras.json` (ours, see `layouts`): a camera is named after its `file_path`
without folder and ending; a frame may carry k1, k2, p1, p2, k3.

`*.toml` (anipose, aniposelib): a table a camera with `name`, `size` [width, height],
`matrix` (K), `distortions` (k1 k2 p1 p2 k3), `rotation` (axis x angle, radians) and
`translation`: x_camera = R x + t. OpenCV counts pixel centres from 0: c = c_file + 0.5.

`*.mat` (DANNCE's label3d): cells `params` of structs `K`, `r`, `t`, `RDistort`,
`TDistort`, and cells `camnames`. MATLAB multiplies row vectors from the left,
[u v 1] ~ [x y z 1] [r; t] K: our rotation is r transposed, our K K transposed. MATLAB
counts pixel centres from 1: c = c_file - 0.5. RDistort is k1 k2 (k3), TDistort p1 p2.
"""

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io

from facelift_jax.data.formats import MAX_NUMBER, check_camera, opencv_frame
from facelift_jax.data.io import MAX_JSON_BYTES, DataError, located, read_json
from facelift_jax.geometry.distortion import NUM_COEFFICIENTS
from facelift_jax.geometry.rotations import rotation_vector_to_matrix

_COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3")
_FROM_OPENCV, _FROM_MATLAB = 0.5, -0.5  # takes their pixel centres to ours


class CalibratedCamera(NamedTuple):
    """One real camera, float64: OpenCV axes, pixels, the units of its calibration.

    Attributes:
      name: as its calibration calls it.
      viewmat: [4 4] world to camera.
      K: [3 3] intrinsics of its pictures.
      distortion: [5] k1 k2 p1 p2 k3, see `geometry.distortion`.
      size: (width, height) it was calibrated at, where the file says.
    """

    name: str
    viewmat: np.ndarray
    K: np.ndarray
    distortion: np.ndarray
    size: tuple[int, int] | None


def read_calibration(path: Path) -> list[CalibratedCamera]:
    """The cameras of a calibration file, in its order.

    Raises:
      DataError: the file or one of its cameras is not usable; one line.
    """
    readers = {
        ".json": (_opencv_entries, _opencv_camera),
        ".toml": (_anipose_entries, _anipose_camera),
        ".mat": (_label3d_entries, _label3d_camera),
    }
    with located(str(path)):
        if path.suffix not in readers:
            raise DataError(
                "a calibration is an opencv_cameras.json, a .toml of anipose or a "
                "label3d .mat of DANNCE"
            )
        if not path.is_file():
            raise DataError("there is no such file")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise DataError(f"more than {MAX_JSON_BYTES >> 20} MB")
        read_entries, parse = readers[path.suffix]
        cameras: dict[str, CalibratedCamera] = {}
        for name, entry in read_entries(path):
            with located(f"camera {str(name)[:40]!r}"):
                if not (isinstance(name, str) and name.isprintable() and name):
                    raise DataError("expected a printable name")
                if not isinstance(entry, dict):
                    raise DataError("expected a table of values")
                if name in cameras:
                    raise DataError("there are two of this name")
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
            "a fisheye lens; calibrate with the standard model, or undistort the "
            "pictures first"
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
        raise DataError("MATLAB 7.3; in MATLAB, save it again with -v7") from error
    except KeyError as error:
        raise DataError(f"holds no {error}; is it of label3d?") from error
    except Exception as error:  # scipy raises whatever a damaged file trips over
        raise DataError(f"not a readable .mat file ({error})") from error
    if len(params) != len(camnames):
        raise DataError(f"{len(params)} params for {len(camnames)} camnames")
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


def _coefficients(found: np.ndarray) -> np.ndarray:
    """k1 k2 p1 p2 (k3); more of OpenCV's only where they are zero."""
    more = found[NUM_COEFFICIENTS:]
    if len(found) < NUM_COEFFICIENTS - 1 or more.any():
        raise DataError(
            f"{len(found)} distortion coefficients; k1 k2 p1 p2 (k3) are understood"
        )
    return np.append(found, 0.0)[:NUM_COEFFICIENTS]


def _array(entry: dict, key: str, size: int | None = None) -> np.ndarray:
    """A flat float64 array of bounded numbers, of `size` where one is asked for."""
    try:
        array = np.array(entry.get(key), np.float64).ravel()
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f'"{key}" must hold numbers') from error
    if size is not None and array.size != size:
        raise DataError(f'"{key}" must hold {size} numbers, found {array.size}')
    if not (np.abs(array) < MAX_NUMBER).all():  # False for NaN
        raise DataError(f'"{key}" must hold finite numbers')
    return array
