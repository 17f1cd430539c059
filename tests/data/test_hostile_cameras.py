"""Invalid camera files, and the exact error message for each."""

import re

import numpy as np
import pytest
from breakers import FILE, JSON, camera_text, error_of, frame_0, pose, without
from tiny_scenes import write_cameras


def same_camera(folder, document):
    document["frames"][2]["w2c"] = document["frames"][1]["w2c"]
    write_cameras(folder, document)


def both_files(folder, document):
    (folder / "transforms.json").write_text("{}")


def big_file(folder, document):
    with open(folder / "opencv_cameras.json", "ab") as file:
        file.truncate(33 * 2**20)


def no_depth_unit(folder, document):
    del document["depth_unit"]
    write_cameras(folder, document)


def document_with(**changes):
    def apply(folder, document):
        write_cameras(folder, document | changes)

    return apply


# name -> (corruption of a good scene of 4 views, error message)
BAD_CAMERAS = {
    "principal point": (
        frame_0(cx=256.0, cy=256.0),
        f"{JSON}: principal point (256.0, 256.0) is outside an image of 24 x 24 px: "
        "were the images resized without their cameras?",
    ),
    "scaled pose": (
        pose(lambda w2c: w2c @ np.diag([2.0, 2.0, 2.0, 1.0])),
        f"{JSON}: w2c: not a rigid world-to-camera transform (R R^T is off the identity"
        " by 3, determinant 8.000); is it transposed, scaled or mirrored?",
    ),
    "mirrored pose": (
        pose(lambda w2c: np.diag([-1.0, 1.0, 1.0, 1.0]) @ w2c),
        f"{JSON}: w2c: not a rigid world-to-camera transform (R R^T is off the identity"
        " by 0, determinant -1.000); is it transposed, scaled or mirrored?",
    ),
    "pose of 3 rows": (
        pose(lambda w2c: w2c[:3]),
        f'{JSON}: "w2c" must be a 4 x 4 matrix, found shape (3, 4)',
    ),
    "ragged pose": (
        frame_0(w2c=[[1, 0], [0]]),
        f'{JSON}: "w2c" must be a 4 x 4 matrix of numbers',
    ),
    "negative focal length": (
        frame_0(fx=-30.0),
        f"{JSON}: K: expected [[fx 0 cx] [0 fy cy] [0 0 1]] with positive focal "
        "lengths, found [[-30.0, 0.0, 12.7], [0.0, 34.608, 11.6], [0.0, 0.0, 1.0]]",
    ),
    "no focal length": (
        without("fx"),
        f'{JSON}: "fx" must be a finite number, found nothing',
    ),
    "focal length as text": (
        frame_0(fx="30"),
        f"{JSON}: \"fx\" must be a finite number, found '30'",
    ),
    "focal length nested": (
        frame_0(fx=[[1.0]]),
        f'{JSON}: "fx" must be a finite number, found a list',
    ),
    "focal length true": (
        frame_0(fx=True),
        f'{JSON}: "fx" must be a finite number, found True',
    ),
    "focal length overflows": (
        camera_text(lambda text: text.replace('"fx": ', '"fx": 1e999, "old": ', 1)),
        f'{JSON}: "fx" must be a finite number, found inf',
    ),
    "half a pixel": (
        frame_0(w=24.5),
        f'{JSON}: "w" must be a whole number of pixels, found 24.5',
    ),
    "NaN": (
        frame_0(cx=float("nan")),
        f"{FILE}: contains NaN; every number must be finite",
    ),
    "Infinity": (
        frame_0(cy=float("-inf")),
        f"{FILE}: contains -Infinity; every number must be finite",
    ),
    "pose overflows": (
        camera_text(lambda text: re.sub(r'"w2c": \[\[[^,]*', '"w2c": [[1e999', text)),
        f'{JSON}: "w2c" must contain finite numbers, found inf',
    ),
    "pose overflows float32": (
        pose(lambda w2c: w2c + 1e300 * np.eye(4, k=3)),
        f'{JSON}: "w2c" must contain finite numbers, found 1e+300',
    ),
    "pose of nothing": (
        frame_0(w2c=[[None] * 4] * 4),
        f'{JSON}: "w2c" must contain finite numbers, found nan',
    ),
    "broken JSON": (
        camera_text(lambda text: "{]"),
        f"{FILE}: not a readable JSON file (Expecting property name enclosed in double "
        "quotes: line 1 column 2 (char 1))",
    ),
    "deep JSON": (
        camera_text(lambda text: "[" * 100_000),
        f"{FILE}: not a readable JSON file (nested too deeply)",
    ),
    "JSON list": (
        camera_text(lambda text: "[]"),
        f"{FILE}: expected a JSON object, found a list",
    ),
    "no frames": (
        camera_text(lambda text: '{"frames": []}'),
        f'{FILE}: "frames" must be a list of at least one frame',
    ),
    "frame of the wrong type": (
        camera_text(lambda text: '{"frames": [7]}'),
        f"{JSON}: a frame must be an object, found 7",
    ),
    "33 MB": (
        big_file,
        f"{FILE}: the JSON file has 33 MB; at most 32 MB are allowed",
    ),
    "both camera files": (
        both_files,
        "{folder}: contains both of opencv_cameras.json and transforms.json; a scene "
        "needs exactly one camera file",
    ),
    "same camera": (
        same_camera,
        f"{FILE}: duplicate frames: views 1 and 2 have the same camera",
    ),
    "unknown split": (
        frame_0(split="train"),
        f"{JSON}: \"split\" must be one of ('input', 'novel'), found 'train'",
    ),
    "unknown part": (
        document_with(part="novel"),
        f"{FILE}: \"part\" must be one of ('train', 'val', 'test'), found 'novel'",
    ),
    "unknown part under its old key": (
        document_with(split="novel"),
        f"{FILE}: \"split\" must be one of ('train', 'val', 'test'), found 'novel'",
    ),
    "time as text": (
        document_with(time="noon"),
        f"{FILE}: \"time\" must be a finite number, found 'noon'",
    ),
    "numbered recording": (
        document_with(recording=7),
        f'{FILE}: "recording" must be a name, found 7',
    ),
    "some splits": (
        without("split"),
        f'{FILE}: "split" given for 3 of 4 frames; give all or none',
    ),
    "some depths": (
        without("depth_path"),
        f'{FILE}: "depth_path" given for 3 of 4 frames; give all or none',
    ),
    "no depth unit": (
        no_depth_unit,
        f'{FILE}: "depth_unit" must be a finite number, found nothing',
    ),
}


@pytest.mark.parametrize("name", BAD_CAMERAS)
def test_a_bad_camera_file_raises_with_one_line(tmp_path, name):
    corrupt, expected = BAD_CAMERAS[name]
    line = error_of(tmp_path / "s", corrupt)
    assert line == expected.replace("{folder}", str(tmp_path / "s"))
