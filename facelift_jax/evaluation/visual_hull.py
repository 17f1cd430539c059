"""The visual hull of input masks as Gaussians: the baseline a network has to beat.

Laurentini, "The Visual Hull Concept for Silhouette-Based Image Understanding", 1994.
Space is carved coarse to fine around the point nearest the optical axes, whatever the
cameras and the object's size are, down to voxels as large as a pixel is there.
"""

import itertools
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree

from facelift_jax.geometry.numerics import SH_C0, normalize
from facelift_jax.geometry.rays import project
from facelift_jax.geometry.rigid import rig_center
from facelift_jax.structs import Cameras, Gaussians, Views

START = 8  # voxels a side of the first, coarse grid
OPACITY = 0.95
SIGMA = 0.5  # standard deviation of a splat, voxels
# The renderer blurs splats by half a pixel, which is half a voxel: moved inwards by a
# voxel, their silhouette is the hull's.
INSET = 1.0
NORMAL_BLUR = 1.5  # voxels, of the occupancy whose gradient is the normal
HIDDEN = 2.0  # voxels behind the nearest one in a pixel from which one is not seen
GRAZING = 0.05  # least weight of a view that sees a voxel: the cosine of 87 degrees


class Silhouette(NamedTuple):
    """What one view says about where the object may be.

    Its picture has a rim of one pixel that stands for everything outside: 1 where the
    mask meets the border, as the object may then go on there, else 0.

    Attributes:
      mask: [h w] of the picture with its rim.
      away: [h w] distance from the mask, pixels.
      camera: for the picture with its rim, float64.
    """

    mask: np.ndarray
    away: np.ndarray
    camera: Cameras


def visual_hull(inputs: Views) -> Gaussians:
    """Gaussians [n] on the surface of the hull of input views [v], NumPy.

    A voxel belongs to the hull if its centre lies in every mask; those with an empty
    neighbour become splats. Transparent Gaussians fill up to a power of four, so that
    scenes share a few shapes; masks without a common hull give one of these alone.
    """
    views = [_silhouette(inputs, view) for view in range(len(inputs.images))]
    cells, corner, size = carve(views)
    surface, normals = surface_cells(cells)
    places = corner + (surface + 0.5) * size - INSET * size * normals
    colors = paint(places, normals, inputs, HIDDEN * size)
    quadruplings = (max(len(places) - 1, 0).bit_length() + 1) // 2
    num_filling = 4**quadruplings - len(places)

    def filled(values: Float[np.ndarray, "m *c"]) -> Float[np.ndarray, "n *c"]:
        widths = [(0, num_filling), *((0, 0) for _ in values.shape[1:])]
        return np.pad(values, widths).astype(np.float32)

    ones = np.ones((len(places), 1))
    return Gaussians(
        means=filled(places),
        quats=filled(ones * np.array([1.0, 0, 0, 0])),
        scales=filled(ones * np.full(3, SIGMA * size)),
        opacities=filled(OPACITY * ones[:, 0]),
        sh=filled((colors[:, None] - 0.5) / SH_C0),
    )


def carve(
    views: list[Silhouette],
) -> tuple[Int[np.ndarray, "n 3"], Float[np.ndarray, "3"], float]:
    """Indices of the hull's voxels, the grid's corner in the world, a voxel's side."""
    viewmats = np.stack([view.camera.viewmats for view in views])
    Ks = np.stack([view.camera.Ks for view in views])
    rig = Cameras(viewmats, Ks, views[0].camera.width, views[0].camera.height)
    center = np.asarray(rig_center(rig))
    distances = np.linalg.norm(rig.centers - center, axis=-1)
    pixel = float((distances / Ks[:, 0, 0]).mean())  # at the centre, world units
    # a cube that reaches to the nearest camera, halved until a voxel is a pixel
    halvings = max(0, int(np.ceil(np.log2(2 * distances.min() / (START * pixel)))))
    size = pixel * 2.0**halvings
    corner = center - 0.5 * START * size
    cells = np.array(list(itertools.product(range(START), repeat=3)))
    octants = np.array(list(itertools.product((0, 1), repeat=3)))
    for _ in range(halvings):
        for view in views:
            cells = cells[_may_hold(view, corner + (cells + 0.5) * size, size)]
        cells = (2 * cells[:, None] + octants).reshape(-1, 3)
        size /= 2
    for view in views:
        cells = cells[holds(view, corner + (cells + 0.5) * size)]
    return cells, corner, size


def holds(view: Silhouette, places: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, "n"]:
    """Whether the object may be at places: the mask between pixel centres is > .5."""
    pixels, _ = _seen_at(view.camera, places)
    rows_cols = pixels.T[::-1] - 0.5
    return scipy.ndimage.map_coordinates(view.mask, rows_cols, order=1) > 0.5


def surface_cells(
    cells: Int[np.ndarray, "n 3"],
) -> tuple[Int[np.ndarray, "m 3"], Float[np.ndarray, "m 3"]]:
    """Those of the voxels with an empty one beside them, and outward unit normals."""
    if not len(cells):
        return cells, cells.astype(np.float64)
    margin = int(np.ceil(4 * NORMAL_BLUR))
    first = cells.min(0) - margin
    grid = np.zeros(cells.max(0) - first + margin + 1, bool)
    grid[tuple((cells - first).T)] = True
    surface = np.argwhere(grid > scipy.ndimage.binary_erosion(grid))
    density = scipy.ndimage.gaussian_filter(grid.astype(np.float32), NORMAL_BLUR)
    slopes = [np.gradient(density, axis=axis)[tuple(surface.T)] for axis in range(3)]
    return surface + first, np.asarray(normalize(-np.stack(slopes, axis=-1)))


def paint(
    places: Float[np.ndarray, "m 3"],
    normals: Float[np.ndarray, "m 3"],
    inputs: Views,
    hidden: float,
) -> Float[np.ndarray, "m 3"]:
    """Colours of places on the hull, from the input views [v].

    The mean over the views in which no other place lies more than `hidden` (world
    units) before one in its pixel, weighted by the mask there and by how squarely the
    view looks. A place that no view shows has the colour of the nearest shown one.
    """
    totals, weights = np.zeros((len(places), 3)), np.zeros(len(places))
    for view, (image, mask) in enumerate(zip(inputs.images, inputs.masks, strict=True)):
        camera = _rimmed_camera(inputs.cameras, view)
        pixels, depths = _seen_at(camera, places)
        cols, rows = pixels.astype(int).T
        nearest = np.full((camera.height, camera.width), np.inf)
        np.minimum.at(nearest, (rows, cols), depths)
        is_seen = depths <= nearest[rows, cols] + hidden
        facing = np.sum(normalize(camera.centers - places) * normals, axis=-1)
        weight = is_seen * np.maximum(facing, GRAZING)
        weight *= np.pad(np.asarray(mask)[..., 0], 1)[rows, cols]
        colors = np.pad(np.asarray(image), ((1, 1), (1, 1), (0, 0)))[rows, cols]
        totals += weight[:, None] * colors
        weights += weight
    is_shown = weights > 0
    if not is_shown.any():
        return totals
    colors = totals[is_shown] / weights[is_shown, None]
    return colors[KDTree(places[is_shown]).query(places)[1]]


def _silhouette(inputs: Views, view: int) -> Silhouette:
    mask = np.asarray(inputs.masks, np.float64)[view, ..., 0]
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    mask = np.pad(mask, 1, constant_values=float(border.max() > 0.5))
    away = np.full(mask.shape, np.inf)
    if (mask > 0.5).any():
        away = np.asarray(scipy.ndimage.distance_transform_edt(mask <= 0.5))
    return Silhouette(mask, away, _rimmed_camera(inputs.cameras, view))


def _rimmed_camera(cameras: Cameras, view: int) -> Cameras:
    """The camera of a view whose picture has one more pixel on every side."""
    K = np.array(cameras.Ks[view], np.float64)
    K[:2, 2] += 1
    viewmat = np.asarray(cameras.viewmats[view], np.float64)
    return Cameras(viewmat, K, cameras.width + 2, cameras.height + 2)


def _may_hold(
    view: Silhouette, places: Float[np.ndarray, "n 3"], size: float
) -> Bool[np.ndarray, "n"]:
    """False for voxels around places that, even with a corner, cannot meet the mask."""
    pixels, depths = _seen_at(view.camera, places)
    reach = 0.5 * np.sqrt(3) * size
    is_near = depths < 2 * reach  # or behind the camera
    # a ball's image reaches r |c| / (z (z - r)) from its centre c's, focal length 1
    distances = np.linalg.norm(places - view.camera.centers, axis=-1)
    scale = view.camera.Ks[(0, 1), (0, 1)].max() * distances
    reach_pixels = reach * scale / np.where(is_near, 1, depths * (depths - reach))
    cols, rows = pixels.astype(int).T
    # `away` is between centres of pixels: the place and the mask lie within theirs
    return is_near | (view.away[rows, cols] <= reach_pixels + np.sqrt(2))


def _seen_at(
    camera: Cameras, places: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"]]:
    """Pixel coordinates, those outside the picture moved to its rim, and depths."""
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels, depths = project(camera, places)
    pixels = np.where((depths > 0)[:, None], pixels, 0)
    size = np.array([camera.width, camera.height])
    return np.clip(pixels, 0.5, size - 0.5), np.asarray(depths)
