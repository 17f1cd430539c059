"""Smooth periodic 3D value noise."""

import functools

import numpy as np
from jaxtyping import Float

_PERIOD = 64  # lattice cells; a power of two
NUM_CHANNELS = 4
_SEED = 7  # all animals share one lattice


def value_noise(
    points: Float[np.ndarray, "n 3"], channel: int
) -> Float[np.ndarray, "n"]:
    """float32 values in [-1, 1] that vary over about one unit of `points`.

    Random numbers at integer positions, blended with the cubic 3 t^2 - 2 t^3. The
    `NUM_CHANNELS` channels are independent. The period is 64 units.
    """
    lattice = _lattices()[channel]
    x, y, z = points.T
    x0, x1, tx = _cell(x, _PERIOD * _PERIOD)
    y0, y1, ty = _cell(y, _PERIOD)
    z0, z1, tz = _cell(z, 1)
    along_x = []
    for base in (y0 + z0, y1 + z0, y0 + z1, y1 + z1):
        low = lattice[x0 + base]
        along_x.append(low + tx * (lattice[x1 + base] - low))
    front = along_x[0] + ty * (along_x[1] - along_x[0])
    back = along_x[2] + ty * (along_x[3] - along_x[2])
    return front + tz * (back - front)


def _cell(
    x: Float[np.ndarray, "n"], stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat lattice offsets of the cell's two sides, and the blend weight."""
    floor = np.floor(x)
    t = (x - floor).astype(np.float32)
    index = floor.astype(np.int32) & (_PERIOD - 1)
    other = (index + 1) & (_PERIOD - 1)
    return index * stride, other * stride, t * t * (3 - 2 * t)


@functools.cache
def _lattices() -> Float[np.ndarray, "c n"]:
    rng = np.random.default_rng(_SEED)
    values = rng.random((NUM_CHANNELS, _PERIOD**3), dtype=np.float32)
    return 2 * values - 1
