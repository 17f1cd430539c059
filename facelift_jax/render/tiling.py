"""Binning: which Gaussians reach which tile, in depth order and in bounded memory.

All functions take the splats of one image ([n ...], no leading axis); callers `vmap`
over images. A list entry is one (tile, Gaussian) pair of a Gaussian's bounding
rectangle. Entries are emitted Gaussian by Gaussian in depth order, so those of one
Gaussian are neighbors. A stable sort by tile then keeps the depth order within each
tile. Nothing here is differentiated.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Int

from facelift_jax.geometry.numerics import Array
from facelift_jax.render.splats import Splats


@dataclasses.dataclass(frozen=True)
class Grid:
    """Square tiles that cover an image; the last row and column may extend past it."""

    width: int
    height: int
    tile_size: int

    @property
    def columns(self) -> int:
        """Number of tile columns."""
        return -(-self.width // self.tile_size)

    @property
    def rows(self) -> int:
        """Number of tile rows."""
        return -(-self.height // self.tile_size)

    @property
    def num_tiles(self) -> int:
        """Number of tiles; tile (row, column) has index row * columns + column."""
        return self.rows * self.columns


class DepthSlice(NamedTuple):
    """List entries of consecutive Gaussians in depth order.

    Attributes:
      gaussians: [window] indices of the Gaussians considered, near to far.
      counts: [window] entries of each Gaussian, 0 where it is not taken.
      owners: [capacity] window position of each entry's Gaussian, in emission order.
      order: [capacity] entries sorted by tile, near to far within a tile.
      tiles: [capacity] tile of each entry in that order; num_tiles for unused slots.
      starts: [num_tiles + 1] first position of each tile in `order`, then the end.
      num_taken: [] Gaussians taken; the next slice starts after them.
      num_remaining: [] entries of the window's Gaussians not taken; saturates at 2^30.
    """

    gaussians: Int[Array, "*i window"]
    counts: Int[Array, "*i window"]
    owners: Int[Array, "*i capacity"]
    order: Int[Array, "*i capacity"]
    tiles: Int[Array, "*i capacity"]
    starts: Int[Array, "*i bounds"]
    num_taken: Int[Array, "*i"]
    num_remaining: Int[Array, "*i"]


def depth_order(splats: Splats) -> Int[Array, "n"]:
    """Indices of Gaussians, near to far, then the culled ones; ties by lower index.

    Positive floats sort like their bits; GPUs sort unsigned 32-bit keys fastest.
    """
    bits = lax.bitcast_convert_type(splats.depths, jnp.uint32)
    keys = jnp.where(splats.is_visible, bits, jnp.uint32(0xFFFFFFFF))
    indices = jnp.arange(keys.shape[0], dtype=jnp.int32)
    return lax.sort((keys, indices), num_keys=1, is_stable=True)[1]


def tile_rectangles(splats: Splats, grid: Grid) -> Int[Array, "n 4"]:
    """Tiles (x0, y0, x1, y1), ends exclusive, with pixel centers inside the box."""
    sides = []
    for axis, size in enumerate((grid.width, grid.height)):
        center, radius = splats.means2d[:, axis], splats.radii[:, axis]
        first = jnp.clip(jnp.ceil(center - radius - 0.5), 0, size)
        last = jnp.clip(jnp.floor(center + radius - 0.5) + 1, 0, size)
        is_empty = (last <= first) | ~splats.is_visible
        last = jnp.where(is_empty, 0, last).astype(jnp.int32)
        first = jnp.where(is_empty, 0, first).astype(jnp.int32)
        sides.append((first // grid.tile_size, -(-last // grid.tile_size)))
    (x0, x1), (y0, y1) = sides
    is_empty = (x1 <= x0) | (y1 <= y0)
    corners = jnp.stack([x0, y0, x1, y1], axis=-1)
    return jnp.where(is_empty[:, None], 0, corners)


def intersects_tile(
    splats: Splats, columns: Int[Array, "m"], rows: Int[Array, "m"], grid: Grid
) -> Bool[Array, "m"]:
    """Whether each splat's ellipse reaches the rectangle of its tile's pixel centers.

    The exponent is convex. Its minimum over the rectangle is at the mean if the mean is
    inside, otherwise on the nearer vertical or the nearer horizontal side, where it has
    a closed form. No intersecting pair is ever rejected.
    """
    size = grid.tile_size
    dtype = splats.means2d.dtype
    A, B, C = jnp.moveaxis(splats.conics, -1, 0)
    u, v = jnp.moveaxis(splats.means2d, -1, 0)
    left, top = columns.astype(dtype) * size + 0.5, rows.astype(dtype) * size + 0.5
    x0, x1, y0, y1 = left - u, left + (size - 1) - u, top - v, top + (size - 1) - v
    zero = jnp.zeros_like(u)
    side_x, side_y = jnp.clip(zero, x0, x1), jnp.clip(zero, y0, y1)

    def exponent(dx, dy):
        return 0.5 * (A * dx * dx + C * dy * dy) + B * dx * dy

    on_vertical = exponent(side_x, jnp.clip(-B * side_x / C, y0, y1))
    on_horizontal = exponent(jnp.clip(-B * side_y / A, x0, x1), side_y)
    return ~(jnp.minimum(on_vertical, on_horizontal) > splats.levels)


def drop_farthest(
    splats: Splats, grid: Grid, max_entries: int
) -> tuple[Splats, Int[Array, ""]]:
    """Keeps the nearest Gaussians whose entries fit; also counts the dropped entries.

    A Gaussian has one entry per tile of its rectangle. From near to far, the first
    Gaussian that does not fit and all Gaussians behind it are dropped. The count
    saturates at 2^30.
    """
    x0, y0, x1, y1 = jnp.moveaxis(tile_rectangles(splats, grid), -1, 0)
    order = depth_order(splats)
    ends = _running_totals(((x1 - x0) * (y1 - y0))[order])
    fits = ends <= max_entries
    num_kept = jnp.max(jnp.where(fits, ends, 0), initial=0)
    is_visible = splats.is_visible & jnp.zeros_like(fits).at[order].set(fits)
    kept_splats = splats._replace(
        opacities=jnp.where(is_visible, splats.opacities, 0), is_visible=is_visible
    )
    return kept_splats, ends[-1] - num_kept


def next_slice(
    splats: Splats,
    rectangles: Int[Array, "n 4"],
    order: Int[Array, "n"],
    first: Int[Array, ""],
    is_open: Bool[Array, "tiles"],
    grid: Grid,
    window: int,
    capacity: int,
) -> DepthSlice:
    """Entries of as many Gaussians as fit, near to far, from depth rank `first` on.

    Args:
      splats: Gaussians of one image.
      rectangles: result of `tile_rectangles`.
      order: result of `depth_order`.
      first: depth rank of the first Gaussian not yet drawn.
      is_open: tiles with a pixel that has not ended; other tiles get no entries.
      grid: tiles of the image.
      window: number of Gaussians to consider.
      capacity: largest number of entries; if it is at least grid.num_tiles, at least
        one Gaussian fits.
    """
    n = order.shape[0]
    ranks = first + jnp.arange(window, dtype=jnp.int32)
    gaussians = order[jnp.minimum(ranks, n - 1)]
    corners = rectangles[gaussians]
    counts = _open_areas(corners, is_open.reshape(grid.rows, grid.columns))
    counts = jnp.where(ranks < n, counts, 0)
    ends = _running_totals(counts)
    is_taken = ends <= capacity
    counts = jnp.where(is_taken, counts, 0)
    total = jnp.sum(counts, dtype=jnp.int32)

    slots = jnp.arange(capacity, dtype=jnp.int32)
    owners = _owners(counts, ends, capacity)
    x0, y0, x1, _ = jnp.moveaxis(corners[owners], -1, 0)
    offset = slots - (ends - counts)[owners]
    columns = jnp.maximum(x1 - x0, 1)
    row = offset // columns
    column = x0 + offset - row * columns
    row = y0 + row
    tiles = row * grid.columns + column
    entry_splats = Splats(*(field[gaussians[owners]] for field in splats))
    is_entry = (slots < total) & intersects_tile(entry_splats, column, row, grid)
    is_entry &= is_open[jnp.clip(tiles, 0, grid.num_tiles - 1)]
    tiles = jnp.where(is_entry, tiles, grid.num_tiles).astype(jnp.int32)
    sorted_tiles, sorted_slots = _sort_by_tile(tiles, grid.num_tiles)
    bounds = jnp.arange(grid.num_tiles + 1, dtype=jnp.int32)
    return DepthSlice(
        gaussians=gaussians,
        counts=counts,
        owners=owners,
        order=sorted_slots,
        tiles=sorted_tiles,
        starts=jnp.searchsorted(sorted_tiles, bounds).astype(jnp.int32),
        num_taken=jnp.sum(is_taken, dtype=jnp.int32),
        num_remaining=ends[-1] - total,
    )


def _open_areas(corners, is_open):
    """Tiles of each rectangle, or 0 if none of them is open (summed-area table)."""
    table = is_open.astype(jnp.int32)
    for axis in (0, 1):
        table = jnp.cumsum(table, axis=axis, dtype=jnp.int32)
    table = jnp.pad(table, ((1, 0), (1, 0)))
    x0, y0, x1, y1 = jnp.moveaxis(corners, -1, 0)
    num_open = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
    return jnp.where(num_open > 0, (x1 - x0) * (y1 - y0), 0)


def _running_totals(counts):
    """Inclusive sums that saturate at 2^30 - 1 instead of overflowing int32."""
    return lax.associative_scan(lambda a, b: jnp.minimum(a + b, 2**30 - 1), counts)


def _owners(counts, ends, capacity):
    """Window position of each slot's Gaussian: mark starts, then a running maximum."""
    starts = jnp.where(counts > 0, ends - counts, capacity)
    marks = jnp.zeros(capacity, jnp.int32)
    steps = jnp.arange(counts.shape[0], dtype=jnp.int32)
    marks = marks.at[starts].max(steps, mode="drop")
    return lax.cummax(marks)


def _sort_by_tile(tiles, num_tiles):
    """(tiles, slots) sorted by tile, then slot.

    Tile and slot share one key if 32 bits hold both: a CPU sorts single keys five
    times as fast as pairs.
    """
    capacity = tiles.shape[0]
    slots = jnp.arange(capacity, dtype=jnp.int32)
    if (num_tiles + 1) * capacity > 2**32:
        return lax.sort((tiles, slots), num_keys=1, is_stable=True)
    stride = jnp.uint32(capacity)
    keys = lax.sort(tiles.astype(jnp.uint32) * stride + slots.astype(jnp.uint32))
    return (keys // stride).astype(jnp.int32), (keys % stride).astype(jnp.int32)
