"""The view command: a server that shows a PLY file, and its errors."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from facelift_jax import view
from facelift_jax.export.ply import write_ply
from facelift_jax.structs import Gaussians

ROOT = Path(__file__).parent.parent


@pytest.fixture
def ply(tmp_path):
    rng = np.random.default_rng(0)
    gaussians = Gaussians(
        means=rng.normal(size=(9, 3)).astype(np.float32),
        quats=rng.normal(size=(9, 4)).astype(np.float32),
        scales=rng.uniform(0.01, 0.1, (9, 3)).astype(np.float32),
        opacities=np.full(9, 0.5, np.float32),
        sh=rng.normal(size=(9, 1, 3)).astype(np.float32),
    )
    write_ply(tmp_path / "scene.ply", gaussians)
    return tmp_path / "scene.ply"


def status_of(url):
    """HTTP status of a page whose server may still be starting."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=120) as page:
                return page.status
        except urllib.error.URLError:
            time.sleep(0.1)
    return None


@pytest.fixture
def interruptible():
    """Commands started by the test react to SIGINT, also in a shell's background job.

    A shell makes its background jobs ignore SIGINT, and their children inherit that.
    """
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.usefixtures("interruptible")
def test_the_command_serves_a_page_until_it_is_interrupted(ply):
    with subprocess.Popen(
        [sys.executable, "-m", "facelift_jax.view", str(ply), "--port", "0"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            start = f"{ply}: shown at "  # after a banner of viser
            line = next(x for x in process.stdout if x.startswith(start))
            url = line.removeprefix(start).split(";")[0]
            assert url.startswith("http://127.0.0.1:")
            assert status_of(url) == 200
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()  # the pipes are closed by the context
    assert process.returncode == 0, err
    assert "Traceback" not in err


def test_covariances_have_the_scales_as_standard_deviations(ply, monkeypatch):
    shown = {}

    class Server:
        def __init__(self, *arguments, **options):
            self.scene = self

        def add_gaussian_splats(self, name, **values):
            shown.update(values, name=name)

    viser = pytest.importorskip("viser")
    monkeypatch.setattr(viser, "ViserServer", Server)
    view.serve(ply, 0)
    gaussians = view.read_ply(ply)
    assert shown["name"] == "scene.ply"
    variances = np.linalg.eigvalsh(shown["covariances"])
    expected = np.sort(gaussians.scales, axis=-1) ** 2
    np.testing.assert_allclose(variances, expected, rtol=1e-3)
    assert shown["opacities"].shape == (9, 1)
    assert shown["rgbs"].min() >= 0
    assert shown["rgbs"].max() <= 1


def test_a_missing_viser_is_one_line(ply, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(ImportError, match=r'pip install "facelift-jax\[view\]"'):
        view.main([str(ply)])
