"""LGM's two augmentations of the input views (LGM paper, section 3.4).

They imitate the errors of generated images: parts of a view that are inconsistent with
the other views, and cameras that are slightly wrong. View 0 and the targets are never
changed. Only `augment` draws random numbers; the other functions are deterministic.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from facelift_jax.data.resize import sample_bilinear
from facelift_jax.geometry.numerics import einsum
from facelift_jax.geometry.rotations import rotation_vector_to_matrix
from facelift_jax.structs import Cameras, Views

GRID_STRENGTH = 0.5  # range of the shift of a grid line, in cells
GRID_LINES = (8, 16)  # minimum and maximum number of lines of a grid
JITTER_STRENGTH = 0.1  # azimuth within 0.1 pi, elevation within 0.1 pi / 2 radians


def augment(
    inputs: Views,
    rng: np.random.Generator,
    grid_distortion: float,
    camera_jitter: float,
) -> Views:
    """Input views [v]; all but the first may be distorted, jittered, or both.

    `grid_distortion` and `camera_jitter` are probabilities (LGM: 0.5 each), drawn once
    per example. Images and masks are distorted in the same way.
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
    """The source coordinate of each pixel of one axis, in [-1, 1] from edge to edge.

    The axis is divided by g evenly spaced lines. Each line moves by (shift - 0.5) / 2
    cells, with shifts in [0, 1), and the space between two lines is stretched.
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
    """World-to-camera poses, rotated about the world origin by draws in [0, 1).

    Each camera moves around the origin: by up to 9 degrees about the direction of its
    right axis, then by up to 18 degrees about the direction of its up axis.
    """
    right, up = viewmats[:, 0, :3], -viewmats[:, 1, :3]
    azimuths = JITTER_STRENGTH * np.pi * (2 * azimuth_draws - 1)
    elevations = JITTER_STRENGTH * np.pi / 2 * (2 * elevation_draws - 1)
    rotations = einsum(
        "nij,njk->nik",
        rotation_vector_to_matrix(up * azimuths[:, None]),
        rotation_vector_to_matrix(right * elevations[:, None]),
    )
    rotated = viewmats.copy()
    rotated[:, :3, :3] = einsum("nij,nkj->nik", viewmats[:, :3, :3], rotations)
    return rotated
