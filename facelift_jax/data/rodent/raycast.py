"""Casts rays against a triangle mesh with Embree, one by one, so that results repeat.

Embree (the package `embreex`) is imported when the first mesh is built, so that a scene
can be posed and measured without it.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from facelift_jax.io.extras import extra

_NO_HIT = -1  # what embreex returns for a ray that hits nothing


@dataclass(frozen=True)
class Hits:
    """First hits of n rays.

    Attributes:
      triangles: [n] int32 index of the triangle, -1 where the ray hits nothing.
      u, v: [n] barycentric weights of the triangle's second and third corner.
      distances: [n] in units of the ray direction's length; very large without a hit.
    """

    triangles: np.ndarray
    u: np.ndarray
    v: np.ndarray
    distances: np.ndarray

    @property
    def is_hit(self) -> Bool[np.ndarray, "n"]:
        """Which rays hit the mesh."""
        return self.triangles >= 0

    def select(self, index: Int[np.ndarray, "k"]) -> "Hits":
        """The hits of a subset of the rays."""
        fields = (self.triangles, self.u, self.v, self.distances)
        return Hits(*(field[index] for field in fields))


class RayCaster:
    """A triangle mesh that rays can be cast against; watertight along shared edges.

    Args:
      vertices: [n 3].
      faces: [m 3] vertex indices of the triangles.

    Raises:
      ImportError: the package embreex is not installed.
    """

    def __init__(
        self, vertices: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "m 3"]
    ):
        with extra("data"):
            from embreex.mesh_construction import TriangleMesh
            from embreex.rtcore_scene import EmbreeScene
        self._scene = EmbreeScene(_device(), robust=True)
        TriangleMesh(self._scene, np.ascontiguousarray(vertices, np.float32), faces)

    def cast(
        self, origin: Float[np.ndarray, "3"], directions: Float[np.ndarray, "n 3"]
    ) -> Hits:
        """First hits of rays from one point; directions need not have unit length."""
        directions = np.ascontiguousarray(directions, np.float32)
        origins = np.tile(np.asarray(origin, np.float32), (len(directions), 1))
        hits = self._scene.run(origins, directions, output=True)
        return Hits(hits["primID"], hits["u"], hits["v"], hits["tfar"])

    def is_unoccluded(
        self, origins: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
    ) -> Bool[np.ndarray, "n"]:
        """Which rays hit nothing."""
        origins = np.ascontiguousarray(origins, np.float32)
        directions = np.ascontiguousarray(directions, np.float32)
        return self._scene.run(origins, directions, query="OCCLUDED") == _NO_HIT


@functools.cache
def _device() -> Any:
    """One Embree device per process: each device starts its own threads."""
    with extra("data"):
        from embreex.rtcore import EmbreeDevice
    return EmbreeDevice()
