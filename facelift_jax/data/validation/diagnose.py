"""Why a scene's cameras do not fit its masks: the common mistakes, tried one by one.

A mistake is named only if undoing it makes every view agree with all others.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from facelift_jax.data.io import DataError
from facelift_jax.data.scenes import take_cameras
from facelift_jax.data.validation.silhouettes import (
    LEAST_AGREEMENT,
    Rig,
    Silhouettes,
    agreement,
    agreement_without,
    locate,
    look_at_rig,
    silhouettes,
)
from facelift_jax.geometry.rotations import invert_rigid
from facelift_jax.structs import Cameras

LEAST_ESTIMATED = 0.9  # agreement after a correction that is only estimated
ALIKE = 0.03  # differences of estimates' agreement that decide nothing
_OPENGL = np.diag([1.0, -1, -1, 1])
_RESIZED = 0.02  # relative difference of sizes that is no rounding
Alphas = UInt8[np.ndarray, "v h w"]
# what is wrong and what to change; pictures and cameras without the mistake
Guess = tuple[str, Alphas, Cameras]


def explain(alphas: Alphas, cameras: Cameras) -> str | None:
    """What is wrong and what to change; None if no common mistake accounts for it."""
    if len(alphas) < 2:
        return None
    for words, poses in _wrong_poses(np.asarray(cameras.viewmats, np.float64)):
        if fit(alphas, dataclasses.replace(cameras, viewmats=poses)):
            return words
    with contextlib.suppress(DataError):  # cameras that look at no point
        return _explain_rig(alphas, look_at_rig(cameras))
    return None


def _explain_rig(alphas: Alphas, rig: Rig) -> str | None:
    found = silhouettes(alphas)
    odd = _odd_views(agreement_without(found, rig))
    for words, other_alphas, other_cameras in _wrong_views(alphas, rig.cameras, odd):
        if fit(other_alphas, other_cameras):
            return words
    estimates = [
        (fit(alphas, other, LEAST_ESTIMATED), words)
        for words, other in _wrong_intrinsics(alphas, rig, odd)
    ]
    best = max(share for share, _ in estimates)
    if 1 - best < (1 - agreement(found, rig).seen.min()) / 2:
        return "; or ".join(words for share, words in estimates if share > best - ALIKE)
    if len(odd) == 1:
        return f"without view {odd[0]} all agree: look at its camera and its mask"
    if odd:
        return (
            f"without views {odd[0]} and {odd[1]} all agree: look at their cameras and "
            "masks"
        )
    return None


def fit(alphas: Alphas, cameras: Cameras, least: float = LEAST_AGREEMENT) -> float:
    """The smallest agreement of a view if all have the object in frame; else 0.

    Also 0 where it is below `least`.
    """
    try:
        rig = look_at_rig(cameras)
        is_in_frame = locate(alphas, rig).is_in_frame
    except DataError:
        return 0.0
    if not is_in_frame.all():
        return 0.0
    smallest = agreement(silhouettes(alphas), rig, least).seen.min()
    return float(smallest) if smallest >= least else 0.0


def _wrong_poses(
    viewmats: Float[np.ndarray, "v 4 4"],
) -> Iterator[tuple[str, Float[np.ndarray, "v 4 4"]]]:
    """Conventions that poses may have instead of ours, and ours of them."""
    inverse = np.asarray(invert_rigid(viewmats))
    yield "w2c holds camera-to-world poses: store their inverses", inverse
    yield (
        "w2c has OpenGL axes (y up, z backward): negate its second and third row",
        _OPENGL @ viewmats,
    )
    yield (
        "w2c holds camera-to-world poses with OpenGL axes: negate their second and "
        "third column, then invert",
        _OPENGL @ inverse,
    )


def _odd_views(without: Float[np.ndarray, "v v"]) -> list[int]:
    """The one view, or else the two, without which the others agree; or none.

    Two views that are left always agree somehow; three are asked for.
    """
    alone = without.diagonal()
    if len(without) > 3 and alone.max() >= LEAST_AGREEMENT:
        return [int(alone.argmax())]
    if len(without) > 4 and without.max() >= LEAST_AGREEMENT:
        return [int(i) for i in np.unravel_index(without.argmax(), without.shape)]
    return []


def _wrong_views(alphas: Alphas, cameras: Cameras, odd: list[int]) -> Iterator[Guess]:
    """Mistakes in one or two views."""
    if len(odd) == 1:
        mirrored = alphas.copy()
        mirrored[odd] = alphas[odd, :, ::-1]
        words = f"the picture of view {odd[0]} is mirrored: mirror it back"
        yield words, mirrored, cameras
    if len(odd) == 2:
        order = np.arange(len(alphas))
        order[odd] = odd[::-1]
        words = f"the cameras of views {odd[0]} and {odd[1]} are swapped: swap them"
        yield words, alphas, take_cameras(cameras, order)


def _wrong_intrinsics(
    alphas: Alphas, rig: Rig, odd: list[int]
) -> Iterator[tuple[str, Cameras]]:
    """Focal lengths and principal points that do not belong to the pixels."""
    cameras = rig.cameras
    size = np.array([cameras.width, cameras.height])
    made_for = 2 * cameras.Ks[:, :2, 2].mean(axis=0)
    # a picture is at least one pixel wide, also where principal points are zero
    ratio = size / np.maximum(made_for, 1)
    is_missing = not cameras.Ks[:, :2, 2].any()
    if not is_missing and np.abs(ratio - 1).min() > _RESIZED:
        width, height = np.rint(made_for).astype(int)
        words = f"K was made for pictures of about {width} x {height} px"
        Ks = np.diag([*ratio, 1]) @ cameras.Ks
        yield (
            f"{words}: scale it with the pictures",
            dataclasses.replace(cameras, Ks=Ks),
        )
    found, views = silhouettes(alphas), list(range(len(alphas)))
    if len(odd) == 1:
        others = np.delete(views, odd)
        point = locate(alphas[others], look_at_rig(take_cameras(cameras, others))).point
        start = locate(alphas, rig, point).offsets[odd[0]]
        shift, shifted = _shift_to_fit(found, rig, odd, start, odd)
        yield f"the principal point of view {odd[0]} is {_off(shift)} it?", shifted
    worst = np.argsort(agreement(found, rig).seen)[:4].tolist()
    start = size / 2 if is_missing else locate(alphas, rig).offsets.mean(axis=0)
    shift, shifted = _shift_to_fit(found, rig, views, start, worst)
    words = f"all principal points are {_off(shift)} them?"
    if is_missing:
        x, y = np.rint(shift).astype(int)
        words = "all principal points are zero, as where a camera file lacks them: they"
        words += f" are normally near the middle of the picture, here about ({x}, {y})"
    yield words, shifted


def _off(shift: Float[np.ndarray, "2"]) -> str:
    x, y = np.rint(-shift).astype(int)
    return f"off by about ({x}, {y}) px: did a crop move"


def _shift_to_fit(
    found: Silhouettes,
    rig: Rig,
    moved: Sequence[int],
    start: Float[np.ndarray, "2"],
    asked: Sequence[int],
) -> tuple[Float[np.ndarray, "2"], Cameras]:
    """The one shift of some views' principal points with which some views agree best.

    A search on ever finer grids of 3 x 3 shifts, the first around `start`.
    """

    def shifted(shift: Float[np.ndarray, "2"]) -> Cameras:
        Ks = rig.cameras.Ks.copy()
        Ks[moved, :2, 2] += shift
        return dataclasses.replace(rig.cameras, Ks=Ks)

    def agreed(shift: Float[np.ndarray, "2"]) -> float:
        other = rig._replace(cameras=shifted(shift))
        return agreement(found, other, views=asked, most_rays=100).seen.sum()

    best, step = start, rig.cameras.width / 32
    while step > 0.25:
        grid = [best + step * (np.array(cell) - 1) for cell in np.ndindex(3, 3)]
        best = max([best, *grid], key=agreed)
        step /= 2
    return best, shifted(best)
