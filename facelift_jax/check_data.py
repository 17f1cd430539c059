"""Command: checks whether data sets are fit for training, scene by scene.

    python -m facelift_jax.check_data DATA --json report.json --images checked

Exit code 0: all scenes pass. 1: some fail; one line per reason says what to change.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facelift_jax.data.scenes import FolderSource, open_source
from facelift_jax.data.validation.checks import SceneReport
from facelift_jax.data.validation.dataset_report import check_source
from facelift_jax.data.validation.leakage import HELD_OUT, TRAIN, check_leakage
from facelift_jax.data.validation.summary import reasons, summary, table
from facelift_jax.io import atomic, command
from facelift_jax.io.progress import show_progress

FIRST_DRAWN = 8  # drawn even if they pass, to show what a correct rig looks like


def parse(arguments: list[str]) -> Any:
    """The flags of the command."""
    parser = command.Parser(
        prog="python -m facelift_jax.check_data",
        description="Checks whether the scenes of data sets are fit for training, and "
        "gives the likely cause of every problem. Exit code 0: all scenes pass; 1: "
        "some fail. Results are stored with the data set until its files change.",
    )
    add = parser.add_argument
    add(
        "data",
        nargs="+",
        type=Path,
        help="data sets (folders or lists of scenes); several sets are the parts of a "
        "split, which must share no scenes",
    )
    add(
        "--held-out",
        type=int,
        metavar="N",
        help="the last N scenes of the set are held out, the others are for training",
    )
    parser.add_background()
    add("--json", type=Path, metavar="FILE", help="write all results to this file")
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help=f"draw the failing scenes and the first {FIRST_DRAWN} into this folder: "
        "masks against their visual hull, and the cameras",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """The command; returns its exit code.

    Raises:
      ValueError, OSError, ImportError: invalid usage; one line.
    """
    flags = parse(arguments)
    command.log_own_lines()
    if flags.images:  # a missing package is reported before the long work
        from facelift_jax.data.validation import visualize  # noqa: F401
    background = tuple(flags.background)
    sources = {str(path): open_source(path) for path in flags.data}
    if len(sources) < len(flags.data):
        raise ValueError("a set is given twice; give every set once")
    num_scenes = sum(map(len, sources.values()))
    num_held_out = flags.held_out
    if num_held_out is not None:
        if len(sources) > 1:
            raise ValueError(
                "--held-out splits a single set; several sets are already the sides of "
                "a split; remove --held-out"
            )
        if not 0 < num_held_out < num_scenes:
            raise ValueError(
                f"--held-out {num_held_out} of {num_scenes} scenes; hold out at least "
                "one scene and not all"
            )
    checked = {
        path: check_source(path, source, background, show_progress)
        for path, source in sources.items()
    }
    reports = [report for group in checked.values() for report in group]
    groups = checked if len(checked) > 1 else {"": reports}
    if num_held_out is not None:
        groups = {TRAIN: reports[:-num_held_out], HELD_OUT: reports[-num_held_out:]}
    problems, warnings = check_leakage(groups)
    print(table(reports))
    lines = [*reasons(reports), *problems, *(f"(warning) {x}" for x in warnings)]
    print("\n".join([*lines, summary(reports, problems)]))
    passed = not problems and not any(report.problems for report in reports)
    if flags.json:
        content = {"passed": passed, "background": background}
        content |= {"problems": problems, "warnings": warnings}
        content["sets"] = {
            path: [dataclasses.asdict(report) for report in group]
            for path, group in checked.items()
        }
        atomic.write_text(flags.json, json.dumps(content, indent=1, allow_nan=False))
    if flags.images:
        _draw(flags.images, sources, checked)
    return 0 if passed else 1


def _draw(
    directory: Path,
    sources: Mapping[str, FolderSource],
    checked: Mapping[str, list[SceneReport]],
) -> None:
    """Draws the failing scenes and the first ones."""
    from facelift_jax.data.validation.visualize import write_check_image

    scenes = [
        (f"{number}--" if len(checked) > 1 else "", source, index, report)
        for number, (path, source) in enumerate(sources.items())
        for index, report in enumerate(checked[path])
    ]
    chosen = [x for i, x in enumerate(scenes) if i < FIRST_DRAWN or x[-1].problems]
    readable = [scene for scene in chosen if scene[-1].measurements is not None]
    directory.mkdir(parents=True, exist_ok=True)
    for done, (prefix, source, index, report) in enumerate(readable, start=1):
        path = directory / f"{prefix}{report.name}.png"
        write_check_image(path, source[index], report)
        show_progress(f"{done}/{len(readable)} scenes drawn")
    num_unreadable = len(chosen) - len(readable)
    note = f"; {num_unreadable} cannot be read and are not drawn"
    print(f"{directory}: {len(readable)} scenes drawn{note if num_unreadable else ''}")


if __name__ == "__main__":
    command.run("check_data", main)
