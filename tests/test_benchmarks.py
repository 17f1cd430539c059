"""The benchmark commands run, at a size for two cores."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import networks, refine_choices
from facelift_jax.data import rodent
from facelift_jax.geometry.paths import dummy_views
from facelift_jax.models import get_model

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_renderers_benchmark_prints_a_table_and_writes_json(tmp_path):
    out = tmp_path / "render.json"
    words = [
        "benchmarks.render",
        "smoke",
        "--interpret",
        "--stages",
        "--repeats",
        "1",
        "--out",
    ]
    done = subprocess.run(
        [sys.executable, "-m", *words, str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(out.read_text())["smoke"]
    assert row["is_finite"]
    assert row["dropped"] == 0
    # every listed entry was emitted, every read one listed
    assert row["entries"] >= row["entries_slice"] >= row["entries_kept"] > 0
    assert row["entries_kept"] >= row["entries_read"] > 0
    for column in ("forward_ms", "both_ms", "blend_ms", "differentiate_ms"):
        assert row[column] > 0
        assert column in done.stdout


def test_operations_of_a_transformer_are_counted():
    """Against the sum over its matrices, by hand; rays' own products are small."""
    model = get_model("gslrm", "mini")
    views, side, width, depth = 3, 64, 128, 4
    inputs = dummy_views(1, views, side)
    params = jax.eval_shape(model.init, jax.random.key(0), inputs)
    jaxpr = jax.make_jaxpr(model.apply)(params, inputs).jaxpr
    pixels = views * (side // 8) ** 2
    tokens = 2 + pixels
    expected = 2 * pixels * 576 * width + 2 * 2 * 14 * width + 2 * pixels * 896 * width
    expected += depth * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)
    assert networks.product_flops(jaxpr) == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
def test_the_networks_benchmark_prints_a_table(tmp_path):
    out = tmp_path / "networks.json"
    words = ["smoke-gslrm", "--repeats", "1", "--passes", *networks.PASSES]
    command = [sys.executable, "-m", "benchmarks.networks", *words, "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(out.read_text())["smoke-gslrm"]
    assert all(row[f"{kind}_ms"] > 0 for kind in networks.PASSES)
    assert row["forward_tflops"] > 0


@pytest.mark.slow
def test_the_refinement_benchmark_prints_a_table_and_writes_json(tmp_path):
    rodent.generate(tmp_path / "set", 3, 32, workers=1, views=2)
    out = tmp_path / "refine.json"
    words = ["--batch", "2", "--steps", "10", "--repeats", "1", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.refine", str(tmp_path / "set"), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    assert list(rows) == ["hull", "start", "10 steps"]
    assert rows["10 steps"]["scenes_per_s"] > 0
    assert rows["10 steps"]["inputs/psnr_fg"] > rows["start"]["inputs/psnr_fg"]
    for column in ("refine_ms", "held_out/psnr_fg", "gap"):
        assert column in done.stdout


@pytest.mark.parametrize("choice", refine_choices.CHOICES)
def test_a_choice_replaces_constants_and_restores_them(choice):
    modules = (refine_choices.benchmark, refine_choices.refine, refine_choices.hull)
    before = [dict(vars(module)) for module in modules]
    with refine_choices.replaced(refine_choices.CHOICES[choice]):
        inside = [dict(vars(module)) for module in modules]
    assert before == [dict(vars(module)) for module in modules]
    is_default = choice == "default"
    assert (inside == before) == is_default


@pytest.mark.slow
def test_the_benchmark_of_choices_plots_one_curve_for_each(tmp_path):
    rodent.generate(tmp_path / "set", 2, 32, workers=1, views=2)
    out, image = tmp_path / "choices.json", tmp_path / "choices.png"
    words = ["--steps", "0", "20", "--choices", "default", "only colors move"]
    files = ["--out", str(out), "--plot", str(image)]
    module = "benchmarks.refine_choices"
    done = subprocess.run(
        [sys.executable, "-m", module, str(tmp_path / "set"), *words, *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert image.read_bytes().startswith(b"\x89PNG")
    content = json.loads(out.read_text())
    assert content["steps"] == [0, 20]
    default, colors = (content["choices"][name] for name in words[4:])
    assert default["held_out/iou"][0] == colors["held_out/iou"][0]
    assert default["held_out/iou"][1] > colors["held_out/iou"][1]
    assert "only colors move" in done.stdout
