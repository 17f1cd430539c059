"""Prepared scenes against direct renderings from their own cameras."""

import json
import re
import signal
import subprocess
import sys
import time
from unittest import mock

import arena
import numpy as np
import pytest
import scipy.ndimage
import scipy.spatial
from scene_sets import contents

from facelift_jax import prepare
from facelift_jax.data.examples import training_example
from facelift_jax.data.io import DataError
from facelift_jax.data.options import DataOptions
from facelift_jax.data.recordings.footage import open_recording
from facelift_jax.data.recordings.prepare_scenes import prepare_scenes
from facelift_jax.data.recordings.scenes import (
    PrepareOptions,
    plan_scenes,
    split_by_time,
)
from facelift_jax.data.rodent import render
from facelift_jax.data.scenes import open_source, split_source
from facelift_jax.data.validation.checks import check_scene
from facelift_jax.data.validation.leakage import check_leakage
from facelift_jax.geometry.rays import project
from facelift_jax.io import atomic
from facelift_jax.structs import Cameras

NUM, SHRINK, SIZE = 8, 4, 64
OPTIONS = PrepareOptions(scenes=NUM, size=SIZE, fps=2.0, gap=0.4)


def silent(line):
    del line


def run(recording, out, options=OPTIONS, **changes):
    sides = recording / "images", recording / "masks"
    changes = {"workers": 2, "progress": silent} | changes
    return prepare_scenes(recording / "c.toml", *sides, out, options, **changes)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Folders of images and masks at a quarter of the size, and their calibration."""
    folder = tmp_path_factory.mktemp("recording")
    colors, masks = arena.recording(NUM, SHRINK)
    arena.write_images(folder / "images", colors)
    arena.write_images(folder / "masks", masks)
    arena.write_anipose(folder / "c.toml", SHRINK)
    return folder


@pytest.fixture(scope="module")
def complete(recording, tmp_path_factory):
    out, lines = tmp_path_factory.mktemp("prepared") / "set", []
    assert run(recording, out, progress=lines.append) == 6
    return out, lines


def render_directly(document, view):
    """RGBA of the animal, ray-cast through a camera of the scene."""
    frame, index = document["frames"][view], document["frame"]
    K = [[frame["fx"], 0, frame["cx"]], [0, frame["fy"], frame["cy"]], [0, 0, 1]]
    scale = document["scale"] * arena.ANIMAL_RADIUS
    pose = arena.pose_for_animal(
        np.array(frame["w2c"]), index, scale, document["center"]
    )
    camera = Cameras(pose, np.array(K), frame["w"], frame["h"])
    return render.render_image(arena.animal(index), camera)[0]


def on_white(rgba):
    alpha = rgba[..., 3:] / 255
    return (alpha * rgba[..., :3] + 255 * (1 - alpha)) / 255


def compare(out):
    """Metrics of the images of a set against direct renderings, [n 3]: silhouette IoU,
    foreground PSNR in dB, and the shift between the two in pixels (least squares)."""
    metrics = []
    source = open_source(out)
    for i, folder in enumerate(source.folders):
        document = json.loads((folder / "opencv_cameras.json").read_text())
        for view, prepared in enumerate(source[i].rgba):
            expected = render_directly(document, view)
            mask, true_mask = prepared[..., 3] > 127, expected[..., 3] > 127
            error = on_white(prepared) - on_white(expected)
            down, across = np.gradient(on_white(expected).mean(-1))
            slopes = np.stack([across.ravel(), down.ravel()], axis=-1)
            shift = np.linalg.lstsq(slopes, error.mean(-1).ravel(), rcond=None)[0]
            iou = (mask & true_mask).sum() / (mask | true_mask).sum()
            psnr = -10 * np.log10(np.mean(error[true_mask] ** 2))
            metrics.append([iou, psnr, np.linalg.norm(shift)])
    return np.array(metrics)


def test_images_match_direct_renderings(complete):
    ious, psnrs, shifts = compare(complete[0]).T
    assert shifts.max() < 0.1, shifts  # pixels of 64
    assert shifts.mean() < 0.04
    # masks are precise to half a pixel, animals measure 20 px
    assert ious.min() > 0.9, ious
    assert ious.mean() > 0.95
    assert psnrs.min() > 26, psnrs


def test_the_mesh_projects_onto_every_mask(complete):
    """Its vertices are inside all six silhouettes, and cover each of them."""
    source = open_source(complete[0])
    for i, folder in enumerate(source.folders):
        document = json.loads((folder / "opencv_cameras.json").read_text())
        index, scale = document["frame"], document["scale"]
        vertices = arena.animal(index).mesh.vertices * arena.ANIMAL_RADIUS
        points = scale * (vertices + arena.position(index) - document["center"])
        pixels, _ = project(source[i].cameras, np.float32([points] * len(arena.NAMES)))
        for rgba, positions in zip(source[i].rgba, pixels, strict=True):
            near = scipy.ndimage.maximum_filter(rgba[..., 3], 3) > 0
            columns, rows = np.floor(positions).astype(int).T
            assert near[rows, columns].all()
            shown = np.argwhere(rgba[..., 3] > 127)[:, ::-1] + 0.5
            assert scipy.spatial.KDTree(positions).query(shown)[0].max() < 1.3


def test_scenes_pass_the_data_checks(complete):
    reports = [check_scene(s, (1.0, 1.0, 1.0)) for s in open_source(complete[0])]
    assert [report.problems for report in reports] == [()] * 6
    assert check_leakage({"": reports}) == ([], [])


def test_the_files_of_a_scene(complete):
    out, lines = complete
    source = open_source(out)
    names = ["frame_000000", "frame_000001", "frame_000002", "frame_000003"]
    assert source.names == (*names, "frame_000005", "frame_000007")
    for part, expected in (("train", names), ("val", ["frame_000005"])):
        assert (out / f"{part}.txt").read_text().split() == expected
    assert open_source(out / "test.txt").names == ("frame_000007",)
    document = json.loads((out / "frame_000005/opencv_cameras.json").read_text())
    assert (document["part"], document["time"]) == ("val", 2.5)
    assert (document["recording"], document["frame"]) == ("set", 5)
    assert [f["camera"] for f in document["frames"]] == list(arena.NAMES)
    assert not [path for path in out.rglob("*.partial")]
    assert lines[1].startswith("8 timestamps, 8 usable, of which 2 are in the gaps")
    assert lines[1].endswith("scenes: train 4, val 1, test 1")


def test_the_rig_has_one_similarity_per_timestamp_and_one_scale(complete):
    out, _ = complete
    scales, distances = [], []
    viewmats = arena.rig(SHRINK)[0]
    for folder in open_source(out).folders:
        document = json.loads((folder / "opencv_cameras.json").read_text())
        center, scale = np.array(document["center"]), document["scale"]
        assert np.linalg.norm(center - arena.position(document["frame"])) < 20  # mm
        for frame, viewmat in zip(document["frames"], viewmats, strict=True):
            new = np.array(frame["w2c"])
            eye = -new[:3, :3].T @ new[:3, 3]
            old_eye = -viewmat[:3, :3].T @ viewmat[:3, 3]
            np.testing.assert_allclose(eye, scale * (old_eye - center), atol=1e-9)
            np.testing.assert_allclose(new[:3, 3] / new[2, 3], [0, 0, 1], atol=1e-9)
            distances.append(np.linalg.norm(eye))
        scales.append(scale)
    assert len(set(scales)) == 1
    assert np.mean(distances) == pytest.approx(2.7, abs=0.05)


def test_scenes_give_training_examples(complete):
    train, held_out = split_source(open_source(complete[0]), 2)
    assert held_out.names == ("frame_000005", "frame_000007")
    options = DataOptions(
        input_size=32, target_size=SIZE, num_inputs=4, num_targets=6, min_held_out=2
    )
    batch = training_example(train[0], np.random.default_rng(0), options)
    assert batch.inputs.images.shape == (4, 32, 32, 3)
    radii = np.linalg.norm(batch.inputs.cameras.centers, axis=-1)
    assert radii.mean() == pytest.approx(options.radius)


def test_interrupted_runs_resume_to_the_same_files(
    recording, complete, tmp_path, monkeypatch
):
    """The disk is full after different numbers of files."""
    out, expected = tmp_path / "set", contents(complete[0])
    write_bytes = atomic.write_bytes
    for allowed in (0, 1, 4, 13):
        written = []

        def write_until_full(path, content, written=written, allowed=allowed):
            written.append(path)
            if len(written) > allowed:
                path.with_name(path.name + ".partial").write_bytes(content[:9])
                raise OSError(28, "No space left on device")
            write_bytes(path, content)

        with monkeypatch.context() as patched:
            patched.setattr(atomic, "write_bytes", write_until_full)
            with pytest.raises(OSError, match="No space left"):
                run(recording, out, workers=1)
        for name, content in contents(out).items():  # dataset.json gets the options
            is_whole = not name.endswith(atomic.SUFFIX) and name != "dataset.json"
            assert not is_whole or content == expected[name], name
    lines = []
    assert 0 < run(recording, out, workers=3, progress=lines.append) < 6
    assert [line for line in lines if line.endswith("scenes already exist")]
    assert contents(out) == expected
    with mock.patch("pathlib.Path.open", autospec=True, side_effect=open) as opened:
        assert run(recording, out) == 0
    names = {call.args[0].name for call in opened.call_args_list}
    assert names & {f"{frame}.png" for frame in range(NUM)} == {"0.png"}
    assert contents(out) == expected


def test_another_recording_or_other_options_are_refused(recording, complete, tmp_path):
    before = contents(complete[0])
    for changes, message in (
        ({"size": 48}, "made with size 64, not 48"),
        ({"gap": 0.0}, "made with gap 0.4, not 0.0"),
        ({"scenes": 7}, "made with scenes 8, not 7"),
    ):
        options = PrepareOptions(**{**OPTIONS.__dict__, **changes})
        with pytest.raises(ValueError, match=message):
            run(recording, complete[0], options)
    with pytest.raises(ValueError, match="made with calibration"):
        run(recording, complete[0], cameras=["A", "B"])
    folder = arena.copied(recording, tmp_path)
    mask = folder / "masks" / "B" / "3.png"
    content = mask.read_bytes()
    mask.unlink()
    mask.write_bytes(content[:-1] + b"!")  # of the same length
    with pytest.raises(
        ValueError, match=r"made with masks of B '8 frames, [0-9a-f]{16}"
    ):
        run(folder, complete[0])
    assert contents(complete[0]) == before
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not a prepared recording"):
        run(recording, tmp_path)


def test_upscaling_is_limited_and_reported(recording, tmp_path):
    large = PrepareOptions(scenes=NUM, size=200, fps=2.0, gap=0.4)
    with pytest.raises(DataError, match="images are upscaled, by at most 2") as caught:
        run(recording, tmp_path / "set", large)
    fitting = int(str(caught.value).split("--size to at most ")[1].split(",")[0])
    lines = []
    small = PrepareOptions(scenes=NUM, size=fitting, fps=2.0, gap=0.4)
    assert run(recording, tmp_path / "set", small, progress=lines.append) == 6
    assert any("images are upscaled, by at most 1.2" in line for line in lines)
    allowed = PrepareOptions(scenes=NUM, size=200, fps=2.0, gap=0.4, max_upscale=3.0)
    assert run(recording, tmp_path / "large", allowed) == 6


def test_unused_frames_at_the_end_are_reported(recording, tmp_path):
    lines = []
    few = PrepareOptions(scenes=5, size=SIZE, fps=2.0, gap=0.4)
    assert run(recording, tmp_path / "set", few, progress=lines.append) == 3
    expected = "frames are used in steps of 1; the last 3 of 8 are not used"
    assert lines[0] == expected


def test_unusable_timestamps_are_reported_with_the_reason(recording, tmp_path):
    folder = arena.copied(recording, tmp_path)
    height, width = arena.HEIGHT // SHRINK, arena.WIDTH // SHRINK
    empty, edge = np.zeros((2, height, width), np.uint8)
    edge[:, :30] = 255
    speck = np.array(arena.Image.open(recording / "masks/D/3.png"))
    speck[5:9, 5:9] = 255
    for camera, frame, mask in (("B", 1, empty), ("C", 2, edge), ("D", 3, speck)):
        path = folder / "masks" / camera / f"{frame}.png"
        path.unlink()
        arena.Image.fromarray(mask).save(path)
    lines = []
    assert run(folder, tmp_path / "set", progress=lines.append) == 3
    assert lines[1].startswith("8 timestamps, 5 usable")
    problems = [
        "camera B: the mask is empty",
        "camera C: the mask touches the edge of the image",
    ]
    assert {f"1 of 8 timestamps not usable: {text}" for text in problems} <= set(lines)
    assert any("too large for its image" in line for line in lines)
    assert open_source(tmp_path / "set").names[0] == "frame_000000"


def test_names_of_long_recordings_sort_in_order_of_time(recording, complete):
    sides = recording / "images", recording / "masks"
    opened = open_recording(recording / "c.toml", *sides, None, 2.0, silent)
    rows = json.loads((complete[0] / "measurements.json").read_text())["timestamps"]
    rows = [row | {"frame": 999_998 + row["frame"]} for row in rows]
    plan = plan_scenes(opened, rows, OPTIONS)
    names = [timestamp.name for timestamp in plan.timestamps]
    assert names[:3] == ["frame_0999998", "frame_0999999", "frame_1000000"]


@pytest.mark.parametrize(
    ("gap", "val", "expected"),
    [
        (1.0, 0.2, "tttttt-vv-T"),
        (2.0, 0.2, "ttttttt-vv-T"),
        (2.5, 0.2, "ttttt--vv--T"),
        (0.0, 0.0, "tttttttt-T"),
    ],
)
def test_the_split_leaves_gaps_in_time(gap, val, expected):
    num = len(expected)
    options = PrepareOptions(scenes=num, val=val, test=0.1, gap=gap)
    parts = split_by_time([float(i) for i in range(num)], options)
    letters = {"train": "t", "val": "v", "test": "T", None: "-"}
    assert "".join(letters[part] for part in parts) == expected


def test_a_recording_too_short_to_split_is_refused():
    with pytest.raises(ValueError, match="3 timestamps over 2 s cannot be split"):
        split_by_time([0.0, 1.0, 2.0], PrepareOptions(scenes=3))


def test_the_command(recording, complete, tmp_path, run_main):
    inputs = ["--calibration", recording / "c.toml", "--masks", recording / "masks"]
    inputs += ["--pictures", recording / "images", "--out", tmp_path / "set"]
    options = ["--scenes", NUM, "--size", SIZE, "--fps", 2, "--gap", 0.4]
    code, output, _ = run_main("prepare", prepare.main, *inputs, *options)
    assert code == 0
    assert contents(tmp_path / "set") == contents(complete[0])
    assert "--config.data.num_held_out_scenes=2; the last scenes are" in output
    few = ["--out", tmp_path / "few", "--scenes", 1, "--val", 0, "--test", 0]
    code, output, _ = run_main("prepare", prepare.main, *inputs, *options, *few)
    assert code == 0
    assert "to evaluate on: prepare again with --val or --test" in output
    assert "num_held_out_scenes=0" not in output
    for changes, message in (
        (["--scenes", 9], "9 scenes from a recording of 8 frames"),
        (["--cameras", "A", "X"], "no camera 'X'; the file has A, B, C, D, E, F"),
        (["--pictures", tmp_path], "camera 'A' .*: expected one video A.mp4"),
        (["--val", 1.2], "the fractions must leave something to train on"),
    ):
        code, _, error = run_main("prepare", prepare.main, *inputs, *options, *changes)
        assert (code, error.count("\n")) == (2, 1)
        assert error.startswith("prepare: ")
        assert re.search(message, error), error


@pytest.mark.slow
def test_killed_processes_resume_to_the_same_files(tmp_path):
    """Kills a real process after different numbers of files."""
    colors, masks = arena.recording(NUM, SHRINK)
    arena.write_videos(tmp_path, colors, masks, 2)
    arena.write_opencv(tmp_path / "c.json", SHRINK)
    words = [sys.executable, "-m", "facelift_jax.prepare", "--scenes", str(NUM)]
    words += ["--pictures", str(tmp_path / "images")]
    words += ["--masks", str(tmp_path / "masks")]
    words += ["--calibration", str(tmp_path / "c.json"), "--size", "240"]
    words += ["--max-upscale", "4", "--gap", "0.4", "--workers", "1"]
    whole, killed = tmp_path / "whole" / "set", tmp_path / "killed" / "set"
    subprocess.run([*words, "--out", str(whole)], check=True)
    interrupted = 0
    for num_written in (1, 2, 6, 25):
        process = subprocess.Popen([*words, "--out", str(killed)])
        while process.poll() is None and len(list(killed.rglob("*.*"))) < num_written:
            time.sleep(0.001)
        process.kill()
        interrupted += process.wait() == -signal.SIGKILL
    assert interrupted >= 3  # the last one may end before the kill
    subprocess.run([*words, "--out", str(killed)], check=True)
    assert contents(killed) == contents(whole)


@pytest.mark.slow
def test_a_full_size_recording_of_videos(tmp_path):
    """1152 x 1024 px, H.264 images and masks: errors in pixels of the scenes."""
    arena.write_videos(tmp_path, *arena.recording(4), 10)
    arena.write_label3d(tmp_path / "c.mat")
    sides = tmp_path / "images", tmp_path / "masks"
    options = PrepareOptions(scenes=4, size=256, val=0.0, gap=0.1)
    assert prepare_scenes(tmp_path / "c.mat", *sides, tmp_path / "set", options) == 3
    ious, psnrs, shifts = compare(tmp_path / "set").T
    print(
        f"shift {shifts.mean():.3f} px, at most {shifts.max():.3f}; IoU "
        f"{ious.mean():.4f}, at least {ious.min():.4f}; fg {psnrs.mean():.1f} dB"
    )
    assert shifts.max() < 0.06
    assert shifts.mean() < 0.02
    assert ious.min() > 0.975
    assert ious.mean() > 0.985
    assert psnrs.min() > 30
