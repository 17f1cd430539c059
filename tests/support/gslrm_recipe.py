"""The deterministic weights, images and cameras of tests/goldens/gslrm."""

import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from facelift_jax.convert import abstract_params
from facelift_jax.structs import Cameras, Views

GOLDENS = Path(__file__).parent.parent / "goldens/gslrm"
TINY = {"width": 64, "depth": 2, "head_dim": 32}
REDUCED = {"width": 128, "depth": 3}


def generator(name):
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def state_dict(width, depth, **_):
    """The recipe's weights under their published names."""
    shapes = {
        "gaussian_position_embeddings": (2, width),
        "patch_embedder.1.weight": (width, 576),
        "input_layer_norm.weight": (width,),
        "gaussian_upsampler.layernorm.weight": (width,),
        "gaussian_upsampler.linear.weight": (14, width),
        "pixel_gaussian_decoder.0.weight": (width,),
        "pixel_gaussian_decoder.1.weight": (896, width),
    }
    for i in range(depth):
        layer = f"transformer_layers.{i}."
        shapes |= {
            layer + "norm1.weight": (width,),
            layer + "norm2.weight": (width,),
            layer + "attn.to_qkv.weight": (3 * width, width),
            layer + "attn.fc.weight": (width, width),
            layer + "mlp.mlp.0.weight": (4 * width, width),
            layer + "mlp.mlp.2.weight": (width, 4 * width),
        }
    return {key: weight(key, shape) for key, shape in shapes.items()}


def weight(key, shape):
    values = generator(key).standard_normal(shape)
    if len(shape) > 1:
        values /= np.sqrt(np.prod(shape[1:]))
    else:
        values = 1 + 0.1 * values
    return values.astype(np.float32)


def golden_cameras(golden, side):
    """Cameras [b v] of a golden's `fxfycxcy` and `c2w`."""
    focal, center = np.split(golden["fxfycxcy"].astype(np.float32), 2, axis=-1)
    Ks = np.zeros((*focal.shape[:-1], 3, 3), np.float32)
    Ks[..., (0, 1), (0, 1)] = focal
    Ks[..., :2, 2] = center
    Ks[..., 2, 2] = 1
    viewmats = np.linalg.inv(golden["c2w"].astype(np.float64)).astype(np.float32)
    return Cameras(jnp.asarray(viewmats), jnp.asarray(Ks), side, side)


def golden_views(name, golden, side):
    """The recipe's images with a golden's cameras."""
    cameras = golden_cameras(golden, side)
    shape = (*cameras.Ks.shape[:2], 3, side, side)
    images = np.moveaxis(generator(f"images_{name}").random(shape), 2, -1)
    images = jnp.asarray(images, jnp.float32)
    return Views(images, jnp.ones_like(images[..., :1]), None, cameras)


def random_params(model, seed=0):
    """Parameters of the recipe's distributions."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape)
        if path[-1].key == "scale":
            values = 1 + 0.1 * values
        else:
            values /= np.sqrt(leaf.shape[0])
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(model))
