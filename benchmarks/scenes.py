"""Workloads of the renderer's benchmark: clouds like network outputs, seen from orbits.

Random numbers come from PCG64 with fixed seeds: the same on every machine.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from facelift_jax.geometry.numerics import SH_C0
from facelift_jax.structs import Cameras, Gaussians

FOV_Y = 49.1  # degrees
DISTANCE = 1.5  # of the cameras from the origin
MAX_ELEVATION = 30.0  # degrees
SEED = 1234


@dataclasses.dataclass(frozen=True)
class Workload:
    """Scenes of n Gaussians, each seen from `views` cameras of size x size pixels."""

    scenes: int
    n: int
    views: int
    size: int
    cloud: Callable[[int, int], dict[str, np.ndarray]]


def unit(vectors):
    """Vectors scaled to length one."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def surface_cloud(scale, jitter=0.008):
    """Like a trained network's output: a bumpy shell, one third nearly transparent."""

    def draw(n, seed):
        rng = np.random.Generator(np.random.PCG64(seed))
        directions = unit(rng.standard_normal((n, 3)))
        waves = unit(rng.standard_normal((6, 3))) * rng.uniform(2, 6, (6, 1))
        phases = rng.uniform(0, 2 * np.pi, 6)
        bumps = np.sin(directions @ waves.T + phases).mean(-1) * 2.0
        radii = 0.5 * (1 + 0.18 * bumps) + jitter * rng.standard_normal(n)
        means = np.clip(directions * radii[:, None], -1, 1)
        quats = unit(rng.standard_normal((n, 4)))
        scales = scale * np.exp(0.4 * rng.standard_normal((n, 3)))
        is_solid = rng.random(n) < 0.65
        solid, thin = rng.normal(2.5, 1.2, n), rng.normal(-3.5, 1.5, n)
        opacities = 1 / (1 + np.exp(-np.where(is_solid, solid, thin)))
        hues = rng.standard_normal((3, 3)) * 3
        shades = np.sin(directions @ hues.T + phases[:3])
        shades = shades + 0.3 * rng.standard_normal((n, 3))
        return {
            "means": means,
            "quats": quats,
            "scales": scales,
            "opacities": opacities,
            "colors": 0.5 * np.tanh(shades) + 0.5,
        }

    return draw


def untrained_cloud(n, seed):
    """Like an untrained LGM's output: near the origin, wide, half transparent."""
    rng = np.random.Generator(np.random.PCG64(seed))
    raw = 0.1 * rng.standard_normal((n, 14))
    return {
        "means": np.clip(raw[:, :3], -1, 1),
        "quats": unit(raw[:, 7:11] + np.array([1e-3, 0, 0, 0])),
        "scales": 0.1 * np.log1p(np.exp(raw[:, 4:7])),
        "opacities": 1 / (1 + np.exp(-raw[:, 3])),
        "colors": 0.5 * np.tanh(raw[:, 11:]) + 0.5,
    }


WORKLOADS = {
    "smoke": Workload(2, 512, 2, 64, surface_cloud(0.05)),
    "n16k": Workload(1, 2**14, 8, 512, surface_cloud(0.03)),
    "n64k": Workload(1, 2**16, 8, 512, surface_cloud(0.015)),
    "n256k": Workload(1, 2**18, 8, 512, surface_cloud(0.0075)),
    "n1m": Workload(1, 2**20, 8, 512, surface_cloud(0.00375)),
    "lgm": Workload(8, 2**16, 8, 512, surface_cloud(0.015)),
    "lgm_init": Workload(8, 2**16, 8, 512, untrained_cloud),
    "gslrm": Workload(1, 6 * 512 * 512, 8, 512, surface_cloud(0.004, jitter=0.004)),
}


def look_at(eye):
    """World-to-camera pose of a camera at `eye` that looks at the origin, y up."""
    forward = unit(-eye)
    right = unit(np.cross(forward, [0.0, 1.0, 0.0]))
    rotation = np.stack([right, np.cross(forward, right), forward])
    viewmat = np.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ eye
    return viewmat


def orbit(num_views, seed):
    """[v 4 4]: four level cameras a quarter turn apart, then random ones."""
    rng = np.random.Generator(np.random.PCG64(seed))
    poses = []
    for view in range(num_views):
        azimuth, elevation = 90.0 * view, 0.0
        if view >= 4:
            azimuth = rng.uniform(0, 360)
            elevation = rng.uniform(-MAX_ELEVATION, MAX_ELEVATION)
        a, e = np.deg2rad(azimuth), np.deg2rad(elevation)
        direction = [np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)]
        poses.append(look_at(DISTANCE * np.array(direction)))
    return np.stack(poses)


def make_scenes(workload: Workload):
    """(gaussians [b n], cameras [b v], (color, alpha, depth) cotangents [h w c])."""
    clouds = [
        workload.cloud(workload.n, SEED + scene) for scene in range(workload.scenes)
    ]
    stacked = {key: np.stack([c[key] for c in clouds]) for key in clouds[0]}
    stacked["sh"] = ((stacked.pop("colors") - 0.5) / SH_C0)[..., None, :]
    gaussians = Gaussians(**stacked)
    focal = 0.5 * workload.size / np.tan(0.5 * np.deg2rad(FOV_Y))
    K = np.array(
        [[focal, 0, workload.size / 2], [0, focal, workload.size / 2], [0, 0, 1]]
    )
    seeds = range(SEED + 1000, SEED + 1000 + workload.scenes)
    viewmats = np.stack([orbit(workload.views, seed) for seed in seeds])
    Ks = np.broadcast_to(K, (workload.scenes, workload.views, 3, 3))
    cameras = Cameras(viewmats, Ks, workload.size, workload.size)
    rng = np.random.Generator(np.random.PCG64(SEED + 2000))
    noise = rng.standard_normal((workload.size, workload.size, 5)) / workload.size**2
    cotangents = (noise[..., :3], noise[..., 3:4], noise[..., 4:5])
    everything = (gaussians, cameras, cotangents)
    return jax.tree.map(lambda x: np.ascontiguousarray(x, np.float32), everything)
