"""Small random renderings with their targets."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

from facelift_jax.geometry.paths import fov_intrinsics, orbit_cameras
from facelift_jax.structs import Cameras, RenderOutput, Views

Scene = tuple[RenderOutput, Views]


def _rig(num_scenes: int, num_views: int, size: int) -> Cameras:
    azimuths = np.arange(num_views) * (360.0 / num_views)
    elevations = np.resize([20.0, -35.0, 50.0], num_views)
    K = fov_intrinsics(50.0, size)
    cameras = orbit_cameras(azimuths, elevations, 2.0, K, size)
    viewmats = np.repeat(cameras.viewmats[None], num_scenes, axis=0)
    Ks = np.repeat(cameras.Ks[None], num_scenes, axis=0)
    return Cameras(viewmats, Ks, size, size)


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    """A function that makes a rendering and its targets; the object is a disc."""

    def make(
        seed: int, num_scenes: int = 2, num_views: int = 3, size: int = 16
    ) -> Scene:
        rng = np.random.default_rng(seed)
        shape = (num_scenes, num_views, size, size)

        def uniform(low: float, high: float, channels: int) -> np.ndarray:
            return rng.uniform(low, high, (*shape, channels)).astype(np.float32)

        rows, cols = np.mgrid[:size, :size] + 0.5 - size / 2
        mask = (rows**2 + cols**2 < (0.3 * size) ** 2).astype(np.float32)[..., None]
        targets = Views(
            images=uniform(0, 1, 3),
            masks=mask * uniform(0.6, 1, 1),
            depths=mask * uniform(1.5, 2.5, 1),
            cameras=_rig(num_scenes, num_views, size),
        )
        render = RenderOutput(
            colors=jnp.asarray(uniform(0, 1, 3)),
            alphas=jnp.asarray(uniform(0.1, 1, 1)),
            depths=jnp.asarray(uniform(1.5, 2.5, 1)),
            dropped=jnp.zeros(shape[:2], jnp.int32),
        )
        return render, targets

    return make
