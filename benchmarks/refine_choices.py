"""Refinement of visual hulls with other constants: metrics against the number of steps.

    python -m benchmarks.refine_choices data/rodent-128 --plot refinement.png

Each choice replaces constants of `facelift_jax.reconstruction`. DATA are sets of scenes
with held-out views and depth maps. The plot and the JSON file show the metrics after
every number of steps, the table those after the number nearest to `NUM_STEPS`. The plot
needs the extra "report".
"""

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import benchmarks.refine as benchmark
from facelift_jax.io import command
from facelift_jax.reconstruction import NUM_STEPS, hull

# the package's attribute of this name is the function
refine = importlib.import_module("facelift_jax.reconstruction.refine")

STEPS = (0, 10, 20, 40, 60, 90, 120)
METRICS = ("inputs/psnr_fg", "held_out/psnr_fg", "held_out/iou")
METRICS += ("held_out/depth_within_05R",)


def rates(**changed: float) -> dict[str, Any]:
    """The constant RATES with some rates changed."""
    return {"RATES": dataclasses.replace(refine.RATES, **changed)}


def scaled_rates(factor: float) -> dict[str, Any]:
    """The constant RATES times a factor."""
    return {"RATES": jax.tree.map(lambda rate: factor * rate, refine.RATES)}


CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "Gaussians not divided": {"subdivide": lambda gaussians: gaussians},
    "compared on white": {"GRAY": 1.0},
    "Adam": {"_mean_over_scene": jnp.zeros_like},
    "silhouette weight 0": {"ALPHA_WEIGHT": 0.0},
    "silhouette weight 1": {"ALPHA_WEIGHT": 1.0},
    "rates / 3": scaled_rates(1 / 3),
    "rates x 2": scaled_rates(2),
    "only colors move": rates(means=0, quats=0, scales=0, opacities=0),
    "colors fixed": rates(sh=0),
    "means fixed": rates(means=0),
    "cubes of 1 voxel": {"SPACING": 1.0},
    "cubes of 3 voxels": {"SPACING": 3.0},
    "round Gaussians": {"TANGENTIAL": 0.5, "NORMAL": 0.5},
}


def parse(arguments: list[str]):
    """Flags of the command."""
    parser = command.Parser(
        prog="python -m benchmarks.refine_choices", description=__doc__
    )
    parser.add_argument("data", nargs="+", help="folders or lists of scenes")
    parser.add_argument("--batch", type=int, default=12, help="scenes per call")
    parser.add_argument(
        "--choices", nargs="+", choices=list(CHOICES), default=list(CHOICES)
    )
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--plot", type=Path, help="PNG file")
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args(arguments)


@contextmanager
def replaced(constants: dict[str, Any]) -> Iterator[None]:
    """The modules of the reconstruction with other constants."""
    with ExitStack() as stack:
        stack.callback(refine._refine.clear_cache)  # what is compiled has the constants
        for name, value in constants.items():
            modules = (benchmark, refine, hull)
            owner = next(module for module in modules if hasattr(module, name))
            stack.enter_context(mock.patch.object(owner, name, value))
        refine._refine.clear_cache()
        yield


def curves(sets: list[str], batch_size: int, steps: list[int]) -> dict[str, Any]:
    """`METRICS` after each number of steps, means over the scenes of all sets."""
    totals, num_scenes = np.zeros((len(METRICS), len(steps))), 0
    for data in sets:
        batches, background, evaluate, size = benchmark.load(data, None, batch_size)
        starts = benchmark.make_starts(batches)
        for index, number in enumerate(steps):
            refined = benchmark.refined_starts(starts, batches, background, number)
            metrics = benchmark.mean_metrics(evaluate, refined, batches)
            totals[:, index] += [size * metrics[name] for name in METRICS]
        num_scenes += size
    means = totals / num_scenes
    return dict(zip(METRICS, means.tolist(), strict=True))


def plot(results: dict[str, Any], steps: list[int], path: Path) -> None:
    """One panel per metric, one curve per choice."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    for axes, name in zip(figure.subplots(2, 2).flat, METRICS, strict=True):
        for index, (choice, values) in enumerate(results.items()):
            color = "black" if choice == "default" else f"C{index % 10}"
            style = "-" if index < 10 else "--"
            width = 2.5 if choice == "default" else 1.2
            axes.plot(steps, values[name], style, color=color, lw=width, label=choice)
        axes.axvline(NUM_STEPS, color="0.8", zorder=0)
        axes.set(title=name, xlabel="steps")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=80)


def main(arguments: list[str]) -> None:
    """Runs the command."""
    flags = parse(arguments)
    steps = sorted(flags.steps)
    if flags.plot:
        importlib.import_module("matplotlib")  # an error before the work, not after it
    results = {}
    for choice in flags.choices:
        with replaced(CHOICES[choice]):
            results[choice] = curves(flags.data, flags.batch, steps)
        print(choice, results[choice]["held_out/psnr_fg"], file=sys.stderr, flush=True)
        if flags.out:
            content = {"steps": steps, "choices": results}
            flags.out.write_text(json.dumps(content, indent=1) + "\n")
    index = min(range(len(steps)), key=lambda i: abs(steps[i] - NUM_STEPS))
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"{f'after {steps[index]} steps':<24}", *METRICS, sep="  ")
    for choice, values in results.items():
        cells = (f"{values[name][index]:>{len(name)}.3f}" for name in METRICS)
        print(f"{choice:<24}", *cells, sep="  ")
    if flags.plot:
        plot(results, steps, flags.plot)


if __name__ == "__main__":
    command.run("benchmarks.refine_choices", main)
