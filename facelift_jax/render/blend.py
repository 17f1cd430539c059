"""Front-to-back blending of tile lists, forward and backward, many tiles at a time.

Memory layout: pixel arrays are [row in tile, column in tile, tile], tiles last, so one
record per tile broadcasts over pixels, and a sum over pixels is a sum over leading axes;
both vectorise over tiles. Tiles are sorted by list length and worked on in groups, each
group in a loop as long as its longest list.

Per pixel and record (mean u v, conic A B C, opacity o, colour c, depth z):

  dx = u - column, dy = v - row, sigma = (A dx^2 + C dy^2) / 2 + B dx dy
  alpha = min(alpha_max, o exp(-sigma)); nothing if sigma < 0 or alpha < ALPHA_MIN
  the pixel ends without this record if T (1 - alpha) <= TRANSMITTANCE_MIN
  weight = T alpha; T <- T (1 - alpha)

A pixel that has ended stores -T, which fails every later test by its sign. Backward walks
the same way with `rest`, what the loss still gets from behind:

  value = c . d_color + z d_depth
  rest <- rest - weight value      (starts as the sum over all records + T_final d_T)
  d_alpha = T value - rest / (1 - alpha)
  d_sigma = -o exp(-sigma) d_alpha, zero where alpha_max acts

T is a running product as in the forward pass and is never rebuilt by division.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from facelift_jax.numerics import Array
from facelift_jax.render.constants import ALPHA_MIN, TRANSMITTANCE_MIN

GROUP = 32  # tiles worked on together
UNROLL = 4  # records per loop iteration
NUM_FIELDS = 10  # u, v, A, B, C, opacity, red, green, blue, depth


class Lists(NamedTuple):
    """Tile lists over lanes; a lane is one tile of one picture.

    Attributes:
      starts: [lanes] first entry of each lane's list in `entries`.
      counts: [lanes] length of each lane's list.
      entries: [m] rows of `records`, list after list, near to far in each.
      records: [r 10] what blending needs of every splat.
      corners: [2 lanes] column and row of each tile's first pixel.
    """

    starts: Int[Array, "lanes"]
    counts: Int[Array, "lanes"]
    entries: Int[Array, "m"]
    records: Float[Array, "r 10"]
    corners: Float[Array, "2 lanes"]


class Rows(NamedTuple):
    """One gradient row per list entry, in the order of the walk.

    Attributes:
      rows: [steps unroll group 10] gradients with respect to a record.
      first_steps: [groups] index of each group's first step in `rows`.
      num_steps: [groups] steps walked before all pixels had ended.
      places: [lanes] where each lane went: group * GROUP + position.
    """

    rows: Float[Array, "steps unroll group 10"]
    first_steps: Int[Array, "groups"]
    num_steps: Int[Array, "groups"]
    places: Int[Array, "lanes"]


def blend_lists(state, lists: Lists, alpha_max: float):
    """Draws one slice's lists over `state` = (T, red, green, blue, depth) lanes.

    Each member is [rows columns lanes]; the number of lanes is a multiple of GROUP.
    """
    order = jnp.argsort(-lists.counts)

    def blend_group(group):
        state, lanes = group

        def body(carry):
            step, state = carry
            for record in _fetch(lists, lanes, step):
                state = _blend(state, record, lanes.corners, alpha_max)
            return step + 1, state

        def is_going(carry):
            return _is_going(carry[0], carry[1][0], lanes)

        return lax.while_loop(is_going, body, (jnp.int32(0), state))[1]

    grouped = jax.tree.map(lambda x: _to_groups(x, order), (state, _lanes(lists)))
    return _from_groups(lax.map(blend_group, grouped), order)


def differentiate_lists(state, d_pixels, lists: Lists, alpha_max: float, window: int):
    """Gradient rows of one slice's lists, and the state behind them.

    Args:
      state: (T, rest) lanes in front of the slice.
      d_pixels: cotangents of (red, green, blue, depth) lanes.
      lists: the slice.
      alpha_max: cap on alpha.
      window: no list is longer.
    """
    order = jnp.argsort(-lists.counts)
    grouped = jax.tree.map(
        lambda x: _to_groups(x, order), (state, d_pixels, _lanes(lists))
    )
    num_groups = order.shape[0] // GROUP
    # Groups come longest first, so all steps of a group but the first have more entries
    # behind them than GROUP * UNROLL of the group before: the sum cannot exceed this.
    num_steps = lists.entries.shape[0] // (GROUP * UNROLL) + num_groups
    num_steps += -(-window // UNROLL)
    rows = jnp.zeros((num_steps, UNROLL, GROUP, NUM_FIELDS), lists.records.dtype)

    def walk_group(carry, group):
        first, rows = carry
        state, d_pixels, lanes = group

        def body(carry):
            step, state, rows = carry
            here = []
            for record in _fetch(lists, lanes, step):
                state, row = _differentiate(
                    state, record, d_pixels, lanes.corners, alpha_max
                )
                here.append(row)
            rows = lax.dynamic_update_index_in_dim(
                rows, jnp.stack(here), first + step, 0
            )
            return step + 1, state, rows

        def is_going(carry):
            return _is_going(carry[0], carry[1][0], lanes)

        start = (jnp.int32(0), state, rows)
        step, state, rows = lax.while_loop(is_going, body, start)
        return (first + step, rows), (state, first, step)

    (_, rows), (state, first_steps, num_steps) = lax.scan(
        walk_group, (jnp.int32(0), rows), grouped
    )
    lane_index = jnp.arange(order.shape[0], dtype=jnp.int32)
    places = jnp.zeros_like(order).at[order].set(lane_index, unique_indices=True)
    return _from_groups(state, order), Rows(rows, first_steps, num_steps, places)


def row_index(rows: Rows, lanes: Int[Array, "m"], ranks: Int[Array, "m"]):
    """Flat index into `rows` of list entries (lane, rank); -1 where none was reached."""
    places = rows.places[lanes]
    group, position = places // GROUP, places % GROUP
    step = ranks // UNROLL
    index = (rows.first_steps[group] + step) * UNROLL + ranks % UNROLL
    return jnp.where(step < rows.num_steps[group], index * GROUP + position, -1)


class _Lanes(NamedTuple):
    starts: Array
    counts: Array
    corners: Array


def _lanes(lists):
    return _Lanes(lists.starts, lists.counts, lists.corners)


def _to_groups(x, order):
    """[... lanes] -> [groups ... GROUP], lanes in the given order."""
    x = x[..., order]
    x = x.reshape(*x.shape[:-1], -1, GROUP)
    return jnp.moveaxis(x, -2, 0)


def _from_groups(tree, order):
    """Inverse of `_to_groups` for every array of a tree."""

    def back(x):
        x = jnp.moveaxis(x, 0, -2)
        x = x.reshape(*x.shape[:-2], -1)
        return jnp.zeros_like(x).at[..., order].set(x, unique_indices=True)

    return jax.tree.map(back, tree)


def _is_going(step, transmittance, lanes):
    return (step * UNROLL < jnp.max(lanes.counts)) & jnp.any(transmittance > 0)


def _fetch(lists, lanes, step):
    """UNROLL records per lane, each a tuple of ten [GROUP]; opacity 0 past the end."""
    ranks = step * UNROLL + jnp.arange(UNROLL, dtype=jnp.int32)[:, None]
    index = jnp.minimum(lanes.starts[None] + ranks, lists.entries.shape[0] - 1)
    records = jnp.moveaxis(lists.records[lists.entries[index]], -1, 1)
    is_entry = ranks < lanes.counts[None]
    opacities = jnp.where(is_entry, records[:, 5], 0)
    return [(*records[k, :5], opacities[k], *records[k, 6:]) for k in range(UNROLL)]


def _alpha(record, corners, shape, alpha_max):
    """dx, dy, uncapped alpha, alpha, and whether the record is seen, per pixel."""
    u, v, A, B, C, opacity = record[:6]
    size = shape[0]
    steps = jnp.arange(size, dtype=u.dtype) + 0.5
    dx = (u - corners[0])[None, None] - steps[None, :, None]
    dy = (v - corners[1])[None, None] - steps[:, None, None]
    A, B, C, opacity = (x[None, None] for x in (A, B, C, opacity))
    sigma = 0.5 * (A * dx * dx + C * dy * dy) + B * dx * dy
    raw = opacity * jnp.exp(-sigma)
    alpha = jnp.minimum(raw, alpha_max)
    return dx, dy, raw, alpha, (sigma >= 0) & (alpha >= ALPHA_MIN)


def _advance(transmittance, alpha, is_seen):
    """Weight of a record, the new T (negative: ended), and whether it was blended."""
    after = transmittance * (1 - alpha)
    is_open = after > TRANSMITTANCE_MIN
    is_blended = is_seen & is_open
    weight = jnp.where(is_blended, transmittance * alpha, 0)
    ended = jnp.where(is_seen, -jnp.abs(transmittance), transmittance)
    return weight, jnp.where(is_blended, after, ended), is_blended


def _blend(state, record, corners, alpha_max):
    transmittance, *sums = state
    *_, alpha, is_seen = _alpha(record, corners, transmittance.shape, alpha_max)
    weight, transmittance, _ = _advance(transmittance, alpha, is_seen)
    values = record[6:]
    sums = [s + weight * x[None, None] for s, x in zip(sums, values, strict=True)]
    return (transmittance, *sums)


def _differentiate(state, record, d_pixels, corners, alpha_max):
    """State behind one record per lane, and its gradient row [GROUP 10]."""
    before, rest = state
    dx, dy, raw, alpha, is_seen = _alpha(record, corners, before.shape, alpha_max)
    weight, after, is_blended = _advance(before, alpha, is_seen)
    value = sum(x[None, None] * d for x, d in zip(record[6:], d_pixels, strict=True))
    rest = rest - weight * value
    d_alpha = before * value - rest / (1 - alpha)
    d_sigma = jnp.where(is_blended & (raw <= alpha_max), -raw * d_alpha, 0)
    d_values = [jnp.sum(weight * d, axis=(0, 1)) for d in d_pixels]

    over_rows = [jnp.sum(d_sigma * f, axis=0) for f in (jnp.ones_like(dy), dy, dy * dy)]
    dx = dx[0]
    total, sum_y, sum_yy = (jnp.sum(s, axis=0) for s in over_rows)
    sum_x, sum_xy = (jnp.sum(s * dx, axis=0) for s in over_rows[:2])
    sum_xx = jnp.sum(over_rows[0] * dx * dx, axis=0)
    _, _, A, B, C, opacity = record[:6]
    row = (
        A * sum_x + B * sum_y,
        B * sum_x + C * sum_y,
        0.5 * sum_xx,
        sum_xy,
        0.5 * sum_yy,
        -total / jnp.where(opacity > 0, opacity, 1),
        *d_values,
    )
    return (after, rest), jnp.stack(row, axis=-1)
