"""Several sets of scenes in one run: each split by itself, then joined, with shares."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from facelift_jax.data.contract import SceneReport
from facelift_jax.data.files import DataError
from facelift_jax.data.sources import FolderSource


class Part(NamedTuple):
    """One set of a run: where it is, its weight, and its scenes of both sides."""

    path: Path
    weight: float
    train: FolderSource
    held_out: FolderSource


def check_mix(mix: Sequence[Any]) -> tuple[tuple[Path, float], ...]:
    """The sets and weights of a config's `data.mix`.

    Raises:
      ValueError: it is no sequence of (path, weight), or two sets are named alike.
    """
    parts = []
    for entry in mix:
        match entry:
            case [str(path), int(weight) | float(weight)] if 0 < weight < math.inf:
                parts.append((Path(path), float(weight)))
            case _:
                raise ValueError(
                    f"data.mix: {entry!r} is not a (path, weight) of positive weight"
                )
    names = [set_name(path) for path, _ in parts]
    if len(set(names)) < len(names):
        raise ValueError(
            f"data.mix: sets are told apart by their names, found {', '.join(names)}; "
            "rename one"
        )
    return tuple(parts)


def set_name(path: Path) -> str:
    """What a set is called in a mix: the last part of its path."""
    return os.path.basename(os.path.realpath(path))


def join(parts: Sequence[Part]) -> tuple[FolderSource, FolderSource]:
    """Scenes to train on and held-out scenes of all sets, one after the other.

    Names get that of their set in front. Where a set is without depth maps, the mix is:
    the scenes of a batch must be alike.
    """
    if len(parts) == 1:
        return parts[0].train, parts[0].held_out
    flat = [part for part in parts if not _has_depth(part.train)]
    has_depth = not flat
    if 0 < len(flat) < len(parts):
        logging.warning(
            "no depth maps in %s: the whole mix is used without",
            ", ".join(str(part.path) for part in flat),
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


def renamed(report: SceneReport, path: Path) -> SceneReport:
    """A report as it is told of in a mix: scene and recording named by their set."""
    name = set_name(path)
    recording = f"{name}: {report.origin.recording}"
    origin = report.origin._replace(recording=recording)
    return dataclasses.replace(report, name=f"{name}--{report.name}", origin=origin)


def _has_depth(source: FolderSource) -> bool:
    """Whether the first scene that can be read has depth maps."""
    for index in range(len(source)):
        try:
            return source[index].depth_unit is not None
        except DataError:  # counted where it is used
            continue
    return False
