"""`check` names the field, what was expected and what was found."""

import jax
import numpy as np
import pytest

from facelift_jax.geometry.paths import fov_intrinsics, orbit_cameras
from facelift_jax.structs import (
    Batch,
    Cameras,
    Gaussians,
    RenderOutput,
    Views,
    check,
)


def make_cameras(num_views=3, size=8):
    azimuths = np.arange(num_views) * 40.0
    K = fov_intrinsics(50.0, size)
    return orbit_cameras(azimuths, np.full(num_views, 20.0), 2.0, K, size)


def make_views(num_views=3, size=8, leading=()):
    cameras = make_cameras(num_views, size)
    lead = (*leading, num_views)
    return Views(
        images=np.zeros((*lead, size, size, 3), np.float32),
        masks=np.zeros((*lead, size, size, 1), np.float32),
        depths=None,
        cameras=Cameras(
            np.broadcast_to(cameras.viewmats, (*lead, 4, 4)),
            np.broadcast_to(cameras.Ks, (*lead, 3, 3)),
            size,
            size,
        ),
    )


def make_gaussians(**changes):
    fields = {
        "means": np.zeros((5, 3), np.float32),
        "quats": np.zeros((5, 4), np.float32),
        "scales": np.zeros((5, 3), np.float32),
        "opacities": np.zeros(5, np.float32),
        "sh": np.zeros((5, 1, 3), np.float32),
    }
    return Gaussians(**{**fields, **changes})


def replace(struct, **changes):
    fields = {name: getattr(struct, name) for name in struct.__dataclass_fields__}
    return type(struct)(**{**fields, **changes})


def test_good_structs_give_their_axes():
    assert check(make_cameras()) == {"b": (3,)}
    assert check(make_views(leading=(2,))) == {"b": (2, 3), "h": 8, "w": 8}
    assert check(make_gaussians()) == {"b": (), "n": 5, "k": 1}
    batch = Batch(make_views(3, leading=(2,)), make_views(4, leading=(2,)), np.zeros(2))
    assert check(batch) == {"b": 2, "v": 3, "t": 4}
    alphas = np.zeros((2, 4, 6, 1))
    output = RenderOutput(np.zeros((2, 4, 6, 3)), alphas, alphas, np.zeros(2))
    assert check(output) == {"b": (2,), "h": 4, "w": 6}


def test_structs_are_pytrees_with_static_sizes():
    cameras = make_cameras()
    doubled = jax.tree.map(lambda x: 2 * x, cameras)
    assert (doubled.width, doubled.height) == (8, 8)
    assert len(jax.tree.leaves(cameras)) == 2
    spec = jax.tree.map(lambda _: None, make_gaussians())
    assert spec.means is None  # non-array leaves (specs, masks) are allowed inside


def bad_pose(change):
    cameras = make_cameras()
    viewmats = cameras.viewmats.copy()
    change(viewmats)
    return replace(cameras, viewmats=viewmats)


def nan(m):
    m[1, 0, 3] = np.nan


def scaled(m):
    m[1, :3, :3] *= 1.01


def mirrored(m):
    m[1, 0, :3] *= -1


def transposed(m):
    m[1] = m[1].T


def bad_K(**entries):
    cameras = make_cameras()
    Ks = cameras.Ks.copy()
    for index, value in entries.values():
        Ks[(1, *index)] = value
    return replace(cameras, Ks=Ks)


@pytest.mark.parametrize(
    ("struct", "words"),
    [
        (bad_pose(nan), r"Cameras\.viewmats\[1\]: holds NaN or infinity"),
        (bad_pose(scaled), r"viewmats\[1\]: not a rigid .* off the identity by 0\.02"),
        (bad_pose(mirrored), r"viewmats\[1\]: not a rigid .* determinant -1\.000"),
        (bad_pose(transposed), r"viewmats\[1\]: last row must be 0 0 0 1"),
        (bad_K(fx=((0, 0), -3.0)), r"Ks\[1\]: expected .* positive focal lengths"),
        (bad_K(skew=((0, 1), 0.5)), r"Ks\[1\]: expected .* positive focal lengths"),
        (bad_K(nan=((0, 2), np.inf)), r"Ks\[1\]: holds NaN or infinity"),
        (
            replace(make_views(), images=np.zeros((3, 8, 9, 3), np.float32)),
            r"Views\.masks: expected shape \[\*b h w 1\] with b=\(3,\), h=8, w=9",
        ),
        (
            replace(make_views(), cameras=make_cameras(3, 16)),
            r"Views\.cameras: made for 16 x 16 px, but the images are 8 x 8",
        ),
        (
            make_gaussians(sh=np.zeros((5, 2, 3))),
            r"Gaussians\.sh: expected 1, 4, 9 or 16 coefficients .* found 2",
        ),
        (
            make_gaussians(quats=np.zeros((4, 4))),
            r"Gaussians\.quats: .* with b=\(\), n=5, found \(4, 4\)",
        ),
    ],
)
def test_bad_structs_are_named(struct, words):
    with pytest.raises(ValueError, match=words) as error:
        check(struct)
    assert "\n" not in str(error.value)


def test_poses_with_an_extra_leading_axis_are_refused():
    views = make_views()
    extra = replace(views.cameras, viewmats=views.cameras.viewmats[None])
    with pytest.raises(ValueError, match=r"Cameras\.Ks: expected shape"):
        check(extra)
    both = replace(extra, Ks=views.cameras.Ks[None])
    with pytest.raises(ValueError, match=r"leading axes \(1, 3\) differ from the ima"):
        check(replace(views, cameras=both))


def test_one_camera_for_every_view_is_refused():
    views = make_views()
    first = jax.tree.map(lambda x: np.repeat(x[:1], 3, axis=0), views.cameras)
    with pytest.raises(ValueError, match="the same ray embedding"):
        check(replace(views, cameras=first))
    check(jax.tree.map(lambda x: x[:1], replace(views, cameras=first)))


def test_inputs_and_targets_must_have_the_same_scenes():
    inputs, targets = make_views(leading=(2,)), make_views(leading=(3,))
    with pytest.raises(ValueError, match="inputs hold 2 scenes, targets 3"):
        check(Batch(inputs, targets, np.zeros(2)))
    with pytest.raises(ValueError, match=r"Batch\.inputs: expected two leading axes"):
        check(Batch(make_views(), targets, np.zeros(3)))
    with pytest.raises(ValueError, match=r"Batch\.scene_id: expected shape \[b\]"):
        check(Batch(inputs, inputs, np.zeros(3)))


def test_shapes_are_checked_without_values():
    gaussians = jax.tree.map(lambda x: np.stack([x, x]), make_gaussians())
    axes = []
    jax.vmap(lambda g: axes.append(check(g)) or g.means)(gaussians)
    axes.append(check(jax.eval_shape(lambda: gaussians)))
    assert axes == [{"b": (), "n": 5, "k": 1}, {"b": (2,), "n": 5, "k": 1}]
    with pytest.raises(ValueError, match=r"means: expected an array \[\*b n 3\]"):
        check(make_gaussians(means=None))


def test_shapes_are_checked_under_jit_and_values_are_not():
    jax.jit(lambda c: check(c) and c.Ks)(bad_pose(nan))
    with pytest.raises(ValueError, match=r"Gaussians\.quats"):
        jax.jit(lambda g: check(g) and g.means)(make_gaussians(quats=np.zeros((4, 4))))
