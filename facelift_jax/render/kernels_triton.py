"""GPU kernels of the `pallas` backend: the only file that uses Pallas' Triton lowering.

All kernels see whole arrays. R = pictures x Gaussians, a Gaussian seen from one camera
being a record; M = entries of one depth slice; a tile index runs over all pictures.
Every sum has a fixed order and every address one writer: the same bits every time.

Records are [R, RECORD] float32, 64 bytes each: u, v, the exponent's coefficients
(-A/2, -B, -C/2) log2(e), opacity, red, green, blue, depth, the exponent's level (base
2), then the rectangle of tiles: column, row, columns, rows; one is spare.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Float, Int, UInt

from facelift_jax.numerics import Array
from facelift_jax.render.constants import ALPHA_MIN, TRANSMITTANCE_MIN
from facelift_jax.render.manual_axes import shape_like
from facelift_jax.render.records import Splats
from facelift_jax.render.tiling import Grid

RECORD = 16
ROW = 12  # floats a gradient row takes; ten are used, 48 bytes keep rows aligned
NUM_SUMS = 10  # moments 1, x, y, xx, xy, yy of d_exponent; red, green, blue, depth
LOG2_E = math.log2(math.e)

_RECORDS = 128  # packed or counted together, by four warps
_GAUSSIANS, _TILES = 32, 8  # looked at together when listing
_BOUNDS = 128  # tiles whose lists' starts one program finds
_SUMMED = 16  # Gaussians whose rows one program adds up
_LANES = 32
_UNROLL = 8  # records a forward step blends
_UNROLL_BACKWARD = 2
_PREFETCH, _SKIP, _ASM = True, True, True


class Sizes(NamedTuple):
    """Static sizes: tiles of one picture, Gaussians of one, pictures, entries."""

    grid: Grid
    n: int
    pictures: int
    capacity: int
    alpha_max: float
    interpret: bool

    @property
    def num_records(self) -> int:
        """R."""
        return self.pictures * self.n

    @property
    def num_tiles(self) -> int:
        """Tiles of all pictures."""
        return self.pictures * self.grid.num_tiles


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
    return _call(
        functools.partial(_pack_kernel, sizes),
        pl.cdiv(r, _RECORDS),
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
    """Open tiles in the rectangle of each depth rank; 0 before rank `first`.

    `table` holds, for each picture, the number of open tiles above and left of each
    corner of the grid.
    """
    return _call(
        functools.partial(_count_kernel, sizes),
        pl.cdiv(sizes.num_records, _RECORDS),
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

    Entries of rank i lie at starts[i] and behind: one for each open tile of its
    rectangle if counts[i] is not 0. Those of tiles that its ellipse misses have tile
    `sizes.num_tiles`. Slots of no Gaussian stay unwritten.
    """
    shape = shape_like((sizes.capacity,), jnp.int32, records)
    return _call(
        functools.partial(_emit_kernel, sizes),
        pl.cdiv(sizes.num_records, _GAUSSIANS),
        [shape, shape],
        "splat_emit",
        sizes,
    )(records, order, is_open, counts, starts)


def list_starts(sizes: Sizes, tiles: UInt[Array, "m"]) -> Int[Array, "bounds"]:
    """Where each tile's list starts among sorted `tiles`; the end of the last, too."""
    num_bounds = sizes.num_tiles + 1
    return _call(
        functools.partial(_starts_kernel, sizes, num_bounds),
        pl.cdiv(num_bounds, _BOUNDS),
        shape_like((num_bounds,), jnp.int32, tiles),
        "splat_starts",
        sizes,
    )(tiles)


def blend(
    sizes: Sizes,
    records: Float[Array, "r 16"],
    entries: Int[Array, "m"],
    starts: Int[Array, "tiles"],
    list_ends: Int[Array, "tiles"],
    state: Float[Array, "5 i h w"],
) -> tuple[Float[Array, "5 i h w"], Int[Array, "tiles"]]:
    """Draws one slice over `state` (T; red, green, blue, depth); tiles still open."""
    return _call(
        functools.partial(_blend_kernel, sizes),
        sizes.num_tiles,
        [
            shape_like(state.shape, jnp.float32, state),
            shape_like((sizes.num_tiles,), jnp.int32, state),
        ],
        "splat_blend",
        sizes,
        aliases={4: 0},
    )(records, entries, starts, list_ends, state)


def differentiate(
    sizes: Sizes,
    records: Float[Array, "r 16"],
    entries: Int[Array, "m"],
    slots: Int[Array, "m"],
    starts: Int[Array, "tiles"],
    list_ends: Int[Array, "tiles"],
    state: Float[Array, "2 i h w"],
    d_pixels: Float[Array, "4 i h w"],
) -> tuple[Float[Array, "2 i h w"], Int[Array, "tiles"], Float[Array, "m*12"], Array]:
    """Gradient rows of one slice, each at its entry's slot; T and rest behind it.

    Returns (state, open tiles, rows, ends): rows of a tile's entries are written for
    slots before its end.
    """
    flags = shape_like((sizes.num_tiles,), jnp.int32, state)
    return _call(
        functools.partial(_differentiate_kernel, sizes),
        sizes.num_tiles,
        [
            shape_like(state.shape, jnp.float32, state),
            flags,
            shape_like((sizes.capacity * ROW,), jnp.float32, state),
            flags,
        ],
        "splat_differentiate",
        sizes,
        aliases={5: 0},
    )(records, entries, slots, starts, list_ends, state, d_pixels)


def sum_rows(
    sizes: Sizes,
    rows: Float[Array, "m*12"],
    ends: Int[Array, "tiles"],
    tiles: Int[Array, "m"],
    order: Int[Array, "r"],
    counts: Int[Array, "r"],
    starts: Int[Array, "r"],
    sums: Float[Array, "r 16"],
) -> Float[Array, "r 16"]:
    """Adds up each listed Gaussian's rows in emission order, into its row of `sums`."""
    return _call(
        functools.partial(_sum_kernel, sizes),
        pl.cdiv(sizes.num_records, _SUMMED),
        shape_like(sums.shape, jnp.float32, sums),
        "splat_sum_rows",
        sizes,
        aliases={6: 0},
    )(rows, ends, tiles, order, counts, starts, sums)


def _call(kernel, num_programs, out_shape, name, sizes, aliases=None, num_warps=1):
    return pl.pallas_call(
        kernel,
        grid=(num_programs,),
        out_shape=out_shape,
        input_output_aliases=aliases or {},
        compiler_params=plt.CompilerParams(num_warps=num_warps, num_stages=1),
        interpret=sizes.interpret,
        name=name,
    )


# Listing


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
    record = pl.program_id(0) * _RECORDS + jnp.arange(_RECORDS)
    is_record = record < sizes.num_records

    def field(ref, width=1, j=0):
        return plt.load(ref.at[record * width + j], mask=is_record, other=0.0)

    opacity = field(opacities_ref)

    def span(axis, pixels):
        """First tile and number of tiles, as `tiling.tile_rectangles`."""
        center, radius = field(means2d_ref, 2, axis), field(radii_ref, 2, axis)
        first = jnp.clip(jnp.ceil(center - radius - 0.5), 0.0, float(pixels))
        last = jnp.clip(jnp.floor(center + radius - 0.5) + 1, 0.0, float(pixels))
        is_there = (last > first) & (opacity > 0)
        first, last = first.astype(jnp.int32), last.astype(jnp.int32)
        begin = first // size
        number = jnp.where(is_there, (last + size - 1) // size - begin, 0)
        return begin.astype(jnp.float32), number.astype(jnp.float32)

    (x0, columns), (y0, rows) = span(0, grid.width), span(1, grid.height)
    scales = (-0.5 * LOG2_E, -LOG2_E, -0.5 * LOG2_E)
    fields = [
        *(field(means2d_ref, 2, j) for j in range(2)),
        *(field(conics_ref, 3, j) * scale for j, scale in enumerate(scales)),
        opacity,
        *(field(colors_ref, 3, j) for j in range(3)),
        field(depths_ref),
        field(levels_ref) * LOG2_E,
        *(x0, y0, columns, rows),
    ]
    which = jnp.arange(RECORD)[None]
    out = jnp.zeros((_RECORDS, RECORD), jnp.float32)
    for j, values in enumerate(fields):
        out = jnp.where(which == j, values[:, None], out)
    index = record[:, None] + 0 * which
    plt.store(
        records_ref.at[index, which + 0 * index], out, mask=index < sizes.num_records
    )


def _count_kernel(sizes, records_ref, order_ref, table_ref, first_ref, counts_ref):
    grid = sizes.grid
    rank = pl.program_id(0) * _RECORDS + jnp.arange(_RECORDS)
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
    grid, size = sizes.grid, sizes.grid.tile_size
    rank = pl.program_id(0) * _GAUSSIANS + jnp.arange(_GAUSSIANS)
    count = plt.load(counts_ref.at[rank], mask=rank < sizes.num_records, other=0)
    is_used = count > 0
    start = plt.load(starts_ref.at[rank], mask=is_used, other=0)[:, None]
    record = plt.load(order_ref.at[rank], mask=is_used, other=0)[:, None]

    def field(j):
        return plt.load(records_ref.at[record, j], mask=is_used[:, None], other=0.0)

    u, v, a, b, c, level = (field(j) for j in (0, 1, 2, 3, 4, 10))
    x0, y0, columns, rows = (field(j).astype(jnp.int32) for j in range(11, 15))
    area = columns * rows
    reciprocal = 1 / jnp.maximum(columns, 1).astype(jnp.float32)
    first_tile = (record // sizes.n) * grid.num_tiles
    lanes = jnp.arange(_TILES)[None]
    entry = jnp.broadcast_to(record, (_GAUSSIANS, _TILES))

    def power(dx, dy):
        return dx * (a * dx + b * dy) + c * dy * dy

    def body(chunk, done):
        step = chunk * _TILES + lanes
        # a float quotient half a step from the borders is exact below 2^22
        row = ((step.astype(jnp.float32) + 0.5) * reciprocal).astype(jnp.int32)
        column, row = x0 + step - row * columns, y0 + row
        # As `tiling.reaches_tile`: the exponent is concave, its maximum over the
        # pixel centres' rectangle lies at the mean or on the nearer sides.
        left = (column * size).astype(jnp.float32) + 0.5 - u
        top = (row * size).astype(jnp.float32) + 0.5 - v
        right, bottom = left + (size - 1), top + (size - 1)
        side_x, side_y = jnp.clip(0.0, left, right), jnp.clip(0.0, top, bottom)
        vertical = power(side_x, jnp.clip(-b * side_x / (2 * c), top, bottom))
        horizontal = power(jnp.clip(-b * side_y / (2 * a), left, right), side_y)
        is_miss = jnp.maximum(vertical, horizontal) < -level
        tile = first_tile + row * grid.columns + column
        is_open = plt.load(open_ref.at[tile], mask=step < area, other=0)
        place = start + done[:, None] + jnp.cumsum(is_open, axis=1) - is_open
        # the interpreter writes old values back in masked lanes: those point outside
        place = jnp.where(is_open > 0, place, sizes.capacity)
        tile = jnp.where(is_miss, sizes.num_tiles, tile)
        plt.store(tiles_ref.at[place], tile, mask=is_open > 0)
        plt.store(entries_ref.at[place], entry, mask=is_open > 0)
        return done + jnp.sum(is_open, axis=1)

    num_chunks = (jnp.max(area) + _TILES - 1) // _TILES
    zero = jnp.zeros((_GAUSSIANS,), jnp.int32)
    lax.fori_loop(0, num_chunks, body, zero)


def _starts_kernel(sizes, num_bounds, tiles_ref, starts_ref):
    bound = pl.program_id(0) * _BOUNDS + jnp.arange(_BOUNDS)
    low = jnp.zeros((_BOUNDS,), jnp.int32)
    high = jnp.full((_BOUNDS,), sizes.capacity, jnp.int32)

    def halve(_, carry):
        low, high = carry
        middle = (low + high) // 2
        is_going = low < high
        tile = plt.load(tiles_ref.at[middle], mask=is_going, other=0)
        is_before = tile.astype(jnp.int32) < bound
        low = jnp.where(is_going & is_before, middle + 1, low)
        return low, jnp.where(is_going & ~is_before, middle, high)

    low, _ = lax.fori_loop(0, sizes.capacity.bit_length(), halve, (low, high))
    plt.store(starts_ref.at[bound], low, mask=bound < num_bounds)


# Blending: one program a tile, its pixels across the lanes of one warp


def _tile_pixels(sizes):
    """Tile of this program, its pixels' picture, row and column, and which exist."""
    grid, size = sizes.grid, sizes.grid.tile_size
    tile = pl.program_id(0)
    picture = tile // grid.num_tiles
    here = tile - picture * grid.num_tiles
    pixel = jnp.arange(size * size)
    x = (here % grid.columns) * size + pixel % size
    y = (here // grid.columns) * size + pixel // size
    return tile, picture, y, x, (x < grid.width) & (y < grid.height)


def _load(records_ref, entries_ref, i, end, number):
    """Ten fields of the next records of a list; opacity 0 past its end."""
    records = []
    for step in range(number):
        index = entries_ref[jnp.clip(i + step, 0, jnp.maximum(end - 1, 0))]
        record = [records_ref[index, j] for j in range(10)]
        record[5] = jnp.where(i + step < end, record[5], 0.0)
        records.append(record)
    return records


def _alpha(sizes, record, x, y):
    """dx, dy, uncapped alpha, and alpha (0 where the record is not seen)."""
    dx, dy = record[0] - x, record[1] - y
    across = _fma(sizes, record[2], dx, record[3] * dy)
    power = _fma(sizes, across, dx, record[4] * dy * dy)
    raw = record[5] * _exp2(sizes, power)
    alpha = jnp.minimum(raw, sizes.alpha_max)
    return dx, dy, raw, jnp.where((alpha >= ALPHA_MIN) & (power <= 0), alpha, 0.0)


def _advance(sizes, transmittance, alpha):
    """Weight of a record and the new T, negative once the pixel has ended."""
    after = _minus_product(sizes, alpha, transmittance, transmittance)
    is_open = after > TRANSMITTANCE_MIN
    weight = jnp.where(is_open, transmittance * alpha, 0.0)
    return weight, jnp.where(is_open, after, -jnp.abs(transmittance))


def _any_positive(values):
    """1 if any value is, else 0; integers are reduced in one instruction."""
    return jnp.max((values > 0).astype(jnp.int32))


def _blend_kernel(
    sizes, records_ref, entries_ref, starts_ref, list_ends_ref, _, state_ref, open_ref
):
    tile, picture, row, column, is_pixel = _tile_pixels(sizes)
    x, y = column.astype(jnp.float32) + 0.5, row.astype(jnp.float32) + 0.5
    start, end = starts_ref[tile], list_ends_ref[tile]

    def pixels(channel):
        return state_ref.at[channel, picture, row, column]

    before = plt.load(pixels(0), mask=is_pixel, other=-1.0)
    sums = [plt.load(pixels(j), mask=is_pixel, other=0.0) for j in range(1, 5)]

    def is_going(carry):
        return (carry[0] < end) & (carry[1] > 0)

    def load(i):
        return _load(records_ref, entries_ref, i, end, _UNROLL)

    def body(carry):
        i, _, transmittance, *sums = carry
        for record in load(i):
            alpha = _alpha(sizes, record, x, y)[-1]
            weight, transmittance = _advance(sizes, transmittance, alpha)
            pairs = zip(record[6:], sums, strict=True)
            sums = [_fma(sizes, weight, color, total) for color, total in pairs]
        return i + _UNROLL, _any_positive(transmittance), transmittance, *sums

    carry = (start, _any_positive(before), before, *sums)
    _, is_open, *state = lax.while_loop(is_going, body, carry)
    for channel, values in enumerate(state):
        plt.store(pixels(channel), values, mask=is_pixel)
    open_ref[tile] = is_open


def _differentiate_kernel(
    sizes,
    records_ref,
    entries_ref,
    slots_ref,
    starts_ref,
    list_ends_ref,
    _,
    d_pixels_ref,
    state_ref,
    open_ref,
    rows_ref,
    ends_ref,
):
    tile, picture, row, column, is_pixel = _tile_pixels(sizes)
    x, y = column.astype(jnp.float32) + 0.5, row.astype(jnp.float32) + 0.5
    start, end = starts_ref[tile], list_ends_ref[tile]

    def pixels(ref, channel):
        return ref.at[channel, picture, row, column]

    before = plt.load(pixels(state_ref, 0), mask=is_pixel, other=-1.0)
    rest = plt.load(pixels(state_ref, 1), mask=is_pixel, other=0.0)
    d_pixels = [
        plt.load(pixels(d_pixels_ref, j), mask=is_pixel, other=0.0) for j in range(4)
    ]

    lanes = _lanes(sizes)

    def load(i):
        records = _load(records_ref, entries_ref, i, end, _UNROLL_BACKWARD)
        slots = [_slot(slots_ref, i + step, end) for step in range(_UNROLL_BACKWARD)]
        return records, slots

    def body(carry):
        # one integer decides: a condition of two crashes the compiler where it stores
        i, _, transmittance, rest, (records, slots) = carry
        if not _PREFETCH:
            records, slots = load(i)
        # stores may alias loads: what comes next is loaded before this is stored
        ahead = load(i + _UNROLL_BACKWARD) if _PREFETCH else (records, slots)
        for step, (record, slot) in enumerate(zip(records, slots, strict=True)):
            dx, dy, raw, alpha = _alpha(sizes, record, x, y)
            weight, after = _advance(sizes, transmittance, alpha)
            value = record[6] * d_pixels[0]
            for color, d_pixel in zip(record[7:], d_pixels[1:], strict=True):
                value = _fma(sizes, color, d_pixel, value)
            rest = _minus_product(sizes, weight, value, rest)
            reciprocal = _reciprocal(sizes, 1 - alpha)
            ahead_of = transmittance * value
            slope = raw * _minus_product(sizes, rest, reciprocal, ahead_of)
            slope = jnp.where((weight > 0) & (raw <= sizes.alpha_max), slope, 0.0)
            transmittance = after

            def total(slope=slope, dx=dx, dy=dy, weight=weight):
                by_x, by_y = slope * dx, slope * dy
                terms = [(slope,), (by_x,), (by_y,), (by_x, dx), (by_x, dy), (by_y, dy)]
                return _sum_pixels(sizes, lanes, terms + [(weight, d) for d in d_pixels])

            if _SKIP:
                is_seen = _any_positive(weight) > 0
                sums, which = lax.cond(is_seen, total, lambda: (0 * x, lanes))
            else:
                sums, which = total()
            is_entry = (i + step < end) & (which < NUM_SUMS)
            plt.store(rows_ref.at[slot * ROW + which], sums, mask=is_entry)
        reached = jnp.minimum(i + _UNROLL_BACKWARD, end)
        is_open = _any_positive(transmittance) > 0
        return jnp.where(is_open, reached, end), reached, transmittance, rest, ahead

    first = jnp.where(_any_positive(before) > 0, start, end)
    carry = (first, start, before, rest, load(first))
    carry = lax.while_loop(lambda carry: carry[0] < end, body, carry)
    _, reached, transmittance, rest, _ = carry
    plt.store(pixels(state_ref, 0), transmittance, mask=is_pixel)
    plt.store(pixels(state_ref, 1), rest, mask=is_pixel)
    open_ref[tile] = _any_positive(transmittance)
    ends_ref[tile] = jnp.where(reached > start, _slot(slots_ref, reached - 1, end) + 1, 0)


def _slot(slots_ref, i, end):
    return slots_ref[jnp.clip(i, 0, jnp.maximum(end - 1, 0))]


def _lanes(sizes):
    """Lane of the warp that holds each pixel, none (32) for all but its first pixel."""
    shape = (sizes.grid.tile_size**2,)
    if sizes.interpret:
        return jnp.minimum(jnp.arange(*shape), _LANES)
    return _assembly("mov.u32 all, %laneid;", jnp.zeros(shape, jnp.int32), only=_LANES)


def _sum_in_lane(sizes, values, factors=None):
    """Sum of values, or of values x factors, over each lane's pixels, in all of them."""
    if sizes.interpret:
        values = values if factors is None else values * factors
        return jnp.tile(values.reshape(-1, _LANES).sum(0), values.size // _LANES)
    pack = values.size // _LANES
    if factors is None:
        lines = [f"mov.b32 all, ${pack};"]
        lines += [f"add.f32 all, all, ${pack + k};" for k in range(1, pack)]
        return _assembly(" ".join(lines), values)
    lines = [f"mul.f32 all, ${pack}, ${2 * pack};"]
    for k in range(1, pack):
        lines += [f"fma.rn.f32 all, ${pack + k}, ${2 * pack + k}, all;"]
    return _assembly(" ".join(lines), values, factors)


def _exchange(sizes, values, bit):
    """What the lane whose number differs in `bit` holds."""
    if sizes.interpret:
        return jnp.flip(values.reshape(-1, 2, bit), 1).reshape(-1)
    source = values.size // _LANES
    return _assembly(f"shfl.sync.bfly.b32 all, ${source}, {bit}, 31, -1;", values)


def _fma(sizes, a, b, c):
    """a b + c, rounded once."""
    return a * b + c if sizes.interpret else _fused("fma.rn.f32 $0, $1, $2, $3;", a, b, c)


def _minus_product(sizes, a, b, c):
    """c - a b, rounded once."""
    if sizes.interpret:
        return c - a * b
    line = "{ .reg .f32 a; neg.f32 a, $1; fma.rn.f32 $0, a, $2, $3; }"
    return _fused(line, a, b, c)


def _fused(line, a, b, c):
    shape = jnp.broadcast_shapes(*(jnp.shape(value) for value in (a, b, c)))
    a, b, c = (jnp.broadcast_to(value, shape) for value in (a, b, c))
    return _elementwise(line, a, b, c)


def _exp2(sizes, values):
    if sizes.interpret:
        return jnp.exp2(values)
    return _elementwise("ex2.approx.ftz.f32 $0, $1;", values)


def _reciprocal(sizes, values):
    if sizes.interpret:
        return 1 / values
    return _elementwise("rcp.approx.ftz.f32 $0, $1;", values)


def _elementwise(line, *args, pack=1):
    """PTX over `pack` elements of each argument and of the result."""
    letter = "f" if args[0].dtype == jnp.float32 else "r"
    return plt.elementwise_inline_asm(
        line,
        args=args,
        constraints=",".join([f"={letter}"] * pack + [letter] * pack * len(args)),
        pack=pack,
        result_shape_dtypes=[jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)],
    )[0]


def _assembly(line, *args, only=None):
    """PTX that sets `all`, what every pixel of a lane gets; or its first one only."""
    pack, other = args[0].size // _LANES, "all" if only is None else only
    lines = [".reg .b32 all;", line, "mov.b32 $0, all;"]
    lines += [f"mov.b32 ${k}, {other};" for k in range(1, pack)]
    return _elementwise("{ " + " ".join(lines) + " }", *args, pack=pack)


def _sum_pixels(sizes, lanes, terms):
    """(sums, which): sums[e] is the sum of the products terms[which[e]], if there are.

    Each of five steps exchanges half of the values a lane still has for the other lane's
    share of the other half: 12 shuffles for ten sums, where summing one by one takes 50.
    """
    values = [_sum_in_lane(sizes, *term) for term in terms]
    which = [jnp.full_like(lanes, j) for j in range(len(terms))]
    for bit in (16, 8, 4, 2, 1):
        is_second, half = (lanes & bit) != 0, (len(values) + 1) // 2
        for j in range(half):
            other = j + half
            if other < len(values):
                sent = jnp.where(is_second, values[j], values[other])
                kept = jnp.where(is_second, values[other], values[j])
                which[j] = jnp.where(is_second, which[other], which[j])
            else:  # both lanes go on with the same sum; one of them says so
                sent = kept = values[j]
                which[j] = jnp.where(is_second, NUM_SUMS, which[j])
            values[j] = kept + _exchange(sizes, sent, bit)
        values = values[:half]
    return values[0], jnp.where(lanes < _LANES, which[0], NUM_SUMS)


def _sum_kernel(
    sizes,
    rows_ref,
    ends_ref,
    tiles_ref,
    order_ref,
    counts_ref,
    starts_ref,
    _,
    sums_ref,
):
    rank = pl.program_id(0) * _SUMMED + jnp.arange(_SUMMED)
    is_rank = rank < sizes.num_records
    count = plt.load(counts_ref.at[rank], mask=is_rank, other=0)
    is_used = count > 0
    start = plt.load(starts_ref.at[rank], mask=is_used, other=0)
    record = plt.load(order_ref.at[rank], mask=is_used, other=sizes.num_records)
    columns = jnp.arange(RECORD)[None]

    def body(step, total):
        is_entry = step < count
        slot = start + step
        tile = plt.load(tiles_ref.at[slot], mask=is_entry, other=sizes.num_tiles)
        is_entry = is_entry & (tile < sizes.num_tiles)
        end = plt.load(ends_ref.at[tile], mask=is_entry, other=0)
        is_row = (is_entry & (slot < end))[:, None] & (columns < NUM_SUMS)
        index = slot[:, None] * ROW + columns
        return total + plt.load(rows_ref.at[index], mask=is_row, other=0.0)

    total = jnp.zeros((_SUMMED, RECORD), jnp.float32)
    total = lax.fori_loop(0, jnp.max(count), body, total)
    plt.store(
        sums_ref.at[record[:, None], columns],
        total,
        mask=is_used[:, None] & (columns < RECORD),
    )
