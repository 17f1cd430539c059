"""The kernels one by one: tile lists, sums over a warp, compilation for GPUs."""

import dataclasses
import functools
import itertools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from render_scenes import cloud, config_for, cotangents, image_loss, ring

from facelift_jax.render import RenderConfig, api, rasterize_pallas, render
from facelift_jax.render.constants import ALPHA_MIN
from facelift_jax.render.kernels.warp_ops import LANES, Warp
from facelift_jax.render.tiling import Grid, intersects_tile

WIDTH, HEIGHT, VIEWS = 53, 30, 2
KERNELS = ("pack", "count", "emit", "starts", "blend", "differentiate", "sum_rows")
TESTS = pathlib.Path(__file__).parents[1]
TARGET = TESTS / "goldens" / "h200_target.txtpb"


@functools.partial(jax.jit, static_argnums=2)
def project(gaussians, cameras, config):
    return api.project_all(gaussians, cameras, (VIEWS,), config, "pallas")


@functools.partial(jax.jit, static_argnums=0)
def pack_and_sort(sizes, splats):
    return rasterize_pallas._pack_and_sort(sizes, splats)


@functools.partial(jax.jit, static_argnums=0)
def make_lists(sizes, records, is_open, first):
    return rasterize_pallas.make_lists(sizes, records, is_open, first)


def all_lists(splats, is_open, config):
    """Records in each tile's list over all slices, and the number of slices.

    Tiles stay open or closed throughout.
    """
    sizes = rasterize_pallas.make_sizes(*splats.depths.shape, (WIDTH, HEIGHT, config))
    records = pack_and_sort(sizes, splats)
    tile_lists, first = [[] for _ in range(sizes.num_tiles)], 0
    num_slices = 0
    while first < int(records.num_visible[0]):
        lists = jax.device_get(make_lists(sizes, records, is_open, jnp.int32(first)))
        for tile, (start, end) in enumerate(zip(lists.starts, lists.ends, strict=True)):
            tile_lists[tile] += lists.entries[start:end].tolist()
            assert (np.diff(lists.slots[start:end]) > 0).all()
        assert lists.num_taken[0] > 0
        first += int(lists.num_taken[0])
        num_slices += 1
    return tile_lists, num_slices


def exact_reach(splats, view, listed, row, column):
    """Whether the listed ellipses, enlarged by a thousandth, reach the tile."""
    with jax.enable_x64(True):
        here = jax.tree.map(lambda x: jnp.asarray(x[view, listed]), splats)
        here = here._replace(levels=here.levels * 1.001)
        columns, rows = (jnp.full(len(listed), x, jnp.int32) for x in (column, row))
        return np.asarray(intersects_tile(here, columns, rows, Grid(WIDTH, HEIGHT, 8)))


@pytest.mark.parametrize("slice_entries", [None, 100])
@pytest.mark.parametrize("seed", range(3))
def test_lists_hold_every_contributing_pair_once_and_in_order(seed, slice_entries):
    """Against all pixels of all Gaussians: thin, wide, faint and off-screen ones."""
    rng = np.random.default_rng(seed)
    stretch = 10.0 ** rng.uniform(-1.5, 0.7, (60, 3))
    base = cloud(seed, 60)
    gaussians = dataclasses.replace(
        base,
        scales=base.scales * jnp.asarray(stretch, jnp.float32),
        opacities=jnp.asarray(rng.uniform(0, 1, 60) ** 3, jnp.float32),
    )
    cameras = ring(VIEWS, WIDTH, HEIGHT, radius=1.2)
    config = config_for("pallas", slice_entries=slice_entries)
    splats = project(gaussians, cameras, config)
    is_open = (rng.random(VIEWS * 28) < 0.8).astype(np.int32)
    tile_lists, num_slices = all_lists(splats, jnp.asarray(is_open), config)
    assert (num_slices > 1) == (slice_entries is not None)
    splats = jax.tree.map(lambda x: np.asarray(x, np.float64), splats)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    num_pairs = 0
    for view in range(VIEWS):
        depths = splats.depths[view]
        for row, column in itertools.product(range(4), range(7)):
            tile = view * 28 + row * 7 + column
            listed = np.array(tile_lists[tile], int) - view * 60
            if not is_open[tile]:
                assert len(listed) == 0
                continue
            assert len(set(listed)) == len(listed)
            assert (np.diff(depths[listed]) >= 0).all()
            pixels = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            for n in range(60):
                dx = splats.means2d[view, n, 0] - x[pixels]
                dy = splats.means2d[view, n, 1] - y[pixels]
                A, B, C = splats.conics[view, n]
                sigma = 0.5 * (A * dx**2 + C * dy**2) + B * dx * dy
                alpha = splats.opacities[view, n] * np.exp(-sigma)
                if (alpha >= ALPHA_MIN).any():
                    num_pairs += 1
                    assert n in listed
            assert exact_reach(splats, view, listed, row, column).all()
    assert num_pairs > 100


@pytest.mark.parametrize("num_pixels", [64, 256])
@pytest.mark.parametrize("number", [1, 2, 7, 10])
def test_sums_over_a_warp(number, num_pixels):
    warp = Warp(interpret=True)
    rng = np.random.default_rng(number)
    terms = rng.standard_normal((number, 2, num_pixels)).astype(np.float32)
    products = [(jnp.asarray(a), jnp.asarray(b)) for a, b in terms]
    products[0] = products[0][:1]
    sums = warp.sum_products(products)
    which = warp.sum_indices(sums, number)
    expected = (terms[:, 0] * terms[:, 1]).sum(-1)
    expected[0] = terms[0, 0].sum()
    for j in range(number):
        (place,) = np.flatnonzero(np.asarray(which) == j)
        assert place < LANES
        assert abs(sums[place] - expected[j]) < 1e-4
    assert (np.asarray(which) <= number).all()


def loss(gaussians, cameras, size):
    config = RenderConfig(tile_size=size)
    out = render(gaussians, cameras, jnp.ones(3), config=config, backend="pallas")
    return image_loss(out, cotangents(WIDTH, HEIGHT))


@pytest.mark.parametrize("size", [8, 16])
def test_lowers_for_nvidia_gpus(size):
    """Every kernel through Triton's lowering; needs no GPU."""
    gaussians, cameras = cloud(0, 20), ring(VIEWS, WIDTH, HEIGHT)
    gradient = jax.jit(jax.grad(functools.partial(loss, size=size)))
    device = AbstractDevice("NVIDIA H200", None, "gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        lowered = gradient.trace(gaussians, cameras).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    for kernel in KERNELS:
        assert f'name = "splat_{kernel}"' in text


COMPILE = """
import sys
import jax, jax.numpy as jnp
import numpy as np
from jax._src import xla_bridge
xla_bridge.discover_pjrt_plugins()
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
topology = topologies.get_topology_desc(
    platform="cuda", target_config=open({target!r}).read(), topology="1x1x1"
)
mesh = Mesh(np.array(topology.devices[:1]), ("device",))
sys.path[:0] = {folders!r}
from test_kernels import *
place = NamedSharding(mesh, PartitionSpec())
args = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    (cloud(0, 20), ring(VIEWS, WIDTH, HEIGHT)),
)
for size in (8, 16):
    compiled = jax.jit(jax.grad(functools.partial(loss, size=size))).lower(*args)
    text = compiled.compile().as_text()
    assert all(f"splat_{{kernel}}" in text for kernel in KERNELS)
    print("compiled", size)
"""


def test_compiles_ahead_of_time():
    """Every kernel variant to machine code of an H200; needs no GPU.

    Needs jax-cuda13-plugin, jax-cuda13-pjrt and nvidia-cuda-nvcc (for ptxas, on PATH).
    """
    pytest.importorskip("jax_plugins.xla_cuda13", reason="no CUDA plugin to compile")
    folders = [str(TESTS / "render"), str(TESTS / "support"), str(TESTS.parent)]
    code = COMPILE.format(target=str(TARGET), folders=folders)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    if "No PTX compilation provider" in done.stderr:
        pytest.skip("no ptxas on PATH")
    assert done.stdout.split() == ["compiled", "8", "compiled", "16"], done.stderr
