"""A recording to scenes: which times can be used, and the files of one time.

`survey` looks at every mask once; `plan` settles from that what all scenes share (the
object's radius, the scale, each time's part of the split); `write_scene` makes one.
"""

import bisect
import collections
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from facelift_jax.data.formats import OPENCV_FILE, PARTS
from facelift_jax.data.io import DataError
from facelift_jax.data.recordings.calibration import CalibratedCamera
from facelift_jax.data.recordings.footage import Recording, read_masks, together
from facelift_jax.data.recordings.virtual_cameras import (
    UnusableError,
    aim,
    focal_length,
    masked_points,
    shrinkage,
    sight,
    take_picture,
)
from facelift_jax.data.writing import camera_entry, write_image, write_json
from facelift_jax.geometry.rigid import transform_world
from facelift_jax.io.progress import map_in_order
from facelift_jax.structs import Cameras

RADIUS_QUANTILE = 0.95  # of the times: one bad mask must not make all scenes small


@dataclass(frozen=True)
class Options:
    """What scenes are made of a recording.

    Attributes:
      scenes: times to take, evenly spread over the recording.
      size: side of the pictures in pixels.
      share: of the picture's width that the object's ball fills.
      radius: mean distance of the cameras from the object, world units of the scenes.
      val, test: shares of the times, the last ones.
      gap: seconds between the parts of the split, at least.
      max_upscale: pixels of a scene across one pixel of the camera, at most.
      fps: pictures a second, where the recording is folders of pictures.
    """

    scenes: int
    size: int = 256
    share: float = 0.85  # as the synthetic rodents
    radius: float = 2.7
    val: float = 0.1
    test: float = 0.1
    gap: float = 1.0
    max_upscale: float = 1.25
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.scenes < 1 or not 8 <= self.size <= 8000:
            raise ValueError(
                f"{self.scenes} scenes of {self.size} px: expected at least one, of 8 "
                "to 8000 pixels a side"
            )
        if not (0 < self.share < 1 and 0 < self.radius < math.inf):
            raise ValueError(
                f"share {self.share} and radius {self.radius}: the object fills less "
                "than 1 of the picture, the cameras stand away from it"
            )
        if min(self.val, self.test) < 0 or self.val + self.test >= 1 or self.gap < 0:
            raise ValueError(
                f"val {self.val}, test {self.test}, gap {self.gap} s: the shares must "
                "leave something to train on, the gap cannot be negative"
            )
        if self.max_upscale < 1 or (self.fps is not None and not self.fps > 0):
            raise ValueError(
                f"max_upscale {self.max_upscale} and fps {self.fps}: at least 1, and "
                "more than 0"
            )


class Moment(NamedTuple):
    """One time that is used, and what its scene needs; see `virtual.Sighting`.

    `name` is the folder of its scene; names are in the order of time.
    """

    name: str
    frame: int
    time: float
    split: str
    center: list[float]
    focals: list[float]


class Plan(NamedTuple):
    """What all scenes share.

    Attributes:
      moments: the times that are made.
      size: side of their pictures, pixels.
      scale: world units of a scene to one unit of the calibration.
      report: lines for the user.
    """

    moments: list[Moment]
    size: int
    scale: float
    report: list[str]


def survey(
    recording: Recording,
    frames: range,
    points: list[Float[np.ndarray, "h w 2"]],
    workers: int,
) -> Iterator[dict[str, Any]]:
    """Looks at the masks of every time: JSON values, with "problem" where unusable."""

    def look(frame: int, masks: tuple[Bool[np.ndarray, "h w"], ...]) -> dict[str, Any]:
        row = {"frame": frame, "time": float(recording.times[frame])}
        seen = []
        for camera, mask, rays in zip(recording.cameras, masks, points, strict=True):
            try:
                seen.append(masked_points(mask, rays))
            except UnusableError as error:
                return row | {"problem": f"camera {camera.name}: {error}"}
        try:
            found = sight(recording.cameras, seen)
        except np.linalg.LinAlgError:
            return row | {"problem": "the rays through the masks do not meet"}
        for camera, distance in zip(recording.cameras, found.distances, strict=True):
            if distance <= found.radius:  # behind it, or around it
                where = "behind it" if distance < 0 else "around it"
                return row | {"problem": f"camera {camera.name}: the object is {where}"}
        return row | {k: np.asarray(v).tolist() for k, v in found._asdict().items()}

    masks = together([read_masks(footage, frames) for footage in recording.masks])
    yield from map_in_order(look, zip(frames, masks, strict=True), workers)


def plan(recording: Recording, rows: list[dict[str, Any]], options: Options) -> Plan:
    """What all scenes share, from a `survey`, and what a user should know of it.

    Raises:
      DataError: no time can be used, or pictures would be magnified too much.
    """
    labels = split_by_time([row["time"] for row in rows], options)
    seen = [row for row in rows if "problem" not in row]
    radii = [row["radius"] for row in seen] or 0
    radius = float(np.quantile(radii, RADIUS_QUANTILE, method="lower"))
    rows = [_framed(recording, row, radius, options) for row in rows]
    problems = collections.Counter(row["problem"] for row in rows if "problem" in row)
    usable = [row for row in rows if "problem" not in row]
    counts = [f"{count} times: {problem}" for problem, count in problems.most_common()]
    if not usable:
        raise DataError(f"none of {len(rows)} times can be used; {'; '.join(counts)}")
    moments = _moments(rows, labels)
    if not any(moment.split == "train" for moment in moments):
        raise DataError(f"no time of the train part can be used; {'; '.join(counts)}")
    parts = [f"{s} {sum(m.split == s for m in moments)}" for s in PARTS]
    in_gap = len(usable) - len(moments)
    distances = np.array([row["distances"] for row in usable])
    scale = options.radius / float(distances.mean())
    report = [
        f"{len(rows)} times looked at, {len(usable)} usable, {in_gap} of those in the "
        f"gaps of the split; scenes: {', '.join(parts)}",
        *(f"left out {count}" for count in counts),
        f"the object's radius is {radius:.4g} (at most "
        f"{max(row['radius'] for row in seen):.4g}), its cameras are "
        f"{distances.min():.4g} to {distances.max():.4g} away; a unit of the "
        f"calibration becomes {scale:.4g} of the scenes",
    ]
    offsets, shrinks = (
        np.array([r[k] for r in usable]) for k in ("offsets", "shrinks")
    )
    for view, camera in enumerate(recording.cameras):
        off, shrink = offsets[:, view], shrinks[:, view]
        report.append(
            f"camera {camera.name}: mask centres {np.median(off):.2f} px from the "
            f"triangulated point (at most {off.max():.2f}); a scene's pixel spans "
            f"{np.median(shrink):.2f} of its own (at least {shrink.min():.2f})"
        )
    num_blurred = int((shrinks < 1).sum())
    if num_blurred:
        report.append(
            f"{num_blurred} of {shrinks.size} pictures are magnified, at most "
            f"{1 / shrinks.min():.2f} times"
        )
    if 1 / shrinks.min() > options.max_upscale:
        fitting = int(options.size * options.max_upscale * shrinks.min())
        raise DataError(
            f"{report[-1]}, where {options.max_upscale:g} is allowed; make --size at "
            f"most {fitting}, or allow it by --max-upscale"
        )
    return Plan(moments, options.size, scale, report)


def _moments(rows: list[dict[str, Any]], labels: list[str | None]) -> list[Moment]:
    """The times that are usable and of a part of the split."""
    digits = max(6, len(str(rows[-1]["frame"])))
    keys = ("frame", "time", "center", "focals")
    return [
        Moment(
            f"frame_{row['frame']:0{digits}}", split=label, **{k: row[k] for k in keys}
        )
        for row, label in zip(rows, labels, strict=True)
        if "problem" not in row and label
    ]


def _framed(
    recording: Recording, row: dict[str, Any], radius: float, options: Options
) -> dict[str, Any]:
    """A row of the survey with its "focals" and "shrinks" [v], or its "problem"."""
    if "problem" in row:
        return row
    focals, shrinks = [], []
    for camera, distance, reach in zip(
        recording.cameras, row["distances"], row["reaches"], strict=True
    ):
        if distance <= radius:
            return row | {"problem": f"camera {camera.name}: it is inside the object"}
        focal = focal_length(distance, radius, options.share, options.size)
        if focal * reach > 0.5 * options.size - 1:
            problem = f"camera {camera.name}: the object is too large for its picture"
            return row | {"problem": problem}
        focals.append(focal)
        aimed = aim(camera, np.array(row["center"]), focal, options.size)
        shrinks.append(shrinkage(camera, aimed))
    return row | {"focals": focals, "shrinks": shrinks}


def split_by_time(times: list[float], options: Options) -> list[str | None]:
    """The part of each time: first train, then val, then test; None in the gaps.

    Between two parts lie at least one time and `options.gap` seconds.
    """
    labels: list[str | None] = [None] * len(times)
    end = len(times)
    for name, share in (("test", options.test), ("val", options.val)):
        if not share:
            continue
        start = end - max(1, round(share * len(times)))
        if start < 1:
            break
        labels[start:end] = [name] * (end - start)
        end = min(start - 1, bisect.bisect_right(times, times[start] - options.gap))
    labels[:end] = ["train"] * end
    missing = [n for n in ("val", "test") if getattr(options, n) and n not in labels]
    if end < 1 or missing:
        raise ValueError(
            f"{len(times)} times over {times[-1] - times[0]:.3g} s cannot be split "
            f"into train, val {options.val:g} and test {options.test:g} with gaps of "
            f"{options.gap:g} s; take more times, or change --val, --test or --gap"
        )
    return labels


def write_scene(
    out: Path,
    made: Plan,
    moment: Moment,
    cameras: list[CalibratedCamera],
    points: list[Float[np.ndarray, "h w 2"]],
    seen: tuple[np.ndarray, ...],
) -> None:
    """Writes the pictures and, last, the cameras of one time.

    The world of a scene is scale (x - center), for the whole rig. `seen`: the pictures
    of the cameras [v], then their masks [v]; `points`: their `pixel_points`.
    """
    folder = out / moment.name
    (folder / "images").mkdir(parents=True, exist_ok=True)
    center = np.array(moment.center)
    aimed = [
        aim(camera, center, focal, made.size)
        for camera, focal in zip(cameras, moment.focals, strict=True)
    ]
    viewmats, Ks = (
        np.stack([getattr(a, k) for a in aimed]) for k in ("viewmats", "Ks")
    )
    rig = Cameras(viewmats, Ks, made.size, made.size)
    rig = transform_world(rig, np.eye(3), -made.scale * center, made.scale)
    frames = []
    for view, camera in enumerate(cameras):
        shown = seen[view], seen[len(cameras) + view], points[view]
        path = picture_path(view)
        write_image(folder / path, take_picture(*shown, camera, aimed[view]))
        entry = {"file_path": path, "camera": camera.name, **camera_entry(rig, view)}
        frames.append(entry)
    document = {
        "id": moment.name,
        "recording": out.resolve().name,
        "frame": moment.frame,
        "time": moment.time,
        "part": moment.split,
        "scale": made.scale,
        "center": moment.center,
        "frames": frames,
    }
    write_json(folder / OPENCV_FILE, document)


def picture_path(view: int) -> str:
    """Where a view's picture lies in its scene's folder."""
    return f"images/cam_{view:03d}.png"
