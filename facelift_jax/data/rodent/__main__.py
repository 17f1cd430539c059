"""Makes the synthetic six-view rodent set: RGBA images, exact depth and cameras.

python -m facelift_jax.data.rodent --out data/rodent --scenes 1600 --size 256
"""

import argparse
from pathlib import Path
from typing import Any

from facelift_jax.data.rodent.generate import generate
from facelift_jax.io import command


def parse(arguments: list[str]) -> Any:
    """The command's flags."""
    parser = command.Parser(
        prog="python -m facelift_jax.data.rodent",
        description="Makes synthetic rodent scenes with six input cameras and further "
        "held-out cameras: RGBA images, exact depth, cameras. Resumable: run the same "
        "command again to finish or to extend a set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the set, new or existing")
    add("--scenes", type=int, required=True, help="number of scenes")
    add("--size", type=int, required=True, help="side of the images in pixels")
    add("--seed", type=int, default=0, help="random seed of the set")
    add("--workers", type=int, help="number of processes; None: one per core")
    add("--views", type=int, default=12, help="held-out cameras, over the whole sphere")
    add("--fov", type=float, default=50.0, help="field of view in degrees")
    add("--radius", type=float, default=2.7, help="camera distance; object radius is 1")
    add("--uneven", action="store_true", help="input cameras as in a real arena")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Runs the command.

    Raises:
      ValueError, OSError, RuntimeError, ImportError: one line that says what to change.
    """
    flags = parse(arguments)
    generate(
        flags.out,
        flags.scenes,
        flags.size,
        flags.seed,
        flags.workers,
        views=flags.views,
        fov_degrees=flags.fov,
        radius=flags.radius,
        uneven=flags.uneven,
        progress=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    command.run("rodent", main)
