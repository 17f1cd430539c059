"""Reconstructs 3D scenes from images and cameras: a function and a command.

    python -m facelift_jax.reconstruct --checkpoint runs/x SCENE --out reconstruction

The checkpoint is a run directory or converted weights. A scene needs no held-out views:
the metrics use its input views only. `facelift_jax.evaluate` measures held-out views.
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
from facelift_jax.evaluation.results import (
    METRICS_FILE,
    write_json,
    write_ply_and_turntable,
    write_sheets,
)
from facelift_jax.evaluation.steps import (
    EvalStep,
    Turntable,
    make_eval_step,
    make_turntable,
    require_nothing_dropped,
    scene_metrics,
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

# the data options that change a reconstruction
RELEVANT_OPTIONS = ("input_size", "target_size", "num_inputs", "input_views")
RELEVANT_OPTIONS += ("background", "radius", "frame")


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """One reconstructed scene, in the world of its normalized rig.

    Attributes:
      gaussians: all Gaussians of the network, [n].
      batch: the input views, also as targets, over [1 v].
      output: the Gaussians rendered at the input cameras, over [1 v].
      view_metrics: per input view, [1 v].
      radius: radius of the object, world units.
      metrics: `inputs/<metric>`, means over the input views; `health/...` of the
        Gaussians; `num_gaussians`; `share_opaque`, the share of Gaussians that the
        filter "opacity" keeps; `seconds` from images to Gaussians and metrics (the
        first call includes compilation).
      world: similarity from the stored world to that of the Gaussians, [4 4].
    """

    gaussians: Gaussians
    batch: Batch
    output: RenderOutput
    view_metrics: dict[str, np.ndarray]
    radius: float
    metrics: dict[str, float]
    world: np.ndarray


def reconstruct_scene(
    step: EvalStep,
    params: Any,
    scene: Scene | StoredScene,
    options: DataOptions,
) -> Reconstruction:
    """Runs a network on the input views of a scene; `step` is from `make_eval_step`.

    Raises:
      DataError: the scene cannot be used; one line that names it.
      ValueError: the renderer dropped list entries (an explicit cap).
    """
    example = reconstruction_example(scene, options)
    batch = jax.tree.map(lambda x: x[None], example)
    start = time.monotonic()
    gaussians, outputs = jax.device_get(step(params, batch))
    seconds = time.monotonic() - start
    require_nothing_dropped(scene.name, outputs.output)
    metrics, _ = scene_metrics(outputs, options.num_inputs)
    gaussians = jax.tree.map(lambda x: x[0], gaussians)
    is_opaque = gaussians.opacities >= ply.MIN_OPACITY
    metrics["num_gaussians"] = len(is_opaque)
    metrics["share_opaque"] = float(np.mean(is_opaque))
    metrics["seconds"] = seconds
    return Reconstruction(
        gaussians,
        batch,
        outputs.output,
        outputs.view_metrics,
        float(outputs.radius[0]),
        metrics,
        normalised_from_stored(scene, options),
    )


def write_reconstruction(
    directory: Path,
    name: str,
    reconstruction: Reconstruction,
    turn: Turntable,
    filter: ply.Filter,
    layout: str,
    made_by: Mapping[str, Any],
) -> dict[str, float]:
    """Writes image sheets, `scene.ply`, `turntable.mp4` and finally `metrics.json`.

    `made_by` is stored in `metrics.json`, where `is_complete` compares it. Returns the
    metrics, including `turntable/...`.
    """
    batch, gaussians = reconstruction.batch, reconstruction.gaussians
    psnr_fg = reconstruction.view_metrics["psnr_fg"]
    write_sheets(directory, name, batch, reconstruction.output, psnr_fg)
    inputs = jax.tree.map(lambda x: x[0], batch.inputs.cameras)
    frames, cameras = turn(gaussians, inputs)
    for line in write_ply_and_turntable(directory, gaussians, frames, filter, layout):
        logging.info(line)
    smoothness = turntable_metrics(frames, cameras, inputs, reconstruction.radius)
    metrics = dict(reconstruction.metrics)
    metrics |= {f"turntable/{key}": value for key, value in smoothness.items()}
    content = {"scene": name, "made_by": dict(made_by)}
    content |= {"left_out_of_ply": filter.describe(), **metrics}
    content["normalised_from_stored"] = reconstruction.world.tolist()
    write_json(directory / METRICS_FILE, content)
    return metrics


def is_complete(directory: Path, name: str, made_by: Mapping[str, Any]) -> bool:
    """Whether a scene's folder is complete and was made from these files and settings.

    Raises:
      ValueError: the folder holds files that are not of a reconstruction, or it was
        made from other files or settings.
    """
    for path in sorted(directory.glob("*")):
        file = path.name.removesuffix(atomic.SUFFIX)
        is_sheet = file.startswith(f"{name}_") and file.endswith(".png")
        if file not in (METRICS_FILE, "scene.ply", "turntable.mp4") and not is_sheet:
            raise ValueError(
                f"{directory}: holds {path.name}, which is not a file of a "
                f"reconstruction of {name}; choose another --out"
            )
    if not (directory / METRICS_FILE).is_file():
        return False
    stored = read_marker(directory / METRICS_FILE).get("made_by")
    stored = stored if isinstance(stored, dict) else {}
    changed = [key for key in made_by if stored.get(key) != made_by[key]]
    if changed:
        raise ValueError(
            f"{directory}: complete, but made with different {', '.join(changed)}; "
            "choose another --out"
        )
    return True


def digest(params: Any) -> str:
    """Sixteen hex digits of the SHA-256 of all parameters."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        sha.update(np.asarray(leaf).tobytes())
    return sha.hexdigest()[:16]


def describe(metrics: Mapping[str, float]) -> str:
    """A few lines with the metrics that need no held-out views."""
    lines = [f"{metrics['num_gaussians']:,} Gaussians, {metrics['seconds']:.2f} s"]
    for kind, names in (
        ("inputs", ("psnr_fg", "iou", "coverage")),
        ("inputs", OWN_VIEW_DEFINITIONS),
        ("turntable", TURNTABLE_DEFINITIONS),
        ("health", HEALTH_DEFINITIONS),
    ):
        parts = [f"{name} {metrics[f'{kind}/{name}']:.4g}" for name in names]
        lines.append(f"{kind}: {', '.join(parts)}")
    return "\n  ".join(lines)


def parse(arguments: list[str]) -> Any:
    """Flags of the command."""
    parser = command.Parser(
        prog="python -m facelift_jax.reconstruct",
        description="Reconstructs scenes from images and cameras; writes a PLY file, a "
        "turntable video, images and metrics.",
    )
    add = parser.add_argument
    add("scenes", nargs="+", help="scene folders, folders of them, or lists of them")
    add("--checkpoint", required=True, help="run directory or converted weights")
    add("--out", default="reconstruction", help="output folder")
    add(
        "--inputs",
        type=int,
        metavar="N",
        help="number of input views; default: as in training",
    )
    add(
        "--filter",
        default="opacity",
        choices=sorted(ply.FILTERS),
        help="which Gaussians are left out of scene.ply; the file's comments state it",
    )
    add(
        "--layout",
        default="lgm",
        choices=sorted(ply.LAYOUTS),
        help="fields of scene.ply: LGM's, or FaceLift's with colors as bytes and "
        "harmonics of degree 3, four times the size",
    )
    add(
        "--turntable-frames",
        type=int,
        default=120,
        metavar="N",
        help="frames of the video; default %(default)s",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Reconstructs the scenes that are not yet complete in the output folder.

    Raises:
      ValueError, OSError: bad flags or data; one line that says what to change.
    """
    flags = parse(arguments)
    command.log_own_lines()
    if flags.turntable_frames < 1:
        raise ValueError(
            f"--turntable-frames {flags.turntable_frames}: must be at least 1"
        )
    restored = restore(flags.checkpoint, 1, flags.inputs)
    options = restored.options
    if flags.filter != "opacity" and options.frame != "world":
        raise ValueError(
            f"--filter {flags.filter}: needs a world whose z axis points up, but this "
            "checkpoint uses the axes of input camera 0 (y up); use --filter opacity"
        )
    settings = {f"data.{name}": getattr(options, name) for name in RELEVANT_OPTIONS}
    settings |= {"weights": digest(restored.params), "filter": flags.filter}
    settings |= {
        "layout": flags.layout,
        "turntable_frames": flags.turntable_frames,
    }
    settings = json.loads(json.dumps(settings))  # lists for tuples, as in stored JSON
    scenes: dict[str, tuple[FolderSource, int]] = {}
    made_by: dict[str, dict[str, Any]] = {}
    for source in map(open_source, flags.scenes):
        digests = zip(source.names, source_digests(source), strict=True)
        for index, (name, files) in enumerate(digests):
            if name in scenes:
                raise ValueError(
                    f"two scenes are named {name}; give them one at a time"
                )
            scenes[name] = source, index
            made_by[name] = {"files": files, **settings}
    out = Path(flags.out)
    complete = {n for n in scenes if is_complete(out / n, n, made_by[n])}
    step = make_eval_step(restored.model, restored.render_fn)
    turn = make_turntable(restored.render_fn, flags.turntable_frames)
    for name, (source, index) in scenes.items():
        if name in complete:
            print(f"{name}: already complete in {out / name}")
            continue
        scene = source[index]
        reconstruction = reconstruct_scene(step, restored.params, scene, options)
        metrics = write_reconstruction(
            out / name,
            name,
            reconstruction,
            turn,
            ply.FILTERS[flags.filter],
            flags.layout,
            made_by[name],
        )
        print(f"{name}: {describe(metrics)}")
    print(f"{out}: per scene scene.ply, turntable.mp4, images and metrics.json")


if __name__ == "__main__":
    command.run("reconstruct", main)
