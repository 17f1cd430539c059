"""Makes the synthetic six-view rodent set: RGBA pictures, exact depth and cameras.

python -m facelift_jax.data.rodent --out data/rodent --scenes 1600 --size 256
"""

import argparse
import sys
from pathlib import Path

from facelift_jax.data.rodent.generate import generate
from facelift_jax.io import command


def _arguments() -> command.Parser:
    parser = command.Parser(
        prog="python -m facelift_jax.data.rodent",
        description="Makes synthetic rodent scenes of six input cameras and further "
        "held-out cameras: RGBA pictures, exact depth, cameras. Resumable: start the "
        "same command again to finish or to extend a set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the set, new or ours")
    add("--scenes", type=int, required=True, help="number of scenes")
    add("--size", type=int, required=True, help="side of the pictures in pixels")
    add("--seed", type=int, default=0, help="scene i is a function of the seed and i")
    add("--workers", type=int, help="processes; without it one a core")
    add("--views", type=int, default=12, help="held-out cameras, over the whole sphere")
    add("--fov", type=float, default=50.0, help="field of view in degrees")
    add("--radius", type=float, default=2.7, help="camera distance; object radius is 1")
    add("--uneven", action="store_true", help="input cameras like a real arena's")
    return parser


def main() -> int:
    """Runs the command; returns its exit code."""
    asked = _arguments().parse_args()
    try:
        generate(
            asked.out,
            asked.scenes,
            asked.size,
            asked.seed,
            asked.workers,
            views=asked.views,
            fov_degrees=asked.fov,
            radius=asked.radius,
            uneven=asked.uneven,
            progress=lambda line: print(line, flush=True),
        )
    except (ValueError, OSError) as error:
        command.fail("rodent", error)
    except RuntimeError as error:
        print(f"rodent: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: start the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
