"""Many scenes together: what is trained on must not judge.

Scenes are on two sides of a split if they are in two groups, or say themselves that
they are of two parts ("train", "val", "test") of their set.
"""

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from facelift_jax.data.packed import fingerprint
from facelift_jax.data.scenes import FolderSource
from facelift_jax.data.validation.checks import SceneReport

TRAIN, HELD_OUT = "train", "held-out"  # the groups of a run
NEIGHBOURS = 1.5  # in steps of a recording: times nearer than that are neighbours


def check_together(
    groups: Mapping[str, Sequence[SceneReport]],
) -> tuple[list[str], list[str]]:
    """Problems, and warnings, of scenes that are trained on and scenes that judge.

    `groups` holds the scenes of each side of a split under its name (`TRAIN`,
    `HELD_OUT` or others); those of a set that is not split under "".
    """
    scenes = [_Member(g, report) for g, reports in groups.items() for report in reports]
    owners: dict[str, _Member] = {}
    shared: collections.Counter[tuple[_Member, _Member]] = collections.Counter()
    for scene in scenes:
        for picture in dict.fromkeys(scene.report.pictures):
            owner = owners.setdefault(picture, scene)
            if owner is not scene:
                shared[owner, scene] += 1
    is_split = len({scene.side for scene in scenes}) > 1
    apart = [pair for pair in shared if pair[0].side != pair[1].side]
    alike = [pair for pair in shared if pair[0].side == pair[1].side]
    problems = [
        *_wrong_parts(scenes),
        *_share(apart, shared, "what is trained on must not judge"),
        *_neighbours(scenes),
    ]
    if is_split:
        return problems, _share(alike, shared, "the set repeats itself")
    advice = "one could be trained on and the other judge; remove it, or say which"
    problems += _share(alike, shared, f"{advice} scenes are held out (--held-out N)")
    return problems, []


class _Member(NamedTuple):
    """A scene on its side of a split."""

    group: str
    report: SceneReport

    @property
    def side(self) -> tuple[str, str]:
        return self.group, self.report.origin.part or ""

    def __str__(self) -> str:
        return " ".join([*filter(None, self.side), "scene", self.report.name])


def _share(
    pairs: Sequence[tuple[_Member, _Member]],
    shared: Mapping[tuple[_Member, _Member], int],
    what: str,
) -> list[str]:
    if not pairs:
        return []
    one, other = pairs[0]
    return [
        f"{one} and {other} share {shared[pairs[0]]} pictures{_more(pairs)}: {what}"
    ]


def _neighbours(scenes: Sequence[_Member]) -> list[str]:
    """Scenes on two sides of a split that follow each other in a recording."""
    timed = [scene for scene in scenes if scene.report.origin.time is not None]
    timed.sort(key=lambda scene: scene.report.origin[:2])
    found = []
    for name, group in itertools.groupby(timed, lambda s: s.report.origin.recording):
        members = list(group)
        times = np.array([m.report.origin.time for m in members], np.float64)
        gaps = np.diff(times)
        step = gaps[gaps > 0].min(initial=np.inf)
        for i in np.flatnonzero(gaps < NEIGHBOURS * step):
            one, other = members[i : i + 2]
            if one.side != other.side:
                found.append(
                    f"{one} ({times[i]:g} s) and {other} ({times[i + 1]:g} s) are "
                    f"neighbours in recording {name!r}"
                )
    return [f"{found[0]}{_more(found)}: leave a gap between them"] if found else []


def _wrong_parts(scenes: Sequence[_Member]) -> list[str]:
    found = [
        f"scene {scene.report.name} says that it is of {scene.report.origin.part!r}, "
        f"but is trained on"
        for scene in scenes
        if scene.group == TRAIN and scene.report.origin.part in ("val", "test")
    ]
    return [f"{found[0]}{_more(found)}: hold it out"] if found else []


def _more(found: Sequence[object]) -> str:
    return f" (and {len(found) - 1} more like this)" if len(found) > 1 else ""


def fingerprints(source: FolderSource) -> list[str]:
    """What tells scenes apart wherever they lie: a digest of each camera file."""
    return [fingerprint(folder) for folder in source.folders]


def leave_out_trained(source: FolderSource, trained_on: list[str]) -> FolderSource:
    """The scenes that were not trained on; says how many were.

    Raises:
      ValueError: all of them were.
    """
    seen = set(trained_on)
    fresh = [i for i, mark in enumerate(fingerprints(source)) if mark not in seen]
    num_seen = len(source) - len(fresh)
    if not fresh:
        raise ValueError(
            f"all {num_seen} scenes were trained on, so nothing is left to judge by"
        )
    if num_seen:
        logging.warning(
            "%d of %d scenes were trained on and are left out", num_seen, len(source)
        )
    return dataclasses.replace(
        source,
        folders=tuple(source.folders[i] for i in fresh),
        names=tuple(source.names[i] for i in fresh),
        shares=(),
    )
