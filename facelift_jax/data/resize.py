"""Pictures to the size and background asked for; intrinsics follow every step.

Pictures are composited first and resized afterwards, in float: that is the same as
resizing premultiplied colour, so a silhouette gets no fringe from colours under zero
alpha, and never the rounding of an 8-bit detour.
"""

import functools

import numpy as np
from jaxtyping import Float

from facelift_jax.data.io import DataError
from facelift_jax.data.scenes import Scene
from facelift_jax.structs import Cameras, Views


def to_views(scene: Scene, size: int, background: tuple[float, float, float]) -> Views:
    """The scene's views [v] as squares of `size` pixels on a background, RGB in [0, 1].

    Pictures that are not square are cut to their central square.

    Raises:
      DataError: the cut would lose part of the object.
    """
    views = composite(scene, background)
    height, width = views.images.shape[1:3]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    inside = crop(views, left, top, side, side)
    for view, (whole, kept) in enumerate(zip(views.masks, inside.masks, strict=True)):
        lost = np.sum(whole > 0.5) - np.sum(kept > 0.5)
        if lost > 0:
            raise DataError(
                f"scene {scene.name} ({scene.path}): the central square of a picture "
                f"of {width} x {height} px cuts {lost} of the object's pixels off "
                f"(chosen view {view}); store square pictures around the object"
            )
    return resize(inside, size, size)


def composite(scene: Scene, background: tuple[float, float, float]) -> Views:
    """The scene's views [v] with colours on a background, RGB in [0, 1]."""
    color, unit = np.asarray(background, np.float32), np.float32(1 / 255)
    images, masks = scene.rgba[..., :3] * unit, scene.rgba[..., 3:] * unit
    images -= color  # in place: this is the pipeline's largest array
    images *= masks
    images += color
    return Views(images, masks, scene.depths, scene.cameras)


def crop(views: Views, left: int, top: int, width: int, height: int) -> Views:
    """The window of `width` x `height` pixels whose first pixel is (left, top)."""
    cameras = views.cameras
    if not (
        0 <= left <= left + width <= cameras.width
        and 0 <= top <= top + height <= cameras.height
    ):
        raise ValueError(
            f"a window of {width} x {height} px at ({left}, {top}) does not lie in "
            f"pictures of {cameras.width} x {cameras.height} px"
        )
    rows, columns = slice(top, top + height), slice(left, left + width)
    Ks = cameras.Ks.copy()
    Ks[..., :2, 2] -= np.array([left, top], np.float32)
    return Views(
        views.images[:, rows, columns],
        views.masks[:, rows, columns],
        None if views.depths is None else views.depths[:, rows, columns],
        Cameras(cameras.viewmats, Ks, width, height),
    )


def resize(views: Views, width: int, height: int) -> Views:
    """The views [v] at another size, intrinsics scaled along.

    A smaller picture's pixel is the mean over the area it covers, which is what a
    camera with larger pixels records (LGM's plain bilinear sampling is the same at half
    size and skips pixels below it); a larger picture is bilinear. Depths take the
    nearest pixel, so no depth between object and background is invented.
    """
    cameras = views.cameras
    if (width, height) == (cameras.width, cameras.height):
        return views
    scale = np.array([width / cameras.width, height / cameras.height], np.float32)
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
    """One axis at another length: a weighted sum of the pixels each new pixel meets."""
    indices, weights = _taps(images.shape[axis], new)
    shape = [1, 1, 1, 1]
    shape[axis] = new
    terms = (
        np.take(images, index, axis) * weight.reshape(shape)
        for index, weight in zip(indices.T, weights.T, strict=True)
    )
    return functools.reduce(np.add, terms)


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Old pixels [new taps] that make up each new pixel, and weights that sum to 1."""
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
    """The image at columns `xs` and rows `ys` in [-1, 1], from edge to edge.

    Between pixel centres bilinear, beyond the outermost centres their colour. (The
    original pads with black there, which no picture on a white background shows.)
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
