"""Command: says whether a data set obeys the data contract, with the numbers.

    python -m facelift_jax.check_data DATA --json report.json --pictures checked

Exit code 0: it does. 1: it does not, and a line for every reason says what to change.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from facelift_jax.data.scenes import FolderSource, open_source
from facelift_jax.data.validation import visualize
from facelift_jax.data.validation.checks import Figures, SceneReport
from facelift_jax.data.validation.dataset_report import check_source
from facelift_jax.data.validation.leakage import HELD_OUT, TRAIN, check_together
from facelift_jax.io import atomic, command
from facelift_jax.io.progress import show_progress

FIRST_DRAWN = 8  # good scenes are drawn too, to show how a right rig looks
LEGEND = """\
coverage    share of the pixels that show the object, mean over the views; and the least
agreement   share of a view's rays that meet the masks of all others; of the worst view
in frame    views that have the object in front of the camera and in the picture
centroids   distance of a mask's centroid from where all of them meet, at most, pixels
background  difference from the background asked for, at most, levels of 255"""


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


COLUMNS: dict[str, Callable[[Figures], str]] = {
    "views": lambda found: str(found.views),
    "pixels": lambda found: f"{found.width} x {found.height}",
    "coverage": lambda found: f"{found.coverage:.3f}",
    "least": lambda found: f"{found.least_coverage:.3f}",
    "agreement": lambda found: _optional(found.agreement, ".3f"),
    "view": lambda found: _optional(found.worst_view, "d"),
    "in frame": lambda found: _optional(found.in_frame, "d"),
    "centroids": lambda found: _optional(found.residual, ".1f"),
    "background": lambda found: _optional(found.background, ".1f"),
}


def table(reports: Sequence[SceneReport]) -> str:
    """The figures of every scene as text, and what they are."""
    rows = [["scene", *COLUMNS, ""]]
    for report in reports:
        cells = ["-"] * len(COLUMNS)
        if report.figures is not None:
            cells = [show(report.figures) for show in COLUMNS.values()]
        rows.append([report.name, *cells, "BAD" if report.problems else "good"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    ]
    return "\n".join([*lines, LEGEND])


def reasons(reports: Sequence[SceneReport]) -> list[str]:
    """A line for every problem and every warning of a scene."""
    lines = []
    for report in reports:
        # what cannot be read names itself
        name = f"scene {report.name}: " if report.figures else ""
        lines += [f"{name}{problem}" for problem in report.problems]
        lines += [f"{name}(warning) {warning}" for warning in report.warnings]
    return lines


def summary(reports: Sequence[SceneReport], problems: Sequence[str]) -> str:
    """One line about all scenes."""
    views = sum(report.figures.views for report in reports if report.figures)
    unread = sum(report.figures is None for report in reports)
    broken = sum(bool(report.problems) for report in reports) - unread
    warned = sum(bool(report.warnings) for report in reports)
    counts = {
        "scenes that fail": broken,
        "scenes that cannot be read": unread,
        "problems between scenes": len(problems),
        "scenes with a warning": warned,
    }
    is_good = not (broken or unread or problems)
    result = "all pass" if is_good else "NOT all pass"
    details = ", ".join(f"{what}: {count}" for what, count in counts.items() if count)
    line = f"{len(reports):,} scenes, {views:,} views: {result} the data checks"
    return f"{line} ({details})" if details else line


def parse(arguments: list[str]) -> Any:
    """Flags of the command."""
    parser = command.Parser(
        prog="python -m facelift_jax.check_data",
        description="Whether scenes obey the data contract, and why not. Exit code 0: "
        "they do; 1: they do not. What was found is stored in the set and holds until "
        "its files change.",
    )
    add = parser.add_argument
    add("data", nargs="+", type=Path, help="sets (folders or lists), sides of a split")
    add(
        "--held-out",
        type=int,
        metavar="N",
        help="the last N scenes of the one set judge, the others are trained on",
    )
    parser.add_background()
    add("--json", type=Path, metavar="FILE", help="write figures and problems there")
    add(
        "--pictures",
        type=Path,
        metavar="DIR",
        help=f"draw the bad scenes and the first {FIRST_DRAWN} there: masks against "
        "their hull, and the cameras",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """The command; returns its exit code.

    Raises:
      ValueError, OSError: bad usage; one line.
    """
    flags = parse(arguments)
    command.log_own_lines()
    background = tuple(flags.background)
    sources = {str(path): open_source(path) for path in flags.data}
    if len(sources) < len(flags.data):
        raise ValueError("a set is named twice")
    num_scenes = sum(map(len, sources.values()))
    num_held_out = flags.held_out
    if num_held_out is not None:
        if len(sources) > 1:
            raise ValueError("--held-out splits one set; several are split already")
        if not 0 < num_held_out < num_scenes:
            raise ValueError(f"--held-out {num_held_out} of {num_scenes} scenes")
    found = {
        path: check_source(path, source, background, show_progress)
        for path, source in sources.items()
    }
    reports = [report for group in found.values() for report in group]
    groups = found if len(found) > 1 else {"": reports}
    if num_held_out is not None:
        groups = {TRAIN: reports[:-num_held_out], HELD_OUT: reports[-num_held_out:]}
    problems, warnings = check_together(groups)
    print(table(reports))
    lines = [*reasons(reports), *problems, *(f"(warning) {x}" for x in warnings)]
    print("\n".join([*lines, summary(reports, problems)]))
    is_good = not problems and not any(report.problems for report in reports)
    if flags.json:
        content = {"good": is_good, "background": background}
        content |= {"problems": problems, "warnings": warnings}
        content["sets"] = {
            path: [dataclasses.asdict(report) for report in group]
            for path, group in found.items()
        }
        atomic.write_text(flags.json, json.dumps(content, indent=1, allow_nan=False))
    if flags.pictures:
        _draw(flags.pictures, sources, found)
    return 0 if is_good else 1


def _draw(
    directory: Path,
    sources: Mapping[str, FolderSource],
    found: Mapping[str, list[SceneReport]],
) -> None:
    """Sheets of the bad scenes and of the first ones."""
    pairs = [
        (f"{number}--" if len(found) > 1 else "", source, index, report)
        for number, (path, source) in enumerate(sources.items())
        for index, report in enumerate(found[path])
    ]
    chosen = [p for i, p in enumerate(pairs) if i < FIRST_DRAWN or p[-1].problems]
    readable = [pair for pair in chosen if pair[-1].figures is not None]
    directory.mkdir(parents=True, exist_ok=True)
    for done, (prefix, source, index, report) in enumerate(readable, start=1):
        path = directory / f"{prefix}{report.name}.png"
        visualize.write_scene(path, source[index], report)
        show_progress(f"drawn {done}/{len(readable)} scenes")
    left_out = len(chosen) - len(readable)
    note = f"; {left_out} cannot be read, so not drawn" if left_out else ""
    print(f"{directory}: pictures of {len(readable)} scenes{note}")


if __name__ == "__main__":
    command.run("check_data", main)
