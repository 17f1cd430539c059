"""A calibration and the files of its cameras: what fits, what is said, what is not."""

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
    """What `open_recording` says of a recording."""
    lines = []
    sides = folder / "pictures", folder / "masks"
    found = open_recording(folder / "c.toml", *sides, names, fps, lines.append)
    return found, lines


def test_what_is_left_out_of_a_recording_is_said(tmp_path):
    black = np.zeros((6, NUM, arena.HEIGHT // SHRINK, arena.WIDTH // SHRINK), np.uint8)
    arena.write_videos(tmp_path, black[..., None].repeat(3, axis=-1), black, 10)
    short = black[0, :7, ..., None].repeat(3, axis=-1)
    write_video(tmp_path / "pictures/B.mp4", short, 8)
    (tmp_path / "pictures/G.mp4").touch()
    arena.write_anipose(tmp_path / "c.toml", SHRINK)
    found, lines = opened(tmp_path, ["F", "A", "B"], fps=None)
    assert [camera.name for camera in found.cameras] == ["A", "B", "F"]
    np.testing.assert_allclose(found.times, np.arange(7) / 10, atol=1e-9)
    assert lines[0] == "3 calibrated cameras are left out: C, D, E"
    assert lines[1].endswith("/pictures: of no calibrated camera: G.mp4")
    assert re.fullmatch(
        r"camera 'B' .* has 7 frames, camera 'A' .* 8: the last ones are not used",
        lines[2],
    )
    assert lines[3].startswith("the cameras' clocks differ by up to 0.15 s; frames of")
    assert len(opened(tmp_path, list("ABCDEF"), fps=None)[1]) == 3  # of files alone
    with pytest.raises(DataError, match="1 camera chosen; depth needs at least two"):
        opened(tmp_path, ["A"], fps=None)
    with pytest.raises(ValueError, match="videos carry their own times; leave --fps"):
        opened(tmp_path)
    write_video(tmp_path / "pictures/B.mp4", short[:4], 10)
    with pytest.raises(DataError, match=r"'B' .* has 4 frames, .* 8; frames of one nu"):
        opened(tmp_path, fps=None)


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    black = np.zeros((6, NUM, arena.HEIGHT // SHRINK, arena.WIDTH // SHRINK), np.uint8)
    for side in ("pictures", "masks"):
        arena.write_pictures(tmp_path / side, black)
    arena.write_anipose(tmp_path / "c.toml", SHRINK)
    with pytest.raises(ValueError, match=r"pictures carry no times: give .* --fps"):
        opened(tmp_path, fps=None)
    Image.new("L", (40, 30)).save(tmp_path / "masks/E/0.png")
    with pytest.raises(DataError, match="288 x 256 px, but masks for 40 x 30"):
        opened(tmp_path)
    arena.write_anipose(tmp_path / "c.toml")
    with pytest.raises(DataError, match="256 px, but calibration for 1152 x 1024"):
        opened(tmp_path, ["A", "B"])
    arena.write_anipose(tmp_path / "c.toml", SHRINK)
    (tmp_path / "pictures/A/3.png").unlink()  # whatever follows is one frame off
    with pytest.raises(DataError, match=r"has 7 frames, .* 8; frames of one number"):
        opened(tmp_path, ["A", "B"])
    Image.new("RGBA", (288, 256)).save(tmp_path / "pictures/B/0.png")
    with pytest.raises(DataError, match=r"camera 'B' .* an alpha channel beside the m"):
        opened(tmp_path, ["A", "B"])
