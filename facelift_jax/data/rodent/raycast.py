"""Rays against triangles by Embree, one after another: the same bits every time."""

import functools
from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore import EmbreeDevice
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float, Int

_FREE = -1  # embreex's answer for a ray that meets nothing


@dataclass(frozen=True)
class Hits:
    """First hits of n rays.

    Attributes:
      triangles: [n] int32 index of the triangle, -1 where the ray meets nothing.
      u, v: [n] barycentric weights of the triangle's second and third corner.
      distances: [n] in lengths of the ray's direction; huge where nothing is met.
    """

    triangles: np.ndarray
    u: np.ndarray
    v: np.ndarray
    distances: np.ndarray

    @property
    def found(self) -> Bool[np.ndarray, "n"]:
        """Which rays met something."""
        return self.triangles >= 0

    def select(self, index: Int[np.ndarray, "k"]) -> "Hits":
        """The hits of some of the rays."""
        fields = (self.triangles, self.u, self.v, self.distances)
        return Hits(*(field[index] for field in fields))


def build(
    vertices: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "m 3"]
) -> EmbreeScene:
    """A mesh ready for rays; watertight along shared edges."""
    scene = EmbreeScene(_device(), robust=True)
    TriangleMesh(scene, np.ascontiguousarray(vertices, np.float32), faces)
    return scene


def cast(
    scene: EmbreeScene,
    origin: Float[np.ndarray, "3"],
    directions: Float[np.ndarray, "n 3"],
) -> Hits:
    """First hits of rays from one point; directions need not have unit length."""
    directions = np.ascontiguousarray(directions, np.float32)
    origins = np.tile(np.asarray(origin, np.float32), (len(directions), 1))
    found = scene.run(origins, directions, output=True)
    return Hits(found["primID"], found["u"], found["v"], found["tfar"])


def is_free(
    scene: EmbreeScene,
    origins: Float[np.ndarray, "n 3"],
    directions: Float[np.ndarray, "n 3"],
) -> Bool[np.ndarray, "n"]:
    """Whether nothing lies along each ray."""
    origins = np.ascontiguousarray(origins, np.float32)
    directions = np.ascontiguousarray(directions, np.float32)
    return scene.run(origins, directions, query="OCCLUDED") == _FREE


@functools.cache
def _device() -> EmbreeDevice:
    """One a process: each device starts threads of its own."""
    return EmbreeDevice()
