"""Where a run starts: at its own checkpoint, at other weights, or from scratch."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
from absl import logging

from facelift_jax.checkpoints import checkpoint
from facelift_jax.checkpoints.run_format import format_fields
from facelift_jax.training import optim
from facelift_jax.training.step import TrainState


@dataclasses.dataclass
class RunRecord:
    """What a checkpoint holds besides the state and the position in the data.

    Attributes:
      trained_on: fingerprints of the training scenes.
      skipped_steps: steps so far that were not finite, ascending.
      bad_scenes: indices of the scenes that could not be used.
    """

    trained_on: list[str]
    skipped_steps: list[int] = dataclasses.field(default_factory=list)
    bad_scenes: set[int] = dataclasses.field(default_factory=set)

    def metadata(self, config: dict[str, Any]) -> dict[str, Any]:
        """The metadata of a checkpoint; `config` is the whole config as JSON values."""
        return {
            **config,
            **format_fields(),
            "skipped_steps": self.skipped_steps,
            "bad_scenes": sorted(self.bad_scenes),
            "trained_on": self.trained_on,
        }


def restore_or_init(
    run: Any,
    checkpoints: Path,
    state: TrainState,
    batches: grain.DatasetIterator,
    record: RunRecord,
) -> TrainState:
    """The state to start from; `state` is a new one, `run` the config's run section.

    If `checkpoints` contains a checkpoint, `batches` and `record` continue from it too.
    Otherwise the parameters come from `init_from`, if it is given.

    Raises:
      ValueError: a checkpoint that does not fit, or other scenes than before.
    """
    if checkpoint.latest_step(checkpoints) is not None:
        state, metadata = checkpoint.restore_checkpoint(
            checkpoints, state, data_iterator=batches
        )
        if metadata["trained_on"] != record.trained_on:
            raise ValueError(
                f"{checkpoints}: the scenes to train on differ from those at the start "
                "of the run; restore the data set or choose another --workdir"
            )
        record.skipped_steps = metadata["skipped_steps"]
        record.bad_scenes.update(metadata["bad_scenes"])
        logging.info("resumed at step %d", int(state.step))
    elif run.init_from:
        params, ignored = checkpoint.init_from(
            run.init_from, state.params, run.init_ignore
        )
        state = dataclasses.replace(state, params=params)
        logging.info(
            "initialized from %s; ignored differences: %s", run.init_from, ignored
        )
    return state


def require_finite_steps(
    step: int, skipped_steps: Sequence[int], checkpoints: Path
) -> None:
    """Ends a run in which too many steps were not finite.

    Raises:
      RuntimeError: one line, with the checkpoint to continue from.
    """
    reason = optim.stop_reason(step, skipped_steps)
    if reason is not None:
        advice = restart_advice(checkpoints, reason.first_step)
        raise RuntimeError(f"{reason.message}; {advice}")


def restart_advice(checkpoints: Path, first_bad_step: int) -> str:
    """Names the latest checkpoint from before the first step that was not finite."""
    good = checkpoint.last_step_before(checkpoints, first_bad_step)
    if good is None:
        return (
            f"no good checkpoint: {checkpoints} contains none from before step "
            f"{first_bad_step}: start again with another --workdir"
        )
    return (
        f"the last good checkpoint is step {good}: to resume from it, delete the later "
        f"ones in {checkpoints}"
    )
