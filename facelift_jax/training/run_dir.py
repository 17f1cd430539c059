"""The run directory: config, source revision, metrics, progress, completion marker.

In a run on several hosts only process 0 calls these.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from facelift_jax.io import atomic
from facelift_jax.io.revision import source_revision

CONFIG = "config.json"
SOURCE = "source.json"  # also says that the directory is ours
METRICS = "metrics.jsonl"
COMPLETE = "complete.json"
PROGRAM = "facelift_jax"


def open_run(
    directory: str | Path, config: Mapping[str, Any], may_change: Sequence[str] = ()
) -> list[str]:
    """Create or reopen a run directory; returns what changed since the last start.

    Writes `config.json` (plain nested dictionaries) and `source.json` (program and
    the revisions it was started from). A reopened run must have the same config, but
    for dotted names that a regular expression of `may_change` matches whole. Raises
    ValueError if it has not, or if the directory holds something else.
    """
    directory = Path(directory)
    new = json.loads(json.dumps(config, allow_nan=False))
    changes = []
    revisions = []
    if directory.is_dir() and any(
        p.name != SOURCE + atomic.SUFFIX for p in directory.iterdir()
    ):
        if not _is_ours(directory):
            raise ValueError(
                f"{directory}: exists and is not a run directory: choose another "
                "--workdir or empty it"
            )
        revisions = _read(directory / SOURCE)["revisions"]
        if (directory / CONFIG).is_file():
            changes = _config_changes(directory, new, may_change)
    elif directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: not a directory: choose another --workdir")
    directory.mkdir(parents=True, exist_ok=True)
    revision = source_revision()
    if revisions and revisions[-1] != revision:
        changes.append(f"source: {revisions[-1]} is now {revision}")
    if not revisions or revisions[-1] != revision:
        revisions = [*revisions, revision]
    _write(directory / SOURCE, {"program": PROGRAM, "revisions": revisions})
    _write(directory / CONFIG, new)
    return changes


def append_metrics(
    directory: str | Path,
    step: int,
    measurements: Mapping[str, Any],
    alarms: Sequence[str] = (),
) -> None:
    """Add one line, {"step": step, **measurements}, to `metrics.jsonl`.

    Values are numbers or arrays of one number. JSON has no NaN or infinity: such a
    value is null, and "nonfinite" holds it by name as a string. Steps must ascend: all
    of a step goes into its one line, written before its checkpoint.
    """
    path = Path(directory) / METRICS
    last = _last_step(path)
    if last is not None and step <= last:
        raise ValueError(f"{path}: step {step} after step {last}: steps must ascend")
    numbers = {name: _number(value) for name, value in measurements.items()}
    nonfinite = {k: str(v) for k, v in numbers.items() if not math.isfinite(v)}
    line: dict[str, Any] = {"step": step}
    line |= {name: None if name in nonfinite else v for name, v in numbers.items()}
    if nonfinite:
        line["nonfinite"] = nonfinite
    if alarms:
        line["alarms"] = list(alarms)
    with path.open("a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def read_metrics(directory: str | Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; without a last one that a kill left half-written.

    Raises ValueError where any other line is not one JSON object with a step.
    """
    path = Path(directory) / METRICS
    if not path.is_file():
        return []
    lines = []
    for number, text in enumerate(path.read_text().splitlines(keepends=True), 1):
        if not text.endswith("\n"):
            break
        try:
            line = json.loads(text)
            line["step"] = int(line["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}: line {number} is not a JSON object with a step: remove it"
            ) from error
        lines.append(line)
    return lines


def latest(directory: str | Path) -> dict[str, Any]:
    """The latest known value of everything in `metrics.jsonl`."""
    known = {}
    for line in read_metrics(directory):
        known |= {name: value for name, value in line.items() if value is not None}
    return known


def cut_metrics(directory: str | Path, step: int) -> int:
    """Remove the lines after `step`, atomically; returns how many lines went.

    Call it on resume with the restored step (0 when starting over), so that no step is
    in the file twice.
    """
    path = Path(directory) / METRICS
    if not path.is_file():
        return 0
    kept = [json.dumps(x) for x in read_metrics(directory) if x["step"] <= step]
    num_lines = len(path.read_text().splitlines())
    if len(kept) < num_lines:
        atomic.write_text(path, "".join(line + "\n" for line in kept))
    return num_lines - len(kept)


def mark_complete(directory: str | Path, summary: Mapping[str, Any]) -> None:
    """Write `complete.json`, the last thing a finished run does; strict JSON."""
    _write(Path(directory) / COMPLETE, summary)


def _is_ours(directory: Path) -> bool:
    try:
        return _read(directory / SOURCE)["program"] == PROGRAM
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _config_changes(
    directory: Path, new: dict[str, Any], may_change: Sequence[str]
) -> list[str]:
    old_flat = _flatten(_read(directory / CONFIG))
    new_flat = _flatten(new)
    changes = {}
    for name in sorted(old_flat.keys() | new_flat.keys()):
        old, value = old_flat.get(name, "absent"), new_flat.get(name, "absent")
        if old != value:
            changes[name] = f"{name} was {old}, is {value}"
    refused = [
        change
        for name, change in changes.items()
        if not any(re.fullmatch(pattern, name) for pattern in may_change)
    ]
    if refused:
        raise ValueError(
            f"{directory}: started with another config: {'; '.join(refused)}: "
            "choose another --workdir"
        )
    return list(changes.values())


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted names of the settings and their values as JSON."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat


def _number(value: Any) -> float | int:
    return value.item() if hasattr(value, "item") else value


def _last_step(path: Path) -> int | None:
    """Step of the last line; reads no more than the end of the file."""
    if not path.is_file() or path.stat().st_size == 0:
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        return json.loads(file.read().splitlines()[-1])["step"]


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _write(path: Path, value: Any) -> None:
    atomic.write_text(path, json.dumps(value, allow_nan=False, indent=2) + "\n")
