"""The format version of run directories and of the checkpoints of training runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import facelift_jax
from facelift_jax.checkpoints.checkpoint import latest_step

FORMAT_VERSION = 2
"""Changes when fields of a config or keys of a metrics file are renamed."""

PROGRAM = "facelift_jax"
FIRST_WRITER = f"{PROGRAM} 0.1.0"  # wrote format 1, whose files state no version


def format_fields() -> dict[str, Any]:
    """The format version and the program version that writes it, for stored files."""
    writer = f"{PROGRAM} {facelift_jax.__version__}"
    return {"format_version": FORMAT_VERSION, "written_by": writer}


def require_format(directory: str | Path, stored: Mapping[str, Any]) -> None:
    """Refuses a run directory of another format version.

    `stored` holds the fields of `format_fields` from the run directory or a checkpoint.

    Raises:
      ValueError: one line with the program version that wrote the directory.
    """
    version = stored.get("format_version", 1)
    if version != FORMAT_VERSION:
        writer = stored.get("written_by", FIRST_WRITER)
        raise ValueError(
            f"{directory}: a run directory of format {version}, written by {writer}; "
            f"this version needs format {FORMAT_VERSION}: use {writer} for it, or "
            f"start a new run from its weights with --config.run.init_from={directory}"
        )


def require_run_format(directory: str | Path, metadata: Mapping[str, Any]) -> None:
    """`require_format` for a checkpoint with this metadata, if a training run wrote it.

    Checkpoints that hold only parameters, such as converted weights, always pass.
    """
    steps = Path(directory) / "checkpoints"
    steps = steps if steps.is_dir() else Path(directory)
    if (steps / str(latest_step(steps)) / "data").is_dir():
        require_format(directory, metadata)
