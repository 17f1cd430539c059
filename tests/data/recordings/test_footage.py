"""Images and videos of a camera: frame numbers, timestamps, and one-line errors."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from facelift_jax.data.io import DataError
from facelift_jax.data.recordings.footage import open_footage, read_images, read_masks
from facelift_jax.io.image_files import write_video

WIDTH, HEIGHT, NUM = 64, 48, 40


def numbered():
    """Frames whose gray value is 5 x their number."""
    values = 5 * np.arange(NUM, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(values, (NUM, HEIGHT, WIDTH, 3)).copy()


def write(path, frames, codec, pixel_format, options=None, stamps=None):
    """Writes a video of RGB frames; `stamps` are multiples of 1/20 s."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=20, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        for pixels, stamp in zip(frames, stamps or range(len(frames)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 20)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "A.mp4"
    write_video(path, numbered(), 20)
    return path


@pytest.mark.parametrize("frames", [range(0, NUM), range(3, 38, 7), range(39, 40)])
def test_frames_of_a_video_are_read_by_number(video, frames):
    footage = open_footage(video.parent, "A")
    assert (footage.count, footage.size) == (NUM, (WIDTH, HEIGHT))
    np.testing.assert_allclose(footage.times, np.arange(NUM) / 20, atol=1e-9)
    images = list(read_images(footage, frames))
    assert {image.shape for image in images} == {(HEIGHT, WIDTH, 3)}
    values = [image.mean() / 5 for image in images]
    np.testing.assert_allclose(values, frames, atol=0.3)  # 1.5 of 255


def test_the_edge_of_a_compressed_mask_keeps_its_position(tmp_path):
    frames = np.zeros((5, HEIGHT, WIDTH, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[9:33, 10 + i : 31 + 2 * i] = 255
    write_video(tmp_path / "A.mp4", frames, 5)
    write(tmp_path / "B.mp4", frames, "libx264", "yuv420p", {"crf": "35"})
    for name, wrong in (("A", 0.0), ("B", 0.005)):
        footage = open_footage(tmp_path, name)
        masks = np.stack(list(read_masks(footage, range(5))))
        assert masks.dtype == bool
        assert (masks != (frames[..., 0] > 0)).mean() <= wrong


@pytest.mark.parametrize("pixels", ["yuv420p10le", "gray16le", "gray"])
def test_videos_of_any_bit_depth_are_read_as_bytes(tmp_path, pixels):
    write(tmp_path / "A.mkv", numbered(), "ffv1", pixels)
    footage, frames = open_footage(tmp_path, "A"), range(0, NUM, 13)
    values = [image.mean() / 5 for image in read_images(footage, frames)]
    np.testing.assert_allclose(values, frames, atol=0.5)  # converted and rounded twice
    masks = [mask.mean() for mask in read_masks(footage, frames)]
    assert masks == [float(5 * frame > 127) for frame in frames]


def save(path, image, mode):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).convert(mode).save(path)


def test_images_are_sorted_by_their_numbers(tmp_path):
    for number in (2, 10, 1):
        image = np.full((HEIGHT, WIDTH, 3), number, np.uint8)
        save(tmp_path / "A" / f"frame_{number}.png", image, "L")
    footage = open_footage(tmp_path, "A")
    assert (footage.count, footage.times) == (3, None)
    images = list(read_images(footage, range(0, 3)))
    assert [image[0, 0].tolist() for image in images] == [[1] * 3, [2] * 3, [10] * 3]


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_masks_of_any_mode_are_thresholded_at_half(tmp_path, mode):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:20], mask[20:30] = 255, 0 if mode == "1" else 100
    save(tmp_path / "A" / "0.png", mask, mode)
    (read,) = read_masks(open_footage(tmp_path, "A"), range(1))
    np.testing.assert_array_equal(read, mask > 127)


def test_a_folder_may_contain_the_video(video, tmp_path):
    (tmp_path / "Camera1").mkdir()
    (tmp_path / "Camera1" / "0.mp4").write_bytes(video.read_bytes())
    assert open_footage(tmp_path, "Camera1").count == NUM


@pytest.mark.parametrize("name", ["A.mp4", "A.mkv"])
def test_times_are_presentation_timestamps(name, tmp_path):
    """Of frames that are stored in another order (B-frames) at a variable rate."""
    stamps = [3, 4, 6, 7, 11, 12, 13, 20]
    write(
        tmp_path / name, numbered()[: len(stamps)], "libx264", "yuv420p", None, stamps
    )
    footage = open_footage(tmp_path, "A")
    times = (np.array(stamps) - 3) / 20
    np.testing.assert_allclose(footage.times, times, atol=5e-4)  # mkv: milliseconds
    values = [image.mean() / 5 for image in read_images(footage, range(len(stamps)))]
    np.testing.assert_allclose(values, range(len(stamps)), atol=0.3)


def test_a_rotated_video_is_refused(video, tmp_path):
    upright = struct.pack(">9i", 2**16, 0, 0, 0, 2**16, 0, 0, 0, 2**30)
    upside_down = struct.pack(">9i", -(2**16), 0, 0, 0, -(2**16), 0, 0, 0, 2**30)
    movie, track = video.read_bytes().split(b"tkhd", 1)
    assert upright in track
    track = track.replace(upright, upside_down, 1)
    (tmp_path / "A.mp4").write_bytes(movie + b"tkhd" + track)
    with pytest.raises(DataError, match=r"camera 'A' .*: frame 2 .* rotation of -?180"):
        list(read_images(open_footage(tmp_path, "A"), range(2, NUM)))


def write_broken(video, tmp_path, kind):
    """Writes a bad video of camera A in `tmp_path`."""
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
    ("kind", "message"),
    [
        ("cut off", r"frame \d+ is damaged or cut off"),
        ("no video", r"not a readable video, or damaged \(ffmpeg: "),
        ("empty", r"not a readable video, or damaged \(ffmpeg: "),
        ("damaged", r"not a readable video, or damaged \(ffmpeg: "),
        ("playlist", r"not a readable video, or damaged \(ffmpeg: "),
        ("list of files", r"not a readable video, or damaged \(ffmpeg: "),
    ],
)
def test_a_bad_video_is_a_one_line_error_with_camera_and_file(
    video, tmp_path, kind, message
):
    write_broken(video, tmp_path, kind)
    with pytest.raises(DataError, match=rf"camera 'A' \(.*A\.mp4\): {message}") as e:
        list(read_images(open_footage(tmp_path, "A"), range(0, NUM)))
    assert "\n" not in str(e.value)


def test_missing_and_ambiguous_footage_is_refused(video, tmp_path):
    with pytest.raises(DataError, match=r"expected one video B.mp4 .*contains A.mp4"):
        open_footage(video.parent, "B")
    save(tmp_path / "A" / "0.png", numbered()[0], "RGB")
    (tmp_path / "A.mp4").write_bytes(video.read_bytes())
    with pytest.raises(DataError, match="found 1 videos and 1 images"):
        open_footage(tmp_path, "A")
    for name in ("../A", str(video.parent / "A")):
        with pytest.raises(
            DataError, match=r'"name" .*must be relative|contains "\.\.",'
        ):
            open_footage(tmp_path, name)
    save(tmp_path / "C" / "0.png", numbered()[0], "RGBA")
    with pytest.raises(DataError, match=r"camera 'C' .*0.png: image of Pillow mode"):
        list(read_masks(open_footage(tmp_path, "C"), range(1)))
