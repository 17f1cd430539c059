"""The commands as a user runs them: train, kill, resume, evaluate, and bad input."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from runs import (
    ROOT,
    assert_same_params,
    command,
    finish,
    kill_after_first_checkpoint,
    last_line,
    lines_of,
    refused,
    smoke,
)

from facelift_jax.checkpoints.checkpoint import all_steps, load_params, save_params
from facelift_jax.data import rodent
from facelift_jax.evaluation import results
from facelift_jax.export.ply import read_ply
from facelift_jax.metrics import DEFINITIONS

METRICS = tuple(name for name in DEFINITIONS if name != "lpips_vgg16")


@pytest.fixture(scope="module")
def rodents(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rodents"
    rodent.generate(path, 8, 32, workers=1)
    return path


@pytest.fixture(scope="module")
def run(rodents, tmp_path_factory):
    """A run directory of the smoke recipe, never interrupted."""
    here = tmp_path_factory.mktemp("run")
    code, out, err = finish(smoke("run", rodents, cwd=here))
    assert code == 0, err
    assert "held-out views" in out
    return here / "run"


@pytest.mark.slow
def test_a_run_leaves_everything_a_user_needs(run):
    names = {path.name for path in run.iterdir()}
    wanted = "config.json metrics.jsonl checkpoints report.html scene.ply turntable.mp4"
    assert names >= {*wanted.split(), "complete.json", "metrics.json", "curves.png"}
    lines = lines_of(run)
    assert [line["step"] for line in lines] == [1, 2, 4, 5, 6, 8, 10]
    assert lines[-1]["train/total"] < 0.7 * lines[0]["train/total"]
    sides = {f"{side}/{m}" for side in ("inputs", "held_out") for m in METRICS}
    assert sides | {"gap", "train/rgb_mse_fg", "train/alpha_mse"} <= lines[-1].keys()
    gap = lines[-1]["inputs/psnr_fg"] - lines[-1]["held_out/psnr_fg"]
    assert lines[-1]["gap"] == pytest.approx(gap)
    assert all(line["train/dropped"] == 0 for line in lines)
    assert read_ply(run / "scene.ply").means.shape[1] == 3
    sheets = sorted(p.name for p in (run / "images" / "step_000010").iterdir())
    assert sheets == [
        f"scene_000006_{kind}.png" for kind in ("inputs", "maps", "sheet")
    ]


@pytest.mark.slow
def test_gslrm_trains_and_resumes_through_the_same_command(rodents, tmp_path):
    """With every kind of loss term that works at 32 px, on a schedule."""
    flags = ("--config.loss.points_distance=0.1", "--config.loss.pixel_align=0.1")
    flags += ("--config.optim.skip_norm=1e6",)
    process = smoke("run", rodents, *flags, cwd=tmp_path, recipe="gslrm")
    kill_after_first_checkpoint(process, tmp_path / "run")
    code, out, err = finish(smoke("run", rodents, *flags, cwd=tmp_path, recipe="gslrm"))
    assert code == 0, err
    assert "held-out views" in out
    lines = lines_of(tmp_path / "run")
    assert lines[-1]["train/total"] < lines[0]["train/total"]
    assert lines[-1]["train/points_distance"] > 0
    assert lines[-1]["train/pixel_align"] < 1e-5  # its points lie on their rays
    assert lines[-1]["train/over_norm"] == 0


@pytest.mark.slow
def test_a_missing_perceptual_network_is_refused_at_the_start(rodents, tmp_path):
    flags = ("--config.loss.perceptual=0.5", "--config.loss.vgg19_weights=nowhere")
    code, _, err = finish(smoke("run", rodents, *flags, cwd=tmp_path, recipe="gslrm"))
    assert code == 2
    assert last_line(err).startswith("main: nowhere: no file of VGG-19 weights;")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_lpips_is_a_loss_and_a_metric(rodents, lpips_folder, tmp_path):
    """The recipe with smaller counts, because LPIPS resizes its images to 256 px."""
    counts = {"run.num_steps": 2, "optim.warmup_steps": 1, "run.batch_size": 1}
    counts |= {"data.num_targets": 1, "data.min_held_out": 1, "eval.num_targets": 1}
    counts |= {"data.num_held_out_scenes": 1, "eval.num_image_scenes": 0}
    flags = [f"--config.{name}={count}" for name, count in counts.items()]
    flags.append(f"--config.loss.lpips_weights={lpips_folder}")
    code, out, err = finish(
        smoke("run", rodents, *flags, cwd=tmp_path, argument="smoke,lpips")
    )
    assert code == 0, err
    assert "loss: alpha_mse 1.0, lpips 1.0, rgb_mse_fg 1.0; not used: dep" in err
    first, *_, last = lines_of(tmp_path / "run")
    assert first["train/lpips"] > 0
    assert {"inputs/lpips_vgg16", "held_out/lpips_vgg16"} <= last.keys()
    arguments = ["--checkpoint", "run", rodents, "--turntable-frames", 2]
    arguments += ["--image-scenes", 0, "--held-out-views", 1]
    arguments += ["--lpips", lpips_folder]
    code, out, err = finish(command(*arguments, cwd=tmp_path, module="evaluate"))
    assert code == 0, err
    assert (
        f"{'lpips_vgg16':<28}{results.format_number(last['inputs/lpips_vgg16']):>12}"
        in out
    )


@pytest.mark.slow
def test_a_killed_run_ends_bit_identical(run, rodents, tmp_path):
    process = smoke("killed", rodents, cwd=tmp_path)
    kill_after_first_checkpoint(process, tmp_path / "killed")
    assert not (tmp_path / "killed" / "complete.json").exists()
    code, _, err = finish(smoke("killed", rodents, cwd=tmp_path))
    assert code == 0, err
    assert_same_params(tmp_path / "killed", run)
    timing = "train/scenes_per_second"
    # a restart logs its first lines at other steps, and a line has the means over the
    # steps since the line before
    resumed = {line["step"]: line for line in lines_of(tmp_path / "killed")}
    expected = {line["step"]: line for line in lines_of(run)}
    for step in (1, 2, 4, 5, 10):
        assert {**resumed[step], timing: 0} == {**expected[step], timing: 0}


@pytest.mark.slow
def test_a_full_disk_ends_with_one_line_and_loses_nothing(run, rodents, tmp_path):
    full = tmp_path / "full"
    kill_after_first_checkpoint(smoke("full", rodents, cwd=tmp_path), full)
    process = smoke("full", rodents, cwd=tmp_path, largest_file=2**20)
    # the threads of the storage library report the failed write too
    err = process.communicate(timeout=900)[1]
    assert process.returncode == 2
    assert re.search(r"main: \S*/full/checkpoints/10: cannot be saved: ", err)
    assert all_steps(full / "checkpoints") == [5]
    code, _, err = finish(smoke("full", rodents, cwd=tmp_path))
    assert code == 0, err
    # nothing is left of the killed and of the failed save
    steps = all_steps(full / "checkpoints")
    assert {path.name for path in (full / "checkpoints").iterdir()} == {
        *map(str, steps)
    }
    assert 10 in steps
    assert_same_params(full, run)


@pytest.mark.slow
def test_bad_scenes_stop_training_unless_allowed(rodents, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(rodents, data)
    damaged = data / "scene_000003" / "images" / "cam_002.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    mirrored = data / "scene_000007" / "images" / "cam_002.png"
    Image.fromarray(np.array(Image.open(mirrored))[:, ::-1]).save(mirrored)
    allowed = [
        "--config.data.bad_scenes_allowed=1",
        "--config.data.violations_allowed=1",
    ]
    shows = rf"python -m facelift_jax\.check_data {data} --held-out 2"
    reasons = (
        r"scene_000003.*cam_002\.png\): truncated or damaged",
        f"scene_000007: only .*; the image of view 2 is mirrored.*{shows}",
    )
    for number, reason in enumerate(reasons):
        code, _, err = finish(smoke(number, data, *allowed[:number], cwd=tmp_path))
        assert (code, bool(re.match(f"main: .*{reason}", last_line(err)))) == (2, True)
    for mode, place in (("--mode=train", ""), ("--mode=eval", "evaluation")):
        code, _, err = finish(smoke("run", data, mode, *allowed, cwd=tmp_path))
        assert code == 0, err
        metrics = json.loads((tmp_path / "run" / place / "metrics.json").read_text())
        assert metrics["violations"] == 1
    assert lines_of(tmp_path / "run")[-1]["train/bad_scenes"] == 1
    record = json.loads((tmp_path / "run" / "data_checks.json").read_text())
    assert record["used_with_violations"].keys() == {"scene_000007"}
    assert record["unreadable"].keys() == {"scene_000003"}


@pytest.mark.slow
def test_nonfinite_steps_stop_a_run_and_no_checkpoint_among_them_is_good(
    rodents, tmp_path
):
    flags = ["--config.optim.learning_rate=1e20", "--config.run.num_steps=20"]
    line = (
        "main: step 12: 10 of 10 steps in a row were not finite (steps 2 to 11); no "
        "good checkpoint: run/checkpoints contains none from before step 2: start "
        "again with another --workdir"
    )
    for _ in range(2):  # the second time from a checkpoint among those steps
        code, _, err = finish(smoke("run", rodents, *flags, cwd=tmp_path))
        assert code == 2
        assert last_line(err) == line
    assert all_steps(tmp_path / "run/checkpoints") == [5, 10]


@pytest.mark.slow
def test_weights_of_another_shape_are_refused_by_name(run, rodents, tmp_path):
    params, _ = load_params(run)
    params["conv"]["bias"] = params["conv"]["bias"][:-1]
    save_params(tmp_path / "weights", params, {})
    flag = f"--config.run.init_from={tmp_path / 'weights'}"
    code, _, err = finish(smoke("run", rodents, flag, cwd=tmp_path))
    assert code == 2
    assert last_line(err) == (
        f"main: {tmp_path / 'weights'}: does not fit: reshaped conv/bias float32[14], "
        "found float32[13]; allow differences with run.init_ignore"
    )


@pytest.mark.slow
def test_eval_mode_repeats_the_metrics(run, rodents, tmp_path):
    code, out, err = finish(smoke(run, rodents, "--mode=eval", cwd=tmp_path))
    assert code == 0, err
    assert "held-out views" in out
    again = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert again == json.loads((run / "metrics.json").read_text())


@pytest.mark.slow
def test_reconstruct_command_writes_scenes_and_keeps_complete_ones(
    run, rodents, tmp_path
):
    scenes = [str(rodents / name) for name in ("scene_000006", "scene_000007")]
    arguments = ["--checkpoint", str(run), "--turntable-frames", "4"]
    code, out, err = finish(
        command(*arguments, *scenes, cwd=tmp_path, module="reconstruct")
    )
    assert code == 0, err
    assert "[process=" not in err  # other libraries' lines
    first = tmp_path / "reconstruction" / "scene_000006"
    kinds = [f"scene_000006_{kind}.png" for kind in ("inputs", "maps", "sheet")]
    files = ["metrics.json", "scene.ply", *kinds, "turntable.mp4"]
    assert sorted(path.name for path in first.iterdir()) == sorted(files)
    metrics = json.loads((first / "metrics.json").read_text())
    assert metrics["inputs/psnr_fg"] > 0
    assert metrics["left_out_of_ply"] == "opacity < 0.005"
    assert not any(key.startswith("held_out") for key in metrics)
    second = tmp_path / "reconstruction" / "scene_000007"
    (second / "metrics.json").unlink()
    before = (first / "scene.ply").stat().st_mtime_ns
    again = command(*arguments, *scenes, cwd=tmp_path, module="reconstruct")
    code, out, err = finish(again)
    assert code == 0, err
    assert "scene_000006: already complete in" in out
    assert (first / "scene.ply").stat().st_mtime_ns == before
    assert (second / "metrics.json").is_file()
    code, _, err = finish(
        command(*arguments, "nowhere", cwd=tmp_path, module="reconstruct")
    )
    assert code == 2
    line = "reconstruct: nowhere: there is no such folder or list of scene folders"
    assert last_line(err) == line


@pytest.mark.slow
def test_evaluate_command_takes_any_data_set(run, rodents, tmp_path):
    arguments = ["--checkpoint", run, rodents, "--out", "evaluated"]
    arguments += ["--image-scenes", 1, "--turntable-frames", 4, "--refine", 2]
    code, out, err = finish(command(*arguments, cwd=tmp_path, module="evaluate"))
    assert code == 0, err
    assert "scenes in the means: 2" in out  # six were trained on
    assert "6 of 8 scenes were trained on and are left out" in err
    folder = tmp_path / "evaluated"
    scenes = json.loads((folder / "metrics.json").read_text())["scenes"]
    assert [scene["name"] for scene in scenes] == ["scene_000006", "scene_000007"]
    assert (folder / "turntable.mp4").stat().st_size > 1000
    report = (folder / "report.html").read_text()
    assert f"<bdi>{run}, refined by 2 gradient steps</bdi>" in report


@pytest.mark.slow
def test_eval_mode_refuses_another_config(run, rodents, tmp_path):
    flags = ("--mode=eval", "--config.data.radius=2.0")
    code, _, err = finish(smoke(run, rodents, *flags, cwd=tmp_path))
    assert code == 2
    assert last_line(err) == (
        f"main: {run}: trained with a different data.radius; use the config of the "
        "training run"
    )


@pytest.mark.slow
def test_the_demo_script_installs_generates_data_and_runs():
    """With smaller counts; the whole demo takes six minutes on two cores."""
    script = ["bash", "launch/demo.sh", "--workdir=runs/test-demo"]
    counts = ["--config.run.num_steps=12", "--config.optim.warmup_steps=4"]
    counts += ["--config.eval.turntable_frames=8", "--config.eval.num_targets=2"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    shutil.rmtree(ROOT / "runs" / "test-demo", ignore_errors=True)
    done = subprocess.run(
        [*script, *counts], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "held-out views" in done.stdout
    # before that, without training
    report = (ROOT / "runs" / "hull-demo" / "report.html").read_text()
    assert "Ahead of the visual hull" in report
    assert (ROOT / "runs" / "test-demo" / "turntable.mp4").is_file()
    assert (ROOT / "data" / "rodent-32" / "dataset.json").is_file()


@pytest.mark.slow
def test_a_run_directory_keeps_to_its_config(run, rodents, tmp_path):
    other = "--config.optim.learning_rate=0.5"
    code, _, err = finish(smoke(run, rodents, other, cwd=tmp_path))
    assert code == 2
    assert last_line(err) == (
        f"main: {run}: started with another config: optim.learning_rate was 0.0008, "
        "is 0.5: choose another --workdir"
    )


BAD_FLAGS = {
    "--config.run.steps=1": "unknown config key 'steps'; configs/README.md lists the f",
    "--config.run.save_every=0": "run.save_every=0: must be at least 1",
    "--config.run.profile=5:3": "run.profile='5:3': expected START:STOP, the first and",
    "--config.run.profile=5:11": "run.profile='5:11': expected START:STOP, the first",
    "--config.run.profile=all": "run.profile='all': expected START:STOP, the first and",
    "--config.model.dtype=float99": "model: data type 'float99' not understood",
    "configs/lgm.py:demo": "unexpected argument 'configs/lgm.py:demo'; set the config",
    "--config.run.seed=abc": "flag --config.run.seed=abc: invalid literal for int()",
    "--config.model.variant=tinny": "unknown lgm variant 'tinny'; known: big, lrm, min",
    "--config.loss.rgb_mse=-1": "loss.rgb_mse: expected a finite weight >= 0, found",
    "--config.optim.freeze=enc": "optim.freeze='enc': unknown preset; known: none, enc",
    "--config.loss.perceptual=0.5": ".: no file of VGG-19 weights; set loss.vgg19_w",
    "--config.loss.lpips_weights=nowhere": "nowhere: no vgg16_weights.h5; set loss.",
    "--config.data.path=nowhere": "nowhere: there is no such folder or list",
    "--mode=test": "flag --mode=test: value should be one of <train|eval>",
    "--verbos": "Unknown command line flag 'verbos'",
    "--mode=eval": "runs/lgm-smoke: ",
}
SMOKE = f"--config={ROOT}/configs/lgm.py:smoke"


@pytest.mark.parametrize("flag", BAD_FLAGS)
def test_bad_flags_end_with_one_line(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = refused([SMOKE, flag], monkeypatch, capsys)
    assert line.startswith(f"main: {BAD_FLAGS[flag]}")
    assert not list(tmp_path.iterdir())  # nothing was written


@pytest.mark.parametrize("flag", ["--config.run.save_every=0", "--verbos"])
def test_bad_flags_end_the_process_without_a_traceback(flag, tmp_path):
    code, _, err = finish(command(SMOKE, flag, cwd=tmp_path))
    assert code == 2
    assert last_line(err).startswith(f"main: {BAD_FLAGS[flag]}")
    assert not list(tmp_path.iterdir())


def test_unknown_config_argument_lists_the_known_ones(monkeypatch, capsys):
    line = refused([f"--config={ROOT}/configs/lgm.py:bigg"], monkeypatch, capsys)
    assert line == (
        "main: unknown config argument 'bigg'; variants: lrm, small, big, "
        "tiny, mini; options: demo, smoke, lpips"
    )
