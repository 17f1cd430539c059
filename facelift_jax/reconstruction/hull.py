"""The visual hull of input masks as Gaussians: a baseline, and a start of refinement.

Laurentini, "The Visual Hull Concept for Silhouette-Based Image Understanding", 1994.
Space is carved from coarse to fine around the point nearest to the optical axes, down
to voxels with the size of a pixel there. It needs no bounds of the object. A coarse
voxel that is certainly part of the hull is divided without further tests, so at every
finer size only voxels near the surface are tested.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree

from facelift_jax.geometry.numerics import SH_C0, normalize
from facelift_jax.geometry.rays import project
from facelift_jax.geometry.rigid import pixel_size, rig_center
from facelift_jax.structs import Cameras, Gaussians, Views

START = 8  # voxels per side of the first, coarsest grid
OPACITY = 0.95
SIGMA = 0.5  # standard deviation of a splat, voxels
# The renderer blurs splats by half a pixel, which is half a voxel. If splats are moved
# inwards by one voxel, their silhouette is that of the hull.
INSET = 1.0
NORMAL_BLUR = 1.5  # voxels; normals are the gradient of the blurred occupancy
HIDDEN = 2.0  # a voxel this many voxels behind the nearest one in its pixel is hidden
SPACING = 2.0  # side of the cubes in which `hull_surface` averages, voxels
TANGENTIAL, NORMAL = 0.65, 0.1  # standard deviations of its splats, cubes
SURFACE_OPACITY = 0.97
NUM_WITNESSES = 2  # masks that must show a part which one mask lacks
MARGIN = 2  # pixels by which the silhouettes of voxels are dilated in comparisons
MIN_UNCOVERED = 0.005  # share of a mask; less is rounding at the border
GRAZING = 0.05  # minimum weight of a view that sees a voxel: cosine of 87 degrees
_CELLS_PER_CHUNK = 2**15  # their float64 arrays fit in the cache of a core


class Silhouette(NamedTuple):
    """The mask of one view, padded by a rim of one pixel.

    The rim represents everything outside the image; points there are clipped to it. It
    repeats the border of the mask: where the mask touches the border, the object may
    extend beyond it.

    Attributes:
      mask: [h w] padded.
      distance: [h w] of each pixel from the nearest one in the mask, pixels; infinite
        if there is none.
      inner_distance: [h w] of each pixel from the nearest one outside the mask, pixels;
        infinite if there is none.
      camera: of the padded image, float64.
    """

    mask: np.ndarray
    distance: np.ndarray
    inner_distance: np.ndarray
    camera: Cameras


def visual_hull(inputs: Views) -> Gaussians:
    """Gaussians [n] on the surface of the hull of input views [v], NumPy.

    A voxel belongs to the hull if its center is inside every mask and inside at least
    one image. Outside of an image, its mask continues as on the border. Voxels with an
    empty neighbor become splats. Transparent Gaussians are added until there are 2, 8,
    32, ..., so that few array shapes occur. Masks without a common hull give two
    transparent Gaussians.
    """
    surface = _surface_points(inputs, *carve(_silhouettes(inputs)))
    num = len(surface.points)
    return _padded_gaussians(
        surface.points,
        np.tile([1.0, 0, 0, 0], (num, 1)),
        np.full((num, 3), SIGMA * surface.size),
        np.full(num, OPACITY),
        surface.colors,
    )


def hull_surface(
    inputs: Views,
) -> tuple[Gaussians, Float[np.ndarray, "v h w 1"]]:
    """The start of a refinement, and the weights of its pixels, NumPy.

    The hull is that of `carve_by_majority`. The splats of `visual_hull` are averaged
    over cubes of `SPACING` voxels: fewer Gaussians agree better between views. They are
    flat, because flat ones dilate the silhouettes less. The weight of a pixel is 0
    where its mask is wrong, else 1. Padded as in `visual_hull`.
    """
    cells, corner, size, is_wrong = carve_by_majority(_silhouettes(inputs))
    weights = 1 - np.stack([x[1:-1, 1:-1, None] for x in is_wrong]).astype(np.float32)
    surface = _surface_points(inputs, cells, corner, size)
    cubes = np.floor(surface.points / (SPACING * size)).astype(int)
    _, cube = np.unique(cubes, axis=0, return_inverse=True)
    cube = cube.reshape(-1)
    counts = np.bincount(cube)

    def average(values: Float[np.ndarray, "m c"]) -> Float[np.ndarray, "k c"]:
        sums = [np.bincount(cube, column) for column in values.T]
        return np.stack(sums, axis=-1) / counts[:, None]

    points, colors = average(surface.points), average(surface.colors)
    sigmas = SPACING * size * np.array([TANGENTIAL, TANGENTIAL, NORMAL])
    gaussians = _padded_gaussians(
        points,
        _rotations_of_z(average(surface.normals)),
        np.tile(sigmas, (len(points), 1)),
        np.full(len(points), SURFACE_OPACITY),
        colors,
    )
    return gaussians, weights


class _SurfacePoints(NamedTuple):
    """Splat centers [m 3], unit normals [m 3], colors [m 3] and the voxel's side."""

    points: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    size: float


def _surface_points(
    inputs: Views,
    cells: Int[np.ndarray, "n 3"],
    corner: Float[np.ndarray, "3"],
    size: float,
) -> _SurfacePoints:
    """Points on the surface of a hull of voxels, from `carve`."""
    surface, normals = surface_cells(cells)
    points = corner + (surface + 0.5) * size - INSET * size * normals
    colors = paint(points, normals, inputs, HIDDEN * size)
    return _SurfacePoints(points, normals, colors, size)


def _padded_gaussians(
    means: Float[np.ndarray, "m 3"],
    quats: Float[np.ndarray, "m 4"],
    scales: Float[np.ndarray, "m 3"],
    opacities: Float[np.ndarray, "m"],
    colors: Float[np.ndarray, "m 3"],
) -> Gaussians:
    """Float32 Gaussians; transparent ones are added until there are 2, 8, 32, ....

    Padding costs time; these sizes need little of it at 128 and 256 px. `subdivide`
    multiplies the number by four, which gives another of these sizes, so less is
    compiled.
    """
    num_padded = 2
    while num_padded < len(means):
        num_padded *= 4
    num_padding = num_padded - len(means)

    def pad(values: Float[np.ndarray, "m *c"]) -> Float[np.ndarray, "n *c"]:
        widths = [(0, num_padding), *((0, 0) for _ in values.shape[1:])]
        return np.pad(values, widths).astype(np.float32)

    sh = (colors[:, None] - 0.5) / SH_C0
    return Gaussians(pad(means), pad(quats), pad(scales), pad(opacities), pad(sh))


def _rotations_of_z(normals: Float[np.ndarray, "k 3"]) -> Float[np.ndarray, "k 4"]:
    """Unit quaternions (w, x, y, z) that turn the z axis to a direction.

    A zero vector keeps the z axis; for -z the rotation is about the x axis.
    """
    x, y, z = np.asarray(normalize(normals)).T
    quats = np.stack([1 + z, -y, x, np.zeros_like(z)], axis=-1)
    quats[z < -1 + 1e-9] = (0.0, 1.0, 0.0, 0.0)
    return np.asarray(normalize(quats))


def carve(
    views: list[Silhouette], max_outside: int = 0
) -> tuple[Int[np.ndarray, "n 3"], Float[np.ndarray, "3"], float]:
    """Voxel indices of the hull, the world corner of the grid, the side of a voxel.

    A voxel is kept if its center is outside at most `max_outside` of the masks.
    """
    viewmats = np.stack([view.camera.viewmats for view in views])
    Ks = np.stack([view.camera.Ks for view in views])
    rig = Cameras(viewmats, Ks, views[0].camera.width, views[0].camera.height)
    center = np.asarray(rig_center(rig))
    distances = np.linalg.norm(rig.centers - center, axis=-1)
    pixel = float(pixel_size(rig))
    # a cube that reaches to the nearest camera; its voxels are halved down to a pixel
    halvings = max(0, int(np.ceil(np.log2(2 * distances.min() / (START * pixel)))))
    size = pixel * 2.0**halvings
    corner = center - 0.5 * START * size
    cells = np.array(list(itertools.product(range(START), repeat=3)), np.int32)
    octants = np.array(list(itertools.product((0, 1), repeat=3)), np.int32)
    inner = cells[:0]  # voxels that are certainly in the hull
    for _ in range(halvings):
        border, inner = [], [inner]
        for chunk, points in _centers(cells, corner, size):
            may_overlap, is_inner = _overlap(views, points, size, max_outside)
            border.append(chunk[may_overlap & ~is_inner])
            inner.append(chunk[is_inner])
        cells, inner = (
            (2 * np.concatenate(x)[:, None] + octants).reshape(-1, 3)
            for x in (border, inner)
        )
        size /= 2
    kept = []
    for chunk, points in _centers(cells, corner, size):
        num_outside = sum(~is_inside(view, points) for view in views)
        kept.append(chunk[(num_outside <= max_outside) & _is_seen(views, points, size)])
    return np.concatenate([inner, *kept]), corner, size


def carve_by_majority(
    views: list[Silhouette],
) -> tuple[Int[np.ndarray, "n 3"], Float[np.ndarray, "3"], float, list[np.ndarray]]:
    """`carve`, but a part of the object that one mask lacks is kept.

    If all masks are right, the hull covers all of them. Where a mask lacks a part of
    the object, the hull lacks it too, and the masks of other views stay uncovered. So a
    voxel that is outside exactly one mask is added if it is in the uncovered parts of
    at least `NUM_WITNESSES` other masks.

    Returns also, per view, which pixels [h w] of the padded image show added voxels
    although they are outside its mask: there the mask is wrong.
    """
    cells, corner, size = carve(views)
    uncovered = [
        (view.mask > 0.5) & ~_dilate(_splat(view, cells, corner, size))
        for view in views
    ]
    is_wrong = [np.zeros(view.mask.shape, bool) for view in views]
    shares = [
        x.sum() / max(1, (view.mask > 0.5).sum())
        for x, view in zip(uncovered, views, strict=True)
    ]
    num_uncovered = sum(share > MIN_UNCOVERED for share in shares)
    if num_uncovered < NUM_WITNESSES or len(views) <= NUM_WITNESSES:
        return cells, corner, size, is_wrong
    added, is_outside = [], []
    for chunk, points in _centers(carve(views, max_outside=1)[0], corner, size):
        witnesses = np.zeros((len(views), len(chunk)), bool)
        for index, view in enumerate(views):
            cols, rows = _project(view.camera, points)[0].astype(int).T
            witnesses[index] = uncovered[index][rows, cols]
        # few voxels remain; the tests below are slow
        is_likely = witnesses.sum(0) >= NUM_WITNESSES
        chunk, points = chunk[is_likely], points[is_likely]
        inside = np.stack([is_inside(view, points) for view in views])
        num_witnesses = (witnesses[:, is_likely] & inside).sum(0)
        is_added = ~inside.all(0) & (num_witnesses >= NUM_WITNESSES)
        added.append(chunk[is_added])
        is_outside.append(~inside[:, is_added])
    added, is_outside = np.concatenate(added), np.concatenate(is_outside, axis=1)
    for index, view in enumerate(views):
        image = _splat(view, added[is_outside[index]], corner, size)
        is_wrong[index] = _dilate(image) & (view.mask <= 0.5)
    return np.concatenate([cells, added]), corner, size, is_wrong


def _chunks(cells: Int[np.ndarray, "n 3"]) -> list[Int[np.ndarray, "_ 3"]]:
    """Parts of the voxels, or one empty part: bounds the memory of float64 arrays."""
    return np.array_split(cells, len(cells) // _CELLS_PER_CHUNK + 1)


def _centers(
    cells: Int[np.ndarray, "n 3"], corner: Float[np.ndarray, "3"], size: float
) -> Iterator[tuple[Int[np.ndarray, "_ 3"], Float[np.ndarray, "_ 3"]]]:
    """The chunks of the voxels, each with the world coordinates of its centers."""
    for chunk in _chunks(cells):
        yield chunk, corner + (chunk + 0.5) * size


def _is_seen(
    views: list[Silhouette], points: Float[np.ndarray, "n 3"], size: float
) -> Bool[np.ndarray, "n"]:
    """Whether the centers of voxels are in the image of at least one view."""
    is_seen = np.zeros(len(points), bool)
    for view in views:
        pixels, radii = _footprints(view.camera, points, size)
        is_seen |= np.isfinite(radii) & _is_in_image(view.camera, pixels, 0.0)
    return is_seen


def _is_in_image(
    camera: Cameras,
    pixels: Float[np.ndarray, "n 2"],
    margin: Float[np.ndarray, "n 1"] | float,
) -> Bool[np.ndarray, "n"]:
    """Whether pixels are in the image without its rim, extended by a margin."""
    end = np.array([camera.width - 1, camera.height - 1])
    is_within = (pixels >= 1 - margin) & (pixels <= end + margin)
    return np.asarray(is_within.all(axis=-1))


def is_inside(
    view: Silhouette, points: Float[np.ndarray, "n 3"]
) -> Bool[np.ndarray, "n"]:
    """Whether points project to where the bilinearly interpolated mask is > 0.5."""
    pixels, _ = _project(view.camera, points)
    rows_cols = pixels.T[::-1] - 0.5
    return scipy.ndimage.map_coordinates(view.mask, rows_cols, order=1) > 0.5


def surface_cells(
    cells: Int[np.ndarray, "n 3"],
) -> tuple[Int[np.ndarray, "m 3"], Float[np.ndarray, "m 3"]]:
    """The voxels with an empty neighbor, and their outward unit normals."""
    if not len(cells):
        return cells, cells.astype(np.float64)
    margin = int(np.ceil(4 * NORMAL_BLUR))
    first = cells.min(0) - margin
    grid = np.zeros(cells.max(0) - first + margin + 1, bool)
    for chunk in _chunks(cells):
        grid[tuple((chunk - first).T)] = True
    surface = np.argwhere(grid > scipy.ndimage.binary_erosion(grid))
    density = scipy.ndimage.gaussian_filter(grid, NORMAL_BLUR, output=np.float32)
    slopes = [
        density[tuple((surface + step).T)] - density[tuple((surface - step).T)]
        for step in np.eye(3, dtype=int)
    ]
    return surface + first, np.asarray(normalize(-0.5 * np.stack(slopes, axis=-1)))


def paint(
    points: Float[np.ndarray, "m 3"],
    normals: Float[np.ndarray, "m 3"],
    inputs: Views,
    hidden: float,
) -> Float[np.ndarray, "m 3"]:
    """Colors of points on the hull, from the input views [v].

    A view sees a point unless another point in the same pixel is nearer by more than
    `hidden` (world units). The color is the mean over the views that see the point,
    weighted by the mask and by the cosine between normal and viewing direction. A point
    that no view sees gets the color of the nearest point that is seen.
    """
    totals, weights = np.zeros((len(points), 3)), np.zeros(len(points))
    for view, (image, mask) in enumerate(zip(inputs.images, inputs.masks, strict=True)):
        camera = _padded_camera(inputs.cameras, view)
        pixels, depths = _project(camera, points)
        cols, rows = pixels.astype(int).T
        nearest = np.full((camera.height, camera.width), np.inf)
        np.minimum.at(nearest, (rows, cols), depths)
        is_seen = depths <= nearest[rows, cols] + hidden
        facing = np.sum(normalize(camera.centers - points) * normals, axis=-1)
        weight = is_seen * np.maximum(facing, GRAZING)
        weight *= np.pad(np.asarray(mask)[..., 0], 1)[rows, cols]
        colors = np.pad(np.asarray(image), ((1, 1), (1, 1), (0, 0)))[rows, cols]
        totals += weight[:, None] * colors
        weights += weight
    has_color = weights > 0
    if not has_color.any():
        return totals
    colors = totals[has_color] / weights[has_color, None]
    return colors[KDTree(points[has_color]).query(points)[1]]


def _silhouettes(inputs: Views) -> list[Silhouette]:
    return [_silhouette(inputs, view) for view in range(len(inputs.images))]


def _silhouette(inputs: Views, view: int) -> Silhouette:
    mask = np.asarray(inputs.masks, np.float64)[view, ..., 0]
    mask = np.pad(mask, 1, mode="edge")
    is_set = mask > 0.5
    camera = _padded_camera(inputs.cameras, view)
    return Silhouette(mask, _distance_to(is_set), _distance_to(~is_set), camera)


def _distance_to(is_set: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """From each pixel to the nearest set one; infinite if none is set."""
    if not is_set.any():
        return np.full(is_set.shape, np.inf)
    return np.asarray(scipy.ndimage.distance_transform_edt(~is_set))


def _padded_camera(cameras: Cameras, view: int) -> Cameras:
    """The camera of a view whose image is padded by one pixel on every side."""
    K = np.array(cameras.Ks[view], np.float64)
    K[:2, 2] += 1
    viewmat = np.asarray(cameras.viewmats[view], np.float64)
    return Cameras(viewmat, K, cameras.width + 2, cameras.height + 2)


def _splat(
    view: Silhouette,
    cells: Int[np.ndarray, "n 3"],
    corner: Float[np.ndarray, "3"],
    size: float,
) -> Bool[np.ndarray, "h w"]:
    """The pixels of the padded image that contain the projected center of a voxel."""
    image = np.zeros(view.mask.shape, bool)
    for _, points in _centers(cells, corner, size):
        cols, rows = _project(view.camera, points)[0].astype(int).T
        image[rows, cols] = True
    return image


def _dilate(image: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return np.asarray(scipy.ndimage.binary_dilation(image, iterations=MARGIN), bool)


def _overlap(
    views: list[Silhouette],
    points: Float[np.ndarray, "n 3"],
    size: float,
    max_outside: int,
) -> tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Which voxels may overlap the hull, and which are certainly part of it.

    The voxels are centered at points. One is certainly part of the hull if all of it is
    inside all masks except `max_outside`, and inside one image. A voxel that only may
    overlap the hull has to be divided and tested again.
    """
    num_outside, num_inside = np.zeros((2, len(points)), int)
    is_seen, is_whole = np.zeros((2, len(points)), bool)
    for view in views:
        pixels, radii = _footprints(view.camera, points, size)
        cols, rows = _clip(view.camera, pixels).astype(int).T
        # Distances are between pixel centers. A point is up to sqrt(2) / 2 from the
        # center of its pixel, and `is_inside` interpolates between pixels up to sqrt(2)
        # from the point.
        reach = radii + 1.5 * np.sqrt(2)
        num_outside += view.distance[rows, cols] > reach
        num_inside += view.inner_distance[rows, cols] > reach
        is_seen |= _is_in_image(view.camera, pixels, radii[:, None])
        is_whole |= _is_in_image(view.camera, pixels, -radii[:, None])
    may_overlap = is_seen & (num_outside <= max_outside)
    return may_overlap, is_whole & (num_inside >= len(views) - max_outside)


def _footprints(
    camera: Cameras, points: Float[np.ndarray, "n 3"], size: float
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"]]:
    """Pixels of voxels centered at points, and how many pixels they extend from them.

    A voxel that is close to the camera or behind it extends infinitely far.
    """
    pixels, depths = _unclipped(camera, points)
    reach = 0.5 * np.sqrt(3) * size
    is_near = depths < 2 * reach  # or behind the camera
    # at focal length 1, the image of a ball of radius r at c = (x, y, z) extends at
    # most r |c| / (z (z - r)) from the image of c
    distances = np.linalg.norm(points - camera.centers, axis=-1)
    scale = camera.Ks[(0, 1), (0, 1)].max() * distances
    radii = reach * scale / np.where(is_near, 1, depths * (depths - reach))
    return pixels, np.where(is_near, np.inf, radii)


def _project(
    camera: Cameras, points: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"]]:
    """Pixel coordinates, clipped to the rim of the padded image, and depths."""
    pixels, depths = _unclipped(camera, points)
    return _clip(camera, pixels), depths


def _unclipped(
    camera: Cameras, points: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"]]:
    """Pixel coordinates, 0 for points behind the camera, and depths."""
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels, depths = project(camera, points)
    return np.where((depths > 0)[:, None], pixels, 0), np.asarray(depths)


def _clip(camera: Cameras, pixels: Float[np.ndarray, "n 2"]) -> np.ndarray:
    """Pixel coordinates, clipped to the rim of the padded image."""
    return np.clip(pixels, 0.5, np.array([camera.width, camera.height]) - 0.5)
