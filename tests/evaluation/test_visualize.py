"""Sheets, maps and labels, and the PNG and mp4 files that show them."""

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from facelift_jax.evaluation import visualize
from facelift_jax.geometry.paths import fov_intrinsics, orbit_cameras
from facelift_jax.io.image_files import write_png, write_video
from facelift_jax.structs import RenderOutput, Views

SIZE, NUM_VIEWS, NUM_INPUTS = 48, 5, 2
FACTOR = 3  # 48 px tiles are magnified to 144 px
LABELS = [f"view {i}" for i in range(NUM_VIEWS)]


def shades(offset: float) -> np.ndarray:
    """One saturated color per view, unlike any other color on a sheet."""
    colors = np.zeros((NUM_VIEWS, SIZE, SIZE, 3), np.float32)
    colors[..., 0] = 1
    colors[..., 2] = (offset + np.arange(NUM_VIEWS)[:, None, None]) / 51
    return colors


def box_of(sheet: np.ndarray, color: np.ndarray) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the only rectangle of a color."""
    where = (sheet == np.rint(color * 255).astype(np.uint8)).all(-1)
    rows, cols = np.nonzero(where.any(1))[0], np.nonzero(where.any(0))[0]
    height, width = rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1
    assert where.sum() == height * width, "not a rectangle of this color"
    return rows[0], cols[0], height, width


def views_and_render() -> tuple[Views, RenderOutput]:
    cameras = orbit_cameras(
        np.arange(NUM_VIEWS) * 72.0,
        np.full(NUM_VIEWS, 20.0),
        2.0,
        fov_intrinsics(50.0, SIZE),
        SIZE,
    )
    masks = np.zeros((NUM_VIEWS, SIZE, SIZE, 1), np.float32)
    masks[:, 10:30, 10:30] = 1
    depths = masks * np.linspace(1.5, 2.5, SIZE, dtype=np.float32)[:, None, None]
    targets = Views(shades(0), masks, depths, cameras)
    dropped = np.zeros(NUM_VIEWS, np.int32)
    return targets, RenderOutput(shades(20), masks, depths + masks / 10, dropped)


def test_sheets_show_pairs_of_input_views_above_held_out_views():
    targets, predictions = shades(0), shades(20)
    psnr = np.array([20.0, 30.0, np.nan, 10.0, 15.0], np.float32)
    sheet = visualize.supervision_sheet(
        targets, predictions, NUM_INPUTS, LABELS, psnr, "title"
    )
    boxes = []
    for i in range(NUM_VIEWS):
        left = box_of(sheet, targets[i, 0, 0])
        right = box_of(sheet, predictions[i, 0, 0])
        assert left[2:] == right[2:] == (FACTOR * SIZE, FACTOR * SIZE)
        assert right[0] == left[0]
        assert right[1] == left[1] + FACTOR * SIZE + 2
        boxes.append(left)
    assert boxes[0][0] == boxes[1][0] < boxes[2][0] == boxes[3][0] < boxes[4][0]
    assert boxes[0][1] == boxes[2][1] == boxes[4][1] < boxes[1][1] == boxes[3][1]


def test_tiles_are_magnified_by_an_integer_factor():
    rng = np.random.default_rng(0)
    images = rng.random((1, SIZE, SIZE, 3)).astype(np.float32)
    images[0, 0, 0] = (1, 0, 1)
    sheet = visualize.inputs_strip(images, ["view 0"], "title")
    top, left, *_ = box_of(sheet, images[0, 0, 0])
    tile = sheet[top : top + FACTOR * SIZE, left : left + FACTOR * SIZE]
    expected = np.rint(images[0] * 255).astype(np.uint8)
    np.testing.assert_array_equal(tile[1::FACTOR, 1::FACTOR], expected)
    np.testing.assert_array_equal(tile[::FACTOR, 2::FACTOR], expected)


def test_large_images_wrap_at_the_width_of_the_page():
    images = np.ones((20, 256, 256, 3), np.float32)
    labels = [str(i) for i in range(20)]
    psnr = np.zeros(20, np.float32)
    sheet = visualize.supervision_sheet(images, images, 6, labels, psnr, "title")
    assert sheet.shape[1] <= visualize.MAX_SHEET_WIDTH
    # two rows of three pairs, then fourteen pairs in five rows
    assert 7 * 256 < sheet.shape[0] < 7 * 256 + 400


def test_a_sheet_without_held_out_views():
    targets = shades(0)
    psnr = np.zeros(NUM_VIEWS, np.float32)
    sheet = visualize.supervision_sheet(
        targets, shades(20), NUM_VIEWS, LABELS, psnr, "title"
    )
    tops = {box_of(sheet, targets[i, 0, 0])[0] for i in range(NUM_VIEWS)}
    assert len(tops) == 1
    assert sheet.shape[0] < 2.5 * FACTOR * SIZE


def test_map_sheet_with_and_without_true_depth():
    targets, render = views_and_render()
    sheets = [
        visualize.map_sheet(views, render, NUM_INPUTS, LABELS, "title")
        for views in (targets, dataclasses.replace(targets, depths=None))
    ]
    for sheet in sheets:
        for i in range(NUM_VIEWS):
            truth = box_of(sheet, targets.images[i, 0, 0])
            prediction = box_of(sheet, render.colors[i, 0, 0])
            assert truth[0] == prediction[0]
            assert truth[1] < prediction[1]
    tile = FACTOR * SIZE + 2
    assert (sheets[0].shape[1] - sheets[1].shape[1]) % tile == 0


def test_maps_have_fixed_scales():
    black = np.zeros((1, 2, 3, 3), np.float32)
    error = visualize.error_map(black, black)
    assert error.shape == (1, 2, 3, 3)
    assert error.max() < 5
    saturated = visualize.error_map(black, black + np.float32(0.3))
    np.testing.assert_array_equal(saturated, visualize.error_map(black, black + 1))
    half = visualize.error_map(black, black + np.float32(0.15))
    assert error.mean() < half.mean() < saturated.mean()

    depths = np.array([[0.5, 1.0], [2.0, 9.0]], np.float32)[..., None]
    is_known = np.array([[True, True], [True, False]])[..., None]
    colored = visualize.depth_map(depths, is_known, 1.0, 2.0)
    np.testing.assert_array_equal(colored[0, 0], colored[0, 1])
    assert colored[0, 1].sum() > colored[1, 0].sum()
    np.testing.assert_array_equal(colored[1, 1], [205, 205, 205])


def test_the_depth_scale_is_that_of_the_object():
    targets, render = views_and_render()
    on_object = targets.depths[0, 10:30, 10]
    low, high = visualize.depth_range(targets, render)
    assert on_object.min() <= low < on_object.min() + 0.03
    assert on_object.max() - 0.03 < high <= on_object.max()
    without = dataclasses.replace(targets, depths=None)
    shifted = visualize.depth_range(without, render)
    np.testing.assert_allclose(shifted, [low + 0.1, high + 0.1], rtol=1e-6)
    clear = dataclasses.replace(render, alphas=0 * render.alphas)
    assert visualize.depth_range(without, clear) == (0.0, 1.0)
    flat = dataclasses.replace(targets, depths=np.full_like(targets.depths, 2.0))
    low, high = visualize.depth_range(flat, render)
    assert low == 2.0 < high


@pytest.mark.parametrize("up", [(0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.3, -0.4, 0.8)])
def test_labels_give_azimuth_and_elevation_of_uneven_rigs(up):
    azimuths = np.array([30.0, 75.0, -60.0, 210.0])
    elevations = np.array([11.0, 31.0, -20.0, 80.0])
    K = fov_intrinsics(50.0, SIZE)
    cameras = orbit_cameras(azimuths, elevations, 2.0, K, SIZE, up=np.array(up))
    assert visualize.view_labels(cameras) == [
        "0  az +0°  el +11°",
        "1  az +45°  el +31°",
        "2  az -90°  el -20°",
        "3  az +180°  el +80°",
    ]


def test_label_of_a_single_view():
    K = fov_intrinsics(50.0, SIZE)
    camera = orbit_cameras(np.array([70.0]), np.array([0.0]), 2.0, K, SIZE)
    assert visualize.view_labels(camera) == ["0  az +0°  el +0°"]


def test_png_round_trip_and_failure(tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)
    path = tmp_path / "image.png"
    write_png(path, image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    before = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:

        def full_disk(self: Image.Image, target: Path, format: str) -> None:
            Path(target).write_bytes(b"half")
            raise OSError(28, "No space left on device")

        patch.setattr(Image.Image, "save", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_png(path, image)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_video_decodes_to_the_frames_given(tmp_path):
    num_frames, height, width = 7, 64, 96
    levels = np.linspace(20, 230, num_frames).round().astype(np.uint8)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[:] = levels[:, None, None, None]
    frames[:, :, : width // 2, 0] = 255
    path = tmp_path / "turntable.mp4"
    write_video(path, frames, fps=12)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width, stream.height, stream.average_rate) == (width, height, 12)
        images = [x.to_ndarray(format="rgb24") for x in container.decode(stream)]
    content = path.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")  # for streaming
    decoded = np.stack(images)
    assert len(decoded) == num_frames
    gray = decoded[:, 20:40, 60:90].astype(int)
    assert np.abs(gray - levels[:, None, None, None].astype(int)).max() <= 4
    assert decoded[:, 20:40, 8:40, 0].min() > 200
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shape", [(3, 63, 64, 3), (3, 64, 63, 3), (0, 64, 64, 3)])
def test_frames_that_h264_does_not_support_are_refused(tmp_path, shape):
    path = tmp_path / "v.mp4"
    with pytest.raises(ValueError, match="even sides") as error:
        write_video(path, np.zeros(shape, np.uint8), fps=10)
    assert str(error.value) == (
        f"{path}: H.264 needs frames with even sides, found {shape[0]} of "
        f"{shape[2]} x {shape[1]} px"
    )


def test_a_video_that_cannot_be_written_is_reported_in_one_line(tmp_path, monkeypatch):
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    path = tmp_path / "no such folder" / "v.mp4"
    with pytest.raises(
        RuntimeError, match=r"cannot write the video: .*No such"
    ) as error:
        write_video(path, frames, fps=10)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value).splitlines()) == 1

    def full_disk(self, packets):
        raise OSError(28, "No space left on device")

    path = tmp_path / "v.mp4"
    path.write_bytes(b"old")
    monkeypatch.setattr(av.container.OutputContainer, "mux", full_disk)
    with pytest.raises(RuntimeError, match=r"write the video: .*No space left"):
        write_video(path, frames, fps=10)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_video_path_is_never_taken_for_an_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    write_video("-y.mp4", frames, fps=10)
    assert [p.name for p in tmp_path.iterdir()] == ["-y.mp4"]
    assert (tmp_path / "-y.mp4").read_bytes()[4:8] == b"ftyp"
