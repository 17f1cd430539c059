"""A run on several data sets, one of them packed, from the command line."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from runs import ROOT, command, finish, lines_of, refused

from facelift_jax.data import rodent
from facelift_jax.data.pack import pack

SMOKE = f"--config={ROOT}/configs/lgm.py:smoke"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["(('nowhere', 1.0),)"], "nowhere: there is no such folder or list"),
        (["(('.', 0),)"], "data.mix: ('.', 0) is not a (path, weight) pair with a "),
        (
            ["(('.', 1),)", "--config.data.path=."],
            "data.path and data.mix are both given",
        ),
    ],
)
def test_a_bad_mix_ends_with_one_line(flags, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mix, *others = flags
    mix = f"--config.data.mix={mix}"
    line = refused([SMOKE, mix, *others], monkeypatch, capsys)
    assert line.startswith(f"main: {expected}")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_on_a_packed_and_a_plain_set(tmp_path):
    rodent.generate(tmp_path / "plain", 8, 32, workers=1)
    shutil.copytree(tmp_path / "plain", tmp_path / "other")
    for path in (tmp_path / "other").rglob("images/*.png"):  # another animal
        rgba = np.array(Image.open(path))
        rgba[..., 0] ^= (rgba[..., 3] > 0) * np.uint8(1)
        Image.fromarray(rgba).save(path)
    pack(tmp_path / "other", tmp_path / "packed", (1.0, 1.0, 1.0), print)
    mix = f"--config.data.mix=(('{tmp_path}/plain', 1), ('{tmp_path}/packed', 3.0))"
    flags = (SMOKE, mix, "--workdir=run")
    code, out, err = finish(command(*flags, cwd=tmp_path))
    assert code == 0, err
    assert "scenes in the means: 4" in out
    names = ["scene_000006", "scene_000007"]
    record = json.loads((tmp_path / "run" / "data_checks.json").read_text())
    assert record["sets"] == {
        f"{tmp_path}/plain": {
            "weight": 1.0,
            "held_out": [f"plain--{n}" for n in names],
        },
        f"{tmp_path}/packed": {
            "weight": 3.0,
            "held_out": [f"packed--{n}" for n in names],
        },
    }
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["scenes"][2]["name"] == "packed--scene_000006"
    assert lines_of(tmp_path / "run")[-1]["train/bad_scenes"] == 0
    code, out, err = finish(command(*flags, "--mode=eval", cwd=tmp_path))
    assert code == 0, err
    assert "scenes in the means: 4" in out
