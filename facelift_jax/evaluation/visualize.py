"""Everything a person looks at: sheets, error and depth maps, curves, PNG and mp4."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from facelift_jax.geometry.numerics import Array, normalize
from facelift_jax.geometry.rigid import rig_up
from facelift_jax.io.image_files import to_uint8
from facelift_jax.structs import Cameras, RenderOutput, Views

ERROR_SCALE = 0.3  # mean absolute colour error at the bright end of an error map
MIN_TILE = 128  # px; smaller pictures are magnified by whole pixels
MAX_SHEET_WIDTH = 2200  # px; cells wrap beyond

_PAGE, _INK, _FAINT, _NOWHERE = (243, 243, 241), (35, 35, 38), (110, 110, 114), 205
_MARGIN, _GUTTER, _SEAM = 20, 14, 2  # px: around the page, between cells, inside one
_TITLE, _HEADING, _CAPTION = 24, 20, 15  # px: text heights
_ERROR_COLORS, _DEPTH_COLORS = "magma", "viridis_r"

Groups = Sequence[tuple[str, Sequence[tuple[str, UInt8[np.ndarray, "h w 3"]]]]]
"""(heading, [(caption, picture), ...]) of a sheet; all pictures of one size."""


def supervision_sheet(
    targets: Float[Array, "t h w 3"],
    predictions: Float[Array, "t h w 3"],
    num_inputs: int,
    labels: Sequence[str],
    psnr_fg: Float[Array, "t"],
    title: str,
) -> UInt8[np.ndarray, "y x 3"]:
    """Ground truth | prediction of every view, inputs and held-out views apart.

    Both sides must be on one background: give the targets' pictures as composited and
    the rendering on that same background.
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
    """The pictures that the network is given."""
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
    """Pictures, error, opacity and depth of views [t], a row a view.

    True and predicted depth share one scale over the sheet; its numbers, in world
    units, and the error's stand under the columns.
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
        (_ERROR_COLORS, "error, mean over colours", 0.0, ERROR_SCALE),
        (_DEPTH_COLORS, "camera-z depth, world units", low, high),
    ]
    return _sheet(title, _by_side(cells, num_inputs), list(columns), bars)


def error_map(
    targets: Float[Array, "*b h w 3"], predictions: Float[Array, "*b h w 3"]
) -> UInt8[np.ndarray, "*b h w 3"]:
    """Absolute error, mean over channels, from black (0) to bright (`ERROR_SCALE`)."""
    error = np.abs(np.clip(predictions, 0, 1) - np.asarray(targets)).mean(-1)
    return _colored(error / ERROR_SCALE, _ERROR_COLORS)


def depth_map(
    depths: Float[Array, "*b h w 1"], is_known: Array, low: float, high: float
) -> UInt8[np.ndarray, "*b h w 3"]:
    """Depth as colour, bright `low` (near) to dark `high`; grey where not known."""
    scaled = (np.asarray(depths)[..., 0] - low) / (high - low)
    return np.where(is_known, _colored(scaled, _DEPTH_COLORS), np.uint8(_NOWHERE))


def depth_range(targets: Views, render: RenderOutput) -> tuple[float, float]:
    """World-unit ends of a colour scale: 1 % and 99 % of true depth on the object.

    Without true depths, of the predicted ones where alpha > .5.
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
    """Index, azimuth and elevation of each of the cameras [t], in degrees.

    Seen from the world origin; azimuth counts from view 0 about the rig's upright axis.
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
    bars: Sequence[tuple[str, str, float, float]] = (),
) -> UInt8[np.ndarray, "y x 3"]:
    """Lays captioned pictures out on a page: title, groups in rows, colour bars."""
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
        for i, (caption, picture) in enumerate(cells):
            x = _MARGIN + (i % columns) * (cell_width + _GUTTER)
            top = y + (i // columns) * step
            _write(draw, (x, top), caption, _CAPTION, _FAINT)
            page.paste(Image.fromarray(picture), (x, top + _CAPTION + 4))
        y += math.ceil(len(cells) / columns) * step + _GUTTER
    for i, bar in enumerate(bars):
        _draw_bar(page, (_MARGIN + i * 360, y + 4), *bar)
    return np.asarray(page)


def _draw_bar(
    page: Image.Image,
    corner: tuple[int, int],
    colors: str,
    name: str,
    low: float,
    high: float,
) -> None:
    """A colour bar of 300 px with its name above and its numbers below."""
    x, y = corner
    draw = ImageDraw.Draw(page)
    _write(draw, (x, y), name, _CAPTION, _INK)
    ramp = _colored(np.linspace(0, 1, 300)[None].repeat(12, axis=0), colors)
    page.paste(Image.fromarray(ramp), (x, y + _CAPTION + 6))
    for share in (0.0, 0.5, 1.0):
        sign = "≥ " if share == 1 else "≤ " if share == 0 and low else ""
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
    font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    size = round(0.8 * height)
    draw.text(place, text, color, ImageFont.truetype(font, size), anchor=anchor)


def _row(pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "y x 3"]:
    """Pictures side by side, small ones magnified by whole pixels."""
    factor = math.ceil(MIN_TILE / pictures[0].shape[0])
    tiles = [p.repeat(factor, axis=0).repeat(factor, axis=1) for p in pictures]
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
    figure = "no foreground" if math.isnan(psnr_fg) else f"{psnr_fg:.1f} dB fg"
    return f"{label}   {figure}"


def _colored(values: Float[np.ndarray, "*b"], colors: str) -> UInt8[np.ndarray, "*b 3"]:
    return matplotlib.colormaps[colors](np.clip(values, 0, 1), bytes=True)[..., :3]
