"""Lighting: an open sky, a soft key light with shadows, and the shading of the coat.

Sky visibility and shadows are computed per vertex by ray casting, once for all cameras.
Neighboring vertices are about two pixels apart in a 256-pixel image.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from facelift_jax.data.rodent.coat import Strands, albedo
from facelift_jax.data.rodent.raycast import RayCaster
from facelift_jax.data.rodent.surface import Surface, unit

_NUM_SKY_RAYS = 24
_NUM_KEY_RAYS = 12
_KEY_RADIUS = 0.12  # of the key light's disc, at unit distance
_LIFT = 4e-3  # distance of ray origins from the skin, world units
_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


def sample_light(rng: np.random.Generator) -> dict[str, Any]:
    """Random light parameters as JSON values."""
    return {
        "key_azimuth_degrees": rng.uniform(0, 360),
        "key_elevation_degrees": rng.uniform(35, 75),
        "key_strength": rng.uniform(1.6, 2.4),
        "sky_strength": rng.uniform(0.85, 1.25),
        "warmth": rng.uniform(-0.06, 0.06),
    }


def key_direction(light: dict[str, Any]) -> Float[np.ndarray, "3"]:
    """Unit vector towards the key light, world frame."""
    azimuth = math.radians(light["key_azimuth_degrees"])
    elevation = math.radians(light["key_elevation_degrees"])
    across = math.cos(elevation)
    direction = (math.cos(azimuth) * across, math.sin(azimuth) * across)
    return np.array([*direction, math.sin(elevation)], np.float32)


def skylight(
    caster: RayCaster,
    vertices: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
) -> Float[np.ndarray, "n"]:
    """Cosine-weighted light of the unoccluded sky: bright above, dim from below."""
    disc = _disc(_NUM_SKY_RAYS)
    heights = np.sqrt(1 - (disc**2).sum(1))
    tangents, bitangents = _tangent_frames(normals)
    directions = (
        disc[None, :, :1] * tangents[:, None]
        + disc[None, :, 1:] * bitangents[:, None]
        + heights[None, :, None] * normals[:, None]
    )
    brightness = 0.62 + 0.38 * directions[..., 2]
    return (_unoccluded(caster, vertices, normals, directions) * brightness).mean(1)


def sunlight(
    caster: RayCaster,
    vertices: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    light: dict[str, Any],
) -> Float[np.ndarray, "n"]:
    """Fraction of the key light's disc that each vertex sees."""
    center = key_direction(light)
    tangent, bitangent = _tangent_frames(center[None])
    disc = _KEY_RADIUS * _disc(_NUM_KEY_RAYS)
    directions = center + disc[:, :1] * tangent + disc[:, 1:] * bitangent
    directions = np.broadcast_to(directions, (len(vertices), *directions.shape))
    return _unoccluded(caster, vertices, normals, directions).mean(1)


def shade(
    surface: Surface,
    fur: Strands,
    view_directions: Float[np.ndarray, "n 3"],
    coat: dict[str, Any],
    light: dict[str, Any],
) -> Float[np.ndarray, "n 3"]:
    """Linear-light color seen along `view_directions` (camera to surface, any length).

    Wrapped diffuse shading with normals that the strands tilt sideways, plus a
    Blinn-Phong highlight: sharp on the eyes, faint on skin, a sheen on fur.
    """
    is_fur, is_pink, is_tail, is_eye = surface.regions.T
    key = key_direction(light)
    tilt = coat["relief"] * is_fur * (0.7 * fur.coarse + 0.6 * fur.fine)
    tilt += 0.12 * is_pink * fur.coarse
    sideways = unit(np.cross(surface.normals, surface.fur_directions))
    normals = unit(surface.normals + tilt.astype(np.float32)[:, None] * sideways)
    wrap = 0.25 * is_fur + 0.1
    diffuse = np.maximum((_dot(normals, key) + wrap) / (1 + wrap), 0)
    height = 0.55 * fur.coarse + 0.45 * fur.fine
    sky = surface.skylight * (1 + 0.15 * is_fur * height)

    half = unit(key - unit(view_directions))
    facing = np.clip(_dot(surface.normals, half), 0, 1)
    bare = is_pink + is_tail
    shine = 0.018 * is_fur * facing**12 + 0.05 * bare * facing**20
    shine += 0.9 * is_eye * facing**120

    warm = light["warmth"] * np.array([1, 0, -1])
    key_color = (light["key_strength"] * (1 + warm)).astype(np.float32)
    sky_color = (light["sky_strength"] * (1 - 0.6 * warm)).astype(np.float32)
    key_light = (0.55 * surface.sunlight * diffuse)[:, None] * key_color
    color = albedo(surface, fur, coat) * (sky[:, None] * sky_color + key_light)
    color += (shine * surface.sunlight)[:, None] * key_color
    mirrored_sky = 0.03 * is_eye * np.maximum(surface.normals[:, 2], 0)
    return color + mirrored_sky[:, None]


def _unoccluded(
    caster: RayCaster,
    vertices: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    directions: Float[np.ndarray, "n r 3"],
) -> np.ndarray:
    """[n r] whether the ray from each vertex along each of its directions is free."""
    origins = np.repeat(vertices + _LIFT * normals, directions.shape[1], axis=0)
    is_unoccluded = caster.is_unoccluded(origins, directions.reshape(-1, 3))
    return is_unoccluded.reshape(len(vertices), -1)


def _disc(num_points: int) -> Float[np.ndarray, "r 2"]:
    """Evenly spread points on the unit disc (Fibonacci spiral)."""
    index = np.arange(num_points)
    radius = np.sqrt((index + 0.5) / num_points)
    angle = index * _GOLDEN_ANGLE
    spiral = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (radius[:, None] * spiral).astype(np.float32)


def _tangent_frames(
    normals: Float[np.ndarray, "n 3"],
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """Two unit vectors per normal that complete an orthonormal frame, branch-free.

    Duff et al., "Building an Orthonormal Basis, Revisited", JCGT 6(1), 2017.
    """
    x, y, z = normals.T
    sign = np.copysign(np.float32(1), z)
    a = -1 / (sign + z)
    b = x * y * a
    tangents = np.stack([1 + sign * x * x * a, sign * b, -sign * x], axis=1)
    return tangents, np.stack([b, sign + y * y * a, -y], axis=1)


def _dot(
    vectors: Float[np.ndarray, "n 3"], others: Float[np.ndarray, "*n 3"]
) -> Float[np.ndarray, "n"]:
    x, y, z = vectors.T
    return x * others[..., 0] + y * others[..., 1] + z * others[..., 2]
