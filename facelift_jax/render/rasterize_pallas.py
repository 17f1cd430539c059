"""Tile-based rasterizer in Pallas kernels for NVIDIA GPUs.

All images are drawn in the same launches, with one depth order over all of them. A
slice takes as many Gaussians of that order as fit, bins them into the tiles with a
pixel that has not ended, and blends them. Slices continue until all Gaussians are drawn
or all pixels have ended. The backward pass loops over the same slices, writes one
gradient row per entry and sums each Gaussian's rows in a fixed order. The lists of the
first slices are saved for it; it bins the others again.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from facelift_jax.geometry.numerics import Array
from facelift_jax.render.batching import (
    flatten_batch,
    match_varying_axes,
    unflatten_batch,
    vmap_over_images,
)
from facelift_jax.render.config import RenderConfig
from facelift_jax.render.kernels import binning, blending
from facelift_jax.render.kernels.launch import RECORD, ROW, Sizes, require_gpu
from facelift_jax.render.splats import Pixels, Splats
from facelift_jax.render.tiling import Grid, depth_order, drop_farthest

_ENTRIES_PER_RECORD = 8  # room for list entries in a slice, per Gaussian and image
_MIN_ENTRIES = 2**22  # of a slice, so that few large Gaussians need few slices
_MAX_ENTRIES = 3 * 2**23  # an entry takes about 90 bytes
_NUM_SAVED_SLICES = 3  # slices whose lists are saved for the backward pass
_TILE_SIZES = (8, 16)  # one warp draws one tile: 2 or 8 pixels per lane
_MAX_TILES = 2**20  # per image; up to here `emit_entries` computes tile rows exactly
_SAFE_TOTAL = 2.0**30  # larger running totals may have overflowed int32


class SliceLists(NamedTuple):
    """Tile lists of one slice.

    Attributes:
      tiles: [m] tile of each entry in emission order; num_tiles for unused slots.
      entries: [m] record of each entry in list order.
      slots: [m] emission slot of each entry in list order.
      starts: [tiles] start of each tile's list.
      ends: [tiles] end of each tile's list.
      counts: [r] entries of the Gaussian at each depth rank; 0 if not taken.
      firsts: [r] slot of the first of those entries.
      num_taken: [images] Gaussians taken in total, repeated for each image.
    """

    tiles: Int[Array, "m"]
    entries: Int[Array, "m"]
    slots: Int[Array, "m"]
    starts: Int[Array, "tiles"]
    ends: Int[Array, "tiles"]
    counts: Int[Array, "r"]
    firsts: Int[Array, "r"]
    num_taken: Int[Array, "images"]


class PackedSplats(NamedTuple):
    """Input of every slice.

    Attributes:
      records: [r RECORD] packed splats.
      order: [r] indices of records near to far, over all images.
      num_visible: [images] visible Gaussians in total, repeated for each image.
    """

    records: Float[Array, "r 16"]
    order: Int[Array, "r"]
    num_visible: Int[Array, "images"]


def rasterize(splats: Splats, width: int, height: int, config: RenderConfig) -> Pixels:
    """Rasterizes the images of splats [i n ...]."""
    num_images, n = splats.depths.shape
    if n == 0 or num_images == 0:
        blank = jnp.zeros((num_images, height, width), splats.depths.dtype)
        colors = jnp.zeros((*blank.shape, 3), blank.dtype)
        return Pixels(colors, blank, blank + 1, jnp.zeros(num_images, jnp.int32))
    return _rasterize((width, height, config), splats)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rasterize(settings, splats):
    return vmap_over_images(_forward, settings)(splats)


def _rasterize_fwd(settings, splats):
    pixels, saved = vmap_over_images(_forward_and_save, settings)(splats)
    return pixels, (splats, pixels, saved)


def _rasterize_bwd(settings, residuals, cotangent):
    d_pixels = (cotangent.colors, cotangent.depths, cotangent.transmittances)
    return (_backward_over_images(settings)(*residuals, d_pixels),)


def _backward_over_images(settings):
    """`_backward` whose batching rule merges the new axis into the images.

    The saved slices belong to the images that the forward pass drew together. If only
    the backward pass has the new axis, the saved slices cannot be used and all slices
    are binned again.
    """
    backward = jax.custom_batching.custom_vmap(functools.partial(_backward, settings))

    @backward.def_vmap
    def _batching_rule(axis_size, is_batched, splats, pixels, saved, d_pixels):
        on_splats, on_pixels, on_saved, on_d_pixels = is_batched
        args = (splats, pixels, d_pixels)
        args = flatten_batch(args, (on_splats, on_pixels, on_d_pixels), axis_size)
        if all(jax.tree.leaves(on_saved)):
            saved = flatten_batch(saved, on_saved, axis_size)
            out = backward(args[0], args[1], saved, args[2])
        else:
            out = vmap_over_images(_backward_recompute, settings)(*args)
        return unflatten_batch(out, axis_size)

    return backward


_rasterize.defvjp(_rasterize_fwd, _rasterize_bwd)


def make_sizes(images: int, n: int, settings: tuple[int, int, RenderConfig]) -> Sizes:
    """Static sizes for images of n Gaussians; `settings` is (width, height, config).

    `capacity` determines the memory of the lists.

    Raises:
      ValueError: no kernel has this tile size, or too many tiles or entries.
    """
    width, height, config = settings
    if config.tile_size not in _TILE_SIZES:
        raise ValueError(
            f'RenderConfig.tile_size: backend "pallas" draws tiles of 8 or 16 pixels, '
            f"found {config.tile_size}"
        )
    grid = Grid(width, height, config.tile_size)
    if grid.num_tiles > _MAX_TILES:
        raise ValueError(
            f'render: backend "pallas" draws images of at most {_MAX_TILES} tiles, '
            f"{width} x {height} px have {grid.num_tiles}; render it in parts"
        )
    num_entries = max(_MIN_ENTRIES, _ENTRIES_PER_RECORD * images * n)
    num_entries = min(_MAX_ENTRIES, num_entries)
    if config.slice_entries is not None:
        num_entries = config.slice_entries * images
    capacity = min(max(num_entries, grid.num_tiles), images * n * grid.num_tiles)
    capacity = -(-capacity // images) * images  # saved arrays are split by image
    if capacity * ROW >= 2**31:
        raise ValueError(
            f"RenderConfig.slice_entries: {images} images together hold at most "
            f"{(2**31 - 1) // ROW} entries, found {capacity}; use None"
        )
    return Sizes(grid, n, images, capacity, config.alpha_max, config.interpret)


def _forward(settings, splats):
    return _draw(settings, splats, num_saved=0)[0]


def _forward_and_save(settings, splats):
    return _draw(settings, splats, num_saved=_NUM_SAVED_SLICES)


def _draw(settings, splats, num_saved):
    """Pixels, and (packed splats, lists of the first slices) split by image."""
    num_images, n = splats.depths.shape
    sizes = make_sizes(num_images, n, settings)
    splats, dropped = _cap(sizes, splats, settings[-1].max_entries)
    packed = _pack_and_sort(sizes, splats)
    shape = (5, num_images, sizes.grid.height, sizes.grid.width)
    state = jnp.zeros(shape, jnp.float32).at[0].set(1)

    def draw_slice(carry):
        first, is_open, state = carry
        lists = make_lists(sizes, packed, is_open, first)
        state, is_open = blending.blend(
            sizes,
            packed.records,
            lists.entries,
            lists.starts,
            lists.ends,
            state,
        )
        return (first + lists.num_taken[0], is_open, state), lists

    carry, saved = _start(sizes, packed, state), []
    for _ in range(num_saved):
        carry, lists = lax.cond(
            _has_work(packed, carry),
            draw_slice,
            _skip_slice(draw_slice, carry),
            carry,
        )
        saved.append(lists)
    carry = lax.while_loop(
        functools.partial(_has_work, packed), lambda c: draw_slice(c)[0], carry
    )
    transmittances, red, green, blue, depths = carry[-1]
    colors = jnp.stack([red, green, blue], axis=-1)
    pixels = Pixels(colors, depths, jnp.abs(transmittances), dropped)
    saved = jax.tree.map(lambda x: x.reshape(num_images, -1), (packed, saved))
    return pixels, saved


def _backward(settings, splats, pixels, saved, d_pixels):
    num_images, n = splats.depths.shape
    sizes = make_sizes(num_images, n, settings)
    packed, saved_lists = jax.tree.map(jnp.ravel, saved)
    packed = packed._replace(records=packed.records.reshape(-1, RECORD))
    return _differentiate(sizes, packed, saved_lists, splats, pixels, d_pixels)


def _backward_recompute(settings, splats, pixels, d_pixels):
    num_images, n = splats.depths.shape
    sizes = make_sizes(num_images, n, settings)
    capped, _ = _cap(sizes, splats, settings[-1].max_entries)
    packed = _pack_and_sort(sizes, capped)
    return _differentiate(sizes, packed, [], splats, pixels, d_pixels)


def _differentiate(sizes, packed, saved_lists, splats, pixels, d_pixels):
    """Gradients to splats; slices that are not saved are binned again."""
    d_colors, d_depths, d_transmittances = d_pixels
    rest = jnp.sum(pixels.colors * d_colors, axis=-1) + pixels.depths * d_depths
    rest = rest + pixels.transmittances * d_transmittances
    state = jnp.stack([jnp.ones_like(rest), rest])
    d_sums = jnp.stack([*jnp.moveaxis(d_colors, -1, 0), d_depths])

    def differentiate(lists, carry):
        first, _, (state, sums) = carry
        state, is_open, rows, ends = blending.differentiate(
            sizes,
            packed.records,
            lists.entries,
            lists.slots,
            lists.starts,
            lists.ends,
            state,
            d_sums,
        )
        sums = blending.sum_rows(
            sizes,
            rows,
            ends,
            lists.tiles,
            packed.order,
            lists.counts,
            lists.firsts,
            sums,
        )
        return first + lists.num_taken[0], is_open, (state, sums)

    def draw_slice(carry):
        return differentiate(make_lists(sizes, packed, carry[1], carry[0]), carry)

    sums = jnp.zeros((sizes.num_records, RECORD), jnp.float32)
    carry = _start(sizes, packed, (state, sums))
    for lists in saved_lists:
        carry = lax.cond(
            _has_work(packed, carry),
            functools.partial(differentiate, lists),
            lambda carry: carry,
            carry,
        )
    carry = lax.while_loop(functools.partial(_has_work, packed), draw_slice, carry)
    return _record_gradients(splats, carry[-1][1])


def _cap(sizes, splats, max_entries):
    """Splats within an explicit cap, and the entries dropped per image."""
    if max_entries is None:
        return splats, jnp.zeros_like(splats.is_visible[:, 0], jnp.int32)
    drop = functools.partial(drop_farthest, grid=sizes.grid, max_entries=max_entries)
    return jax.vmap(drop)(splats)


def _start(sizes, packed, state):
    """(first rank, open tiles, state) before the first slice."""
    # The barrier prevents constant folding of the first slice's tables.
    is_open = lax.optimization_barrier(jnp.ones(sizes.num_tiles, jnp.int32))
    return match_varying_axes((jnp.int32(0), is_open, state), packed.records)


def _has_work(packed, carry):
    return (carry[0] < packed.num_visible[0]) & (jnp.max(carry[1]) > 0)


def _skip_slice(draw_slice, carry):
    """The branch for a slice that is not needed: the same carry and empty lists."""
    shapes = jax.eval_shape(draw_slice, carry)[1]
    return lambda carry: (
        carry,
        match_varying_axes(jax.tree.map(jnp.zeros_like, shapes), carry[0]),
    )


def _pack_and_sort(sizes, splats) -> PackedSplats:
    depths = splats.depths if sizes.interpret else require_gpu(splats.depths)
    together = splats._replace(
        depths=depths.reshape(-1), is_visible=splats.is_visible.reshape(-1)
    )
    num_visible = jnp.sum(splats.is_visible, dtype=jnp.int32)
    return PackedSplats(
        records=binning.pack_records(sizes, splats),
        order=depth_order(together),
        num_visible=jnp.broadcast_to(num_visible, sizes.images),
    )


def make_lists(
    sizes: Sizes,
    packed: PackedSplats,
    is_open: Int[Array, "tiles"],
    first: Int[Array, ""],
) -> SliceLists:
    """Bins as many Gaussians as fit, from depth rank `first` on.

    Tiles where `is_open` is 0 get no entries.
    """
    table = _open_table(sizes, is_open)
    counts = binning.count_tiles(sizes, packed.records, packed.order, table, first)
    ranks = jnp.arange(sizes.num_records, dtype=jnp.int32)
    ends, is_trusted = _running_totals(counts)
    is_taken = is_trusted & (ends <= sizes.capacity) & (ranks >= first)
    counts = jnp.where(is_taken, counts, 0)
    total = jnp.sum(counts, dtype=jnp.int32)
    tiles, records = binning.emit_entries(
        sizes,
        packed.records,
        packed.order,
        is_open,
        counts,
        ends - counts,
    )
    slots = jnp.arange(sizes.capacity, dtype=jnp.int32)
    records = jnp.where(slots < total, records, 0)
    tiles = jnp.where(slots < total, tiles, sizes.num_tiles)
    is_small = sizes.num_tiles < 2**16  # needs half the passes of the sort
    keys = tiles.astype(jnp.uint16 if is_small else jnp.uint32)
    keys, slots = lax.sort((keys, slots), num_keys=1, is_stable=True)
    bounds = binning.list_starts(sizes, keys)
    num_taken = jnp.sum(is_taken, dtype=jnp.int32)
    return SliceLists(
        tiles=tiles,
        entries=records[slots],
        slots=slots,
        starts=bounds[:-1],
        ends=bounds[1:],
        counts=counts,
        firsts=ends - counts,
        num_taken=jnp.broadcast_to(num_taken, sizes.images),
    )


def _open_table(sizes, is_open):
    """[corners] number of open tiles above and left of each corner, per image."""
    grid = sizes.grid
    table = is_open.reshape(sizes.images, grid.rows, grid.columns)
    for axis in (1, 2):
        table = jnp.cumsum(table, axis=axis, dtype=jnp.int32)
    return jnp.pad(table, ((0, 0), (1, 0), (1, 0))).reshape(-1)


def _running_totals(counts):
    """Inclusive sums in int32, and whether each is certain not to have overflowed."""
    sums = jnp.cumsum(counts, dtype=jnp.int32)
    estimates = jnp.cumsum(counts.astype(jnp.float32))
    return sums, estimates < _SAFE_TOTAL


def _record_gradients(splats, sums):
    """Gradients to splats from the moments of each Gaussian's d_exponent."""
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
