"""The data sets of a run: opened or generated, checked, and joined with weights."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from facelift_jax.data import rodent
from facelift_jax.data.io import DataError
from facelift_jax.data.options import DataOptions
from facelift_jax.data.pipeline import require_evaluation_views
from facelift_jax.data.scenes import (
    FolderSource,
    Part,
    open_source,
    set_name,
    split_source,
)
from facelift_jax.data.validation.dataset_report import (
    DATA_CHECKS_FILE,
    require_data_checks,
)
from facelift_jax.io import atomic
from facelift_jax.io.progress import show_on_first_process


def check_mix(mix: Sequence[Any]) -> tuple[tuple[Path, float], ...]:
    """The sets and weights of a config's `data.mix`.

    Raises:
      ValueError: an entry is not a (path, weight) pair, or two sets have one name.
    """
    parts = []
    for entry in mix:
        match entry:
            case [str(path), int(weight) | float(weight)] if 0 < weight < math.inf:
                parts.append((Path(path), float(weight)))
            case _:
                raise ValueError(
                    f"data.mix: {entry!r} is not a (path, weight) pair with a positive "
                    "weight"
                )
    names = [set_name(path) for path, _ in parts]
    if len(set(names)) < len(names):
        raise ValueError(
            f"data.mix: every set needs a different name, found {', '.join(names)}; "
            "rename one folder"
        )
    return tuple(parts)


def join(parts: Sequence[Part]) -> tuple[FolderSource, FolderSource]:
    """The training scenes and the held-out scenes of all sets, one set after another.

    Scene names are prefixed with the name of their set. If one set has no depth maps,
    depth is ignored in all of them, because a batch has depth for all scenes or none.
    """
    if len(parts) == 1:
        return parts[0].train, parts[0].held_out
    without_depth = [part for part in parts if not _has_depth(part.train)]
    has_depth = not without_depth
    if 0 < len(without_depth) < len(parts):
        logging.warning(
            "no depth maps in %s: depth is ignored in the whole mix",
            ", ".join(str(part.path) for part in without_depth),
        )
    joined = []
    for side in ("train", "held_out"):
        sources = [getattr(part, side) for part in parts]
        joined.append(
            FolderSource(
                folders=tuple(x for source in sources for x in source.folders),
                names=tuple(
                    f"{set_name(part.path)}--{name}"
                    for part, source in zip(parts, sources, strict=True)
                    for name in source.names
                ),
                has_depth=has_depth,
            )
        )
    shares = tuple((len(part.train), part.weight) for part in parts)
    return dataclasses.replace(joined[0], shares=shares), joined[1]


def _has_depth(source: FolderSource) -> bool:
    """Whether the first scene that can be read has depth maps."""
    for index in range(len(source)):
        try:
            return source[index].depth_unit is not None
        except DataError:  # counted when the scene is used
            continue
    return False


def check_data_settings(section: Any) -> None:
    """Raises if a set in a config's `data` section does not exist.

    If a section names no set, `open_parts` generates the synthetic set.

    Raises:
      ValueError: a set is missing, or both `path` and `mix` are given.
    """
    mix_paths = [path for path, _ in check_mix(section.mix)]
    if section.path and mix_paths:
        raise ValueError("data.path and data.mix are both given; remove one")
    for path in mix_paths or filter(None, [section.path]):
        if not Path(path).exists():
            raise ValueError(
                f"{path}: there is no such folder or list; correct data.path or "
                "data.mix"
            )


def open_parts(section: Any) -> list[Part]:
    """The sets of a config's `data` section, each with its held-out scenes.

    Generates the synthetic rodent set if the section names no set.

    Raises:
      DataError: a set cannot be read.
    """
    paths = check_mix(section.mix)
    if section.path:
        paths = ((Path(section.path), 1.0),)
    sources = [(path, weight, open_source(path)) for path, weight in paths]
    if not paths:
        path = Path(f"data/rodent-{section.size}")
        rodent.generate(path, section.num_scenes, section.size)
        source = open_source(path)
        # another recipe may have generated more scenes than this one uses
        first = slice(section.num_scenes)
        source = FolderSource(source.folders[first], source.names[first])
        sources = [(path, 1.0, source)]
    return [
        Part(path, weight, *split_source(source, section.num_held_out_scenes))
        for path, weight, source in sources
    ]


def open_checked(
    section: Any, options: DataOptions, workdir: Path
) -> tuple[FolderSource, FolderSource]:
    """Scenes to train on, and held-out scenes; all sets must pass the data checks.

    The result of the checks is written to `data_checks.json` in `workdir`.

    Raises:
      DataError: a check fails; with the first reason and the command that lists all.
    """
    parts = open_parts(section)
    is_writer = jax.process_index() == 0
    record = require_data_checks(parts, options, show_on_first_process, is_writer)
    if is_writer:
        atomic.write_text(
            workdir / DATA_CHECKS_FILE, json.dumps(record, indent=2) + "\n"
        )
    train, held_out = join(parts)
    require_evaluation_views(held_out, options)
    names = {name for part in record["sets"].values() for name in part["held_out"]}
    violations = len(names & record["used_with_violations"].keys())
    return train, dataclasses.replace(held_out, violations=violations)
