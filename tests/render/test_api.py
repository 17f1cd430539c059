"""What render() rejects, and its exact messages."""

import dataclasses
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from render_scenes import cloud, ring

from facelift_jax.render import RenderConfig, api, render

GAUSSIANS, CAMERAS = cloud(0, 3), ring(2, 16, 16)


def assert_error(message, *args, error=ValueError, **kwargs):
    with pytest.raises(error) as caught:
        render(*args, **kwargs)
    assert str(caught.value) == message


def test_unknown_backend_lists_the_known_ones():
    assert_error(
        'render: unknown backend "cuda"; choose one of "reference", "xla", "pallas"',
        GAUSSIANS,
        CAMERAS,
        backend="cuda",
    )


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="the kernels run on a GPU")
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_named_backend_never_falls_back(wrap):
    with pytest.raises(NotImplementedError) as caught:
        wrap(lambda g: render(g, CAMERAS, backend="pallas"))(GAUSSIANS)
    assert str(caught.value) == (
        'render: backend "pallas" runs on NVIDIA GPUs; use backend="xla" on other '
        "devices, or RenderConfig(interpret=True) to test the kernels"
    )


def test_tile_size_without_a_kernel():
    assert_error(
        'RenderConfig.tile_size: backend "pallas" draws tiles of 8 or 16 pixels, '
        "found 5",
        GAUSSIANS,
        CAMERAS,
        config=RenderConfig(tile_size=5),
        backend="pallas",
    )


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("9.0", "pallas"), ("8.0", "pallas"), ("7.5", "xla"), ("gfx90a", "xla")],
)
def test_default_backend_follows_the_device(monkeypatch, capability, expected):
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda *_: [device])
    assert api._choose_backend(None) == expected


def test_missing_view_axis():
    one_view = jax.tree.map(lambda x: x[0], CAMERAS)
    assert_error(
        "cameras: expected leading axes ('v',) (the gaussians' axes, then views), "
        "found ()",
        GAUSSIANS,
        one_view,
    )


def test_numbers_of_scenes_differ():
    two = jax.tree.map(lambda x: jnp.stack([x, x]), GAUSSIANS)
    three = jax.tree.map(lambda x: jnp.stack([x, x, x]), CAMERAS)
    assert_error(
        "cameras: expected leading axes (2, 'v') (the gaussians' axes, then views), "
        "found (3, 2)",
        two,
        three,
    )


@pytest.mark.parametrize("size", [0, 16.0])
def test_image_size(size):
    assert_error(
        f"cameras.width: expected an int >= 1, found {size!r}",
        GAUSSIANS,
        dataclasses.replace(CAMERAS, width=size),
    )


def test_half_precision():
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), GAUSSIANS)
    assert_error(
        'gaussians.means: backend "xla" computes in float32, found bfloat16; '
        "convert the Gaussians",
        halves,
        CAMERAS,
        backend="xla",
    )


def test_mixed_precision():
    mixed = dataclasses.replace(GAUSSIANS, sh=GAUSSIANS.sh.astype(jnp.bfloat16))
    assert_error(
        "gaussians.sh: expected float32 like gaussians.means, found bfloat16",
        mixed,
        CAMERAS,
    )


def test_only_the_reference_takes_float64():
    with jax.enable_x64(True):
        doubles = jax.tree.map(lambda x: x.astype(jnp.float64), (GAUSSIANS, CAMERAS))
        assert_error(
            'gaussians.means: backend "xla" computes in float32, found float64; '
            "convert the Gaussians",
            *doubles,
            backend="xla",
        )


def test_background_shape():
    assert_error(
        "background: expected shape (3,) or (2, 3), found (2, 1)",
        GAUSSIANS,
        CAMERAS,
        jnp.zeros((2, 1)),
    )


def test_background_dtype():
    assert_error(
        "background: expected float32 like the Gaussians, found bfloat16",
        GAUSSIANS,
        CAMERAS,
        jnp.zeros(3, jnp.bfloat16),
    )


def test_default_background_is_black():
    background = api._check_background(None, (2, 3), jnp.dtype("float32"))
    np.testing.assert_array_equal(background, np.zeros((2, 3, 3), np.float32))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("near", 0.0, "expected a positive depth, found 0.0"),
        ("far", 0.001, "expected a depth beyond near (0.01), found 0.001"),
        ("eps2d", -0.1, "expected a blur of 0 or more, found -0.1"),
        ("alpha_max", 1.0, "expected a cap between 0 and 1, found 1.0"),
        ("max_entries", 0, "expected None or a count >= 1, found 0"),
        ("tile_size", 0, "expected a whole number of pixels >= 1, found 0"),
        ("slice_entries", -3, "expected None or a count >= 1, found -3"),
    ],
)
def test_config(field, value, message):
    with pytest.raises(ValueError, match=field) as caught:
        RenderConfig(**{field: value})
    assert str(caught.value) == f"RenderConfig.{field}: {message}"


def test_choice_of_backend_is_logged_once(caplog):
    api._log_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger="facelift_jax.render.api"):
        for _ in range(3):
            jax.eval_shape(lambda: render(GAUSSIANS, CAMERAS))
    assert [r.getMessage() for r in caplog.records] == ['rendering with backend "xla"']
