"""Calibration files of three programs, and the lens model."""

import json

import arena
import numpy as np
import pytest
import scipy.io

from facelift_jax.data.io import DataError
from facelift_jax.data.recordings.calibration import read_calibration
from facelift_jax.data.recordings.lens import distort, source_map, undistort

WRITERS = {
    "opencv_cameras.json": arena.write_opencv,
    "calibration.toml": arena.write_anipose,
    "label3d.mat": arena.write_label3d,
}


@pytest.mark.parametrize("name", WRITERS)
def test_points_project_to_the_same_pixels_for_every_file_format(name, tmp_path):
    WRITERS[name](tmp_path / name)
    cameras = read_calibration(tmp_path / name)
    points = np.random.default_rng(0).uniform(-50, 50, (40, 3))
    assert [camera.name for camera in cameras] == list(arena.NAMES)
    for camera, viewmat, K, lens in zip(
        cameras, *arena.rig()[:2], arena.LENSES, strict=True
    ):
        local = points @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
        distorted = distort(local[:, :2] / local[:, 2:], camera.distortion)
        pixels = distorted * camera.K[(0, 1), (0, 1)] + camera.K[:2, 2]
        expected = arena.project(points, viewmat, K, lens)
        np.testing.assert_allclose(pixels, expected, atol=1e-8)
        sizes = (None,) if name == "label3d.mat" else ((arena.WIDTH, arena.HEIGHT),)
        assert camera.size in sizes


def test_label3d_follows_the_convention_of_matlab(tmp_path):
    """[u v 1] ~ [x y z 1] [r; t] K with the numbers in the file; u and v start at 1."""
    arena.write_label3d(tmp_path / "x.mat")
    stored = scipy.io.loadmat(tmp_path / "x.mat", simplify_cells=True)["params"][2]
    point = np.array([12.0, -7.0, 30.0, 1.0])
    u, v, w = point @ np.vstack([stored["r"], stored["t"]]) @ stored["K"]
    camera = read_calibration(tmp_path / "x.mat")[2]
    column, row, z = camera.K @ (camera.viewmat @ point)[:3]
    np.testing.assert_allclose([u / w - 0.5, v / w - 0.5], [column / z, row / z])


@pytest.mark.parametrize("lens", [*arena.LENSES, (0.2, -0.1, 0, 0, 0), (0,) * 5])
def test_distort_and_undistort_are_exact(lens):
    """Over an image of 1152 x 1024 px at a focal length of 1,600 px: below 1e-3 px."""
    x, y = np.meshgrid(np.linspace(-0.41, 0.41, 83), np.linspace(-0.37, 0.37, 75))
    lens = np.array(lens, float)
    distorted = np.stack(arena.distort(x, y, lens), axis=-1)
    points = np.stack([x, y], axis=-1)
    np.testing.assert_allclose(distort(points, lens), distorted, rtol=0, atol=1e-15)
    np.testing.assert_allclose(undistort(distorted, lens), points, atol=1e-9)
    inverse = undistort(distorted.astype(np.float32), lens)
    assert inverse.dtype == np.float32
    np.testing.assert_allclose(inverse, points, atol=3e-7)


def test_results_beyond_the_fold_are_nan():
    lens = np.array([-0.5, 0, 0, 0, 0.0])  # r (1 - r^2 / 2) grows up to r^2 = 2 / 3
    fold = np.sqrt(2 / 3)
    points = np.array([[fold - 1e-3, 0], [fold + 1e-3, 0], [2.0, 0]])
    distorted = distort(points, lens)
    assert np.isnan(distorted).any(-1).tolist() == [False, True, True]
    highest = fold * (1 - fold**2 / 2)
    shares = np.array([0.99, 0.9999, 1.0001, 1.01])
    inverse = undistort(np.stack([shares * highest, 0 * shares], axis=-1), lens)
    assert np.isnan(inverse).any(-1).tolist() == [False, False, True, True]
    x, _ = arena.distort(*inverse[:2].T, lens)
    np.testing.assert_allclose(x, shares[:2] * highest)
    K = np.array([[10, 0, 0], [0, 10, 0], [0, 0, 1.0]])
    columns, _ = source_map(K, lens, np.eye(3), K, (10, 1))[0].T  # of x = i / 10
    assert np.isnan(columns).tolist() == [False] * 9 + [True]  # .9 > fold
    behind = np.diag([1.0, -1, -1])
    assert np.isnan(source_map(K, lens, behind, K, (10, 1))).all()


def edited(path, **changes):
    """Writes this package's format with changes to camera A; None removes a field."""
    arena.write_opencv(path)
    document = json.loads(path.read_text())
    frame = document["frames"][0] | changes
    document["frames"][0] = {k: v for k, v in frame.items() if v is not None}
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k1": float("nan")}, "contains NaN"),
        ({"p2": 10**400}, "camera 'A': \"lens\" must contain numbers"),
        ({"p2": "x"}, "camera 'A': \"lens\" must contain numbers"),
        ({"fx": None}, "camera 'A': \"fx\" must be a finite number, found nothing"),
        ({"cx": 1200}, r"camera 'A': principal point \(1200.0, .*is outside an image"),
        ({"w2c": [[1, 0], [0, 1]]}, "camera 'A': \"w2c\" must be a 4 x 4 matrix"),
        ({"w2c": (2 * np.eye(4)).tolist()}, "camera 'A': w2c: not a rigid"),
        ({"file_path": "cams/B.png"}, "camera 'B': two cameras have this name"),
        ({"file_path": 7}, "camera '7': expected a printable name"),
        ({"file_path": "a\x1b[2J.mp4"}, "expected a printable name"),
    ],
)
def test_errors_name_the_bad_camera(tmp_path, changes, message):
    edited(tmp_path / "c.json", **changes)
    with pytest.raises(DataError, match=message) as caught:
        read_calibration(tmp_path / "c.json")
    assert str(caught.value).startswith(str(tmp_path / "c.json"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[metadata]", "fisheye = true\n[metadata]", "camera 'F': a fisheye lens"),
        ("-0.05]", "-0.05, 0.1]", "camera 'A': 6 distortion coefficients"),
        (
            "rotation = [",
            "rotation = [1.0, ",
            '"rotation" must contain 3 numbers, found 4',
        ),
        ('name = "B"', 'name = "A"', "camera 'A': two cameras have this name"),
        ("[cam_0]", "[cam_0", "not a readable TOML file"),
        ("[metadata]", "[other]", "camera 'other': \"rotation\" must contain"),
        ("translation = [", "translation = [nan, inf, 1.0]\nx = [", "finite numbers"),
    ],
)
def test_a_bad_anipose_file_is_refused(tmp_path, old, new, message):
    path = tmp_path / "calibration.toml"
    arena.write_anipose(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        read_calibration(path)


def test_other_files_are_refused(tmp_path):
    for name, content, message in (
        ("x.mat", b"MATLAB" + bytes(200), "not a readable .mat file"),
        ("y.yaml", b"", "not a calibration file; expected an opencv_cameras.json"),
        ("x.json", b'{"frames": 3}', '"frames" must be a list'),
        ("z.json", b'{"frames": []}', "0 cameras; depth needs at least two"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_calibration(tmp_path / name)
    with pytest.raises(DataError, match="the file does not exist"):
        read_calibration(tmp_path / "missing.toml")
    scipy.io.savemat(tmp_path / "w.mat", {"camnames": ["A"]})
    with pytest.raises(DataError, match="has no 'params'; expected a file of label3d"):
        read_calibration(tmp_path / "w.mat")
