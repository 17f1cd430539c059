"""The loss terms of GS-LRM and their schedules against the original's values."""

import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.gslrm import get_config
from facelift_jax.losses import (
    TERMS,
    check_vgg19,
    load_vgg19,
    term_weights,
    validate_weights,
    weighted_loss,
    weights_at,
)
from facelift_jax.losses.perceptual import TERM_WEIGHTS, vgg19_features, vgg19_shapes
from facelift_jax.structs import Cameras, RenderOutput, Views

GOLDENS = Path(__file__).parents[1] / "goldens" / "losses"
TOLERANCE = 1e-5  # relative: float32 differences of distances, theirs and ours


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "gslrm_losses.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def vgg19():
    """The recipe's weights: normal numbers seeded by the published names."""

    def tensor(name, shape):
        key = f"loss_calculator.perceptual_loss_module.net.{name}"
        seed = zlib.crc32(key.encode())
        values = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
        scale = 0.1 if len(shape) == 1 else 1 / np.sqrt(np.prod(shape[1:]))
        return (scale * values).astype(np.float32)

    return {name: tensor(name, shape) for name, shape in vgg19_shapes().items()}


def channels_last(array):
    return np.moveaxis(array, 2, -1)


@pytest.fixture(scope="module")
def scene(golden, vgg19):
    """(rendering, targets, aux) of the golden: 1 scene, 2 views of 32 px."""
    eye = [np.broadcast_to(np.eye(n, dtype=np.float32), (1, 2, n, n)) for n in (4, 3)]
    target = channels_last(golden["target_rgba"])
    colors = channels_last(golden["rendering"])
    alphas = np.ones_like(colors[..., :1])
    targets = Views(target[..., :3], alphas, None, Cameras(*eye, 32, 32))
    render = RenderOutput(colors, alphas, alphas, np.zeros((1, 2), np.int32))
    aux = {
        "means": channels_last(golden["xyz"]),
        "origins": golden["ray_o"][..., 0, 0],
        "directions": channels_last(golden["ray_d"]),
        "masks": target[..., 3:],
        "vgg19": vgg19,
    }
    return render, targets, aux


def assert_close(actual, expected):
    largest = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * largest)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("points_distance", "pointsdist"), ("pixel_align", "pixelalign")],
)
def test_ray_terms_match_the_original(scene, golden, name, theirs):
    render, targets, aux = scene

    def loss(means):
        return TERMS[name](render, targets, aux | {"means": means})[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(aux["means"])
    assert_close(value, golden[f"masked_{theirs}_loss"])
    assert_close(gradient, channels_last(golden[f"grad_{theirs}_loss"]))


def test_perceptual_matches_the_original(scene, golden):
    render, targets, aux = scene
    both = np.concatenate([render.colors[0], targets.images[0]])
    features = jax.jit(vgg19_features)(aux["vgg19"], both)
    terms = [np.abs(np.subtract(*np.split(np.asarray(f), 2))).mean() for f in features]
    actual, expected = np.array(terms), golden["perceptual_terms_unweighted"]
    np.testing.assert_allclose(actual, expected, rtol=2e-5)
    assert len(TERM_WEIGHTS) == len(expected)

    def loss(colors):
        drawn = RenderOutput(colors, render.alphas, render.depths, render.dropped)
        return TERMS["perceptual"](drawn, targets, aux)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(render.colors)
    assert_close(value, golden["masked_perceptual_loss"])
    wanted = channels_last(golden["grad_perceptual_loss"])
    # where a difference is nearly zero, rounding decides its sign
    error = np.abs(gradient - wanted)
    assert np.median(error) <= 1e-6 * np.abs(wanted).max()
    assert np.linalg.norm(error) <= 1e-3 * np.linalg.norm(wanted)


def test_scenes_do_not_mix(scene):
    render, targets, aux = scene
    doubled = jax.tree.map(lambda x: np.concatenate([x, 0.5 * x]), (render, targets))
    shared = {k: v for k, v in aux.items() if k == "vgg19"}
    own = {k: np.concatenate([v, 0.5 * v]) for k, v in aux.items() if k not in shared}
    for name in ("perceptual", "points_distance", "pixel_align"):
        both = TERMS[name](*doubled, shared | own)
        alone = TERMS[name](render, targets, aux)
        np.testing.assert_allclose(both[0], alone[0], rtol=1e-5)
        assert abs(both[1] - both[0]) > 1e-3 * abs(both[0])


@pytest.mark.parametrize("stage", ["pretrain256", "pretrain512", "finetune"])
def test_schedules_match_the_original(golden, stage):
    names = {"pretrain256": "_pretrain_256", "pretrain512": "_pretrain_512"}
    weights = term_weights(get_config(f"{stage},perceptual").loss)
    validate_weights(weights)
    for step, l2, perceptual, points, _ in golden[
        f"schedule_gslrm{names.get(stage, '')}"
    ]:
        now = weights_at(weights, jnp.int32(step))
        actual = [now["rgb_mse"], now["perceptual"], now["points_distance"]]
        np.testing.assert_allclose(actual, [l2, perceptual, points], rtol=1e-6)


def test_a_missing_input_of_a_term_is_named(scene):
    render, targets, _ = scene
    with pytest.raises(ValueError, match="needs") as error:
        weighted_loss(render, targets, {"raw": 0}, {"points_distance": 1.0})
    assert str(error.value) == (
        "loss.points_distance: needs means, origins, which this model does not return; "
        "set its weight to 0"
    )


def test_weight_files_are_checked(tmp_path, vgg19):
    path = tmp_path / "vgg19.safetensors"
    save_file(vgg19, path)
    loaded = load_vgg19(path)
    assert loaded.keys() == vgg19.keys()
    for name, tensor in vgg19.items():
        np.testing.assert_array_equal(loaded[name], tensor)
    hint = (
        "; set loss.vgg19_weights to the file that converting GS-LRM's weights writes"
    )
    damaged = dict(vgg19, **{"conv3.bias": np.zeros(3, np.float32)})
    del damaged["conv16.weight"]
    save_file(damaged, path)
    with pytest.raises(ValueError, match="2 of VGG-19's 32 tensors") as error:
        check_vgg19(path)
    assert str(error.value).endswith(f"have another shape, first conv3.bias{hint}")
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a safetensors file"):
        check_vgg19(path)
    with pytest.raises(ValueError, match="other: no file of VGG-19 weights"):
        check_vgg19(tmp_path / "other")


def test_images_too_small_for_the_network_are_refused(vgg19):
    with pytest.raises(ValueError, match="8 x 8 px are too small for VGG-19; data"):
        vgg19_features(vgg19, np.zeros((1, 8, 8, 3), np.float32))
