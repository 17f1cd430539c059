"""The data contract: what a scene must be to learn from.

`check_scene` measures a scene and says in words what is wrong with it; nothing is
repaired. `splits` looks at many scenes together, `verdicts` at a set on disk.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from facelift_jax.data.formats import NO_ORIGIN, Origin
from facelift_jax.data.io import DataError, printable
from facelift_jax.data.scenes import Scene, StoredScene
from facelift_jax.data.validation.diagnose import explain
from facelift_jax.data.validation.silhouettes import (
    LEAST_AGREEMENT,
    Agreement,
    Located,
    Rig,
    agreement,
    grown,
    locate,
    look_at_rig,
    silhouettes,
)
from facelift_jax.geometry.rays import project, unproject
from facelift_jax.structs import Cameras

ROUND_TRIP = 0.01  # pixels; rays of float32 poses near the origin stay below .001
BACKGROUND = 1 / 255 + 1e-6  # one step of an 8-bit picture
AWAY = 3  # pixels from the mask where a picture shows nothing but its background
FEW_COVERED = 0.05  # mean share of a picture below which whole-picture figures flatter
_GRID = 9  # rays a side of a picture on which cameras are compared
_MOST_PIXELS = 4096  # of a background's median


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured of a scene; None where it cannot be.

    Attributes:
      views, width, height: how many pictures, of how many pixels.
      coverage, least_coverage: share of a picture's pixels whose alpha is above one
        half; mean over the views, and the smallest.
      agreement: share of a view's rays that all other masks allow and another one
        shows, the smallest over the views; `worst_view` has it, of `rays` rays.
      in_frame: views that have the object, located by all masks' centroids, before the
        camera and in the picture.
      residual: largest distance of a mask's centroid from the located object, pixels.
      background: largest difference of a channel from the background asked for, levels
        of 255.
      round_trip: how far a ray's points fall from its pixel, pixels, at most.
      nearest_rays: how far the rays of the two most similar cameras are apart, pixels.
    """

    views: int
    width: int
    height: int
    coverage: float
    least_coverage: float
    agreement: float | None = None
    worst_view: int | None = None
    rays: int | None = None
    in_frame: int | None = None
    residual: float | None = None
    background: float | None = None
    round_trip: float | None = None
    nearest_rays: float | None = None

    @property
    def agree(self) -> bool:
        """Whether all masks can be of one object before all cameras."""
        is_held = (self.agreement or 0) >= LEAST_AGREEMENT
        return is_held and self.in_frame == self.views


@dataclasses.dataclass(frozen=True)
class SceneReport:
    """What became of one scene.

    Attributes:
      name: the scene's, fit to print.
      figures: None where the scene cannot be read.
      problems: what breaks the contract, a line each; without any, the scene is good.
      warnings: what does not, but should be known.
      pictures: a digest of each view's pixels.
      origin: the recording, time and part it says it is of.
    """

    name: str
    figures: Figures | None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    origin: Origin = NO_ORIGIN


class _Found(NamedTuple):
    """Figures by name, and problems, of one part of the contract."""

    figures: dict[str, float | int | None]
    problems: list[str]


def check_scene(
    scene: Scene | StoredScene,
    background: tuple[float, float, float],
    is_explained: bool = True,
) -> SceneReport:
    """Measures one scene against the contract; `background` RGB in [0, 1].

    Where cameras and masks disagree the common mistakes are tried, which takes longer
    than all the rest, unless `is_explained` is False.

    Raises:
      DataError: a picture cannot be read.
    """
    rgba = scene.rgba
    covered = rgba[..., 3] > 127
    shares = covered.mean(axis=(1, 2))
    digests = [hashlib.blake2b(v.tobytes(), digest_size=8).hexdigest() for v in rgba]
    distinct = _check_distinct(digests)
    is_explained = is_explained and not distinct.problems  # else that is the cause
    parts = [
        distinct,
        _check_background(scene, rgba, covered, background),
        *_check_cameras(rgba[..., 3], scene.cameras, is_explained),
    ]
    found = {name: value for part in parts for name, value in part.figures.items()}
    figures = Figures(
        views=len(rgba),
        width=scene.cameras.width,
        height=scene.cameras.height,
        coverage=float(shares.mean()),
        least_coverage=float(shares.min()),
        **found,  # type: ignore[arg-type]
    )
    warnings = []
    if figures.coverage < FEW_COVERED:
        warnings.append(
            f"the masks cover {figures.coverage:.1%} of the pictures: look at "
            "foreground figures only, or crop nearer to the object"
        )
    problems = [problem for part in parts for problem in part.problems]
    return SceneReport(
        printable(scene.name),
        figures,
        tuple(problems),
        tuple(warnings),
        tuple(digests),
        scene.origin if isinstance(scene, StoredScene) else NO_ORIGIN,
    )


def _check_distinct(digests: Sequence[str]) -> _Found:
    first: dict[str, int] = {}
    problems = [
        f"views {first[digest]} and {view} are the same picture: each view needs its "
        "own"
        for view, digest in enumerate(digests)
        if first.setdefault(digest, view) != view
    ]
    return _Found({}, problems)


def _check_background(
    scene: Scene | StoredScene,
    rgba: UInt8[np.ndarray, "v h w 4"],
    covered: Bool[np.ndarray, "v h w"],
    background: tuple[float, float, float],
) -> _Found:
    """Pictures that bring a background bring the renderer's.

    RGBA is composited, as the network will see it; RGB beside a mask is taken as it is,
    because its outline is mixed with its background for good.
    """
    problems, medians = [], {}
    asked = np.array(background)
    filled = covered.all(axis=(1, 2))
    if filled.any():
        problems.append(
            f"the masks of {filled.sum()} of {len(rgba)} views (first: view "
            f"{filled.argmax()}) cover the whole picture: is the alpha channel opaque?"
        )
    for view, (picture, mask) in enumerate(zip(rgba, covered, strict=True)):
        outside = np.flatnonzero(~grown(mask, AWAY))
        outside = outside[:: 1 + len(outside) // _MOST_PIXELS]
        pixels = picture.reshape(-1, 4)[outside] / 255
        colors, alphas = pixels[:, :3], pixels[:, 3:]
        if not _is_masked_rgb(scene, view):
            colors = asked + alphas * (colors - asked)
        if len(colors):
            medians[view] = np.median(colors, axis=0)
    errors = {view: np.abs(color - asked).max() for view, color in medians.items()}
    wrong = [view for view, error in errors.items() if error > BACKGROUND]
    if wrong:
        view = wrong[0]
        flag = " ".join(f"{channel:.3f}" for channel in medians[view])
        advice = "alpha must be 0 away from the object"
        if _is_masked_rgb(scene, view):
            advice = f"store RGBA, or render on it (--background {flag}, "
            advice += "config.data.background)"
        problems.append(
            f"the background of {len(wrong)} of {len(rgba)} views (first: view {view}) "
            f"is RGB {_levels(medians[view])}, the renderer's {_levels(asked)}; "
            f"{advice}"
        )
    worst = float(255 * max(errors.values())) if errors else None
    return _Found({"background": worst}, problems)


def _is_masked_rgb(scene: Scene | StoredScene, view: int) -> bool:
    return isinstance(scene, StoredScene) and scene.frames[view].mask is not None


def _levels(color: Float[np.ndarray, "3"]) -> tuple[int, ...]:
    return tuple(np.rint(255 * color).astype(int).tolist())


def _check_cameras(
    alphas: UInt8[np.ndarray, "v h w"], cameras: Cameras, is_explained: bool
) -> Iterator[_Found]:
    try:
        rig = look_at_rig(cameras)
        located = locate(alphas, rig)
        found = agreement(silhouettes(alphas), rig)
    except DataError as error:
        fact, advice = str(error), ""
    else:
        rays = _check_rays(cameras, rig)
        is_explained = is_explained and not rays.problems
        yield rays
        yield _Found(_mask_figures(located, found), [])
        fact, advice = (
            _disagreement(located, found),
            "; the cameras are of other pictures",
        )
    if fact:
        why = explain(alphas, cameras) if is_explained else None
        yield _Found({}, [f"{fact}; {why}" if why else fact + advice])


def _check_rays(cameras: Cameras, rig: Rig) -> _Found:
    """The rays of every view lead back to their pixels, and to those of no other view.

    In float32, as networks get them, on a grid of rays as far out as the cameras are
    from the point they look at.
    """
    away = _ray_distances(cameras, rig.distances)
    own = np.diagonal(away)
    between = away + np.where(np.eye(len(away), dtype=bool), np.inf, 0)
    figures = {"round_trip": float(own.max()), "nearest_rays": float(between.min())}
    problems = []
    if not own.max() < ROUND_TRIP:
        problems.append(
            f"points on the rays of view {own.argmax()} fall {own.max():.2g} px from "
            "their pixels: the poses are too far from the origin for float32; move the "
            "world's origin to the object"
        )
    if between.min() < ROUND_TRIP:
        one, other = sorted(np.unravel_index(between.argmin(), between.shape))
        problems.append(
            f"views {one} and {other} have the same rays: each view needs its own "
            "camera"
        )
    finite = {name: x if np.isfinite(x) else None for name, x in figures.items()}
    return _Found(finite, problems)


def _ray_distances(
    cameras: Cameras, distances: Float[np.ndarray, "v"]
) -> Float[np.ndarray, "v v"]:
    """How far, at most, view i sees points on rays of view j from their pixels."""
    num_views, size = len(distances), (cameras.width, cameras.height)
    pixel = np.array(size, np.float32) / _GRID
    Ks = cameras.Ks / np.append(pixel, np.float32(1))[:, None]
    coarse = Cameras(cameras.viewmats, Ks, _GRID, _GRID)
    depths = np.ones((num_views, _GRID, _GRID, 1), np.float32)
    depths *= distances[:, None, None, None].astype(np.float32)
    points = np.asarray(unproject(coarse, depths)).reshape(1, -1, 3)
    with np.errstate(all="ignore"):
        pixels, depths = project(cameras, np.repeat(points, num_views, axis=0))
    columns, rows = np.meshgrid(np.arange(_GRID), np.arange(_GRID))
    expected = (np.stack([columns, rows], axis=-1).reshape(-1, 2) + 0.5) * pixel
    pixels = np.asarray(pixels).reshape(num_views, num_views, -1, 2)
    away = np.abs(pixels - expected).max(axis=-1)
    is_before = np.asarray(depths).reshape(away.shape) > 0
    return np.where(is_before & np.isfinite(away), away, np.inf).max(axis=-1)


def _mask_figures(located: Located, found: Agreement) -> dict[str, float | int | None]:
    worst = int(found.seen.argmin())
    return {
        "agreement": float(found.seen[worst]),
        "worst_view": worst,
        "rays": int(found.num_rays[worst]),
        "in_frame": int(located.is_in_frame.sum()),
        "residual": float(np.linalg.norm(located.offsets, axis=-1).max()),
    }


def _disagreement(located: Located, found: Agreement) -> str:
    """How views contradict each other about where the object is; "" if they do not.

    That it lies before every camera and in its picture is asked by itself: what lies
    outside all other pictures contradicts no mask.
    """
    worst = int(found.seen.argmin())
    few = f"only {found.seen[worst]:.1%} of view {worst}'s rays meet"
    if not located.is_before.all():
        return _lies("behind", "cameras", ~located.is_before)
    if not located.is_in_frame.all():
        return _lies("outside", "pictures", ~located.is_in_frame)
    if found.shares[worst] < LEAST_AGREEMENT:
        return f"{few} the masks of all other views, {LEAST_AGREEMENT:.0%} must"
    if found.seen[worst] < LEAST_AGREEMENT:
        return f"{few} any other mask, the rest leave the other pictures"
    return ""


def _lies(where: str, what: str, is_wrong: Bool[np.ndarray, "v"]) -> str:
    return (
        f"the object, where the masks' centroids meet, lies {where} {is_wrong.sum()} "
        f"of {len(is_wrong)} {what} (the first: view {is_wrong.argmax()})"
    )
