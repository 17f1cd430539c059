"""Finds leakage: held-out scenes that share content with training scenes.

Two scenes are on different sides of a split if they are in different groups, or if
their camera files give different parts ("train", "val", "test").
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
# scenes closer in time than this, in steps of their recording, are neighbors
MAX_NEIGHBOR_STEPS = 1.5


def check_leakage(
    groups: Mapping[str, Sequence[SceneReport]],
) -> tuple[list[str], list[str]]:
    """Problems and warnings about scenes that share images or are close in time.

    `groups` maps each side of a split (`TRAIN`, `HELD_OUT` or another name) to its
    scenes; the scenes of a set without a split are under "".
    """
    scenes = [_Member(g, report) for g, reports in groups.items() for report in reports]
    owners: dict[str, _Member] = {}
    shared: collections.Counter[tuple[_Member, _Member]] = collections.Counter()
    for scene in scenes:
        for image in dict.fromkeys(scene.report.image_digests):
            owner = owners.setdefault(image, scene)
            if owner is not scene:
                shared[owner, scene] += 1
    is_split = len({scene.side for scene in scenes}) > 1
    across = [pair for pair in shared if pair[0].side != pair[1].side]
    within = [pair for pair in shared if pair[0].side == pair[1].side]
    problems = [
        *_wrong_parts(scenes),
        *_shared_images(across, shared, "remove one; held-out scenes must be new"),
        *_neighbors(scenes),
    ]
    if is_split:
        return problems, _shared_images(within, shared, "the set repeats itself")
    advice = "one could be trained on and the other held out; remove one, or give the "
    advice += "held-out scenes (--held-out N)"
    problems += _shared_images(within, shared, advice)
    return problems, []


class _Member(NamedTuple):
    """A scene, and its side of a split."""

    group: str
    report: SceneReport

    @property
    def side(self) -> tuple[str, str]:
        return self.group, self.report.origin.part or ""

    def __str__(self) -> str:
        return " ".join([*filter(None, self.side), "scene", self.report.name])


def _shared_images(
    pairs: Sequence[tuple[_Member, _Member]],
    shared: Mapping[tuple[_Member, _Member], int],
    advice: str,
) -> list[str]:
    if not pairs:
        return []
    one, other = pairs[0]
    return [
        f"{one} and {other} share {shared[pairs[0]]} images{_more(pairs)}: {advice}"
    ]


def _neighbors(scenes: Sequence[_Member]) -> list[str]:
    """Consecutive scenes of a recording that are on different sides of a split."""
    timed = [scene for scene in scenes if scene.report.origin.time is not None]
    timed.sort(key=lambda scene: scene.report.origin[:2])
    problems = []
    for name, group in itertools.groupby(timed, lambda s: s.report.origin.recording):
        members = list(group)
        times = np.array([m.report.origin.time for m in members], np.float64)
        gaps = np.diff(times)
        step = gaps[gaps > 0].min(initial=np.inf)
        for i in np.flatnonzero(gaps < MAX_NEIGHBOR_STEPS * step):
            one, other = members[i : i + 2]
            if one.side != other.side:
                problems.append(
                    f"{one} ({times[i]:g} s) and {other} ({times[i + 1]:g} s) are "
                    f"neighbors in recording {name!r}"
                )
    advice = "leave a gap between them"
    return [f"{problems[0]}{_more(problems)}: {advice}"] if problems else []


def _wrong_parts(scenes: Sequence[_Member]) -> list[str]:
    problems = [
        f"the camera file of scene {scene.report.name} gives the part "
        f"{scene.report.origin.part!r}, but the scene is trained on"
        for scene in scenes
        if scene.group == TRAIN and scene.report.origin.part in ("val", "test")
    ]
    return [f"{problems[0]}{_more(problems)}: hold it out"] if problems else []


def _more(items: Sequence[object]) -> str:
    return f" (and {len(items) - 1} more like this)" if len(items) > 1 else ""


def fingerprints(source: FolderSource) -> list[str]:
    """Identifies scenes independently of their paths: digests of their camera files."""
    return [fingerprint(folder) for folder in source.folders]


def leave_out_trained(source: FolderSource, trained_on: list[str]) -> FolderSource:
    """The scenes whose fingerprints are not in `trained_on`; logs the number left out.

    Raises:
      ValueError: all scenes were trained on.
    """
    trained = set(trained_on)
    new = [i for i, digest in enumerate(fingerprints(source)) if digest not in trained]
    num_trained = len(source) - len(new)
    if not new:
        raise ValueError(
            f"all {num_trained} scenes were trained on and none is left to evaluate; "
            "give other scenes"
        )
    if num_trained:
        logging.warning(
            "%d of %d scenes were trained on and are left out", num_trained, len(source)
        )
    return dataclasses.replace(
        source,
        folders=tuple(source.folders[i] for i in new),
        names=tuple(source.names[i] for i in new),
        shares=(),
    )
