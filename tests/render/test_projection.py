"""Projection against closed forms, an independent formula and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_geometry import covariances
from render_scenes import cloud, intrinsics, max_error, ring

from facelift_jax.render.config import RenderConfig
from facelift_jax.render.constants import ALPHA_MIN
from facelift_jax.render.projection import project
from facelift_jax.structs import Cameras, Gaussians

WIDTH, HEIGHT = 60, 40


def camera(K=None, viewmat=None, dtype=jnp.float32):
    K = intrinsics(WIDTH, HEIGHT, 50.0) if K is None else K
    viewmat = np.eye(4) if viewmat is None else viewmat
    return Cameras(jnp.asarray(viewmat, dtype), jnp.asarray(K, dtype), WIDTH, HEIGHT)


def one(mean, scale=(0.1, 0.1, 0.1), quat=(1.0, 0, 0, 0), opacity=0.8):
    arrays = ([mean], [quat], [scale], [opacity], [[[0.0, 0.0, 0.0]]])
    return Gaussians(*(jnp.asarray(a, jnp.float32) for a in arrays))


def _expected_covariance(gaussians, camera, eps2d):
    """J V Sigma V^T J^T + eps I in NumPy float64, clamp included."""
    V = np.asarray(camera.viewmats, np.float64)
    K = np.asarray(camera.Ks, np.float64)
    points = np.asarray(gaussians.means, np.float64) @ V[:3, :3].T + V[:3, 3]
    quats, scales = (
        np.asarray(a, np.float64) for a in (gaussians.quats, gaussians.scales)
    )
    sigmas = covariances(quats, scales)
    result = []
    for (x, y, z), sigma in zip(points, sigmas, strict=True):
        ratios = []
        for ratio, axis, size in ((x / z, 0, WIDTH), (y / z, 1, HEIGHT)):
            focal, principal = K[axis, axis], K[axis, 2]
            margin = 0.15 * size / focal
            low, high = -principal / focal - margin, (size - principal) / focal + margin
            ratios.append(min(max(ratio, low), high))
        J = np.array(
            [
                [K[0, 0] / z, 0, -K[0, 0] * ratios[0] / z],
                [0, K[1, 1] / z, -K[1, 1] * ratios[1] / z],
            ]
        )
        M = J @ V[:3, :3]
        result.append(M @ sigma @ M.T + eps2d * np.eye(2))
    return np.stack(result)


@pytest.mark.parametrize("principal", [(0.5, 0.5), (0.2, 0.9)])
def test_conics_against_matrices(principal):
    gaussians = cloud(3, 40)
    K = intrinsics(WIDTH, HEIGHT, 70.0, principal)
    view = ring(3, WIDTH, HEIGHT, radius=1.0).viewmats[1]
    cam = camera(K, view)
    splats = project(gaussians, cam, RenderConfig())
    seen = np.asarray(splats.is_visible)
    assert seen.sum() > 30
    A, B, C = np.asarray(splats.conics, np.float64).T
    inverses = np.stack([A, B, B, C], axis=-1).reshape(-1, 2, 2)
    products = inverses @ _expected_covariance(gaussians, cam, 0.3)
    assert (
        max_error(products[seen], np.broadcast_to(np.eye(2), products[seen].shape))
        < 2e-4
    )


def test_mean_goes_through_the_principal_point():
    K = np.array([[50.0, 0, 12.0], [0, 40.0, 31.0], [0, 0, 1]])
    splats = project(one((0.2, -0.4, 2.0)), camera(K), RenderConfig())
    assert max_error(splats.means2d[0], [12 + 50 * 0.1, 31 - 40 * 0.2]) < 1e-5
    assert splats.depths[0] == 2.0


@pytest.mark.parametrize(
    ("z", "is_visible"), [(0.0099, False), (0.0101, True), (-1.0, False), (11, False)]
)
def test_depth_range(z, is_visible):
    splats = project(one((0.0, 0.0, z)), camera(), RenderConfig(far=10.0))
    assert bool(splats.is_visible[0]) is is_visible
    if not is_visible:
        assert splats.opacities[0] == 0
        assert splats.depths[0] == 0


def test_antialiasing_keeps_the_integral():
    """The factor sqrt(det / det_blurred) keeps the total opacity under the blur."""
    s, z, f, eps = 0.01, 2.0, 50.0, 0.3
    plain = project(one((0, 0, z), (s, s, s)), camera(), RenderConfig())
    config = RenderConfig(antialiased=True)
    sharp = project(one((0, 0, z), (s, s, s)), camera(), config)
    variance = (f * s / z) ** 2
    expected = 0.8 * variance / (variance + eps)
    assert abs(sharp.opacities[0] - expected) < 1e-6
    assert plain.opacities[0] == np.float32(0.8)


def test_box_bounds_alpha_above_the_cut_off():
    splats = project(one((0.1, 0.1, 2.0), (0.2, 0.05, 0.1)), camera(), RenderConfig())
    A, B, C = np.asarray(splats.conics[0], np.float64)
    cov = np.linalg.inv([[A, B], [B, C]])
    level = np.log(0.8 / ALPHA_MIN)
    expected = np.sqrt(2 * level * np.diag(cov))
    radii = np.asarray(splats.radii[0])
    assert (radii >= expected).all()
    assert max_error(radii, expected) < 1e-3


@pytest.mark.parametrize("antialiased", [False, True])
def test_derivatives_against_finite_differences(antialiased):
    """Float64, central differences in a random direction of every input."""
    with jax.enable_x64(True):
        gaussians = jax.tree.map(lambda x: x.astype(jnp.float64), cloud(5, 8, 16))
        view = ring(3, WIDTH, HEIGHT).viewmats[0]
        cam = camera(viewmat=view, dtype=jnp.float64)
        config = RenderConfig(antialiased=antialiased)
        rng = np.random.default_rng(0)
        weights = rng.standard_normal((8, 10))

        def loss(gaussians, viewmat):
            s = project(gaussians, camera(cam.Ks, viewmat, jnp.float64), config)
            columns = [s.opacities[:, None], s.colors, s.depths[:, None]]
            outputs = jnp.concatenate([s.means2d, s.conics, *columns], axis=1)
            return jnp.sum(outputs * weights)

        # The camera moves by a translation: a pose stays rigid.
        inputs = (gaussians, cam.viewmats)
        shift = np.zeros((4, 4))
        shift[:3, 3] = rng.standard_normal(3)
        step = (jax.tree.map(lambda x: rng.standard_normal(x.shape), gaussians), shift)
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(*inputs)
        slope = sum(
            float(np.sum(np.asarray(g) * d))
            for g, d in zip(
                jax.tree.leaves(gradients), jax.tree.leaves(step), strict=True
            )
        )
        value, h = jax.jit(loss), 1e-6
        ahead = value(*jax.tree.map(lambda x, d: x + h * d, inputs, step))
        behind = value(*jax.tree.map(lambda x, d: x - h * d, inputs, step))
        assert abs(slope - (ahead - behind) / (2 * h)) < 1e-6 * abs(slope)


EXTREMES = {
    "zero quaternion": one((0.1, 0.1, 2.0), quat=(0, 0, 0, 0)),
    "zero scale": one((0.1, 0.1, 2.0), (0, 0, 0)),
    "flat": one((0.1, 0.1, 2.0), (0.1, 0, 0)),
    "at the camera": one((0, 0, 0)),
    "on the camera plane": one((0.3, 0.1, 0.0)),
    "behind": one((0.1, 0.1, -2.0)),
    "transparent": one((0.1, 0.1, 2.0), opacity=0.0),
    "opaque": one((0.1, 0.1, 2.0), opacity=1.0),
    "huge": one((0.1, 0.1, 2.0), (1e8, 1e8, 1e8)),
    "beyond float32 when squared": one((0.1, 0.1, 2.0), (1e25, 1e25, 1e25)),
    "tiny": one((0.1, 0.1, 2.0), (1e-20, 1e-20, 1e-20)),
    "far": one((1e8, -1e8, 1e9)),
    "far to the side": one((1e30, 0, 1.0)),
}


@pytest.mark.parametrize("antialiased", [False, True])
def test_extremes_are_finite(antialiased):
    config = RenderConfig(antialiased=antialiased)

    def loss(gaussians, viewmat):
        cam = camera(viewmat=viewmat)
        splats = project(gaussians, cam, config)
        return sum(jnp.sum(x) for x in splats[:5]), splats

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    for name, gaussians in EXTREMES.items():
        gradients, splats = gradient(gaussians, jnp.eye(4))
        for leaf in jax.tree.leaves((gradients, splats)):
            assert np.isfinite(leaf).all(), name
