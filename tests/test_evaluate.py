"""The evaluate command, and evaluation in general: refusals, counts, files."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from configs.lgm import get_config
from facelift_jax import evaluate as command_evaluate
from facelift_jax.builders import data_options
from facelift_jax.data import rodent
from facelift_jax.data.mixture import open_checked
from facelift_jax.data.scenes import open_source
from facelift_jax.evaluation.evaluator import evaluate
from facelift_jax.evaluation.steps import make_hull_step
from facelift_jax.io import command
from facelift_jax.render import RenderConfig, render


def test_dropped_entries_end_an_evaluation(tmp_path):
    rodent.generate(tmp_path / "data", 1, 16, workers=1)
    source = open_source(tmp_path / "data")
    options = data_options({"input_size": 16, "target_size": 16}, 1)
    capped = functools.partial(
        render,
        background=np.ones(3, np.float32),
        config=RenderConfig(max_entries=16),
    )
    with pytest.raises(
        ValueError,
        match=r"scene scene_000000: the renderer dropped \d+ list entries, so its",
    ):
        evaluate(make_hull_step(capped), None, source, options)


def repeat_a_view(scene):
    """Makes a scene fail the data checks: two views have the same image."""
    images = sorted((scene / "images").iterdir())
    shutil.copy(images[6], images[7])


@pytest.mark.filterwarnings("ignore:the load_module")  # by the default of a flag
def test_a_run_counts_the_held_out_scenes_that_fail_the_data_checks(
    tmp_path, monkeypatch, capsys
):
    """In every process; only the first one logs and writes."""
    rodent.generate(tmp_path / "data", 4, 24, workers=1, views=3)
    for name in ("scene_000001", "scene_000003"):
        repeat_a_view(tmp_path / "data" / name)
    config = get_config("smoke")
    config.data.update(path=str(tmp_path / "data"), num_held_out_scenes=2)
    config.data.violations_allowed = 2
    options = data_options(config.data, config.eval.num_targets)
    (tmp_path / "run").mkdir()
    for process in (1, 0):
        assert not list(tmp_path.rglob("data_checks.json"))
        assert "the results are stored with the data set" not in capsys.readouterr().err
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        train_on, held_out = open_checked(config.data, options, tmp_path / "run")
        assert (len(train_on), len(held_out), held_out.violations) == (2, 2, 1)
    assert len(list(tmp_path.rglob("data_checks.json"))) == 2
    assert "the results are stored with the data set" in capsys.readouterr().err


@pytest.mark.slow
def test_the_hull_is_evaluated_without_a_network(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr(command, "log_own_lines", lambda: None)
    rodent.generate(tmp_path / "data", 2, 24, workers=1, views=3)
    repeat_a_view(tmp_path / "data" / "scene_000001")
    arguments = [str(tmp_path / "data"), "--out", str(tmp_path / "hull")]
    with pytest.raises(ValueError, match="give --checkpoint, or --baseline hull for "):
        command_evaluate.main(arguments)
    arguments += ["--baseline", "hull", "--inputs", "5"]
    with pytest.raises(ValueError, match="--turntable-frames 0: must be at least 1"):
        command_evaluate.main([*arguments, "--turntable-frames", "0"])
    command_evaluate.main([*arguments, "--turntable-frames", "4"])
    (warning,) = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
    assert warning.startswith(
        f"evaluated anyway: {tmp_path}/data: 1 of 2 scenes fail the data "
        "checks; first: scene scene_000001: views 6 and 7 have the same image"
    )
    assert warning.endswith(f"python -m facelift_jax.check_data {tmp_path}/data")
    written = json.loads((tmp_path / "hull" / "metrics.json").read_text())
    assert written["violations"] == 1
    metrics = written["metrics"]
    assert metrics["held_out/iou"] > 0.5
    assert written["hull"]["metrics"] == metrics
    low, high = written["intervals"]["held_out/iou"]
    assert low <= metrics["held_out/iou"] <= high
    assert written["counts"]["surface/chamfer"] == 2
    assert metrics["turntable/p6"] is None  # too few frames
    assert sum(x["num_views"] for x in written["by_angle"]) == 2 * 4  # one input less
    means = [np.mean(scene["psnr_fg"]) for scene in written["scenes"]]
    assert metrics["held_out/psnr_fg"] == pytest.approx(np.mean(means))
    lines = capsys.readouterr().out.splitlines()
    iou = next(line.split() for line in lines if line.startswith("iou"))
    assert iou[2] == iou[-1]  # held-out views, and the hull's
    box = next(line.split() for line in lines if line.startswith("psnr_box"))
    assert box[-1] == "-"
    files = {path.name for path in (tmp_path / "hull").iterdir()}
    wanted = "metrics.json images report.html scene.ply turntable.mp4"
    assert files == {*wanted.split()}
