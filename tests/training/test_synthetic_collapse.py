"""Small runs with one mistake each, trained for real: the watch finds the right one."""

import json
import shutil

import numpy as np
import pytest
from test_end_to_end import finish, last_line, smoke

from facelift_jax.checkpoints.checkpoint import all_steps
from facelift_jax.data import rodent
from facelift_jax.geometry.paths import orbit_cameras
from facelift_jax.training import collapse_monitor

SIZE, NUM_SCENES = 32, 68
NUM_STEPS, WARMUP = 90, 40
ONLY_INPUTS = ("--config.data.max_angle=1e-3", "--config.data.min_held_out=0")
NO_SILHOUETTES = "--config.loss.alpha_mse=0.0"
GREY = """
import dataclasses, runpy
from facelift_jax.data import transforms

plain = transforms.to_views

def on_grey(*arguments):
    views = plain(*arguments)
    images = views.images * views.masks + 0.5 * (1 - views.masks)
    return dataclasses.replace(views, images=images.astype("float32"))

transforms.to_views = on_grey
runpy.run_module("facelift_jax.main", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def rodents(tmp_path_factory):
    path = tmp_path_factory.mktemp("rodents") / "set"
    rodent.generate(path, NUM_SCENES, SIZE, workers=1)
    return path


def settings(num_steps, num_held_out=2):
    """Flags of the smoke recipe that make it learn, and judge at its end."""
    numbers = {"data.num_held_out_scenes": num_held_out, "eval.num_targets": 4}
    numbers |= {"run.num_steps": num_steps, "run.batch_size": 4, "run.log_every": 10}
    numbers |= {"run.save_every": num_steps, "eval.every": num_steps}
    numbers |= {"optim.warmup_steps": min(WARMUP, num_steps // 2)}
    return [f"--config.{name}={value}" for name, value in numbers.items()]


def started(rodents, here, *flags, num_steps=NUM_STEPS, num_held_out=2, code=None):
    flags = (*settings(num_steps, num_held_out), *flags)
    return smoke("run", rodents, *flags, recipe="gslrm", cwd=here, code=code)


def told(process, here):
    """(step, line) of everything that the watch said in a run."""
    code, _, err = finish(process)
    assert code == 0, err
    rows = map(json.loads, (here / "run" / "metrics.jsonl").read_text().splitlines())
    notes = [(row["step"], note) for row in rows for note in row.get("notes", [])]
    assert all(note in err for _, note in notes)
    return notes


def cause_of(note):
    return note[1].split("; likely cause: ")[1]


@pytest.mark.slow
def test_a_sound_run_is_left_alone(rodents, tmp_path):
    assert told(started(rodents, tmp_path), tmp_path) == []


@pytest.mark.slow
def test_inputs_as_the_only_targets_without_silhouettes(rodents, tmp_path):
    notes = told(started(rodents, tmp_path, *ONLY_INPUTS, NO_SILHOUETTES), tmp_path)
    assert notes[0][0] == collapse_monitor.PATIENCE * WARMUP
    assert "frustums are filled" in notes[0][1]
    assert {cause_of(note) for note in notes} == {collapse_monitor.UNCHECKED}


@pytest.mark.slow
def test_one_input_that_is_its_only_target(rodents, tmp_path):
    one = ("--config.data.num_inputs=1", "--config.data.num_targets=1")
    flags = (*ONLY_INPUTS, NO_SILHOUETTES, *one)
    run = started(rodents, tmp_path, *flags, num_steps=250, num_held_out=4)
    notes = told(run, tmp_path)
    assert "dB from the input cameras" in notes[0][1]
    assert all(cause_of(note).startswith(collapse_monitor.ONE_INPUT) for note in notes)


@pytest.mark.slow
def test_grey_pictures_against_a_white_render(rodents, tmp_path):
    """The pipeline touches what lies around the object, as brightness jitter would."""
    notes = told(started(rodents, tmp_path, code=GREY), tmp_path)
    assert [step for step, _ in notes] == [1, collapse_monitor.PATIENCE * WARMUP]
    assert notes[0][1].startswith("the pictures' background is 0.50 from the one")
    assert "frustums are filled" in notes[1][1]
    assert {cause_of(note) for note in notes} == {collapse_monitor.OTHER_BACKGROUND}


@pytest.mark.slow
def test_wrong_cameras_stop_a_run_that_is_to_stop(rodents, tmp_path):
    """The inputs stand where a fixed ring says, whatever the pictures show."""
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
    code, _, err = finish(started(data, tmp_path, allow, stop, num_steps=10))
    assert code == 2
    line = last_line(err)
    assert line.startswith("main: step 10: only ")
    assert f"likely cause: {collapse_monitor.WRONG_CAMERAS}; the run is saved" in line
    again = finish(started(data, tmp_path, allow, num_steps=10))
    assert again[0] == 0, again[2]
    assert all_steps(tmp_path / "run" / "checkpoints") == [10]
