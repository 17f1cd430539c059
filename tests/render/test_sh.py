"""Spherical harmonics against gsplat's values and SciPy's definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from render_scenes import SH_C0, golden, max_error
from scipy.special import sph_harm_y

from facelift_jax.render.sh import sh_basis, sh_colors

COEFFICIENTS = {0: 1, 1: 4, 2: 9, 3: 16}


def _real_harmonic(degree, order, directions):
    """Real harmonic from SciPy's complex ones, with the signs of 3DGS files."""
    x, y, z = directions.T
    values = sph_harm_y(degree, abs(order), np.arccos(z), np.arctan2(y, x))
    if order == 0:
        return values.real
    return np.sqrt(2) * (values.imag if order < 0 else values.real)


@pytest.mark.parametrize("degree", COEFFICIENTS)
def test_basis_is_the_real_harmonics(degree):
    directions = np.random.default_rng(0).standard_normal((50, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    basis = sh_basis(jnp.asarray(directions, jnp.float32), COEFFICIENTS[degree])
    expected = [
        _real_harmonic(d, m, directions)
        for d in range(degree + 1)
        for m in range(-d, d + 1)
    ]
    assert max_error(basis, np.stack(expected, axis=-1)) < 2e-6


@pytest.mark.parametrize("degree", COEFFICIENTS)
def test_values_and_gradients_of_gsplat(degree):
    data, k = golden("parts"), COEFFICIENTS[degree]
    sh = jnp.asarray(data["sh/coeffs"][:, :k], jnp.float32)
    means = jnp.asarray(data["sh/dirs"], jnp.float32)
    center = jnp.zeros(3)

    def shifted(sh, means):
        """Shifted far above black, where the clamp does not act."""
        shift = jnp.zeros_like(sh).at[:, 0].set(100 / SH_C0)
        return sh_colors(sh + shift, means, center) - 100.5

    def loss(sh, means):
        return jnp.sum(shifted(sh, means) * jnp.asarray(data["sh/cot"], jnp.float32))

    # Adding 100 costs two digits of float32.
    assert max_error(shifted(sh, means), data[f"sh/out{degree}"]) < 1e-4
    d_sh, d_means = jax.grad(loss, argnums=(0, 1))(sh, means)
    assert max_error(d_sh, data[f"sh/d_coeffs{degree}"][:, :k]) < 1e-5
    assert max_error(d_means, data[f"sh/d_dirs{degree}"]) < 1e-4


def test_plain_color_is_recovered():
    rgb = jnp.asarray([[0.0, 0.25, 1.0]])
    sh = ((rgb - 0.5) / SH_C0)[:, None]
    assert max_error(sh_colors(sh, jnp.ones((1, 3)), jnp.zeros(3)), rgb) < 1e-7


def test_negative_colors_are_black_without_gradient():
    sh = jnp.asarray([[[-3.0, -0.5 / SH_C0, 3.0]]], jnp.float32)

    def red_green_blue(sh):
        return sh_colors(sh, jnp.ones((1, 3)), jnp.zeros(3))

    colors = red_green_blue(sh)
    assert colors[0, 0] == 0
    assert abs(colors[0, 1]) < 1e-7
    slopes = jax.grad(lambda sh: jnp.sum(red_green_blue(sh)))(sh)[0, 0]
    assert slopes[0] == 0
    assert abs(slopes[2] - SH_C0) < 1e-7


def test_direction_runs_from_the_camera_to_the_mean():
    """The z harmonic is positive where the mean lies beyond the camera along +z."""
    sh = jnp.zeros((1, 4, 3)).at[0, 2].set(1.0)
    ahead = sh_colors(sh, jnp.asarray([[5.0, 5.0, 9.0]]), jnp.asarray([5.0, 5.0, 5.0]))
    assert abs(ahead[0, 0] - (0.5 + 0.4886025)) < 1e-6


def test_mean_at_the_camera_has_finite_gradients():
    def loss(means):
        return jnp.sum(sh_colors(jnp.ones((1, 16, 3)), means, jnp.ones(3)))

    assert np.isfinite(jax.grad(loss)(jnp.ones((1, 3)))).all()
