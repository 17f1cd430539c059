"""The command `check_data`: table, exit code, JSON, images, and invalid usage."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facelift_jax import check_data
from facelift_jax.data import rodent
from facelift_jax.data.scenes import open_source
from facelift_jax.data.validation.checks import check_scene
from facelift_jax.data.validation.visualize import write_check_image

ROOT = Path(__file__).parent.parent
WHITE = (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def rodents(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rodents"
    rodent.generate(path, 3, 32, workers=1, views=3)
    return path


@pytest.fixture
def broken(rodents, tmp_path):
    """A copy in which scene 1 has a mirrored image and scene 2 a missing one."""
    data = tmp_path / "data"
    shutil.copytree(rodents, data)
    mirrored = data / "scene_000001" / "images" / "cam_002.png"
    Image.fromarray(np.array(Image.open(mirrored))[:, ::-1]).save(mirrored)
    (data / "scene_000002" / "images" / "cam_004.png").unlink()
    return data


def test_synthetic_sets_pass_at_every_size(tmp_path):
    for size in (16, 32, 64):
        for uneven in (False, True):
            data = tmp_path / f"{size}-{uneven}"
            rodent.generate(data, 2, size, workers=1, uneven=uneven)
            for scene in open_source(data):
                report = check_scene(scene, WHITE)
                assert not report.problems, (data, report)
                assert report.measurements.agreement == 1, (data, report)


def test_a_good_set_exits_with_0(rodents, capsys):
    assert check_data.main([str(rodents)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = "scene views pixels coverage min agreement view in frame centroids"
    assert lines[0].split() == [*head.split(), "background"]
    row = lines[1].split()
    assert row[:5] == ["scene_000000", "9", "32", "x", "32"]
    assert row[7] == "1.000"
    assert row[-2:] == ["0.0", "ok"]
    assert lines[-1].startswith("3 scenes, 27 views: all pass the data checks")


def test_a_bad_set_exits_with_1_and_the_reasons(broken, tmp_path, capsys):
    out, images = tmp_path / "out.json", tmp_path / "images"
    arguments = [str(broken), "--json", str(out), "--images", str(images)]
    assert check_data.main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["ok", "FAIL", "FAIL"]
    line = next(line for line in lines if line.startswith("scene scene_000001: only "))
    assert line.endswith("; the image of view 2 is mirrored: mirror it back")
    missing = broken / "scene_000002" / "images" / "cam_004.png"
    assert (
        f"scene scene_000002, view 4 ({missing}): the image file does not "
        "exist; every camera needs its own image" in lines
    )
    assert lines[-2] == (
        "3 scenes, 18 views: NOT all pass the data checks (scenes that fail: 1, "
        "scenes that cannot be read: 1)"
    )
    assert lines[-1] == f"{images}: 2 scenes drawn; 1 cannot be read and are not drawn"
    assert sorted(path.name for path in images.iterdir()) == [
        "scene_000000.png",
        "scene_000001.png",
    ]
    content = json.loads(out.read_text())
    assert content["passed"] is False
    scenes = content["sets"][str(broken)]
    assert [scene["problems"] == [] for scene in scenes] == [True, False, False]
    assert scenes[1]["measurements"]["agreement"] < 0.97
    assert scenes[2]["measurements"] is None


def test_the_sides_of_a_split_are_two_sets_or_the_end_of_one_set(
    rodents, tmp_path, capsys
):
    data = tmp_path / "data"
    shutil.copytree(rodents, data)
    shutil.copytree(data / "scene_000000", data / "scene_000009")
    assert check_data.main([str(data), "--held-out", "1"]) == 1
    line = (
        "train scene scene_000000 and held-out scene scene_000009 share 9 images: "
        "remove one; held-out scenes must be new"
    )
    assert line in capsys.readouterr().out.splitlines()
    assert check_data.main([str(data), "--held-out", "3"]) == 1
    sides = [tmp_path / "train.txt", tmp_path / "test.txt"]
    for path, names in zip(sides, (range(2), range(2, 3)), strict=True):
        path.write_text("".join(f"{rodents}/scene_{i:06}\n" for i in names))
    assert check_data.main([*map(str, sides), "--images", str(tmp_path / "p")]) == 0
    assert len(list((tmp_path / "p").iterdir())) == 3


BAD_USAGE = {
    "nowhere": "nowhere: there is no such folder or list of scene folders",
    "DATA --held-out 3": "--held-out 3 of 3 scenes",
    "DATA LIST --held-out 1": "--held-out splits a single set; several sets are",
    "DATA DATA": "a set is given twice; give every set once",
    "DATA --background 1 1 255": "argument --background: '255' is not a number in [0,",
    "DATA --background white 1 1": "argument --background: 'white' is not a number in ",
    "DATA --background white": "argument --background: expected 3 arguments; see --h",
}


@pytest.mark.parametrize("usage", BAD_USAGE)
def test_invalid_usage_is_one_line_and_exit_code_2(
    usage, rodents, tmp_path, monkeypatch, run_main
):
    (tmp_path / "list.txt").write_text(f"{rodents}/scene_000000\n")
    words = {"DATA": str(rodents), "LIST": "list.txt"}
    arguments = [words.get(word, word) for word in usage.split()]
    monkeypatch.chdir(tmp_path)
    code, out, err = run_main("check_data", check_data.main, *arguments)
    assert code == 2
    assert err.startswith(f"check_data: {BAD_USAGE[usage]}")
    assert err.count("\n") == 1
    assert not out


def test_the_module_is_a_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "facelift_jax.check_data", "nowhere"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == f"check_data: {BAD_USAGE['nowhere']}"
    assert not done.stdout


def red_share(path):
    """Share of an image's colored pixels that are red."""
    pixels = np.array(Image.open(path).convert("RGB")).astype(int)
    pixels = pixels[: len(pixels) // 2]  # above the rig
    is_red = pixels[..., 0] > pixels[..., 2] + 40
    is_blue = pixels[..., 2] > pixels[..., 0] + 40
    return is_red.sum() / (is_red | is_blue).sum()


def test_an_image_shows_pixels_that_disagree(rodents, tmp_path):
    scene = open_source(rodents)[0]
    scene = dataclasses.replace(scene.take(np.arange(9)), name=r"$a\q$")  # no formula
    good, bad, lost = (tmp_path / f"{name}.png" for name in ("good", "bad", "lost"))
    write_check_image(good, scene, check_scene(scene, WHITE))
    assert red_share(good) == 0
    rgba = scene.rgba.copy()
    rgba[3] = np.roll(rgba[3], 6, axis=1)
    other = dataclasses.replace(scene, rgba=rgba)
    write_check_image(bad, other, check_scene(other, WHITE))
    assert 0.1 < red_share(bad) < 0.9
    inverse = np.linalg.inv(scene.cameras.viewmats)
    cameras = dataclasses.replace(scene.cameras, viewmats=inverse)
    other = dataclasses.replace(scene, cameras=cameras)
    write_check_image(lost, other, check_scene(other, WHITE))
    assert lost.stat().st_size > 10_000
