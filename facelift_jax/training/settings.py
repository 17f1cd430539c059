"""Checks of a training config before anything is built."""

import json
from typing import Any

from facelift_jax.builders import build_model, data_options, optim_config
from facelift_jax.losses import check_networks, term_weights, validate_weights
from facelift_jax.training import collapse_monitor, profiling
from facelift_jax.training.sharding import make_mesh

POSITIVE = (
    *(f"run.{x}" for x in ("num_steps", "batch_size", "fsdp", "keep_checkpoints")),
    *(f"run.{x}" for x in ("log_every", "save_every")),
    *(f"eval.{x}" for x in ("every", "num_targets", "turntable_frames")),
)

MAY_CHANGE = (
    r"eval\..*",
    r"run\.(log_every|save_every|keep_checkpoints|on_collapse|profile)",
)
"""Regexes of the fields that may change when a run is resumed.

They decide when to evaluate, save and report, and have no effect on the parameters.
"""


def check_settings(config: Any) -> None:
    """Refuses a config that `train` cannot use.

    Raises:
      ValueError: the first problem, in one line.
    """
    run = config.run
    for name in POSITIVE:
        section, field = name.split(".")
        if config[section][field] < 1:
            raise ValueError(f"{name}={config[section][field]}: must be at least 1")
    if run.init_from is None:
        raise ValueError(
            "run.init_from: this recipe starts from trained weights; set "
            '--config.run.init_from=DIR to their checkpoint, or "" for random weights'
        )
    if run.on_collapse not in collapse_monitor.ACTIONS:
        raise ValueError(
            f"run.on_collapse={run.on_collapse!r}: choose from "
            f"{', '.join(collapse_monitor.ACTIONS)}"
        )
    profiling.parse_steps(run.profile, run.num_steps)
    validate_weights(term_weights(config.loss))
    check_networks(config.loss)
    build_model(config.model)
    data_options(config.data, config.eval.num_targets)
    optim_config(config)
    make_mesh(run.fsdp, run.batch_size)


def plain(config: Any) -> dict[str, Any]:
    """The config as nested dictionaries of JSON values."""
    return json.loads(config.to_json())
