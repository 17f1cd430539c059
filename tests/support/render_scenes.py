"""Scenes and comparisons shared by the renderer's tests."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from facelift_jax.render import RenderConfig, render
from facelift_jax.structs import Cameras, Gaussians

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "renderer"
SCENES = ("edges", "single_offcentre", "small", "rand200")
BACKENDS = ("reference", "xla", "pallas")
SH_C0 = 0.28209479177387814


def config_for(backend, **config):
    """RenderConfig under which a backend runs on this machine."""
    interpret = backend == "pallas" and jax.default_backend() != "gpu"
    return RenderConfig(interpret=interpret, **config)


def golden(name):
    with np.load(GOLDENS / f"{name}.npz") as data:
        return dict(data)


def intrinsics(width, height, focal=None, principal=(0.5, 0.5)):
    focal = focal or 1.1 * height
    cx, cy = principal[0] * width, principal[1] * height
    return np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1]], np.float32)


def look_at(eye, target=(0.0, 0.0, 0.0)):
    eye, target = np.asarray(eye, float), np.asarray(target, float)
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, (0.0, 1.0, 0.0))
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    viewmat = np.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ eye
    return viewmat.astype(np.float32)


def ring(num_views, width, height, radius=2.0):
    """Cameras [v] around the origin, none of them looking along an axis."""
    angles = 0.3 + 2 * np.pi * np.arange(num_views) / num_views
    eyes = [(radius * np.sin(a), 0.4, radius * np.cos(a)) for a in angles]
    Ks = np.broadcast_to(intrinsics(width, height), (num_views, 3, 3))
    viewmats = np.stack([look_at(eye) for eye in eyes])
    return Cameras(jnp.asarray(viewmats), jnp.asarray(Ks), width, height)


def cloud(seed, n, num_coefficients=1, scale=0.08):
    """Gaussians [n] in a cube of side 1, opacities well inside the cut-offs."""
    rng = np.random.default_rng(seed)
    means = rng.uniform(-0.5, 0.5, (n, 3))
    scales = scale * np.exp(0.4 * rng.standard_normal((n, 3)))
    sh = 0.5 * rng.standard_normal((n, num_coefficients, 3))
    arrays = (
        means,
        rng.standard_normal((n, 4)),
        scales,
        rng.uniform(0.2, 0.9, n),
        sh,
    )
    return Gaussians(*(jnp.asarray(a, jnp.float32) for a in arrays))


def stack(*trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def cotangents(width, height):
    """One fixed random cotangent per output, shared by all views."""
    rng = np.random.default_rng(7)
    shapes = [(height, width, channels) for channels in (3, 1, 1)]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def image_loss(out, weights):
    """Sum of outputs times weights [h w c], broadcast over views."""
    images = (out.colors, out.alphas, out.depths)
    return sum(
        jnp.sum(image * jnp.broadcast_to(weight, image.shape))
        for image, weight in zip(images, weights, strict=True)
    )


@functools.cache
def _compiled(width, height, config, backend):
    weights = cotangents(width, height)

    def loss(gaussians, viewmats, Ks, background):
        cameras = Cameras(viewmats, Ks, width, height)
        out = render(gaussians, cameras, background, config=config, backend=backend)
        return image_loss(out, weights), out

    return jax.jit(jax.grad(loss, argnums=(0, 1, 3), has_aux=True))


def render_and_grad(gaussians, cameras, background, *, backend, **config):
    """Images, and gradients to (gaussians, viewmats, background), under jit.

    Calls with the same shapes and settings share one compiled program.
    """
    config = config_for(backend, **config)
    gradient = _compiled(cameras.width, cameras.height, config, backend)
    gradients, out = gradient(gaussians, cameras.viewmats, cameras.Ks, background)
    return out, gradients


def max_error(actual, expected, fragile=None):
    """Largest absolute difference outside the fragile pixels [... h w]."""
    error = np.abs(np.asarray(actual, np.float64) - np.asarray(expected, np.float64))
    if fragile is not None:
        error = error[~fragile]
    return float(error.max(initial=0.0))


def assert_trees_close(actual, expected, rtol=3e-4, atol=1e-5):
    """Leaves agree to rtol of each leaf's largest entry plus atol.

    For the same numbers computed by two programs. Expected depth divides by alpha, down
    to 1/255; its gradients differ from float64 by 5e-5 in these scenes.
    """
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        largest = float(np.abs(np.asarray(e)).max(initial=0.0))
        np.testing.assert_allclose(a, e, rtol=0, atol=rtol * largest + atol)


def assert_same_bits(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(e))
