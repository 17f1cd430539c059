"""LGM's two augmentations of the input views (LGM paper, section 3.4).

They imitate the flaws of pictures from an image generator: parts of a view that do not
quite fit the others, and cameras that are slightly off. View 0 is never touched, and
targets never are. `augment` draws; the other functions are deterministic.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from facelift_jax.data.resize import sample_bilinear
from facelift_jax.geometry.numerics import einsum
from facelift_jax.geometry.rotations import rotation_vector_to_matrix
from facelift_jax.structs import Cameras, Views

GRID_STRENGTH = 0.5  # largest shift of a grid line, in cells
GRID_LINES = (8, 16)  # fewest and most lines of a grid
JITTER_STRENGTH = 0.1  # azimuth within 0.1 pi, elevation within 0.1 pi / 2 radians


def augment(
    inputs: Views,
    rng: np.random.Generator,
    grid_distortion: float,
    camera_jitter: float,
) -> Views:
    """Input views [v], all but the first perhaps distorted and perhaps jittered.

    `grid_distortion` and `camera_jitter` are the probabilities (LGM: 0.5 each); the two
    coins are tossed once an example. Pictures and masks are distorted alike.
    """
    num_others = len(inputs.images) - 1
    if rng.random() < grid_distortion:
        num_lines = rng.integers(*GRID_LINES, endpoint=True)
        shifts = rng.random((num_others, 2, num_lines), np.float32)
        inputs = _distort_others(inputs, shifts)
    if rng.random() < camera_jitter:
        turns = rng.random((num_others, 2), np.float32)
        inputs = dataclasses.replace(
            inputs, cameras=_jitter_others(inputs.cameras, turns)
        )
    return inputs


def _distort_others(views: Views, shifts: Float[np.ndarray, "u 2 g"]) -> Views:
    images, masks = np.array(views.images), np.array(views.masks)
    height, width = images.shape[1:3]
    for view, (shifts_x, shifts_y) in enumerate(shifts, start=1):
        xs, ys = grid_line_map(shifts_x, width), grid_line_map(shifts_y, height)
        images[view] = sample_bilinear(images[view], xs, ys)
        masks[view] = sample_bilinear(masks[view], xs, ys)
    return dataclasses.replace(views, images=images, masks=masks)


def _jitter_others(cameras: Cameras, turns: Float[np.ndarray, "u 2"]) -> Cameras:
    viewmats = np.array(cameras.viewmats)
    viewmats[1:] = jitter_poses(viewmats[1:], turns[:, 0], turns[:, 1])
    return dataclasses.replace(cameras, viewmats=viewmats)


def grid_line_map(
    shifts: Float[np.ndarray, "g"], size: int
) -> Float[np.ndarray, "size"]:
    """Where each pixel of one axis is taken from, in [-1, 1] from edge to edge.

    The axis is cut by g even lines; each line moves by (shift - 0.5) / 2 cells, shifts
    in [0, 1), and what lies between two lines is stretched with them.
    """
    num_lines = len(shifts)
    even = np.linspace(0, 1, num_lines)
    moved = even + GRID_STRENGTH * (shifts - 0.5) / (num_lines - 1)
    ends = np.floor(np.clip(moved, 0, 1) * size).astype(int)
    ends[0], ends[-1] = 0, size
    lines = np.linspace(-1, 1, num_lines)
    cells = [
        np.linspace(lines[i], lines[i + 1], ends[i + 1] - ends[i])
        for i in range(num_lines - 1)
    ]
    return np.concatenate(cells).astype(np.float32)


def jitter_poses(
    viewmats: Float[np.ndarray, "u 4 4"],
    azimuth_draws: Float[np.ndarray, "u"],
    elevation_draws: Float[np.ndarray, "u"],
) -> Float[np.ndarray, "u 4 4"]:
    """World-to-camera poses turned about the world origin by draws in [0, 1).

    Each camera turns about its own up axis by up to 18 degrees, after a turn about its
    own right axis by up to 9.
    """
    right, up = viewmats[:, 0, :3], -viewmats[:, 1, :3]
    azimuths = JITTER_STRENGTH * np.pi * (2 * azimuth_draws - 1)
    elevations = JITTER_STRENGTH * np.pi / 2 * (2 * elevation_draws - 1)
    turn = einsum(
        "nij,njk->nik",
        rotation_vector_to_matrix(up * azimuths[:, None]),
        rotation_vector_to_matrix(right * elevations[:, None]),
    )
    turned = viewmats.copy()
    turned[:, :3, :3] = einsum("nij,nkj->nik", viewmats[:, :3, :3], turn)
    return turned
