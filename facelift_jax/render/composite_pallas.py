"""Tile lists by kernels, all pictures in one launch: runs on NVIDIA GPUs.

One depth order over all pictures; a slice takes as many Gaussians of it as fit, lists
them in the tiles that still have a pixel to draw, and blends them. Slices go on until
all Gaussians are drawn or all pixels have ended. The backward pass walks the same
slices, writes a gradient row per entry and adds up each Gaussian's rows in fixed order.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from facelift_jax.numerics import Array
from facelift_jax.render import kernels_triton as kernels
from facelift_jax.render.config import RenderConfig
from facelift_jax.render.constants import ALPHA_MIN
from facelift_jax.render.folding import folding_vmap
from facelift_jax.render.kernels_triton import LOG2_E, RECORD, Sizes
from facelift_jax.render.manual_axes import vary_like
from facelift_jax.render.records import Pixels, Splats
from facelift_jax.render.tiling import Grid

_ENTRIES_PER_RECORD = 8  # list entries a slice has room for, per Gaussian and picture
_MAX_ENTRIES = 3 * 2**23  # of one slice; an entry takes about 90 bytes
_SAFE_TOTAL = 2.0**30  # running totals beyond it are not trusted to int32


class Lists(NamedTuple):
    """Tile lists of one slice.

    Attributes:
      tiles: [m] tile of each entry as emitted; num_tiles where there is none.
      slots: [m] emission slots in list order.
      entries: [m] record of each entry in list order.
      starts: [tiles + 1] where each tile's list begins.
      counts: [r] entries of the Gaussian at each depth rank, 0 where not taken.
      firsts: [r] slot of the first of them.
      num_taken: [] Gaussians taken.
    """

    tiles: Int[Array, "m"]
    slots: Int[Array, "m"]
    entries: Int[Array, "m"]
    starts: Int[Array, "bounds"]
    counts: Int[Array, "r"]
    firsts: Int[Array, "r"]
    num_taken: Int[Array, ""]


def composite(splats: Splats, width: int, height: int, config: RenderConfig) -> Pixels:
    """Blends the pictures of splats [i n ...] through their tile lists."""
    num_pictures, n = splats.depths.shape
    if n == 0 or num_pictures == 0:
        blank = jnp.zeros((num_pictures, height, width), splats.depths.dtype)
        colors = jnp.zeros((*blank.shape, 3), blank.dtype)
        return Pixels(colors, blank, blank + 1, jnp.zeros(num_pictures, jnp.int32))
    return _composite((width, height, config), splats)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _composite(settings, splats):
    return folding_vmap(_forward, settings)(splats)


def _composite_fwd(settings, splats):
    pixels = _composite(settings, splats)
    return pixels, (splats, pixels)


def _composite_bwd(settings, residuals, cotangent):
    splats, pixels = residuals
    d_pixels = (cotangent.colors, cotangent.depths, cotangent.transmittances)
    return (folding_vmap(_backward, settings)(splats, pixels, d_pixels),)


_composite.defvjp(_composite_fwd, _composite_bwd)


def make_sizes(pictures: int, n: int, settings: Any) -> Sizes:
    """Static sizes; the memory that lists take follows from `capacity`."""
    width, height, config = settings
    grid = Grid(width, height, config.tile_size)
    wanted = config.slice_entries or min(
        _MAX_ENTRIES, _ENTRIES_PER_RECORD * pictures * n
    )
    capacity = min(max(wanted, grid.num_tiles), pictures * n * grid.num_tiles)
    return Sizes(grid, n, pictures, capacity, config.alpha_max, config.interpret)


def _forward(settings, splats):
    num_pictures, n = splats.depths.shape
    sizes = make_sizes(num_pictures, n, settings)
    shape = (5, num_pictures, sizes.grid.height, sizes.grid.width)
    state = jnp.zeros(shape, jnp.float32).at[0].set(1)
    records, order, cap_counts = _prepare(sizes, splats, settings[2])

    def draw(lists, state, extra):
        state, is_open = kernels.blend(
            sizes, records, lists.entries, lists.starts, state
        )
        return state, is_open, extra

    state, _ = _walk(sizes, splats, records, order, draw, state, ())
    transmittances, red, green, blue, depths = state
    colors = jnp.stack([red, green, blue], axis=-1)
    return Pixels(colors, depths, jnp.abs(transmittances), cap_counts)


def _backward(settings, splats, pixels, d_pixels):
    num_pictures, n = splats.depths.shape
    sizes = make_sizes(num_pictures, n, settings)
    d_colors, d_depths, d_transmittances = d_pixels
    rest = jnp.sum(pixels.colors * d_colors, axis=-1) + pixels.depths * d_depths
    rest = rest + pixels.transmittances * d_transmittances
    state = jnp.stack([jnp.ones_like(rest), rest])
    d_sums = jnp.stack([*jnp.moveaxis(d_colors, -1, 0), d_depths])
    records, order, _ = _prepare(sizes, splats, settings[2])

    def draw(lists, state, sums):
        state, is_open, rows, ends = kernels.differentiate(
            sizes, records, lists.entries, lists.starts, state, d_sums
        )
        slots = jnp.arange(sizes.capacity, dtype=jnp.int32)
        places = jnp.zeros_like(slots).at[lists.slots].set(slots, unique_indices=True)
        sums = kernels.sum_rows(
            *(sizes, rows, ends, places, lists.tiles),
            *(order, lists.counts, lists.firsts, sums),
        )
        return state, is_open, sums

    sums = jnp.zeros((sizes.num_records, RECORD), jnp.float32)
    _, sums = _walk(sizes, splats, records, order, draw, state, sums)
    return _record_gradients(splats, sums)


def _walk(sizes, splats, records, order, draw, state, extra):
    """state, extra after state, open, extra = draw(lists, state, extra) of all slices."""
    num_visible = jnp.sum(splats.is_visible, dtype=jnp.int32)

    def one_slice(carry):
        first, is_open, state, extra = carry
        lists = _list(sizes, records, order, is_open, first)
        state, is_open, extra = draw(lists, state, extra)
        return first + lists.num_taken, is_open, state, extra

    def is_going(carry):
        return (carry[0] < num_visible) & (jnp.max(carry[1]) > 0)

    is_open = jnp.ones(sizes.num_tiles, jnp.int32)
    carry = vary_like((jnp.int32(0), is_open, state, extra), records)
    return lax.while_loop(is_going, one_slice, carry)[2:]


def _prepare(sizes, splats, config):
    """Records [r RECORD], depth order [r] over all pictures, dropped entries [i]."""
    records = _pack(splats)
    bits = lax.bitcast_convert_type(splats.depths, jnp.uint32)
    keys = jnp.where(splats.is_visible, bits, jnp.uint32(0xFFFFFFFF)).reshape(-1)
    indices = jnp.arange(sizes.num_records, dtype=jnp.int32)
    order = lax.sort((keys, indices), num_keys=1, is_stable=True)[1]
    dropped = vary_like(jnp.zeros(sizes.pictures, jnp.int32), records)
    return records, order, dropped


def _pack(splats: Splats) -> Float[Array, "r 16"]:
    """What the kernels read of every splat; kernels_triton.py names the columns."""
    scale = jnp.asarray([-0.5 * LOG2_E, -LOG2_E, -0.5 * LOG2_E], jnp.float32)
    safe = jnp.where(splats.is_visible, splats.opacities, 1)
    slack = splats.levels - jnp.log(safe / ALPHA_MIN)
    levels = jnp.stack([splats.levels, splats.levels + slack], axis=-1) * LOG2_E
    columns = [
        splats.means2d,
        splats.conics * scale[None, None],
        splats.opacities[..., None],
        splats.colors,
        splats.depths[..., None],
        levels,
        splats.radii,
        jnp.zeros_like(splats.radii),
    ]
    records = jnp.concatenate(columns, axis=-1).reshape(-1, RECORD)
    return lax.stop_gradient(records)


def _list(sizes, records, order, is_open, first) -> Lists:
    """Entries of as many Gaussians from depth rank `first` on as fit, by tile."""
    counts = kernels.count_tiles(sizes, records, order, is_open, first)
    ends, is_trusted = _running_totals(counts)
    ranks = jnp.arange(sizes.num_records, dtype=jnp.int32)
    is_taken = is_trusted & (ends <= sizes.capacity) & (ranks >= first)
    counts = jnp.where(is_taken, counts, 0)
    firsts = ends - counts
    total = jnp.sum(counts, dtype=jnp.int32)
    tiles, records_of = kernels.emit_entries(
        sizes, records, order, is_open, counts, firsts
    )
    slots = jnp.arange(sizes.capacity, dtype=jnp.int32)
    is_entry = slots < total
    tiles = jnp.where(is_entry, tiles, sizes.num_tiles)
    records_of = jnp.where(is_entry, records_of, 0)
    small = sizes.num_tiles < 2**16  # half the passes of the sort
    keys = tiles.astype(jnp.uint16 if small else jnp.uint32)
    keys, sorted_slots = lax.sort((keys, slots), num_keys=1, is_stable=True)
    return Lists(
        tiles=tiles,
        slots=sorted_slots,
        entries=records_of[sorted_slots],
        starts=kernels.list_starts(sizes, keys),
        counts=counts,
        firsts=firsts,
        num_taken=jnp.sum(is_taken, dtype=jnp.int32),
    )


def _running_totals(counts):
    """Inclusive sums in int32, and where they cannot have overflowed."""
    sums = jnp.cumsum(counts, dtype=jnp.int32)
    rough = jnp.cumsum(counts.astype(jnp.float32))
    return sums, rough < _SAFE_TOTAL


def _record_gradients(splats, sums):
    """Moments of each Gaussian's d_exponent to gradients of its splat."""
    sums = sums.reshape(*splats.depths.shape, RECORD)
    total, sum_x, sum_y, sum_xx, sum_xy, sum_yy = jnp.moveaxis(sums[..., :6], -1, 0)
    A, B, C = jnp.moveaxis(splats.conics, -1, 0)
    is_visible, opacities = splats.is_visible, splats.opacities
    return Splats(
        means2d=jnp.stack([-A * sum_x - B * sum_y, -B * sum_x - C * sum_y], axis=-1),
        conics=jnp.stack([-0.5 * sum_xx, -sum_xy, -0.5 * sum_yy], axis=-1),
        opacities=jnp.where(is_visible, total / jnp.where(is_visible, opacities, 1), 0),
        colors=sums[..., 6:9],
        depths=sums[..., 9],
        radii=jnp.zeros_like(splats.radii),
        levels=jnp.zeros_like(splats.levels),
        is_visible=np.zeros(splats.is_visible.shape, jax.dtypes.float0),
    )
