"""Pose sampling, forward kinematics and linear blend skinning."""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from facelift_jax.data.rodent.asset import BODY_LENGTH_METERS, Rodent, Skeleton
from facelift_jax.geometry.rotations import rotation_vector_to_matrix

# Largest deviation from the rest angle, as a fraction of half the range of motion.
_SPINE_SHARES = {"extend": 0.56, "bend": 0.56, "twist": 0.25}
_NECK_SHARES = {"extend": 0.36, "bend": 0.48, "twist": 0.24}
_TAIL_SHARES = {"extend": 0.26, "bend": 0.68}
_LIMB_SHARE = 0.3
_TAIL_VERTEBRAE = 30  # C1 at the root
_NECK_JOINTS = ("vertebra_cervical", "vertebra_axis", "vertebra_atlant", "atlas")
# The mouth of the rest pose is open. These angles, beyond the limit, close it.
_SHUT_JAW_RADIANS = (-0.52, -0.42)


@dataclass(frozen=True)
class PosedMesh:
    """The animal in the unit ball of the world frame (z up), over n vertices.

    Attributes:
      vertices: [n 3] float32.
      fur_directions: [n 3] float32, unit: the rest pose's +x (nose) direction, posed.
      body_length: world units of one body length, the unit of texture coordinates.
    """

    vertices: np.ndarray
    fur_directions: np.ndarray
    body_length: float


def sample_pose(rodent: Rodent, rng: np.random.Generator) -> dict[str, Any]:
    """A random pose as JSON values: joint angles, proportions, orientation."""
    skeleton = rodent.skeleton
    spine, neck, tail = (
        {motion: rng.uniform(-share, share) for motion, share in shares.items()}
        for shares in (_SPINE_SHARES, _NECK_SHARES, _TAIL_SHARES)
    )
    tail_tip = 0.3 * tail["bend"] + rng.uniform(-0.68, 0.68)  # sometimes an S shape
    angles = []
    for joint, name in enumerate(skeleton.joint_names):
        low, high = skeleton.joint_limits[joint]
        motion = name.split("_")[-1]
        if name == "mandible":
            angles.append(rng.uniform(*_SHUT_JAW_RADIANS))
            continue
        if name.startswith("vertebra_C"):
            along = _tail_number(name) / _TAIL_VERTEBRAE
            end = tail_tip if motion == "bend" else 0.0
            share = tail[motion] * (1 - along) + end * along
        elif name.startswith(_NECK_JOINTS):
            share = neck.get(motion, neck["extend"])
        elif name.startswith("vertebra"):
            share = spine[motion]
        else:
            share = rng.uniform(-_LIMB_SHARE, _LIMB_SHARE)
        angle = skeleton.joint_rest[joint] + share * (high - low) / 2
        angles.append(min(max(angle, low), high))  # rest is not always mid-range
    return {
        "joint_radians": [float(angle) for angle in angles],
        "tail_length": rng.uniform(0.55, 0.9),
        "proportions": [1.0, rng.uniform(0.92, 1.12), rng.uniform(0.95, 1.1)],
        "pitch_radians": math.radians(rng.normal(0, 6)),
        "yaw_radians": rng.uniform(0, 2 * math.pi),
    }


def pose_mesh(rodent: Rodent, pose: dict[str, Any]) -> PosedMesh:
    """Poses the skin, rotates it in the world frame and scales it to the unit ball."""
    angles = np.array(pose["joint_radians"], np.float64)
    rotations, positions = _body_frames(rodent.skeleton, angles, pose["tail_length"])
    bones = rodent.bone_bodies
    bone_motions = rotations[bones] @ rodent.bone_rotations.transpose(0, 2, 1)
    shifts = positions[bones] - np.einsum(
        "kij,kj->ki", bone_motions, rodent.bone_positions
    )
    motions = np.concatenate([bone_motions, shifts[..., None]], axis=-1)
    motions = (rodent.weights @ motions.reshape(-1, 12)).reshape(-1, 3, 4)
    skin = np.einsum("nij,nj->ni", motions[..., :3], rodent.skin) + motions[..., 3]
    eyes = _eyes(rodent, rotations, positions)
    vertices = np.concatenate([skin, eyes]) * np.array(pose["proportions"])
    directions = np.zeros_like(vertices)
    directions[:] = (1, 0, 0)
    directions[: len(skin)] = motions[..., 0]

    orientation = _orientation(pose["pitch_radians"], pose["yaw_radians"])
    vertices = np.einsum("ij,nj->ni", orientation, vertices)
    directions = np.einsum("ij,nj->ni", orientation, directions)
    directions /= np.sqrt((directions**2).sum(-1, keepdims=True))
    vertices -= (vertices.min(0) + vertices.max(0)) / 2
    world_per_meter = 1 / np.sqrt((vertices**2).sum(-1).max())
    return PosedMesh(
        (vertices * world_per_meter).astype(np.float32),
        directions.astype(np.float32),
        float(world_per_meter * BODY_LENGTH_METERS),
    )


def _body_frames(
    skeleton: Skeleton, angles: Float[np.ndarray, "j"], tail_length: float
) -> tuple[Float[np.ndarray, "b 3 3"], Float[np.ndarray, "b 3"]]:
    """Rotation and origin of every body in the model's frame, meters.

    A joint rotates its body about an axis through its anchor, which stays in place.
    """
    turns = (angles - skeleton.joint_rest)[:, None] * skeleton.joint_axes
    turns = rotation_vector_to_matrix(turns)
    num_bodies = len(skeleton.parents)
    rotations = np.tile(np.eye(3), (num_bodies, 1, 1))
    positions = np.zeros((num_bodies, 3))
    for body in range(1, num_bodies):
        parent = skeleton.parents[body]
        offset = skeleton.offsets[body]
        if _tail_number(skeleton.body_names[body]) >= 2:  # C1 is part of the pelvis
            offset = offset * tail_length
        position = positions[parent] + rotations[parent] @ offset
        rotation = rotations[parent] @ skeleton.rotations[body]
        for joint in np.flatnonzero(skeleton.joint_bodies == body):
            anchor = position + rotation @ skeleton.joint_anchors[joint]
            rotation = rotation @ turns[joint]
            position = anchor - rotation @ skeleton.joint_anchors[joint]
        rotations[body], positions[body] = rotation, position
    return rotations, positions


def _eyes(
    rodent: Rodent,
    rotations: Float[np.ndarray, "b 3 3"],
    positions: Float[np.ndarray, "b 3"],
) -> Float[np.ndarray, "e 3"]:
    bodies = rodent.eye_bodies
    offsets = np.einsum("kij,kj->ki", rotations[bodies], rodent.eye_positions)
    centers = positions[bodies] + offsets
    spheres = rodent.eye_sphere[None] * rodent.eye_radii[:, None, None]
    return (centers[:, None] + spheres).reshape(-1, 3)


def _orientation(pitch: float, yaw: float) -> Float[np.ndarray, "3 3"]:
    """Rotation by pitch about y (positive: nose down), then yaw about z."""
    turns = rotation_vector_to_matrix(np.array([[0, 0, yaw], [0, pitch, 0]]))
    return np.asarray(turns[0] @ turns[1])


def _tail_number(name: str) -> int:
    """7 for vertebra_C7 and its joints, 0 for anything but a tail vertebra."""
    match = re.match(r"vertebra_C(\d+)", name)
    return int(match[1]) if match else 0
