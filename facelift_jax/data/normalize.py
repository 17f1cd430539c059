"""The world of an example: one similarity transform that normalizes the whole rig.

A rig is the set of cameras [v] of one scene. All poses are float64.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from facelift_jax.data.io import DataError
from facelift_jax.data.options import RIG_FRAMES
from facelift_jax.data.scenes import Scene
from facelift_jax.geometry.rigid import (
    first_camera_frame,
    rig_center,
    rig_radius,
    transform_world,
)
from facelift_jax.structs import Cameras

MIN_AXES_SPREAD = 1e-3  # radians; below it, the distance to the center is noise


class Similarity(NamedTuple):
    """x -> scale * rotation @ x + translation, from stored to normalized world."""

    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    scale: float

    def apply(self, points: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
        """Points of the stored world in the normalized world."""
        return self.scale * points @ self.rotation.T + self.translation

    def inverse(self) -> "Similarity":
        """The transform from the normalized to the stored world."""
        rotation, scale = self.rotation.T, 1 / self.scale
        return Similarity(rotation, -scale * (rotation @ self.translation), scale)


def normalize_rig(
    inputs: Scene, targets: Scene, scene_cameras: Cameras, radius: float, frame: str
) -> tuple[Scene, Scene]:
    """Both scenes in the normalized world of the input cameras, with scaled depths.

    `scene_cameras` are all cameras of the scene that both come from.

    Raises:
      DataError: as `rig_similarity`, with the name of the scene.
    """
    where = f"scene {inputs.name} ({inputs.path})"
    similarity = rig_similarity(inputs.cameras, scene_cameras, radius, frame, where)
    return _move_world(inputs, similarity), _move_world(targets, similarity)


def rig_similarity(
    cameras: Cameras,
    scene_cameras: Cameras,
    radius: float,
    frame: str,
    where: str = "cameras",
) -> Similarity:
    """The one similarity that normalizes a rig [v] as a whole.

    The center of the rig, which is the point nearest to all optical axes, moves to the
    origin, and the mean distance of the cameras from it becomes `radius`. In the frame
    "first_camera" the axes are those of camera 0 (x right, y up, z towards the camera).
    This is LGM's training frame: a camera 0 that looks at the center from the mean
    distance is at (0, 0, radius). In the frame "world" the axes do not change. The
    center of a single input camera is undefined; the center of all cameras of the
    scene, `scene_cameras`, is used instead.

    Raises:
      DataError: the optical axes do not determine a center in front of the cameras.
    """
    if frame not in RIG_FRAMES:
        raise ValueError(f"frame must be one of {RIG_FRAMES}, found {frame!r}")
    axes = np.asarray(cameras.viewmats)[:, 2, :3]
    rig, owner = (cameras, "input") if len(axes) > 1 else (scene_cameras, "scene's")
    if are_parallel(np.asarray(rig.viewmats)[:, 2, :3]):
        raise DataError(
            f"{where}: the optical axes of the {len(rig.viewmats)} {owner} cameras are "
            "parallel and have no nearest point; a rig needs two axes that are not"
        )
    center = np.asarray(rig_center(rig))
    distances = np.einsum("vi,vi->v", axes, center - cameras.centers)
    if not (distances > 0).all():  # also if NaN
        raise DataError(
            f"{where}: input camera {int(np.argmin(distances))} looks away from the "
            "center of the rig; are the poses camera to world, or do they have other "
            "axes?"
        )
    scale = radius / float(rig_radius(cameras, center))
    rotation = np.eye(3)
    if frame == "first_camera":
        rotation = np.asarray(first_camera_frame(cameras, radius))[:3, :3]
    return Similarity(rotation, -scale * (rotation @ center), scale)


def are_parallel(directions: Float[np.ndarray, "n 3"]) -> bool:
    """Whether lines with these unit directions have no nearest point."""
    spread = np.linalg.svd(directions, compute_uv=False)[1:2]
    return len(directions) < 2 or bool(spread[0] < MIN_AXES_SPREAD)


def _move_world(scene: Scene, similarity: Similarity) -> Scene:
    cameras = transform_world(scene.cameras, *similarity)
    depths = scene.depths
    if depths is not None:
        depths = depths * np.float32(similarity.scale)
    return dataclasses.replace(scene, cameras=cameras, depths=depths)
