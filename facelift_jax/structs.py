"""The five structs that cross module borders, and `check`, which verifies one.

Conventions (each has a test in tests/test_conventions.py):
camera axes x right, y down, z forward; world right-handed; poses stored world to
camera; the centre of the top-left pixel is (0.5, 0.5); images float32 in [0, 1],
channels last; depth is distance along the camera's z axis; quaternions (w, x, y, z),
need not be unit; scales are standard deviations; colour is spherical-harmonic
coefficients.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from facelift_jax.geometry.numerics import Array, is_concrete
from facelift_jax.geometry.rotations import invert_rigid

RIGID_TOLERANCE = 1e-4  # float32 poses read from JSON are orthonormal to about 1e-6


def _static() -> Any:
    return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cameras:
    """Pinhole cameras that share one picture size.

    Attributes:
      viewmats: [*b 4 4] world to camera, OpenCV axes, world units.
      Ks: [*b 3 3] intrinsics in pixels.
      width: picture width in pixels, static.
      height: picture height in pixels, static.
    """

    viewmats: Array
    Ks: Array
    width: int = _static()
    height: int = _static()

    @property
    def c2w(self) -> Array:
        """[*b 4 4] camera to world."""
        return invert_rigid(self.viewmats)

    @property
    def centers(self) -> Array:
        """[*b 3] camera centres, world frame."""
        return self.c2w[..., :3, 3]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Views:
    """Pictures of one object with their cameras.

    Attributes:
      images: [*b h w 3] float32 in [0, 1], already composited on the background.
      masks: [*b h w 1] float32 in [0, 1], coverage of the object.
      depths: [*b h w 1] camera-z depth in world units, 0 where unknown; or None.
      cameras: Cameras over [*b].
    """

    images: Array
    masks: Array
    depths: Array | None
    cameras: Cameras


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Scenes: `inputs` Views over [b v], `targets` over [b t], `scene_id` [b]."""

    inputs: Views
    targets: Views
    scene_id: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussians:
    """Activated 3D Gaussians in the world frame.

    Attributes:
      means: [*b n 3] world units.
      quats: [*b n 4] (w, x, y, z), any length.
      scales: [*b n 3] standard deviations, world units, positive.
      opacities: [*b n] in [0, 1].
      sh: [*b n k 3] spherical-harmonic coefficients, k = (degree + 1)^2.
    """

    means: Array
    quats: Array
    scales: Array
    opacities: Array
    sh: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RenderOutput:
    """Rendered pictures.

    Attributes:
      colors: [*b h w 3] composited on the background.
      alphas: [*b h w 1] coverage, 1 - final transmittance.
      depths: [*b h w 1] expected camera-z depth in world units, 0 where alpha is 0.
      dropped: [*b] int32 tile-list entries lost to an explicit cap; 0 means exact.
    """

    colors: Array
    alphas: Array
    depths: Array
    dropped: Array


RenderFn = Callable[[Gaussians, Cameras], RenderOutput]

_PATTERNS = {
    Cameras: {"viewmats": "*b 4 4", "Ks": "*b 3 3"},
    Views: {"images": "*b h w 3", "masks": "*b h w 1", "depths": "*b h w 1"},
    Gaussians: {
        "means": "*b n 3",
        "quats": "*b n 4",
        "scales": "*b n 3",
        "opacities": "*b n",
        "sh": "*b n k 3",
    },
    RenderOutput: {
        "colors": "*b h w 3",
        "alphas": "*b h w 1",
        "depths": "*b h w 1",
        "dropped": "*b",
    },
}


def check(struct: object, name: str = "") -> dict[str, Any]:
    """Verifies one struct and returns its axis sizes ("b" is a tuple).

    Shapes are always checked. Values (finite and rigid poses, positive focal lengths,
    views that differ) are checked where they can be looked at, that is outside `jit`.

    Raises:
      ValueError: names the field, what was expected and what was found.
    """
    name = name or type(struct).__name__
    if isinstance(struct, Batch):
        return _check_batch(struct, name)
    if type(struct) not in _PATTERNS:
        raise TypeError(f"{name}: expected one of our structs, found {type(struct)}")
    axes: dict[str, Any] = {}
    for field, pattern in _PATTERNS[type(struct)].items():
        array = getattr(struct, field)
        if field == "depths" and isinstance(struct, Views) and array is None:
            continue
        _bind(f"{name}.{field}", array, pattern, axes)
    if isinstance(struct, Cameras):
        _check_camera_values(struct, name)
    if isinstance(struct, Views):
        _check_views(struct, name, axes)
    if isinstance(struct, Gaussians) and axes["k"] not in (1, 4, 9, 16):
        raise ValueError(
            f"{name}.sh: expected 1, 4, 9 or 16 coefficients (degree 0 to 3), "
            f"found {axes['k']}"
        )
    return axes


def _bind(name: str, array: Array, pattern: str, axes: dict[str, Any]) -> None:
    """Matches one shape against a pattern such as "*b n 3", binding named axes."""
    shape = getattr(array, "shape", None)
    if shape is None:
        raise ValueError(f"{name}: expected an array [{pattern}], found {type(array)}")
    tokens = pattern.split()
    fixed = [t for t in tokens if not t.startswith("*")]
    split = len(shape) - len(fixed)
    ok = split >= 0
    sizes = list(zip(fixed, shape[max(split, 0) :], strict=False))
    bound = {**axes}
    if tokens[0].startswith("*"):
        sizes.insert(0, (tokens[0][1:], tuple(shape[: max(split, 0)])))
    else:
        ok = split == 0
    for token, size in sizes:
        expected = int(token) if token.isdigit() else bound.setdefault(token, size)
        ok = ok and size == expected
    if not ok:
        known = ", ".join(f"{k}={v}" for k, v in axes.items())
        raise ValueError(
            f"{name}: expected shape [{pattern}]"
            + (f" with {known}" if known else "")
            + f", found {tuple(shape)}"
        )
    axes.update(bound)


def _check_batch(batch: Batch, name: str) -> dict[str, Any]:
    inputs = check(batch.inputs, f"{name}.inputs")
    targets = check(batch.targets, f"{name}.targets")
    for side, axes in (("inputs", inputs), ("targets", targets)):
        if len(axes["b"]) != 2:
            raise ValueError(
                f"{name}.{side}: expected two leading axes (scene, view), "
                f"found {axes['b']}"
            )
    if inputs["b"][0] != targets["b"][0]:
        raise ValueError(
            f"{name}: inputs hold {inputs['b'][0]} scenes, targets {targets['b'][0]}"
        )
    axes = {"b": inputs["b"][0], "v": inputs["b"][1], "t": targets["b"][1]}
    _bind(f"{name}.scene_id", batch.scene_id, "b", axes)
    return axes


def _check_camera_values(cameras: Cameras, name: str) -> None:
    if not (is_concrete(cameras.viewmats) and is_concrete(cameras.Ks)):
        return
    viewmats = np.asarray(cameras.viewmats, np.float64).reshape(-1, 4, 4)
    Ks = np.asarray(cameras.Ks, np.float64).reshape(-1, 3, 3)
    for i, (viewmat, K) in enumerate(zip(viewmats, Ks, strict=True)):
        where = f"{name}.viewmats[{i}]"
        if not np.isfinite(viewmat).all():
            raise ValueError(f"{where}: holds NaN or infinity")
        if not np.isfinite(K).all():
            raise ValueError(f"{name}.Ks[{i}]: holds NaN or infinity")
        rotation = viewmat[:3, :3]
        error = np.abs(rotation @ rotation.T - np.eye(3)).max()
        if error > RIGID_TOLERANCE or np.linalg.det(rotation) < 0:
            raise ValueError(
                f"{where}: not a rigid world-to-camera transform (R R^T is off the "
                f"identity by {error:.2g}, determinant {np.linalg.det(rotation):.3f}); "
                "is it transposed, scaled or mirrored?"
            )
        if np.abs(viewmat[3] - (0, 0, 0, 1)).max() > RIGID_TOLERANCE:
            raise ValueError(f"{where}: last row must be 0 0 0 1, found {viewmat[3]}")
        zeros = (K[0, 1], K[1, 0], K[2, 0], K[2, 1], K[2, 2] - 1)
        if K[0, 0] <= 0 or K[1, 1] <= 0 or np.any(zeros):
            raise ValueError(
                f"{name}.Ks[{i}]: expected [[fx 0 cx] [0 fy cy] [0 0 1]] with positive "
                f"focal lengths, found {K.tolist()}"
            )


def _check_views(views: Views, name: str, axes: dict[str, Any]) -> None:
    cameras = views.cameras
    camera_axes = check(cameras, f"{name}.cameras")
    if camera_axes["b"] != axes["b"]:
        raise ValueError(
            f"{name}.cameras: leading axes {camera_axes['b']} differ from the "
            f"pictures' {axes['b']}"
        )
    if (cameras.height, cameras.width) != (axes["h"], axes["w"]):
        raise ValueError(
            f"{name}.cameras: made for {cameras.width} x {cameras.height} px, but the "
            f"pictures are {axes['w']} x {axes['h']}; resize Ks with the pictures"
        )
    has_views = len(axes["b"]) > 0 and axes["b"][-1] > 1
    if not (has_views and is_concrete(cameras.viewmats) and is_concrete(cameras.Ks)):
        return
    viewmats, Ks = np.asarray(cameras.viewmats), np.asarray(cameras.Ks)
    same_pose = (viewmats == viewmats[..., :1, :, :]).all(axis=(-3, -2, -1))
    same_K = (Ks == Ks[..., :1, :, :]).all(axis=(-3, -2, -1))
    if np.any(same_pose & same_K):
        raise ValueError(
            f"{name}.cameras: all {axes['b'][-1]} views have the same camera, so every "
            "view would get the same ray embedding"
        )
