"""The run directory: config, source revisions, metrics and the completion marker.

In a run on several hosts, only process 0 calls these functions.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from facelift_jax.checkpoints.run_format import PROGRAM, format_fields, require_format
from facelift_jax.io import atomic
from facelift_jax.io.revision import source_revision

CONFIG = "config.json"
SOURCE = "source.json"  # also marks the directory as a run directory
METRICS = "metrics.jsonl"
COMPLETE = "complete.json"


def open_run(
    directory: str | Path, config: Mapping[str, Any], may_change: Sequence[str] = ()
) -> list[str]:
    """Creates or reopens a run directory; returns what changed since the last start.

    Writes `config.json` (plain nested dictionaries) and `source.json` (program, format
    version and the source revisions it was started from). A reopened run must have the
    same config, except for dotted names that match a regular expression of
    `may_change`.

    Raises:
      ValueError: another config, a run directory of another format version, or a
        directory with other contents.
    """
    directory = Path(directory)
    new_config = json.loads(json.dumps(config, allow_nan=False))
    changes = []
    revisions = []
    if directory.is_dir() and any(
        p.name != SOURCE + atomic.SUFFIX for p in directory.iterdir()
    ):
        source = _read_source(directory)
        require_format(directory, source)
        revisions = source["revisions"]
        if (directory / CONFIG).is_file():
            changes = _config_changes(directory, new_config, may_change)
    elif directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: not a directory: choose another --workdir")
    directory.mkdir(parents=True, exist_ok=True)
    revision = source_revision()
    if revisions and revisions[-1] != revision:
        changes.append(f"source: {revisions[-1]} is now {revision}")
    if not revisions or revisions[-1] != revision:
        revisions = [*revisions, revision]
    source = {"program": PROGRAM, **format_fields(), "revisions": revisions}
    _write(directory / SOURCE, source)
    _write(directory / CONFIG, new_config)
    return changes


def append_metrics(
    directory: str | Path,
    step: int,
    measurements: Mapping[str, Any],
    alarms: Sequence[str] = (),
) -> None:
    """Appends one line, {"step": step, **measurements}, to `metrics.jsonl`.

    Values are numbers or arrays of one number. JSON has no NaN or infinity: such a
    value is null, and "nonfinite" holds its name and text. The texts of `alarms` are a
    list under the key "alarms". Steps ascend: a step has one line, which is written
    before its checkpoint.

    Raises:
      ValueError: the step is not larger than that of the last line.
    """
    path = Path(directory) / METRICS
    last = _last_step(path)
    if last is not None and step <= last:
        raise ValueError(
            f"{path}: step {step} after step {last}: steps must ascend; choose another "
            "--workdir"
        )
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
    """The lines of `metrics.jsonl`, without an incomplete last line of a killed run.

    Raises:
      ValueError: another line is not a JSON object with a step.
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


def latest_metrics(directory: str | Path) -> dict[str, Any]:
    """The latest value of every key in `metrics.jsonl` that is not null."""
    latest = {}
    for line in read_metrics(directory):
        latest |= {name: value for name, value in line.items() if value is not None}
    return latest


def cut_metrics(directory: str | Path, step: int) -> int:
    """Removes the lines after `step`, atomically; returns the number of them.

    Call it on resume with the restored step (0 for a new start), so that no step is in
    the file twice.
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
    """Writes `complete.json`, the last file of a finished run."""
    _write(Path(directory) / COMPLETE, summary)


def _read_source(directory: Path) -> dict[str, Any]:
    try:
        source = _read(directory / SOURCE)
        is_run = source["program"] == PROGRAM
    except (OSError, ValueError, TypeError, KeyError):
        is_run = False
    if not is_run:
        raise ValueError(
            f"{directory}: exists and is not a run directory: choose another --workdir "
            "or empty it"
        )
    return source


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
    """Dotted name of each setting -> its value as JSON."""
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
    """Step of the last line; reads only the end of the file."""
    if not path.is_file() or path.stat().st_size == 0:
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        return json.loads(file.read().splitlines()[-1])["step"]


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _write(path: Path, value: Any) -> None:
    atomic.write_text(path, json.dumps(value, allow_nan=False, indent=2) + "\n")
