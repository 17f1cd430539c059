"""Reconstructs 3D scenes from images and cameras: functions and a command.

    python -m facelift_jax.reconstruct SCENE --out reconstruction
    python -m facelift_jax.reconstruct --checkpoint runs/x SCENE --out reconstruction

Without a checkpoint, the visual hull of the input views is refined by gradient steps on
them; this works for any object with masks. With a checkpoint, which is a run directory
or converted weights, the Gaussians are those of the network. A scene needs no held-out
views: the metrics use its input views only. `facelift_jax.evaluate` measures held-out
views.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from facelift_jax.builders import (
    MAX_DEFAULT_INPUTS,
    Restored,
    baseline_options,
    make_refiner,
    make_renderer,
    restore,
)
from facelift_jax.data.examples import normalised_from_stored, reconstruction_example
from facelift_jax.data.io import DataError, located
from facelift_jax.data.options import DataOptions
from facelift_jax.data.scenes import FolderSource, Scene, StoredScene, open_source
from facelift_jax.data.validation.dataset_report import source_digests
from facelift_jax.data.validation.inputs import input_warnings
from facelift_jax.data.view_selection import input_positions
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
    make_hull_step,
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
from facelift_jax.reconstruction import NUM_STEPS
from facelift_jax.structs import Batch, Gaussians, RefineFn, RenderFn, RenderOutput

STARTS = ("hull", "network")
# the data options that change a reconstruction
RELEVANT_OPTIONS = ("input_size", "target_size", "num_inputs", "input_views")
RELEVANT_OPTIONS += ("background", "radius", "frame")


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """One reconstructed scene, in the world of its normalized rig.

    Attributes:
      gaussians: all Gaussians, [n].
      batch: the input views, also as targets, over [1 v].
      output: the Gaussians rendered at the input cameras, over [1 v].
      view_metrics: per input view, [1 v].
      radius: radius of the object, world units.
      metrics: `inputs/<metric>`, means over the input views; `health/...` of the
        Gaussians; `num_gaussians` with an opacity above 0; `share_opaque`, the share
        of them that the filter "opacity" keeps; `seconds` from images to Gaussians and
        metrics (the first call includes compilation).
      world: similarity from the stored world to that of the Gaussians, [4 4].
      warnings: what is unreliable about the input views, one line each.
    """

    gaussians: Gaussians
    batch: Batch
    output: RenderOutput
    view_metrics: dict[str, np.ndarray]
    radius: float
    metrics: dict[str, float]
    world: np.ndarray
    warnings: list[str]


def make_refined_hull_step(
    render_fn: RenderFn, refine_fn: RefineFn, num_steps: int
) -> EvalStep:
    """As `make_hull_step`; raises `DataError` if the masks define no hull."""
    hull_step = make_hull_step(render_fn, refine_fn, num_steps)

    def checked_step(params: Any, batch: Batch):
        is_full = (batch.inputs.masks[0] > 0.5).all(axis=(1, 2, 3))
        if is_full.any():
            raise DataError(
                f"the masks of {is_full.sum()} of {len(is_full)} input views (first: "
                f"input view {is_full.argmax()}) cover the whole image: is the alpha "
                "channel opaque? Set alpha to 0 outside the object"
            )
        gaussians, outputs = hull_step(params, batch)
        if not (gaussians.opacities > 0).any():
            raise DataError(
                f"the masks of the {len(is_full)} input views share no volume, "
                "probably because the cameras do not belong to these images: see "
                "python -m facelift_jax.check_data"
            )
        return gaussians, outputs

    return checked_step


def reconstruct_scene(
    step: EvalStep,
    params: Any,
    scene: Scene | StoredScene,
    options: DataOptions,
) -> Reconstruction:
    """Reconstructs a scene from its input views.

    Args:
      step: from `make_eval_step` or `make_refined_hull_step`.
      params: of the network; not used for a hull.

    Raises:
      DataError: the scene cannot be used; one line that names it.
      ValueError: the renderer dropped list entries (an explicit cap).
    """
    views = input_positions(scene, options)
    inputs = scene.take(views)
    example = reconstruction_example(scene, inputs, options)
    batch = jax.tree.map(lambda x: x[None], example)
    start = time.monotonic()
    with located(f"scene {scene.name} ({scene.path})"):
        gaussians, outputs = jax.device_get(step(params, batch))
    seconds = time.monotonic() - start
    require_nothing_dropped(scene.name, outputs.output)
    metrics, _ = scene_metrics(outputs, options.num_inputs)
    gaussians = jax.tree.map(lambda x: x[0], gaussians)
    is_opaque = gaussians.opacities >= ply.MIN_OPACITY
    num_gaussians = int((gaussians.opacities > 0).sum())  # without the hull's padding
    metrics["num_gaussians"] = num_gaussians
    metrics["share_opaque"] = float(is_opaque.sum() / num_gaussians)
    metrics["seconds"] = seconds
    return Reconstruction(
        gaussians,
        batch,
        outputs.output,
        outputs.view_metrics,
        float(outputs.radius[0]),
        metrics,
        normalised_from_stored(scene, options),
        input_warnings(inputs, views),
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
    content["warnings"] = reconstruction.warnings
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
    # Version 0.1.0 had only networks without refinement. It did not store
    # `render.antialiased`; the default of the config is assumed.
    stored = {"start": "network", "refine": 0, "render.antialiased": False, **stored}
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
    """A few lines with the metrics that need no held-out views.

    Gaussians of a hull belong to no view and lack the metrics of own views.
    """
    lines = [f"{metrics['num_gaussians']:,} Gaussians, {metrics['seconds']:.2f} s"]
    for kind, names in (
        ("inputs", ("psnr_fg", "iou", "coverage")),
        ("inputs", OWN_VIEW_DEFINITIONS),
        ("turntable", TURNTABLE_DEFINITIONS),
        ("health", HEALTH_DEFINITIONS),
    ):
        values = {name: metrics.get(f"{kind}/{name}") for name in names}
        parts = [f"{name} {x:.4g}" for name, x in values.items() if x is not None]
        lines += [f"{kind}: {', '.join(parts)}"] if parts else []
    return "\n  ".join(lines)


def parse(arguments: list[str]) -> Any:
    """Flags of the command."""
    parser = command.Parser(
        prog="python -m facelift_jax.reconstruct",
        description="Reconstructs scenes from images and cameras, with or without a "
        "network; writes a PLY file, a turntable video, images and metrics.",
    )
    add = parser.add_argument
    add("scenes", nargs="+", help="scene folders, folders of them, or lists of them")
    add("--checkpoint", help="run directory or converted weights of a network")
    add("--out", default="reconstruction", help="output folder")
    add(
        "--start",
        choices=STARTS,
        help="which Gaussians are refined: the visual hull of the input views or the "
        "output of the network; default: the network if there is a checkpoint. With "
        "--checkpoint, the hull is made from the images that the network would get",
    )
    add(
        "--refine",
        type=command.at_least(0),
        metavar="N",
        help="number of gradient steps on the input views; default: "
        f"{NUM_STEPS} from the hull, 0 (no refinement) from a network",
    )
    add(
        "--inputs",
        type=command.at_least(1),
        metavar="N",
        help="number of input views; default: as in training; without a checkpoint, "
        "the marked views or, if none is marked, at most "
        f"{MAX_DEFAULT_INPUTS} evenly spaced views",
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
        type=command.at_least(1),
        default=120,
        metavar="N",
        help="frames of the video; default %(default)s",
    )
    return parser.parse_args(arguments)


class _Job(NamedTuple):
    """A scene to reconstruct; `made_by` is stored in its `metrics.json`."""

    source: FolderSource
    index: int
    options: DataOptions
    made_by: dict[str, Any]


def main(arguments: list[str]) -> None:
    """Reconstructs the scenes that are not yet complete in the output folder.

    Raises:
      ValueError, OSError: bad flags or data; one line that says what to change.
    """
    flags = parse(arguments)
    command.log_own_lines()
    start, num_steps = _start_and_steps(flags)
    restored = None
    if flags.checkpoint:
        restored = restore(flags.checkpoint, 1, flags.inputs)
    settings = {"start": start, "refine": num_steps, "filter": flags.filter}
    settings |= {"layout": flags.layout, "turntable_frames": flags.turntable_frames}
    if restored and start == "network":
        settings["weights"] = digest(restored.params)
    section = restored.config.get("render", {}) if restored else {}
    settings["render.antialiased"] = section.get("antialiased", False)
    jobs: dict[str, _Job] = {}
    for source in map(open_source, flags.scenes):
        digests = zip(source.names, source_digests(source), strict=True)
        for index, (name, files) in enumerate(digests):
            if name in jobs:
                raise ValueError(
                    f"two scenes are named {name}; give them one at a time"
                )
            if restored:
                options = restored.options
            else:
                options = baseline_options(source[index], None, flags.inputs)
                # scene.ply keeps the stored axes
                options = dataclasses.replace(options, frame="world")
            _check_options(flags, options, name, start == "hull" or num_steps > 0)
            made_by = {f"data.{key}": getattr(options, key) for key in RELEVANT_OPTIONS}
            made_by |= {"files": files, **settings}
            made_by = json.loads(json.dumps(made_by))  # lists for tuples, as stored
            jobs[name] = _Job(source, index, options, made_by)
    out = Path(flags.out)
    complete = {n for n, job in jobs.items() if is_complete(out / n, n, job.made_by)}
    # the same for all scenes
    background = next(iter(jobs.values())).options.background
    params, render_fn, step = _make_step(restored, background, start, num_steps)
    turn = make_turntable(render_fn, flags.turntable_frames)
    for name, job in jobs.items():
        if name in complete:
            print(f"{name}: already complete in {out / name}")
            continue
        scene = job.source[job.index]
        reconstruction = reconstruct_scene(step, params, scene, job.options)
        for line in reconstruction.warnings:
            print(f"{name}: WARNING: {line}")
        metrics = write_reconstruction(
            out / name,
            name,
            reconstruction,
            turn,
            ply.FILTERS[flags.filter],
            flags.layout,
            job.made_by,
        )
        print(f"{name}: {describe(metrics)}")
    print(f"{out}: per scene scene.ply, turntable.mp4, images and metrics.json")


def _start_and_steps(flags: Any) -> tuple[str, int]:
    """The start of the reconstruction, and the number of steps that refine it."""
    start = flags.start or ("network" if flags.checkpoint else "hull")
    if start == "network" and not flags.checkpoint:
        raise ValueError(
            "--start network: needs the weights of a network; give --checkpoint, or "
            "use --start hull"
        )
    num_steps = flags.refine
    if num_steps is None:
        num_steps = NUM_STEPS if start == "hull" else 0
    return start, num_steps


def _check_options(
    flags: Any, options: DataOptions, name: str, needs_two_views: bool
) -> None:
    if flags.filter != "opacity" and options.frame != "world":
        raise ValueError(
            f"--filter {flags.filter}: needs a world whose z axis points up, but this "
            "checkpoint uses the axes of input camera 0 (y up); use --filter opacity"
        )
    if needs_two_views and options.num_inputs < 2:
        raise ValueError(
            f"scene {name}: there is only {options.num_inputs} input view; a hull and "
            "its refinement need at least two; add views, or raise --inputs"
        )


def _make_step(
    restored: Restored | None,
    background: tuple[float, float, float],
    start: str,
    num_steps: int,
) -> tuple[Any, RenderFn, EvalStep]:
    """The network's parameters (None for a hull), the renderer and the step."""
    if restored:
        render_fn, refine_fn = restored.render_fn, restored.refine_fn
    else:
        render_fn, refine_fn = make_renderer(background), make_refiner(background)
    if restored and start == "network":
        step = make_eval_step(restored.model, render_fn, refine_fn, num_steps)
        return restored.params, render_fn, step
    return None, render_fn, make_refined_hull_step(render_fn, refine_fn, num_steps)


if __name__ == "__main__":
    command.run("reconstruct", main)
