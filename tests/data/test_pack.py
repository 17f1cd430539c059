"""Packed sets equal their source, appear only when complete, and are checked."""

import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from batches import OPTIONS, assert_same, first_batches
from breakers import line_of
from PIL import Image
from scene_sets import contents
from tiny_scenes import (
    nerf_document,
    to_nerf,
    write_cameras,
    write_scene,
    write_scenes,
)

from facelift_jax.data import pack as packing
from facelift_jax.data.pack import pack
from facelift_jax.data.pipeline import evaluation_batches
from facelift_jax.data.scenes import FolderSource, open_source, split_source
from facelift_jax.data.validation import dataset_report
from facelift_jax.data.validation.dataset_report import check_source
from facelift_jax.data.validation.leakage import fingerprints, leave_out_trained

WHITE = (1.0, 1.0, 1.0)
SMALL = {"num_views": 5, "width": 24, "height": 24}


def packed(path, out):
    pack(path, out, WHITE, print)
    return open_source(out)


def with_masks(folder):
    """Writes a scene of JPEG images with mask files."""
    document = write_scene(folder, **SMALL, depth=False, num_inputs=0)
    for i, frame in enumerate(document["frames"]):
        image = folder / frame["file_path"]
        rgba = np.array(Image.open(image))
        frame |= {"file_path": f"{i}.jpg", "mask_path": f"masks/{i}.png"}
        (folder / "masks").mkdir(exist_ok=True)
        rgb = np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(255))
        Image.fromarray(rgb).save(folder / f"{i}.jpg", quality=95)
        Image.fromarray(rgba[..., 3]).save(folder / "masks" / f"{i}.png")
        image.unlink()
    write_cameras(folder, document)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A set with every scene format, and the packed set with two scenes per file."""
    root = tmp_path_factory.mktemp("sets")
    origin = {"recording": "rat", "time": 1.5, "part": "train"}
    write_scene(root / "set" / "a", **SMALL, extra=origin)
    with_masks(root / "set" / "b")
    write_scene(root / "set" / "c", **SMALL, depth=False, num_inputs=0)
    to_nerf(root / "set" / "c", nerf_document(5, 24, 24))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHARD_SCENES", 2)
        return open_source(root / "set"), packed(root / "set", root / "packed")


def test_a_packed_set_equals_its_source_bit_for_bit(sets):
    source, packed_source = sets
    assert packed_source.names == source.names
    assert packed_source.digest == source.digest
    for one, two in zip(source, packed_source, strict=True):
        assert (one.name, one.index, one.origin) == (two.name, two.index, two.origin)
        assert one.depth_unit == two.depth_unit
        for attribute in ("rgba", "depths", "is_input"):
            expected, value = getattr(one, attribute), getattr(two, attribute)
            np.testing.assert_array_equal(expected, value)
            assert getattr(expected, "dtype", None) == getattr(value, "dtype", None)
        for attribute in ("viewmats", "Ks"):
            expected = getattr(one.cameras, attribute)
            np.testing.assert_array_equal(expected, getattr(two.cameras, attribute))
    assert source[0].depths is not None
    assert source[0].origin.time == 1.5


def test_files_are_stored_unchanged_and_tfds_reads_them(sets):
    source, packed_source = sets
    root = packed_source.folders[0].root
    records = tfds.builder_from_directory(root).as_data_source("scenes")
    assert [record["name"].decode() for record in records] == list(source.names)
    for folder, record in zip(source.folders, records, strict=True):
        files = {path.relative_to(folder) for path in folder.rglob("*.*")}
        paths = [Path(path.decode()) for path in record["files"]["path"]]
        assert set(paths) == files
        for path, content in zip(paths, record["files"]["content"], strict=True):
            assert content == (folder / path).read_bytes()


def test_a_packed_set_can_be_packed_again(sets, tmp_path):
    source, packed_source = sets
    again = packed(packed_source.folders[0].root, tmp_path / "again")
    np.testing.assert_array_equal(again[1].rgba, source[1].rgba)
    assert again.digest == source.digest


def test_the_pipeline_gives_the_same_batches(tmp_path):
    source = open_source(write_scenes(tmp_path / "set", 3, **SMALL))
    packed_source = pickle.loads(
        pickle.dumps(packed(tmp_path / "set", tmp_path / "packed"))
    )
    for threads in (0, 3):
        expected = first_batches(4, source, num_threads=0)
        assert_same(expected, first_batches(4, packed_source, num_threads=threads))
    evaluated = [
        list(evaluation_batches(x, OPTIONS, 2)) for x in (source, packed_source)
    ]
    assert_same(*evaluated)
    train, held_out = split_source(packed_source, 1)
    assert fingerprints(packed_source) == fingerprints(source)
    marks = fingerprints(split_source(source, 1)[0])
    new = FolderSource(held_out.folders + held_out.folders, ("x", "y"))
    assert leave_out_trained(new, marks).names == ("x", "y")
    line = "all 2 scenes were trained on"
    # the tiny scenes have equal camera files
    with pytest.raises(ValueError, match=line):
        leave_out_trained(train, fingerprints(source))


KILLED = """
import os, signal, sys
from pathlib import Path
from facelift_jax.data import pack

original, pack.SHARD_SCENES = pack.record, 2

def record(scene):
    if scene.index == 3:  # the first file is complete, the second is open
        os.kill(os.getpid(), signal.SIGKILL)
    return original(scene)

pack.record = record
pack.main(sys.argv[1:])
"""


def test_a_killed_pack_starts_again_and_ends_with_the_same_files(
    tmp_path, monkeypatch, capsys
):
    write_scenes(tmp_path / "set", 5, **SMALL)
    arguments = [str(tmp_path / "set"), "--out", str(tmp_path / "packed")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments])
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "packed.partial").rglob("*.array_record-00000-of-00003"))
    assert not (tmp_path / "packed").exists()
    # the command in a new process, which must not import TensorFlow
    code = (
        "import sys; from facelift_jax.data import pack; pack.SHARD_SCENES = 2; "
        "pack.main(sys.argv[1:]); assert 'tensorflow' not in sys.modules"
    )
    again = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^pack: 5 scenes in 0:\d\d, \S+ scenes/s$", done.stdout, re.M)
    assert not (tmp_path / "packed.partial").exists()
    assert len(open_source(tmp_path / "packed")) == 5
    monkeypatch.setattr(packing, "SHARD_SCENES", 2)
    packing.main([*arguments[:2], str(tmp_path / "other")])
    complete = contents(tmp_path / "packed")
    assert complete == contents(tmp_path / "other")
    assert sum("array_record" in name for name in complete) == 3
    capsys.readouterr()
    packing.main(arguments)
    assert capsys.readouterr().out == f"{tmp_path}/packed: already complete\n"
    assert contents(tmp_path / "packed") == complete


def test_existing_folders_are_not_changed(tmp_path):
    write_scenes(tmp_path / "set", 2, **SMALL)
    (tmp_path / "mine").mkdir()
    with pytest.raises(
        ValueError, match=r"mine: exists and is not a packed set of .*set in its"
    ):
        packed(tmp_path / "set", tmp_path / "mine")
    packed(tmp_path / "set", tmp_path / "out")
    image = tmp_path / "set" / "000" / "images" / "cam_000.png"
    os.utime(image, ns=(1, 1))
    with pytest.raises(
        ValueError, match=r"out: exists and is not a packed set of .*set in its"
    ):
        packed(tmp_path / "set", tmp_path / "out")
    (tmp_path / "new.partial" / "thesis").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"new\.partial: exists and was not written"):
        packed(tmp_path / "set", tmp_path / "new")
    assert (tmp_path / "new.partial" / "thesis").is_dir()


def test_a_source_that_fails_the_data_checks_raises_with_the_command(tmp_path):
    write_scenes(tmp_path / "set", 2, **SMALL)
    (tmp_path / "set" / "001" / "images" / "cam_003.png").unlink()
    line = line_of(lambda: packed(tmp_path / "set", tmp_path / "out"))
    assert line.startswith(f"{tmp_path}/set: 1 of 2 scenes fail the data checks; ")
    assert "scene 001, view 3" in line
    assert line.endswith(f"python -m facelift_jax.check_data {tmp_path}/set")
    assert sorted(os.listdir(tmp_path)) == ["set"]


def test_reports_of_a_packed_set_are_valid_until_a_file_changes(tmp_path, monkeypatch):
    write_scenes(tmp_path / "set", 2, **SMALL)
    source, out = packed(tmp_path / "set", tmp_path / "out"), tmp_path / "out"
    first = check_source(out, source, WHITE, print)
    checked = []
    check = dataset_report.check_scene
    monkeypatch.setattr(
        dataset_report,
        "check_scene",
        lambda *a: (checked.append(a[0].name), check(*a))[1],
    )
    assert check_source(out, source, WHITE, print) == first
    assert checked == []
    os.utime(next(out.glob("*.array_record*")), ns=(1, 1))
    assert check_source(out, source, WHITE, print) == first
    assert sorted(checked) == ["000", "001"]


@pytest.fixture
def victim(tmp_path):
    """A packed set of two scenes, to be corrupted."""
    write_scenes(tmp_path / "set", 2, **SMALL)
    packed(tmp_path / "set", tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda d: d["names"].__setitem__(0, "../x"),
            "'../x' is not a valid scene name",
        ),
        (lambda d: d["names"].__setitem__(0, ""), "'' is not a valid scene name"),
        (lambda d: d["names"].__setitem__(0, 3), '"names" must be a list of strings'),
        (lambda d: d["names"].__setitem__(0, "001"), "2 names, 1 of them different"),
        (lambda d: d["names"].append("002"), "3 names, 3 of them different, and 2"),
        (lambda d: d.pop("fingerprints"), '"fingerprints" must be a list of strings'),
    ],
)
def test_metadata_is_checked(victim, change, expected):
    document = json.loads((victim / "metadata.json").read_text())
    change(document)
    (victim / "metadata.json").write_text(json.dumps(document))
    line = line_of(lambda: open_source(victim))
    assert line.startswith(f"{victim}/metadata.json: {expected}")


def test_names_and_fingerprints_must_match_the_records(victim):
    document = json.loads((victim / "metadata.json").read_text())
    for key in ("names", "fingerprints"):
        changed = document | {key: ["x", "y"]}
        (victim / "metadata.json").write_text(json.dumps(changed))
        line = line_of(lambda: open_source(victim)[0])
        assert line.endswith(
            "metadata.json does not match the records; pack the set again"
        )


def test_missing_and_damaged_record_files_raise(victim):
    shard = next(victim.glob("*.array_record*"))
    whole = shard.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"x" * len(whole)):
        shard.write_bytes(content)
        line = line_of(lambda: open_source(victim))
        assert line.startswith(f"{victim}: ")
    start = 1000  # in the first scene
    shard.write_bytes(whole[:start] + bytes(64) + whole[start + 64 :])
    line = line_of(lambda: open_source(victim)[0])
    assert line.startswith(f"scene 000 ({victim}/000): the record cannot be read (")
    assert open_source(victim)[1].rgba.any()
    shard.unlink()
    assert "record files are missing" in line_of(lambda: open_source(victim))


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("/etc/passwd", b"", "must be relative to the scene folder"),
        ("../images/x.png", b"", 'contains "..", which is not allowed'),
        ("images/cam_000.png", None, "the image file does not exist; every"),
        ("images/cam_000.png", b"GIF89a", "not a readable PNG or JPEG"),
        (
            "opencv_cameras.json",
            b"{}" + b" " * 2**25,
            "the JSON file has 32 MB; at most",
        ),
    ],
)
def test_a_hostile_record_is_checked_like_a_folder(
    tmp_path, monkeypatch, path, content, expected
):
    write_scenes(tmp_path / "set", 1, **SMALL)
    record, out = packing.record, tmp_path / "out"

    def hostile(scene):
        example = record(scene)
        files = [file for file in example["files"] if file["path"] != path]
        if content is not None:
            files.append({"path": path, "content": content})
        return example | {"files": files}

    def fingerprint(folder):
        if path != "opencv_cameras.json":
            return original(folder)
        return hashlib.sha256(content).hexdigest()[:16]

    original = packing.fingerprint
    monkeypatch.setattr(packing, "record", hostile)
    monkeypatch.setattr(packing, "fingerprint", fingerprint)
    source = packed(tmp_path / "set", out)
    line = line_of(lambda: source[0])
    assert line.startswith("scene 000")
    assert expected in line
