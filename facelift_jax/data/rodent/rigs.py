"""Camera rigs around the unit ball: six input cameras, and cameras on a sphere."""

import math

import numpy as np
from jaxtyping import Float

from facelift_jax.geometry.paths import fov_intrinsics, look_at
from facelift_jax.structs import Cameras

NUM_INPUTS = 6
EVEN_ELEVATION_DEGREES = 20.0
# The rig of a real mouse arena; elevations and distances vary between scenes.
UNEVEN_AZIMUTHS_DEGREES = (-147.0, 34.0, 86.0, -11.0, 144.0, -64.0)
UNEVEN_ELEVATIONS_DEGREES = (11.0, 31.0)
AZIMUTH_JITTER_DEGREES = 4.0
DISTANCE_FACTORS = (0.85, 1.15)
FOCAL_FACTORS = (0.9, 1.04)
ASPECT_FACTORS = (0.99, 1.01)  # fy / fx
PRINCIPAL_OFFSET = 0.025  # at most, as a fraction of the image's side


def check_framing(fov_degrees: float, radius: float, uneven: bool) -> None:
    """Checks that the unit ball is completely visible to every camera.

    Raises:
      ValueError: it is not; one line with the field of view that is needed.
    """
    if not (radius > 1 and 0 < fov_degrees < 180):
        raise ValueError(
            f"camera radius {radius} and field of view {fov_degrees} degrees: expected "
            "a radius above 1 (outside the unit ball) and an angle between 0 and 180"
        )
    nearest = radius * (DISTANCE_FACTORS[0] if uneven else 1)
    tangent = _ball_tangent(radius)
    if uneven:
        tangent *= FOCAL_FACTORS[1] * ASPECT_FACTORS[1] / (1 - 2 * PRINCIPAL_OFFSET)
    needed = 2 * math.degrees(math.atan(tangent))
    if nearest <= 1 or fov_degrees < needed:
        raise ValueError(
            f"cameras at radius {radius} with a field of view of {fov_degrees} degrees "
            f"cut the object off: at this radius {needed:.1f} degrees are needed"
            + (", and at least one camera is inside the object" * (nearest <= 1))
        )


def input_rig(
    rng: np.random.Generator,
    size: int,
    fov_degrees: float,
    radius: float,
    uneven: bool,
) -> Cameras:
    """Six cameras [6]: an even ring, or the uneven rig of a real arena.

    `radius` and distances are in world units, `size` in pixels.
    """
    if not uneven:
        azimuths = np.arange(NUM_INPUTS) * (360.0 / NUM_INPUTS)
        elevations = np.full(NUM_INPUTS, EVEN_ELEVATION_DEGREES)
        eyes = radius * _directions(azimuths, elevations)
        return _aimed_at_origin(eyes, fov_intrinsics(fov_degrees, size), size)

    jitter = rng.uniform(-1, 1, NUM_INPUTS) * AZIMUTH_JITTER_DEGREES
    azimuths = np.array(UNEVEN_AZIMUTHS_DEGREES) + jitter
    elevations = rng.uniform(*UNEVEN_ELEVATIONS_DEGREES, NUM_INPUTS)
    distances = radius * rng.uniform(*DISTANCE_FACTORS, NUM_INPUTS)
    # Focal lengths follow the distances, so the object fills all images equally.
    fill = [_ball_tangent(radius) / _ball_tangent(distance) for distance in distances]
    focal = fov_intrinsics(fov_degrees, size)[0, 0] * np.array(fill)
    focal = focal * rng.uniform(*FOCAL_FACTORS, NUM_INPUTS)
    offsets = rng.uniform(-1, 1, (NUM_INPUTS, 2)) * PRINCIPAL_OFFSET
    Ks = np.zeros((NUM_INPUTS, 3, 3))
    Ks[:, 0, 0] = focal
    Ks[:, 1, 1] = focal * rng.uniform(*ASPECT_FACTORS, NUM_INPUTS)
    Ks[:, :2, 2] = size * (0.5 + offsets)
    Ks[:, 2, 2] = 1
    eyes = distances[:, None] * _directions(azimuths, elevations)
    return _aimed_at_origin(eyes, Ks, size)


def sphere_rig(
    rng: np.random.Generator,
    num_views: int,
    size: int,
    fov_degrees: float,
    radius: float,
) -> Cameras:
    """Cameras [num_views] uniform over the area of the whole sphere.

    `radius` is in world units, `size` in pixels.
    """
    # One row of draws per camera: more cameras do not change the first ones.
    draws = rng.uniform(-1, 1, (num_views, 2))
    azimuths = 180 * draws[:, 0]
    elevations = np.rad2deg(np.arcsin(draws[:, 1]))
    eyes = radius * _directions(azimuths, elevations)
    return _aimed_at_origin(eyes, fov_intrinsics(fov_degrees, size), size)


def _ball_tangent(distance: float) -> float:
    """Tangent of the unit ball's angular radius seen from a distance above 1."""
    return 1 / math.sqrt(distance**2 - 1)


def _directions(
    azimuths_degrees: Float[np.ndarray, "v"], elevations_degrees: Float[np.ndarray, "v"]
) -> Float[np.ndarray, "v 3"]:
    """Unit vectors; azimuth 0 is +x, 90 is +y; positive elevation is towards +z."""
    azimuths, elevations = np.deg2rad(azimuths_degrees), np.deg2rad(elevations_degrees)
    x, y = np.cos(azimuths) * np.cos(elevations), np.sin(azimuths) * np.cos(elevations)
    return np.stack([x, y, np.sin(elevations)], axis=-1)


def _aimed_at_origin(
    eyes: Float[np.ndarray, "v 3"], Ks: Float[np.ndarray, "*v 3 3"], size: int
) -> Cameras:
    viewmats = look_at(eyes, np.zeros_like(eyes), np.array([0.0, 0.0, 1.0]))
    Ks = np.broadcast_to(Ks, (len(eyes), 3, 3)).astype(np.float32)
    return Cameras(viewmats, Ks, size, size)
