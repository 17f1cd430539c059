"""Composites, crops and resizes images; every step updates the intrinsics.

Images are first composited on the background and then resized, in float32. This equals
resizing premultiplied color: colors under zero alpha leave no fringe at the outline of
the object, and nothing is rounded to 8 bits in between.
"""

import functools

import numpy as np
from jaxtyping import Float

from facelift_jax.data.io import DataError
from facelift_jax.data.scenes import Scene
from facelift_jax.structs import Cameras, Views


def to_views(scene: Scene, size: int, background: tuple[float, float, float]) -> Views:
    """The scene's views [v] as squares of `size` pixels on a background, RGB in [0, 1].

    Images that are not square are cropped to their central square.

    Raises:
      DataError: the crop would remove part of the object.
    """
    views = composite(scene, background)
    height, width = views.images.shape[1:3]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    inside = crop(views, left, top, side, side)
    for view, (mask, cropped) in enumerate(zip(views.masks, inside.masks, strict=True)):
        lost = np.sum(mask > 0.5) - np.sum(cropped > 0.5)
        if lost > 0:
            raise DataError(
                f"scene {scene.name} ({scene.path}): cropping an image of {width} x "
                f"{height} px to its central square removes {lost} pixels of the "
                f"object (chosen view {view}); store square images around the object"
            )
    return resize(inside, size, size)


def composite(scene: Scene, background: tuple[float, float, float]) -> Views:
    """The scene's views [v] composited on a background, RGB in [0, 1]; float32."""
    color, unit = np.asarray(background, np.float32), np.float32(1 / 255)
    images, masks = scene.rgba[..., :3] * unit, scene.rgba[..., 3:] * unit
    images -= color  # in place: the largest array of the pipeline
    images *= masks
    images += color
    return Views(images, masks, scene.depths, scene.cameras)


def crop(views: Views, left: int, top: int, width: int, height: int) -> Views:
    """The window of `width` x `height` pixels whose first pixel is (left, top).

    Raises:
      ValueError: the window is not inside the images.
    """
    cameras = views.cameras
    if not (
        0 <= left <= left + width <= cameras.width
        and 0 <= top <= top + height <= cameras.height
    ):
        raise ValueError(
            f"a window of {width} x {height} px at ({left}, {top}) is not inside "
            f"images of {cameras.width} x {cameras.height} px"
        )
    rows, columns = slice(top, top + height), slice(left, left + width)
    Ks = cameras.Ks.copy()
    Ks[..., :2, 2] -= np.array([left, top])
    return Views(
        views.images[:, rows, columns],
        views.masks[:, rows, columns],
        None if views.depths is None else views.depths[:, rows, columns],
        Cameras(cameras.viewmats, Ks, width, height),
    )


def resize(views: Views, width: int, height: int) -> Views:
    """The views [v] at another size, with scaled intrinsics.

    A pixel of a smaller image is the mean over the area it covers, which is what a
    camera with larger pixels records. (LGM's bilinear sampling is equal at half the
    size; at smaller sizes it skips pixels.) Enlarging is bilinear. Depths use the
    nearest pixel, so that object and background depths are never blended.
    """
    cameras = views.cameras
    if (width, height) == (cameras.width, cameras.height):
        return views
    scale = np.array([width / cameras.width, height / cameras.height])
    Ks = cameras.Ks.copy()
    Ks[..., :2, :] *= scale[:, None]
    depths = views.depths
    if depths is not None:
        depths = depths[:, _nearest(cameras.height, height)]
        depths = depths[:, :, _nearest(cameras.width, width)]
    return Views(
        _resample(_resample(np.asarray(views.images), 1, height), 2, width),
        _resample(_resample(np.asarray(views.masks), 1, height), 2, width),
        depths,
        Cameras(cameras.viewmats, Ks, width, height),
    )


def _nearest(old: int, new: int) -> np.ndarray:
    return ((np.arange(new) + 0.5) * (old / new)).astype(int)


def _resample(
    images: Float[np.ndarray, "v h w c"], axis: int, new: int
) -> Float[np.ndarray, "v h2 w2 c"]:
    """Resamples one axis: a new pixel is a weighted sum of the old pixels it covers."""
    indices, weights = _taps(images.shape[axis], new)
    shape = [1, 1, 1, 1]
    shape[axis] = new
    terms = (
        np.take(images, index, axis) * weight.reshape(shape)
        for index, weight in zip(indices.T, weights.T, strict=True)
    )
    return functools.reduce(np.add, terms)


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """The old pixels [new taps] of each new pixel, and weights that sum to 1."""
    step = old / new
    if new > old:
        position = np.clip((np.arange(new) + 0.5) * step - 0.5, 0, old - 1)
        first = np.floor(position)
        taps = first[:, None] + np.arange(2)
        weights = 1 - np.abs(taps - position[:, None])
    else:
        edges = np.arange(new + 1) * step
        first = np.floor(edges[:-1])
        taps = first[:, None] + np.arange(int(np.ceil(step)) + 1)
        covered = np.minimum(taps + 1, edges[1:, None])
        covered = covered - np.maximum(taps, edges[:-1, None])
        weights = np.maximum(covered, 0) / step
    used = weights.any(axis=0)
    indices = np.minimum(taps, old - 1).astype(int)
    return indices[:, used], weights[:, used].astype(np.float32)


def sample_bilinear(
    image: Float[np.ndarray, "h w c"],
    xs: Float[np.ndarray, "w2"],
    ys: Float[np.ndarray, "h2"],
) -> Float[np.ndarray, "h2 w2 c"]:
    """Samples the image at columns `xs` and rows `ys` in [-1, 1], from edge to edge.

    Bilinear between pixel centers; beyond the outermost centers, their color repeats.
    (The original LGM pads with black there, which does not fit a white background.)
    """
    for axis, coordinates in ((0, ys), (1, xs)):
        size = image.shape[axis]
        position = np.clip((coordinates + 1) * (0.5 * size) - 0.5, 0, size - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, size - 1)
        share = (position - low).astype(np.float32)
        share = share[:, None, None] if axis == 0 else share[None, :, None]
        below, above = np.take(image, low, axis), np.take(image, high, axis)
        image = below + share * (above - below)
    return image
