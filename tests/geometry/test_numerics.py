"""Values and gradients stay finite where the plain formulas do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facelift_jax.geometry import numerics
from facelift_jax.geometry.rotations import invert_rigid, quat_to_matrix


@pytest.mark.parametrize("function", [numerics.safe_sqrt, lambda x: x])
def test_numpy_in_numpy_out(function):
    assert isinstance(function(np.ones(3, np.float32)), np.ndarray)
    assert isinstance(function(jnp.ones(3)), jax.Array)


def test_safe_sqrt():
    x = jnp.array([-1.0, 0.0, 4.0])
    np.testing.assert_array_equal(numerics.safe_sqrt(x), [0, 0, 2])
    gradient = jax.grad(lambda x: numerics.safe_sqrt(x).sum())(x)
    np.testing.assert_array_equal(gradient, [0, 0, 0.25])


def test_safe_divide():
    a, b = jnp.array([1.0, 3.0]), jnp.array([0.0, 2.0])
    np.testing.assert_array_equal(numerics.safe_divide(a, b), [0, 1.5])
    d_a, d_b = jax.grad(lambda a, b: numerics.safe_divide(a, b).sum(), (0, 1))(a, b)
    np.testing.assert_array_equal(d_a, [0, 0.5])
    np.testing.assert_array_equal(d_b, [0, -0.75])


def test_normalize_and_zero_quaternion():
    x = jnp.array([[0.0, 0, 0, 0], [0, 3, 0, 4]])
    np.testing.assert_allclose(numerics.normalize(x), [[0, 0, 0, 0], [0, 0.6, 0, 0.8]])
    assert jnp.isfinite(jax.grad(lambda x: numerics.normalize(x).sum())(x)).all()
    np.testing.assert_array_equal(quat_to_matrix(x)[0], np.eye(3))
    gradient = jax.grad(lambda x: (quat_to_matrix(x) ** 2).sum())(x)
    assert jnp.isfinite(gradient).all()


def test_invert_rigid_undoes_itself():
    rng = np.random.default_rng(0)
    rotation = quat_to_matrix(rng.standard_normal((5, 4)))
    transform = np.tile(np.eye(4), (5, 1, 1))
    transform[:, :3, :3] = rotation
    transform[:, :3, 3] = rng.standard_normal((5, 3))
    product = transform @ invert_rigid(transform)
    np.testing.assert_allclose(product, np.tile(np.eye(4), (5, 1, 1)), atol=1e-12)


def test_einsum_is_full_precision():
    x = jnp.ones((2, 2))
    text = jax.jit(lambda x: numerics.einsum("ij,jk->ik", x, x)).lower(x).as_text()
    assert "HIGHEST" in text
