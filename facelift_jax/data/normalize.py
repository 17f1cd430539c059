"""The world of an example: one similarity that normalises the whole rig."""

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

MIN_AXES_SPREAD = 1e-3  # radians; below it the centre's distance is noise


class Similarity(NamedTuple):
    """x -> scale * rotation @ x + translation, from stored to normalised world."""

    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    scale: float

    def apply(self, points: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
        """Where points of the stored world are in the normalised one."""
        return self.scale * points @ self.rotation.T + self.translation

    def inverse(self) -> "Similarity":
        """From normalised to stored world."""
        rotation, scale = self.rotation.T, 1 / self.scale
        return Similarity(rotation, -scale * (rotation @ self.translation), scale)


def normalize_rig(
    inputs: Scene, targets: Scene, everything: Cameras, radius: float, frame: str
) -> tuple[Scene, Scene]:
    """Both scenes in the normalised world of the input cameras, depths scaled along.

    `everything` are the cameras of the scene that both come from.

    Raises:
      DataError: as `rig_similarity`, naming the scene.
    """
    where = f"scene {inputs.name} ({inputs.path})"
    similarity = rig_similarity(inputs.cameras, everything, radius, frame, where)
    return _move_world(inputs, similarity), _move_world(targets, similarity)


def rig_similarity(
    cameras: Cameras,
    everything: Cameras,
    radius: float,
    frame: str,
    where: str = "cameras",
) -> Similarity:
    """The ONE similarity that normalises a rig [v]; never a camera on its own.

    The point nearest the optical axes goes to the origin, the mean distance of the
    cameras from it becomes `radius`, and the axes are those of camera 0 (x right, y up,
    z towards it: LGM's training frame, in which a camera 0 that looks at the centre
    from the mean distance stands at (0, 0, radius)) or, in the frame "world", stay. A
    single input has no such point: that of all the scene's cameras, `everything`, is
    taken.

    Raises:
      DataError: the optical axes do not determine a centre in front of the cameras.
    """
    if frame not in RIG_FRAMES:
        raise ValueError(f"frame must be one of {RIG_FRAMES}, found {frame!r}")
    exact = dataclasses.replace(cameras, viewmats=np.float64(cameras.viewmats))
    axes = np.asarray(exact.viewmats)[:, 2, :3]
    around, whose = (exact, "input") if len(axes) > 1 else (everything, "scene's")
    around = dataclasses.replace(around, viewmats=np.float64(around.viewmats))
    if are_parallel(np.asarray(around.viewmats)[:, 2, :3]):
        raise DataError(
            f"{where}: the optical axes of the {len(around.viewmats)} {whose} cameras "
            "are parallel, so they have no nearest point; a rig needs two that are not"
        )
    center = np.asarray(rig_center(around))
    distances = np.einsum("vi,vi->v", axes, center - exact.centers)
    if not (distances > 0).all():  # NaN is not in front either
        raise DataError(
            f"{where}: input camera {int(np.argmin(distances))} looks away from the "
            "rig's centre; are the poses camera-to-world, or of another convention?"
        )
    scale = radius / float(rig_radius(exact, center))
    rotation = np.eye(3)
    if frame == "first_camera":
        rotation = np.asarray(first_camera_frame(exact, radius))[:3, :3]
    return Similarity(rotation, -scale * (rotation @ center), scale)


def are_parallel(directions: Float[np.ndarray, "n 3"]) -> bool:
    """Whether lines of these unit directions have no nearest point."""
    spread = np.linalg.svd(directions, compute_uv=False)[1:2]
    return len(directions) < 2 or bool(spread[0] < MIN_AXES_SPREAD)


def _move_world(scene: Scene, similarity: Similarity) -> Scene:
    exact = dataclasses.replace(
        scene.cameras, viewmats=np.float64(scene.cameras.viewmats)
    )
    moved = transform_world(exact, *similarity)
    cameras = dataclasses.replace(moved, viewmats=np.float32(moved.viewmats))
    depths = scene.depths
    if depths is not None:
        depths = depths * np.float32(similarity.scale)
    return dataclasses.replace(scene, cameras=cameras, depths=depths)
