"""Finds the cause when a scene's cameras and masks disagree.

Tries common mistakes one by one. A mistake is reported only if undoing it makes every
view agree with all others.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from facelift_jax.data.io import DataError
from facelift_jax.data.scenes import take_cameras
from facelift_jax.data.validation.silhouettes import (
    MIN_AGREEMENT,
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

MIN_ESTIMATED_AGREEMENT = 0.9  # after a correction that is only estimated
TIE = 0.03  # estimates whose agreement differs by less are equally likely
_OPENGL = np.diag([1.0, -1, -1, 1])
_MIN_RESIZE = 0.02  # relative; a smaller difference of sizes can be rounding
Alphas = UInt8[np.ndarray, "v h w"]
# the mistake and what to change; alphas and cameras without the mistake
Hypothesis = tuple[str, Alphas, Cameras]


def diagnose(alphas: Alphas, cameras: Cameras) -> str | None:
    """The mistake and what to change; None if no common mistake explains the images."""
    if len(alphas) < 2:
        return None
    for message, poses in _wrong_poses(np.asarray(cameras.viewmats, np.float64)):
        if smallest_agreement(alphas, dataclasses.replace(cameras, viewmats=poses)):
            return message
    with contextlib.suppress(DataError):  # the cameras look at no common point
        return _diagnose_rig(alphas, look_at_rig(cameras))
    return None


def _diagnose_rig(alphas: Alphas, rig: Rig) -> str | None:
    masks = silhouettes(alphas)
    outliers = _outlier_views(agreement_without(masks, rig))
    for message, other_alphas, other_cameras in _wrong_views(
        alphas, rig.cameras, outliers
    ):
        if smallest_agreement(other_alphas, other_cameras):
            return message
    estimates = [
        (smallest_agreement(alphas, cameras, MIN_ESTIMATED_AGREEMENT), message)
        for message, cameras in _wrong_intrinsics(alphas, rig, outliers)
    ]
    best = max(share for share, _ in estimates)
    if 1 - best < (1 - agreement(masks, rig).seen.min()) / 2:
        likely = [message for share, message in estimates if share > best - TIE]
        return "; or ".join(likely)
    if len(outliers) == 1:
        return f"all views but view {outliers[0]} agree: check its camera and its mask"
    if outliers:
        return (
            f"all views but views {outliers[0]} and {outliers[1]} agree: check their "
            "cameras and masks"
        )
    return None


def smallest_agreement(
    alphas: Alphas, cameras: Cameras, minimum: float = MIN_AGREEMENT
) -> float:
    """The smallest agreement of a view; 0 if it is below `minimum`.

    Also 0 if the object is outside the image of a view.
    """
    try:
        rig = look_at_rig(cameras)
        is_in_frame = locate(alphas, rig).is_in_frame
    except DataError:
        return 0.0
    if not is_in_frame.all():
        return 0.0
    smallest = agreement(silhouettes(alphas), rig, minimum).seen.min()
    return float(smallest) if smallest >= minimum else 0.0


def _wrong_poses(
    viewmats: Float[np.ndarray, "v 4 4"],
) -> Iterator[tuple[str, Float[np.ndarray, "v 4 4"]]]:
    """Poses stored in other conventions, and their conversion to this package's."""
    inverse = np.asarray(invert_rigid(viewmats))
    yield "w2c contains camera-to-world poses: store their inverses", inverse
    yield (
        "w2c has OpenGL axes (y up, z backward): negate its second and third rows",
        _OPENGL @ viewmats,
    )
    yield (
        "w2c contains camera-to-world poses with OpenGL axes: negate their second and "
        "third columns, then store their inverses",
        _OPENGL @ inverse,
    )


def _outlier_views(without: Float[np.ndarray, "v v"]) -> list[int]:
    """The one view, or the two views, without which all others agree; or none.

    At least three views must remain, because two views can always agree.
    """
    alone = without.diagonal()
    if len(without) > 3 and alone.max() >= MIN_AGREEMENT:
        return [int(alone.argmax())]
    if len(without) > 4 and without.max() >= MIN_AGREEMENT:
        return [int(i) for i in np.unravel_index(without.argmax(), without.shape)]
    return []


def _wrong_views(
    alphas: Alphas, cameras: Cameras, outliers: list[int]
) -> Iterator[Hypothesis]:
    """Mistakes in one or two of the views."""
    if len(outliers) == 1:
        mirrored = alphas.copy()
        mirrored[outliers] = alphas[outliers, :, ::-1]
        message = f"the image of view {outliers[0]} is mirrored: mirror it back"
        yield message, mirrored, cameras
    if len(outliers) == 2:
        one, other = outliers
        order = np.arange(len(alphas))
        order[outliers] = other, one
        message = f"the cameras of views {one} and {other} are swapped: swap them back"
        yield message, alphas, take_cameras(cameras, order)


def _wrong_intrinsics(
    alphas: Alphas, rig: Rig, outliers: list[int]
) -> Iterator[tuple[str, Cameras]]:
    """Focal lengths and principal points that do not fit the images."""
    cameras = rig.cameras
    size = np.array([cameras.width, cameras.height])
    assumed_size = 2 * cameras.Ks[:, :2, 2].mean(axis=0)
    # an image has at least one pixel, even if all principal points are zero
    ratio = size / np.maximum(assumed_size, 1)
    is_missing = not cameras.Ks[:, :2, 2].any()
    if not is_missing and np.abs(ratio - 1).min() > _MIN_RESIZE:
        width, height = np.rint(assumed_size).astype(int)
        message = f"K is for images of about {width} x {height} px: scale it with the "
        Ks = np.diag([*ratio, 1]) @ cameras.Ks
        yield message + "images", dataclasses.replace(cameras, Ks=Ks)
    masks, views = silhouettes(alphas), list(range(len(alphas)))
    if len(outliers) == 1:
        (view,) = outliers
        others = np.delete(views, view)
        point = locate(alphas[others], look_at_rig(take_cameras(cameras, others))).point
        start = locate(alphas, rig, point).offsets[view]
        shift, shifted = _best_shift(masks, rig, outliers, start, outliers)
        yield f"the principal point of view {view} is {_off_by(shift)} it?", shifted
    worst = np.argsort(agreement(masks, rig).seen)[:4].tolist()
    start = size / 2 if is_missing else locate(alphas, rig).offsets.mean(axis=0)
    shift, shifted = _best_shift(masks, rig, views, start, worst)
    message = f"all principal points are {_off_by(shift)} them?"
    if is_missing:
        x, y = np.rint(shift).astype(int)
        message = (
            "all principal points are zero, which suggests that they are missing; "
        )
        message += f"set them, usually near the image center, here about ({x}, {y})"
    yield message, shifted


def _off_by(shift: Float[np.ndarray, "2"]) -> str:
    x, y = np.rint(-shift).astype(int)
    return f"off by about ({x}, {y}) px: did cropping move"


def _best_shift(
    masks: Silhouettes,
    rig: Rig,
    moved: Sequence[int],
    start: Float[np.ndarray, "2"],
    tested: Sequence[int],
) -> tuple[Float[np.ndarray, "2"], Cameras]:
    """The shift of the `moved` views' principal points that makes `tested` agree best.

    Searches increasingly fine grids of 3 x 3 shifts, starting around `start`; pixels.
    """

    def shifted(shift: Float[np.ndarray, "2"]) -> Cameras:
        Ks = rig.cameras.Ks.copy()
        Ks[moved, :2, 2] += shift
        return dataclasses.replace(rig.cameras, Ks=Ks)

    def score(shift: Float[np.ndarray, "2"]) -> float:
        other = rig._replace(cameras=shifted(shift))
        return agreement(masks, other, views=tested, max_rays=100).seen.sum()

    best, step = start, rig.cameras.width / 32
    while step > 0.25:
        grid = [best + step * (np.array(cell) - 1) for cell in np.ndindex(3, 3)]
        best = max([best, *grid], key=score)
        step /= 2
    return best, shifted(best)
