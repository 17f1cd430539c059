"""Whether the masks of a scene can be pictures of one object: ray by ray.

A pixel that the object covers wholly shows a point of it on the ray through its centre.
In every other view that point falls on a pixel which the object covers at least in
part, or outside the picture. So, with right cameras, each such ray has a place that all
other masks allow, exactly and at any resolution; rays are asked, not a carved hull,
whose projection lacks thin parts at any grid size.
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

NUM_RAYS = 400  # most rays a view; a share of .97 is then known to .01
NEAREST, FARTHEST = 0.4, 1.6  # of a ray, in distances of its camera from the centre
STEP = 0.5  # pixels between places on a ray, in the view that moves most
WHOLE, PART = 250, 5  # alpha of 255: as good as all and as good as nothing
LEAST_AGREEMENT = 0.97  # share of a view's rays: masks of real pictures have errors
MIN_DISTANCE = 0.05  # of a camera from the centre, in those of the farthest
_PLACES_AT_ONCE = 2**16  # stays in a core's cache


class Silhouettes(NamedTuple):
    """Masks of v views, for certain and at most.

    Attributes:
      whole: pixels that the object covers wholly.
      part: pixels of which it may cover any part.
    """

    whole: Bool[np.ndarray, "v h w"]
    part: Bool[np.ndarray, "v h w"]


class Rig(NamedTuple):
    """Cameras [v] around something, in float64.

    Attributes:
      center: the point nearest to all optical axes, world frame.
      distances: of the cameras from it, world units.
    """

    cameras: Cameras
    center: Float[np.ndarray, "3"]
    distances: Float[np.ndarray, "v"]


class Located(NamedTuple):
    """Where the object is, by the centroids of its masks.

    Attributes:
      point: nearest to the rays through all centroids, world frame.
      offsets: from the point's pixel to the centroid.
      is_before: the point lies in front of the camera.
      is_in_frame: and in its picture.
    """

    point: Float[np.ndarray, "3"]
    offsets: Float[np.ndarray, "v 2"]
    is_before: Bool[np.ndarray, "v"]
    is_in_frame: Bool[np.ndarray, "v"]


class Agreement(NamedTuple):
    """How far views agree with all others.

    Attributes:
      shares: of each view's rays, those with a place that no other mask forbids.
      seen: those with such a place that moreover lies in the mask of another view:
        where everything lies outside the other pictures nothing is forbidden.
      num_rays: rays asked in each view.
    """

    shares: Float[np.ndarray, "v"]
    seen: Float[np.ndarray, "v"]
    num_rays: Int[np.ndarray, "v"]


def silhouettes(alphas: UInt8[np.ndarray, "v h w"]) -> Silhouettes:
    """What alpha says of each pixel.

    A mask of two values says only on which side of one half a pixel's coverage is: the
    outline may lie anywhere within half a pixel. So does, here, a mask without a wholly
    covered pixel. There, a pixel counts as wholly covered if its neighbours are set
    too (if there is none, any that is set), and as covered in part if a neighbour is.
    """
    whole, part = alphas >= WHOLE, alphas >= PART
    for view, alpha in enumerate(alphas):
        if whole[view].any() and np.any((alpha >= PART) & (alpha < WHOLE)):
            continue
        is_set = alpha > 127
        inner = ~grown(~is_set, 1)
        whole[view] = inner if inner.any() else is_set
        part[view] = grown(part[view], 1)
    return Silhouettes(whole, part)


def grown(mask: Bool[np.ndarray, "h w"], pixels: int) -> Bool[np.ndarray, "h w"]:
    """The mask and all within so many rows and columns of it."""
    return scipy.ndimage.maximum_filter(mask, 2 * pixels + 1, mode="constant")


def look_at_rig(cameras: Cameras) -> Rig:
    """The cameras [v] with the point they look at.

    Raises:
      DataError: there is no such point, or a camera stands at it.
    """
    viewmats = np.asarray(cameras.viewmats, np.float64)
    Ks = np.asarray(cameras.Ks, np.float64)
    exact = Cameras(viewmats, Ks, cameras.width, cameras.height)
    if len(viewmats) < 2:
        raise DataError("a single view: nothing can be compared with it")
    if are_parallel(viewmats[:, 2, :3]):
        raise DataError("all optical axes are parallel, a rig needs two that are not")
    center = np.asarray(rig_center(exact))
    distances = np.asarray(np.linalg.norm(exact.centers - center, axis=-1))
    if distances.max() < 1e-4 * np.abs(viewmats[:, :3, 3]).max():
        raise DataError(
            "all cameras stand in one place, or too far from the world's origin for "
            "float32 to tell (then move it to the object)"
        )
    if distances.min() < MIN_DISTANCE * distances.max():
        raise DataError(
            f"camera {distances.argmin()} stands at the point that the cameras look at"
        )
    return Rig(exact, center, distances)


def locate(
    alphas: UInt8[np.ndarray, "v h w"],
    rig: Rig,
    point: Float[np.ndarray, "3"] | None = None,
) -> Located:
    """Where the masks' centroids meet, or how they lie to a known point.

    Raises:
      DataError: the rays through them are parallel.
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
    pixels, is_before = np.asarray(pixels)[:, 0], np.asarray(depths)[:, 0] > 0
    is_in_frame = is_before & ((pixels >= 0) & (pixels < (width, height))).all(axis=-1)
    return Located(point, centroids - pixels, is_before, is_in_frame)


def agreement(
    found: Silhouettes,
    rig: Rig,
    least: float = 0.0,
    views: Sequence[int] | None = None,
    most_rays: int = NUM_RAYS,
) -> Agreement:
    """Asks the rays of some views (None: of every view) against all other views.

    The first view of whose rays a share below `least` is seen ends the work: later
    views then have share 0.
    """
    views = range(len(found.whole)) if views is None else views
    shares, seen = np.zeros((2, len(views)))
    num_rays = np.zeros(len(views), int)
    for i, view in enumerate(views):
        rays = _rays(found.whole[view], rig.cameras, view, most_rays)
        is_held, is_seen = np.zeros((2, len(rays)), bool)
        for ray, _, is_in_mask in _places_left(found, rig, view, rays):
            is_held[ray] = True
            is_seen[ray[is_in_mask]] = True
        shares[i], seen[i], num_rays[i] = is_held.mean(), is_seen.mean(), len(rays)
        if seen[i] < least:
            break
    return Agreement(shares, seen, num_rays)


def agreement_without(found: Silhouettes, rig: Rig) -> Float[np.ndarray, "v v"]:
    """The smallest share over the views but i and j, if nobody asks those two.

    On the diagonal one view is left out. A quarter of the rays is asked.
    """
    num_views = len(found.whole)
    smallest = np.ones((num_views, num_views))
    for view in range(num_views):
        rays = _rays(found.whole[view], rig.cameras, view, NUM_RAYS // 4)
        # by the views that forbid a place on a ray; the last index: no view
        is_held = np.zeros((len(rays), num_views + 1, num_views + 1), bool)
        for ray, _, _, *objectors in _places_left(found, rig, view, rays, 2):
            is_held[ray, *objectors] = True
        by_one = is_held[:, :num_views, num_views] | is_held[:, -1:, -1]
        held = is_held[:, :num_views, :num_views] | by_one[:, :, None]
        held |= held.transpose(0, 2, 1)
        is_asked = np.arange(num_views) != view
        is_asked = is_asked & is_asked[:, None]
        smallest[is_asked] = np.minimum(smallest, held.mean(axis=0))[is_asked]
    return smallest


def _places_left(
    found: Silhouettes,
    rig: Rig,
    view: int,
    rays: Float[np.ndarray, "r 3"],
    num_objectors: int = 0,
) -> Iterator[list[np.ndarray]]:
    """Places on the rays of a view that at most so many (0 or 2) other views forbid.

    Of each place, piece by piece: its ray; how far along it lies; whether it lies in
    the mask of another view; and, where two may object, who does, ascending (the number
    of views: nobody).
    """
    viewmats, Ks = np.asarray(rig.cameras.viewmats), np.asarray(rig.cameras.Ks)
    distances = rig.distances
    pixels = distances / Ks[:, (0, 1), (0, 1)].max(axis=-1)  # their sides at the centre
    num_places = int((FARTHEST - NEAREST) * distances[view] / (STEP * pixels.min())) + 2
    along = np.linspace(NEAREST, FARTHEST, num_places, dtype=np.float32)
    along *= np.float32(distances[view])
    # homogeneous pixel of a place in each view: start + along * step
    projections = Ks @ viewmats[:, :3, :3]
    starts = projections @ rig.cameras.centers[view]
    starts = starts + np.einsum("vij,vj->vi", Ks, viewmats[:, :3, 3])
    starts, steps = starts.astype(np.float32), (projections @ rays.T).astype(np.float32)
    nobody = len(viewmats)
    num_at_once = max(1, _PLACES_AT_ONCE // num_places)
    for first in range(0, len(rays), num_at_once):
        some = np.arange(first, min(first + num_at_once, len(rays)), dtype=np.int32)
        ray, place = np.repeat(some, num_places), np.tile(along, len(some))
        objectors = [np.full(len(ray), nobody) for _ in range(num_objectors)]
        left = [ray, place, np.zeros(len(ray), bool), *objectors]
        for other in np.delete(np.arange(nobody), view):
            ray, place, is_seen, *objectors = left
            pixel = [
                start + place * step.take(ray)
                for start, step in zip(starts[other], steps[other], strict=True)
            ]
            is_against, inside, is_covered = _look_up(found.part[other], *pixel)
            is_seen[inside] |= is_covered
            keep = ~is_against
            if objectors:
                keep |= objectors[1] == nobody
                is_second = is_against & (objectors[0] < nobody)
                objectors[1][is_second] = other
                objectors[0][is_against & ~is_second] = other
            kept = np.flatnonzero(keep)
            left = [array.take(kept) for array in left]
        yield left


def _look_up(
    part: Bool[np.ndarray, "h w"],
    x: Float[np.ndarray, "n"],
    y: Float[np.ndarray, "n"],
    depth: Float[np.ndarray, "n"],
) -> tuple[Bool[np.ndarray, "n"], Int[np.ndarray, "m"], Bool[np.ndarray, "m"]]:
    """Homogeneous pixels: which are in the picture and not in the mask; which are in
    the picture; and which of these are in the mask.

    Inequalities are multiplied by the depth, which may be zero.
    """
    height, width = part.shape
    is_inside = (depth > 0) & (x >= 0) & (x < width * depth)
    is_inside &= (y >= 0) & (y < height * depth)
    inside = np.flatnonzero(is_inside)
    depth = depth.take(inside)
    # a quotient may round up to the width
    columns = np.minimum((x.take(inside) / depth).astype(np.int32), width - 1)
    rows = np.minimum((y.take(inside) / depth).astype(np.int32), height - 1)
    is_covered = part.ravel().take(rows * width + columns)
    is_inside[inside] = ~is_covered
    return is_inside, inside, is_covered


def _rays(
    mask: Bool[np.ndarray, "h w"], cameras: Cameras, view: int, most: int
) -> Float[np.ndarray, "r 3"]:
    """Unit world directions through at most so many pixels, spread over the mask."""
    pixels = np.argwhere(mask)
    num_rays = min(most, len(pixels))
    chosen = pixels[np.arange(num_rays) * len(pixels) // num_rays, ::-1] + 0.5
    return np.asarray(directions_through(take_cameras(cameras, view), chosen))


def held_pixels(
    found: Silhouettes, rig: Rig, view: int, stride: int
) -> tuple[Bool[np.ndarray, "y x"], Bool[np.ndarray, "y x"], Float[np.ndarray, "n 3"]]:
    """Every so many-th wholly covered pixel; those whose rays agree; where they do.

    Of the places on a ray, in the world, the nearest is given: all lie on the hull of
    the masks.
    """
    is_asked = found.whole[view, ::stride, ::stride]
    pixels = np.argwhere(is_asked)
    centers = stride * pixels[:, ::-1] + 0.5
    rays = np.asarray(directions_through(take_cameras(rig.cameras, view), centers))
    nearest = np.full(len(rays), np.inf)
    for ray, place, is_seen in _places_left(found, rig, view, rays):
        np.minimum.at(nearest, ray[is_seen], place[is_seen])
    agrees = np.isfinite(nearest)
    is_held = np.zeros_like(is_asked)
    is_held[tuple(pixels[agrees].T)] = True
    places = (
        np.asarray(rig.cameras.centers)[view] + nearest[agrees, None] * rays[agrees]
    )
    return is_asked, is_held, places
