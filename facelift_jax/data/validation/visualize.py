"""A scene and its rig in one picture: what `check_data` says, for a person to see."""

import math
import textwrap
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from facelift_jax.data.io import DataError
from facelift_jax.data.scenes import Scene, StoredScene
from facelift_jax.data.validation.checks import SceneReport
from facelift_jax.data.validation.silhouettes import (
    held_pixels,
    look_at_rig,
    silhouettes,
)
from facelift_jax.geometry.numerics import normalize
from facelift_jax.geometry.rays import directions_through
from facelift_jax.geometry.rigid import rig_up
from facelift_jax.io import atomic
from facelift_jax.structs import Cameras

MOST_PIXELS = 4000  # of a mask that are asked; of larger ones every second, third ...
COLUMNS = 6
_AGREES, _CONTRADICTED = (0.1, 0.55, 0.65), (0.85, 0.1, 0.1)
_INPUT, _OTHER = "tab:orange", "tab:gray"


def write_scene(path: Path, scene: Scene | StoredScene, report: SceneReport) -> None:
    """Draws every view's mask against the hull of all masks, and the rig around it.

    A mask's pixel is red if no place on its ray lies in all masks: there the hull of
    the masks, projected back, does not fill the mask.
    """
    rgba, cameras = scene.rgba, scene.cameras
    num_rows = math.ceil(len(rgba) / COLUMNS)
    heights = [0.4 * (2 + len(report.problems)), 2.4 * num_rows, 6.0]
    figure = Figure(figsize=(14, sum(heights)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    head, top, bottom = figure.subfigures(3, 1, height_ratios=heights, squeeze=False)[
        :, 0
    ]
    verdict = "fails the data checks" if report.problems else "good"
    lines = [f"{report.name}: {verdict}", *report.problems]
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
    """Masks, and where they are contradicted; returns places on their common hull."""
    num_rows = math.ceil(len(rgba) / COLUMNS)
    panels = figure.subplots(num_rows, COLUMNS, squeeze=False).ravel()
    for panel in panels:
        panel.set(xticks=[], yticks=[])
    for panel in panels[len(rgba) :]:
        panel.axis("off")
    try:
        rig = look_at_rig(cameras)
    except DataError:  # no camera says where another looks
        rig = None
    found, points = silhouettes(rgba[..., 3]), [np.zeros((0, 3))]
    for view, panel in zip(range(len(rgba)), panels, strict=False):
        stride = math.ceil(math.sqrt(found.whole[view].sum() / MOST_PIXELS))
        color, alpha = np.split(rgba[view, ::stride, ::stride] / 255, [3], axis=-1)
        picture = (1 - alpha + alpha * color).mean(axis=-1, keepdims=True)
        picture = np.repeat(0.5 + 0.5 * picture, 3, axis=-1)
        title = str(view)
        if rig is not None:
            is_asked, is_held, places = held_pixels(found, rig, view, stride)
            tint = np.where(is_held[..., None], _AGREES, _CONTRADICTED)
            shade = picture - 0.5
            picture = np.where(is_asked[..., None], 0.5 * tint + shade, picture)
            title = f"{view}   {is_held.sum() / is_asked.sum():.1%} agree"
            points.append(places[:: 1 + len(places) // 500])
        panel.imshow(picture, interpolation="nearest")
        panel.set_title(title, size=9)
    return np.concatenate(points)


def _draw_rig(
    figure: SubFigure,
    cameras: Cameras,
    is_input: Bool[np.ndarray, "v"],
    points: Float[np.ndarray, "n 3"],
) -> None:
    """Camera frusta and the hull, from above and from the side; input views orange."""
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
