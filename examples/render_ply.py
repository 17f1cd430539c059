"""Renders a turntable of any 3DGS PLY file; the cameras circle around the z axis.

    python examples/render_ply.py scene.ply turntable.mp4

The library calls behind it: `read_ply`, `turntable_cameras`, `render`, `write_video`.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from facelift_jax.export.ply import read_ply
from facelift_jax.geometry.paths import fov_intrinsics, orbit_cameras
from facelift_jax.io.image_files import to_uint8, write_video
from facelift_jax.render import render


def main() -> None:
    """The example."""
    parser = argparse.ArgumentParser(description="Render a turntable of a PLY file.")
    parser.add_argument("ply", type=Path)
    parser.add_argument("out", type=Path, help="an .mp4 file")
    parser.add_argument("--size", type=int, default=256, help="pixels, even")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--distance", type=float, default=1.5, help="world units")
    flags = parser.parse_args()

    gaussians = read_ply(flags.ply)
    azimuths = np.arange(flags.frames) * (360 / flags.frames)
    elevations = np.full(flags.frames, 15.0)
    K = fov_intrinsics(49.1, flags.size)
    cameras = orbit_cameras(azimuths, elevations, flags.distance, K, flags.size)
    draw = jax.jit(lambda camera: render(gaussians, camera, np.ones(3, np.float32)))
    frames = []
    for i in range(flags.frames):
        camera = jax.tree.map(lambda x, i=i: x[i : i + 1], cameras)
        frames.append(to_uint8(draw(camera).colors[0]))
    write_video(flags.out, np.stack(frames), fps=24)
    print(f"{flags.out}: {flags.frames} frames of {len(gaussians.means):,} Gaussians")


if __name__ == "__main__":
    main()
