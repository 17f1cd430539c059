"""Sets of scenes: files, resuming, worker processes, refusals."""

import errno
import functools
import json
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scene_sets import contents

from facelift_jax.data import writing
from facelift_jax.data.formats import OPENCV_FILE
from facelift_jax.data.rodent import (
    RodentOptions,
    generate,
    make_scene,
    posed_mesh,
    read_parameters,
)
from facelift_jax.data.rodent import __main__ as command
from facelift_jax.data.rodent.generate import KIND
from facelift_jax.data.scenes import open_source
from facelift_jax.io import progress

SIZE, SCENES = 16, 3


def silent(line):
    del line


def make(out, scenes=SCENES, **changes):
    return generate(
        out, scenes, SIZE, **{"workers": 1, "views": 1, "progress": silent} | changes
    )


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rodents") / "set"
    assert make(folder) == SCENES
    return folder


def test_files_contain_the_scene(complete):
    source = open_source(complete)
    assert len(source) == SCENES
    for index in range(SCENES):
        made, read = make_scene(index, RodentOptions(SIZE, views=1)), source[index]
        assert read.name == made.name == f"scene_{index:06d}"
        np.testing.assert_array_equal(read.rgba, made.rgba)
        np.testing.assert_array_equal(read.is_input, made.is_input)
        np.testing.assert_array_equal(read.cameras.viewmats, made.cameras.viewmats)
        np.testing.assert_array_equal(read.cameras.Ks, made.cameras.Ks)
        np.testing.assert_allclose(read.depths[..., 0], made.depths, atol=3.1e-5)
        np.testing.assert_array_equal(read.depths[..., 0] > 0, made.depths > 0)


def test_the_files_on_disk(complete):
    folder = complete / "scene_000001"
    document = json.loads((folder / "opencv_cameras.json").read_text())
    assert document["id"] == "scene_000001"
    assert document["rodent"]["seed"] == 0
    assert [f["split"] for f in document["frames"]] == ["input"] * 6 + ["novel"]
    assert document["frames"][6]["file_path"] == "images/cam_006.png"
    with Image.open(folder / "images/cam_006.png") as image:
        assert (image.mode, image.size) == ("RGBA", (SIZE, SIZE))
    with Image.open(folder / "depths/cam_006.png") as depth:
        assert depth.mode == "I;16"
        assert np.array(depth).max() * document["depth_unit"] == pytest.approx(
            2.7, abs=1
        )
    marker = json.loads((complete / "dataset.json").read_text())
    assert marker["scenes"] == SCENES
    assert not list(complete.rglob("*.partial"))
    assert read_parameters(folder) == document["rodent"]
    vertices, _ = posed_mesh(document["rodent"])
    made = make_scene(1, RodentOptions(SIZE, views=1))
    assert vertices.tobytes() == posed_mesh(made.parameters)[0].tobytes()


def test_other_scenes_have_no_parameters(tmp_path):
    assert read_parameters(tmp_path) is None
    (tmp_path / OPENCV_FILE).write_text('{"frames": [], "rodent": 3}')
    assert read_parameters(tmp_path) is None
    (tmp_path / OPENCV_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"opencv_cameras\.json: not a readable JSON"):
        read_parameters(tmp_path)


def test_the_number_of_workers_does_not_change_the_files(complete, tmp_path):
    assert make(tmp_path / "set", workers=2) == SCENES
    assert contents(tmp_path / "set") == contents(complete)


def test_incomplete_scenes_are_made_again_and_complete_ones_kept(complete, tmp_path):
    folder = tmp_path / "set"
    make(folder)
    no_cameras = folder / "scene_000000"
    (no_cameras / "opencv_cameras.json").unlink()
    (no_cameras / "images/cam_003.png").write_bytes(b"half a pic")
    (no_cameras / "images/cam_004.png.partial").write_bytes(b"half")
    (folder / "scene_000002/depths/cam_000.png").unlink()
    kept = folder / "scene_000001/opencv_cameras.json"
    stamp = kept.stat().st_mtime_ns
    lines = []
    assert make(folder, progress=lines.append) == 2
    assert kept.stat().st_mtime_ns == stamp
    assert lines[0] == "rodent: 1 of 3 scenes already exist"
    assert lines[-1].startswith("rodent: 2 scenes in 0:0")
    assert contents(folder) == contents(complete)


def test_a_set_can_grow_and_fewer_scenes_change_nothing(complete, tmp_path):
    folder = tmp_path / "set"
    assert make(folder, 1) == 1
    assert make(folder, SCENES) == SCENES - 1
    assert make(folder, 2) == 0
    assert contents(folder) == contents(complete)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "made with seed 0, not 1"),
        ({"views": 2}, "made with views 1, not 2"),
        ({"uneven": True}, "made with uneven False, not True"),
    ],
)
def test_a_set_with_other_options_is_refused(complete, changes, message):
    before = contents(complete)
    with pytest.raises(ValueError, match=message):
        make(complete, **changes)
    assert contents(complete) == before


def test_a_scene_with_other_parameters_is_refused(tmp_path):
    make(tmp_path / "set", 1)
    path = tmp_path / "set/scene_000000/opencv_cameras.json"
    document = json.loads(path.read_text())
    document["rodent"]["coat"]["brightness"] = 3.0
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="parameters are not those of scene 0"):
        make(tmp_path / "set", 1)


def test_a_folder_with_other_files_is_refused_and_unchanged(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"is not a rodent data set \(it has no"):
        make(tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"precious"}
    with pytest.raises(ValueError, match="is not a rodent data set"):
        make(tmp_path / "thesis.tex")
    (tmp_path / "dataset.json").write_text('{"kind": "something else"}')
    with pytest.raises(ValueError, match="made with kind 'something else'"):
        make(tmp_path)
    made = {"kind": KIND, "version": 1, "size": SIZE, "seed": 0, "views": 1}
    made |= {"fov_degrees": 50.0, "radius": 2.7, "uneven": False, "scenes": "x"}
    (tmp_path / "dataset.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match='"scenes" must be a whole number'):
        make(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="not readable as JSON"):
        make(tmp_path)


def test_a_run_killed_while_writing_its_marker_can_be_repeated(complete, tmp_path):
    (tmp_path / "dataset.json.partial").write_text("{")
    assert make(tmp_path) == SCENES
    assert contents(tmp_path) == contents(complete)


def test_a_killed_worker_is_a_one_line_error_and_the_next_run_finishes(
    complete, tmp_path, monkeypatch
):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_REPORTS", 0.0)

    def kill_one(line):
        del line
        for child in multiprocessing.active_children()[:1]:
            child.kill()

    folder = tmp_path / "set"
    with pytest.raises(RuntimeError, match="a worker process died") as caught:
        make(folder, 40, workers=2, progress=kill_one)
    assert "of 40 scenes complete; run again to finish" in str(caught.value)
    assert "\n" not in str(caught.value)
    make(folder, SCENES)
    for index in range(SCENES):
        name = f"scene_{index:06d}"
        assert contents(folder / name) == contents(complete / name)


def test_a_full_disk_is_a_one_line_error_and_the_next_run_finishes(
    complete, tmp_path, monkeypatch
):
    written = []
    write_bytes = writing.atomic.write_bytes

    def write_until_full(path, content):
        written.append(path)
        if len(written) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_bytes(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(writing.atomic, "write_bytes", write_until_full)
        with pytest.raises(OSError, match="disk is full with 1 of 3 scenes complete"):
            make(tmp_path / "set")
    assert make(tmp_path / "set") == SCENES - 1
    assert contents(tmp_path / "set") == contents(complete)


@pytest.fixture
def run_command(run_main):
    """Runs the command with arguments; returns (exit code, stdout, stderr)."""
    return functools.partial(run_main, "rodent", command.main)


def test_the_command(complete, tmp_path, run_command):
    options = ("--scenes", SCENES, "--size", SIZE, "--workers", 1, "--views", 1)
    out = tmp_path / "set"
    code, output, _ = run_command("--out", out, *options)
    assert code == 0
    assert "rodent: 3 scenes in 0:0" in output
    assert contents(out) == contents(complete)

    code, _, error = run_command("--out", out, *options, "--seed", 3)
    assert code == 2
    assert error.count("\n") == 1
    assert "made with seed 0, not 3" in error

    code, _, error = run_command("--out", out, *options, "--fov", 20)
    assert code == 2
    assert "cut the object off" in error


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "rodent: the following arguments are required: --size; see --help\n"),
        (
            ("--size", "big"),
            "rodent: argument --size: invalid int value: 'big'; see --help\n",
        ),
        (
            ("--size", SIZE, "--frobnicate"),
            "rodent: unrecognized arguments: --frobnicate; see --help\n",
        ),
    ],
)
def test_bad_usage_is_a_one_line_error(tmp_path, run_command, arguments, line):
    out = tmp_path / "set"
    code, _, error = run_command("--out", out, "--scenes", 1, *arguments)
    assert (code, error) == (2, line)
    assert not out.exists()


def test_a_dead_worker_is_a_one_line_error_of_the_command(
    tmp_path, monkeypatch, run_command
):
    def fail(*_, **__):
        raise RuntimeError("a worker process died")

    monkeypatch.setattr(command, "generate", fail)
    options = ("--out", tmp_path / "set", "--scenes", 1, "--size", SIZE)
    code, _, error = run_command(*options)
    assert (code, error) == (2, "rodent: a worker process died\n")


WITHOUT_EMBREEX = """
import sys
sys.modules["embreex"] = None
from facelift_jax.data import rodent
parameters = rodent.sample_parameters(0, rodent.RodentOptions(16))
assert len(rodent.posed_mesh(parameters)[0])
try:
    rodent.make_scene(0, rodent.RodentOptions(16))
except ImportError as error:
    print(error)
"""


def test_only_rendering_needs_embreex():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EMBREEX], capture_output=True, text=True
    )
    assert done.stdout.endswith('pip install "facelift-jax[data]"\n'), done.stderr
