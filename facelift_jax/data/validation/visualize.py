"""Draws the check report of a scene: its masks, their agreement, and the rig."""

import math
import textwrap
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from facelift_jax.data.io import DataError
from facelift_jax.data.scenes import Scene, StoredScene
from facelift_jax.data.validation.checks import SceneReport
from facelift_jax.data.validation.silhouettes import (
    agreeing_pixels,
    look_at_rig,
    silhouettes,
)
from facelift_jax.geometry.numerics import normalize
from facelift_jax.geometry.rays import directions_through
from facelift_jax.geometry.rigid import rig_up
from facelift_jax.io import atomic
from facelift_jax.io.extras import extra
from facelift_jax.structs import Cameras

with extra("report"):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure, SubFigure

MAX_PIXELS = 4000  # tested pixels of a mask; larger masks are subsampled
COLUMNS = 6
_AGREES, _DISAGREES = (0.1, 0.55, 0.65), (0.85, 0.1, 0.1)
_INPUT, _OTHER = "tab:orange", "tab:gray"


def write_check_image(
    path: Path, scene: Scene | StoredScene, report: SceneReport
) -> None:
    """Draws every view's mask against the visual hull of all masks, and the rig.

    A pixel of a mask is red if no position on its ray is inside all masks. There, the
    projection of the visual hull does not fill the mask.
    """
    rgba, cameras = scene.rgba, scene.cameras
    num_rows = math.ceil(len(rgba) / COLUMNS)
    heights = [0.4 * (2 + len(report.problems)), 2.4 * num_rows, 6.0]
    figure = Figure(figsize=(14, sum(heights)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    head, top, bottom = figure.subfigures(3, 1, height_ratios=heights, squeeze=False)[
        :, 0
    ]
    result = "fails the data checks" if report.problems else "passes the data checks"
    lines = [f"{report.name}: {result}", *report.problems]
    lines.append("blue: the ray of this mask pixel meets all other masks; red: not")
    text = "\n".join(textwrap.fill(line, 150) for line in lines)
    head.text(0.01, 0.5, text, va="center", size=10, parse_math=False)
    points = _draw_views(top, rgba, cameras)
    _draw_rig(bottom, cameras, np.asarray(scene.is_input), points)
    with atomic.replaced(path) as partial:
        figure.savefig(partial, format="png")


def _draw_views(
    figure: SubFigure, rgba: UInt8[np.ndarray, "v h w 4"], cameras: Cameras
) -> Float[np.ndarray, "n 3"]:
    """Draws masks and their disagreement; returns points on their visual hull."""
    num_rows = math.ceil(len(rgba) / COLUMNS)
    panels = figure.subplots(num_rows, COLUMNS, squeeze=False).ravel()
    for panel in panels:
        panel.set(xticks=[], yticks=[])
    for panel in panels[len(rgba) :]:
        panel.axis("off")
    try:
        rig = look_at_rig(cameras)
    except DataError:  # the cameras look at no common point
        rig = None
    masks, points = silhouettes(rgba[..., 3]), [np.zeros((0, 3))]
    for view, panel in zip(range(len(rgba)), panels, strict=False):
        stride = math.ceil(math.sqrt(masks.full[view].sum() / MAX_PIXELS))
        color, alpha = np.split(rgba[view, ::stride, ::stride] / 255, [3], axis=-1)
        image = (1 - alpha + alpha * color).mean(axis=-1, keepdims=True)
        image = np.repeat(0.5 + 0.5 * image, 3, axis=-1)
        title = str(view)
        if rig is not None:
            is_tested, agrees, positions = agreeing_pixels(masks, rig, view, stride)
            tint = np.where(agrees[..., None], _AGREES, _DISAGREES)
            shade = image - 0.5
            image = np.where(is_tested[..., None], 0.5 * tint + shade, image)
            title = f"{view}   {agrees.sum() / is_tested.sum():.1%} agree"
            points.append(positions[:: 1 + len(positions) // 500])
        panel.imshow(image, interpolation="nearest")
        panel.set_title(title, size=9)
    return np.concatenate(points)


def _draw_rig(
    figure: SubFigure,
    cameras: Cameras,
    is_input: Bool[np.ndarray, "v"],
    points: Float[np.ndarray, "n 3"],
) -> None:
    """Draws the camera frusta and the hull from two sides; input views are orange."""
    up, centers = rig_up(cameras), np.asarray(cameras.centers, np.float64)
    middle = np.median(points, axis=0) if len(points) else centers.mean(axis=0)
    front = centers[0] - middle
    front = np.asarray(normalize(front - (front @ up) * up))
    side = np.cross(up, front)
    width, height = cameras.width, cameras.height
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    rays = directions_through(cameras, np.repeat(corners[None], len(centers), axis=0))
    length = 0.25 * np.median(np.linalg.norm(centers - middle, axis=-1))
    tips = centers[:, None] + length * rays
    eyes = np.repeat(centers[:, None], 4, axis=1)
    outline = np.concatenate([tips, tips[:, :1]], axis=1)
    spokes = np.stack([eyes, tips], axis=2).reshape(len(centers), 8, 3)
    for panel, name, axes in zip(
        figure.subplots(1, 2),
        ("from above", "from the side"),
        (np.stack([front, side]), np.stack([front, up])),
        strict=True,
    ):
        panel.plot(*(axes @ points.T), ".", ms=1.5, color=_AGREES)
        for view, center in enumerate(centers):
            color = _INPUT if is_input[view] else _OTHER
            for lines in (outline[view], spokes[view]):
                panel.plot(*(axes @ lines.T), color=color, lw=0.8)
            panel.annotate(str(view), axes @ center, size=9)
        panel.set_title(f"{name}, world units", size=9)
        panel.set_aspect("equal")
        panel.grid(alpha=0.25)
