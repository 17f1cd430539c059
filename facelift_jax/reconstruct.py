"""Pictures and cameras to a 3D scene: a function, and a command for a few scenes.

    python -m facelift_jax.reconstruct --checkpoint runs/x SCENE --out reconstruction

Takes a run of ours or converted weights. Nothing is judged from held-out views here, as
a scene need have none: `facelift_jax.evaluate` does that.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from facelift_jax import atomic, command, evaluate, export
from facelift_jax.data.options import DataOptions
from facelift_jax.data.sources import Scene, StoredScene, open_source
from facelift_jax.data.transforms import reconstruction_example
from facelift_jax.objectives import reduce_metrics
from facelift_jax.structs import Batch, Gaussians, RenderOutput
from facelift_jax.training.checkpoint import load_params

FIGURES = "figures.json"  # written last: a scene that has it is complete


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """One scene, in the world of its normalised rig.

    Attributes:
      gaussians: all that the network gives, [n].
      batch: what it was given, and the same views as targets, over [1 v].
      output: the Gaussians rendered from its input cameras, over [1 v].
      metrics: per input view, [1 v].
      figures: `inputs/<metric>` of the input views, the number of Gaussians, the share
        that a PLY keeps by opacity, seconds (of a first call: with compilation).
    """

    gaussians: Gaussians
    batch: Batch
    output: RenderOutput
    metrics: dict[str, np.ndarray]
    figures: dict[str, float]


def reconstruct_scene(
    step: evaluate.EvalStep,
    params: Any,
    scene: Scene | StoredScene,
    options: DataOptions,
) -> Reconstruction:
    """Runs a network on the input views of a scene; `step` by `make_eval_step`.

    Raises:
      DataError: the scene cannot be used; one line that names it.
      ValueError: the renderer dropped something.
    """
    example = reconstruction_example(scene, options)
    batch = jax.tree.map(lambda x: x[None], example)
    start = time.monotonic()
    gaussians, output, metrics = jax.device_get(step(params, batch))
    seconds = time.monotonic() - start
    dropped = int(output.dropped.sum())
    if dropped:
        raise ValueError(
            f"scene {scene.name}: the renderer dropped {dropped} list entries; raise "
            "or remove max_entries"
        )
    figures, _ = reduce_metrics(metrics, options.num_inputs)
    gaussians = jax.tree.map(lambda x: x[0], gaussians)
    is_seen = gaussians.opacities >= export.MIN_OPACITY
    figures["num_gaussians"] = len(is_seen)
    figures["share_opaque"] = float(np.mean(is_seen))
    figures["seconds"] = seconds
    return Reconstruction(gaussians, batch, output, metrics, figures)


def write_reconstruction(
    directory: Path,
    name: str,
    found: Reconstruction,
    render_fn: evaluate.RenderFn,
    num_frames: int,
    chosen: export.Filter,
) -> None:
    """Sheets, `scene.ply`, `turntable.mp4` and, last, `figures.json`."""
    evaluate.write_sheets(directory, name, found.batch, found.output, found.metrics)
    cameras = jax.tree.map(lambda x: x[0], found.batch.inputs.cameras)
    for line in evaluate.write_scene(
        directory, found.gaussians, cameras, render_fn, num_frames, chosen
    ):
        logging.info(line)
    content = {"scene": name, "left_out_of_ply": chosen.describe(), **found.figures}
    strict = {
        key: None if isinstance(x, float) and not np.isfinite(x) else x
        for key, x in content.items()
    }
    text = json.dumps(strict, indent=2, allow_nan=False)
    atomic.write_text(directory / FIGURES, text + "\n")


def brief(found: Reconstruction) -> str:
    """One line of figures that need no ground truth beyond the inputs."""
    figures = found.figures
    return (
        f"input views: psnr_fg {figures['inputs/psnr_fg']:.2f} dB, iou "
        f"{figures['inputs/iou']:.3f}, coverage {figures['inputs/coverage']:.3f}; "
        f"{figures['num_gaussians']:,} Gaussians, {figures['seconds']:.2f} s"
    )


def parse(arguments: list[str]) -> Any:
    """Flags of the command."""
    parser = command.Parser(
        prog="python -m facelift_jax.reconstruct",
        description="Pictures and cameras to PLY, turntable, sheets and figures.",
    )
    parser.add_argument(
        "scenes", nargs="+", help="scene folders, folders of them, or lists"
    )
    parser.add_argument(
        "--checkpoint", required=True, help="run directory or converted weights"
    )
    parser.add_argument("--out", default="reconstruction", help="output folder")
    parser.add_argument(
        "--filter",
        default="opacity",
        choices=sorted(export.FILTERS),
        help="what scene.ply leaves out; the file says so",
    )
    parser.add_argument("--turntable-frames", type=int, default=120, metavar="N")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """The command; scenes that are complete in the output folder are left as they are.

    Raises:
      ValueError, OSError: one line saying what to change.
    """
    flags = parse(arguments)
    command.log_own_lines()
    params, config = load_params(flags.checkpoint)
    if "model" not in config:
        raise ValueError(f"{flags.checkpoint}: its metadata do not name a network")
    if flags.turntable_frames < 1:
        raise ValueError(f"--turntable-frames {flags.turntable_frames}: at least 1")
    options = evaluate.data_options(config.get("data", {}), num_held_out_views=1)
    render_fn = evaluate.make_renderer(options.background, **config.get("render", {}))
    step = evaluate.make_eval_step(evaluate.build_model(config["model"]), render_fn)
    opened: list[tuple[str, Callable[[], StoredScene]]] = []
    for path in flags.scenes:
        source = open_source(path)
        opened += [(n, lambda s=source, i=i: s[i]) for i, n in enumerate(source.names)]
    names = [name for name, _ in opened]
    for name, read in opened:
        if names.count(name) > 1:
            raise ValueError(f"two scenes are named {name}; give them one at a time")
        directory = Path(flags.out) / name
        if (directory / FIGURES).is_file():
            print(f"{name}: complete in {directory}, left as it is")
            continue
        found = reconstruct_scene(step, params, read(), options)
        frames, chosen = flags.turntable_frames, export.FILTERS[flags.filter]
        write_reconstruction(directory, name, found, render_fn, frames, chosen)
        print(f"{name}: {brief(found)}")
    print(
        f"{flags.out}: a folder a scene with scene.ply, turntable.mp4, sheets, figures"
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, RuntimeError) as error:
        command.fail("reconstruct", error)
