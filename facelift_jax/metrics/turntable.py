"""How smoothly images change while the camera turns once around. NumPy except SSIM.

Notation: I_t, A_t and D_t are color, opacity and camera-z depth of frame t of f; frame
f equals frame 0. d_t = 1 - SSIM(I_t, I_{t+1}), computed on the bounding box of all
pixels with A > .5 in any frame.
"""

import jax
import numpy as np
import scipy.ndimage
from jaxtyping import Float, Int

from facelift_jax.geometry.numerics import normalize
from facelift_jax.geometry.rays import project, unproject
from facelift_jax.geometry.rigid import rig_up
from facelift_jax.metrics.image import SSIM_WINDOW, ssim
from facelift_jax.structs import Cameras, RenderOutput

TURNTABLE_DEFINITIONS = {
    "vps": "view popping score: largest d over median d; 1 if images change evenly",
    "p6": "share of the energy of d without its mean at v, 2 v and 3 v cycles per "
    "turn, for v evenly spaced input views: high for flat images in front of them; a "
    "low value alone is not evidence of correct geometry",
    "warp_error": "mean |I_t - I_{t+1}| over points, located by D_t, that both frames "
    "show",
    "warp_share": "share of the pixels with A_t > .5 that warp_error compares",
}
"""Name -> definition, per scene."""

# of the object's radius; points farther than this from D_{t+1} are hidden
HIDDEN = 0.05
EVEN_DEGREES = 5.0  # tolerance for evenly spaced cameras


def turntable_metrics(
    frames: RenderOutput, cameras: Cameras, inputs: Cameras, radius: float
) -> dict[str, float]:
    """The metrics of `TURNTABLE_DEFINITIONS` for frames [f] of one whole turn.

    `radius` is that of the object, world units.

    p6 measures how much the image changes in the rhythm of the input views. Flat images
    close in front of evenly spaced cameras have .3 to .9, rodents .004 to .03. Flat
    images at other places have values as low as those of real objects. Compare p6 with
    that of the true object, and rely on held-out views and the own-view share.

    NaN marks undefined values: nothing is visible; the input cameras [v] are fewer than
    three or not evenly spaced (p6); f <= 6 v frames are too few for 3 v cycles (p6).
    """
    changes = frame_changes(frames)
    error, share = warp_error(frames, cameras, radius)
    median = np.median(changes)
    num_inputs = len(inputs.viewmats)
    return {
        "vps": float(changes.max() / median) if median > 0 else float("nan"),
        "p6": rhythm(changes, num_inputs) if is_even(inputs) else float("nan"),
        "warp_error": error,
        "warp_share": share,
    }


def frame_changes(frames: RenderOutput) -> Float[np.ndarray, "f"]:
    """d of every frame; zeros if no frame shows anything."""
    is_shown = (np.asarray(frames.alphas) > 0.5).any(axis=(0, -1))
    if not is_shown.any():
        return np.zeros(len(frames.alphas))
    rows, cols = (
        _interval(np.nonzero(is_shown)[axis], is_shown.shape[axis]) for axis in (0, 1)
    )
    box = np.clip(np.asarray(frames.colors)[:, rows, cols], 0, 1)
    return 1 - np.asarray(jax.jit(ssim)(box, np.roll(box, -1, axis=0)), np.float64)


def rhythm(changes: Float[np.ndarray, "f"], num_inputs: int) -> float:
    """p6: sum of |F_k|^2 at k = v, 2v, 3v over the sum at all k != 0, F the DFT of d.

    The sum over all k is f times the sum of squares of d without its mean (Parseval).
    """
    if len(changes) <= 6 * num_inputs:
        return float("nan")
    centered = changes - float(np.mean(changes))
    energy = len(centered) * (centered**2).sum()
    multiples = num_inputs * np.arange(1, 4)
    part = 2 * (np.abs(np.fft.rfft(centered)[multiples]) ** 2).sum()
    return float(part / energy) if energy > 0 else float("nan")


def is_even(inputs: Cameras) -> bool:
    """Whether there are at least three cameras [v], evenly spaced in azimuth."""
    up = rig_up(inputs)
    centers = np.asarray(inputs.centers, np.float64)
    offsets = centers - centers.mean(axis=0, keepdims=True)
    offsets = offsets - (offsets @ up)[:, None] * up
    front = normalize(offsets[0])
    angles = np.arctan2(offsets @ np.cross(up, front), offsets @ front)
    turned = np.sort(np.rad2deg(angles))
    gaps = np.append(turned[1:], turned[0] + 360) - turned
    num_views = len(centers)
    return num_views >= 3 and bool((abs(gaps - 360 / num_views) < EVEN_DEGREES).all())


def warp_error(
    frames: RenderOutput, cameras: Cameras, radius: float
) -> tuple[float, float]:
    """Mean color error of points that successive frames show, and their share."""
    num_frames, height, width = np.asarray(frames.alphas).shape[:3]
    total, num_compared, num_solid = 0.0, 0, 0
    for this in range(num_frames):
        after = (this + 1) % num_frames
        camera = Cameras(cameras.viewmats[this], cameras.Ks[this], width, height)
        is_solid = (frames.alphas[this] > 0.5) & (frames.depths[this] > 0)
        is_solid = np.asarray(is_solid)[..., 0]
        points = np.asarray(unproject(camera, frames.depths[this]))[is_solid]
        camera = Cameras(cameras.viewmats[after], cameras.Ks[after], width, height)
        pixels, depths = project(camera, points)
        cols, rows = np.floor(pixels).astype(int).T
        is_inside = (cols >= 0) & (cols < width) & (rows >= 0) & (rows < height)
        rows, cols = rows.clip(0, height - 1), cols.clip(0, width - 1)
        depths_after = frames.depths[after][rows, cols, 0]
        is_visible = is_inside & (abs(depths - depths_after) < HIDDEN * radius)
        is_visible &= frames.alphas[after][rows, cols, 0] > 0.5
        image = np.clip(frames.colors[after], 0, 1)
        places = pixels[is_visible].T[::-1] - 0.5
        warped = [
            scipy.ndimage.map_coordinates(
                image[..., c], places, order=1, mode="nearest"
            )
            for c in range(3)
        ]
        expected = np.clip(frames.colors[this], 0, 1)[is_solid][is_visible]
        total += float(np.abs(np.stack(warped, -1) - expected).mean(-1).sum())
        num_compared += int(is_visible.sum())
        num_solid += int(is_solid.sum())
    if num_solid == 0:
        return float("nan"), float("nan")
    error = total / num_compared if num_compared else float("nan")
    return error, num_compared / num_solid


def _interval(places: Int[np.ndarray, "k"], size: int) -> slice:
    """From the lowest to the highest of the places; at least the window of SSIM."""
    low = int(places.min())
    high = min(max(int(places.max()) + 1, low + SSIM_WINDOW), size)
    return slice(min(low, high - SSIM_WINDOW), high)
