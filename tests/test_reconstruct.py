"""The reconstruct command: settings of checkpoints, files, and complete folders."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from optional_packages import HIDE

from facelift_jax import reconstruct
from facelift_jax.builders import restore
from facelift_jax.checkpoints.checkpoint import save_params
from facelift_jax.convert import rule_table
from facelift_jax.data import rodent
from facelift_jax.data.scenes import open_source
from facelift_jax.evaluation.steps import make_eval_step
from facelift_jax.geometry.paths import dummy_views
from facelift_jax.metrics import (
    HEALTH_DEFINITIONS,
    OWN_VIEW_DEFINITIONS,
    TURNTABLE_DEFINITIONS,
)
from facelift_jax.models import get_model

ROOT = Path(__file__).parent.parent
SIZES = {"width": 32, "depth": 1, "head_dim": 16}
MODEL = {"name": "gslrm", "variant": "mini", "dtype": "float32", "overrides": SIZES}
DATA = {"input_size": 16, "target_size": 16, "radius": 2.7, "frame": "world"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rodents"
    rodent.generate(path, 2, 16, workers=1)
    return [path / f"scene_{i:06d}" for i in range(2)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(run of a small GS-LRM with small images, the same as converted weights)."""
    model = get_model("gslrm", "mini", **SIZES)
    params = model.init(jax.random.key(0), dummy_views(1, 2, 16))["params"]
    root = tmp_path_factory.mktemp("weights")
    save_params(root / "run", params, {"model": MODEL, "data": DATA})
    converted = {"model": MODEL, "data": rule_table("gslrm").DATA}
    save_params(root / "converted", params, converted)
    return root / "run", root / "converted"


def test_converted_weights_use_the_data_options_of_their_training(weights):
    """FaceLift: cameras 2.7 from the origin, in a world that keeps its axes."""
    options = restore(str(weights[1]), 3).options
    assert (options.radius, options.frame) == (2.7, "world")
    assert (options.input_size, options.target_size) == (512, 512)
    assert (options.num_inputs, options.eval_targets) == (6, 3)
    assert options.background == (1.0, 1.0, 1.0)
    options = restore(str(weights[0]), 3, num_inputs=4).options
    assert (options.input_size, options.num_inputs) == (16, 4)


def test_a_checkpoint_without_a_network_is_refused(tmp_path):
    save_params(tmp_path / "w", {"a": np.zeros(1, np.float32)}, {})
    with pytest.raises(ValueError, match="the metadata names no network: give"):
        restore(str(tmp_path / "w"), 1)


def test_a_scene_is_reconstructed_in_the_world_of_its_rig(weights, scenes):
    restored = restore(str(weights[0]), 1, num_inputs=4)
    step = make_eval_step(restored.model, restored.render_fn)
    scene = open_source(scenes[0])[0]
    result = reconstruct.reconstruct_scene(
        step, restored.params, scene, restored.options
    )
    assert result.metrics["num_gaussians"] == 2 + 4 * 16 * 16
    assert result.metrics["share_opaque"] == 1  # about 0.12 at the start
    assert result.output.colors.shape == (1, 4, 16, 16, 3)
    distances = np.linalg.norm(result.batch.inputs.cameras.centers[0], axis=-1)
    np.testing.assert_allclose(distances, 2.7, rtol=1e-3)
    assert result.view_metrics["psnr_fg"].shape == (1, 4)
    np.testing.assert_allclose(
        result.metrics["inputs/psnr_fg"],
        result.view_metrics["psnr_fg"].mean(),
        rtol=1e-6,
    )


def test_a_complete_scene_is_kept_and_other_folders_are_refused(
    weights, scenes, tmp_path, capsys
):
    out = tmp_path / "out"
    arguments = [str(scenes[0]), "--checkpoint", str(weights[0]), "--out", str(out)]
    arguments += ["--turntable-frames", "2"]
    reconstruct.main(arguments)
    folder = out / "scene_000000"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["made_by"]["filter"] == "opacity"
    assert metrics["made_by"]["data.num_inputs"] == 6
    names = [f"inputs/{name}" for name in OWN_VIEW_DEFINITIONS]
    names += [f"health/{name}" for name in HEALTH_DEFINITIONS]
    names += [f"turntable/{name}" for name in TURNTABLE_DEFINITIONS]
    assert {*names} <= metrics.keys()
    printed = capsys.readouterr().out
    assert all(f"{name.split('/')[1]} " in printed for name in names)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    reconstruct.main(arguments)
    assert "scene_000000: already complete in" in capsys.readouterr().out
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert after == before
    for flags, changed in (
        (["--filter", "facelift", "--turntable-frames", "3"], "filter, turntable_fram"),
        (["--inputs", "4"], "data.num_inputs"),
    ):
        with pytest.raises(ValueError, match=f"but made with different {changed}"):
            reconstruct.main([*arguments, *flags])

    moved = tmp_path / "moved" / "scene_000000"
    shutil.copytree(scenes[0], moved)
    config = {"model": MODEL, "data": DATA | {"min_held_out": 0, "max_angle": 90.0}}
    params = restore(str(weights[0]), 1).params
    save_params(tmp_path / "same", params, config)
    same = [str(moved), "--checkpoint", str(tmp_path / "same"), *arguments[3:]]
    reconstruct.main(same)
    assert "scene_000000: already complete in" in capsys.readouterr().out
    shutil.copy(moved / "images" / "cam_001.png", moved / "images" / "cam_000.png")
    with pytest.raises(ValueError, match="complete, but made with different files;"):
        reconstruct.main(same)

    (folder / "metrics.json").unlink()  # as after an interrupted run
    assert not reconstruct.is_complete(folder, "scene_000000", {})
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt, which is not a file"):
        reconstruct.main(arguments)
    into_data = [*arguments, "--out", str(scenes[0].parent)]
    with pytest.raises(ValueError, match=r"scene_000000: holds depths, which is not"):
        reconstruct.main(into_data)


@pytest.mark.slow
def test_a_base_installation_reconstructs(weights, scenes, tmp_path):
    """Without the packages of any extra."""
    arguments = [str(scenes[0]), "--checkpoint", str(weights[0]), "--inputs", "2"]
    arguments += ["--turntable-frames", "2", "--out", str(tmp_path)]
    script = f"from facelift_jax import reconstruct\nreconstruct.main({arguments})"
    done = subprocess.run(
        [sys.executable, "-c", HIDE + script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "scene_000000").iterdir()}
    assert {"metrics.json", "scene.ply", "turntable.mp4"} < names


def test_the_digest_changes_with_any_weight():
    params = {"a": np.zeros(2, np.float32), "b": np.ones((2, 3), np.float32)}
    same = jax.tree.map(np.copy, params)
    assert reconstruct.digest(same) == reconstruct.digest(params)
    same["b"][1, 2] += 1
    assert reconstruct.digest(same) != reconstruct.digest(params)


def test_bad_arguments_are_refused_before_any_output(weights, scenes, tmp_path):
    out = tmp_path / "out"
    data = DATA | {"frame": "first_camera"}
    params = restore(str(weights[0]), 1).params
    save_params(tmp_path / "y_up", params, {"model": MODEL, "data": data})
    flags = ["--checkpoint", str(tmp_path / "y_up"), "--filter", "facelift"]
    with pytest.raises(ValueError, match="--filter facelift: needs a world whose z"):
        reconstruct.main([*flags, "--out", str(out), str(scenes[0])])
    arguments = ["--checkpoint", str(weights[0]), "--out", str(out), str(scenes[0])]
    with pytest.raises(ValueError, match="two scenes are named scene_000000; give"):
        reconstruct.main([*arguments, str(scenes[1]), str(scenes[0])])
    with pytest.raises(ValueError, match="--turntable-frames 0: must be at least 1"):
        reconstruct.main([*arguments, "--turntable-frames", "0"])
    with pytest.raises(ValueError, match="num_inputs must be at least 1, found 0"):
        reconstruct.main([*arguments, "--inputs", "0"])
    with pytest.raises(ValueError, match="6 views marked as inputs, but num_inputs=9"):
        reconstruct.main([*arguments, "--inputs", "9"])
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "not readable as JSON"),
        ("[]", "expected a JSON object; remove the file"),
        (
            '{"made_by": 3}',
            "complete, but made with different weights; choose another",
        ),
    ],
)
def test_a_damaged_metrics_file_is_reported_in_one_line(tmp_path, text, line):
    (tmp_path / reconstruct.METRICS_FILE).write_text(text)
    with pytest.raises(ValueError, match=line) as caught:
        reconstruct.is_complete(tmp_path, "scene", {"weights": "1"})
    assert str(tmp_path) in str(caught.value)
