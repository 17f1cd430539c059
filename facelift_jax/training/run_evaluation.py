"""Evaluation of the network during a run, always of the same held-out scenes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from facelift_jax.builders import make_refiner
from facelift_jax.data.options import DataOptions
from facelift_jax.data.scenes import FolderSource
from facelift_jax.evaluation.evaluator import evaluate, write_evaluation
from facelift_jax.evaluation.results import EvaluatedModel, Evaluation
from facelift_jax.evaluation.steps import (
    make_eval_step,
    make_shape_step,
    make_turntable,
)
from facelift_jax.structs import RenderFn
from facelift_jax.training.settings import plain


@dataclasses.dataclass(frozen=True)
class RunEvaluator:
    """Evaluates parameters on the held-out scenes of a run.

    Attributes:
      evaluate: (step, params, with_shape) -> evaluation; writes the images of that step
        to the run directory. `with_shape` adds the metrics of shape, which are slow.
      write: adds the metrics of the baselines to an evaluation; writes the report, the
        PLY file and the turntable. For process 0 only.
    """

    evaluate: Callable[[int, Any, bool], Evaluation]
    write: Callable[[Evaluation], Evaluation]


def make_run_evaluator(
    config: Any,
    workdir: Path,
    model: Any,
    render_fn: RenderFn,
    held_out: FolderSource,
    options: DataOptions,
    lpips: Any,
) -> RunEvaluator:
    """The evaluator of a run; `lpips` are the parameters of LPIPS, or None.

    Its functions are compiled when they are first called.
    """
    refine_fn = make_refiner(options.background, **config.render)
    eval_step = make_eval_step(model, render_fn, refine_fn, lpips=lpips)
    turntable = make_turntable(render_fn, config.eval.turntable_frames)
    shape_step = make_shape_step(render_fn, turntable)
    is_writer = jax.process_index() == 0

    def evaluate_step(step: int, params: Any, with_shape: bool) -> Evaluation:
        return evaluate(
            eval_step,
            params,
            held_out,
            options,
            config.eval.num_image_scenes,
            workdir / "images" / f"step_{step:06d}" if is_writer else None,
            shape_step if with_shape else None,
        )

    def write(evaluation: Evaluation) -> Evaluation:
        evaluated = EvaluatedModel(str(workdir), plain(config))
        return write_evaluation(
            workdir,
            evaluation,
            render_fn,
            refine_fn,
            lpips,
            turntable,
            held_out,
            options,
            evaluated,
        )

    return RunEvaluator(evaluate_step, write)
