"""Scenes of a recording: which timestamps are usable, and the files of each scene.

`measure_objects` reads every mask once. `plan_scenes` derives what all scenes share:
the object's radius, the scale and the part (train, val, test) of each timestamp.
`write_recording_scene` writes one scene.
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
from facelift_jax.data.recordings.footage import Recording, read_masks, read_together
from facelift_jax.data.recordings.virtual_cameras import (
    UnusableMaskError,
    downscale_factor,
    focal_length,
    masked_points,
    resample_image,
    triangulate_object,
    virtual_camera,
)
from facelift_jax.data.writing import (
    camera_entry,
    image_path,
    write_image,
    write_json,
)
from facelift_jax.geometry.rigid import transform_world
from facelift_jax.io.progress import map_in_order
from facelift_jax.structs import Cameras

RADIUS_QUANTILE = 0.95  # over time: a single bad mask must not make all objects small


@dataclass(frozen=True)
class PrepareOptions:
    """How scenes are made from a recording.

    Attributes:
      scenes: number of timestamps, evenly spaced over the recording.
      size: side of the images in pixels.
      share: fraction of the image's width that the ball around the object fills.
      radius: mean distance of the cameras from the object, world units of the scenes.
      val, test: fractions of the timestamps, the last ones.
      gap: smallest time in seconds between train, val and test.
      max_upscale: largest number of scene pixels per camera pixel.
      fps: frames per second of image files; None for videos, which have timestamps.
    """

    scenes: int
    size: int = 256
    share: float = 0.85  # as in the synthetic rodents
    radius: float = 2.7
    val: float = 0.1
    test: float = 0.1
    gap: float = 1.0
    max_upscale: float = 1.25
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.scenes < 1 or not 8 <= self.size <= 8000:
            raise ValueError(
                f"{self.scenes} scenes of {self.size} px: expected at least one scene, "
                "with a side of 8 to 8000 pixels"
            )
        if not (0 < self.share < 1 and 0 < self.radius < math.inf):
            raise ValueError(
                f"share {self.share} and radius {self.radius}: expected a share "
                "between 0 and 1 and a positive, finite radius"
            )
        if min(self.val, self.test) < 0 or self.val + self.test >= 1 or self.gap < 0:
            raise ValueError(
                f"val {self.val}, test {self.test}, gap {self.gap} s: the fractions "
                "must leave something to train on, and the gap cannot be negative"
            )
        if self.max_upscale < 1 or (self.fps is not None and not self.fps > 0):
            raise ValueError(
                f"max_upscale {self.max_upscale} and fps {self.fps}: expected a "
                "max_upscale of at least 1 and a positive fps"
            )


class Timestamp(NamedTuple):
    """A timestamp that becomes a scene.

    Attributes:
      name: folder of the scene; names sort in the order of time.
      frame: number of the frame in the recording.
      time: seconds from the start of the recording.
      part: "train", "val" or "test".
      center: [3] center of the object, calibration units.
      focals: [v] focal lengths of the virtual cameras, pixels.
    """

    name: str
    frame: int
    time: float
    part: str
    center: list[float]
    focals: list[float]


class RecordingPlan(NamedTuple):
    """What all scenes share.

    Attributes:
      timestamps: the timestamps that become scenes.
      size: side of the images in pixels.
      scale: world units of the scenes per unit of the calibration.
      report: lines for the user.
    """

    timestamps: list[Timestamp]
    size: int
    scale: float
    report: list[str]


def measure_objects(
    recording: Recording,
    frames: range,
    points: list[Float[np.ndarray, "h w 2"]],
    workers: int,
) -> Iterator[dict[str, Any]]:
    """Yields one row of JSON values per frame: frame, time and an `ObjectEstimate`.

    A frame that cannot be used has a "problem" instead of the estimate. `points` are
    the `undistorted_pixels` of each camera.
    """

    def measure(
        frame: int, masks: tuple[Bool[np.ndarray, "h w"], ...]
    ) -> dict[str, Any]:
        row = {"frame": frame, "time": float(recording.times[frame])}
        seen = []
        for camera, mask, pixels in zip(recording.cameras, masks, points, strict=True):
            try:
                seen.append(masked_points(mask, pixels))
            except UnusableMaskError as error:
                return row | {"problem": f"camera {camera.name}: {error}"}
        try:
            estimate = triangulate_object(recording.cameras, seen)
        except np.linalg.LinAlgError:
            return row | {"problem": "the rays through the masks do not intersect"}
        for camera, distance in zip(recording.cameras, estimate.distances, strict=True):
            if distance <= estimate.radius:
                where = "behind it" if distance < 0 else "around it"
                return row | {"problem": f"camera {camera.name}: the object is {where}"}
        fields = estimate._asdict().items()
        return row | {key: np.asarray(value).tolist() for key, value in fields}

    masks = read_together([read_masks(footage, frames) for footage in recording.masks])
    yield from map_in_order(measure, zip(frames, masks, strict=True), workers)


def plan_scenes(
    recording: Recording, rows: list[dict[str, Any]], options: PrepareOptions
) -> RecordingPlan:
    """What all scenes share, from the rows of `measure_objects`, with a report.

    Raises:
      DataError: no timestamp can be used, or images would be upscaled too much.
      ValueError: there are too few timestamps for train, val and test.
    """
    parts = split_by_time([row["time"] for row in rows], options)
    radii = [row["radius"] for row in rows if "problem" not in row]
    radius = float(np.quantile(radii or 0, RADIUS_QUANTILE, method="lower"))
    rows = [_with_framing(recording, row, radius, options) for row in rows]
    problems = collections.Counter(row["problem"] for row in rows if "problem" in row)
    counts = [
        f"{count} of {len(rows)} timestamps not usable: {text}"
        for text, count in problems.most_common()
    ]
    usable = [row for row in rows if "problem" not in row]
    if not usable:
        raise DataError(f"no timestamp can be used; {'; '.join(counts)}")
    timestamps = _timestamps(rows, parts)
    if not any(timestamp.part == "train" for timestamp in timestamps):
        raise DataError(
            f"no timestamp of the train part can be used; {'; '.join(counts)}"
        )
    sizes = [f"{part} {sum(t.part == part for t in timestamps)}" for part in PARTS]
    distances = np.array([row["distances"] for row in usable])
    scale = options.radius / float(distances.mean())
    num_in_gaps = len(usable) - len(timestamps)
    report = [
        f"{len(rows)} timestamps, {len(usable)} usable, of which {num_in_gaps} are in "
        f"the gaps between the parts; scenes: {', '.join(sizes)}",
        *counts,
        f"object radius {radius:.4g} (largest {max(radii):.4g}), camera distances "
        f"{distances.min():.4g} to {distances.max():.4g} in calibration units; scale "
        f"{scale:.4g} scene units per calibration unit",
    ]
    offsets, downscales = (
        np.array([row[key] for row in usable]) for key in ("offsets", "downscales")
    )
    for view, camera in enumerate(recording.cameras):
        offset, downscale = offsets[:, view], downscales[:, view]
        report.append(
            f"camera {camera.name}: mask centroids {np.median(offset):.2f} px from the "
            f"triangulated point (largest {offset.max():.2f}); "
            f"{np.median(downscale):.2f} camera pixels per scene pixel (smallest "
            f"{downscale.min():.2f})"
        )
    num_upscaled = int((downscales < 1).sum())
    if num_upscaled:
        report.append(
            f"{num_upscaled} of {downscales.size} images are upscaled, by at most "
            f"{1 / downscales.min():.2f}"
        )
    if 1 / downscales.min() > options.max_upscale:
        largest = int(options.size * options.max_upscale * downscales.min())
        raise DataError(
            f"{report[-1]}, but the limit is {options.max_upscale:g}; set --size to at "
            f"most {largest}, or raise --max-upscale"
        )
    return RecordingPlan(timestamps, options.size, scale, report)


def _timestamps(rows: list[dict[str, Any]], parts: list[str | None]) -> list[Timestamp]:
    """The rows that are usable and in a part."""
    digits = max(6, len(str(rows[-1]["frame"])))
    keys = ("frame", "time", "center", "focals")
    return [
        Timestamp(
            f"frame_{row['frame']:0{digits}}", part=part, **{k: row[k] for k in keys}
        )
        for row, part in zip(rows, parts, strict=True)
        if "problem" not in row and part
    ]


def _with_framing(
    recording: Recording, row: dict[str, Any], radius: float, options: PrepareOptions
) -> dict[str, Any]:
    """A row with its "focals" and "downscales" [v], or with its "problem"."""
    if "problem" in row:
        return row
    focals, downscales = [], []
    for camera, distance, reach in zip(
        recording.cameras, row["distances"], row["reaches"], strict=True
    ):
        if distance <= radius:
            return row | {"problem": f"camera {camera.name}: it is inside the object"}
        focal = focal_length(distance, radius, options.share, options.size)
        if focal * reach > 0.5 * options.size - 1:
            problem = f"camera {camera.name}: the object is too large for its image"
            return row | {"problem": problem}
        virtual = virtual_camera(camera, np.array(row["center"]), focal, options.size)
        focals.append(focal)
        downscales.append(downscale_factor(camera, virtual))
    return row | {"focals": focals, "downscales": downscales}


def split_by_time(times: list[float], options: PrepareOptions) -> list[str | None]:
    """The part of each timestamp: first train, then val, then test; None in the gaps.

    Between two parts there are at least one timestamp and `options.gap` seconds.

    Raises:
      ValueError: there are too few timestamps.
    """
    parts: list[str | None] = [None] * len(times)
    end = len(times)
    for part, share in (("test", options.test), ("val", options.val)):
        if not share:
            continue
        start = end - max(1, round(share * len(times)))
        if start < 1:
            break
        parts[start:end] = [part] * (end - start)
        end = min(start - 1, bisect.bisect_right(times, times[start] - options.gap))
    parts[:end] = ["train"] * end
    missing = [n for n in ("val", "test") if getattr(options, n) and n not in parts]
    if end < 1 or missing:
        raise ValueError(
            f"{len(times)} timestamps over {times[-1] - times[0]:.3g} s cannot be "
            f"split into train, val {options.val:g} and test {options.test:g} with "
            f"gaps of {options.gap:g} s; use more timestamps, or change --val, --test "
            "or --gap"
        )
    return parts


def write_recording_scene(
    out: Path,
    plan: RecordingPlan,
    timestamp: Timestamp,
    cameras: list[CalibratedCamera],
    points: list[Float[np.ndarray, "h w 2"]],
    footage: tuple[np.ndarray, ...],
) -> None:
    """Writes the images of one timestamp and, last, its cameras.

    The world of the scene is scale (x - center), the same similarity for all cameras.

    Args:
      out: folder of the data set.
      plan: of the recording.
      timestamp: which scene to write.
      cameras: [v] real cameras.
      points: [v] their `undistorted_pixels`.
      footage: the images [v] and then the masks [v] of this timestamp.
    """
    folder = out / timestamp.name
    (folder / "images").mkdir(parents=True, exist_ok=True)
    center = np.array(timestamp.center)
    virtual = [
        virtual_camera(camera, center, focal, plan.size)
        for camera, focal in zip(cameras, timestamp.focals, strict=True)
    ]
    viewmats, Ks = (
        np.stack([getattr(camera, field) for camera in virtual])
        for field in ("viewmats", "Ks")
    )
    rig = Cameras(viewmats, Ks, plan.size, plan.size)
    rig = transform_world(rig, np.eye(3), -plan.scale * center, plan.scale)
    frames = []
    for view, camera in enumerate(cameras):
        image, mask = footage[view], footage[len(cameras) + view]
        rgba = resample_image(image, mask, points[view], camera, virtual[view])
        path = image_path(view)
        write_image(folder / path, rgba)
        entry = {"file_path": path, "camera": camera.name, **camera_entry(rig, view)}
        frames.append(entry)
    document = {
        "id": timestamp.name,
        "recording": out.resolve().name,
        "frame": timestamp.frame,
        "time": timestamp.time,
        "part": timestamp.part,
        "scale": plan.scale,
        "center": timestamp.center,
        "frames": frames,
    }
    write_json(folder / OPENCV_FILE, document)
