"""Judging a network from cameras it never saw; in the training loop or as a command.

    python -m facelift_jax.evaluate --checkpoint runs/x DATA --out figures
    python -m facelift_jax.evaluate --baseline hull DATA --out figures

Figures of input views and of held-out views have different names, always.
"""

import dataclasses
from pathlib import Path
from typing import Any

from facelift_jax.builders import baseline_options, make_renderer, restore
from facelift_jax.data.scenes import open_source
from facelift_jax.data.validation.leakage import leave_out_trained
from facelift_jax.evaluation.evaluator import NUM_SHAPE_SCENES, count_violations, report
from facelift_jax.evaluation.report import Judged
from facelift_jax.evaluation.results import table
from facelift_jax.evaluation.steps import (
    make_eval_step,
    make_hull_step,
)
from facelift_jax.io import command
from facelift_jax.metrics import load_lpips


def parse(arguments: list[str]) -> Any:
    """Flags of the command."""
    parser = command.Parser(
        prog="python -m facelift_jax.evaluate",
        description="Held-out figures, sheets, PLY and turntable of a checkpoint, or "
        "of the visual hull.",
    )
    add = parser.add_argument
    add("data", help="folder or list of scenes, none trained on")
    add("--checkpoint", help="run directory or converted weights")
    add(
        "--baseline",
        choices=["hull"],
        help="judge the visual hull of the inputs instead of a network; with a "
        "checkpoint, of the pictures that its network is given",
    )
    add("--out", default="evaluation", help="output folder")
    add("--inputs", type=int, metavar="N", help="views given")
    add("--held-out-views", type=int, default=12, metavar="N")
    add("--picture-scenes", type=int, default=4, metavar="N")
    add(
        "--turntable-frames",
        type=int,
        default=120,
        metavar="N",
        help=f"of the video, and of the figures that {NUM_SHAPE_SCENES} scenes get",
    )
    add(
        "--lpips",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="LPIPS too, by the weight files there; without FOLDER, of the hub's cache",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """The command: any checkpoint, or the visual hull, and any data set."""
    flags = parse(arguments)
    command.log_own_lines()
    if not (flags.checkpoint or flags.baseline):
        raise ValueError("give --checkpoint, or --baseline hull to judge that alone")
    if flags.turntable_frames < 1:
        raise ValueError(f"--turntable-frames {flags.turntable_frames}: at least 1")
    lpips = None if flags.lpips is None else load_lpips(flags.lpips)
    source, params, judged = open_source(flags.data), None, Judged(None, {})
    if flags.checkpoint:
        restored = restore(flags.checkpoint, flags.held_out_views, flags.inputs)
        source = leave_out_trained(source, restored.trained_on)
        options, render_fn = restored.options, restored.render_fn
        step = make_eval_step(restored.model, render_fn, lpips)
        params = restored.params
        judged = Judged(flags.checkpoint, restored.config)
    else:
        options = baseline_options(source, flags.held_out_views, flags.inputs)
        render_fn = make_renderer(options.background)
    if flags.baseline:
        step = make_hull_step(render_fn, lpips)
        judged = dataclasses.replace(judged, checkpoint=None)
    violations = count_violations(Path(flags.data), source, options.background)
    evaluation = report(
        Path(flags.out),
        step,
        params,
        dataclasses.replace(source, violations=violations),
        options,
        render_fn,
        flags.picture_scenes,
        flags.turntable_frames,
        judged,
    )
    print(table(evaluation))
    print(f"{flags.out}: report.html, figures.json, pictures, scene.ply, turntable.mp4")


if __name__ == "__main__":
    command.run("evaluate", main)
