"""Corruptions of a tiny scene, and helpers that return the error message."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny_scenes import write_cameras, write_scene

from facelift_jax.data.io import DataError
from facelift_jax.data.scenes import open_source

SCENE = "scene s ({folder})"
FILE = "scene s ({folder}/opencv_cameras.json)"
JSON = "scene s, view 0 ({folder}/opencv_cameras.json)"
VIEW = "scene s, view 0 ({folder}/images/cam_000.png)"
DEPTH = "scene s, view 0 ({folder}/depths/cam_000.png)"
RESIZED = "; scale the intrinsics with the images"


def frame_0(**changes):
    """A corruption that changes frame 0 of the camera file."""

    def apply(folder, document):
        document["frames"][0] |= changes
        write_cameras(folder, document)

    return apply


def without(key):
    def apply(folder, document):
        del document["frames"][0][key]
        write_cameras(folder, document)

    return apply


def pose(change):
    def apply(folder, document):
        w2c = np.array(document["frames"][0]["w2c"])
        document["frames"][0]["w2c"] = change(w2c).tolist()
        write_cameras(folder, document)

    return apply


def camera_text(change):
    def apply(folder, document):
        path = folder / "opencv_cameras.json"
        path.write_text(change(path.read_text()))

    return apply


def image_0(save):
    """A corruption that replaces the image of view 0."""

    def apply(folder, document):
        path = folder / "images" / "cam_000.png"
        save(path)

    return apply


def remove(path):
    path.unlink()


def save_as(mode, size=(24, 24)):
    return lambda path: Image.new(mode, size).save(path)


def header_only(width, height):
    """Writes a PNG with a header of this size and without pixels."""

    def save(path):
        def chunk(kind, data):
            check = struct.pack(">I", zlib.crc32(kind + data))
            return struct.pack(">I", len(data)) + kind + data + check

        header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))

    return save


def line_of(action):
    """The message of the `DataError` that the action raises."""
    with pytest.raises(DataError) as caught:
        action()
    line = str(caught.value)
    assert line.isprintable()
    return line


def error_of(folder, corrupt, action=lambda scene: None):
    """The error message for a good scene of 4 views after `corrupt`."""
    corrupt(folder, write_scene(folder, num_views=4, num_inputs=2))
    return line_of(lambda: action(open_source(folder)[0]))
