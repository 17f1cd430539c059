"""Brown-Conrady lens distortion by OpenCV, restricted to where the model is valid.

`distortion` is (k1, k2, p1, p2, k3) in the order and meaning of OpenCV and MATLAB
(Brown 1971). A point (x, y) of the plane z = 1 of the camera frame, with
r2 = x^2 + y^2 and g = 1 + k1 r2 + k2 r2^2 + k3 r2^3, is imaged where a pinhole camera
would image the point (x', y') of that plane:

    x' = g x + 2 p1 x y + p2 (r2 + 2 x^2)
    y' = g y + 2 p2 x y + p1 (r2 + 2 y^2)

Far from the axis the polynomial folds over: r g(r) stops growing and the model has no
meaning. OpenCV does not check this. Here all results beyond the fold are NaN.
"""

import cv2
import numpy as np
from jaxtyping import Float

NUM_COEFFICIENTS = 5
_TOLERANCE = 1e-10  # on the plane z = 1: below 1e-6 px for any usual focal length
# OpenCV's fixed-point iteration takes about 10 steps, but hundreds close to the fold.
_CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 1000, 1e-12)
_NUM_AT_ONCE = 2**14  # points; cv2.projectPoints also computes 30 derivatives of each


def distort(
    points: Float[np.ndarray, "*b 2"], distortion: Float[np.ndarray, "5"]
) -> Float[np.ndarray, "*b 2"]:
    """Distorts points of the plane z = 1; NaN beyond the fold."""
    undistorted = np.asarray(points, np.float64).reshape(-1, 2)
    distorted = np.empty_like(undistorted)
    for start in range(0, len(undistorted), _NUM_AT_ONCE):
        block = slice(start, start + _NUM_AT_ONCE)
        rays = np.insert(undistorted[block], 2, 1, axis=-1)
        zero, identity = np.zeros(3), np.eye(3)
        result, _ = cv2.projectPoints(rays, zero, zero, identity, distortion)
        distorted[block] = result[:, 0]
    is_valid = (undistorted**2).sum(-1, keepdims=True) < _squared_fold_radius(
        distortion
    )
    distorted = np.where(is_valid, distorted, np.nan)
    return distorted.reshape(points.shape).astype(points.dtype)


def undistort(
    points: Float[np.ndarray, "*b 2"], distortion: Float[np.ndarray, "5"]
) -> Float[np.ndarray, "*b 2"]:
    """The inverse of `distort`, computed in float64; NaN where it has none."""
    distorted = np.asarray(points, np.float64).reshape(-1, 2)
    undistorted = np.full_like(distorted, np.nan)
    squared_radii = (distorted**2).sum(-1)
    (inside,) = np.nonzero(squared_radii <= _largest_distorted_radius(distortion) ** 2)
    if len(inside):
        result = cv2.undistortPoints(
            distorted[inside, None], np.eye(3), distortion, criteria=_CRITERIA
        )
        undistorted[inside] = result[:, 0]
    # the iteration does not report whether it converged
    errors = np.abs(distort(undistorted, distortion) - distorted)
    has_converged = (errors <= _TOLERANCE).all(-1, keepdims=True)  # False for NaN
    undistorted = np.where(has_converged, undistorted, np.nan)
    return undistorted.reshape(points.shape).astype(points.dtype)


def source_map(
    K: Float[np.ndarray, "3 3"],
    distortion: Float[np.ndarray, "5"],
    rotation: Float[np.ndarray, "3 3"],
    new_K: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
) -> Float[np.ndarray, "h w 2"]:
    """For each pixel of a rotated pinhole camera, where the real image shows its ray.

    Args:
      K, distortion: of the real camera.
      rotation: from the real camera's frame to the pinhole camera's.
      new_K: of the pinhole camera; its pixel (column i, row j) has coordinates (i, j).
      size: (width, height) of the pinhole camera.

    Returns:
      float32 pixel coordinates (column, row) in the convention of `K`; NaN behind the
      real camera and beyond the fold of its lens.
    """
    source = cv2.initUndistortRectifyMap(
        K, distortion, rotation, new_K, size, cv2.CV_32FC1
    )
    width, height = size
    inverse = np.linalg.inv(new_K @ rotation)
    x, y, z = (
        (a * np.arange(width) + c).astype(np.float32)
        + (b * np.arange(height)).astype(np.float32)[:, None]
        for a, b, c in inverse
    )
    fold = np.float32(_squared_fold_radius(distortion))
    is_valid = (z > 0) & (x * x + y * y < fold * z * z)
    return np.where(is_valid[..., None], np.stack(source, axis=-1), np.float32(np.nan))


def _squared_fold_radius(distortion: Float[np.ndarray, "5"]) -> float:
    """The smallest r2 at which r g(r) stops growing: 1 + 3 k1 r2 + ... = 0."""
    k1, k2, _, _, k3 = distortion
    roots = np.roots([7 * k3, 5 * k2, 3 * k1, 1])
    real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)]
    return float(real.min(initial=np.inf))


def _largest_distorted_radius(distortion: Float[np.ndarray, "5"]) -> float:
    """A bound on the radius of distorted points inside the fold.

    r g(r) is largest at the fold; the terms of p1 and p2 add at most 3 |p| r2.
    """
    r2 = _squared_fold_radius(distortion)
    if r2 == np.inf:
        return np.inf
    k1, k2, p1, p2, k3 = distortion
    radial = np.sqrt(r2) * (1 + r2 * (k1 + r2 * (k2 + r2 * k3)))
    return float(radial + 3 * np.hypot(p1, p2) * r2)
