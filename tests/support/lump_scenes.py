"""Scenes in memory: exact images of an asymmetric lump of balls, for any cameras."""

from pathlib import Path

import numpy as np

from facelift_jax.data.scenes import Scene
from facelift_jax.geometry.paths import look_at
from facelift_jax.structs import Cameras

# center and radius of each ball
LUMP = np.array(
    [[0, 0, 0, 0.35], [0.5, 0.1, 0.1, 0.2], [-0.1, 0.45, -0.1, 0.15], [0, 0, 0.5, 0.1]]
)
UP = np.array([0.0, 0.0, 1.0])
SAMPLES = 4  # per side of a pixel


def ring(num_views=6, size=48, focal=1.1, distance=2.7, elevations=(20.0,)):
    """Cameras around the origin: even azimuths, repeating elevations in degrees."""
    azimuths = 2 * np.pi * np.arange(num_views) / num_views + 0.2
    heights = np.deg2rad(np.resize(elevations, num_views))
    x, y = np.cos(azimuths) * np.cos(heights), np.sin(azimuths) * np.cos(heights)
    eyes = distance * np.stack([x, y, np.sin(heights)], axis=-1)
    return aimed(eyes, size, focal)


def aimed(eyes, size, focal):
    """Cameras at `eyes` that look at the origin; `focal` in sides of the image."""
    K = np.diag([focal * size, focal * size, 1.0])
    K[:2, 2] = size / 2
    viewmats = look_at(eyes, np.zeros_like(eyes), UP)
    Ks = np.repeat(K[None], len(eyes), axis=0).astype(np.float32)
    return Cameras(viewmats, Ks, size, size)


def image(viewmat, K, width, height, balls=LUMP):
    """RGBA uint8 of one view; alpha is the covered share of SAMPLES^2 points."""
    x = (np.arange(width * SAMPLES) + 0.5) / SAMPLES
    y = (np.arange(height * SAMPLES) + 0.5) / SAMPLES
    x, y = np.meshgrid((x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1])
    rays = np.stack([x, y, np.ones_like(x)], axis=-1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    is_hit = np.zeros(x.shape, bool)
    for ball in balls.astype(np.float64):
        center = viewmat[:3, :3] @ ball[:3] + viewmat[:3, 3]
        along = rays @ center
        is_hit |= (center @ center - along**2 < ball[3] ** 2) & (along > 0)
    share = is_hit.reshape(height, SAMPLES, width, SAMPLES).mean(axis=(1, 3))
    color = np.broadcast_to(np.uint8([200, 80, 40]), (height, width, 3))
    alpha = np.rint(255 * share).astype(np.uint8)
    return np.concatenate([color, alpha[..., None]], axis=-1)


def lump_scene(cameras=None, balls=LUMP):
    """A scene in memory; every view has another color."""
    cameras = ring() if cameras is None else cameras
    size = cameras.width, cameras.height
    views = zip(np.float64(cameras.viewmats), np.float64(cameras.Ks), strict=True)
    rgba = np.stack([image(*view, *size, balls) for view in views])
    rgba[..., 2] = np.arange(len(rgba))[:, None, None]
    is_input = np.zeros(len(rgba), bool)
    return Scene("s", Path("s"), rgba, None, cameras, is_input)
