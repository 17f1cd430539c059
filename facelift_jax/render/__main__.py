"""Command: renders a PLY file of Gaussians from given cameras or along a turntable.

python -m facelift_jax.render scene.ply --path turntable --out turntable.mp4
python -m facelift_jax.render scene.ply --cameras SCENE --out images
"""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from facelift_jax.data.scenes import open_source
from facelift_jax.export.ply import read_ply
from facelift_jax.geometry.paths import fov_intrinsics, orbit_cameras
from facelift_jax.io import command
from facelift_jax.io.image_files import to_uint8, write_png, write_video
from facelift_jax.render import render
from facelift_jax.render.constants import ALPHA_MIN
from facelift_jax.render.path import render_path
from facelift_jax.structs import Cameras, Gaussians

FPS = 24
FOV, ELEVATION = 40.0, 15.0  # degrees, of the turntable
QUANTILE = 0.99  # share of the visible Gaussians that the turntable's images contain
MARGIN = 1.2  # factor on their radius, so that space is left around them
UP = {"y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}


def parse(arguments: list[str]) -> Any:
    """Flags of the command."""
    parser = command.Parser(
        prog="python -m facelift_jax.render",
        description="Renders a PLY file of Gaussians to PNG files or an mp4.",
    )
    add = parser.add_argument
    add("file", type=Path, help="PLY file of Gaussians")
    views = parser.add_mutually_exclusive_group(required=True)
    views.add_argument(
        "--cameras",
        type=Path,
        metavar="SCENE",
        help="scene folder or its camera file; the cameras must be in the world of the "
        "PLY file",
    )
    views.add_argument("--path", choices=["turntable"], help="path of the camera")
    add("--out", type=Path, required=True, help="FILE.mp4, or a folder of PNG files")
    add("--up", choices=sorted(UP), default="z", help="upright axis of the turntable")
    count = command.at_least(1)
    add("--size", type=count, default=512, help="side of turntable images, pixels")
    add("--frames", type=count, default=120, help="number of turntable images")
    parser.add_background()
    return parser.parse_args(arguments)


def turntable(gaussians: Gaussians, up: str, num_frames: int, size: int) -> Cameras:
    """Cameras [f] of one turn around the visible ones of Gaussians [n].

    Raises:
      ValueError: no Gaussian is visible.
    """
    means = gaussians.means[gaussians.opacities > ALPHA_MIN]
    if not len(means):
        raise ValueError("no Gaussian is visible, so there is nothing to turn around")
    center = np.median(means, axis=0)
    distances = np.linalg.norm(means - center, axis=-1)
    radius = MARGIN * max(float(np.quantile(distances, QUANTILE)), 1e-6)
    return orbit_cameras(
        np.arange(num_frames) * (360.0 / num_frames),
        np.full(num_frames, ELEVATION),
        radius / np.sin(np.deg2rad(FOV / 2)),
        fov_intrinsics(FOV, size),
        size,
        np.array(UP[up]),
        center,
    )


def scene_cameras(path: Path) -> Cameras:
    """All cameras [v] of a scene, given as its folder or its camera file.

    Raises:
      ValueError: the folder does not hold exactly one scene.
    """
    source = open_source(path.parent if path.is_file() else path)
    if len(source) != 1:
        raise ValueError(
            f"{path}: expected one scene, found {len(source)}; give the folder or the "
            "camera file of one scene"
        )
    return source[0].cameras


def main(arguments: list[str]) -> None:
    """Renders the file.

    Raises:
      ValueError, OSError: bad flags or files; one line that says what to change.
    """
    flags = parse(arguments)
    is_video = flags.out.suffix == ".mp4"
    gaussians = read_ply(flags.file)
    if flags.cameras is None:
        cameras = turntable(gaussians, flags.up, flags.frames, flags.size)
    else:
        cameras = scene_cameras(flags.cameras)
    background = np.asarray(flags.background, np.float32)
    render_fn = jax.jit(functools.partial(render, background=background))
    images = to_uint8(render_path(render_fn, gaussians, cameras).colors)
    if is_video:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        write_video(flags.out, images, FPS)
    else:
        flags.out.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images):
            write_png(flags.out / f"{index:04d}.png", image)
    print(f"{flags.out}: {len(images)} images of {cameras.width} x {cameras.height} px")


if __name__ == "__main__":
    command.run("render", main)
