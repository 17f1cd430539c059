"""The exact shape and images of a synthetic scene, for metrics that need them."""

import dataclasses
from typing import Any

import numpy as np

from facelift_jax.data import rodent
from facelift_jax.data.normalize import Similarity
from facelift_jax.data.options import DataOptions
from facelift_jax.data.scenes import Scene, StoredScene
from facelift_jax.data.view_selection import evaluation_world
from facelift_jax.geometry.rigid import transform_world
from facelift_jax.structs import Cameras, RenderOutput


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The object of a synthetic scene, in the world of its evaluation.

    Attributes:
      vertices, faces: mesh of the object, [n 3] and [m 3].
      parameters: parameters of the rodent, in the stored world.
      world: similarity from the stored world to this one.
    """

    vertices: np.ndarray
    faces: np.ndarray
    parameters: dict[str, Any]
    world: Similarity

    def render(self, cameras: Cameras, background: tuple[float, ...]) -> RenderOutput:
        """Ray-traced images of the object from cameras [f]; nothing is dropped."""
        inverse = self.world.inverse()
        exact = dataclasses.replace(cameras, viewmats=np.float64(cameras.viewmats))
        stored = transform_world(exact, *inverse)
        rgba, depths = rodent.render_images(self.parameters, stored)
        alphas = rgba[..., 3:] / np.float32(255)
        colors = rgba[..., :3] / np.float32(255) * alphas
        return RenderOutput(
            colors + (1 - alphas) * np.asarray(background, np.float32),
            alphas,
            depths[..., None] * np.float32(self.world.scale),
            np.zeros(len(rgba), np.int32),
        )


def scene_ground_truth(
    scene: Scene | StoredScene, options: DataOptions
) -> GroundTruth | None:
    """The mesh of a generated rodent scene; None for any other scene.

    Raises:
      ValueError: the scene's parameters do not describe a rodent; one line.
    """
    parameters = rodent.read_parameters(scene.path)
    if parameters is None:
        return None
    try:
        vertices, faces = rodent.posed_mesh(parameters)
    except ValueError as error:
        raise ValueError(f"scene {scene.name} ({scene.path}): {error}") from error
    world = evaluation_world(scene, options)
    return GroundTruth(world.apply(vertices), faces, parameters, world)
