"""Command: shows the Gaussians of a PLY file in the browser.

    python -m facelift_jax.view scene.ply

Needs the extra "view" (viser). Only the degree-0 colors are shown, which do not depend
on the viewing direction.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from facelift_jax.export.ply import read_ply
from facelift_jax.geometry.numerics import SH_C0, normalize
from facelift_jax.geometry.rotations import quat_to_matrix
from facelift_jax.io import command
from facelift_jax.io.extras import extra


def parse(arguments: list[str]) -> Any:
    """Flags of the command."""
    parser = command.Parser(
        prog="python -m facelift_jax.view",
        description="Shows the Gaussians of a PLY file in the browser.",
    )
    parser.add_argument("file", type=Path, help="PLY file of Gaussians")
    parser.add_argument(
        "--port", type=int, default=8080, help="port of the server; default %(default)s"
    )
    return parser.parse_args(arguments)


def serve(path: Path, port: int) -> Any:
    """Starts a viser server on this machine that shows a PLY file.

    Raises:
      ValueError: the file is not a PLY of Gaussians.
      ImportError: viser is not installed.
    """
    gaussians = read_ply(path)
    with extra("view"):
        import viser
    axes = np.asarray(quat_to_matrix(normalize(gaussians.quats)))
    axes = axes * gaussians.scales[:, None]
    server = viser.ViserServer("127.0.0.1", port, verbose=False)
    server.scene.add_gaussian_splats(
        path.name,
        centers=np.asarray(gaussians.means),
        covariances=axes @ axes.transpose(0, 2, 1),
        rgbs=np.clip(SH_C0 * gaussians.sh[:, 0] + 0.5, 0, 1),
        opacities=np.asarray(gaussians.opacities)[:, None],
    )
    return server


def main(arguments: list[str]) -> None:
    """Shows the file until the command is stopped."""
    flags = parse(arguments)
    server = serve(flags.file, flags.port)
    url = f"http://127.0.0.1:{server.get_port()}"
    try:
        print(f"{flags.file}: shown at {url}; Ctrl-C stops", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        server.stop()


if __name__ == "__main__":
    command.run("view", main)
