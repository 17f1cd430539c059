"""Fields on the animal's surface that shading needs, at vertices and at ray hits."""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from facelift_jax.data.rodent.asset import load_rodent
from facelift_jax.data.rodent.noise import value_noise
from facelift_jax.data.rodent.raycast import Hits

_STRAND_WAVES = 14  # bends of the strands per body length
_STRAND_SWAY = 0.012  # their amplitude in body lengths
_CLUMP_WAVES = 9
_PATCH_WAVES = 3.2


@dataclass(frozen=True)
class Surface:
    """Fields over n points, float32.

    Attributes:
      texture: [n 3] position in the rest pose, body lengths.
      regions: [n 4] shares of `asset.REGIONS`.
      normals: [n 3] world frame, unit.
      fur_directions: [n 3] world frame, unit, towards the nose.
      sway: [n 3] sideways displacement of the fur strands, body lengths.
      belly: [n] 1 below the animal, 0 on its sides and back.
      clumps: [n] slow noise in [-1, 1].
      patch_noise: [n] slower noise in [-1, 1] that places patches of a second coat.
      skylight: [n] light from the visible part of the sky, about 1 if unoccluded.
      sunlight: [n] visible share of the soft key light.
    """

    texture: np.ndarray
    regions: np.ndarray
    normals: np.ndarray
    fur_directions: np.ndarray
    sway: np.ndarray
    belly: np.ndarray
    clumps: np.ndarray
    patch_noise: np.ndarray
    skylight: np.ndarray
    sunlight: np.ndarray


def vertex_table(surface: Surface) -> Float[np.ndarray, "n k"]:
    """All fields of a surface as columns of one array, k = 21 numbers per point."""
    fields = (getattr(surface, name) for name in _WIDTHS)
    columns = [f if f.ndim == 2 else f[:, None] for f in fields]
    return np.concatenate(columns, axis=1).astype(np.float32)


def surface_at(
    table: Float[np.ndarray, "n k"], faces: Int[np.ndarray, "m 3"], hits: Hits
) -> Surface:
    """Fields at ray hits, interpolated linearly in each triangle; normals are unit."""
    corners = faces[hits.triangles]
    points = table[corners[:, 0]] * (1 - hits.u - hits.v)[:, None]
    points += table[corners[:, 1]] * hits.u[:, None]
    points += table[corners[:, 2]] * hits.v[:, None]
    columns = np.ascontiguousarray(points.T)  # shading reads one field at a time
    fields, start = {}, 0
    for name, width in _WIDTHS.items():
        block = columns[start : start + width]
        fields[name] = block[0] if width == 1 else block.T
        start += width
    fields["normals"] = unit(fields["normals"])
    return Surface(**fields)


_WIDTHS = {
    "texture": 3,
    "regions": 4,
    "normals": 3,
    "fur_directions": 3,
    "sway": 3,
    "belly": 1,
    "clumps": 1,
    "patch_noise": 1,
    "skylight": 1,
    "sunlight": 1,
}


@functools.cache
def resting_fields() -> dict[str, Float[np.ndarray, "n ..."]]:
    """The fields of a `Surface` that do not depend on pose, coat or light."""
    rodent = load_rodent()
    texture = rodent.texture
    sideways = [value_noise(texture * _STRAND_WAVES + 5 * k, k) for k in (0, 1)]
    sway = np.stack([np.zeros_like(sideways[0]), *sideways], axis=1)
    return {
        "texture": texture,
        "regions": rodent.regions,
        "sway": _STRAND_SWAY * sway,
        "belly": np.clip(-1.6 * rodent.rest_normals[:, 2] - 0.4, 0, 1),
        "clumps": value_noise(texture * _CLUMP_WAVES + 3, 2),
    }


def patch_noise(offset: list[float]) -> Float[np.ndarray, "n"]:
    """Noise at the vertices of the rest pose, different for every offset."""
    points = load_rodent().texture * _PATCH_WAVES + np.array(offset)
    return value_noise(points, 3)


def unit(vectors: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Vectors scaled to unit length; zero vectors stay zero."""
    x, y, z = vectors.T
    lengths = np.sqrt(x * x + y * y + z * z)
    return vectors / np.maximum(lengths, 1e-9)[:, None]
