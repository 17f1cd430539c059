"""Pictures and cameras to a 3D scene: a function, and a command for a few scenes.

    python -m facelift_jax.reconstruct --checkpoint runs/x SCENE --out reconstruction

Takes a run of ours or converted weights. Nothing is judged from held-out views here, as
a scene need have none: `facelift_jax.evaluate` does that.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from facelift_jax.builders import restore
from facelift_jax.data.examples import normalised_from_stored, reconstruction_example
from facelift_jax.data.options import DataOptions
from facelift_jax.data.scenes import FolderSource, Scene, StoredScene, open_source
from facelift_jax.data.validation.dataset_report import source_digests
from facelift_jax.data.writing import read_marker
from facelift_jax.evaluation.evaluator import refuse_dropped
from facelift_jax.evaluation.results import write_record, write_scene, write_sheets
from facelift_jax.evaluation.steps import (
    EvalStep,
    Turntable,
    make_eval_step,
    make_turntable,
    scene_row,
)
from facelift_jax.export import ply
from facelift_jax.io import atomic, command
from facelift_jax.metrics import (
    HEALTH_DEFINITIONS,
    OWN_VIEW_DEFINITIONS,
    TURNTABLE_DEFINITIONS,
    turntable_metrics,
)
from facelift_jax.structs import Batch, Gaussians, RenderOutput

FIGURES = "figures.json"  # written last: a scene that has it is complete
MADE_BY = ("input_size", "target_size", "num_inputs", "input_views", "background")
MADE_BY += ("radius", "frame")  # data options: others change no reconstruction


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """One scene, in the world of its normalised rig.

    Attributes:
      gaussians: all that the network gives, [n].
      batch: what it was given, and the same views as targets, over [1 v].
      output: the Gaussians rendered from its input cameras, over [1 v].
      metrics: per input view, [1 v].
      radius: of the object, world units.
      figures: `inputs/<metric>` of the input views, `health/...` of the Gaussians,
        their number, the share that a PLY keeps by opacity, seconds from pictures to
        Gaussians and figures (of a first call: with compilation).
      world: from the stored world to that of the Gaussians, a similarity [4 4].
    """

    gaussians: Gaussians
    batch: Batch
    output: RenderOutput
    metrics: dict[str, np.ndarray]
    radius: float
    figures: dict[str, float]
    world: np.ndarray


def reconstruct_scene(
    step: EvalStep,
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
    gaussians, found = jax.device_get(step(params, batch))
    seconds = time.monotonic() - start
    refuse_dropped(scene.name, found.output)
    figures, _ = scene_row(found, options.num_inputs)
    gaussians = jax.tree.map(lambda x: x[0], gaussians)
    is_seen = gaussians.opacities >= ply.MIN_OPACITY
    figures["num_gaussians"] = len(is_seen)
    figures["share_opaque"] = float(np.mean(is_seen))
    figures["seconds"] = seconds
    world = normalised_from_stored(scene, options)
    radius = float(found.radius[0])
    return Reconstruction(
        gaussians, batch, found.output, found.views, radius, figures, world
    )


def write_reconstruction(
    directory: Path,
    name: str,
    found: Reconstruction,
    turn: Turntable,
    chosen: ply.Filter,
    layout: str,
    made_by: Mapping[str, Any],
) -> dict[str, float]:
    """Sheets, `scene.ply`, `turntable.mp4` and, last, `figures.json`.

    `made_by` goes into that file: what `is_complete` compares. Returns the figures,
    `turntable/...` among them.
    """
    psnr_fg = found.metrics["psnr_fg"]
    write_sheets(directory, name, found.batch, found.output, psnr_fg)
    inputs = jax.tree.map(lambda x: x[0], found.batch.inputs.cameras)
    frames, cameras = turn(found.gaussians, inputs)
    for line in write_scene(directory, found.gaussians, frames, chosen, layout):
        logging.info(line)
    smoothness = turntable_metrics(frames, cameras, inputs, found.radius)
    figures = found.figures | {f"turntable/{k}": x for k, x in smoothness.items()}
    content = {"scene": name, "made_by": dict(made_by)}
    content |= {"left_out_of_ply": chosen.describe(), **figures}
    content["normalised_from_stored"] = found.world.tolist()
    write_record(directory / FIGURES, content)
    return figures


def is_complete(directory: Path, name: str, made_by: Mapping[str, Any]) -> bool:
    """Whether a scene's folder is complete, made of the same files in the same way.

    Raises:
      ValueError: it holds other files, or the scene made in another way.
    """
    for path in sorted(directory.glob("*")):
        file = path.name.removesuffix(atomic.SUFFIX)
        is_sheet = file.startswith(f"{name}_") and file.endswith(".png")
        if file not in (FIGURES, "scene.ply", "turntable.mp4") and not is_sheet:
            raise ValueError(
                f"{directory}: holds {path.name}, which is of no reconstruction of "
                f"{name}; choose another --out"
            )
    if not (directory / FIGURES).is_file():
        return False
    stored = read_marker(directory / FIGURES).get("made_by")
    stored = stored if isinstance(stored, dict) else {}
    changed = [key for key in made_by if stored.get(key) != made_by[key]]
    if changed:
        raise ValueError(
            f"{directory}: complete, but by other {', '.join(changed)}; choose another "
            "--out"
        )
    return True


def digest(params: Any) -> str:
    """Sixteen hex digits (of SHA-256) that stand for all parameters."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        sha.update(np.asarray(leaf).tobytes())
    return sha.hexdigest()[:16]


def brief(figures: Mapping[str, float]) -> str:
    """A few lines of figures that need no ground truth beyond the inputs."""
    lines = [f"{figures['num_gaussians']:,} Gaussians, {figures['seconds']:.2f} s"]
    for kind, names in (
        ("inputs", ("psnr_fg", "iou", "coverage")),
        ("inputs", OWN_VIEW_DEFINITIONS),
        ("turntable", TURNTABLE_DEFINITIONS),
        ("health", HEALTH_DEFINITIONS),
    ):
        parts = [f"{name} {figures[f'{kind}/{name}']:.4g}" for name in names]
        lines.append(f"{kind}: {', '.join(parts)}")
    return "\n  ".join(lines)


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
        "--inputs",
        type=int,
        metavar="N",
        help="views given; default: as it was trained",
    )
    parser.add_argument(
        "--filter",
        default="opacity",
        choices=sorted(ply.FILTERS),
        help="what scene.ply leaves out; the file says so",
    )
    parser.add_argument(
        "--layout",
        default="lgm",
        choices=sorted(ply.LAYOUTS),
        help="fields of scene.ply: LGM's, or FaceLift's with bytes of colour and "
        "harmonics of degree 3, four times the size",
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
    if flags.turntable_frames < 1:
        raise ValueError(f"--turntable-frames {flags.turntable_frames}: at least 1")
    restored = restore(flags.checkpoint, 1, flags.inputs)
    params, options, render_fn = restored.params, restored.options, restored.render_fn
    frames, chosen = flags.turntable_frames, ply.FILTERS[flags.filter]
    if flags.filter != "opacity" and options.frame != "world":
        raise ValueError(
            f"--filter {flags.filter}: made for a world whose z axis points up, but "
            "this checkpoint's has the axes of input camera 0 (y up)"
        )
    settings = {f"data.{name}": getattr(options, name) for name in MADE_BY}
    settings |= {"weights": digest(params), "filter": flags.filter}
    settings |= {"layout": flags.layout, "turntable_frames": frames}
    settings = json.loads(json.dumps(settings))  # as they are read back
    scenes: dict[str, tuple[FolderSource, int]] = {}
    made_by: dict[str, dict[str, Any]] = {}
    for source in map(open_source, flags.scenes):
        named = zip(source.names, source_digests(source), strict=True)
        for index, (name, files) in enumerate(named):
            if name in scenes:
                raise ValueError(
                    f"two scenes are named {name}; give them one at a time"
                )
            scenes[name] = source, index
            made_by[name] = {"files": files, **settings}
    out = Path(flags.out)
    complete = {n for n in scenes if is_complete(out / n, n, made_by[n])}
    step = make_eval_step(restored.model, render_fn)
    turn = make_turntable(render_fn, frames)
    for name, (source, index) in scenes.items():
        if name in complete:
            print(f"{name}: complete in {out / name}, left as it is")
            continue
        found = reconstruct_scene(step, params, source[index], options)
        figures = write_reconstruction(
            out / name, name, found, turn, chosen, flags.layout, made_by[name]
        )
        print(f"{name}: {brief(figures)}")
    print(f"{out}: a folder a scene with scene.ply, turntable.mp4, sheets, figures")


if __name__ == "__main__":
    command.run("reconstruct", main)
