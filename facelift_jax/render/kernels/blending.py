"""Kernels for alpha compositing of tile lists and its derivative.

One program draws one tile.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Float, Int

from facelift_jax.geometry.numerics import Array
from facelift_jax.render.batching import shape_like
from facelift_jax.render.constants import ALPHA_MIN, TRANSMITTANCE_MIN
from facelift_jax.render.kernels.launch import NUM_SUMS, RECORD, ROW, Sizes, launch
from facelift_jax.render.kernels.warp_ops import Warp

_GAUSSIANS_PER_PROGRAM = 16  # of `sum_rows`
_UNROLL_FORWARD = 8  # records per step of the forward loop
_UNROLL_BACKWARD = 2  # of the backward loop


def blend(
    sizes: Sizes,
    records: Float[Array, "r 16"],
    entries: Int[Array, "m"],
    starts: Int[Array, "tiles"],
    list_ends: Int[Array, "tiles"],
    state: Float[Array, "5 i h w"],
) -> tuple[Float[Array, "5 i h w"], Int[Array, "tiles"]]:
    """Blends one slice into `state` (T, red, green, blue, depth); also open tiles."""
    return launch(
        _blend_kernel,
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
) -> tuple[Float[Array, "2 i h w"], Int[Array, "tiles"], Float[Array, "m12"], Array]:
    """State (T, rest) behind one slice, and its gradient rows.

    `blend.py` defines rest. Returns (state, open tiles, rows, ends). The row of an
    entry is at its emission slot; a tile's rows are written for slots before its end.
    """
    flags = shape_like((sizes.num_tiles,), jnp.int32, state)
    return launch(
        _differentiate_kernel,
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
    rows: Float[Array, "m12"],
    ends: Int[Array, "tiles"],
    tiles: Int[Array, "m"],
    order: Int[Array, "r"],
    counts: Int[Array, "r"],
    starts: Int[Array, "r"],
    sums: Float[Array, "r 16"],
) -> Float[Array, "r 16"]:
    """Sums each taken Gaussian's rows in emission order into its row of `sums`."""
    return launch(
        _sum_kernel,
        pl.cdiv(sizes.num_records, _GAUSSIANS_PER_PROGRAM),
        shape_like(sums.shape, jnp.float32, sums),
        "splat_sum_rows",
        sizes,
        aliases={6: 0},
    )(rows, ends, tiles, order, counts, starts, sums)


class _Tile:
    """Pixels of this program's tile, distributed over the lanes of one warp."""

    def __init__(self, sizes):
        grid, size = sizes.grid, sizes.grid.tile_size
        self.index = pl.program_id(0)
        self.image = self.index // grid.num_tiles
        here = self.index - self.image * grid.num_tiles
        pixel = lax.iota(jnp.int32, size * size)
        self.column = (here % grid.columns) * size + pixel % size
        self.row = (here // grid.columns) * size + pixel // size
        self.is_inside = (self.column < grid.width) & (self.row < grid.height)
        self.x = self.column.astype(jnp.float32) + 0.5
        self.y = self.row.astype(jnp.float32) + 0.5

    def load(self, ref, channel, outside=0.0):
        """Loads one channel of an array [c i h w]."""
        here = ref.at[channel, self.image, self.row, self.column]
        return plt.load(here, mask=self.is_inside, other=outside)

    def store(self, ref, channel, values):
        """Stores one channel of an array [c i h w]."""
        here = ref.at[channel, self.image, self.row, self.column]
        plt.store(here, values, mask=self.is_inside)


def _element(list_ref, i, end):
    """Element i of a list, or its last one if i is past the end."""
    return list_ref[jnp.clip(i, 0, jnp.maximum(end - 1, 0))]


def _load_records(records_ref, entries_ref, i, end, number):
    """The ten blending fields of the next records; opacity 0 past the list's end."""
    records = []
    for step in range(number):
        index = _element(entries_ref, i + step, end)
        record = [records_ref[index, j] for j in range(10)]
        record[5] = jnp.where(i + step < end, record[5], 0.0)
        records.append(record)
    return records


def _alpha(sizes, record, tile):
    """dx, dy, uncapped alpha, and alpha (0 where the record is skipped)."""
    warp = Warp(sizes.interpret)
    dx, dy = record[0] - tile.x, record[1] - tile.y
    across = warp.fma(record[2], dx, record[3] * dy)
    power = warp.fma(across, dx, record[4] * dy * dy)
    raw = record[5] * warp.exp2(power)
    alpha = jnp.minimum(raw, sizes.alpha_max)
    return dx, dy, raw, jnp.where((alpha >= ALPHA_MIN) & (power <= 0), alpha, 0.0)


def _advance(sizes, transmittance, alpha):
    """Weight of a record, and T behind it: negative once the pixel has ended."""
    warp = Warp(sizes.interpret)
    after = warp.fnma(alpha, transmittance, transmittance)
    is_open = after > TRANSMITTANCE_MIN
    weight = jnp.where(is_open, transmittance * alpha, 0.0)
    return weight, jnp.where(is_open, after, -jnp.abs(transmittance))


def _blend_kernel(
    sizes, records_ref, entries_ref, starts_ref, list_ends_ref, _, state_ref, open_ref
):
    tile, warp = _Tile(sizes), Warp(sizes.interpret)
    start, end = starts_ref[tile.index], list_ends_ref[tile.index]
    before = tile.load(state_ref, 0, outside=-1.0)
    sums = [tile.load(state_ref, j) for j in range(1, 5)]

    def has_work(carry):
        return (carry[0] < end) & (carry[1] > 0)

    def body(carry):
        i, _, transmittance, *sums = carry
        for record in _load_records(records_ref, entries_ref, i, end, _UNROLL_FORWARD):
            alpha = _alpha(sizes, record, tile)[-1]
            weight, transmittance = _advance(sizes, transmittance, alpha)
            pairs = zip(record[6:], sums, strict=True)
            sums = [warp.fma(weight, color, total) for color, total in pairs]
        return (
            i + _UNROLL_FORWARD,
            warp.any_positive(transmittance),
            transmittance,
            *sums,
        )

    carry = (start, warp.any_positive(before), before, *sums)
    _, is_open, *state = lax.while_loop(has_work, body, carry)
    for channel, values in enumerate(state):
        tile.store(state_ref, channel, values)
    open_ref[tile.index] = is_open


def _differentiate_record(sizes, record, tile, transmittance, rest, d_pixels):
    """(weight, factors of the ten sums, T behind the record, rest behind it)."""
    warp = Warp(sizes.interpret)
    dx, dy, raw, alpha = _alpha(sizes, record, tile)
    weight, after = _advance(sizes, transmittance, alpha)
    value = record[6] * d_pixels[0]
    for color, d_pixel in zip(record[7:], d_pixels[1:], strict=True):
        value = warp.fma(color, d_pixel, value)
    rest = warp.fnma(weight, value, rest)
    behind = (rest, warp.reciprocal(1 - alpha))
    slope = raw * warp.fnma(*behind, transmittance * value)
    slope = jnp.where((weight > 0) & (raw <= sizes.alpha_max), slope, 0.0)
    by_x, by_y = slope * dx, slope * dy
    factors = [(slope,), (by_x,), (by_y,), (by_x, dx), (by_x, dy), (by_y, dy)]
    return weight, factors + [(weight, d) for d in d_pixels], after, rest


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
    tile, warp = _Tile(sizes), Warp(sizes.interpret)
    start, end = starts_ref[tile.index], list_ends_ref[tile.index]
    before, rest = tile.load(state_ref, 0, outside=-1.0), tile.load(state_ref, 1)
    d_pixels = [tile.load(d_pixels_ref, j) for j in range(4)]
    zeros = jnp.zeros_like(before)
    number = _UNROLL_BACKWARD

    def load(i):
        slots = [_element(slots_ref, i + step, end) for step in range(number)]
        return _load_records(records_ref, entries_ref, i, end, number), slots

    def body(carry):
        # The condition is one integer: Triton crashes on a compound condition here.
        i, _, transmittance, rest, (records, slots) = carry
        # Stores may alias loads, so the next records are loaded before storing.
        ahead = load(i + number)
        for step, (record, slot) in enumerate(zip(records, slots, strict=True)):
            weight, factors, transmittance, rest = _differentiate_record(
                sizes, record, tile, transmittance, rest, d_pixels
            )
            sums = lax.cond(
                warp.any_positive(weight) > 0,
                functools.partial(warp.sum_products, factors),
                lambda: zeros,
            )
            which = warp.sum_indices(sums, NUM_SUMS)
            is_sum = (i + step < end) & (which < NUM_SUMS)
            plt.store(rows_ref.at[slot * ROW + which], sums, mask=is_sum)
        reached = jnp.minimum(i + number, end)
        is_open = warp.any_positive(transmittance) > 0
        return jnp.where(is_open, reached, end), reached, transmittance, rest, ahead

    first = jnp.where(warp.any_positive(before) > 0, start, end)
    carry = (first, start, before, rest, load(first))
    carry = lax.while_loop(lambda carry: carry[0] < end, body, carry)
    _, reached, transmittance, rest, _ = carry
    tile.store(state_ref, 0, transmittance)
    tile.store(state_ref, 1, rest)
    open_ref[tile.index] = warp.any_positive(transmittance)
    last = _element(slots_ref, reached - 1, end)
    ends_ref[tile.index] = jnp.where(reached > start, last + 1, 0)


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
    rank = pl.program_id(0) * _GAUSSIANS_PER_PROGRAM + lax.iota(
        jnp.int32, _GAUSSIANS_PER_PROGRAM
    )
    is_rank = rank < sizes.num_records
    count = plt.load(counts_ref.at[rank], mask=is_rank, other=0)
    is_used = count > 0
    start = plt.load(starts_ref.at[rank], mask=is_used, other=0)
    record = plt.load(order_ref.at[rank], mask=is_used, other=sizes.num_records)
    columns = lax.iota(jnp.int32, RECORD)[None]

    def body(step, total):
        is_entry = step < count
        slot = start + step
        tile = plt.load(tiles_ref.at[slot], mask=is_entry, other=sizes.num_tiles)
        is_entry = is_entry & (tile < sizes.num_tiles)
        end = plt.load(ends_ref.at[tile], mask=is_entry, other=0)
        is_row = (is_entry & (slot < end))[:, None] & (columns < NUM_SUMS)
        index = slot[:, None] * ROW + columns
        return total + plt.load(rows_ref.at[index], mask=is_row, other=0.0)

    total = jnp.zeros((_GAUSSIANS_PER_PROGRAM, RECORD), jnp.float32)
    total = lax.fori_loop(0, jnp.max(count), body, total)
    plt.store(
        sums_ref.at[record[:, None], columns],
        total,
        mask=is_used[:, None] & (columns < RECORD),
    )
