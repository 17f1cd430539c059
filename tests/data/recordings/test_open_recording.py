"""A calibration and the files of its cameras: reports and refusals."""

import re

import arena
import numpy as np
import pytest
from PIL import Image

from facelift_jax.data.io import DataError
from facelift_jax.data.recordings.footage import open_recording
from facelift_jax.io.image_files import write_video

NUM, SHRINK = 8, 4


def opened(folder, names=None, fps=2.0):
    """The recording in a folder, and what was reported."""
    lines = []
    sides = folder / "images", folder / "masks"
    recording = open_recording(folder / "c.toml", *sides, names, fps, lines.append)
    return recording, lines


def test_unused_cameras_files_and_frames_are_reported(tmp_path):
    black = np.zeros((6, NUM, arena.HEIGHT // SHRINK, arena.WIDTH // SHRINK), np.uint8)
    arena.write_videos(tmp_path, black[..., None].repeat(3, axis=-1), black, 10)
    short = black[0, :7, ..., None].repeat(3, axis=-1)
    write_video(tmp_path / "images/B.mp4", short, 8)
    (tmp_path / "images/G.mp4").touch()
    arena.write_anipose(tmp_path / "c.toml", SHRINK)
    recording, lines = opened(tmp_path, ["F", "A", "B"], fps=None)
    assert [camera.name for camera in recording.cameras] == ["A", "B", "F"]
    np.testing.assert_allclose(recording.times, np.arange(7) / 10, atol=1e-9)
    assert lines[0] == "3 calibrated cameras are not used: C, D, E"
    assert lines[1].endswith("/images: files of no calibrated camera: G.mp4")
    assert re.fullmatch(
        r"camera 'B' .* has 7 frames, camera 'A' .* 8: the last frames are not used",
        lines[2],
    )
    assert lines[3].startswith(
        "the timestamps of the cameras differ by up to 0.15 s; frames"
    )
    assert len(opened(tmp_path, list("ABCDEF"), fps=None)[1]) == 3  # no unused cameras
    with pytest.raises(DataError, match="1 camera selected; depth needs at least two"):
        opened(tmp_path, ["A"], fps=None)
    with pytest.raises(ValueError, match="videos have timestamps; remove --fps"):
        opened(tmp_path)
    write_video(tmp_path / "images/B.mp4", short[:4], 10)
    with pytest.raises(DataError, match=r"'B' .* has 4 frames, .* 8; frames with the"):
        opened(tmp_path, fps=None)


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    black = np.zeros((6, NUM, arena.HEIGHT // SHRINK, arena.WIDTH // SHRINK), np.uint8)
    for side in ("images", "masks"):
        arena.write_images(tmp_path / side, black)
    arena.write_anipose(tmp_path / "c.toml", SHRINK)
    with pytest.raises(
        ValueError, match=r"image files have no timestamps; give .* --fps"
    ):
        opened(tmp_path, fps=None)
    Image.new("L", (40, 30)).save(tmp_path / "masks/E/0.png")
    with pytest.raises(DataError, match="288 x 256 px, but the masks 40 x 30"):
        opened(tmp_path)
    arena.write_anipose(tmp_path / "c.toml")
    with pytest.raises(DataError, match="256 px, but the calibration 1152 x 1024"):
        opened(tmp_path, ["A", "B"])
    arena.write_anipose(tmp_path / "c.toml", SHRINK)
    (tmp_path / "images/A/3.png").unlink()  # the following frames are off by one
    with pytest.raises(DataError, match=r"has 7 frames, .* 8; frames with the same"):
        opened(tmp_path, ["A", "B"])
    Image.new("RGBA", (288, 256)).save(tmp_path / "images/B/0.png")
    with pytest.raises(
        DataError, match=r"camera 'B' .* the images have an alpha channel"
    ):
        opened(tmp_path, ["A", "B"])
