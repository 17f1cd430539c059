"""Data checks of whole sets: stored reports, and the record of a run."""

import dataclasses
import json
import os
import re

import pytest
from breakers import line_of
from scene_sets import invert_poses, make_set
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
    """The names of the scenes whose checks were run, in any order."""
    names = []
    check = dataset_report.check_scene

    def counted(scene, *arguments):
        names.append(scene.name)
        return check(scene, *arguments)

    monkeypatch.setattr(dataset_report, "check_scene", counted)
    return names


def check(root, background=WHITE):
    return check_source(root, open_source(root), background, print)


def test_reports_are_stored_until_files_change(tmp_path, checked):
    make_set(tmp_path)
    first = check(tmp_path)
    assert sorted(checked) == ["000", "001", "002"]
    assert [report.name for report in first] == ["000", "001", "002"]
    assert not any(report.problems for report in first)
    checked.clear()
    assert check(tmp_path) == first
    assert checked == []
    # scenes with changed, new or touched files are checked again
    invert_poses(tmp_path / "001")
    second = check(tmp_path)
    assert checked == ["001", "001"]  # the second time for the diagnosis
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


def test_an_unreadable_scene_is_reported(tmp_path):
    make_set(tmp_path)
    (tmp_path / "001" / "images" / "cam_003.png").unlink()
    reports = check(tmp_path)
    assert reports[1].measurements is None
    assert reports[1].problems == (
        f"scene 001, view 3 ({tmp_path}/001/images/cam_003.png): the image file does "
        "not exist; every camera needs its own image",
    )
    assert check(tmp_path) == reports


def test_reports_are_next_to_a_list_and_inside_a_scene(tmp_path, checked):
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


def test_a_read_only_set_is_checked_every_time(tmp_path, checked, monkeypatch, caplog):
    """A set without write permission (also for root), and a set on a full disk."""
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
        f"{file}: cannot be written ({why}); the set is checked again every time"
        for why in ("its folder is read-only", "No space left on device")
    ]
    assert len(checked) == 6


SPOILED = {
    "text": "no JSON",
    "list": "[]",
    "no scenes": "{}",
    "scenes of the wrong type": {"scenes": [1]},
    "scene of the wrong type": {"scenes": {"000": 7}},
    "text as measurement": {"measurements": {"num_views": "all"}},
    "missing measurement": {"measurements": {"coverage": None}},
    "fractional count": {"measurements": {"worst_view": 1.5}},
    "unknown measurement": {"measurements": {"sharpness": 1.0}},
    "control characters": {"problems": ["\x1b[2J"]},
    "text as time": {"origin": ["", "noon", None]},
    "no digest": {"digest": None},
}


@pytest.mark.parametrize("name", SPOILED)
def test_an_invalid_stored_report_is_ignored(name, tmp_path, checked):
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


def test_reports_of_other_versions_are_ignored(tmp_path, checked, monkeypatch):
    """Reports of other checks, and those that earlier versions stored elsewhere."""
    make_set(tmp_path, 1)
    expected = check(tmp_path)
    checked.clear()
    file = tmp_path / "data_checks.json"
    document = json.loads(file.read_text())
    assert document["checks_version"] == dataset_report.CHECKS_VERSION
    document["scenes"]["000"]["problems"] = ["a problem of earlier checks"]
    file.write_text(json.dumps(document | {"checks_version": 2}))
    assert check(tmp_path) == expected
    file.rename(tmp_path / "contract.json")
    assert check(tmp_path) == expected
    monkeypatch.setattr(
        dataset_report, "CHECKS_VERSION", dataset_report.CHECKS_VERSION + 1
    )
    assert check(tmp_path) == expected
    assert checked == ["000"] * 3


def test_one_of_several_processes_stores_the_reports(tmp_path, checked):
    make_set(tmp_path)
    lines = []
    reports = check_source(tmp_path, open_source(tmp_path), WHITE, lines.append, False)
    assert not (tmp_path / "data_checks.json").exists()
    assert lines[0].startswith(f"check: 3 scenes of {tmp_path}; the results are stored")
    assert check(tmp_path) == reports
    assert len(checked) == 6
    lines.clear()
    assert check_source(tmp_path, open_source(tmp_path), WHITE, lines.append) == reports
    assert not lines


def test_a_large_stored_report_is_read(tmp_path, checked):
    make_set(tmp_path, 1)
    check(tmp_path)
    with (tmp_path / "data_checks.json").open("a") as file:
        file.write(" " * 2**26)  # more than the limit of a camera file
    check(tmp_path)
    assert checked == ["000"]


def record_of(root, num_held_out=1, **options):
    source = open_source(root)
    sides = split_source(source, num_held_out)
    parts = [Part(root, 1.0, *sides)]
    return require_data_checks(parts, DataOptions(**options), lambda line: None)


def test_the_record_of_a_good_set(tmp_path):
    make_set(tmp_path)
    assert record_of(tmp_path) == {
        "sets": {str(tmp_path): {"weight": 1.0, "held_out": ["002"]}},
        "scenes": 3,
        "used_with_violations": {},
        "unreadable": {},
    }


def test_a_set_with_violations_raises_unless_they_are_allowed(tmp_path):
    make_set(tmp_path, 4)
    invert_poses(tmp_path / "001")
    line = line_of(lambda: record_of(tmp_path, 2, background=(0.0, 0.5, 1.0)))
    assert re.fullmatch(
        rf"{tmp_path}: 1 of 4 scenes fail the data checks, violations_allowed=0; "
        r"first: scene 001: .*; w2c contains camera-to-world poses: store their "
        rf"inverses; show all problems: python -m facelift_jax.check_data {tmp_path} "
        r"--held-out 2 --background 0\.0 0\.5 1\.0",
        line,
    )
    record = record_of(tmp_path, violations_allowed=1)
    assert list(record["used_with_violations"]) == ["001"]
    (tmp_path / "002" / "images" / "cam_003.png").unlink()
    line = line_of(lambda: record_of(tmp_path, violations_allowed=1))
    assert f"{tmp_path}: 1 of 4 scenes cannot be read, bad_scenes_allowed=0" in line
    record = record_of(tmp_path, violations_allowed=1, bad_scenes_allowed=1)
    assert list(record["unreadable"]) == ["002"]


def test_held_out_copies_of_training_scenes_raise(tmp_path):
    write_scenes(tmp_path, 2, num_views=5, depth=False)
    line = line_of(lambda: record_of(tmp_path, violations_allowed=9))
    assert line == (
        f"{tmp_path}: train scene 000 and held-out scene 001 share 5 images: remove "
        "one; held-out scenes must be new; show all problems: python -m "
        f"facelift_jax.check_data {tmp_path} --held-out 1"
    )


def test_reports_are_stored_exactly(tmp_path):
    write_scene(tmp_path / "000", num_views=1, num_inputs=0, depth=False)
    write_scene(tmp_path / "001", num_views=5, depth=False)
    document = json.loads((tmp_path / "001" / "opencv_cameras.json").read_text())
    origin = {"recording": "day 1", "time": 12.5, "part": "test"}
    write_cameras(tmp_path / "001", document | origin)
    fresh = check(tmp_path)
    assert fresh[1].origin == ("day 1", 12.5, "test")
    assert fresh[0].measurements.agreement is None
    assert [dataclasses.astuple(r) for r in check(tmp_path)] == [
        dataclasses.astuple(r) for r in fresh
    ]
