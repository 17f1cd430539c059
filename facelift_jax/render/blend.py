"""Front-to-back alpha compositing of tile lists and its derivative, in plain JAX.

Memory layout: pixel arrays are [row in tile, column in tile, lane]; a lane is one tile
of one image. With lanes last, one record per lane broadcasts over pixels and sums over
pixels run over leading axes; both vectorize over lanes. Lanes are sorted by list length
and processed in groups. Each group loops as far as its longest list.

A record is one splat in packed form: mean u v, conic A B C, opacity o, color c, depth
z. Per pixel and record, with transmittance T:

  dx = u - column, dy = v - row, sigma = (A dx^2 + C dy^2) / 2 + B dx dy
  alpha = min(alpha_max, o exp(-sigma)); skipped if sigma < 0 or alpha < ALPHA_MIN
  if T (1 - alpha) <= TRANSMITTANCE_MIN the pixel has ended; this record is not blended
  weight = T alpha; T <- T (1 - alpha)

A pixel that has ended stores -T; the sign makes every later test fail. The backward
pass goes front to back too. `rest` is the contribution of the records behind the
current one to the loss:

  value = c . d_color + z d_depth
  rest <- rest - weight value      (starts as the sum over all records + T_final d_T)
  d_alpha = T value - rest / (1 - alpha)
  d_sigma = -o exp(-sigma) d_alpha, zero where alpha_max acts

T is a running product as in the forward pass; it is never recovered by division.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from facelift_jax.geometry.numerics import Array
from facelift_jax.render.batching import match_varying_axes
from facelift_jax.render.constants import ALPHA_MIN, TRANSMITTANCE_MIN

GROUP = 32  # lanes processed together
NUM_FIELDS = 10  # u, v, A, B, C, opacity, red, green, blue, depth


class TileLists(NamedTuple):
    """The lists of one slice over lanes; a lane is one tile of one image.

    Attributes:
      starts: [lanes] first entry of each lane's list in `entries`.
      counts: [lanes] length of each lane's list.
      entries: [m] indices into `records`, list after list, each near to far.
      records: [r 10] packed splats.
      corners: [2 lanes] column and row of each tile's first pixel.
    """

    starts: Int[Array, "lanes"]
    counts: Int[Array, "lanes"]
    entries: Int[Array, "m"]
    records: Float[Array, "r 10"]
    corners: Float[Array, "2 lanes"]


class GradientRows(NamedTuple):
    """One gradient row per list entry, in the order in which groups visit them.

    Attributes:
      rows: [steps GROUP 10] gradients with respect to a record.
      firsts: [groups] first step of each group in `rows`.
      num_ranks: [groups] steps of each group before all its pixels had ended.
      positions: [lanes] group * GROUP + position in the group of each lane.
    """

    rows: Float[Array, "steps group 10"]
    firsts: Int[Array, "groups"]
    num_ranks: Int[Array, "groups"]
    positions: Int[Array, "lanes"]


def blend_lists(state, lists: TileLists, alpha_max: float):
    """Blends one slice's lists into `state`: T [y x lanes] and sums [4 y x lanes].

    The sums are of red, green, blue and depth. Lanes are a multiple of GROUP.
    """
    order = jnp.argsort(-lists.counts)

    def blend_group(group):
        state, lanes = group

        def body(carry):
            rank, state = carry
            record = _fetch(lists, lanes, rank)
            return rank + 1, _blend(state, record, lanes.corners, alpha_max)

        def has_work(carry):
            return _has_work(carry[0], carry[1][0], lanes)

        return lax.while_loop(has_work, body, (jnp.int32(0), state))[1]

    grouped = jax.tree.map(lambda x: _to_groups(x, order), (state, _lanes(lists)))
    return _from_groups(lax.map(blend_group, grouped), order)


def differentiate_lists(
    state, d_pixels, lists: TileLists, alpha_max: float, window: int
):
    """The state behind one slice's lists, and their gradient rows.

    Args:
      state: T and rest, [y x lanes], in front of the slice.
      d_pixels: [4 y x lanes] cotangents of red, green, blue and depth.
      lists: the slice.
      alpha_max: cap on alpha.
      window: upper bound on the length of a list.
    """
    order = jnp.argsort(-lists.counts)
    grouped = jax.tree.map(
        lambda x: _to_groups(x, order), (state, d_pixels, _lanes(lists))
    )
    # Groups are sorted by list length: every list of a group is at least as long as the
    # longest list of the next group. So all groups except the first take at most
    # entries / GROUP steps in total.
    num_steps = window + -(-lists.entries.shape[0] // GROUP)
    rows = jnp.zeros((num_steps, GROUP, NUM_FIELDS), lists.records.dtype)
    rows = match_varying_axes(rows, lists.records)

    def differentiate_group(carry, group):
        first, rows = carry
        state, d_pixels, lanes = group

        def body(carry):
            rank, state, rows = carry
            record = _fetch(lists, lanes, rank)
            state, row = _differentiate(
                state, record, d_pixels, lanes.corners, alpha_max
            )
            rows = lax.dynamic_update_index_in_dim(rows, row, first + rank, 0)
            return rank + 1, state, rows

        def has_work(carry):
            return _has_work(carry[0], carry[1][0], lanes)

        start = (jnp.int32(0), state, rows)
        num_ranks, state, rows = lax.while_loop(has_work, body, start)
        return (first + num_ranks, rows), (state, first, num_ranks)

    (_, rows), (state, firsts, num_ranks) = lax.scan(
        differentiate_group, (jnp.int32(0), rows), grouped
    )
    lane_index = jnp.arange(order.shape[0], dtype=jnp.int32)
    positions = (
        jnp.zeros_like(lane_index).at[order].set(lane_index, unique_indices=True)
    )
    return _from_groups(state, order), GradientRows(rows, firsts, num_ranks, positions)


def row_index(
    rows: GradientRows, lanes: Int[Array, "*m"], ranks: Int[Array, "*m"]
) -> Int[Array, "*m"]:
    """Flat index into `rows` of list entries (lane, rank); -1 where not reached."""
    positions = rows.positions[lanes]
    group, position = positions // GROUP, positions % GROUP
    index = (rows.firsts[group] + ranks) * GROUP + position
    return jnp.where(ranks < rows.num_ranks[group], index, -1)


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


def _has_work(rank, transmittance, lanes):
    return (rank < jnp.max(lanes.counts)) & jnp.any(transmittance > 0)


def _fetch(lists, lanes, rank):
    """[10 GROUP]: each lane's record of one rank; opacity 0 past the list's end."""
    index = jnp.minimum(lanes.starts + rank, lists.entries.shape[0] - 1)
    record = lists.records[lists.entries[index]].T
    return record.at[5].set(jnp.where(rank < lanes.counts, record[5], 0))


def _alpha(record, corners, size, alpha_max):
    """dx, dy, uncapped alpha, and alpha (0 where it is skipped), per pixel."""
    u, v, A, B, C, opacity = record[:6]
    steps = jnp.arange(size, dtype=u.dtype) + 0.5
    dx = (u - corners[0])[None, None] - steps[None, :, None]
    dy = (v - corners[1])[None, None] - steps[:, None, None]
    A, B, C, opacity = (x[None, None] for x in (A, B, C, opacity))
    sigma = 0.5 * (A * dx * dx + C * dy * dy) + B * dx * dy
    # On a CPU, selecting before exp() is twice as fast as selecting after it.
    raw = opacity * jnp.exp(jnp.where(sigma >= 0, -sigma, -jnp.inf))
    alpha = jnp.where(raw > alpha_max, alpha_max, raw)
    return dx, dy, raw, jnp.where(alpha >= ALPHA_MIN, alpha, 0)


def _advance(transmittance, alpha):
    """Weight of a record, and T behind it: negative once the pixel has ended."""
    after = transmittance * (1 - alpha)
    is_open = after > TRANSMITTANCE_MIN
    weight = jnp.where(is_open, transmittance * alpha, 0)
    return weight, jnp.where(is_open, after, -jnp.abs(transmittance))


def _blend(state, record, corners, alpha_max):
    transmittance, sums = state
    alpha = _alpha(record, corners, transmittance.shape[0], alpha_max)[-1]
    weight, transmittance = _advance(transmittance, alpha)
    return transmittance, sums + weight[None] * record[6:, None, None]


def _differentiate(state, record, d_pixels, corners, alpha_max):
    """State behind one record per lane, and its gradient row [GROUP 10]."""
    before, rest = state
    dx, dy, raw, alpha = _alpha(record, corners, before.shape[0], alpha_max)
    weight, after = _advance(before, alpha)
    value = jnp.sum(record[6:, None, None] * d_pixels, axis=0)
    rest = rest - weight * value
    d_alpha = before * value - rest / (1 - alpha)
    d_sigma = jnp.where((weight > 0) & (raw <= alpha_max), -raw * d_alpha, 0)
    d_values = jnp.sum(weight[None] * d_pixels, axis=(1, 2))

    # Sum over rows first: dx depends on the column only, so three full sums suffice.
    g, g_y, g_yy = jnp.sum(
        jnp.stack([d_sigma, d_sigma * dy, d_sigma * dy * dy]), axis=1
    )
    dx = dx[0]
    moments = jnp.stack([g, g * dx, g_y, g * dx * dx, g_y * dx, g_yy])
    total, sum_x, sum_y, sum_xx, sum_xy, sum_yy = jnp.sum(moments, axis=1)
    A, B, C, opacity = record[2:6]
    d_geometry = [
        A * sum_x + B * sum_y,
        B * sum_x + C * sum_y,
        0.5 * sum_xx,
        sum_xy,
        0.5 * sum_yy,
        -total / jnp.where(opacity > 0, opacity, 1),
    ]
    row = jnp.concatenate([jnp.stack(d_geometry), d_values])
    return (after, rest), row.T
