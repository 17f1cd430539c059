"""Refinement of visual hulls: scenes per second, and metrics by number of steps.

    python -m benchmarks.refine data/rodent-256 --batch 8 --out refine.json

DATA is a set of scenes with held-out views, such as `facelift_jax.data.rodent` writes.
The first column is the visual hull, the second the start of the refinement, the others
are refined hulls. Metrics are means over scenes. Times are of one call of `refine` on
`--batch` scenes, medians after warm-up; `start_ms` is the time to make the start of one
scene, on the CPU.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.render import REPEATS, milliseconds, table
from facelift_jax.builders import baseline_options, make_renderer
from facelift_jax.data.pipeline import evaluation_batches
from facelift_jax.data.scenes import open_source
from facelift_jax.evaluation.steps import (
    SceneOutputs,
    evaluate_gaussians,
    scene_metrics,
)
from facelift_jax.io import command
from facelift_jax.metrics import summarize_scenes
from facelift_jax.reconstruction import (
    NUM_STEPS,
    hull_surface,
    refine,
    subdivide,
    visual_hull,
)
from facelift_jax.structs import Batch, Gaussians, Views

NUM_HELD_OUT_VIEWS = 12
STEPS = [NUM_STEPS // 4, NUM_STEPS // 2, NUM_STEPS, 2 * NUM_STEPS]
METRICS = ("inputs/psnr_fg", "held_out/psnr_fg", "gap", "inputs/iou", "held_out/iou")
METRICS += ("held_out/ssim", "held_out/depth_error", "held_out/depth_within_05R")


def parse(arguments: list[str]):
    """Flags of the command."""
    parser = command.Parser(prog="python -m benchmarks.refine", description=__doc__)
    parser.add_argument("data", help="folder or list of scenes")
    parser.add_argument("--batch", type=int, default=8, help="scenes per call")
    parser.add_argument("--inputs", type=int, metavar="N", help="input views per scene")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args(arguments)


def stack(scenes: Iterable[Gaussians]) -> Gaussians:
    """Gaussians [b n]; transparent ones fill up the smaller scenes."""
    scenes = list(scenes)
    num = max(len(scene.means) for scene in scenes)

    def pad(x):
        return np.pad(x, [(0, num - len(x))] + [(0, 0)] * (x.ndim - 1))

    return jax.tree.map(lambda *x: np.stack([pad(y) for y in x]), *scenes)


def scene_inputs(batch: Batch) -> list[Views]:
    """The input views [v] of every scene of a batch."""
    scenes = range(len(batch.scene_id))
    return [jax.tree.map(lambda x, i=i: x[i], batch.inputs) for i in scenes]


def make_starts(batches: list[Batch]) -> list[tuple[Gaussians, np.ndarray]]:
    """`hull_surface` of all scenes of every batch: Gaussians [b n], weights."""
    starts = []
    for batch in batches:
        scenes, weights = zip(*map(hull_surface, scene_inputs(batch)), strict=True)
        starts.append((stack(scenes), np.stack(weights)))
    return starts


def mean_metrics(
    evaluate: Callable[..., SceneOutputs],
    gaussians: Iterable[Gaussians],
    batches: list[Batch],
) -> dict[str, float]:
    """`METRICS`, means over views, then over the scenes of all batches."""
    scenes = []
    for scene, batch in zip(gaussians, batches, strict=True):
        outputs = evaluate(scene, None, batch)._replace(output=None)
        outputs = jax.device_get(outputs)
        num_scenes, num_inputs = batch.inputs.images.shape[:2]
        for i in range(num_scenes):
            one = jax.tree.map(lambda x, i=i: x[i : i + 1], outputs)
            scenes.append(scene_metrics(one, num_inputs)[0])
    means = summarize_scenes(scenes)[0]
    return {name: means[name] for name in METRICS}


class Task(NamedTuple):
    """A set of scenes: its batches, its background, and how Gaussians are evaluated."""

    batches: list[Batch]
    background: np.ndarray
    evaluate: Callable[..., SceneOutputs]
    num_scenes: int


def load(data: str, num_inputs: int | None, batch_size: int) -> Task:
    """Opens a set of scenes with `NUM_HELD_OUT_VIEWS` held-out views."""
    source = open_source(data)
    options = baseline_options(source[0], NUM_HELD_OUT_VIEWS, num_inputs)
    evaluate = functools.partial(evaluate_gaussians, make_renderer(options.background))
    batches = list(evaluation_batches(source, options, batch_size))
    return Task(batches, np.asarray(options.background), evaluate, len(source))


def refined_starts(
    starts: list[tuple[Gaussians, np.ndarray]],
    batches: list[Batch],
    background: np.ndarray,
    num_steps: int,
) -> Iterator[Gaussians]:
    """The refined and divided starts [b n], batch after batch."""
    for (gaussians, weights), batch in zip(starts, batches, strict=True):
        refined = refine(gaussians, batch.inputs, background, num_steps, weights)
        yield subdivide(refined)


def main(arguments: list[str]) -> None:
    """Runs the command."""
    flags = parse(arguments)
    batches, background, evaluate, num_scenes = load(
        flags.data, flags.inputs, flags.batch
    )
    rows: dict[str, dict[str, float]] = {}
    hulls = [stack(map(visual_hull, scene_inputs(batch))) for batch in batches]
    rows["hull"] = mean_metrics(evaluate, hulls, batches)
    start = time.perf_counter()
    starts = make_starts(batches)
    ms = 1e3 * (time.perf_counter() - start) / num_scenes
    gaussians = [scenes for scenes, _ in starts]
    rows["start"] = {"start_ms": ms, **mean_metrics(evaluate, gaussians, batches)}
    (first, weights), inputs = jax.device_put((starts[0], batches[0].inputs))
    start = time.perf_counter()
    jax.block_until_ready(refine(first, inputs, background, 1, weights))
    seconds = time.perf_counter() - start  # all numbers of steps share what is compiled
    for steps in flags.steps:
        call = functools.partial(refine, first, inputs, background, steps, weights)
        ms = milliseconds(call, repeats=flags.repeats)
        refined = refined_starts(starts, batches, background, steps)
        rows[f"{steps} steps"] = {
            "refine_ms": ms,
            "scenes_per_s": 1e3 * len(batches[0].scene_id) / ms,
            **mean_metrics(evaluate, refined, batches),
        }
        print(steps, *rows[f"{steps} steps"].items(), file=sys.stderr, flush=True)
        if flags.out:
            flags.out.write_text(json.dumps(rows, indent=1) + "\n")
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}; {num_scenes} scenes")
    print(f"first call of `refine`, with compilation: {seconds:.1f} s")
    print(table(rows))


if __name__ == "__main__":
    command.run("benchmarks.refine", main)
