"""The data checks: the conditions a scene must meet to be used for training.

`check_scene` measures one scene and describes its problems; it repairs nothing.
`leakage` compares scenes with each other, `dataset_report` checks a set on disk.
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
from facelift_jax.data.validation.diagnose import diagnose
from facelift_jax.data.validation.silhouettes import (
    MIN_AGREEMENT,
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

MAX_ROUND_TRIP = 0.01  # pixels; float32 poses near the origin stay below .001
MAX_BACKGROUND_ERROR = 1 / 255 + 1e-6  # one step of an 8-bit image
BACKGROUND_DISTANCE = 3  # pixels from the mask beyond which an image is background
MIN_COVERAGE = 0.05  # mean share; below it, whole-image metrics are too optimistic
_GRID = 9  # rays per side of an image on which cameras are compared
_MAX_PIXELS = 4096  # used for the median color of a background


@dataclasses.dataclass(frozen=True)
class SceneMeasurements:
    """The measurements of a scene; None where a value is undefined.

    Attributes:
      num_views, width, height: number of images, and their size in pixels.
      coverage, min_coverage: share of an image's pixels with alpha above one half; the
        mean over the views, and the smallest.
      agreement: share of a view's rays that agree with the masks of all other views and
        meet at least one of them; the smallest over the views. `worst_view` is that
        view, and `num_rays` its number of tested rays.
      num_in_frame: number of views with the object in front of the camera and inside
        the image; the object's position comes from the centroids of all masks.
      centroid_error: largest distance of a mask's centroid from the projected position
        of the object, pixels.
      background_error: largest difference of a channel from the expected background,
        levels of 255.
      round_trip_error: largest distance between a pixel and the projection of points on
        its ray, pixels.
      min_ray_distance: distance between the rays of the two most similar cameras,
        pixels.
    """

    num_views: int
    width: int
    height: int
    coverage: float
    min_coverage: float
    agreement: float | None = None
    worst_view: int | None = None
    num_rays: int | None = None
    num_in_frame: int | None = None
    centroid_error: float | None = None
    background_error: float | None = None
    round_trip_error: float | None = None
    min_ray_distance: float | None = None

    @property
    def is_consistent(self) -> bool:
        """Whether all masks can show one object that is in front of all cameras."""
        agrees = (self.agreement or 0) >= MIN_AGREEMENT
        return agrees and self.num_in_frame == self.num_views


@dataclasses.dataclass(frozen=True)
class SceneReport:
    """The check report of one scene.

    Attributes:
      name: the name of the scene, printable.
      measurements: None if the scene cannot be read.
      problems: the reasons why the scene fails the data checks, one line each; empty if
        it passes.
      warnings: remarks that do not make the scene fail, one line each.
      image_digests: a digest of the pixels of every view.
      origin: recording, time and part, as given in the camera file.
    """

    name: str
    measurements: SceneMeasurements | None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    image_digests: tuple[str, ...] = ()
    origin: Origin = NO_ORIGIN


class _CheckResult(NamedTuple):
    """Measurements by name, and problems, of one of the checks."""

    measurements: dict[str, float | int | None]
    problems: list[str]


def check_scene(
    scene: Scene | StoredScene,
    background: tuple[float, float, float],
    with_diagnosis: bool = True,
) -> SceneReport:
    """Runs all data checks on one scene; `background` is RGB in [0, 1].

    If cameras and masks disagree, common mistakes are tried to find the cause, unless
    `with_diagnosis` is False. This takes longer than all checks together.

    Raises:
      DataError: an image cannot be read.
    """
    rgba = scene.rgba
    covered = rgba[..., 3] > 127
    shares = covered.mean(axis=(1, 2))
    digests = [hashlib.blake2b(v.tobytes(), digest_size=8).hexdigest() for v in rgba]
    distinct = _check_distinct(digests)
    with_diagnosis = with_diagnosis and not distinct.problems  # they are the cause
    results = [
        distinct,
        _check_background(scene, rgba, covered, background),
        *_check_cameras(rgba[..., 3], scene.cameras, with_diagnosis),
    ]
    values = {k: value for part in results for k, value in part.measurements.items()}
    measurements = SceneMeasurements(
        num_views=len(rgba),
        width=scene.cameras.width,
        height=scene.cameras.height,
        coverage=float(shares.mean()),
        min_coverage=float(shares.min()),
        **values,  # type: ignore[arg-type]
    )
    warnings = []
    if measurements.coverage < MIN_COVERAGE:
        warnings.append(
            f"the masks cover {measurements.coverage:.1%} of the images: use "
            "foreground metrics only, or crop the images closer to the object"
        )
    problems = [problem for part in results for problem in part.problems]
    return SceneReport(
        printable(scene.name),
        measurements,
        tuple(problems),
        tuple(warnings),
        tuple(digests),
        scene.origin if isinstance(scene, StoredScene) else NO_ORIGIN,
    )


def camera_problems(alphas: UInt8[np.ndarray, "v h w"], cameras: Cameras) -> list[str]:
    """How cameras and masks contradict each other, with the likely cause.

    These are problems of `check_scene`, one line each.
    """
    results = _check_cameras(alphas, cameras, with_diagnosis=True)
    return [problem for result in results for problem in result.problems]


def _check_distinct(digests: Sequence[str]) -> _CheckResult:
    first: dict[str, int] = {}
    problems = [
        f"views {first[digest]} and {view} have the same image: every view needs its "
        "own image"
        for view, digest in enumerate(digests)
        if first.setdefault(digest, view) != view
    ]
    return _CheckResult({}, problems)


def _check_background(
    scene: Scene | StoredScene,
    rgba: UInt8[np.ndarray, "v h w 4"],
    covered: Bool[np.ndarray, "v h w"],
    background: tuple[float, float, float],
) -> _CheckResult:
    """Checks that the images have the background of the renderer.

    RGBA images are composited, as for the network. RGB images with a mask file are used
    unchanged, because their background cannot be removed from the outline.
    """
    problems, medians = [], {}
    expected = np.array(background)
    is_full = covered.all(axis=(1, 2))
    if is_full.any():
        problems.append(
            f"the masks of {is_full.sum()} of {len(rgba)} views (first: view "
            f"{is_full.argmax()}) cover the whole image: is the alpha channel opaque?"
        )
    for view, (image, mask) in enumerate(zip(rgba, covered, strict=True)):
        outside = np.flatnonzero(~grown(mask, BACKGROUND_DISTANCE))
        outside = outside[:: 1 + len(outside) // _MAX_PIXELS]
        pixels = image.reshape(-1, 4)[outside] / 255
        colors, alphas = pixels[:, :3], pixels[:, 3:]
        if not _is_masked_rgb(scene, view):
            colors = expected + alphas * (colors - expected)
        if len(colors):
            medians[view] = np.median(colors, axis=0)
    errors = {view: np.abs(color - expected).max() for view, color in medians.items()}
    wrong = [view for view, error in errors.items() if error > MAX_BACKGROUND_ERROR]
    if wrong:
        view = wrong[0]
        flag = " ".join(f"{channel:.3f}" for channel in medians[view])
        advice = "set alpha to 0 outside the object"
        if _is_masked_rgb(scene, view):
            advice = "store RGBA, or use this background for rendering "
            advice += f"(--background {flag}, config.data.background)"
        problems.append(
            f"the background of {len(wrong)} of {len(rgba)} views (first: view {view}) "
            f"is RGB {_levels(medians[view])}, but the renderer's is "
            f"{_levels(expected)}; "
            f"{advice}"
        )
    worst = float(255 * max(errors.values())) if errors else None
    return _CheckResult({"background_error": worst}, problems)


def _is_masked_rgb(scene: Scene | StoredScene, view: int) -> bool:
    return isinstance(scene, StoredScene) and scene.frames[view].mask is not None


def _levels(color: Float[np.ndarray, "3"]) -> tuple[int, ...]:
    return tuple(np.rint(255 * color).astype(int).tolist())


def _check_cameras(
    alphas: UInt8[np.ndarray, "v h w"], cameras: Cameras, with_diagnosis: bool
) -> Iterator[_CheckResult]:
    try:
        rig = look_at_rig(cameras)
        located = locate(alphas, rig)
        agreed = agreement(silhouettes(alphas), rig)
    except DataError as error:
        problem, advice = str(error), ""
    else:
        rays = _check_rays(cameras, rig)
        with_diagnosis = with_diagnosis and not rays.problems
        yield rays
        yield _CheckResult(_mask_measurements(located, agreed), [])
        problem = _disagreement(located, agreed)
        advice = "; the cameras do not belong to these images"
    if problem:
        cause = diagnose(alphas, cameras) if with_diagnosis else None
        yield _CheckResult({}, [f"{problem}; {cause}" if cause else problem + advice])


def _check_rays(cameras: Cameras, rig: Rig) -> _CheckResult:
    """Checks that a view's rays project to their own pixels and to no other view's.

    Uses float32, as networks do, and a grid of points at the distance of the point that
    the cameras look at.
    """
    errors = _ray_distances(cameras, rig.distances)
    own = np.diagonal(errors)
    between = errors + np.where(np.eye(len(errors), dtype=bool), np.inf, 0)
    values = {
        "round_trip_error": float(own.max()),
        "min_ray_distance": float(between.min()),
    }
    problems = []
    if not own.max() < MAX_ROUND_TRIP:
        problems.append(
            f"points on the rays of view {own.argmax()} project {own.max():.2g} px "
            "from their pixels, because the poses are too far from the origin for "
            "float32: move the world's origin to the object"
        )
    if between.min() < MAX_ROUND_TRIP:
        one, other = sorted(np.unravel_index(between.argmin(), between.shape))
        problems.append(
            f"views {one} and {other} have the same rays: every view needs its own "
            "camera"
        )
    finite = {name: x if np.isfinite(x) else None for name, x in values.items()}
    return _CheckResult(finite, problems)


def _ray_distances(
    cameras: Cameras, distances: Float[np.ndarray, "v"]
) -> Float[np.ndarray, "v v"]:
    """Largest distance, in view i, of points on rays of view j from their pixels in j.

    In pixels; infinite for points behind the camera. Computed in float32.
    """
    cameras = dataclasses.replace(
        cameras,
        viewmats=np.asarray(cameras.viewmats, np.float32),
        Ks=np.asarray(cameras.Ks, np.float32),
    )
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
    errors = np.abs(pixels - expected).max(axis=-1)
    is_in_front = np.asarray(depths).reshape(errors.shape) > 0
    return np.where(is_in_front & np.isfinite(errors), errors, np.inf).max(axis=-1)


def _mask_measurements(
    located: Located, agreed: Agreement
) -> dict[str, float | int | None]:
    worst = int(agreed.seen.argmin())
    return {
        "agreement": float(agreed.seen[worst]),
        "worst_view": worst,
        "num_rays": int(agreed.num_rays[worst]),
        "num_in_frame": int(located.is_in_frame.sum()),
        "centroid_error": float(np.linalg.norm(located.offsets, axis=-1).max()),
    }


def _disagreement(located: Located, agreed: Agreement) -> str:
    """How the views contradict each other about the object's position; "" if not.

    The position is checked first: an object outside all other images contradicts none
    of their masks.
    """
    worst = int(agreed.seen.argmin())
    share = f"only {agreed.seen[worst]:.1%} of view {worst}'s rays"
    if not located.is_in_front.all():
        return _wrong_position("behind", "cameras", ~located.is_in_front)
    if not located.is_in_frame.all():
        return _wrong_position("outside", "images", ~located.is_in_frame)
    if agreed.shares[worst] < MIN_AGREEMENT:
        return (
            f"{share} agree with the masks of all other views; {MIN_AGREEMENT:.0%} must"
        )
    if agreed.seen[worst] < MIN_AGREEMENT:
        return f"{share} meet another mask; the others leave the other images"
    return ""


def _wrong_position(where: str, what: str, is_wrong: Bool[np.ndarray, "v"]) -> str:
    return (
        f"the object, located by the centroids of the masks, is {where} "
        f"{is_wrong.sum()} of {len(is_wrong)} {what} (first: view {is_wrong.argmax()})"
    )
