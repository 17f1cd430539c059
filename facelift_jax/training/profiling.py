"""A JAX profile of some training steps, for TensorBoard's profiler or Perfetto."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import logging


def parse_steps(text: str, num_steps: int) -> range:
    """The steps that `run.profile` names: "START:STOP", both included; "" is none.

    Raises:
      ValueError: other text, or steps that the run does not have.
    """
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    start, stop = (int(x) for x in match.groups()) if match else (0, 0)
    if not 1 <= start <= stop <= num_steps:
        raise ValueError(
            f"run.profile={text!r}: expected START:STOP, the first and the last step "
            f"to profile, between 1 and run.num_steps={num_steps}"
        )
    return range(start, stop + 1)


def profiled(
    step_fn: Callable[..., Any], steps: range, directory: Path
) -> Callable[..., Any]:
    """`step_fn` with the step's number as an additional first argument.

    Writes a profile of `steps` to `directory` and marks every step in it. A run that is
    resumed within `steps` profiles the rest of them.
    """
    is_tracing = False

    def call(step: int, *arguments: Any) -> Any:
        nonlocal is_tracing
        if step not in steps:
            return step_fn(*arguments)
        if not is_tracing:
            jax.profiler.start_trace(directory)
            is_tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = step_fn(*arguments)
            if step == steps[-1]:  # dispatch is asynchronous
                jax.block_until_ready(result)
        if step == steps[-1]:
            jax.profiler.stop_trace()
            logging.info("profile of steps %d to %d: %s", steps[0], step, directory)
        return result

    return call
