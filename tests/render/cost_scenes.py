"""The loads that test_cost measures: LGM's field of view and camera distance."""

import jax.numpy as jnp
import numpy as np

from facelift_jax.geometry.paths import fov_intrinsics, orbit_cameras
from facelift_jax.structs import Cameras, Gaussians

SH_C0 = 0.28209479177387814
FOV_DEGREES, RADIUS, SEED = 49.1, 1.5, 1234


def _rng(seed):
    return np.random.Generator(np.random.PCG64(seed))


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _cameras(num_scenes, num_views, size):
    """Four views around, then random ones within 30 degrees of the horizon."""
    scenes = []
    for scene in range(num_scenes):
        rng = _rng(SEED + 1000 + scene)
        angles = np.array([(90.0 * i, 0.0) for i in range(min(4, num_views))])
        more = [
            (rng.uniform(0, 360), rng.uniform(-30, 30)) for _ in range(4, num_views)
        ]
        azimuths, elevations = np.concatenate([angles, np.reshape(more, (-1, 2))]).T
        K = fov_intrinsics(FOV_DEGREES, size)
        up = np.array([0.0, 1.0, 0.0])
        scenes.append(orbit_cameras(azimuths, elevations, RADIUS, K, size, up))
    viewmats, Ks = (
        jnp.stack([jnp.asarray(getattr(s, name)) for s in scenes])
        for name in ("viewmats", "Ks")
    )
    return Cameras(viewmats, Ks, size, size)


def _gaussians(scenes):
    arrays = [np.stack(field).astype(np.float32) for field in zip(*scenes, strict=True)]
    *geometry, colors = arrays
    sh = ((colors - 0.5) / np.float32(SH_C0))[..., None, :]
    return Gaussians(*(jnp.asarray(a) for a in (*geometry, sh)))


def untrained(n, num_views, size):
    """What an untrained LGM emits: near the origin, scale 0.069, opacity about 0.5."""
    raw = 0.1 * _rng(SEED).standard_normal((n, 14))
    scene = (
        np.clip(raw[:, :3], -1, 1),
        _unit(raw[:, 7:11] + [1e-3, 0, 0, 0]),
        0.1 * np.log1p(np.exp(raw[:, 4:7])),
        1 / (1 + np.exp(-raw[:, 3])),
        0.5 * np.tanh(raw[:, 11:]) + 0.5,
    )
    return _gaussians([scene]), _cameras(1, num_views, size)


def ball(num_scenes, n, num_views, size, scale):
    """Trained output: a shell of small Gaussians, a third of them transparent."""
    scenes = []
    for scene in range(num_scenes):
        rng = _rng(SEED + scene)
        directions = _unit(rng.standard_normal((n, 3)))
        is_solid = rng.random(n) < 0.65
        logits = np.where(is_solid, rng.normal(2.5, 1.2, n), rng.normal(-3.5, 1.5, n))
        scenes.append(
            (
                directions * (0.5 + 0.05 * rng.standard_normal((n, 1))),
                rng.standard_normal((n, 4)),
                scale * np.exp(0.4 * rng.standard_normal((n, 3))),
                1 / (1 + np.exp(-logits)),
                0.5 + 0.5 * directions,
            )
        )
    return _gaussians(scenes), _cameras(num_scenes, num_views, size)
