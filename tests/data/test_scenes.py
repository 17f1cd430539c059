"""Reading scenes: formats, lists, masks, splits; checked against an exact ball."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_scenes import (
    CENTER,
    RADIUS,
    nerf_document,
    points_and_normals,
    to_nerf,
    write_cameras,
    write_scene,
    write_scenes,
)

from facelift_jax.data.io import DataError
from facelift_jax.data.scenes import FolderSource, open_source, split_source
from facelift_jax.structs import check


def test_cameras_pixels_and_depths_agree_with_an_exact_ball(tmp_path):
    write_scene(tmp_path / "ball", width=32, height=24)
    scene = open_source(tmp_path / "ball")[0]
    assert scene.rgba.shape == (8, 24, 32, 4)
    assert scene.rgba.dtype == np.uint8
    assert scene.depths.shape == (8, 24, 32, 1)
    assert scene.is_input.tolist() == [True] * 3 + [False] * 5
    check(scene.cameras)
    for view in range(8):
        points, normals = points_and_normals(
            scene.rgba[view] / 255,
            scene.depths[view, ..., 0],
            scene.cameras.viewmats[view],
            scene.cameras.Ks[view],
        )
        assert len(points) > 20
        # depth is stored in steps of 1e-4, color in steps of 1/255
        assert np.abs(np.linalg.norm(points - CENTER, axis=-1) - RADIUS).max() < 2e-4
        assert np.abs(points - CENTER - RADIUS * normals).max() < 3e-3


def test_camera_poses_keep_every_bit_of_the_file(tmp_path):
    document = write_scene(tmp_path / "ball")
    scene = open_source(tmp_path)[0]
    stored = np.array([frame["w2c"] for frame in document["frames"]])
    assert np.abs(stored - np.float32(stored)).max() > 0
    for cameras in (scene.cameras, scene.take(np.arange(8)).cameras):
        assert cameras.viewmats.dtype == cameras.Ks.dtype == np.float64
        np.testing.assert_array_equal(cameras.viewmats, stored)


def test_both_formats_give_the_same_scene(tmp_path):
    for name in ("ours", "nerf"):
        write_scene(tmp_path / name, width=32, height=24, depth=False, num_inputs=0)
    to_nerf(tmp_path / "nerf", nerf_document(8, 32, 24))
    nerf, ours = open_source(tmp_path)
    np.testing.assert_allclose(nerf.cameras.viewmats, ours.cameras.viewmats, atol=1e-6)
    np.testing.assert_array_equal(nerf.cameras.Ks, ours.cameras.Ks)
    np.testing.assert_array_equal(nerf.rgba, ours.rgba)
    assert nerf.depths is None
    assert not nerf.is_input.any()


def test_nerf_field_of_view_and_image_size_give_intrinsics(tmp_path):
    write_scene(tmp_path / "nerf", width=32, height=24, depth=False)
    document = nerf_document(8, 32, 24)
    frames = [frame | {"split": "input"} for frame in document["frames"]]
    to_nerf(tmp_path / "nerf", {"camera_angle_x": 1.2, "frames": frames})
    scene = open_source(tmp_path)[0]
    focal = 16 / np.tan(0.6)
    expected = np.array([[focal, 0, 16], [0, focal, 12], [0, 0, 1]])
    np.testing.assert_allclose(scene.cameras.Ks[3], expected, rtol=1e-15)
    assert scene.is_input.all()


def test_nerf_distortion_is_refused(tmp_path):
    write_scene(tmp_path / "nerf", depth=False)
    document = nerf_document(8, 24, 24)
    to_nerf(tmp_path / "nerf", document | {"k1": 0.01})
    with pytest.raises(DataError, match=r"lens distortion \(k1 is not 0\); undistort"):
        open_source(tmp_path)[0]
    fisheye = {"k1": 0.0, "camera_model": "OPENCV_FISHEYE"}
    (tmp_path / "nerf" / "transforms.json").write_text(json.dumps(document | fisheye))
    with pytest.raises(DataError, match=r"lens distortion \(camera_model 'OPENCV_FISH"):
        open_source(tmp_path)[0]


def test_distortion_in_our_own_format_is_refused(tmp_path):
    document = write_scene(tmp_path / "ball", depth=False)
    document["frames"][2]["p1"] = 1e-3
    write_cameras(tmp_path / "ball", document)
    with pytest.raises(
        DataError, match=r"view 2 .*\(p1 is not 0\); undistort the imag"
    ):
        open_source(tmp_path)[0]


def test_a_mask_file_equals_an_alpha_channel(tmp_path):
    document = write_scene(tmp_path / "ball")
    expected = open_source(tmp_path)[0].rgba
    (tmp_path / "ball" / "masks").mkdir()
    for frame in document["frames"]:
        path = tmp_path / "ball" / frame["file_path"]
        frame["mask_path"] = frame["file_path"].replace("images", "masks")
        with Image.open(path) as image:
            mask = image.getchannel("A")
            image.convert("RGB").save(path)
        mask.convert("1").save(tmp_path / "ball" / frame["mask_path"])
    write_cameras(tmp_path / "ball", document)
    np.testing.assert_array_equal(open_source(tmp_path)[0].rgba, expected)


def test_only_taken_views_are_decoded(tmp_path):
    write_scene(tmp_path / "ball")
    path = tmp_path / "ball" / "images" / "cam_005.png"
    path.write_bytes(path.read_bytes()[:-200])
    scene = open_source(tmp_path)[0]
    taken = scene.take(np.array([6, 1]))
    assert taken.rgba.shape[0] == 2
    np.testing.assert_array_equal(taken.cameras.Ks[0], scene.cameras.Ks[6])
    np.testing.assert_array_equal(taken.cameras.viewmats[1], scene.cameras.viewmats[1])
    assert taken.is_input.tolist() == [False, True]
    with pytest.raises(DataError, match="view 5"):
        _ = scene.rgba
    again = taken.take(np.array([1]))
    np.testing.assert_array_equal(again.rgba[0], taken.rgba[1])
    np.testing.assert_array_equal(again.depths[0], taken.depths[1])


def test_a_list_contains_absolute_and_relative_paths(tmp_path):
    write_scenes(tmp_path / "a", 2, num_views=2)
    write_scene(tmp_path / "b" / "000", num_views=2)
    text = f"# mice\n../b/000\n\n  {tmp_path}/a/001\n../a/000\n"
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text(text)
    source = open_source(tmp_path / "lists" / "train.txt")
    assert source.names == ("b--000", "a--001", "a--000")
    assert [scene.name for scene in source] == list(source.names)
    assert [scene.index for scene in source] == [0, 1, 2]
    assert source[-1].index == 2


def test_a_source_is_equal_in_every_process_and_location(tmp_path):
    write_scenes(tmp_path / "here", 3, num_views=2)
    write_scenes(tmp_path / "there", 3, num_views=2)
    (tmp_path / "here" / ".cache").mkdir()
    source = open_source(tmp_path / "here")
    assert source.digest == "889dfa0a425ff4d2"
    assert open_source(tmp_path / "there").digest == source.digest
    assert repr(source) == f"FolderSource(3 scenes, {source.digest})"
    assert repr(open_source(tmp_path / "there")) == repr(source)
    assert repr(pickle.loads(pickle.dumps(source))) == repr(source)
    scene = pickle.loads(pickle.dumps(source[1]))
    np.testing.assert_array_equal(scene.rgba, source[1].rgba)


def test_a_digest_identifies_the_scenes_and_their_order():
    def digest(*names):
        return FolderSource(tuple(map(Path, names)), names).digest

    assert re.fullmatch("[0-9a-f]{16}", digest("a", "b"))
    assert FolderSource((Path("/x/a"),), ("a",)).digest == digest("a")
    others = [(), ("a",), ("b", "a"), ("a", "b", "c"), ("a", "c"), ("ab",), ("a\nb",)]
    assert len({digest(*names) for names in [("a", "b"), *others]}) == 8
    assert digest("caf\udce9") != digest("cafe")  # a name that is not UTF-8 on disk


def test_the_last_scenes_are_held_out(tmp_path):
    source = open_source(write_scenes(tmp_path, 5, num_views=2))
    train, held_out = split_source(source, 2)
    assert train.names == ("000", "001", "002")
    assert held_out.names == ("003", "004")
    assert len({s.digest for s in (source, train, held_out)}) == 3
    assert split_source(source, 1)[0].digest != train.digest
    for count in (0, 5, -1):
        with pytest.raises(ValueError, match=f"cannot hold out {count} of 5 scenes"):
            split_source(source, count)
