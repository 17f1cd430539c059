"""The compiled kernels on an NVIDIA GPU: against the reference, and bit for bit.

FACELIFT_TEST_PLATFORM=cuda,cpu pytest -m gpu -s
"""

import dataclasses
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from render_scenes import assert_same_bits, image_loss, max_error

from benchmarks import scenes
from facelift_jax.render import RenderConfig, api, render
from facelift_jax.structs import Cameras

pytestmark = pytest.mark.gpu

DIFFERENTIATED = ("means2d", "conics", "opacities", "colors", "depths")
SMALL = {"views": 2, "size": 64}
TESTS = pathlib.Path(__file__).parents[1]
FOLDERS = [str(x) for x in (TESTS.parent, TESTS / "support", TESTS / "render")]


def draw(workload, **config):
    """Images, and gradients under the benchmark's random cotangents."""
    config = RenderConfig(**config)
    gaussians, cameras, weights = scenes.make_scenes(workload)

    @jax.jit
    def run(gaussians, viewmats):
        def loss(gaussians, viewmats):
            moved = Cameras(viewmats, cameras.Ks, workload.size, workload.size)
            out = render(gaussians, moved, jnp.ones(3), config=config, backend="pallas")
            return image_loss(out, weights), out

        return jax.grad(loss, (0, 1), has_aux=True)(gaussians, viewmats)

    return jax.device_get(run(gaussians, cameras.viewmats))


def rasterize(backend, splats, size, weights, **config):
    """(gradients to splats, Pixels) of one backend's rasterizer."""
    config = RenderConfig(**config)

    @jax.jit
    def run(splats):
        def loss(parts):
            moved = splats._replace(**parts)
            pixels = api._RASTERIZERS[backend](moved, size, size, config)
            images = (pixels.colors, pixels.transmittances, pixels.depths)
            pairs = zip(images, weights, strict=True)
            return sum(jnp.sum(p * w.reshape(p.shape)) for p, w in pairs), pixels

        parts = {name: getattr(splats, name) for name in DIFFERENTIATED}
        return jax.grad(loss, has_aux=True)(parts)

    return jax.device_get(run(splats))


def compare(workload, tile_size):
    """Largest errors of (colors, transmittances, depths); relative ones of gradients.

    Both backends rasterize the same float32 splats, the reference in float64: rounding
    during projection could swap two Gaussians of nearly equal depth. Pixels where
    rounding decides a cut-off are left out.
    """
    gaussians, cameras, cotangents = scenes.make_scenes(workload)
    lead = (1, workload.views)
    splats = jax.jit(
        lambda *args: api.project_all(*args, lead, RenderConfig(), "pallas")
    )
    splats = jax.device_get(splats(gaussians, cameras))
    weights = [np.broadcast_to(w, (workload.views, *w.shape)) for w in cotangents]
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        exact = jax.tree.map(
            lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, splats
        )
        drawn = [
            rasterize(
                "reference",
                exact._replace(opacities=exact.opacities * factor),
                workload.size,
                [np.float64(w) for w in weights],
            )[1].transmittances
            for factor in (1 - 2e-6, 1 + 2e-6)
        ]
        keep = (np.ptp(drawn, axis=0) < 2e-5)[..., None]
        weights = [np.float32(w * keep) for w in weights]
        expected_gradients, expected = rasterize(
            "reference", exact, workload.size, [np.float64(w) for w in weights]
        )
    gradients, actual = rasterize(
        "pallas", splats, workload.size, weights, tile_size=tile_size
    )
    assert (actual.dropped == 0).all()
    keep = keep[..., 0]
    assert keep.mean() > 0.99
    errors = [
        max_error(actual.colors, expected.colors, ~keep),
        max_error(actual.transmittances, expected.transmittances, ~keep),
        max_error(actual.depths, expected.depths, ~keep),
    ]
    largest = max(np.abs(e).max() for e in expected_gradients.values())
    relative = {
        name: max_error(gradients[name], e) / max(np.abs(e).max(), 1e-3 * largest)
        for name, e in expected_gradients.items()
    }
    print(f"pixels left out {1 - keep.mean():.1e}", *(f"{e:.1e}" for e in errors))
    print({name: f"{error:.1e}" for name, error in relative.items()})
    return errors, relative


@pytest.mark.parametrize("tile_size", [8, 16])
@pytest.mark.parametrize("name", ["n16k", "n64k", "lgm_init"])
def test_kernels_against_the_reference(name, tile_size):
    """On the benchmark's Gaussians; the reference runs in float64 on the CPU.

    The bounds are several times the rounding of sums over thousands of pixels.
    """
    workload = dataclasses.replace(scenes.WORKLOADS[name], scenes=1, **SMALL)
    if name == "lgm_init":  # eight times as many Gaussians: fewer pixels
        workload = dataclasses.replace(workload, size=24)
    errors, relative = compare(workload, tile_size)
    assert max(errors[:2]) <= 1e-5
    assert errors[2] <= 2e-5
    assert max(relative.values()) <= 1e-4


def test_slices_change_no_bit():
    """More slices than are saved for the backward pass, which bins the others again."""
    workload = dataclasses.replace(scenes.WORKLOADS["n16k"], views=2, size=60)
    assert_same_bits(draw(workload, slice_entries=4096), draw(workload))


def test_batch_layout_changes_no_bit():
    workload = dataclasses.replace(scenes.WORKLOADS["n16k"], scenes=2, **SMALL)
    together = draw(workload)
    alone = draw(dataclasses.replace(workload, scenes=1))
    assert_same_bits(jax.tree.map(lambda x: x[:1], together), alone)


def test_processes_agree_to_the_bit():
    code = (
        f"import sys, dataclasses, hashlib, jax; sys.path[:0] = {FOLDERS}\n"
        "from test_gpu import draw, scenes, SMALL\n"
        "workload = dataclasses.replace(scenes.WORKLOADS['n64k'], **SMALL)\n"
        "leaves = jax.tree.leaves(draw(workload))\n"
        "print(hashlib.sha256(b''.join(x.tobytes() for x in leaves)).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        for _ in range(2)
    ]
    assert len(runs[0].stdout) > 64
    assert runs[0].stdout == runs[1].stdout
