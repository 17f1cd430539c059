"""Tile-based rasterizer in plain JAX, for every platform.

JAX cannot reverse-differentiate a while loop over depth slices, so the derivative is
written by hand. Forward and backward pass loop front to back over the same slices: take
as many Gaussians as fit, bin them by tile, blend, and continue until all are drawn or
all pixels have ended.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facelift_jax.render import blend, tiling
from facelift_jax.render.batching import match_varying_axes, vmap_over_images
from facelift_jax.render.config import RenderConfig
from facelift_jax.render.splats import Pixels, Splats
from facelift_jax.render.tiling import DepthSlice, Grid

_WINDOW = 16384  # Gaussians considered per slice
_ENTRIES_PER_GAUSSIAN = 8  # room for list entries, per Gaussian considered
_BLOCK_ENTRIES = 2**20  # list entries of a block of images processed together


class BlockPlan(NamedTuple):
    """Static sizes of a block of images; they determine the memory of its lists.

    Attributes:
      grid: tiles of one image.
      window: Gaussians considered per slice.
      capacity: list entries of one image in one slice.
      images: largest number of images processed together.
      is_capped: one slice only; entries that do not fit are dropped and counted.
      alpha_max: cap on alpha.
    """

    grid: Grid
    window: int
    capacity: int
    images: int
    is_capped: bool
    alpha_max: float


def plan_blocks(n: int, width: int, height: int, config: RenderConfig) -> BlockPlan:
    """Sizes of slices and blocks for images of n Gaussians."""
    grid = Grid(width, height, config.tile_size)
    if config.max_entries is not None:
        window, num_entries = n, config.max_entries
    else:
        window = min(n, _WINDOW)
        num_entries = config.slice_entries or _ENTRIES_PER_GAUSSIAN * window
        num_entries = max(num_entries, grid.num_tiles)
    is_capped = config.max_entries is not None
    capacity = min(num_entries, window * grid.num_tiles)
    images = max(1, _BLOCK_ENTRIES // capacity)
    return BlockPlan(grid, window, capacity, images, is_capped, config.alpha_max)


def rasterize(splats: Splats, width: int, height: int, config: RenderConfig) -> Pixels:
    """Rasterizes the images of splats [i n ...]."""
    num_images, n = splats.depths.shape
    if n == 0:
        dtype = splats.depths.dtype
        blank = jnp.zeros((num_images, height, width), dtype)
        colors = jnp.zeros((*blank.shape, 3), dtype)
        return Pixels(colors, blank, blank + 1, jnp.zeros(num_images, jnp.int32))
    return _rasterize(plan_blocks(n, width, height, config), splats)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rasterize(plan, splats):
    return vmap_over_images(functools.partial(_map_blocks, _forward), plan)(splats)


def _rasterize_fwd(plan, splats):
    pixels = _rasterize(plan, splats)
    return pixels, (splats, pixels)


def _rasterize_bwd(plan, residuals, cotangent):
    splats, pixels = residuals
    d_pixels = (cotangent.colors, cotangent.depths, cotangent.transmittances)
    backward = vmap_over_images(functools.partial(_map_blocks, _backward), plan)
    d_records = backward(splats, pixels, d_pixels)
    d_splats = Splats(
        means2d=d_records[..., 0:2],
        conics=d_records[..., 2:5],
        opacities=d_records[..., 5],
        colors=d_records[..., 6:9],
        depths=d_records[..., 9],
        radii=jnp.zeros_like(splats.radii),
        levels=jnp.zeros_like(splats.levels),
        is_visible=np.zeros(splats.is_visible.shape, jax.dtypes.float0),
    )
    return (d_splats,)


_rasterize.defvjp(_rasterize_fwd, _rasterize_bwd)


def _map_blocks(function, plan, *args):
    """function(plan, *block) for blocks of images, one block after the other."""
    total = jax.tree.leaves(args)[0].shape[0]
    num_blocks = -(-total // plan.images)
    size = -(-total // num_blocks)

    def split(x):
        padding = [(0, num_blocks * size - total)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(num_blocks, size, *x.shape[1:])

    out = lax.map(lambda block: function(plan, *block), jax.tree.map(split, args))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:total], out)


def _forward(plan, splats):
    """Pixels of one block of images."""
    num_images = splats.depths.shape[0]
    canvas = _blank_lanes(plan, splats)

    def draw(first, depth_slice, lists, state, dropped):
        state = blend.blend_lists(state, lists, plan.alpha_max)
        return state, dropped + depth_slice.num_remaining

    start = (canvas, jnp.zeros((4, *canvas.shape), canvas.dtype))
    dropped = jnp.zeros(num_images, jnp.int32)
    (canvas, sums), dropped = _loop_over_slices(plan, splats, draw, start, dropped)
    transmittances, *sums = [_from_lanes(plan, x, num_images) for x in (canvas, *sums)]
    colors, depths = jnp.stack(sums[:3], axis=-1), sums[3]
    if not plan.is_capped:  # later slices took the entries that a slice left
        dropped = jnp.zeros_like(dropped)
    return Pixels(colors, depths, jnp.abs(transmittances), dropped)


def _backward(plan, splats, pixels, d_pixels):
    """Gradient rows [i n 10] of one block of images."""
    num_images, n = splats.depths.shape
    d_colors, d_depths, d_transmittances = d_pixels
    rest = jnp.sum(pixels.colors * d_colors, axis=-1) + pixels.depths * d_depths
    rest = _to_lanes(plan, rest + pixels.transmittances * d_transmittances, 0)
    canvas = _blank_lanes(plan, splats)
    d_values = [_to_lanes(plan, d_colors[..., c], 0) for c in range(3)]
    d_values = jnp.stack([*d_values, _to_lanes(plan, d_depths, 0)])

    def draw(first, depth_slice, lists, state, d_records):
        state, rows = blend.differentiate_lists(
            state, d_values, lists, plan.alpha_max, plan.window
        )
        d_taken = _sum_rows(plan, depth_slice, rows)
        # Gaussians not taken have zeros here; the next slice overwrites them.
        return state, jax.vmap(_write)(d_records, d_taken, first)

    shape = (num_images, n + plan.window, blend.NUM_FIELDS)
    d_records = jnp.zeros(shape, canvas.dtype)
    _, d_records = _loop_over_slices(plan, splats, draw, (canvas, rest), d_records)
    order = jax.vmap(tiling.depth_order)(splats)
    return jax.vmap(_scatter_rows)(order, d_records[:, :n])


def _write(rows, new_rows, first):
    return lax.dynamic_update_slice_in_dim(rows, new_rows, first, 0)


def _scatter_rows(order, rows):
    return jnp.zeros_like(rows).at[order].set(rows, unique_indices=True)


def _loop_over_slices(plan, splats, draw, state, extra):
    """state, extra = draw(first, slice, lists, state, extra) for every depth slice.

    `state` is a tuple of arrays over lanes; the first holds the transmittances.
    """
    order = jax.vmap(tiling.depth_order)(splats)
    rectangles = jax.vmap(lambda s: tiling.tile_rectangles(s, plan.grid))(splats)
    records = _pack_records(splats)
    num_visible = jnp.sum(splats.is_visible, axis=1, dtype=jnp.int32)
    num_images = splats.depths.shape[0]
    sizes = {"grid": plan.grid, "window": plan.window, "capacity": plan.capacity}
    next_slices = jax.vmap(functools.partial(tiling.next_slice, **sizes))

    def draw_slice(carry):
        first, state, extra = carry
        lanes = jnp.any(state[0] > 0, axis=(0, 1))
        is_open = lanes[: num_images * plan.grid.num_tiles]
        is_open = is_open.reshape(num_images, plan.grid.num_tiles)
        depth_slice = next_slices(splats, rectangles, order, first, is_open)
        lists = _tile_lists(plan, depth_slice, records)
        state, extra = draw(first, depth_slice, lists, state, extra)
        return first + depth_slice.num_taken, state, extra

    def has_work(carry):
        first, state, _ = carry
        return jnp.any(first < num_visible) & jnp.any(state[0] > 0)

    carry = (jnp.zeros(num_images, jnp.int32), state, extra)
    carry = match_varying_axes(carry, records)
    if plan.is_capped:
        return draw_slice(carry)[1:]
    return lax.while_loop(has_work, draw_slice, carry)[1:]


def _pack_records(splats):
    """Records [i n 10] of all splats; `blend` defines their fields."""
    columns = [splats.opacities[..., None], splats.colors, splats.depths[..., None]]
    return jnp.concatenate([splats.means2d, splats.conics, *columns], axis=-1)


def _tile_lists(plan: BlockPlan, depth_slice: DepthSlice, records) -> blend.TileLists:
    """Tile lists of all images of a block, with indices into shared arrays."""
    num_images, n = records.shape[:2]
    image = jnp.arange(num_images, dtype=jnp.int32)[:, None]
    owners = jnp.take_along_axis(depth_slice.owners, depth_slice.order, axis=1)
    entries = jnp.take_along_axis(depth_slice.gaussians, owners, axis=1) + image * n
    starts = depth_slice.starts[:, :-1] + image * plan.capacity
    tile = jnp.arange(plan.grid.num_tiles, dtype=jnp.int32)
    corners = jnp.stack([tile % plan.grid.columns, tile // plan.grid.columns])
    corners = jnp.tile(corners * plan.grid.tile_size, (1, num_images))
    return blend.TileLists(
        starts=_pad_lanes(starts.reshape(-1), 0),
        counts=_pad_lanes(jnp.diff(depth_slice.starts, axis=1).reshape(-1), 0),
        entries=entries.reshape(-1),
        records=records.reshape(-1, blend.NUM_FIELDS),
        corners=_pad_lanes(corners, 0).astype(records.dtype),
    )


def _sum_rows(plan, depth_slice, rows):
    """[i window 10]: rows of one slice summed per Gaussian in a fixed order."""
    num_tiles = plan.grid.num_tiles
    num_images = depth_slice.order.shape[0]
    image = jnp.arange(num_images, dtype=jnp.int32)[:, None]
    is_entry = depth_slice.tiles < num_tiles
    tiles = jnp.minimum(depth_slice.tiles, num_tiles - 1)
    slots = jnp.arange(plan.capacity, dtype=jnp.int32)[None]
    ranks = slots - jnp.take_along_axis(depth_slice.starts, tiles, axis=1)
    index = blend.row_index(rows, tiles + image * num_tiles, ranks)
    index = jnp.where(is_entry, index, -1)
    index = jax.vmap(_scatter_rows)(depth_slice.order, index)
    flat = rows.rows.reshape(-1, blend.NUM_FIELDS)
    values = jnp.where(index[..., None] >= 0, flat[jnp.maximum(index, 0)], 0)
    return _segment_sums(values, depth_slice.counts, depth_slice.owners)


def _segment_sums(values, counts, owners):
    """Sums of runs of neighbors: values [i m f], counts [i w] -> [i w f].

    Doubling strides: after stride s each entry holds the sum of up to 2 s entries of
    its run, starting at itself. The order of additions is fixed on every device; a
    scatter-add on a GPU has no fixed order.
    """
    ends = jnp.cumsum(counts, axis=1, dtype=jnp.int32)
    slots = jnp.arange(values.shape[1], dtype=jnp.int32)[None]
    behind = jnp.take_along_axis(ends, owners, axis=1) - slots
    longest = jnp.max(counts)

    def double(carry):
        stride, values = carry
        shifted = jnp.roll(values, -stride, axis=1)
        values = values + jnp.where((behind > stride)[..., None], shifted, 0)
        return 2 * stride, values

    _, values = lax.while_loop(
        lambda carry: carry[0] < longest, double, (jnp.int32(1), values)
    )
    first = jnp.minimum(ends - counts, values.shape[1] - 1)
    sums = jnp.take_along_axis(values, first[..., None], axis=1)
    return jnp.where((counts > 0)[..., None], sums, 0)


def _blank_lanes(plan, splats):
    """Transmittances before the first slice; pixels beyond the border have ended."""
    shape = (splats.depths.shape[0], plan.grid.height, plan.grid.width)
    return _to_lanes(plan, jnp.ones(shape, splats.depths.dtype), -1)


def _pad_lanes(x, value):
    """[... lanes] padded to a whole number of groups."""
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % blend.GROUP)]
    return jnp.pad(x, padding, constant_values=value)


def _to_lanes(plan, images, outside):
    """[i h w] -> [tile_size tile_size lanes]; `outside` fills beyond the border."""
    grid, size = plan.grid, plan.grid.tile_size
    right, bottom = grid.columns * size - grid.width, grid.rows * size - grid.height
    padding = ((0, 0), (0, bottom), (0, right))
    x = jnp.pad(images, padding, constant_values=outside)
    x = x.reshape(-1, grid.rows, size, grid.columns, size)
    x = x.transpose(2, 4, 0, 1, 3).reshape(size, size, -1)
    return _pad_lanes(x, outside)


def _from_lanes(plan, x, num_images):
    """Inverse of `_to_lanes`."""
    grid, size = plan.grid, plan.grid.tile_size
    x = x[..., : num_images * grid.num_tiles]
    x = x.reshape(size, size, num_images, grid.rows, grid.columns)
    x = x.transpose(2, 3, 0, 4, 1)
    x = x.reshape(num_images, grid.rows * size, grid.columns * size)
    return x[:, : grid.height, : grid.width]
