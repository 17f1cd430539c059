"""The deterministic weights, images and cameras of tests/goldens/lgm."""

import gzip
import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from facelift_jax.convert import abstract_params
from facelift_jax.geometry.paths import fov_intrinsics, look_at
from facelift_jax.structs import Cameras, Views

GOLDENS = Path(__file__).parent.parent / "goldens/lgm"
KEYS = json.loads(gzip.decompress((GOLDENS / "keys.json.gz").read_bytes()))

MICRO = {
    "down_channels": (32, 64, 128),
    "down_attention": (False, True, True),
    "up_channels": (128, 64),
    "up_attention": (True, False),
}
# A small network with every kind of block, for tests that need any network.
NANO = {
    "down_channels": (8, 16),
    "down_attention": (False, True),
    "up_channels": (16,),
    "up_attention": (True,),
    "layers_per_block": 1,
    "num_heads": 2,
    "num_groups": 4,
}


def generator(name):
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def weight(key, shape):
    values = generator(key).standard_normal(shape)
    if len(shape) > 1:
        values *= np.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith(".weight"):
        values = 1 + 0.1 * values
    else:
        values *= 0.1
    return values.astype(np.float32)


def micro_state(dtype=np.float32):
    """Random tensors under the published names of the network of sizes MICRO."""
    rng = np.random.default_rng(0)
    return {
        key: rng.standard_normal(shape).astype(dtype)
        for key, shape in KEYS["micro"].items()
    }


def random_params(model, seed=0):
    """Parameters of the recipe's distributions; compiles nothing."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape)
        kind = path[-1].key
        if kind == "kernel":
            values *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        else:
            values = (kind == "scale") + 0.1 * values
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(model))


def ring(elevations, azimuths, size, radius=1.5):
    """Cameras [elevation azimuth] as in LGM: y is up, elevations point down."""
    elevation = np.deg2rad(np.asarray(elevations))[:, None]
    azimuth = np.deg2rad(np.asarray(azimuths))[None]
    eyes = radius * np.stack(
        [
            np.cos(elevation) * np.sin(azimuth),
            np.broadcast_to(-np.sin(elevation), (len(elevations), len(azimuths))),
            np.cos(elevation) * np.cos(azimuth),
        ],
        axis=-1,
    ).astype(np.float32)
    viewmats = look_at(eyes, np.zeros_like(eyes), np.array([0.0, 1.0, 0.0]))
    K = fov_intrinsics(49.1, size)
    Ks = np.broadcast_to(K, (*viewmats.shape[:-2], 3, 3))
    return Cameras(viewmats, Ks, size, size)


def golden_views(name, num_scenes, size):
    images = generator(f"lgm_golden_images:{name}").random(
        (num_scenes, 4, 3, size, size)
    )
    images = np.moveaxis(images, 2, -1).astype(np.float32)
    cameras = ring((0, 15)[:num_scenes], (0, 90, 180, 270), size)
    return Views(images, np.ones_like(images[..., :1]), None, cameras)


def random_views(num_scenes, num_views, size, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.random((num_scenes, num_views, size, size, 3), np.float32)
    azimuths = 360 / num_views * np.arange(num_views)
    cameras = ring(10 + 5 * np.arange(num_scenes), azimuths, size)
    return Views(images, np.ones_like(images[..., :1]), None, cameras)
