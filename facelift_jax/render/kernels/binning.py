"""Kernels that pack splats into records and bin them by tile."""

import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Float, Int, UInt

from facelift_jax.geometry.numerics import Array
from facelift_jax.render.batching import shape_like
from facelift_jax.render.kernels.launch import RECORD, Sizes, launch
from facelift_jax.render.splats import Splats

_LOG2_E = math.log2(math.e)
_RECORDS_PER_PROGRAM = 128  # four warps
_GAUSSIANS_PER_PROGRAM, _TILES_PER_STEP = 32, 8  # of `emit_entries`
_BOUNDS_PER_PROGRAM = 128  # of `list_starts`


def pack_records(sizes: Sizes, splats: Splats) -> Float[Array, "r 16"]:
    """Records of all splats [i n ...]."""
    r = sizes.num_records
    means2d, conics, colors, radii = (
        x.reshape(r * x.shape[-1])
        for x in (splats.means2d, splats.conics, splats.colors, splats.radii)
    )
    opacities, depths, levels = (
        x.reshape(r) for x in (splats.opacities, splats.depths, splats.levels)
    )
    return launch(
        _pack_kernel,
        pl.cdiv(r, _RECORDS_PER_PROGRAM),
        shape_like((r, RECORD), jnp.float32, means2d),
        "splat_pack",
        sizes,
        num_warps=4,
    )(means2d, conics, opacities, colors, depths, levels, radii)


def count_tiles(
    sizes: Sizes,
    records: Float[Array, "r 16"],
    order: Int[Array, "r"],
    table: Int[Array, "corners"],
    first: Int[Array, ""],
) -> Int[Array, "r"]:
    """Number of open tiles in the rectangle of each depth rank; 0 before `first`.

    `table` holds the number of open tiles above and left of each grid corner, per image
    (a summed-area table).
    """
    return launch(
        _count_kernel,
        pl.cdiv(sizes.num_records, _RECORDS_PER_PROGRAM),
        shape_like((sizes.num_records,), jnp.int32, records),
        "splat_count",
        sizes,
        num_warps=4,
    )(records, order, table, first[None])


def emit_entries(
    sizes: Sizes,
    records: Float[Array, "r 16"],
    order: Int[Array, "r"],
    is_open: Int[Array, "tiles"],
    counts: Int[Array, "r"],
    starts: Int[Array, "r"],
) -> tuple[Int[Array, "m"], Int[Array, "m"]]:
    """(tile, record) of every entry, Gaussian by Gaussian in depth order.

    The entries of rank i start at starts[i]: one per open tile of its rectangle, or
    none if counts[i] is 0. Entries whose tile the ellipse does not intersect get the
    tile `sizes.num_tiles`. Unused slots are not written.
    """
    shape = shape_like((sizes.capacity,), jnp.int32, records)
    return launch(
        _emit_kernel,
        pl.cdiv(sizes.num_records, _GAUSSIANS_PER_PROGRAM),
        [shape, shape],
        "splat_emit",
        sizes,
    )(records, order, is_open, counts, starts)


def list_starts(sizes: Sizes, tiles: UInt[Array, "m"]) -> Int[Array, "bounds"]:
    """Start of each tile's list in sorted `tiles`, and the end of the last list."""
    num_bounds = sizes.num_tiles + 1
    return launch(
        _starts_kernel,
        pl.cdiv(num_bounds, _BOUNDS_PER_PROGRAM),
        shape_like((num_bounds,), jnp.int32, tiles),
        "splat_starts",
        sizes,
    )(tiles)


def _pack_kernel(
    sizes,
    means2d_ref,
    conics_ref,
    opacities_ref,
    colors_ref,
    depths_ref,
    levels_ref,
    radii_ref,
    records_ref,
):
    grid, size = sizes.grid, sizes.grid.tile_size
    record = pl.program_id(0) * _RECORDS_PER_PROGRAM + lax.iota(
        jnp.int32, _RECORDS_PER_PROGRAM
    )
    is_record = record < sizes.num_records

    def field(ref, width=1, j=0):
        return plt.load(ref.at[record * width + j], mask=is_record, other=0.0)

    opacity = field(opacities_ref)

    def span(axis, pixels):
        """First tile and number of tiles on an axis; see `tiling.tile_rectangles`."""
        center, radius = field(means2d_ref, 2, axis), field(radii_ref, 2, axis)
        first = jnp.clip(jnp.ceil(center - radius - 0.5), 0.0, float(pixels))
        last = jnp.clip(jnp.floor(center + radius - 0.5) + 1, 0.0, float(pixels))
        is_inside = (last > first) & (opacity > 0)
        first, last = first.astype(jnp.int32), last.astype(jnp.int32)
        begin = first // size
        number = jnp.where(is_inside, (last + size - 1) // size - begin, 0)
        return begin.astype(jnp.float32), number.astype(jnp.float32)

    (x0, columns), (y0, rows) = span(0, grid.width), span(1, grid.height)
    scales = (-0.5 * _LOG2_E, -_LOG2_E, -0.5 * _LOG2_E)
    fields = [
        *(field(means2d_ref, 2, j) for j in range(2)),
        *(field(conics_ref, 3, j) * scale for j, scale in enumerate(scales)),
        opacity,
        *(field(colors_ref, 3, j) for j in range(3)),
        field(depths_ref),
        field(levels_ref) * _LOG2_E,
        *(x0, y0, columns, rows),
    ]
    which = lax.iota(jnp.int32, RECORD)[None]
    out = jnp.zeros((_RECORDS_PER_PROGRAM, RECORD), jnp.float32)
    for j, values in enumerate(fields):
        out = jnp.where(which == j, values[:, None], out)
    index, which = (jnp.broadcast_to(x, out.shape) for x in (record[:, None], which))
    plt.store(records_ref.at[index, which], out, mask=index < sizes.num_records)


def _count_kernel(sizes, records_ref, order_ref, table_ref, first_ref, counts_ref):
    grid = sizes.grid
    rank = pl.program_id(0) * _RECORDS_PER_PROGRAM + lax.iota(
        jnp.int32, _RECORDS_PER_PROGRAM
    )
    is_rank = rank < sizes.num_records
    is_used = is_rank & (rank >= first_ref[0])
    record = plt.load(order_ref.at[rank], mask=is_used, other=0)

    def field(j):
        value = plt.load(records_ref.at[record, j], mask=is_used, other=0.0)
        return value.astype(jnp.int32)

    x0, y0, columns, rows = (field(j) for j in range(11, 15))
    width = grid.columns + 1
    table = (record // sizes.n) * (width * (grid.rows + 1))
    is_used = is_used & (columns * rows > 0)

    def corner(x, y):
        return plt.load(table_ref.at[table + y * width + x], mask=is_used, other=0)

    x1, y1 = x0 + columns, y0 + rows
    count = corner(x1, y1) - corner(x1, y0) - corner(x0, y1) + corner(x0, y0)
    plt.store(counts_ref.at[rank], count, mask=is_rank)


def _max_exponent(ellipse, column, row, size):
    """Largest exponent over the rectangle of a tile's pixel centers.

    The exponent is concave here. See `tiling.intersects_tile`, which minimizes its
    negative.
    """
    u, v, a, b, c = ellipse
    left = (column * size).astype(jnp.float32) + 0.5 - u
    top = (row * size).astype(jnp.float32) + 0.5 - v
    right, bottom = left + (size - 1), top + (size - 1)
    side_x, side_y = jnp.clip(0.0, left, right), jnp.clip(0.0, top, bottom)

    def power(dx, dy):
        return dx * (a * dx + b * dy) + c * dy * dy

    vertical = power(side_x, jnp.clip(-b * side_x / (2 * c), top, bottom))
    horizontal = power(jnp.clip(-b * side_y / (2 * a), left, right), side_y)
    return jnp.maximum(vertical, horizontal)


def _emit_kernel(
    sizes,
    records_ref,
    order_ref,
    open_ref,
    counts_ref,
    starts_ref,
    tiles_ref,
    entries_ref,
):
    grid = sizes.grid
    rank = pl.program_id(0) * _GAUSSIANS_PER_PROGRAM + lax.iota(
        jnp.int32, _GAUSSIANS_PER_PROGRAM
    )
    count = plt.load(counts_ref.at[rank], mask=rank < sizes.num_records, other=0)
    is_used = count > 0
    start = plt.load(starts_ref.at[rank], mask=is_used, other=0)[:, None]
    record = plt.load(order_ref.at[rank], mask=is_used, other=0)[:, None]

    def field(j):
        return plt.load(records_ref.at[record, j], mask=is_used[:, None], other=0.0)

    ellipse, level = [field(j) for j in range(5)], field(10)
    x0, y0, columns, rows = (field(j).astype(jnp.int32) for j in range(11, 15))
    area = columns * rows
    reciprocal = 1 / jnp.maximum(columns, 1).astype(jnp.float32)
    first_tile = (record // sizes.n) * grid.num_tiles
    lanes = lax.iota(jnp.int32, _TILES_PER_STEP)[None]
    entry = jnp.broadcast_to(record, (_GAUSSIANS_PER_PROGRAM, _TILES_PER_STEP))

    def body(chunk, done):
        step = chunk * _TILES_PER_STEP + lanes
        # Exact: the quotient is half a step away from integers, far more than rounding.
        row = ((step.astype(jnp.float32) + 0.5) * reciprocal).astype(jnp.int32)
        column, row = x0 + step - row * columns, y0 + row
        tile = first_tile + row * grid.columns + column
        is_open = plt.load(open_ref.at[tile], mask=step < area, other=0)
        before = jnp.cumsum(is_open, axis=1, dtype=jnp.int32) - is_open
        # Interpret mode writes old values back in masked lanes; those point outside.
        place = jnp.where(is_open > 0, start + done[:, None] + before, sizes.capacity)
        is_missed = _max_exponent(ellipse, column, row, grid.tile_size) < -level
        tile = jnp.where(is_missed, sizes.num_tiles, tile)
        plt.store(tiles_ref.at[place], tile, mask=is_open > 0)
        plt.store(entries_ref.at[place], entry, mask=is_open > 0)
        return done + jnp.sum(is_open, axis=1, dtype=jnp.int32)

    num_chunks = (jnp.max(area) + _TILES_PER_STEP - 1) // _TILES_PER_STEP
    zero = jnp.zeros((_GAUSSIANS_PER_PROGRAM,), jnp.int32)
    lax.fori_loop(0, num_chunks, body, zero)


def _starts_kernel(sizes, tiles_ref, starts_ref):
    bound = pl.program_id(0) * _BOUNDS_PER_PROGRAM + lax.iota(
        jnp.int32, _BOUNDS_PER_PROGRAM
    )
    low = jnp.zeros((_BOUNDS_PER_PROGRAM,), jnp.int32)
    high = jnp.full((_BOUNDS_PER_PROGRAM,), sizes.capacity, jnp.int32)

    def halve(_, carry):
        low, high = carry
        middle = (low + high) // 2
        has_work = low < high
        tile = plt.load(tiles_ref.at[middle], mask=has_work, other=0)
        is_before = tile.astype(jnp.int32) < bound
        low = jnp.where(has_work & is_before, middle + 1, low)
        return low, jnp.where(has_work & ~is_before, middle, high)

    low, _ = lax.fori_loop(0, sizes.capacity.bit_length(), halve, (low, high))
    plt.store(starts_ref.at[bound], low, mask=bound <= sizes.num_tiles)
