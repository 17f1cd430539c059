"""The compiled kernels on an NVIDIA GPU: exact against the reference, same bits always.

FACELIFT_TEST_PLATFORM=cuda,cpu pytest -m gpu -s
"""

import dataclasses
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


def draw(load, **config):
    """Images, and gradients under the benchmark's random cotangents."""
    config = RenderConfig(**config)
    gaussians, cameras, weights = scenes.make_scenes(load)

    @jax.jit
    def run(gaussians, viewmats):
        def loss(gaussians, viewmats):
            moved = Cameras(viewmats, cameras.Ks, load.size, load.size)
            out = render(gaussians, moved, jnp.ones(3), config=config, backend="pallas")
            return image_loss(out, weights), out

        return jax.grad(loss, (0, 1), has_aux=True)(gaussians, viewmats)

    return jax.device_get(run(gaussians, cameras.viewmats))


def rasterized(backend, splats, size, weights, **config):
    """(Pixels, gradients to splats) of one backend's compositing."""
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


def compare(load, tile_size):
    """Worst errors of (colours, transmittances, depths) and, relative, of gradients.

    All backends composite the same float32 splats, the reference in float64: in full
    scenes two Gaussians may swap places where rounding of their depths decides.
    Pixels where it decides a cut-off are left out.
    """
    gaussians, cameras, cotangents = scenes.make_scenes(load)
    lead = (1, load.views)
    splats = jax.jit(
        lambda *args: api.project_all(*args, lead, RenderConfig(), "pallas")
    )
    splats = jax.device_get(splats(gaussians, cameras))
    weights = [np.broadcast_to(w, (load.views, *w.shape)) for w in cotangents]
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        exact = jax.tree.map(
            lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, splats
        )
        drawn = [
            rasterized(
                "reference",
                exact._replace(opacities=exact.opacities * factor),
                load.size,
                [np.float64(w) for w in weights],
            )[1].transmittances
            for factor in (1 - 2e-6, 1 + 2e-6)
        ]
        keep = (np.ptp(drawn, axis=0) < 2e-5)[..., None]
        weights = [np.float32(w * keep) for w in weights]
        expected_gradients, expected = rasterized(
            "reference", exact, load.size, [np.float64(w) for w in weights]
        )
    found_by = rasterized("pallas", splats, load.size, weights, tile_size=tile_size)
    gradients, found = found_by
    assert (found.dropped == 0).all()
    keep = keep[..., 0]
    assert keep.mean() > 0.99
    errors = [
        max_error(found.colors, expected.colors, ~keep),
        max_error(found.transmittances, expected.transmittances, ~keep),
        max_error(found.depths, expected.depths, ~keep),
    ]
    largest = max(np.abs(e).max() for e in expected_gradients.values())
    relative = {
        name: max_error(gradients[name], e) / max(np.abs(e).max(), 1e-3 * largest)
        for name, e in expected_gradients.items()
    }
    print(f"unsteady {1 - keep.mean():.1e}", *(f"{e:.1e}" for e in errors))
    print({name: f"{error:.1e}" for name, error in relative.items()})
    return errors, relative


@pytest.mark.parametrize("tile_size", [8, 16])
@pytest.mark.parametrize("name", ["n16k", "n64k", "lgm_init"])
def test_kernels_against_the_reference(name, tile_size):
    """On the benchmark's own Gaussians; the reference runs in float64 on the CPU.

    Bounds are several times the rounding of sums over thousands of pixels.
    """
    load = dataclasses.replace(scenes.WORKLOADS[name], scenes=1, **SMALL)
    if name == "lgm_init":  # eight times as many Gaussians: fewer pixels
        load = dataclasses.replace(load, size=24)
    errors, relative = compare(load, tile_size)
    assert max(errors[:2]) <= 1e-5
    assert errors[2] <= 2e-5
    assert max(relative.values()) <= 1e-4


def test_slices_change_no_bit():
    """Many slices, more than are kept for the backward pass, which lists them again."""
    load = dataclasses.replace(scenes.WORKLOADS["n16k"], views=2, size=60)
    assert_same_bits(draw(load, slice_entries=4096), draw(load))


def test_batch_layout_changes_no_bit():
    load = dataclasses.replace(scenes.WORKLOADS["n16k"], scenes=2, **SMALL)
    together = draw(load)
    alone = draw(dataclasses.replace(load, scenes=1))
    assert_same_bits(jax.tree.map(lambda x: x[:1], together), alone)


def test_processes_agree_to_the_bit():
    code = (
        "import sys, dataclasses, hashlib, jax; sys.path[:0] = ['.', 'tests/support']\n"
        "from test_gpu import draw, scenes, SMALL\n"
        "load = dataclasses.replace(scenes.WORKLOADS['n64k'], **SMALL)\n"
        "leaves = jax.tree.leaves(draw(load))\n"
        "print(hashlib.sha256(b''.join(x.tobytes() for x in leaves)).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        for _ in range(2)
    ]
    assert len(runs[0].stdout) > 64
    assert runs[0].stdout == runs[1].stdout
