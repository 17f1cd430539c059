"""Cameras that look at a point, on orbits and turntables; NumPy, float32."""

import numpy as np
from jaxtyping import Float

from facelift_jax.geometry.numerics import normalize
from facelift_jax.geometry.rigid import rig_up
from facelift_jax.structs import Cameras, Views


def look_at(
    eyes: Float[np.ndarray, "*b 3"],
    targets: Float[np.ndarray, "*b 3"],
    up: Float[np.ndarray, "3"],
) -> Float[np.ndarray, "*b 4 4"]:
    """World-to-camera poses (OpenCV axes) at `eyes`, looking at `targets`.

    `up` points upwards in the image. For a camera that looks along `up`, another axis
    is used instead.
    """
    eyes, up = np.asarray(eyes, np.float64), np.asarray(up, np.float64)
    forward = normalize(np.asarray(targets, np.float64) - eyes)
    is_along_up = np.abs(forward @ normalize(up)) > 1 - 1e-8
    other = np.roll(np.eye(3)[np.argmax(np.abs(up))], 1)
    right = normalize(np.cross(forward, np.where(is_along_up[..., None], other, up)))
    down = np.cross(forward, right)
    rotation = np.stack([right, down, forward], axis=-2)
    viewmats = np.zeros((*eyes.shape[:-1], 4, 4))
    viewmats[..., :3, :3] = rotation
    viewmats[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, eyes)
    viewmats[..., 3, 3] = 1
    return viewmats.astype(np.float32)


def fov_intrinsics(fov_y_degrees: float, size: int) -> Float[np.ndarray, "3 3"]:
    """Intrinsics in pixels of a centered camera with square images of `size` pixels."""
    focal = 0.5 * size / np.tan(0.5 * np.deg2rad(fov_y_degrees))
    K = [[focal, 0, 0.5 * size], [0, focal, 0.5 * size], [0, 0, 1]]
    return np.array(K, np.float32)


def orbit_cameras(
    azimuths_degrees: Float[np.ndarray, "v"],
    elevations_degrees: Float[np.ndarray, "v"],
    radius: float,
    K: Float[np.ndarray, "3 3"],
    size: int,
    up: Float[np.ndarray, "3"] = np.array([0.0, 0.0, 1.0]),
    center: Float[np.ndarray, "3"] = np.zeros(3),
) -> Cameras:
    """Cameras [v] on a sphere around `center`, looking at it; positive elevation is up.

    `radius` and `center` are in world units, `size` is the images' side in pixels.
    With z up, azimuth 0 is on +x and azimuth 90 on +y. For another `up`, the orbit is
    rotated along the shortest arc from z to `up`.
    """
    azimuths, elevations = np.deg2rad(azimuths_degrees), np.deg2rad(elevations_degrees)
    offsets = np.stack(
        [
            np.cos(azimuths) * np.cos(elevations),
            np.sin(azimuths) * np.cos(elevations),
            np.sin(elevations),
        ],
        axis=-1,
    )
    up = np.asarray(normalize(np.asarray(up, np.float64)))
    eyes = np.asarray(center) + radius * offsets @ rotation_from_z(up).T
    viewmats = look_at(eyes, np.broadcast_to(center, eyes.shape), up)
    Ks = np.broadcast_to(np.asarray(K, np.float32), (len(eyes), 3, 3))
    return Cameras(viewmats, np.ascontiguousarray(Ks), size, size)


def turntable_cameras(inputs: Cameras, num_frames: int, size: int) -> Cameras:
    """One turn [num_frames] of a camera around the object of a normalized rig [v].

    The object is at the origin. The axis is the rig's upright axis (`rig_up`);
    distance, elevation and focal length are the means over its cameras.
    """
    up = rig_up(inputs)
    centers = np.asarray(inputs.centers, np.float64)
    radius = float(np.linalg.norm(centers, axis=-1).mean())
    heights = np.clip(normalize(centers) @ up, -1, 1)
    elevation = float(np.rad2deg(np.arcsin(heights)).mean())
    K = np.asarray(inputs.Ks, np.float64).mean(0) * (size / inputs.height)
    K[:2, 2], K[2, 2] = 0.5 * size, 1
    azimuths = np.arange(num_frames) * (360.0 / num_frames)
    elevations = np.full(num_frames, elevation)
    return orbit_cameras(azimuths, elevations, radius, K, size, up)


def dummy_views(num_scenes: int, num_views: int, size: int) -> Views:
    """Black images [b v] from an orbit, with the shapes of a batch."""
    angles = np.arange(num_views) * (360.0 / num_views)
    K = fov_intrinsics(50.0, size)
    orbit = orbit_cameras(angles, np.zeros(num_views), 1.5, K, size)
    lead = (num_scenes, num_views)
    viewmats = np.broadcast_to(orbit.viewmats, (*lead, 4, 4))
    Ks = np.broadcast_to(orbit.Ks, (*lead, 3, 3))
    images = np.zeros((*lead, size, size, 3), np.float32)
    return Views(images, images[..., :1], None, Cameras(viewmats, Ks, size, size))


def rotation_from_z(up: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The rotation along the shortest arc from +z to the unit vector `up`."""
    x, y, z = up
    if z < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    return np.array(
        [
            [1 - x * x / (1 + z), -x * y / (1 + z), x],
            [-x * y / (1 + z), 1 - y * y / (1 + z), y],
            [-x, -y, z],
        ]
    )
