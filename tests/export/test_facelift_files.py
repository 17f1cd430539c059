"""Filters and layout of PLY files against FaceLift's own files."""

import dataclasses
from pathlib import Path

import numpy as np
import plyfile
import pytest
from test_ply import random_gaussians

from facelift_jax.export.ply import FILTERS, Filter, read_ply, write_ply
from facelift_jax.structs import Gaussians

GOLDENS = Path(__file__).parents[1] / "goldens" / "export"


def test_filters_keep_the_gaussians_they_describe():
    means = np.array([[0, 0, 0], [0, 0, 0.5], [0.7, -0.7, -0.7], [0.92, 0, 0]])
    means = np.concatenate([means, means[:1]]).astype(np.float32)
    scales = np.full((5, 3), 0.05, np.float32)
    scales[:2, 1] = 0.2  # large below, large above
    quats = np.tile(np.float32([1, 0, 0, 0]), (5, 1))
    opacities = np.float32([0.5, 0.5, 0.5, 0.5, 0.03])
    gaussians = Gaussians(means, quats, scales, opacities, np.zeros((5, 1, 3), "f4"))
    assert FILTERS["opacity"].keep(gaussians).all()
    kept = FILTERS["facelift"].keep(gaussians)
    assert kept.tolist() == [False, True, False, False, False]
    for chosen, expected in (
        (Filter(0.04), [True, True, True, True, False]),
        (Filter(max_scale=0.1), [False, True, True, True, True]),
        (Filter(floater=0.6), [True, True, False, True, True]),
        (Filter(box=(0.91, 0.91, 1.0)), [True, True, True, False, True]),
    ):
        assert chosen.keep(gaussians).tolist() == expected
        assert chosen.describe().startswith("opacity < ")


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("cli", FILTERS["facelift"]),
        ("gradio", FILTERS["facelift_app"]),
        ("eval", Filter(0.02, box=(0.91, 0.91, 0.91))),
    ],
)
def test_filters_keep_the_same_gaussians_as_facelift(name, chosen):
    golden = np.load(GOLDENS / "facelift_keep.npz")
    opacities = 1 / (1 + np.exp(-golden["opacity"]))
    means, scales = golden["xyz"], np.exp(golden["scaling"])
    quats, sh = np.ones((len(means), 4), "f4"), np.zeros((len(means), 1, 3), "f4")
    kept = chosen.keep(Gaussians(means, quats, scales, opacities, sh))
    np.testing.assert_array_equal(kept, golden[name])
    assert kept.any()
    for field in dataclasses.fields(Filter):  # every clause removes some of them
        if getattr(chosen, field.name) is not None:
            looser = 0.0 if field.name == "min_opacity" else None
            other = dataclasses.replace(chosen, **{field.name: looser})
            others = other.keep(Gaussians(means, quats, scales, opacities, sh))
            assert (others != kept).any(), field.name


def test_files_equal_those_of_facelift(tmp_path):
    gaussians = read_ply(GOLDENS / "facelift.ply")
    assert gaussians.sh.shape == (64, 16, 3)
    # the network predicts one coefficient per channel
    single = dataclasses.replace(gaussians, sh=gaussians.sh[:, :1])
    assert write_ply(tmp_path / "ours.ply", single, Filter(0.0), "facelift") == (64, 0)
    written = plyfile.PlyData.read(tmp_path / "ours.ply")
    golden = plyfile.PlyData.read(GOLDENS / "facelift.ply")
    assert any("layout facelift" in comment for comment in written.comments)
    written.comments = []
    assert str(written.header) == str(golden.header)
    fields = golden["vertex"].data.dtype.names
    assert len(fields) == 62
    for field in fields:
        values, expected = (ply["vertex"][field] for ply in (written, golden))
        if field == "opacity" or field.startswith("scale_"):  # activated and back
            np.testing.assert_allclose(values, expected, rtol=0, atol=2e-6)
        else:
            np.testing.assert_array_equal(values, expected, err_msg=field)


def test_reads_files_of_facelift():
    """Every eighth Gaussian of the file is in the goldens of the network."""
    golden = np.load(GOLDENS.parent / "gslrm" / "reduced.npz")
    expected = {
        "means": golden["xyz"],
        "quats": golden["rotation"],
        "scales": np.exp(golden["scaling"]),
        "opacities": 1 / (1 + np.exp(-golden["opacity"][..., 0])),
    }
    gaussians = read_ply(GOLDENS / "facelift.ply")
    for name, values in expected.items():
        read = getattr(gaussians, name)[::8]
        np.testing.assert_allclose(read, values[0, :8], rtol=1e-6, atol=0)
    np.testing.assert_array_equal(gaussians.sh[::8, :1], golden["features"][0, :8])
    assert not gaussians.sh[:, 1:].any()


def test_the_facelift_layout_round_trips_higher_harmonics(tmp_path):
    gaussians = random_gaussians(7, 4)
    write_ply(tmp_path / "scene.ply", gaussians, layout="facelift")
    sh = read_ply(tmp_path / "scene.ply").sh
    np.testing.assert_array_equal(sh[:, :4], gaussians.sh)
    assert sh.shape == (7, 16, 3)
    assert not sh[:, 4:].any()


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="layout 'gsplat'; known: lgm, facelift"):
        write_ply(tmp_path / "scene.ply", random_gaussians(2), layout="gsplat")
    assert not list(tmp_path.iterdir())


def test_a_file_says_what_it_leaves_out(tmp_path):
    path = tmp_path / "scene.ply"
    write_ply(path, random_gaussians(20), FILTERS["facelift"])
    text = path.read_bytes().split(b"end_header")[0].decode()
    assert FILTERS["facelift"].describe() in text
