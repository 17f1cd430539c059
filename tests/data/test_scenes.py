"""Reading scenes: layouts, lists, masks, splits; a ball in closed form is truth."""

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
    intrinsics,
    points_and_normals,
    poses,
    write_cameras,
    write_scene,
    write_scenes,
)

from facelift_jax.data.io import DataError
from facelift_jax.data.scenes import FolderSource, open_source, split_source
from facelift_jax.structs import check


def test_cameras_pixels_and_depths_agree_with_a_ball_in_closed_form(tmp_path):
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
        # depth is stored in steps of 1e-4, colour in steps of 1/255
        assert np.abs(np.linalg.norm(points - CENTER, axis=-1) - RADIUS).max() < 2e-4
        assert np.abs(points - CENTER - RADIUS * normals).max() < 3e-3


def nerf_document(num_views, width, height):
    flip = np.diag([1.0, -1, -1, 1])  # OpenCV camera axes to OpenGL's
    frames = [
        {"file_path": f"./images/cam_{i:03}", "transform_matrix": (c2w @ flip).tolist()}
        for i, c2w in enumerate(poses(num_views))
    ]
    K = intrinsics(width, height)
    intrinsic = {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
    return {"w": width, "h": height, "frames": frames} | intrinsic


def make_nerf(folder, document):
    (folder / "opencv_cameras.json").unlink()
    (folder / "transforms.json").write_text(json.dumps(document))


def test_both_layouts_give_the_same_scene(tmp_path):
    for name in ("ours", "nerf"):
        write_scene(tmp_path / name, width=32, height=24, depth=False, num_inputs=0)
    make_nerf(tmp_path / "nerf", nerf_document(8, 32, 24))
    nerf, ours = open_source(tmp_path)
    np.testing.assert_allclose(nerf.cameras.viewmats, ours.cameras.viewmats, atol=1e-6)
    np.testing.assert_array_equal(nerf.cameras.Ks, ours.cameras.Ks)
    np.testing.assert_array_equal(nerf.rgba, ours.rgba)
    assert nerf.depths is None
    assert not nerf.is_input.any()


def test_nerf_field_of_view_and_picture_size_stand_in_for_intrinsics(tmp_path):
    write_scene(tmp_path / "nerf", width=32, height=24, depth=False)
    document = nerf_document(8, 32, 24)
    frames = [frame | {"split": "input"} for frame in document["frames"]]
    make_nerf(tmp_path / "nerf", {"camera_angle_x": 1.2, "frames": frames})
    scene = open_source(tmp_path)[0]
    focal = 16 / np.tan(0.6)
    expected = np.array([[focal, 0, 16], [0, focal, 12], [0, 0, 1]], np.float32)
    np.testing.assert_array_equal(scene.cameras.Ks[3], expected)
    assert scene.is_input.all()


def test_nerf_distortion_is_refused(tmp_path):
    write_scene(tmp_path / "nerf", depth=False)
    document = nerf_document(8, 24, 24)
    make_nerf(tmp_path / "nerf", document | {"k1": 0.01})
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
        DataError, match=r"view 2 .*\(p1 is not 0\); undistort the pict"
    ):
        open_source(tmp_path)[0]


def test_a_mask_picture_is_as_good_as_an_alpha_channel(tmp_path):
    document = write_scene(tmp_path / "ball")
    expected = open_source(tmp_path)[0].rgba
    (tmp_path / "ball" / "masks").mkdir()
    for frame in document["frames"]:
        path = tmp_path / "ball" / frame["file_path"]
        frame["mask_path"] = frame["file_path"].replace("images", "masks")
        with Image.open(path) as picture:
            mask = picture.getchannel("A")
            picture.convert("RGB").save(path)
        mask.convert("1").save(tmp_path / "ball" / frame["mask_path"])
    write_cameras(tmp_path / "ball", document)
    np.testing.assert_array_equal(open_source(tmp_path)[0].rgba, expected)


def test_only_the_views_taken_are_decoded(tmp_path):
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


def test_a_list_names_scenes_absolutely_or_relative_to_itself(tmp_path):
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


def test_a_source_is_the_same_in_every_process_and_place(tmp_path):
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


def test_a_digest_stands_for_the_scenes_and_their_order():
    def digest(*names):
        return FolderSource(tuple(map(Path, names)), names).digest

    assert re.fullmatch("[0-9a-f]{16}", digest("a", "b"))
    assert FolderSource((Path("/x/a"),), ("a",)).digest == digest("a")
    others = [(), ("a",), ("b", "a"), ("a", "b", "c"), ("a", "c"), ("ab",), ("a\nb",)]
    assert len({digest(*names) for names in [("a", "b"), *others]}) == 8
    assert digest("caf\udce9") != digest("cafe")  # a name that is not UTF-8 on disk


def test_scenes_are_split_once_and_for_all(tmp_path):
    source = open_source(write_scenes(tmp_path, 5, num_views=2))
    train, held_out = split_source(source, 2)
    assert train.names == ("000", "001", "002")
    assert held_out.names == ("003", "004")
    assert len({s.digest for s in (source, train, held_out)}) == 3
    assert split_source(source, 1)[0].digest != train.digest
    for count in (0, 5, -1):
        with pytest.raises(ValueError, match=f"cannot hold out {count} of 5 scenes"):
            split_source(source, count)
