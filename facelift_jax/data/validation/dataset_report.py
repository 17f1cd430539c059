"""Runs the data checks on a whole set on disk, and stores the check reports.

The reports are stored in the set as `data_checks.json`, each with a digest of the
scene's files (names, sizes and modification times; in a packed set, of all files of the
set). A stored report is valid while the digest, the background and `CHECKS_VERSION` are
unchanged; otherwise the scene is checked again.
"""

import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from facelift_jax.data.formats import Origin
from facelift_jax.data.io import DataError, printable, read_json
from facelift_jax.data.options import DataOptions
from facelift_jax.data.packed import PackedScene
from facelift_jax.data.scenes import FolderSource, Part, set_name
from facelift_jax.data.validation.checks import (
    SceneMeasurements,
    SceneReport,
    check_scene,
)
from facelift_jax.data.validation.leakage import HELD_OUT, TRAIN, check_leakage
from facelift_jax.io import atomic
from facelift_jax.io.progress import map_in_order, with_progress

DATA_CHECKS_FILE = "data_checks.json"
# Raise this number when the reports of unchanged files can change: new or removed
# checks, other thresholds, other messages, other fields of a report.
CHECKS_VERSION = 3
MAX_REPORT_BYTES = 2**29  # of a stored file; a scene of 32 views takes 1.0 kB
MAX_DIAGNOSED = 32  # scenes per call; the other failing scenes likely have one cause


def check_source(
    path: Path | str,
    source: FolderSource,
    background: tuple[float, float, float],
    progress: Callable[[str], None],
    is_writer: bool = True,
) -> list[SceneReport]:
    """The check reports of all scenes of `source`, which was opened from `path`.

    `progress` is called with lines of text, at once and every few seconds. Several
    processes may check one set; all get equal reports, and the one with `is_writer`
    stores them.
    """
    file = _report_file(Path(path))
    key = {"checks_version": CHECKS_VERSION, "background": list(background)}
    stored = _read(file, key)
    digests = source_digests(source)
    reports: dict[int, SceneReport] = {}
    for i, (name, digest) in enumerate(zip(source.names, digests, strict=True)):
        if name in stored and stored[name].get("digest") == digest:
            reports[i] = _report_from(stored[name])
    missing = [i for i in range(len(source)) if i not in reports]
    if not missing:
        return [reports[i] for i in range(len(source))]
    progress(
        f"check: {len(missing)} scenes of {path}; the results are stored with the "
        "data set"
    )
    try:
        for i, report in _check(source, missing, background, progress):
            reports[i] = report
    finally:
        for i, report in reports.items():
            entry = dataclasses.asdict(report)
            stored[source.names[i]] = {**entry, "digest": digests[i]}
        if is_writer:
            _write(file, {**key, "scenes": stored})
    return [reports[i] for i in range(len(source))]


def require_data_checks(
    parts: Sequence[Part],
    options: DataOptions,
    progress: Callable[[str], None],
    is_writer: bool = True,
) -> dict[str, Any]:
    """Checks the sets of a run, and returns the record for the run directory.

    In a run on several hosts, every process checks all sets, so that all raise the same
    error; the process with `is_writer` stores the reports.

    At most `bad_scenes_allowed` scenes may be unreadable; they are skipped later. At
    most `violations_allowed` scenes may fail the checks; they are used.

    Raises:
      DataError: a set fails; with the first reason and the command that shows all.
    """
    paths, background = [part.path for part in parts], options.background
    groups: dict[str, list[SceneReport]] = {TRAIN: [], HELD_OUT: []}
    errors, bad, sets = [], [], {}
    for part in parts:
        flags = ["--held-out", str(len(part.held_out))]
        command = _command([part.path], background, flags)
        checked = _check_part(part, len(parts) > 1, background, progress, is_writer)
        errors += [(problem, command) for problem in check_leakage(checked)[0]]
        for side, reports in checked.items():
            groups[side] += reports
            bad += [(report, command) for report in reports if report.problems]
        held_out = [report.name for report in checked[HELD_OUT]]
        sets[str(part.path)] = {"weight": part.weight, "held_out": held_out}
    if len(parts) > 1 and not errors:
        command = _command(paths, background)
        errors += [(problem, command) for problem in check_leakage(groups)[0]]
    total = sum(map(len, groups.values()))
    unreadable = [pair for pair in bad if pair[0].measurements is None]
    violations = [pair for pair in bad if pair[0].measurements is not None]
    for pairs, what, name in (
        (unreadable, "cannot be read", "bad_scenes_allowed"),
        (violations, "fail the data checks", "violations_allowed"),
    ):
        if len(pairs) > getattr(options, name):
            report, command = pairs[0]
            reason = f"{len(pairs)} of {total} scenes {what}, {name}="
            reason += f"{getattr(options, name)}; first: scene {report.name}: "
            errors.append((reason + report.problems[0], command))
    if errors:
        reason, command = errors[0]
        where = " and ".join(map(str, paths))
        raise DataError(f"{where}: {reason}; show all problems: {command}")
    logging.info("%d scenes checked: %d fail the data checks", total, len(violations))
    for report, _ in violations:
        logging.warning(
            "scene %s fails the data checks and is used: %s",
            report.name,
            report.problems[0],
        )
    return {
        "sets": sets,
        "scenes": total,
        "used_with_violations": {
            report.name: report.problems for report, _ in violations
        },
        "unreadable": {report.name: report.problems for report, _ in unreadable},
    }


def _check_part(
    part: Part,
    is_mixed: bool,
    background: tuple[float, float, float],
    progress: Callable[[str], None],
    is_writer: bool,
) -> dict[str, list[SceneReport]]:
    """The reports of both sides of a set, with the scene names of the run."""
    sides = {TRAIN: part.train, HELD_OUT: part.held_out}
    checked = {
        side: check_source(part.path, source, background, progress, is_writer)
        for side, source in sides.items()
    }
    if not is_mixed:
        return checked
    return {s: [_renamed(x, part.path) for x in xs] for s, xs in checked.items()}


def find_violations(
    path: Path,
    source: FolderSource,
    background: tuple[float, float, float],
    progress: Callable[[str], None],
) -> tuple[int, str]:
    """The number of scenes that fail the data checks or cannot be read, and a message.

    The message gives the first reason and the command that shows all; it is "" if no
    scene fails.
    """
    reports = check_source(path, source, background, progress)
    bad = [report for report in reports if report.problems]
    if not bad:
        return 0, ""
    return len(bad), (
        f"{path}: {len(bad)} of {len(source)} scenes fail the data checks; first: "
        f"scene {bad[0].name}: {bad[0].problems[0]}; show all problems: "
        f"{_command([path], background)}"
    )


def source_digests(source: FolderSource) -> list[str]:
    """Digests that change with the files of a scene; one for all in a packed set."""
    digest = functools.cache(_digest)
    folders = [f.root if isinstance(f, PackedScene) else f for f in source.folders]
    return [digest(folder) for folder in folders]


def _command(
    paths: Sequence[Path],
    background: tuple[float, float, float],
    flags: Sequence[str] = (),
) -> str:
    """The `check_data` command for the sets."""
    quoted = [shlex.quote(str(path)) for path in paths]
    words = ["python -m facelift_jax.check_data", *quoted, *flags]
    if background != (1.0, 1.0, 1.0):
        words.append(f"--background {' '.join(map(str, background))}")
    return " ".join(words)


def _check(
    source: FolderSource,
    indices: list[int],
    background: tuple[float, float, float],
    progress: Callable[[str], None],
) -> Iterator[tuple[int, SceneReport]]:
    """Yields reports as they are made; then the diagnosed reports of failing scenes."""

    def check(index: int, with_diagnosis: bool) -> SceneReport:
        try:
            return check_scene(source[index], background, with_diagnosis)
        except DataError as error:
            return SceneReport(printable(source.names[index]), None, (str(error),))

    def check_all(chosen: list[int], with_diagnosis: bool) -> Iterator[SceneReport]:
        # threads are enough: NumPy and the image decoders release the GIL
        arguments = ((index, with_diagnosis) for index in chosen)
        return map_in_order(check, arguments, os.cpu_count() or 1)

    inconsistent = []
    reports = with_progress(check_all(indices, False), "check", len(indices), progress)
    for index, report in zip(indices, reports, strict=True):
        yield index, report
        if report.measurements and not report.measurements.is_consistent:
            inconsistent.append(index)
    inconsistent = inconsistent[:MAX_DIAGNOSED]
    yield from zip(inconsistent, check_all(inconsistent, True), strict=True)


def _report_file(path: Path) -> Path:
    """The stored reports: inside the folder of a set, or next to a list file."""
    if path.is_dir():
        return path / DATA_CHECKS_FILE
    return path.with_name(f"{path.name}.{DATA_CHECKS_FILE}")


def _write(file: Path, document: dict[str, Any]) -> None:
    """Writes the file, or logs why this fails.

    A folder without any write permission is left unchanged, even if the process could
    write to it as root, which is common in containers.
    """
    try:
        if not file.parent.stat().st_mode & 0o222:
            raise PermissionError(errno.EACCES, "its folder is read-only")
        atomic.write_text(file, json.dumps(document, allow_nan=False))
    except OSError as error:
        logging.warning(
            "%s: cannot be written (%s); the set is checked again every time",
            file,
            error.strerror,
        )


def _digest(folder: Path) -> str:
    """Sixteen hex digits of SHA-256 over the names, sizes and times of all files."""
    lines = []
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.startswith(DATA_CHECKS_FILE):  # in a set of one scene
                continue
            file = os.path.join(parent, name)
            stat = os.stat(file) if os.path.exists(file) else os.lstat(file)
            within = os.path.relpath(file, folder)
            lines.append(f"{within} {stat.st_size} {stat.st_mtime_ns}")
    text = "\n".join(sorted(lines)).encode(errors="surrogateescape")
    return hashlib.sha256(text).hexdigest()[:16]


def _read(file: Path, key: dict[str, Any]) -> dict[str, Any]:
    """The stored reports by scene name; {} if there are none for this key."""
    if not file.is_file():
        return {}
    try:
        document = read_json(file, MAX_REPORT_BYTES)
        scenes = document["scenes"]
        if any(document.get(name) != value for name, value in key.items()):
            return {}
        for entry in scenes.values():
            _report_from(entry)
    except (DataError, KeyError, TypeError, AttributeError, ValueError) as error:
        logging.warning(
            "%s: not a valid check report (%s); the set is checked again", file, error
        )
        return {}
    return scenes


def _report_from(entry: dict[str, Any]) -> SceneReport:
    """The stored report of a scene; raises if a value has the wrong type."""
    values, origin = entry["measurements"], Origin(*entry["origin"])
    math.isfinite(origin.time or 0)  # raises if not a number
    for field in dataclasses.fields(SceneMeasurements) if values is not None else ():
        if not isinstance(values[field.name], field.type):  # type: ignore[arg-type]
            raise ValueError(f"{field.name} has the wrong type")
    _printable(origin.recording + (origin.part or ""))
    kinds = ("problems", "warnings", "image_digests")
    lines = {kind: tuple(map(_printable, entry[kind])) for kind in kinds}
    return SceneReport(
        name=_printable(entry["name"]),
        measurements=None if values is None else SceneMeasurements(**values),
        origin=origin,
        **lines,
    )


def _printable(line: str) -> str:
    if not str.isprintable(line):
        raise ValueError("a text is not printable")
    return line


def _renamed(report: SceneReport, path: Path) -> SceneReport:
    """A report of a mix: the names of scene and recording include that of the set."""
    name = set_name(path)
    recording = f"{name}: {report.origin.recording}"
    origin = report.origin._replace(recording=recording)
    return dataclasses.replace(report, name=f"{name}--{report.name}", origin=origin)
