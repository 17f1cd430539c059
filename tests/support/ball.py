"""Images of a ball whose color, silhouette and position are known in closed form."""

import numpy as np

from facelift_jax.geometry.paths import fov_intrinsics, orbit_cameras
from facelift_jax.geometry.rays import ray_directions
from facelift_jax.structs import Cameras, Views

CENTER, RADIUS = np.array([5.0, -3.0, 2.0]), 0.7  # nowhere near a unit box


def ball_cameras(num_views=8, size=48, elevations=(10.0, -30.0, 50.0)) -> Cameras:
    """Evenly spaced around the ball, with different focal lengths in x and y."""
    azimuths = np.arange(num_views) * (360.0 / num_views)
    K = fov_intrinsics(40.0, size) * np.array([[1], [1.04], [1]], np.float32)
    elevations = np.resize(elevations, num_views)
    return orbit_cameras(azimuths, elevations, 3.0, K, size, center=CENTER)


def ball_views(cameras: Cameras) -> Views:
    """The ball on white, colored by its normal; exact at pixel centers."""
    directions = ray_directions(cameras).astype(np.float64)
    offsets = (cameras.centers - CENTER)[:, None, None].astype(np.float64)
    along = (offsets * directions).sum(-1)
    root = along**2 - (offsets**2).sum(-1) + RADIUS**2
    mask = (root > 0)[..., None]
    distance = -along - np.sqrt(np.maximum(root, 0))
    normals = (offsets + distance[..., None] * directions) / RADIUS
    images = np.where(mask, 0.5 + 0.5 * normals, 1)
    return Views(images.astype(np.float32), mask.astype(np.float32), None, cameras)
