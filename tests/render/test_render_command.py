"""The render command: turntables and scene cameras to images and videos."""

import av
import numpy as np
import pytest
from PIL import Image
from tiny_scenes import write_scene

from facelift_jax.data.scenes import open_source
from facelift_jax.export.ply import write_ply
from facelift_jax.geometry.rays import project
from facelift_jax.render import __main__ as command
from facelift_jax.structs import Gaussians

CENTER = np.array([3.0, -1.0, 2.0])


@pytest.fixture
def ply(tmp_path):
    """A red ball of Gaussians that is not at the origin."""
    rng = np.random.default_rng(0)
    offsets = rng.normal(size=(200, 3))
    offsets *= 0.5 / np.linalg.norm(offsets, axis=-1, keepdims=True)
    gaussians = Gaussians(
        means=(CENTER + offsets).astype(np.float32),
        quats=np.tile(np.float32([1, 0, 0, 0]), (200, 1)),
        scales=np.full((200, 3), 0.05, np.float32),
        opacities=np.full(200, 0.9, np.float32),
        sh=np.tile(np.float32([1.7, -1.7, -1.7]), (200, 1, 1)),
    )
    write_ply(tmp_path / "ball.ply", gaussians)
    return tmp_path / "ball.ply"


@pytest.mark.parametrize("up", ["y", "z"])
def test_the_turntable_frames_the_object(ply, up):
    gaussians = command.read_ply(ply)
    cameras = command.turntable(gaussians, up, 4, 64)
    offsets = cameras.centers - CENTER
    heights = offsets @ np.array(command.UP[up])
    assert (heights > 0).all()
    np.testing.assert_allclose(heights, heights[0], atol=1e-2)
    for i in range(4):
        camera = type(cameras)(cameras.viewmats[i], cameras.Ks[i], 64, 64)
        pixels, _ = project(camera, gaussians.means)
        assert pixels.min() > 0
        assert pixels.max() < 64
        assert np.ptp(pixels, axis=0).min() > 32


def test_a_video_and_images_of_a_turntable(ply, tmp_path, capsys):
    flags = [str(ply), "--path", "turntable", "--size", "32", "--frames", "2"]
    command.main([*flags, "--out", str(tmp_path / "new" / "turn.mp4")])
    assert "2 images of 32 x 32 px" in capsys.readouterr().out
    with av.open(str(tmp_path / "new" / "turn.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 2
    command.main([*flags, "--out", str(tmp_path / "images"), "--background", *"001"])
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == ["0000.png", "0001.png"]
    image = np.asarray(Image.open(tmp_path / "images" / "0000.png"))
    assert tuple(image[0, 0]) == (0, 0, 255)
    assert image[16, 16, 0] > 200
    assert image[16, 16, 1] < 50


def test_images_from_the_cameras_of_a_scene(ply, tmp_path):
    write_scene(tmp_path / "scene", num_views=3, width=32, height=24)
    expected = open_source(tmp_path / "scene")[0].cameras
    cameras = command.scene_cameras(tmp_path / "scene" / "opencv_cameras.json")
    np.testing.assert_array_equal(cameras.viewmats, expected.viewmats)
    flags = [str(ply), "--cameras", str(tmp_path / "scene")]
    command.main([*flags, "--out", str(tmp_path / "images")])
    images = sorted((tmp_path / "images").iterdir())
    assert len(images) == len(expected.viewmats)
    assert np.asarray(Image.open(images[0])).shape == (24, 32, 3)


def test_bad_input_is_refused_before_anything_is_written(ply, tmp_path, capsys):
    flags = [str(ply), "--path", "turntable", "--out", str(tmp_path / "out")]
    for flag in ("--frames", "--size"):
        with pytest.raises(SystemExit):
            command.main([*flags, flag, "0"])
        assert f"{flag}: 0: must be at least 1" in capsys.readouterr().err
    clear = command.read_ply(ply)
    clear.opacities[:] = 0
    with pytest.raises(ValueError, match="no Gaussian is visible"):
        command.turntable(clear, "z", 2, 16)
    write_scene(tmp_path / "set" / "a", num_views=2)
    write_scene(tmp_path / "set" / "b", num_views=2)
    several = [str(ply), "--cameras", str(tmp_path / "set"), "--out", "out"]
    with pytest.raises(ValueError, match="expected one scene, found 2"):
        command.main(several)
    assert not (tmp_path / "out").exists()
