"""PLY files against those of LGM, round trips, damaged files, and camera paths."""

import dataclasses
from pathlib import Path

import numpy as np
import plyfile
import pytest

from facelift_jax.export.ply import Filter, read_ply, write_ply
from facelift_jax.geometry.paths import fov_intrinsics, orbit_cameras
from facelift_jax.render.path import render_path
from facelift_jax.structs import Cameras, Gaussians, RenderOutput

GOLDENS = Path(__file__).parents[1] / "goldens" / "export"

TOLERANCES = {
    "file": 2e-6,  # float32 logarithms and logits up to 14, relative
    "round trip": 3e-7,  # exp(log(x)) in float32
}

SH_C0 = 0.28209479177387814

FIELDS = [
    *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
]


def random_gaussians(count: int, num_coefficients: int = 1) -> Gaussians:
    rng = np.random.default_rng(count)

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(0.05, 0.95, shape).astype(np.float32)

    return Gaussians(
        means=uniform(count, 3) - np.float32(0.5),
        quats=uniform(count, 4),
        scales=uniform(count, 3),
        opacities=uniform(count),
        sh=uniform(count, num_coefficients, 3),
    )


def write_vertices(path: Path, columns: dict[str, np.ndarray], text: bool = False):
    dtype = [(name, "<f4") for name in columns]
    table = np.zeros(len(next(iter(columns.values()))), dtype)
    for name, values in columns.items():
        table[name] = values
    element = plyfile.PlyElement.describe(table, "vertex")
    plyfile.PlyData([element], text=text).write(str(path))


def test_files_equal_those_of_lgm(tmp_path):
    golden = np.load(GOLDENS / "lgm_ply.npz")
    rows = golden["gaussians"]
    sh = ((rows[:, 11:] - 0.5) / SH_C0)[:, None]
    gaussians = Gaussians(
        rows[:, :3], rows[:, 7:11], rows[:, 4:7], rows[:, 3], sh.astype(np.float32)
    )
    path = tmp_path / "ours.ply"
    assert write_ply(path, gaussians) == (golden["kept"].sum(), (~golden["kept"]).sum())
    written = plyfile.PlyData.read(path)["vertex"].data
    expected = plyfile.PlyData.read(GOLDENS / "sample.ply")["vertex"].data
    assert written.dtype == expected.dtype
    assert list(written.dtype.names) == FIELDS
    for field in FIELDS:
        np.testing.assert_allclose(
            written[field], expected[field], rtol=TOLERANCES["file"], atol=1e-7
        )


def test_reads_files_of_lgm():
    loaded = np.load(GOLDENS / "lgm_ply.npz")["loaded"]
    gaussians = read_ply(GOLDENS / "sample.ply")
    colors = gaussians.sh[:, 0] * np.float32(SH_C0) + np.float32(0.5)
    values = np.concatenate(
        [
            gaussians.means,
            gaussians.opacities[:, None],
            gaussians.scales,
            gaussians.quats,
            colors,
        ],
        axis=1,
    )
    np.testing.assert_allclose(values, loaded, atol=TOLERANCES["round trip"])


@pytest.mark.parametrize("num_coefficients", [1, 4, 9, 16])
def test_round_trip(tmp_path, num_coefficients):
    gaussians = random_gaussians(11, num_coefficients)
    path = tmp_path / "scene.ply"
    assert write_ply(path, gaussians) == (11, 0)
    loaded = read_ply(path)
    for name, expected in vars(gaussians).items():
        read = getattr(loaded, name)
        assert read.dtype == np.float32
        assert read.shape == expected.shape
        np.testing.assert_allclose(read, expected, rtol=TOLERANCES["round trip"])


def test_higher_harmonics_are_stored_channel_by_channel(tmp_path):
    gaussians = random_gaussians(3, 4)
    path = tmp_path / "scene.ply"
    write_ply(path, gaussians)
    vertex = plyfile.PlyData.read(path)["vertex"].data
    assert list(vertex.dtype.names[6:15]) == [f"f_rest_{i}" for i in range(9)]
    for channel in range(3):
        for coefficient in range(3):
            np.testing.assert_array_equal(
                vertex[f"f_rest_{3 * channel + coefficient}"],
                gaussians.sh[:, 1 + coefficient, channel],
            )


def test_left_out_gaussians_are_counted_and_stated(tmp_path):
    gaussians = random_gaussians(5)
    opacities = np.array([0.0, 0.004, 0.006, 1.0, 0.5], np.float32)
    gaussians = dataclasses.replace(gaussians, opacities=opacities)
    path = tmp_path / "scene.ply"
    assert write_ply(path, gaussians) == (3, 2)
    comments = plyfile.PlyData.read(path).comments
    assert comments == [
        "2 of 5 Gaussians left out: opacity < 0.005",
        "layout lgm: rot (w, x, y, z)",
        "opacity: logit of the value in [1e-06, 1 - 1e-06]",
        "scale: logarithm of the value + 1e-08",
    ]
    np.testing.assert_allclose(read_ply(path).opacities, [0.006, 1, 0.5], atol=2e-6)
    assert write_ply(path, gaussians, Filter(0.0)) == (5, 0)
    assert write_ply(path, gaussians, Filter(2.0)) == (0, 5)
    assert read_ply(path).means.shape == (0, 3)


@pytest.mark.parametrize("text", [False, True])
def test_reads_normals_and_text_files(tmp_path, text):
    columns = {name: np.linspace(0.1, 0.9, 4) for name in FIELDS}
    order = ["x", "y", "z", "nx", "ny", "nz", *FIELDS[3:]]
    columns |= dict.fromkeys(("nx", "ny", "nz"), np.zeros(4))
    path = tmp_path / "scene.ply"
    write_vertices(path, {name: columns[name] for name in order}, text)
    gaussians = read_ply(path)
    values = np.linspace(0.1, 0.9, 4).astype(np.float32)
    np.testing.assert_allclose(gaussians.means[:, 1], values, rtol=1e-6)
    np.testing.assert_allclose(gaussians.scales[:, 2], np.exp(values), rtol=1e-6)
    np.testing.assert_allclose(gaussians.opacities, 1 / (1 + np.exp(-values)), 1e-6)


def test_bad_gaussians_are_refused_and_the_old_file_is_kept(tmp_path):
    path = tmp_path / "scene.ply"
    write_ply(path, random_gaussians(4))
    before = path.read_bytes()
    bad = random_gaussians(6)
    bad.means[1, 0], bad.scales[2, 1] = np.nan, -1.0
    with pytest.raises(ValueError, match="nothing was written") as error:
        write_ply(path, bad)
    assert str(error.value) == (
        f"{path}: 2 of 6 Gaussians hold NaN or infinity or scales below zero; nothing "
        "was written"
    )
    batch = Gaussians(*(values[None] for values in vars(random_gaussians(3)).values()))
    with pytest.raises(ValueError, match=r"expected one scene's Gaussians, found \(1,"):
        write_ply(path, batch)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "scene.ply"
    write_ply(path, random_gaussians(4))
    before = path.read_bytes()

    def full_disk(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_ply(path, random_gaussians(50))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def header(*lines: str, kind: str = "binary_little_endian") -> bytes:
    return "\n".join(["ply", f"format {kind} 1.0", *lines, "end_header", ""]).encode()


PROPERTIES = [f"property float {name}" for name in FIELDS]
NOT_READABLE = "not a readable PLY file: "


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a PLY file: no PLY header in its first 65536 bytes"),
        (b"PK\x03\x04" * 9, "not a PLY file: no PLY header in its first 65536 bytes"),
        (
            b"ply\n" + b"comment x\n" * 9000 + b"end_header\n",
            "not a PLY file: no PLY header in its first 65536 bytes",
        ),
        (
            header("element vertex 1000000000000", *PROPERTIES) + bytes(56),
            "PLY header declares at least 56000000000000 bytes but 57 follow it; the "
            "file is truncated or damaged",
        ),
        (
            header("element vertex 3", *PROPERTIES) + bytes(3 * 56 - 2),
            "PLY header declares at least 168 bytes but 167 follow it; the file is "
            "truncated or damaged",
        ),
        (
            header("element vertex 999999999", *PROPERTIES, kind="ascii") + b"0 0\n",
            "PLY header declares at least 27999999972 bytes but 5 follow it; the file "
            "is truncated or damaged",
        ),
        (
            header("element vertex 2", *PROPERTIES, kind="ascii") + b"0 0 0\n" * 20,
            NOT_READABLE + "element 'vertex': row 0: property 'f_dc_0': early "
            "end-of-line",
        ),
        (
            header("comment end_header", "element vertex 9", *PROPERTIES) + bytes(56),
            "PLY header declares at least 504 bytes but 57 follow it; the file is "
            "truncated or damaged",
        ),
        (
            header("element vertex -1", *PROPERTIES),
            "PLY header: cannot read 'element vertex -1'",
        ),
        (
            header("element vertex many", *PROPERTIES),
            "PLY header: cannot read 'element vertex many'",
        ),
        (
            header("element vertex 1", "property list uchar int vertex_indices"),
            "PLY header: not a 3DGS field: 'property list uchar int vertex_indices'",
        ),
        (
            header("element vertex 1", "property string name"),
            "PLY header: not a 3DGS field: 'property string name'",
        ),
        (
            header("element face 1", "property float x") + bytes(4),
            'not a 3DGS PLY file: it has no element "vertex"',
        ),
        (
            header("element vertex 1", *PROPERTIES[:7], *PROPERTIES[10:]) + bytes(44),
            "not a 3DGS PLY file: its vertices lack scale_0, scale_1, scale_2",
        ),
        (
            header("element vertex 1", *PROPERTIES, "property float f_rest_0")
            + bytes(60),
            "expected 0, 9, 24 or 45 fields f_rest_0, f_rest_1, ... for harmonics of "
            "degree 0 to 3, found 1",
        ),
        (
            header("element vertex 1", *PROPERTIES)
            + np.full(14, np.nan, "<f4").tobytes(),
            "means hold NaN or infinity",
        ),
        (
            header("element vertex 1", *PROPERTIES)
            + np.full(14, 1000, "<f4").tobytes(),
            "scales hold NaN or infinity",
        ),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "damaged.ply"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged") as error:
        read_ply(path)
    assert str(error.value) == f"{path}: {message}"


def turntable(count: int) -> Cameras:
    azimuths = np.arange(count) * (360.0 / count)
    return orbit_cameras(azimuths, np.zeros(count), 2.0, fov_intrinsics(50.0, 4), 4)


@pytest.mark.parametrize("count", [1, 8, 19])
def test_a_path_renders_every_camera_once_in_equal_chunks(count):
    cameras = turntable(count)
    shapes = set()

    def render_fn(gaussians: Gaussians, part: Cameras) -> RenderOutput:
        shapes.add(part.viewmats.shape)
        shades = np.arctan2(part.centers[:, 1], part.centers[:, 0]) / 7 + 0.5
        colors = np.broadcast_to(shades[:, None, None, None], (len(shades), 4, 4, 3))
        return RenderOutput(colors, colors, colors, np.zeros(len(shades), np.int32))

    frames = render_path(render_fn, random_gaussians(2), cameras)
    assert frames.colors.shape == (count, 4, 4, 3)
    assert len(shapes) == 1
    shades = np.arctan2(cameras.centers[:, 1], cameras.centers[:, 0]) / 7 + 0.5
    np.testing.assert_array_equal(frames.colors[:, 0, 0, 0], shades)


def test_a_path_refuses_dropped_entries():
    def render_fn(gaussians: Gaussians, part: Cameras) -> RenderOutput:
        colors = np.zeros((len(part.viewmats), 4, 4, 3), np.float32)
        dropped = np.full(len(colors), 5, np.int32)
        return RenderOutput(colors, colors, colors, dropped)

    with pytest.raises(ValueError, match="path") as error:
        render_path(render_fn, random_gaussians(2), turntable(3))
    assert str(error.value) == (
        "path: the renderer dropped 15 entries in frames 0 to 2; set "
        "RenderConfig.max_entries to None"
    )
