"""Real cameras turned towards the object: where it is, and what they would have seen.

A camera turned about its own centre sees the same rays, so its new picture is a
homography of the old one, exactly, whatever the scene. Undistortion and homography are
one map here, and a picture is resampled once. World and units are the calibration's.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from facelift_jax.data.recordings.calibration import CalibratedCamera
from facelift_jax.geometry.distortion import distort, undistort
from facelift_jax.geometry.paths import rotation_from_z
from facelift_jax.geometry.rays import directions_through, pixel_directions, project
from facelift_jax.geometry.rigid import nearest_point
from facelift_jax.structs import Cameras


class UnusableError(ValueError):
    """Why a camera's mask cannot be used, in a few words that many frames share."""


class Sighting(NamedTuple):
    """The object at one time, seen by v cameras.

    Attributes:
      center: [3] the middle of the object.
      radius: of the ball around it that holds what the masks show.
      offsets: [v] pixels between a mask's centroid and the point they triangulate to.
      distances: [v] from the cameras to the centre, negative where it is behind one.
      reaches: [v] tangent of the mask's largest angle, across or down, from the centre.
    """

    center: np.ndarray
    radius: float
    offsets: np.ndarray
    distances: np.ndarray
    reaches: np.ndarray


def pixel_points(
    camera: CalibratedCamera, size: tuple[int, int]
) -> Float[np.ndarray, "h w 2"]:
    """What each pixel centre sees, on the plane z = 1; NaN where the lens folds."""
    pinhole = Cameras(camera.viewmat, camera.K, *size)
    bent = np.asarray(pixel_directions(pinhole))[..., :2]
    return undistort(bent, camera.distortion).astype(np.float32)


def masked_points(
    mask: Bool[np.ndarray, "h w"], points: Float[np.ndarray, "h w 2"]
) -> Float[np.ndarray, "n 2"]:
    """The `pixel_points` of a mask's pixels.

    Raises:
      UnusableError: it does not show the whole object.
    """
    found = points[mask]
    if not len(found):
        raise UnusableError("the mask is empty")
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    if any(edge.any() for edge in edges):
        raise UnusableError("the mask touches the picture's edge")
    if np.isnan(found).any():
        raise UnusableError("the mask lies where the lens model folds over")
    return found


def sight(
    cameras: list[CalibratedCamera], points: list[Float[np.ndarray, "_ 2"]]
) -> Sighting:
    """Triangulates the object from the `masked_points` of each camera.

    Its centre is what the middles of the masks' boxes agree on, so that the ball around
    it is small; the offsets are those of the masks' centroids, which agree better.
    """
    viewmats = np.stack([camera.viewmat for camera in cameras])
    plane = Cameras(viewmats, np.broadcast_to(np.eye(3), (len(cameras), 3, 3)), 1, 1)

    def triangulate(spots: Float[np.ndarray, "v 2"]) -> Float[np.ndarray, "3"]:
        directions = directions_through(plane, spots[:, None])[:, 0]
        return np.asarray(nearest_point(plane.centers, directions))

    centroids = np.stack([p.mean(axis=0, dtype=np.float64) for p in points])
    common = np.broadcast_to(triangulate(centroids), (len(cameras), 1, 3))
    aims = np.asarray(project(plane, common)[0])[:, 0]
    focal = np.stack([camera.K[(0, 1), (0, 1)] for camera in cameras])
    offsets = np.linalg.norm(focal * (centroids - aims), axis=-1)

    boxes = np.stack([0.5 * (p.min(axis=0) + p.max(axis=0)) for p in points])
    center = triangulate(boxes.astype(np.float64))
    local = viewmats[:, :3, :3] @ center + viewmats[:, :3, 3]
    distances = np.linalg.norm(local, axis=-1)
    radius, reaches = 0.0, []
    for place, distance, seen in zip(local, distances, points, strict=True):
        turned = np.insert(seen, 2, 1, axis=-1) @ rotation_from_z(place / distance)
        tangents = turned[:, :2] / np.where(turned[:, 2:] > 0, turned[:, 2:], 1e-9)
        reaches.append(float(np.abs(tangents).max()))
        tangent = math.sqrt((tangents**2).sum(-1).max())
        radius = max(radius, distance * math.sin(math.atan(tangent)))
    signed = np.copysign(distances, local[:, 2])
    return Sighting(center, radius, offsets, signed, np.array(reaches))


def focal_length(distance: float, radius: float, share: float, size: int) -> float:
    """Pixels at which a ball fills a `share` of a centred picture `size` across.

    A ball at a `distance` is seen up to the angle whose sine is radius / distance.
    """
    return 0.5 * share * size * math.sqrt(distance**2 - radius**2) / radius


def aim(
    camera: CalibratedCamera, center: Float[np.ndarray, "3"], focal: float, size: int
) -> Cameras:
    """The camera turned about its own centre, the shortest way, to look at `center`."""
    local = camera.viewmat[:3, :3] @ center + camera.viewmat[:3, 3]
    turn = np.eye(4)
    turn[:3, :3] = rotation_from_z(local / np.linalg.norm(local)).T
    K = np.array([[focal, 0, 0.5 * size], [0, focal, 0.5 * size], [0, 0, 1.0]])
    return Cameras(turn @ camera.viewmat, K, size, size)


def source_pixels(
    camera: CalibratedCamera,
    aimed: Cameras,
    columns: Float[np.ndarray, "w2"],
    rows: Float[np.ndarray, "h2"],
) -> Float[np.ndarray, "h2 w2 2"]:
    """Where the real picture shows what a grid of the aimed camera's pixels sees.

    Pixel coordinates (column, row) on both sides; NaN where the lens shows nothing.
    """
    turn = camera.viewmat[:3, :3] @ np.asarray(aimed.viewmats)[:3, :3].T
    (focal, _, middle), *_ = np.asarray(aimed.Ks)
    across, down = (columns - middle) / focal, (rows - middle) / focal
    x, y, z = (
        (a * across + c).astype(np.float32) + (b * down).astype(np.float32)[:, None]
        for a, b, c in turn
    )
    z = np.where(z > 0, z, np.float32(np.nan))
    bent = distort(np.stack([x / z, y / z], axis=-1), camera.distortion)
    scale = np.float32(camera.K[(0, 1), (0, 1)])
    return bent * scale + np.float32(camera.K[:2, 2])


def shrinkage(camera: CalibratedCamera, aimed: Cameras) -> float:
    """Real pixels across a pixel of the aimed camera, at its centre; below 1: blur."""
    middle = 0.5 * aimed.width + np.array([-0.5, 0.5])
    (low, right), (down, _) = source_pixels(camera, aimed, middle, middle)
    return math.sqrt(abs(np.linalg.det(np.stack([right - low, down - low]))))


def take_picture(
    picture: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    points: Float[np.ndarray, "h w 2"],
    camera: CalibratedCamera,
    aimed: Cameras,
) -> UInt8[np.ndarray, "s s 4"]:
    """RGBA (straight alpha) that the aimed camera sees; 0 where the mask is empty.

    A pixel is the mean over the area it covers. Colours are weighted by the mask, so
    none of what lies around the object runs into it. `points`: by `pixel_points`.
    """
    rgba = np.zeros((aimed.height, aimed.width, 4), np.uint8)
    shrink = shrinkage(camera, aimed)
    left, top, right, bottom = _window(masked_points(mask, points), camera, aimed)
    grid = math.ceil(shrink)
    columns = left + (np.arange((right - left) * grid) + 0.5) / grid
    rows = top + (np.arange((bottom - top) * grid) + 0.5) / grid
    samples = _sample(picture, mask, source_pixels(camera, aimed, columns, rows))
    shape = (bottom - top, grid, right - left, grid, 4)
    pixels = samples.reshape(shape).mean(axis=(1, 3))
    pixels[..., :3] *= 255 / np.maximum(pixels[..., 3:], 1e-3)
    pixels[pixels[..., 3] < 0.5] = 0
    rgba[top:bottom, left:right] = np.rint(np.minimum(pixels, 255))
    return rgba


def _window(
    seen: Float[np.ndarray, "n 2"], camera: CalibratedCamera, aimed: Cameras
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the aimed pixels that may see what was `seen`."""
    turn = np.asarray(aimed.viewmats)[:3, :3] @ camera.viewmat[:3, :3].T
    rays = np.insert(seen, 2, 1, axis=-1) @ turn.T.astype(np.float32)
    focal, middle = aimed.Ks[0, 0], aimed.Ks[0, 2]
    places = rays[:, :2] / rays[:, 2:] * focal + middle
    margin = 1 + 1 / shrinkage(camera, aimed)  # a real pixel's own width
    low = np.floor(places.min(axis=0) - margin).clip(0).astype(int)
    high = np.ceil(places.max(axis=0) + margin).clip(max=aimed.width).astype(int)
    return (*low.tolist(), *high.tolist())


def _sample(
    picture: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    places: Float[np.ndarray, "h2 w2 2"],
) -> Float[np.ndarray, "h2 w2 4"]:
    """The picture times its mask, and the mask, in [0, 255]; bilinear.

    Off the picture everything is 0, as on its outermost pixels, which no mask touches.
    """
    height, width = mask.shape
    packed = np.zeros((height, width, 4), np.uint8)
    np.copyto(packed[..., :3], picture, where=mask[..., None])
    packed[..., 3] = 255 * mask
    whole = packed.view(np.uint32).ravel()  # a pixel is fetched in one go
    limits = np.array([width - 1.001, height - 1.001], np.float32)
    places = np.nan_to_num(places - np.float32(0.5)).clip(0, limits)
    corner = places.astype(np.int32)
    share = (places - corner)[..., None]
    first = corner[..., 1] * width + corner[..., 0]

    def fetch(offset: int) -> np.ndarray:
        found = whole[first + offset].view(np.uint8)
        return found.reshape(*first.shape, 4).astype(np.float32)

    above, below = fetch(0), fetch(width)
    above += share[..., 0, :] * (fetch(1) - above)
    below += share[..., 0, :] * (fetch(width + 1) - below)
    return above + share[..., 1, :] * (below - above)
