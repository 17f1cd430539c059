"""The Brown-Conrady lens: where a real lens puts what a pinhole would put at (x, y).

(x, y) lies on the plane z = 1 of the camera's frame. `distortion` is k1 k2 p1 p2 k3, in
the order and meaning of OpenCV and MATLAB (Brown 1971): with r2 = x^2 + y^2 and
g = 1 + k1 r2 + k2 r2^2 + k3 r2^3,

    x' = g x + 2 p1 x y + p2 (r2 + 2 x^2)
    y' = g y + 2 p2 x y + p1 (r2 + 2 y^2)

Far from the axis the polynomial turns back: r g(r) stops growing. Beyond that fold the
model means nothing, and everything here is NaN. NumPy, in the type of the points.
"""

import numpy as np
from jaxtyping import Float

NUM_COEFFICIENTS = 5
_MAX_STEPS = 50
_SETTLED = 1e-10  # of the plane z = 1: a millionth of a pixel at any focal length


def distort(
    points: Float[np.ndarray, "*b 2"], distortion: Float[np.ndarray, "5"]
) -> Float[np.ndarray, "*b 2"]:
    """Where the lens puts points of the plane z = 1; NaN beyond the fold."""
    return _distort(points, distortion)[0]


def undistort(
    points: Float[np.ndarray, "*b 2"], distortion: Float[np.ndarray, "5"]
) -> Float[np.ndarray, "*b 2"]:
    """The inverse of `distort` by Newton's method; NaN where it has none."""
    wanted = np.asarray(points, np.float64)
    # from inside the fold, where each step stays on the branch that is meant
    square = (wanted * wanted).sum(-1, keepdims=True)
    found = wanted * np.sqrt(0.8 * _fold(distortion) / np.maximum(square, 1e-300)).clip(
        max=1
    )
    error = np.zeros_like(wanted)
    for _ in range(_MAX_STEPS):
        reached, (xx, xy, yy) = _distort(found, distortion)
        error = reached - wanted
        if not (np.abs(error) > _SETTLED).any():  # False for NaN
            break
        determinant = xx * yy - xy * xy
        step_x = yy * error[..., 0] - xy * error[..., 1]
        step_y = xx * error[..., 1] - xy * error[..., 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            found -= np.stack([step_x, step_y], axis=-1) / determinant[..., None]
    is_right = (np.abs(error) <= _SETTLED).all(axis=-1, keepdims=True)
    return np.where(is_right, found, np.nan).astype(points.dtype)


def _distort(
    points: Float[np.ndarray, "*b 2"], distortion: Float[np.ndarray, "5"]
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Distorted points, and dx'/dx, dx'/dy (= dy'/dx) and dy'/dy."""
    k1, k2, p1, p2, k3 = (points.dtype.type(c) for c in distortion)
    x, y = points[..., 0], points[..., 1]
    r2 = x * x + y * y
    r2 = np.where(r2 < _fold(distortion), r2, np.nan)
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    slope = 2 * (k1 + r2 * (2 * k2 + r2 * (3 * k3)))  # d radial / d r2, twice
    bent_x = radial * x + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    bent_y = radial * y + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)
    derivatives = (
        radial + slope * x * x + 2 * p1 * y + 6 * p2 * x,
        slope * x * y + 2 * p1 * x + 2 * p2 * y,
        radial + slope * y * y + 2 * p2 * x + 6 * p1 * y,
    )
    return np.stack([bent_x, bent_y], axis=-1), derivatives


def _fold(distortion: Float[np.ndarray, "5"]) -> float:
    """The smallest r2 at which r g(r) no longer grows: 1 + 3 k1 r2 + ... = 0."""
    k1, k2, _, _, k3 = distortion
    roots = np.roots([7 * k3, 5 * k2, 3 * k1, 1])
    real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)]
    return float(real.min(initial=np.inf))
