"""Command: evaluates a checkpoint, or the visual hull, on scenes not trained on.

    python -m facelift_jax.evaluate --checkpoint runs/x DATA --out evaluation
    python -m facelift_jax.evaluate --baseline hull DATA --out evaluation
    python -m facelift_jax.evaluate --baseline hull DATA --refine --out evaluation

With `--refine`, the Gaussians are refined by gradient steps on the input views.
Metrics of input views and metrics of held-out views have different names.
"""

import dataclasses
from pathlib import Path
from typing import Any

from facelift_jax.builders import (
    MAX_DEFAULT_INPUTS,
    baseline_options,
    make_refiner,
    make_renderer,
    restore,
)
from facelift_jax.data.scenes import open_source
from facelift_jax.evaluation.evaluator import NUM_SHAPE_SCENES, evaluate_held_out
from facelift_jax.evaluation.results import EvaluatedModel, table
from facelift_jax.evaluation.steps import make_eval_step, make_hull_step
from facelift_jax.io import command
from facelift_jax.metrics import load_lpips
from facelift_jax.reconstruction import NUM_STEPS


def parse(arguments: list[str]) -> Any:
    """Flags of the command."""
    parser = command.Parser(
        prog="python -m facelift_jax.evaluate",
        description="Metrics, images, PLY, turntable and report of a checkpoint, or of "
        "the visual hull, on held-out views.",
    )
    add = parser.add_argument
    add(
        "data",
        help="folder or list of scenes; scenes that the checkpoint was trained on are "
        "left out",
    )
    add("--checkpoint", help="run directory or converted weights")
    add(
        "--baseline",
        choices=["hull"],
        help="evaluate the visual hull instead of a network; with --checkpoint, the "
        "hull is made from the input images that the network would get",
    )
    add(
        "--refine",
        nargs="?",
        type=command.at_least(0, "give DATA before the flags"),
        const=NUM_STEPS,
        default=0,
        metavar="N",
        help="refine the Gaussians by N gradient steps on the input views; without N, "
        "by %(const)s; default %(default)s, no refinement",
    )
    add("--out", default="evaluation", help="output folder")
    add(
        "--inputs",
        type=command.at_least(1),
        metavar="N",
        help="number of input views; default: as in training; without a checkpoint, "
        "the marked views or, if none is marked, at most "
        f"{MAX_DEFAULT_INPUTS} evenly spaced views, and at most three quarters of the "
        "views",
    )
    add(
        "--held-out-views",
        type=command.at_least(1),
        default=12,
        metavar="N",
        help="maximum number of held-out views per scene; default %(default)s",
    )
    add(
        "--image-scenes",
        type=command.at_least(0),
        default=4,
        metavar="N",
        help="number of scenes whose images are written; default %(default)s",
    )
    add(
        "--turntable-frames",
        type=command.at_least(1),
        default=120,
        metavar="N",
        help="frames of the video and of the turntable metrics (computed for the first "
        f"{NUM_SHAPE_SCENES} scenes); default %(default)s",
    )
    add(
        "--lpips",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="also compute LPIPS, with the weight files in FOLDER; without FOLDER, "
        "with the files in the cache of the Hugging Face hub",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Evaluates the checkpoint or the visual hull, and prints the metrics."""
    flags = parse(arguments)
    command.log_own_lines()
    if not (flags.checkpoint or flags.baseline):
        raise ValueError("give --checkpoint, or --baseline hull for the visual hull")
    lpips = None if flags.lpips is None else load_lpips(flags.lpips)
    source = open_source(flags.data)
    params, trained_on = None, []
    evaluated = EvaluatedModel(None, {}, flags.refine)
    if flags.checkpoint:
        restored = restore(flags.checkpoint, flags.held_out_views, flags.inputs)
        params, trained_on = restored.params, restored.trained_on
        options = restored.options
        render_fn, refine_fn = restored.render_fn, restored.refine_fn
        step = make_eval_step(restored.model, render_fn, refine_fn, flags.refine, lpips)
        evaluated = EvaluatedModel(flags.checkpoint, restored.config, flags.refine)
    else:
        options = baseline_options(source[0], flags.held_out_views, flags.inputs)
        render_fn = make_renderer(options.background)
        refine_fn = make_refiner(options.background)
    if flags.baseline:
        step = make_hull_step(render_fn, refine_fn, flags.refine, lpips)
        evaluated = dataclasses.replace(evaluated, checkpoint=None)
    evaluation = evaluate_held_out(
        Path(flags.out),
        step,
        params,
        source,
        options,
        render_fn,
        refine_fn,
        lpips,
        evaluated,
        data_sets={Path(flags.data): source},
        trained_on=trained_on,
        num_image_scenes=flags.image_scenes,
        num_turntable_frames=flags.turntable_frames,
    )
    print(table(evaluation))
    print(f"{flags.out}: report.html, metrics.json, images, scene.ply, turntable.mp4")


if __name__ == "__main__":
    command.run("evaluate", main)
