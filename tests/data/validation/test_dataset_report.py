"""The contract over sets on disk: every scene, stored, and what a run makes of it."""

import dataclasses
import json
import os
import re

import pytest
from breakers import line_of
from scene_sets import make_set, turn_poses
from tiny_scenes import write_cameras, write_scene, write_scenes

from facelift_jax.data.options import DataOptions
from facelift_jax.data.scenes import FolderSource, Part, open_source, split_source
from facelift_jax.data.validation import dataset_report
from facelift_jax.data.validation.dataset_report import (
    check_source,
    require_data_checks,
)

WHITE = (1.0, 1.0, 1.0)


@pytest.fixture
def checked(monkeypatch):
    """The names of the scenes that are really checked, in any order."""
    names = []
    check = dataset_report.check_scene

    def counted(scene, *arguments):
        names.append(scene.name)
        return check(scene, *arguments)

    monkeypatch.setattr(dataset_report, "check_scene", counted)
    return names


def check(root, background=WHITE):
    return check_source(root, open_source(root), background, print)


def test_what_was_found_is_stored_until_files_change(tmp_path, checked):
    make_set(tmp_path)
    first = check(tmp_path)
    assert sorted(checked) == ["000", "001", "002"]
    assert [report.name for report in first] == ["000", "001", "002"]
    assert not any(report.problems for report in first)
    checked.clear()
    assert check(tmp_path) == first
    assert checked == []
    # of a scene whose file changed, came, or was touched
    turn_poses(tmp_path / "001")
    second = check(tmp_path)
    assert checked == ["001", "001"]  # once more for the cause
    assert "camera-to-world" in second[1].problems[0]
    checked.clear()
    os.utime(tmp_path / "000" / "images" / "cam_002.png", ns=(1, 1))
    write_scene(tmp_path / "003", num_views=5, depth=False)
    assert check(tmp_path)[:3] == second
    assert sorted(checked) == ["000", "003"]
    checked.clear()
    part = open_source(tmp_path)
    part = FolderSource(part.folders[1:3], part.names[1:3])
    assert check_source(tmp_path, part, WHITE, print) == second[1:3]
    assert checked == []
    check(tmp_path, (0.0, 0.0, 0.0))
    assert len(set(checked)) == 4


def test_a_scene_that_cannot_be_read_is_reported_not_raised(tmp_path):
    make_set(tmp_path)
    (tmp_path / "001" / "images" / "cam_003.png").unlink()
    reports = check(tmp_path)
    assert reports[1].figures is None
    assert reports[1].problems == (
        f"scene 001, view 3 ({tmp_path}/001/images/cam_003.png): there is no such "
        "picture; each camera needs its own",
    )
    assert check(tmp_path) == reports


def test_the_verdict_of_a_list_lies_beside_it_and_of_a_scene_in_it(tmp_path, checked):
    make_set(tmp_path / "scenes")
    listed = tmp_path / "some.txt"
    listed.write_text("scenes/002\nscenes/000\n")
    assert [report.name for report in check(listed)] == ["002", "000"]
    assert (tmp_path / "some.txt.data_checks.json").is_file()
    assert not (tmp_path / "scenes" / "data_checks.json").exists()
    checked.clear()
    for _ in range(2):
        check(tmp_path / "scenes" / "001")
    assert checked == ["001"]


def test_a_set_that_cannot_be_written_to_is_checked_each_time(
    tmp_path, checked, monkeypatch, caplog
):
    """Neither one that is marked so, whoever asks, nor one on a full disk."""
    make_set(tmp_path)
    file = tmp_path / "data_checks.json"
    tmp_path.chmod(0o555)
    check(tmp_path)
    tmp_path.chmod(0o755)
    assert not file.exists()

    def refuse(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(dataset_report.atomic, "write_text", refuse)
    check(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: cannot be written ({why}): the set will be checked again each time"
        for why in ("its folder is read-only", "No space left on device")
    ]
    assert len(checked) == 6


SPOILED = {
    "text": "no JSON",
    "list": "[]",
    "no scenes": "{}",
    "scenes of another kind": {"scenes": [1]},
    "scene of another kind": {"scenes": {"000": 7}},
    "figure in words": {"figures": {"views": "all"}},
    "figure that is missing": {"figures": {"coverage": None}},
    "figure that is no count": {"figures": {"worst_view": 1.5}},
    "unknown figure": {"figures": {"sharpness": 1.0}},
    "control characters": {"problems": ["\x1b[2J"]},
    "time in words": {"origin": ["", "noon", None]},
    "no digest": {"digest": None},
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_verdict_is_not_believed(name, tmp_path, checked):
    make_set(tmp_path, 1)
    expected = check(tmp_path)
    checked.clear()
    file, spoiled = tmp_path / "data_checks.json", SPOILED[name]
    document = json.loads(file.read_text())
    if isinstance(spoiled, str):
        file.write_text(spoiled)
    elif "scenes" in spoiled:
        file.write_text(json.dumps(document | spoiled))
    else:
        entry = document["scenes"]["000"]
        for key, value in spoiled.items():
            old = entry[key]
            entry[key] = old | value if isinstance(value, dict) else value
            if value is None:
                del entry[key]
        file.write_text(json.dumps(document))
    assert check(tmp_path) == expected
    assert checked == ["000"]


def test_of_several_processes_one_stores_what_all_find(tmp_path, checked):
    make_set(tmp_path)
    lines = []
    found = check_source(tmp_path, open_source(tmp_path), WHITE, lines.append, False)
    assert not (tmp_path / "data_checks.json").exists()
    assert lines[0].startswith(f"check: 3 scenes of {tmp_path}; the results are stored")
    assert check(tmp_path) == found
    assert len(checked) == 6
    lines.clear()
    assert check_source(tmp_path, open_source(tmp_path), WHITE, lines.append) == found
    assert not lines


def test_the_verdict_of_a_large_set_is_believed(tmp_path, checked):
    make_set(tmp_path, 1)
    check(tmp_path)
    with (tmp_path / "data_checks.json").open("a") as file:
        file.write(" " * 2**26)  # more than a camera file has
    check(tmp_path)
    assert checked == ["000"]


def demand(root, num_held_out=1, **options):
    source = open_source(root)
    sides = split_source(source, num_held_out)
    parts = [Part(root, 1.0, *sides)]
    return require_data_checks(parts, DataOptions(**options), lambda line: None)


def test_a_good_set_may_be_trained_on(tmp_path):
    make_set(tmp_path)
    assert demand(tmp_path) == {
        "sets": {str(tmp_path): {"weight": 1.0, "held_out": ["002"]}},
        "scenes": 3,
        "used_with_violations": {},
        "unreadable": {},
    }


def test_a_set_that_breaks_the_contract_is_refused_unless_allowed(tmp_path):
    make_set(tmp_path, 4)
    turn_poses(tmp_path / "001")
    line = line_of(lambda: demand(tmp_path, 2, background=(0.0, 0.5, 1.0)))
    assert re.fullmatch(
        rf"{tmp_path}: 1 of 4 scenes fail the data checks, violations_allowed=0; the "
        r"first: scene 001: .*; w2c holds camera-to-world poses: store their inverses; "
        rf"this shows all: python -m facelift_jax.check_data {tmp_path} --held-out 2 "
        r"--background 0\.0 0\.5 1\.0",
        line,
    )
    record = demand(tmp_path, violations_allowed=1)
    assert list(record["used_with_violations"]) == ["001"]
    (tmp_path / "002" / "images" / "cam_003.png").unlink()
    line = line_of(lambda: demand(tmp_path, violations_allowed=1))
    assert f"{tmp_path}: 1 of 4 scenes cannot be read, bad_scenes_allowed=0" in line
    record = demand(tmp_path, violations_allowed=1, bad_scenes_allowed=1)
    assert list(record["unreadable"]) == ["002"]


def test_scenes_held_out_and_trained_on_are_refused(tmp_path):
    write_scenes(tmp_path, 2, num_views=5, depth=False)
    line = line_of(lambda: demand(tmp_path, violations_allowed=9))
    assert line == (
        f"{tmp_path}: train scene 000 and held-out scene 001 share 5 pictures: what is "
        "trained on must not judge; this shows all: python -m facelift_jax.check_data "
        f"{tmp_path} --held-out 1"
    )


def test_reports_survive_their_file(tmp_path):
    """All that a report holds, whatever it holds."""
    write_scene(tmp_path / "000", num_views=1, num_inputs=0, depth=False)
    write_scene(tmp_path / "001", num_views=5, depth=False)
    document = json.loads((tmp_path / "001" / "opencv_cameras.json").read_text())
    origin = {"recording": "day 1", "time": 12.5, "split": "test"}
    write_cameras(tmp_path / "001", document | origin)
    fresh = check(tmp_path)
    assert fresh[1].origin == ("day 1", 12.5, "test")
    assert fresh[0].figures.agreement is None
    assert [dataclasses.astuple(r) for r in check(tmp_path)] == [
        dataclasses.astuple(r) for r in fresh
    ]
