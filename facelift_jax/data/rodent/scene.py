"""One scene: index and options to parameters, then to a mesh and images."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from facelift_jax.data.rodent.asset import load_rodent
from facelift_jax.data.rodent.coat import sample_coat
from facelift_jax.data.rodent.light import sample_light
from facelift_jax.data.rodent.pose import pose_mesh, sample_pose
from facelift_jax.data.rodent.render import prepare_subject, render_image
from facelift_jax.data.rodent.rigs import (
    NUM_INPUTS,
    check_framing,
    input_rig,
    sphere_rig,
)
from facelift_jax.structs import Cameras

VERSION = 1  # raised when the same options give different scenes
MAX_SIZE = 8000  # 64 megapixels, the largest image that the readers accept


@dataclass(frozen=True)
class RodentOptions:
    """Options of a set of scenes.

    Attributes:
      size: side of the images in pixels.
      seed: scene i is a function of (seed, i) and the other options.
      views: held-out cameras per scene, over the whole sphere.
      fov_degrees: field of view of the even ring and the held-out cameras.
      radius: camera distance in world units; the object fills the unit ball.
      uneven: input cameras as in a real arena instead of an even ring.
    """

    size: int
    seed: int = 0
    views: int = 12
    fov_degrees: float = 50.0
    radius: float = 2.7
    uneven: bool = False

    def __post_init__(self):
        if not 8 <= self.size <= MAX_SIZE:
            raise ValueError(
                f"size {self.size}: expected a side of 8 to {MAX_SIZE} pixels"
            )
        if self.seed < 0 or self.views < 0:
            raise ValueError(
                f"seed {self.seed} and {self.views} held-out views: neither may be "
                "negative"
            )
        check_framing(self.fov_degrees, self.radius, self.uneven)


@dataclass(frozen=True)
class RodentScene:
    """One animal seen by v cameras, input cameras first.

    Attributes:
      name: "scene_000012" for index 12.
      parameters: seed and all parameters as JSON values; `posed_mesh` takes them.
      rgba: [v h w 4] uint8, straight alpha.
      depths: [v h w] float32 camera-z depth at pixel centers, world units; 0 is empty.
      cameras: over [v].
      is_input: [v] bool.
    """

    name: str
    parameters: dict[str, Any]
    rgba: np.ndarray
    depths: np.ndarray
    cameras: Cameras
    is_input: np.ndarray


def scene_name(index: int) -> str:
    """Name of a scene and of its folder."""
    return f"scene_{index:06d}"


def sample_parameters(index: int, options: RodentOptions) -> dict[str, Any]:
    """The parameters of scene `index` as JSON values.

    Pose, coat and light do not depend on the size or the rig, and each has its own
    random stream, so that a change to one does not affect the others.
    """
    rodent = load_rodent()
    return {
        "version": VERSION,
        "index": index,
        **dataclasses.asdict(options),
        "pose": sample_pose(rodent, _stream(index, options, 0)),
        "coat": sample_coat(_stream(index, options, 1)),
        "light": sample_light(_stream(index, options, 2)),
    }


def sample_cameras(index: int, options: RodentOptions) -> tuple[Cameras, np.ndarray]:
    """Input cameras, then held-out cameras, over [v]; and is_input, [v] bool."""
    size, fov, radius = options.size, options.fov_degrees, options.radius
    inputs = input_rig(_stream(index, options, 3), size, fov, radius, options.uneven)
    held_out = sphere_rig(_stream(index, options, 4), options.views, size, fov, radius)
    cameras = Cameras(
        np.concatenate([inputs.viewmats, held_out.viewmats]),
        np.concatenate([inputs.Ks, held_out.Ks]),
        size,
        size,
    )
    return cameras, np.arange(NUM_INPUTS + options.views) < NUM_INPUTS


def posed_mesh(
    parameters: dict[str, Any],
) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "m 3"]]:
    """The mesh of a scene: world-frame vertices and triangles.

    `parameters` is the "rodent" entry of a scene's opencv_cameras.json. The mesh is
    bit-identical to the one that was rendered.

    Raises:
      ValueError: the parameters are incomplete or of another version; one line.
    """
    with _checked(parameters):
        rodent = load_rodent()
        return pose_mesh(rodent, parameters["pose"]).vertices, rodent.faces


def render_images(
    parameters: dict[str, Any], cameras: Cameras
) -> tuple[UInt8[np.ndarray, "v h w 4"], Float[np.ndarray, "v h w"]]:
    """RGBA and camera-z depth of a scene's animal from any world-frame cameras [v].

    As `render.render_image`; `parameters` as in `posed_mesh`. The animal must be in
    front of every camera.

    Raises:
      ValueError: the parameters are incomplete or of another version; one line.
      ImportError: the package embreex is not installed.
    """
    with _checked(parameters):
        mesh = pose_mesh(load_rodent(), parameters["pose"])
        subject = prepare_subject(mesh, parameters["coat"], parameters["light"])
        images = [
            render_image(subject, Cameras(viewmat, K, cameras.width, cameras.height))
            for viewmat, K in zip(cameras.viewmats, cameras.Ks, strict=True)
        ]
    rgba, depths = (np.stack(arrays) for arrays in zip(*images, strict=True))
    return rgba, depths


def make_scene(index: int, options: RodentOptions) -> RodentScene:
    """Samples, poses and renders the scene of one index."""
    parameters = sample_parameters(index, options)
    cameras, is_input = sample_cameras(index, options)
    rgba, depths = render_images(parameters, cameras)
    return RodentScene(scene_name(index), parameters, rgba, depths, cameras, is_input)


@contextlib.contextmanager
def _checked(parameters: dict[str, Any]) -> Iterator[None]:
    """Turns errors caused by unusable parameters into one line."""
    version = parameters.get("version")
    if version != VERSION:
        raise ValueError(
            f"rodent parameters of version {version}, expected {VERSION}: another "
            "version of the generator made the scene; make it again"
        )
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"rodent parameters without a usable pose, coat or light ({error!r}): pass "
            'the whole "rodent" entry of opencv_cameras.json'
        ) from error


def _stream(index: int, options: RodentOptions, purpose: int) -> np.random.Generator:
    return np.random.default_rng([options.seed, index, purpose])
