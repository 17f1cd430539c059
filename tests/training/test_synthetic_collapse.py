"""The collapse monitor names the mistake in small runs that have exactly one."""

import json
import shutil

import numpy as np
import pytest
from runs import finish, last_line, smoke

from facelift_jax.checkpoints.checkpoint import all_steps
from facelift_jax.data import rodent
from facelift_jax.geometry.paths import orbit_cameras
from facelift_jax.training import collapse_monitor

SIZE, NUM_SCENES = 32, 68
NUM_STEPS, WARMUP = 90, 40
ONLY_INPUTS = ("--config.data.max_angle=1e-3", "--config.data.min_held_out=0")
NO_SILHOUETTES = "--config.loss.alpha_mse=0.0"
GRAY = """
import dataclasses, runpy
from facelift_jax.data import examples

composited = examples.to_views

def on_gray(*arguments):
    views = composited(*arguments)
    images = views.images * views.masks + 0.5 * (1 - views.masks)
    return dataclasses.replace(views, images=images.astype("float32"))

examples.to_views = on_gray
runpy.run_module("facelift_jax.main", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def rodents(tmp_path_factory):
    path = tmp_path_factory.mktemp("rodents") / "set"
    rodent.generate(path, NUM_SCENES, SIZE, workers=1)
    return path


def settings(num_steps, num_held_out=2):
    """Flags that make the smoke recipe learn, and evaluate at its end."""
    numbers = {"data.num_held_out_scenes": num_held_out, "eval.num_targets": 4}
    numbers |= {"run.num_steps": num_steps, "run.batch_size": 4, "run.log_every": 10}
    numbers |= {"run.save_every": num_steps, "eval.every": num_steps}
    numbers |= {"optim.warmup_steps": min(WARMUP, num_steps // 2)}
    return [f"--config.{name}={value}" for name, value in numbers.items()]


def start(rodents, here, *flags, num_steps=NUM_STEPS, num_held_out=2, code=None):
    flags = (*settings(num_steps, num_held_out), *flags)
    return smoke("run", rodents, *flags, recipe="gslrm", cwd=here, code=code)


def alarms_of(process, here):
    """(step, text) of every alarm of a run."""
    code, _, err = finish(process)
    assert code == 0, err
    rows = map(json.loads, (here / "run" / "metrics.jsonl").read_text().splitlines())
    alarms = [(row["step"], text) for row in rows for text in row.get("alarms", [])]
    assert all(text in err for _, text in alarms)
    return alarms


def cause_of(alarm):
    return alarm[1].split("; likely cause: ")[1]


@pytest.mark.slow
def test_a_healthy_run_raises_no_alarm(rodents, tmp_path):
    assert alarms_of(start(rodents, tmp_path), tmp_path) == []


@pytest.mark.slow
def test_inputs_as_the_only_targets_without_silhouettes(rodents, tmp_path):
    alarms = alarms_of(start(rodents, tmp_path, *ONLY_INPUTS, NO_SILHOUETTES), tmp_path)
    assert alarms[0][0] == collapse_monitor.PATIENCE * WARMUP
    assert "frustums are filled" in alarms[0][1]
    assert {cause_of(alarm) for alarm in alarms} == {
        collapse_monitor.INPUTS_ONLY_NO_SILHOUETTES
    }


@pytest.mark.slow
def test_one_input_that_is_its_only_target(rodents, tmp_path):
    one = ("--config.data.num_inputs=1", "--config.data.num_targets=1")
    flags = (*ONLY_INPUTS, NO_SILHOUETTES, *one)
    run = start(rodents, tmp_path, *flags, num_steps=250, num_held_out=4)
    alarms = alarms_of(run, tmp_path)
    assert "dB at the input cameras" in alarms[0][1]
    assert all(
        cause_of(alarm).startswith(collapse_monitor.ONE_INPUT) for alarm in alarms
    )


@pytest.mark.slow
def test_gray_targets_and_a_white_background_of_the_renderer(rodents, tmp_path):
    """The pipeline changes the targets' background, as brightness jitter would."""
    alarms = alarms_of(start(rodents, tmp_path, code=GRAY), tmp_path)
    assert [step for step, _ in alarms] == [1, collapse_monitor.PATIENCE * WARMUP]
    assert alarms[0][1].startswith(
        "the targets' background differs from the rendered one by 0.50"
    )
    assert "frustums are filled" in alarms[1][1]
    assert {cause_of(alarm) for alarm in alarms} == {collapse_monitor.OTHER_BACKGROUND}


@pytest.mark.slow
def test_wrong_cameras_stop_a_run_with_on_collapse_stop(rodents, tmp_path):
    """The input cameras are on a fixed ring, whatever the images show."""
    data = shutil.copytree(rodents, tmp_path / "ring")
    for path in data.rglob("opencv_cameras.json"):
        document = json.loads(path.read_text())
        inputs = [frame for frame in document["frames"] if frame["split"] == "input"]
        for i, frame in enumerate(inputs):
            distance = float(np.linalg.norm(np.array(frame["w2c"])[:3, 3]))
            azimuth, elevation = np.array([60.0 * i]), np.zeros(1)
            ring = orbit_cameras(azimuth, elevation, distance, np.eye(3), SIZE)
            frame["w2c"] = np.asarray(ring.viewmats[0], float).tolist()
        path.write_text(json.dumps(document))
    allow = f"--config.data.violations_allowed={NUM_SCENES}"
    stop = "--config.run.on_collapse=stop"
    code, _, err = finish(start(data, tmp_path, allow, stop, num_steps=10))
    assert code == 2
    line = last_line(err)
    assert line.startswith("main: step 10: in the worst view, only ")
    assert f"likely cause: {collapse_monitor.WRONG_CAMERAS}; the run is saved" in line
    again = finish(start(data, tmp_path, allow, num_steps=10))
    assert again[0] == 0, again[2]
    assert all_steps(tmp_path / "run" / "checkpoints") == [10]
