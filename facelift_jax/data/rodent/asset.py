"""The rat model: skin, skeleton and body regions as plain arrays.

The sphere and the vertex normals are computed here, not by trimesh: its icosphere has
another vertex order and its normals differ in the last bits, and either would change
the bits of every generated scene. Evaluation also poses the mesh without trimesh.
"""

import functools
import importlib.resources
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from facelift_jax.geometry.rotations import quat_to_matrix

BODY_LENGTH_METERS = 0.25  # about nose to tail root; unit of texture coordinates
REGIONS = ("fur", "pink", "tail", "eye")
EYE_SUBDIVISIONS = 2


@dataclass(frozen=True)
class Skeleton:
    """A tree of bodies, parents first; the joints of a body rotate it in order.

    Attributes:
      parents: [b] index of each body's parent; body 0 is the world.
      offsets: [b 3] position in the parent's frame, meters.
      rotations: [b 3 3] rotation in the parent's frame at rest.
      body_names: b names.
      joint_bodies: [j] the body each joint rotates.
      joint_anchors: [j 3] a point on the joint's axis, body frame, meters.
      joint_axes: [j 3] unit axes, body frame.
      joint_limits: [j 2] radians.
      joint_rest: [j] angles in the rest pose, radians.
      joint_names: j names.
    """

    parents: np.ndarray
    offsets: np.ndarray
    rotations: np.ndarray
    body_names: tuple[str, ...]
    joint_bodies: np.ndarray
    joint_anchors: np.ndarray
    joint_axes: np.ndarray
    joint_limits: np.ndarray
    joint_rest: np.ndarray
    joint_names: tuple[str, ...]


@dataclass(frozen=True)
class Rodent:
    """The animal in its rest pose (meters; +x nose, +z up): skin first, then eyes.

    Attributes:
      skeleton: bodies and joints.
      skin: [s 3] vertices of the skin.
      weights: [s k] sparse skinning weights over k bones; rows sum to one.
      bone_bodies: [k] the body each bone is attached to.
      bone_rotations: [k 3 3] bone to world in the rest pose.
      bone_positions: [k 3] bone origins in the rest pose.
      eye_bodies, eye_positions, eye_radii: [2], [2 3] (body frame), [2].
      eye_sphere: [e 3] vertices of the unit sphere that represents an eye.
      faces: [m 3] triangles of skin and eyes, over n = s + 2 e vertices.
      weld: [n] an index shared by vertices that coincide at rest (texture seams).
      texture: [n 3] rest position in body lengths; zero at the eyes.
      regions: [n 4] shares of fur, pink skin, tail and eye; they sum to one.
      rest_normals: [n 3] unit normals of the rest pose.
    """

    skeleton: Skeleton
    skin: np.ndarray
    weights: scipy.sparse.csr_matrix
    bone_bodies: np.ndarray
    bone_rotations: np.ndarray
    bone_positions: np.ndarray
    eye_bodies: np.ndarray
    eye_positions: np.ndarray
    eye_radii: np.ndarray
    eye_sphere: np.ndarray
    faces: np.ndarray
    weld: np.ndarray
    texture: np.ndarray
    regions: np.ndarray
    rest_normals: np.ndarray


@functools.cache
def load_rodent() -> Rodent:
    """The model that ships with this package; NOTICE names its origin."""
    path = importlib.resources.files("facelift_jax.data.rodent") / "rodent.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    skeleton = _skeleton(arrays)
    skin = arrays["vert"].astype(np.float64)
    weights = _skinning_weights(arrays, len(skin))
    sphere, sphere_faces = icosphere(EYE_SUBDIVISIONS)
    starts = len(skin) + len(sphere) * np.arange(2)
    faces = [arrays["face"].astype(np.int32), *(sphere_faces + s for s in starts)]
    faces = np.concatenate(faces).astype(np.int32)
    # the offsets keep the eyes apart from each other and from the skin
    rest = np.concatenate([skin, *(sphere + 10 * k for k in (1, 2))])
    weld = np.unique(rest.round(6), axis=0, return_inverse=True)[1].reshape(-1)
    bone_names = [skeleton.body_names[body] for body in arrays["bone_body"]]
    texture = np.zeros_like(rest)
    texture[: len(skin)] = skin / BODY_LENGTH_METERS
    return Rodent(
        skeleton=skeleton,
        skin=skin,
        weights=weights,
        bone_bodies=arrays["bone_body"].astype(np.int64),
        bone_rotations=np.asarray(
            quat_to_matrix(arrays["bindquat"].astype(np.float64))
        ),
        bone_positions=arrays["bindpos"].astype(np.float64),
        eye_bodies=arrays["eye_body"],
        eye_positions=arrays["eye_pos"],
        eye_radii=arrays["eye_r"],
        eye_sphere=sphere,
        faces=faces,
        weld=weld,
        texture=texture,
        regions=_regions(skin, weights, bone_names, 2 * len(sphere)),
        rest_normals=vertex_normals(rest, faces, weld),
    )


def vertex_normals(
    vertices: Float[np.ndarray, "n 3"],
    faces: Int[np.ndarray, "m 3"],
    weld: Int[np.ndarray, "n"],
) -> Float[np.ndarray, "n 3"]:
    """Unit normals, area-weighted over the faces at all vertices of a weld."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    face_normals = np.cross(b - a, c - a)
    corners = weld[faces]
    sums = np.zeros((weld.max() + 1, 3))
    for axis in range(3):
        for corner in range(3):
            sums[:, axis] += np.bincount(
                corners[:, corner], face_normals[:, axis], minlength=len(sums)
            )
    lengths = np.sqrt((sums * sums).sum(-1, keepdims=True))
    return (sums / np.maximum(lengths, 1e-30))[weld]


def icosphere(
    subdivisions: int,
) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "m 3"]]:
    """Unit sphere: an icosahedron, each face split in four `subdivisions` times."""
    t = 0.5 * (1 + np.sqrt(5))
    corners = [(y, z, 0.0) for y in (-1, 1) for z in (-t, t)]
    points = np.array([np.roll(corner, k) for corner in corners for k in range(3)])
    edges = np.linalg.norm(points[:, None] - points[None], axis=-1)
    near = np.isclose(edges, 2)
    faces = [
        (i, j, k) if np.linalg.det(points[[i, j, k]]) > 0 else (i, k, j)
        for i in range(12)
        for j in range(i + 1, 12)
        for k in range(j + 1, 12)
        if near[i, j] and near[j, k] and near[i, k]
    ]
    faces = np.array(faces)
    for _ in range(subdivisions):
        sides = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
        unique, middle = np.unique(sides, axis=0, return_inverse=True)
        ab, bc, ca = (len(points) + middle.reshape(-1, 3)).T
        a, b, c = faces.T
        points = np.concatenate([points, points[unique].mean(1)])
        quarters = [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        faces = np.concatenate([np.stack(quarter, 1) for quarter in quarters])
    return points / np.linalg.norm(points, axis=1, keepdims=True), faces


def _skeleton(arrays: dict[str, np.ndarray]) -> Skeleton:
    return Skeleton(
        parents=arrays["body_parent"].astype(np.int64),
        offsets=arrays["body_pos"],
        rotations=np.asarray(quat_to_matrix(arrays["body_quat"])),
        body_names=tuple(str(name) for name in arrays["body_name"]),
        joint_bodies=arrays["jnt_body"].astype(np.int64),
        joint_anchors=arrays["jnt_pos"],
        joint_axes=arrays["jnt_axis"],
        joint_limits=arrays["jnt_range"],
        joint_rest=arrays["qpos0"],
        joint_names=tuple(str(name) for name in arrays["jnt_name"]),
    )


def _skinning_weights(
    arrays: dict[str, np.ndarray], num_vertices: int
) -> scipy.sparse.csr_matrix:
    values = arrays["w"].astype(np.float64)
    vertices = arrays["w_id"].astype(np.int64)
    bones = arrays["w_bone"].astype(np.int64)
    values /= np.bincount(vertices, values, minlength=num_vertices)[vertices]
    shape = (num_vertices, len(arrays["bone_body"]))
    return scipy.sparse.csr_matrix((values, (vertices, bones)), shape)


def _regions(
    skin: Float[np.ndarray, "s 3"],
    weights: scipy.sparse.csr_matrix,
    bone_names: list[str],
    num_eye_vertices: int,
) -> Float[np.ndarray, "n 4"]:
    """Shares of `REGIONS` at every vertex, from its bones and its rest position.

    The constants were chosen by eye on images of the rest pose.
    """

    def share_of(*prefixes: str) -> np.ndarray:
        chosen = [float(name.startswith(prefixes)) for name in bone_names]
        return weights @ np.array(chosen)

    x, y, z = skin.T
    skull = share_of("skull")
    tail = np.clip(1.15 * share_of("vertebra_C") - 0.1, 0, 1)
    feet = 1.3 * share_of("foot", "toe", "hand", "finger") - 0.25
    is_high, is_lateral = (z - 0.1005) / 0.003, (np.abs(y) - 0.012) / 0.003
    ears = np.clip(is_high, 0, 1) * np.clip(is_lateral, 0, 1) * skull
    nose = np.exp(-(((x.max() - x) / 0.006) ** 2)) * (skull + share_of("jaw"))
    bare = np.clip(np.maximum.reduce([feet, 0.75 * ears, nose]), 0, 1)
    pink = bare * (1 - tail)
    regions = np.zeros((len(skin) + num_eye_vertices, len(REGIONS)))
    regions[: len(skin), 0] = 1 - tail - pink
    regions[: len(skin), 1] = pink
    regions[: len(skin), 2] = tail
    regions[len(skin) :, 3] = 1
    return regions
