"""Tests ray by ray whether the masks of a scene can show one object.

A fully covered pixel shows a point of the object on the ray through the pixel's center.
In every other view, this point projects to a pixel that the object covers at least
partly, or outside the image. With correct cameras, every such ray therefore has a
position that all other masks allow, exactly and at any resolution. A carved visual hull
cannot replace this test: its projection lacks thin parts at any grid size.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, Int, UInt8

from facelift_jax.data.io import DataError
from facelift_jax.data.normalize import are_parallel
from facelift_jax.data.scenes import take_cameras
from facelift_jax.geometry.rays import directions_through, project
from facelift_jax.geometry.rigid import nearest_point, rig_center
from facelift_jax.structs import Cameras

MAX_RAYS = 400  # per view; the standard error of a share of .97 is then below .01
# ends of a tested ray, relative to its camera's distance to the center
NEAREST, FARTHEST = 0.4, 1.6
STEP = 0.5  # pixels between positions on a ray, in the view where they move most
MIN_FULL_ALPHA, MIN_PARTIAL_ALPHA = 250, 5  # of 255: fully covered, not empty
MIN_AGREEMENT = 0.97  # share of a view's rays; masks of real images have errors
MIN_DISTANCE = 0.05  # of a camera to the center, relative to the farthest camera
_POSITIONS_PER_CHUNK = 2**16  # fits in the cache of a core


class Silhouettes(NamedTuple):
    """Lower and upper bounds of the masks of v views.

    Attributes:
      full: pixels that the object covers fully.
      partial: pixels that the object may cover fully or partly.
    """

    full: Bool[np.ndarray, "v h w"]
    partial: Bool[np.ndarray, "v h w"]


class Rig(NamedTuple):
    """Cameras [v] and the point they look at, in float64.

    Attributes:
      center: the point nearest to all optical axes, world frame.
      distances: distances of the cameras to it, world units.
    """

    cameras: Cameras
    center: Float[np.ndarray, "3"]
    distances: Float[np.ndarray, "v"]


class Located(NamedTuple):
    """The position of the object, from the centroids of its masks.

    Attributes:
      point: the point nearest to the rays through all centroids, world frame.
      offsets: from the projection of the point to the centroid, pixels.
      is_in_front: whether the point is in front of the camera.
      is_in_frame: whether it is also inside the image.
    """

    point: Float[np.ndarray, "3"]
    offsets: Float[np.ndarray, "v 2"]
    is_in_front: Bool[np.ndarray, "v"]
    is_in_frame: Bool[np.ndarray, "v"]


class Agreement(NamedTuple):
    """How well each view agrees with all other views.

    Attributes:
      shares: share of a view's rays with a position that no other mask excludes.
      seen: share of a view's rays with such a position inside the mask of another view.
        Positions outside all other images are excluded by none of them.
      num_rays: number of tested rays of each view.
    """

    shares: Float[np.ndarray, "v"]
    seen: Float[np.ndarray, "v"]
    num_rays: Int[np.ndarray, "v"]


def silhouettes(alphas: UInt8[np.ndarray, "v h w"]) -> Silhouettes:
    """Bounds of the masks, from alpha.

    A binary mask gives only whether a pixel's coverage is above one half: its outline
    is uncertain by half a pixel. A mask without fully covered pixels is treated as a
    binary one. In these masks, a pixel is fully covered if it and its neighbors are set
    (or, if no such pixel exists, if it is set), and partly covered if it or a neighbor
    is set.
    """
    full, partial = alphas >= MIN_FULL_ALPHA, alphas >= MIN_PARTIAL_ALPHA
    for view, alpha in enumerate(alphas):
        if full[view].any() and np.any(partial[view] & ~full[view]):
            continue
        is_set = alpha > 127
        inner = ~grown(~is_set, 1)
        full[view] = inner if inner.any() else is_set
        partial[view] = grown(partial[view], 1)
    return Silhouettes(full, partial)


def grown(mask: Bool[np.ndarray, "h w"], pixels: int) -> Bool[np.ndarray, "h w"]:
    """The mask, dilated by a number of rows and columns."""
    return scipy.ndimage.maximum_filter(mask, 2 * pixels + 1, mode="constant")


def look_at_rig(cameras: Cameras) -> Rig:
    """The cameras [v] with the point they look at.

    Raises:
      DataError: there is no such point, or a camera is at it.
    """
    viewmats = np.asarray(cameras.viewmats, np.float64)
    Ks = np.asarray(cameras.Ks, np.float64)
    exact = Cameras(viewmats, Ks, cameras.width, cameras.height)
    if len(viewmats) < 2:
        raise DataError(
            "there is only one view, and nothing to compare it with; add views"
        )
    if are_parallel(viewmats[:, 2, :3]):
        raise DataError(
            "all optical axes are parallel; a rig needs two axes that are not"
        )
    center = np.asarray(rig_center(exact))
    distances = np.asarray(np.linalg.norm(exact.centers - center, axis=-1))
    if distances.max() < 1e-4 * np.abs(viewmats[:, :3, 3]).max():
        raise DataError(
            "all cameras are at one point, or too far from the world's origin for "
            "float32 (then move the origin to the object)"
        )
    if distances.min() < MIN_DISTANCE * distances.max():
        raise DataError(
            f"camera {distances.argmin()} is at the point that the cameras look at"
        )
    return Rig(exact, center, distances)


def locate(
    alphas: UInt8[np.ndarray, "v h w"],
    rig: Rig,
    point: Float[np.ndarray, "3"] | None = None,
) -> Located:
    """Locates the object by its masks' centroids, or takes `point` as its position.

    Raises:
      DataError: the rays through the centroids are parallel.
    """
    _, height, width = alphas.shape
    centroids = np.stack([np.argwhere(alpha > 127).mean(axis=0) for alpha in alphas])
    centroids = centroids[:, ::-1] + 0.5
    if point is None:
        rays = np.asarray(directions_through(rig.cameras, centroids[:, None]))[:, 0]
        if are_parallel(rays):
            raise DataError("the rays through the masks' centroids are parallel")
        point = np.asarray(nearest_point(rig.cameras.centers, rays))
    pixels, depths = project(rig.cameras, np.repeat(point[None, None], len(alphas), 0))
    pixels, is_in_front = np.asarray(pixels)[:, 0], np.asarray(depths)[:, 0] > 0
    is_in_frame = is_in_front & ((pixels >= 0) & (pixels < (width, height))).all(
        axis=-1
    )
    return Located(point, centroids - pixels, is_in_front, is_in_frame)


def agreement(
    masks: Silhouettes,
    rig: Rig,
    stop_below: float = 0.0,
    views: Sequence[int] | None = None,
    max_rays: int = MAX_RAYS,
) -> Agreement:
    """Tests the rays of some views (None: all views) against all other views.

    Stops after the first view with a `seen` share below `stop_below`; the following
    views then have shares of 0.
    """
    views = range(len(masks.full)) if views is None else views
    shares, seen = np.zeros((2, len(views)))
    num_rays = np.zeros(len(views), int)
    for i, view in enumerate(views):
        rays = _rays(masks.full[view], rig.cameras, view, max_rays)
        is_allowed, is_seen = np.zeros((2, len(rays)), bool)
        for ray, _, is_in_mask in _allowed_positions(masks, rig, view, rays):
            is_allowed[ray] = True
            is_seen[ray[is_in_mask]] = True
        shares[i], seen[i], num_rays[i] = is_allowed.mean(), is_seen.mean(), len(rays)
        if seen[i] < stop_below:
            break
    return Agreement(shares, seen, num_rays)


def agreement_without(masks: Silhouettes, rig: Rig) -> Float[np.ndarray, "v v"]:
    """The smallest share over all views if views i and j are left out.

    On the diagonal, one view is left out. A quarter of the rays is tested.
    """
    num_views = len(masks.full)
    smallest = np.ones((num_views, num_views))
    for view in range(num_views):
        rays = _rays(masks.full[view], rig.cameras, view, MAX_RAYS // 4)
        # indexed by ray and the two views that exclude a position; last index: no view
        is_allowed = np.zeros((len(rays), num_views + 1, num_views + 1), bool)
        for ray, _, _, *excluders in _allowed_positions(masks, rig, view, rays, 2):
            is_allowed[ray, *excluders] = True
        without_one = is_allowed[:, :num_views, num_views] | is_allowed[:, -1:, -1]
        without_two = is_allowed[:, :num_views, :num_views] | without_one[:, :, None]
        without_two |= without_two.transpose(0, 2, 1)
        is_other = np.arange(num_views) != view
        is_other = is_other & is_other[:, None]
        shares = np.minimum(smallest, without_two.mean(axis=0))
        smallest[is_other] = shares[is_other]
    return smallest


def _allowed_positions(
    masks: Silhouettes,
    rig: Rig,
    view: int,
    rays: Float[np.ndarray, "r 3"],
    max_excluders: int = 0,
) -> Iterator[list[np.ndarray]]:
    """Positions on a view's rays that at most `max_excluders` (0 or 2) views exclude.

    Yields chunks of arrays over positions: the index of the ray; the distance along it;
    whether the position is inside the mask of another view; and, for `max_excluders` of
    2, the two excluding views in ascending order (the number of views means none).
    """
    viewmats, Ks = np.asarray(rig.cameras.viewmats), np.asarray(rig.cameras.Ks)
    distances = rig.distances
    pixels = distances / Ks[:, (0, 1), (0, 1)].max(axis=-1)  # pixel size at the center
    num_positions = (
        int((FARTHEST - NEAREST) * distances[view] / (STEP * pixels.min())) + 2
    )
    along = np.linspace(NEAREST, FARTHEST, num_positions, dtype=np.float32)
    along *= np.float32(distances[view])
    # homogeneous pixel of a position in each view: start + along * step
    projections = Ks @ viewmats[:, :3, :3]
    starts = projections @ rig.cameras.centers[view]
    starts = starts + np.einsum("vij,vj->vi", Ks, viewmats[:, :3, 3])
    starts, steps = starts.astype(np.float32), (projections @ rays.T).astype(np.float32)
    num_views = len(viewmats)
    chunk = max(1, _POSITIONS_PER_CHUNK // num_positions)
    for first in range(0, len(rays), chunk):
        indices = np.arange(first, min(first + chunk, len(rays)), dtype=np.int32)
        ray, distance = np.repeat(indices, num_positions), np.tile(along, len(indices))
        excluders = [np.full(len(ray), num_views) for _ in range(max_excluders)]
        remaining = [ray, distance, np.zeros(len(ray), bool), *excluders]
        for other in np.delete(np.arange(num_views), view):
            ray, distance, is_seen, *excluders = remaining
            pixel = [
                start + distance * step.take(ray)
                for start, step in zip(starts[other], steps[other], strict=True)
            ]
            is_excluded, inside, is_covered = _look_up(masks.partial[other], *pixel)
            is_seen[inside] |= is_covered
            keep = ~is_excluded
            if excluders:
                keep |= excluders[1] == num_views
                is_second = is_excluded & (excluders[0] < num_views)
                excluders[1][is_second] = other
                excluders[0][is_excluded & ~is_second] = other
            kept = np.flatnonzero(keep)
            remaining = [array.take(kept) for array in remaining]
        yield remaining


def _look_up(
    mask: Bool[np.ndarray, "h w"],
    x: Float[np.ndarray, "n"],
    y: Float[np.ndarray, "n"],
    depth: Float[np.ndarray, "n"],
) -> tuple[Bool[np.ndarray, "n"], Int[np.ndarray, "m"], Bool[np.ndarray, "m"]]:
    """Looks up homogeneous pixels in a mask.

    Returns whether a pixel is inside the image but not in the mask; the indices of the
    pixels inside the image; and whether these are in the mask. Inequalities are
    multiplied by the depth, which may be zero.
    """
    height, width = mask.shape
    is_inside = (depth > 0) & (x >= 0) & (x < width * depth)
    is_inside &= (y >= 0) & (y < height * depth)
    inside = np.flatnonzero(is_inside)
    depth = depth.take(inside)
    # a quotient may round up to the width
    columns = np.minimum((x.take(inside) / depth).astype(np.int32), width - 1)
    rows = np.minimum((y.take(inside) / depth).astype(np.int32), height - 1)
    is_covered = mask.ravel().take(rows * width + columns)
    is_inside[inside] = ~is_covered
    return is_inside, inside, is_covered


def _rays(
    mask: Bool[np.ndarray, "h w"], cameras: Cameras, view: int, max_rays: int
) -> Float[np.ndarray, "r 3"]:
    """Unit world directions through at most `max_rays` pixels, spread over the mask."""
    pixels = np.argwhere(mask)
    num_rays = min(max_rays, len(pixels))
    chosen = pixels[np.arange(num_rays) * len(pixels) // num_rays, ::-1] + 0.5
    return np.asarray(directions_through(take_cameras(cameras, view), chosen))


def agreeing_pixels(
    masks: Silhouettes, rig: Rig, view: int, stride: int
) -> tuple[Bool[np.ndarray, "y x"], Bool[np.ndarray, "y x"], Float[np.ndarray, "n 3"]]:
    """Tests every `stride`-th fully covered pixel of a view against all other views.

    Returns which pixels are tested, which of them agree, and, for each that agrees, the
    nearest allowed position on its ray that is inside another mask (world frame). The
    positions are on the visual hull of the masks.
    """
    is_tested = masks.full[view, ::stride, ::stride]
    pixels = np.argwhere(is_tested)
    centers = stride * pixels[:, ::-1] + 0.5
    rays = np.asarray(directions_through(take_cameras(rig.cameras, view), centers))
    nearest = np.full(len(rays), np.inf)
    for ray, distance, is_seen in _allowed_positions(masks, rig, view, rays):
        np.minimum.at(nearest, ray[is_seen], distance[is_seen])
    agrees = np.isfinite(nearest)
    is_agreeing = np.zeros_like(is_tested)
    is_agreeing[tuple(pixels[agrees].T)] = True
    center = np.asarray(rig.cameras.centers)[view]
    positions = center + nearest[agrees, None] * rays[agrees]
    return is_tested, is_agreeing, positions
