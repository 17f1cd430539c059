"""Normalization of a whole rig by one similarity."""

from pathlib import Path

import numpy as np
import pytest
from tiny_scenes import CENTER

from facelift_jax.data.io import DataError
from facelift_jax.data.normalize import normalize_rig, rig_similarity
from facelift_jax.geometry.rigid import opengl_to_opencv_c2w, rig_center, rig_radius
from facelift_jax.geometry.rotations import invert_rigid
from facelift_jax.structs import Cameras, check

GOLDEN = np.load(Path(__file__).parent.parent / "goldens" / "data" / "lgm.npz")


@pytest.mark.parametrize("frame", ["first_camera", "world"])
def test_one_similarity_normalizes_a_rig(scene, frame):
    inputs = scene.take(np.array([4, 1, 6]))
    targets = scene.take(np.array([0, 4, 7]))
    moved_inputs, moved_targets = normalize_rig(
        inputs, targets, scene.cameras, 1.5, frame
    )
    cameras = moved_inputs.cameras
    check(cameras)
    center = rig_center(cameras)
    assert np.abs(center).max() < 1e-6
    assert rig_radius(cameras, center) == pytest.approx(1.5, abs=1e-6)
    scale = 1.5 / np.linalg.norm(inputs.cameras.centers - CENTER, axis=-1).mean()
    for old, new in ((inputs, moved_inputs), (targets, moved_targets)):
        # distances and rotations between cameras
        for i in range(3):
            before = old.cameras.centers - inputs.cameras.centers[i]
            after = new.cameras.centers - moved_inputs.cameras.centers[i]
            np.testing.assert_allclose(
                np.linalg.norm(after, axis=-1),
                scale * np.linalg.norm(before, axis=-1),
                atol=1e-6,
            )
        turns = [
            s.cameras.viewmats[:, :3, :3] @ first.cameras.viewmats[0, :3, :3].T
            for s, first in ((old, inputs), (new, moved_inputs))
        ]
        np.testing.assert_allclose(turns[0], turns[1], atol=1e-6)
        np.testing.assert_allclose(new.depths, scale * old.depths, rtol=1e-6)
        np.testing.assert_array_equal(new.rgba, old.rgba)
        np.testing.assert_array_equal(new.cameras.Ks, old.cameras.Ks)
    c2w = cameras.c2w[0]
    if frame == "first_camera":
        # OpenGL axes equal to the world's: x right, y up, looking along -z
        np.testing.assert_allclose(c2w[:3, :3], np.diag([1, -1, -1]), atol=1e-6)
        np.testing.assert_allclose(c2w[:2, 3], [0, 0], atol=1e-6)
    else:
        np.testing.assert_allclose(
            c2w[:3, :3], inputs.cameras.c2w[0, :3, :3], atol=1e-6
        )


@pytest.mark.parametrize("frame", ["first_camera", "world"])
def test_a_similarity_moves_points_there_and_back(scene, frame):
    inputs = scene.take(np.array([4, 1, 6]))
    similarity = rig_similarity(inputs.cameras, inputs.cameras, 1.5, frame)
    moved, _ = normalize_rig(inputs, inputs, scene.cameras, 1.5, frame)
    actual = similarity.apply(inputs.cameras.centers)
    np.testing.assert_allclose(actual, moved.cameras.centers, atol=1e-6)
    back = similarity.inverse().apply(actual)
    np.testing.assert_allclose(back, inputs.cameras.centers, atol=1e-6)


def test_the_first_camera_frame_equals_the_original():
    poses = GOLDEN["pose_gl"][[4, 0, 1, 2, 3, 5, 7]]  # all at distance 1.5; 4 first
    expected = GOLDEN["pose_rel"][[4, 0, 1, 2, 3, 5, 7]]
    assert GOLDEN["rel_first_index"] == 4
    K = np.float32([[20, 0, 8], [0, 20, 8], [0, 0, 1]])
    cameras = Cameras(
        invert_rigid(opengl_to_opencv_c2w(poses)), np.stack([K] * 7), 16, 16
    )
    rotation, translation, scale = rig_similarity(cameras, cameras, 1.5, "first_camera")
    assert scale == pytest.approx(1, abs=1e-6)
    moved = poses.copy()
    moved[:, :3, :3] = rotation @ poses[:, :3, :3]
    moved[:, :3, 3] = poses[:, :3, 3] @ rotation.T + translation
    np.testing.assert_allclose(moved, expected, atol=1e-6)


@pytest.mark.parametrize("frame", ["first_camera", "world"])
def test_one_input_uses_the_center_of_the_whole_scene(scene, frame):
    one = scene.take(np.array([4]))
    every = scene.take(np.arange(len(scene.is_input)))
    moved, targets = normalize_rig(one, every, scene.cameras, 1.5, frame)
    assert np.linalg.norm(moved.cameras.centers[0]) == pytest.approx(1.5, abs=1e-6)
    assert np.abs(rig_center(targets.cameras)).max() < 1e-6


def similarity_of(cameras):
    return rig_similarity(cameras, cameras, 1.5, "world")


def test_rigs_without_a_center_raise(scene, folder):
    one = scene.take(np.arange(1))
    with pytest.raises(DataError) as caught:
        normalize_rig(one, one, one.cameras, 1.5, "first_camera")
    assert str(caught.value) == (
        f"scene ball ({folder}): the optical axes of the 1 scene's cameras are "
        "parallel and have no nearest point; a rig needs two axes that are not"
    )
    parallel = np.stack([np.eye(4, dtype=np.float32)] * 2)
    parallel[1, 0, 3] = 1
    Ks = scene.cameras.Ks[:2]
    with pytest.raises(DataError, match="axes of the 2 input cameras are parallel"):
        similarity_of(Cameras(parallel, Ks, 24, 24))
    backwards = scene.cameras.viewmats[:2] * np.float32([1, -1, -1, 1])[:, None]
    with pytest.raises(DataError, match=r"input camera \d looks away from the cen"):
        similarity_of(Cameras(backwards, Ks, 24, 24))
    nowhere = scene.cameras.viewmats[:2].copy()
    nowhere[1, 0, 3] = np.nan
    with pytest.raises(DataError, match=r"input camera \d looks away from the cen"):
        similarity_of(Cameras(nowhere, Ks, 24, 24))
    with pytest.raises(ValueError, match=r"frame must be one of .*, found 'opengl'"):
        rig_similarity(scene.cameras, scene.cameras, 1.5, "opengl")
