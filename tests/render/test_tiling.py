"""Tile lists against brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelift_jax.render import tiling
from facelift_jax.render.config import RenderConfig
from facelift_jax.render.constants import ALPHA_MIN
from facelift_jax.render.projection import project
from facelift_jax.render.tiling import Grid
from facelift_jax.structs import Cameras, Gaussians

GRID = Grid(width=53, height=30, tile_size=8)  # 7 x 4 tiles, neither side a multiple
N = 12


def splats_of(seed, scale, thinness, spread):
    rng = np.random.default_rng(seed)
    means = rng.uniform(-spread, spread, (N, 3)) + np.array([0, 0, 2])
    means[: N // 2, 2] = rng.choice([1.5, 2.0], N // 2)  # equal depths
    scales = scale * np.exp(thinness * rng.standard_normal((N, 3)))
    arrays = (means, rng.standard_normal((N, 4)), scales, rng.uniform(0, 1, N))
    sh = np.zeros((N, 1, 3))
    gaussians = Gaussians(*(jnp.asarray(a, jnp.float32) for a in (*arrays, sh)))
    K = jnp.asarray([[30.0, 0, 20.0], [0, 34.0, 19.0], [0, 0, 1]], jnp.float32)
    cam = Cameras(jnp.eye(4), K, GRID.width, GRID.height)
    return _project(gaussians, cam)


_project = jax.jit(lambda g, c: project(g, c, RenderConfig()))


@functools.partial(jax.jit, static_argnums=(3, 4))
def bin_slice(splats, first, is_open, window, capacity):
    order = tiling.depth_order(splats)
    corners = tiling.tile_rectangles(splats, GRID)
    return tiling.next_slice(
        splats, corners, order, first, is_open, GRID, window, capacity
    )


def pairs(depth_slice):
    """[(tile, Gaussian)] of a slice in list order."""
    order, tiles = np.asarray(depth_slice.order), np.asarray(depth_slice.tiles)
    gaussians = np.asarray(depth_slice.gaussians)[np.asarray(depth_slice.owners)[order]]
    num_entries = int(depth_slice.starts[-1])
    return list(zip(tiles[:num_entries], gaussians[:num_entries], strict=True))


def contributing(splats):
    """{(tile, Gaussian)} with alpha >= ALPHA_MIN at some pixel of the tile."""
    s = jax.tree.map(lambda x: np.asarray(x, np.float64), splats)
    y, x = np.mgrid[: GRID.height, : GRID.width] + 0.5
    tile = (y // GRID.tile_size) * GRID.columns + x // GRID.tile_size
    result = set()
    for i in np.flatnonzero(np.asarray(splats.is_visible)):
        dx, dy = s.means2d[i, 0] - x, s.means2d[i, 1] - y
        A, B, C = s.conics[i]
        alpha = s.opacities[i] * np.exp(-0.5 * (A * dx**2 + C * dy**2) - B * dx * dy)
        result |= {(int(t), int(i)) for t in tile[alpha >= ALPHA_MIN]}
    return result


scenes = st.tuples(
    st.integers(0, 10**6),
    st.sampled_from([0.003, 0.05, 0.4, 3.0]),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from([0.5, 1.5]),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(scenes)
def test_lists_against_brute_force(scene):
    splats = splats_of(*scene)
    is_open = jnp.ones(GRID.num_tiles, bool)
    depth_slice = bin_slice(splats, jnp.int32(0), is_open, N, N * GRID.num_tiles)
    listed = pairs(depth_slice)
    assert len(set(listed)) == len(listed), "a pair is listed twice"
    assert contributing(splats) <= set(listed), "a contributing pair is missing"
    depths = np.asarray(splats.depths)
    keys = [(tile, depths[i], i) for tile, i in listed]
    assert keys == sorted(keys), "not by tile, depth, index"
    assert int(depth_slice.num_remaining) == 0


@settings(max_examples=25, deadline=None, derandomize=True)
@given(scenes)
def test_slices_add_up_to_the_whole(scene):
    splats = splats_of(*scene)
    is_open = jnp.ones(GRID.num_tiles, bool)
    whole = bin_slice(splats, jnp.int32(0), is_open, N, N * GRID.num_tiles)
    first, parts = 0, []
    while first < N:
        depth_slice = bin_slice(splats, jnp.int32(first), is_open, 5, GRID.num_tiles)
        assert int(depth_slice.num_taken) > 0, "no progress"
        parts += pairs(depth_slice)
        first += int(depth_slice.num_taken)
    assert sorted(parts) == sorted(pairs(whole))


def test_closed_tiles_receive_nothing():
    splats = splats_of(0, 0.4, 0.5, 0.5)
    is_open = jnp.arange(GRID.num_tiles) % 3 == 0
    depth_slice = bin_slice(splats, jnp.int32(0), is_open, N, N * GRID.num_tiles)
    everything = bin_slice(
        splats, jnp.int32(0), jnp.ones_like(is_open), N, N * GRID.num_tiles
    )
    expected = [(t, i) for t, i in pairs(everything) if t % 3 == 0]
    assert pairs(depth_slice) == expected
    assert expected


def test_entries_that_do_not_fit_are_counted():
    splats = splats_of(0, 0.4, 0.5, 0.5)
    is_open = jnp.ones(GRID.num_tiles, bool)
    whole = bin_slice(splats, jnp.int32(0), is_open, N, N * GRID.num_tiles)
    total = int(np.sum(whole.counts))
    depth_slice = bin_slice(splats, jnp.int32(0), is_open, N, total // 2)
    taken = int(np.sum(depth_slice.counts))
    assert 0 < taken <= total // 2
    assert taken + int(depth_slice.num_remaining) == total
    ranks = np.asarray(depth_slice.counts) > 0
    assert not ranks[np.argmin(ranks) :].any(), "nearer ones were left out"


def test_running_totals_saturate_below_int32():
    totals = tiling._running_totals(jnp.full(5, 2**29, jnp.int32))
    np.testing.assert_array_equal(totals, [2**29] + [2**30 - 1] * 4)


@pytest.mark.parametrize("excess", [-1, 0, 1])
@pytest.mark.parametrize("num_fitting", [1, N // 2, N])
def test_drop_farthest_keeps_what_fits(num_fitting, excess):
    """Caps at, just below and just above the entries of the nearest Gaussians."""
    splats = splats_of(0, 0.4, 0.5, 0.5)
    x0, y0, x1, y1 = np.asarray(tiling.tile_rectangles(splats, GRID)).T
    order = np.asarray(tiling.depth_order(splats))
    ends = np.cumsum(((x1 - x0) * (y1 - y0))[order])
    cap = int(ends[num_fitting - 1]) + excess
    capped, dropped = tiling.drop_farthest(splats, GRID, cap)
    fits = np.zeros(N, bool)
    fits[order[ends <= cap]] = True
    is_visible = np.asarray(splats.is_visible)
    np.testing.assert_array_equal(capped.is_visible, is_visible & fits)
    expected = np.where(is_visible & fits, splats.opacities, 0)
    np.testing.assert_array_equal(capped.opacities, expected)
    assert int(dropped) == ends[-1] - max(ends[ends <= cap], default=0)
    assert capped.is_visible.sum() < is_visible.sum() or cap >= ends[-1]


def test_wide_keys_sort_like_narrow_ones():
    """Where (tile, slot) keys need more than 32 bits, pairs are sorted instead."""
    tiles = jnp.asarray(np.random.default_rng(0).integers(0, 50, 300), jnp.int32)
    narrow = tiling._sort_by_tile(tiles, 50)
    wide = tiling._sort_by_tile(tiles, 2**30)
    np.testing.assert_array_equal(narrow, wide)
