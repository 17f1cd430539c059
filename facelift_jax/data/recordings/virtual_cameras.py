"""Virtual cameras that look at the object, and the images they would have taken.

A camera rotated about its own center sees the same rays, so its image is a homography
of the real one, exact for every scene. Undistortion and homography are combined in one
map, and an image is resampled once. World frame and units are the calibration's.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from facelift_jax.data.recordings.calibration import CalibratedCamera
from facelift_jax.data.recordings.lens import source_map, undistort
from facelift_jax.geometry.paths import rotation_from_z
from facelift_jax.geometry.rays import directions_through, pixel_directions, project
from facelift_jax.geometry.rigid import nearest_point
from facelift_jax.structs import Cameras

Window = tuple[float | int, ...]  # left, top, right, bottom in pixels


class UnusableMaskError(ValueError):
    """Why a mask cannot be used, in words that are the same for many frames."""


class ObjectEstimate(NamedTuple):
    """The object at one time, as seen by v cameras.

    Attributes:
      center: [3] center of the object.
      radius: of the ball around the center that contains what the masks show.
      offsets: [v] pixels between a mask's centroid and the triangulated point.
      distances: [v] camera to center, negative where the center is behind the camera.
      reaches: [v] tangent of the mask's largest angle, in x or y, from the center.
    """

    center: np.ndarray
    radius: float
    offsets: np.ndarray
    distances: np.ndarray
    reaches: np.ndarray


def undistorted_pixels(
    camera: CalibratedCamera, size: tuple[int, int]
) -> Float[np.ndarray, "h w 2"]:
    """The point of the plane z = 1 that each pixel center sees; NaN beyond the fold."""
    pinhole = Cameras(camera.viewmat, camera.K, *size)
    distorted = np.asarray(pixel_directions(pinhole))[..., :2]
    return undistort(distorted, camera.distortion).astype(np.float32)


def masked_points(
    mask: Bool[np.ndarray, "h w"], points: Float[np.ndarray, "h w 2"]
) -> Float[np.ndarray, "n 2"]:
    """The points of a mask's pixels; `points` are `undistorted_pixels`.

    Raises:
      UnusableMaskError: the mask does not show the whole object.
    """
    selected = points[mask]
    if not len(selected):
        raise UnusableMaskError("the mask is empty")
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    if any(edge.any() for edge in edges):
        raise UnusableMaskError("the mask touches the edge of the image")
    if np.isnan(selected).any():
        raise UnusableMaskError("the mask is where the lens model folds over")
    return selected


def triangulate_object(
    cameras: list[CalibratedCamera], points: list[Float[np.ndarray, "_ 2"]]
) -> ObjectEstimate:
    """Triangulates the object from the `masked_points` of each camera.

    The center is triangulated from the centers of the masks' bounding boxes, so that
    the ball around it is small. The offsets are those of the masks' centroids, which
    agree better between cameras.

    Raises:
      LinAlgError: all rays are parallel.
    """
    viewmats = np.stack([camera.viewmat for camera in cameras])
    plane = Cameras(viewmats, np.broadcast_to(np.eye(3), (len(cameras), 3, 3)), 1, 1)

    def triangulate(positions: Float[np.ndarray, "v 2"]) -> Float[np.ndarray, "3"]:
        directions = directions_through(plane, positions[:, None])[:, 0]
        return np.asarray(nearest_point(plane.centers, directions))

    centroids = np.stack([p.mean(axis=0, dtype=np.float64) for p in points])
    common = np.broadcast_to(triangulate(centroids), (len(cameras), 1, 3))
    projected = np.asarray(project(plane, common)[0])[:, 0]
    focal = np.stack([camera.K[(0, 1), (0, 1)] for camera in cameras])
    offsets = np.linalg.norm(focal * (centroids - projected), axis=-1)

    boxes = np.stack([0.5 * (p.min(axis=0) + p.max(axis=0)) for p in points])
    center = triangulate(boxes.astype(np.float64))
    local = viewmats[:, :3, :3] @ center + viewmats[:, :3, 3]
    distances = np.linalg.norm(local, axis=-1)
    radius, reaches = 0.0, []
    for position, distance, seen in zip(local, distances, points, strict=True):
        rotated = np.insert(seen, 2, 1, axis=-1) @ rotation_from_z(position / distance)
        tangents = rotated[:, :2] / np.where(rotated[:, 2:] > 0, rotated[:, 2:], 1e-9)
        reaches.append(float(np.abs(tangents).max()))
        tangent = math.sqrt((tangents**2).sum(-1).max())
        radius = max(radius, distance * math.sin(math.atan(tangent)))
    signed = np.copysign(distances, local[:, 2])
    return ObjectEstimate(center, radius, offsets, signed, np.array(reaches))


def focal_length(distance: float, radius: float, share: float, size: int) -> float:
    """Focal length in pixels at which a ball fills a `share` of an image of `size` px.

    The sine of the ball's angular radius is radius / distance.
    """
    return 0.5 * share * size * math.sqrt(distance**2 - radius**2) / radius


def virtual_camera(
    camera: CalibratedCamera, center: Float[np.ndarray, "3"], focal: float, size: int
) -> Cameras:
    """The camera rotated about its own center, without roll, to look at `center`."""
    local = camera.viewmat[:3, :3] @ center + camera.viewmat[:3, 3]
    rotation = np.eye(4)
    rotation[:3, :3] = rotation_from_z(local / np.linalg.norm(local)).T
    K = np.array([[focal, 0, 0.5 * size], [0, focal, 0.5 * size], [0, 0, 1.0]])
    return Cameras(rotation @ camera.viewmat, K, size, size)


def source_pixels(
    camera: CalibratedCamera, virtual: Cameras, window: Window, density: float | int = 1
) -> Float[np.ndarray, "h2 w2 2"]:
    """Where the real image shows the samples of a window of the virtual image.

    Pixel coordinates (column, row), float32; NaN where the lens images nothing. There
    are `density` samples per pixel in x and in y, each at the center of its cell.
    """
    left, top, right, bottom = window
    new_K = np.array(virtual.Ks, np.float64)
    new_K[:2, 2] -= left, top
    new_K[:2] *= density
    new_K[:2, 2] -= 0.5
    size = round((right - left) * density), round((bottom - top) * density)
    rotation = np.asarray(virtual.viewmats)[:3, :3] @ camera.viewmat[:3, :3].T
    return source_map(camera.K, camera.distortion, rotation, new_K, size)


def downscale_factor(camera: CalibratedCamera, virtual: Cameras) -> float:
    """Real pixels per pixel of the virtual camera, at its center; below 1: upscaled."""
    middle = 0.5 * virtual.width
    window = (middle - 1, middle - 1, middle + 1, middle + 1)
    (corner, right), (down, _) = source_pixels(camera, virtual, window)
    return math.sqrt(abs(np.linalg.det(np.stack([right - corner, down - corner]))))


def resample_image(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    points: Float[np.ndarray, "h w 2"],
    camera: CalibratedCamera,
    virtual: Cameras,
) -> UInt8[np.ndarray, "s s 4"]:
    """The virtual camera's RGBA image (straight alpha); 0 where the mask is empty.

    A pixel is the mean over its area. Colors are weighted by the mask, so that the
    surroundings of the object do not mix in. `points` are `undistorted_pixels`.

    Raises:
      UnusableMaskError: the mask does not show the whole object.
    """
    rgba = np.zeros((virtual.height, virtual.width, 4), np.uint8)
    density = math.ceil(downscale_factor(camera, virtual))
    window = _object_window(masked_points(mask, points), camera, virtual)
    left, top, right, bottom = window
    sources = source_pixels(camera, virtual, window, density)
    samples = _sample_bilinear(image, mask, sources)
    shape = (bottom - top, density, right - left, density, 4)
    pixels = samples.reshape(shape).mean(axis=(1, 3))
    pixels[..., :3] *= 255 / np.maximum(pixels[..., 3:], 1e-3)
    pixels[pixels[..., 3] < 0.5] = 0
    rgba[top:bottom, left:right] = np.rint(np.minimum(pixels, 255))
    return rgba


def _object_window(
    points: Float[np.ndarray, "n 2"], camera: CalibratedCamera, virtual: Cameras
) -> tuple[int, int, int, int]:
    """The window of the virtual pixels that may see any of the `masked_points`."""
    rotation = np.asarray(virtual.viewmats)[:3, :3] @ camera.viewmat[:3, :3].T
    rays = np.insert(points, 2, 1, axis=-1) @ rotation.T.astype(np.float32)
    focal, middle = virtual.Ks[0, 0], virtual.Ks[0, 2]
    pixels = rays[:, :2] / rays[:, 2:] * focal + middle
    margin = 1 + 1 / downscale_factor(camera, virtual)  # the width of a real pixel
    low = np.floor(pixels.min(axis=0) - margin).clip(0).astype(int)
    high = np.ceil(pixels.max(axis=0) + margin).clip(max=virtual.width).astype(int)
    return (*low.tolist(), *high.tolist())


def _sample_bilinear(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    pixels: Float[np.ndarray, "h2 w2 2"],
) -> Float[np.ndarray, "h2 w2 4"]:
    """The image times its mask, and the mask, in [0, 255].

    Outside the image all values are 0, as on its outermost pixels, which no mask
    touches. (`cv2.remap` rounds coordinates to 1/32 pixel.)
    """
    height, width = mask.shape
    packed = np.zeros((height, width, 4), np.uint8)
    np.copyto(packed[..., :3], image, where=mask[..., None])
    packed[..., 3] = 255 * mask
    flat = packed.view(np.uint32).ravel()  # reads all four channels at once
    limits = np.array([width - 1.001, height - 1.001], np.float32)
    pixels = np.nan_to_num(pixels - np.float32(0.5)).clip(0, limits)
    corner = pixels.astype(np.int32)
    weight = (pixels - corner)[..., None]
    first = corner[..., 1] * width + corner[..., 0]

    def fetch(offset: int) -> np.ndarray:
        values = flat[first + offset].view(np.uint8)
        return values.reshape(*first.shape, 4).astype(np.float32)

    above, below = fetch(0), fetch(width)
    above += weight[..., 0, :] * (fetch(1) - above)
    below += weight[..., 0, :] * (fetch(width + 1) - below)
    return above + weight[..., 1, :] * (below - above)
