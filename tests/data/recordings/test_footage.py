"""Pictures and videos of a camera: the right frames, and one line for a bad file."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from facelift_jax.data.io import DataError
from facelift_jax.data.recordings.footage import open_footage, read_masks, read_pictures
from facelift_jax.io.image_files import write_video

WIDTH, HEIGHT, NUM = 64, 48, 40


def numbered():
    """Frames whose grey value is 5 x their number."""
    values = 5 * np.arange(NUM, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(values, (NUM, HEIGHT, WIDTH, 3)).copy()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "A.mp4"
    write_video(path, numbered(), 20)
    return path


@pytest.mark.parametrize("frames", [range(0, NUM), range(3, 38, 7), range(39, 40)])
def test_the_frames_of_a_video_are_those_asked_for(video, frames):
    footage = open_footage(video.parent, "A")
    assert (footage.count, footage.size) == (NUM, (WIDTH, HEIGHT))
    np.testing.assert_allclose(footage.times, np.arange(NUM) / 20, atol=1e-9)
    pictures = list(read_pictures(footage, frames))
    assert {p.shape for p in pictures} == {(HEIGHT, WIDTH, 3)}
    values = [p.mean() / 5 for p in pictures]
    np.testing.assert_allclose(values, frames, atol=0.3)  # 1.5 of 255


def test_the_edge_of_a_compressed_mask_stays_where_it_was(tmp_path):
    frames = np.zeros((5, HEIGHT, WIDTH, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[9:33, 10 + i : 31 + 2 * i] = 255
    write_video(tmp_path / "A.mp4", frames, 5)
    blurred = tmp_path / "B.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i"]
    command += [str(tmp_path / "A.mp4"), "-crf", "35", str(blurred)]
    subprocess.run(command, check=True)
    for name, wrong in (("A", 0.0), ("B", 0.005)):
        footage = open_footage(tmp_path, name)
        masks = np.stack(list(read_masks(footage, range(5))))
        assert masks.dtype == bool
        assert (masks != (frames[..., 0] > 0)).mean() <= wrong


@pytest.mark.parametrize("pixels", ["yuv420p10le", "gray16le", "gray"])
def test_videos_of_any_depth_are_read_as_bytes(video, tmp_path, pixels):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video)]
    command += ["-pix_fmt", pixels, "-c:v", "ffv1", str(tmp_path / "A.mkv")]
    subprocess.run(command, check=True)
    footage, frames = open_footage(tmp_path, "A"), range(0, NUM, 13)
    values = [p.mean() / 5 for p in read_pictures(footage, frames)]
    np.testing.assert_allclose(values, frames, atol=0.5)  # coded and rounded twice
    masks = [mask.mean() for mask in read_masks(footage, frames)]
    assert masks == [float(5 * frame > 127) for frame in frames]


def save(path, picture, mode):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).convert(mode).save(path)


def test_pictures_come_in_the_order_of_their_numbers(tmp_path):
    for number in (2, 10, 1):
        picture = np.full((HEIGHT, WIDTH, 3), number, np.uint8)
        save(tmp_path / "A" / f"frame_{number}.png", picture, "L")
    footage = open_footage(tmp_path, "A")
    assert (footage.count, footage.times) == (3, None)
    found = list(read_pictures(footage, range(0, 3)))
    assert [picture[0, 0].tolist() for picture in found] == [[1] * 3, [2] * 3, [10] * 3]


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_masks_of_any_kind_are_cut_at_half(tmp_path, mode):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:20], mask[20:30] = 255, 0 if mode == "1" else 100
    save(tmp_path / "A" / "0.png", mask, mode)
    (found,) = read_masks(open_footage(tmp_path, "A"), range(1))
    np.testing.assert_array_equal(found, mask > 127)


def test_a_folder_may_hold_the_video(video, tmp_path):
    (tmp_path / "Camera1").mkdir()
    (tmp_path / "Camera1" / "0.mp4").write_bytes(video.read_bytes())
    assert open_footage(tmp_path, "Camera1").count == NUM


def broken(video, tmp_path, kind):
    """A bad video of camera A below `tmp_path`, of bytes that look like one."""
    good = video.read_bytes()
    middle = good.index(b"mdat") + 4
    contents = {
        "cut off": good[: len(good) // 2],
        "no video": b"hello" * 100,
        "empty": b"",
        "damaged": good[: middle + 900] + bytes(300) + good[middle + 1200 :],
        "playlist": b"#EXTM3U\n#EXTINF:10,\nfile://"
        + bytes(video)
        + b"\n#EXT-X-ENDLIST",
        "list of files": b"ffconcat version 1.0\nfile " + bytes(video) + b"\n",
    }
    (tmp_path / "A.mp4").write_bytes(contents[kind])


@pytest.mark.parametrize(
    "kind", ["cut off", "no video", "empty", "damaged", "playlist", "list of files"]
)
def test_a_bad_video_is_one_line_with_camera_and_file(video, tmp_path, kind):
    broken(video, tmp_path, kind)
    with pytest.raises(DataError, match=r"camera 'A' \(.*A\.mp4\): .* \(ffmpeg: ") as e:
        list(read_pictures(open_footage(tmp_path, "A"), range(0, NUM)))
    assert "\n" not in str(e.value)


def test_what_is_not_there_once_is_refused(video, tmp_path):
    with pytest.raises(DataError, match=r"expected one video B.mp4 .*holds A.mp4"):
        open_footage(video.parent, "B")
    save(tmp_path / "A" / "0.png", numbered()[0], "RGB")
    (tmp_path / "A.mp4").write_bytes(video.read_bytes())
    with pytest.raises(DataError, match="found 1 videos and 1 pictures"):
        open_footage(tmp_path, "A")
    for name in ("../A", str(video.parent / "A")):
        with pytest.raises(
            DataError, match=r'"name" .*must be relative|contains "\.\.",'
        ):
            open_footage(tmp_path, name)
    save(tmp_path / "C" / "0.png", numbered()[0], "RGBA")
    with pytest.raises(DataError, match=r"camera 'C' .*0.png: image of Pillow mode"):
        list(read_masks(open_footage(tmp_path, "C"), range(1)))
