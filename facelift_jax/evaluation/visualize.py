"""Image sheets for inspection: images, error maps, opacity and depth maps."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from facelift_jax.geometry.numerics import Array, normalize
from facelift_jax.geometry.rigid import rig_up
from facelift_jax.io.image_files import to_uint8
from facelift_jax.structs import Cameras, RenderOutput, Views

ERROR_SCALE = 0.3  # mean absolute color error at the bright end of an error map
MIN_TILE = 128  # px; smaller images are magnified by an integer factor
MAX_SHEET_WIDTH = 2200  # px; longer rows of cells wrap

_PAGE, _INK, _FAINT, _UNKNOWN = (243, 243, 241), (35, 35, 38), (110, 110, 114), 205
_MARGIN, _GUTTER, _SEAM = 20, 14, 2  # px: around the page, between cells, inside one
_TITLE, _HEADING, _CAPTION = 24, 20, 15  # px: text heights


def _color_table(name: int) -> UInt8[np.ndarray, "256 3"]:
    """A color map of OpenCV as RGB."""
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    return cv2.applyColorMap(ramp, name)[:, 0, ::-1]


_ERROR_COLORS = _color_table(cv2.COLORMAP_MAGMA)
_DEPTH_COLORS = _color_table(cv2.COLORMAP_VIRIDIS)[::-1]

Groups = Sequence[tuple[str, Sequence[tuple[str, UInt8[np.ndarray, "h w 3"]]]]]
"""(heading, [(caption, image), ...]) of a sheet; all images have one size."""


def supervision_sheet(
    targets: Float[Array, "t h w 3"],
    predictions: Float[Array, "t h w 3"],
    num_inputs: int,
    labels: Sequence[str],
    psnr_fg: Float[Array, "t"],
    title: str,
) -> UInt8[np.ndarray, "y x 3"]:
    """Ground truth | prediction of every view, input and held-out views in two groups.

    The targets must be composited on the background of the predictions.
    """
    groups = _by_side(
        [
            (_caption(label, decibel), _row([to_uint8(target), to_uint8(prediction)]))
            for label, decibel, target, prediction in zip(
                labels, np.asarray(psnr_fg).tolist(), targets, predictions, strict=True
            )
        ],
        num_inputs,
    )
    return _sheet(f"{title}   ground truth | prediction", groups)


def inputs_strip(
    images: Float[Array, "v h w 3"], labels: Sequence[str], title: str
) -> UInt8[np.ndarray, "y x 3"]:
    """The input images."""
    cells = [
        (label, _row([to_uint8(i)])) for label, i in zip(labels, images, strict=True)
    ]
    return _sheet(title, [("", cells)])


def map_sheet(
    targets: Views,
    render: RenderOutput,
    num_inputs: int,
    labels: Sequence[str],
    title: str,
) -> UInt8[np.ndarray, "y x 3"]:
    """Images, error, opacity and depth of views [t], one row per view.

    True and predicted depth of all views share one scale. Color bars below the rows
    show it, in world units, and the scale of the error.
    """
    low, high = depth_range(targets, render)
    columns = {
        "ground truth": to_uint8(targets.images),
        "prediction": to_uint8(render.colors),
        "error": error_map(targets.images, render.colors),
        "opacity": np.repeat(to_uint8(render.alphas), 3, axis=-1),
    }
    if targets.depths is not None:
        is_known = (np.asarray(targets.depths) > 0) & (np.asarray(targets.masks) > 0.5)
        columns["true depth"] = depth_map(targets.depths, is_known, low, high)
    is_solid = np.asarray(render.alphas) > 0.5
    columns["predicted depth"] = depth_map(render.depths, is_solid, low, high)
    cells = [
        (label, _row(list(tiles)))
        for label, *tiles in zip(labels, *columns.values(), strict=True)
    ]
    bars = [
        (_ERROR_COLORS, "error, mean over channels", 0.0, ERROR_SCALE),
        (_DEPTH_COLORS, "camera-z depth, world units", low, high),
    ]
    return _sheet(title, _by_side(cells, num_inputs), list(columns), bars)


def error_map(
    targets: Float[Array, "*b h w 3"], predictions: Float[Array, "*b h w 3"]
) -> UInt8[np.ndarray, "*b h w 3"]:
    """Absolute error, mean over channels: 0 is black, `ERROR_SCALE` is bright."""
    error = np.abs(np.clip(predictions, 0, 1) - np.asarray(targets)).mean(-1)
    return _colored(error / ERROR_SCALE, _ERROR_COLORS)


def depth_map(
    depths: Float[Array, "*b h w 1"], is_known: Array, low: float, high: float
) -> UInt8[np.ndarray, "*b h w 3"]:
    """Depth in color, bright at `low` (near), dark at `high`; gray where unknown."""
    scaled = (np.asarray(depths)[..., 0] - low) / (high - low)
    return np.where(is_known, _colored(scaled, _DEPTH_COLORS), np.uint8(_UNKNOWN))


def depth_range(targets: Views, render: RenderOutput) -> tuple[float, float]:
    """Ends of the depth scale, world units: 1 % and 99 % quantiles on the object.

    Quantiles of the true depths if there are any, else of the predicted depths where
    alpha > 0.5.
    """
    if targets.depths is None:
        depths, is_known = render.depths, np.asarray(render.alphas) > 0.5
    else:
        depths, is_known = targets.depths, np.asarray(targets.masks) > 0.5
    values = np.asarray(depths)[is_known & (np.asarray(depths) > 0)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.quantile(values, [0.01, 0.99])
    return float(low), float(max(high, low + 1e-3 * abs(low)))


def view_labels(cameras: Cameras) -> list[str]:
    """Index, azimuth and elevation of each camera [t], degrees.

    Angles are measured at the world origin. Azimuth is 0 at view 0 and increases about
    the rig's upright axis.
    """
    upright = rig_up(cameras)
    directions = normalize(np.asarray(cameras.centers, np.float64))
    heights = directions @ upright
    front = normalize(directions[0] - heights[0] * upright)
    side = np.cross(upright, front)
    azimuths = np.rad2deg(np.arctan2(directions @ side, directions @ front))
    elevations = np.rad2deg(np.arcsin(np.clip(heights, -1, 1)))
    return [
        f"{i}  az {round(azimuth):+d}°  el {round(elevation):+d}°"
        for i, (azimuth, elevation) in enumerate(zip(azimuths, elevations, strict=True))
    ]


def _sheet(
    title: str,
    groups: Groups,
    column_names: Sequence[str] = (),
    bars: Sequence[tuple[UInt8[np.ndarray, "256 3"], str, float, float]] = (),
) -> UInt8[np.ndarray, "y x 3"]:
    """Lays captioned images out on a page: title, groups in rows, color bars."""
    groups = [group for group in groups if group[1]]
    cell_height, cell_width, _ = groups[0][1][0][1].shape
    limit = max(1, (MAX_SHEET_WIDTH - 2 * _MARGIN) // (cell_width + _GUTTER))
    first = len(groups[0][1])
    columns = math.ceil(first / math.ceil(first / limit))
    step = cell_height + _CAPTION + _GUTTER
    heading_height = _HEADING + _GUTTER + (_CAPTION + 8 if column_names else 0)
    page_width = 2 * _MARGIN + columns * (cell_width + _GUTTER) - _GUTTER
    page_height = 2 * _MARGIN + _TITLE + _GUTTER + (3 * _CAPTION + 24 if bars else 0)
    for heading, cells in groups:
        page_height += heading_height if heading else 0
        page_height += math.ceil(len(cells) / columns) * step + _GUTTER
    page = Image.new("RGB", (page_width, page_height), _PAGE)
    draw = ImageDraw.Draw(page)
    y = _MARGIN
    _write(draw, (_MARGIN, y), title, _TITLE, _INK)
    y += _TITLE + _GUTTER
    for heading, cells in groups:
        if heading:
            _write(draw, (_MARGIN, y), heading, _HEADING, _INK)
            for i, name in enumerate([*column_names] * min(columns, len(cells))):
                cell, tile = divmod(i, len(column_names))
                x = _MARGIN + cell * (cell_width + _GUTTER)
                x += tile * (cell_width + _SEAM) // len(column_names)
                _write(draw, (x, y + _HEADING + 10), name, _CAPTION, _INK)
            y += heading_height
        for i, (caption, image) in enumerate(cells):
            x = _MARGIN + (i % columns) * (cell_width + _GUTTER)
            top = y + (i // columns) * step
            _write(draw, (x, top), caption, _CAPTION, _FAINT)
            page.paste(Image.fromarray(image), (x, top + _CAPTION + 4))
        y += math.ceil(len(cells) / columns) * step + _GUTTER
    for i, bar in enumerate(bars):
        _draw_bar(page, (_MARGIN + i * 360, y + 4), *bar)
    return np.asarray(page)


def _draw_bar(
    page: Image.Image,
    corner: tuple[int, int],
    colors: UInt8[np.ndarray, "256 3"],
    name: str,
    low: float,
    high: float,
) -> None:
    """A color bar of 300 px with its name above and numbers below."""
    x, y = corner
    draw = ImageDraw.Draw(page)
    _write(draw, (x, y), name, _CAPTION, _INK)
    ramp = _colored(np.linspace(0, 1, 300)[None].repeat(12, axis=0), colors)
    page.paste(Image.fromarray(ramp), (x, y + _CAPTION + 6))
    for share in (0.0, 0.5, 1.0):
        sign = ">= " if share == 1 else "<= " if share == 0 and low else ""
        text = f"{sign}{low + share * (high - low):.3g}"
        anchor = {0.0: "la", 0.5: "ma", 1.0: "ra"}[share]
        place = (x + int(300 * share), y + _CAPTION + 22)
        _write(draw, place, text, _CAPTION - 2, _FAINT, anchor)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    height: int,
    color: tuple[int, int, int],
    anchor: str = "la",
) -> None:
    font = ImageFont.load_default(round(0.9 * height))
    draw.text(place, text, color, font, anchor=anchor)


def _row(images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "y x 3"]:
    """Images next to each other; small ones are magnified by an integer factor."""
    factor = math.ceil(MIN_TILE / images[0].shape[0])
    tiles = [x.repeat(factor, axis=0).repeat(factor, axis=1) for x in images]
    seam = np.full((tiles[0].shape[0], _SEAM, 3), _PAGE, np.uint8)
    parts = [part for tile in tiles for part in (seam, tile)][1:]
    return np.concatenate(parts, axis=1)


def _by_side(
    cells: list[tuple[str, UInt8[np.ndarray, "h w 3"]]], num_inputs: int
) -> Groups:
    inputs, held_out = cells[:num_inputs], cells[num_inputs:]
    return [
        (f"{len(inputs)} input views", inputs),
        (f"{len(held_out)} held-out views, never given as input", held_out),
    ]


def _caption(label: str, psnr_fg: float) -> str:
    text = "no foreground" if math.isnan(psnr_fg) else f"psnr_fg {psnr_fg:.1f} dB"
    return f"{label}   {text}"


def _colored(
    values: Float[np.ndarray, "*b"], colors: UInt8[np.ndarray, "256 3"]
) -> UInt8[np.ndarray, "*b 3"]:
    """[0, 1] to colors; values outside get the colors of the ends."""
    return colors[np.clip(256 * np.nan_to_num(values), 0, 255).astype(np.uint8)]
