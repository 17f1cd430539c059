"""Leakage between training and held-out scenes, and the exact messages."""

import pytest

from facelift_jax.data.formats import Origin
from facelift_jax.data.validation.checks import SceneReport
from facelift_jax.data.validation.leakage import HELD_OUT, TRAIN, check_leakage


def scene(name, images="", time=None, part=None, recording="day 1"):
    origin = Origin(recording, time, part)
    return SceneReport(name, None, image_digests=tuple(images), origin=origin)


def timed(*times, part=None):
    return [scene(f"t{time:g}", time=time, part=part) for time in times]


SHARED = [scene("a", "123"), scene("b", "456"), scene("c", "562")]
NEW = "remove one; held-out scenes must be new"
NOT_SPLIT = (
    "one could be trained on and the other held out; remove one, or give the held-out "
    "scenes (--held-out N)"
)
CASES = {
    "nothing": ({TRAIN: SHARED[:1], HELD_OUT: SHARED[1:2]}, [], []),
    "shared across": (
        {TRAIN: SHARED[:2], HELD_OUT: SHARED[2:]},
        [
            "train scene b and held-out scene c share 2 images (and 1 more like "
            f"this): {NEW}"
        ],
        [],
    ),
    "shared on one side": (
        {TRAIN: SHARED[1:], HELD_OUT: [scene("d", "789")]},
        [],
        ["train scene b and train scene c share 2 images: the set repeats itself"],
    ),
    "shared, no split": (
        {"": SHARED[1:]},
        [f"scene b and scene c share 2 images: {NOT_SPLIT}"],
        [],
    ),
    "shared between parts": (
        {"": [scene("a", "1", part="train"), scene("b", "1", part="val")]},
        [f"train scene a and val scene b share 1 images: {NEW}"],
        [],
    ),
    "two sets": (
        {"x/train.txt": SHARED[:1], "x/test.txt": [scene("a", "1")]},
        [f"x/train.txt scene a and x/test.txt scene a share 1 images: {NEW}"],
        [],
    ),
    "neighbors": (
        {TRAIN: timed(0, 0.5, 1), HELD_OUT: timed(1.5, 2.5)},
        [
            "train scene t1 (1 s) and held-out scene t1.5 (1.5 s) are neighbors in "
            "recording 'day 1': leave a gap between them"
        ],
        [],
    ),
    "a gap": ({TRAIN: timed(0, 0.5, 1), HELD_OUT: timed(2, 2.5)}, [], []),
    "the same time": (
        {"": [*timed(0, 1, 2, part="train"), *timed(2, part="test")]},
        [
            "train scene t2 (2 s) and test scene t2 (2 s) are neighbors in recording "
            "'day 1': leave a gap between them"
        ],
        [],
    ),
    "two recordings": (
        {TRAIN: timed(0, 1), HELD_OUT: [scene("b", time=1, recording="day 2")]},
        [],
        [],
    ),
    "a wrong side": (
        {TRAIN: timed(0, 10, part="test"), HELD_OUT: timed(90, part="test")},
        [
            "the camera file of scene t0 gives the part 'test', but the scene is "
            "trained on (and 1 more like this): hold it out"
        ],
        [],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_scenes_shared_between_the_sides_of_a_split_are_reported(name):
    groups, problems, warnings = CASES[name]
    assert check_leakage(groups) == (problems, warnings)
