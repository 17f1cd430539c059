"""The data contract over a whole set on disk: every core, and nothing asked twice.

What was found is stored in the set, each scene with a digest of its files (names, sizes
and times of change; of a packed set: of all its files), and holds as long as those and
the background are the same.
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
from facelift_jax.data.validation.checks import Figures, SceneReport, check_scene
from facelift_jax.data.validation.leakage import HELD_OUT, TRAIN, check_together
from facelift_jax.io import atomic
from facelift_jax.io.progress import map_in_order, with_progress

DATA_CHECKS = "data_checks.json"
VERSION = 2  # of the checks: rises when the same files may get another verdict
MAX_BYTES = 2**29  # of stored verdicts; a scene of 32 views takes 1.0 kB
MOST_EXPLAINED = 32  # scenes of which the cause is searched; the others' is the same


def check_source(
    path: Path | str,
    source: FolderSource,
    background: tuple[float, float, float],
    progress: Callable[[str], None],
    is_writer: bool = True,
) -> list[SceneReport]:
    """A report of every scene of `source`, opened from `path`, in order.

    `progress` is called with one line of text at once and every few seconds. Where
    several processes check a set together, each finds the same; one `is_writer` and
    stores it.
    """
    file = _verdict_file(Path(path))
    key = {"version": VERSION, "background": list(background)}
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
    """What a run's record says of its sets, which are as good as `options` demands.

    Every process of a run on several hosts checks all of them, so that all refuse alike
    (the verdict is a function of the files); one `is_writer` and stores what it found.

    Scenes that cannot be read may be left out later, `bad_scenes_allowed` of them;
    `violations_allowed` of those that break the contract may be used all the same.

    Raises:
      DataError: the first reason against the sets, and the command that shows all.
    """
    paths, background = [part.path for part in parts], options.background
    groups: dict[str, list[SceneReport]] = {TRAIN: [], HELD_OUT: []}
    refusals, bad, sets = [], [], {}
    for part in parts:
        extra = ["--held-out", str(len(part.held_out))]
        shows = _command([part.path], background, extra)
        own = _check_part(part, len(parts) > 1, background, progress, is_writer)
        refusals += [(problem, shows) for problem in check_together(own)[0]]
        for side, reports in own.items():
            groups[side] += reports
            bad += [(report, shows) for report in reports if report.problems]
        held_out = [report.name for report in own[HELD_OUT]]
        sets[str(part.path)] = {"weight": part.weight, "held_out": held_out}
    if len(parts) > 1 and not refusals:
        together = check_together(groups)[0]
        refusals += [(problem, _command(paths, background)) for problem in together]
    total = sum(map(len, groups.values()))
    unread = [pair for pair in bad if pair[0].figures is None]
    broken = [pair for pair in bad if pair[0].figures is not None]
    for found, what, name in (
        (unread, "cannot be read", "bad_scenes_allowed"),
        (broken, "fail the data checks", "violations_allowed"),
    ):
        if len(found) > getattr(options, name):
            report, shows = found[0]
            reason = f"{len(found)} of {total} scenes {what}, {name}="
            reason += f"{getattr(options, name)}; the first: scene {report.name}: "
            refusals.append((reason + report.problems[0], shows))
    if refusals:
        reason, shows = refusals[0]
        where = " and ".join(map(str, paths))
        raise DataError(f"{where}: {reason}; this shows all: {shows}")
    logging.info("%d scenes checked: %d fail the data checks", total, len(broken))
    for report, _ in broken:
        logging.warning(
            "scene %s is used all the same: %s", report.name, report.problems[0]
        )
    return {
        "sets": sets,
        "scenes": total,
        "used_with_violations": {report.name: report.problems for report, _ in broken},
        "unreadable": {report.name: report.problems for report, _ in unread},
    }


def _check_part(
    part: Part,
    is_mixed: bool,
    background: tuple[float, float, float],
    progress: Callable[[str], None],
    is_writer: bool,
) -> dict[str, list[SceneReport]]:
    """Reports of both sides of a set, as they are told of in its run."""
    sides = {TRAIN: part.train, HELD_OUT: part.held_out}
    found = {
        side: check_source(part.path, source, background, progress, is_writer)
        for side, source in sides.items()
    }
    if not is_mixed:
        return found
    return {s: [renamed(x, part.path) for x in reports] for s, reports in found.items()}


def find_violations(
    path: Path,
    source: FolderSource,
    background: tuple[float, float, float],
    progress: Callable[[str], None],
) -> tuple[int, str]:
    """How many scenes break the contract or cannot be read, and a line about them.

    The line holds the first reason and the command that shows all; "" where all obey.
    """
    reports = check_source(path, source, background, progress)
    bad = [report for report in reports if report.problems]
    if not bad:
        return 0, ""
    return len(bad), (
        f"{path}: {len(bad)} of {len(source)} scenes fail the data checks; the "
        f"first: scene {bad[0].name}: {bad[0].problems[0]}; this shows all: "
        f"{_command([path], background)}"
    )


def source_digests(source: FolderSource) -> list[str]:
    """For each scene, what changes when its files do; a packed set's change as one."""
    digest = functools.cache(_digest)
    places = [f.root if isinstance(f, PackedScene) else f for f in source.folders]
    return [digest(place) for place in places]


def _command(
    paths: Sequence[Path],
    background: tuple[float, float, float],
    extra: Sequence[str] = (),
) -> str:
    """The command that shows what is wrong with the sets."""
    places = [shlex.quote(str(path)) for path in paths]
    words = ["python -m facelift_jax.check_data", *places, *extra]
    if background != (1.0, 1.0, 1.0):
        words.append(f"--background {' '.join(map(str, background))}")
    return " ".join(words)


def _check(
    source: FolderSource,
    indices: list[int],
    background: tuple[float, float, float],
    progress: Callable[[str], None],
) -> Iterator[tuple[int, SceneReport]]:
    """Scenes as they are found; some of the bad ones once more, with the cause."""

    def check(index: int, is_explained: bool) -> SceneReport:
        try:
            return check_scene(source[index], background, is_explained)
        except DataError as error:
            return SceneReport(printable(source.names[index]), None, (str(error),))

    def found(chosen: list[int], is_explained: bool) -> Iterator[SceneReport]:
        # NumPy and the decoders leave the interpreter to other threads
        arguments = ((index, is_explained) for index in chosen)
        return map_in_order(check, arguments, os.cpu_count() or 1)

    bad = []
    first = with_progress(found(indices, False), "check", len(indices), progress)
    for index, report in zip(indices, first, strict=True):
        yield index, report
        if report.figures and not report.figures.agree:
            bad.append(index)
    bad = bad[:MOST_EXPLAINED]
    yield from zip(bad, found(bad, True), strict=True)


def _verdict_file(path: Path) -> Path:
    """In the folder of a set; beside the list of one."""
    if path.is_dir():
        return path / DATA_CHECKS
    return path.with_name(f"{path.name}.{DATA_CHECKS}")


def _write(file: Path, document: dict[str, Any]) -> None:
    """Writes the file, or says why it cannot be.

    A folder that is meant for nobody to write to is left alone: the superuser, as whom
    containers often run, could.
    """
    try:
        if not file.parent.stat().st_mode & 0o222:
            raise PermissionError(errno.EACCES, "its folder is read-only")
        atomic.write_text(file, json.dumps(document, allow_nan=False))
    except OSError as error:
        logging.warning(
            "%s: cannot be written (%s): the set will be checked again each time",
            file,
            error.strerror,
        )


def _digest(folder: Path) -> str:
    """Sixteen hex digits of SHA-256 over names, sizes and times of a folder's files."""
    lines = []
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.startswith(DATA_CHECKS):  # of a set of one scene
                continue
            file = os.path.join(parent, name)
            stat = os.stat(file) if os.path.exists(file) else os.lstat(file)
            within = os.path.relpath(file, folder)
            lines.append(f"{within} {stat.st_size} {stat.st_mtime_ns}")
    text = "\n".join(sorted(lines)).encode(errors="surrogateescape")
    return hashlib.sha256(text).hexdigest()[:16]


def _read(file: Path, key: dict[str, Any]) -> dict[str, Any]:
    """The stored scenes by name; {} where there are none of this key."""
    if not file.is_file():
        return {}
    try:
        document = read_json(file, MAX_BYTES)
        scenes = document["scenes"]
        if any(document[name] != value for name, value in key.items()):
            return {}
        for entry in scenes.values():
            _report_from(entry)
    except (DataError, KeyError, TypeError, AttributeError, ValueError) as error:
        logging.warning("%s: not a stored verdict (%s): checked again", file, error)
        return {}
    return scenes


def _report_from(entry: dict[str, Any]) -> SceneReport:
    """A stored scene; raises where a value is not of its kind."""
    figures, origin = entry["figures"], Origin(*entry["origin"])
    math.isfinite(origin.time or 0)  # a number, or it raises
    for field in dataclasses.fields(Figures) if figures is not None else ():
        if not isinstance(figures[field.name], field.type):  # type: ignore[arg-type]
            raise ValueError(f"{field.name} is of another kind")
    _printable(origin.recording + (origin.part or ""))
    kinds = ("problems", "warnings", "pictures")
    lines = {kind: tuple(map(_printable, entry[kind])) for kind in kinds}
    return SceneReport(
        name=_printable(entry["name"]),
        figures=None if figures is None else Figures(**figures),
        origin=origin,
        **lines,
    )


def _printable(line: str) -> str:
    if not str.isprintable(line):
        raise ValueError("holds what cannot be printed")
    return line


def renamed(report: SceneReport, path: Path) -> SceneReport:
    """A report as it is told of in a mix: scene and recording named by their set."""
    name = set_name(path)
    recording = f"{name}: {report.origin.recording}"
    origin = report.origin._replace(recording=recording)
    return dataclasses.replace(report, name=f"{name}--{report.name}", origin=origin)
