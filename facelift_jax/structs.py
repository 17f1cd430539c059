"""The structs that modules pass to each other, and `check`, which verifies one.

Conventions (each has a test in tests/test_conventions.py):
camera axes x right, y down, z forward; world right-handed; poses stored world to
camera; the center of the top-left pixel is (0.5, 0.5); images float32 in [0, 1],
channels last; depth is distance along the camera's z axis; quaternions (w, x, y, z),
need not be unit; scales are standard deviations; color is spherical-harmonic
coefficients.

The annotation of a field gives its shape; `check` reads the shapes from there.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Float, Int, Shaped

from facelift_jax.geometry.numerics import Array, is_concrete
from facelift_jax.geometry.rotations import invert_rigid

RIGID_TOLERANCE = 1e-4  # float32 poses read from JSON are orthonormal to about 1e-6


def _static() -> Any:
    return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cameras:
    """Pinhole cameras with one image size.

    Attributes:
      viewmats: world to camera, OpenCV axes, world units.
      Ks: intrinsics in pixels.
      width: image width in pixels, static.
      height: image height in pixels, static.
    """

    viewmats: Float[Array, "*b 4 4"]
    Ks: Float[Array, "*b 3 3"]
    width: int = _static()
    height: int = _static()

    @property
    def c2w(self) -> Float[Array, "*b 4 4"]:
        """Camera to world."""
        return invert_rigid(self.viewmats)

    @property
    def centers(self) -> Float[Array, "*b 3"]:
        """Camera centers, world frame."""
        return self.c2w[..., :3, 3]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Views:
    """Images of one object with their cameras.

    Attributes:
      images: RGB, float32 in [0, 1], already composited on the background.
      masks: float32 in [0, 1], coverage of the object.
      depths: camera-z depth in world units, 0 where unknown; or None.
      cameras: Cameras over [*b].
    """

    images: Float[Array, "*b h w 3"]
    masks: Float[Array, "*b h w 1"]
    depths: Float[Array, "*b h w 1"] | None
    cameras: Cameras


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Scenes with their input and target views.

    Attributes:
      inputs: Views over [b v].
      targets: Views over [b t].
      scene_id: index of each scene in its data set.
    """

    inputs: Views
    targets: Views
    scene_id: Int[Array, "b"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussians:
    """Activated 3D Gaussians in the world frame.

    Attributes:
      means: world units.
      quats: (w, x, y, z), any length.
      scales: standard deviations, world units, positive.
      opacities: in [0, 1].
      sh: spherical-harmonic coefficients, k = (degree + 1)^2.
    """

    means: Float[Array, "*b n 3"]
    quats: Float[Array, "*b n 4"]
    scales: Float[Array, "*b n 3"]
    opacities: Float[Array, "*b n"]
    sh: Float[Array, "*b n k 3"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RenderOutput:
    """Rendered images.

    Attributes:
      colors: RGB, composited on the background.
      alphas: coverage, 1 - final transmittance.
      depths: expected camera-z depth in world units, 0 where alpha is 0.
      dropped: int32 tile-list entries lost to an explicit cap; 0 means exact.
    """

    colors: Float[Array, "*b h w 3"]
    alphas: Float[Array, "*b h w 1"]
    depths: Float[Array, "*b h w 1"]
    dropped: Int[Array, "*b"]


# A renderer with its settings fixed, as `builders.make_renderer` returns it: Gaussians
# over [*b] and cameras over [*b v] to outputs over [*b v].
RenderFn = Callable[[Gaussians, Cameras], RenderOutput]


@typing.runtime_checkable
class RefineFn(Protocol):
    """`refine` with the background and the settings of the renderer fixed.

    `builders.make_refiner` returns it.
    """

    def __call__(
        self,
        gaussians: Gaussians,
        inputs: Views,
        *,
        num_steps: int,
        weights: Float[Array, "b v h w 1"] | None = None,
    ) -> Gaussians:
        """Gaussians [b n] after `num_steps` gradient steps on the input views [b v]."""
        ...


def check(struct: object, name: str = "") -> dict[str, Any]:
    """Verifies one struct and returns its axis sizes ("b" is a tuple).

    Shapes are always checked. Values (finite and rigid poses, positive focal lengths,
    different cameras) are checked where they are concrete, that is outside `jit`.

    Raises:
      ValueError: names the field, the expected shape or value and the actual one.
    """
    name = name or type(struct).__name__
    if isinstance(struct, Batch):
        return _check_batch(struct, name)
    if not isinstance(struct, Cameras | Views | Gaussians | RenderOutput):
        raise TypeError(
            f"{name}: expected a struct of facelift_jax.structs, found {type(struct)}"
        )
    axes: dict[str, Any] = {}
    for field, shape in _field_shapes(type(struct)).items():
        array = getattr(struct, field)
        if field == "depths" and isinstance(struct, Views) and array is None:
            continue
        _check_shape(f"{name}.{field}", array, shape, axes)
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


@functools.cache
def _field_shapes(struct: type) -> dict[str, str]:
    """The shape, such as "*b n 3", in the annotation of each array field."""
    shapes = {}
    for field, hint in typing.get_type_hints(struct).items():
        for option in typing.get_args(hint):
            if hasattr(option, "dim_str"):
                shapes[field] = option.dim_str
    return shapes


def _check_shape(name: str, array: Array, shape: str, axes: dict[str, Any]) -> None:
    """Verifies one shape against the sizes in `axes`; adds the sizes of new axes."""
    if not hasattr(array, "shape"):
        raise ValueError(f"{name}: expected an array [{shape}], found {type(array)}")
    # jaxtyping decides whether a shape fits. It does not report the sizes that it binds
    # to axis names, and inside a decorated function it would reuse that function's
    # sizes. So the sizes in `axes` are filled in as numbers, the other axes are
    # anonymous, and their sizes are read afterwards.
    dims = shape.split()
    expected: Any = Shaped[Any, " ".join(_fill_in(dim, axes) for dim in dims)]
    if not isinstance(array, expected):
        sizes_so_far = ", ".join(f"{axis}={size}" for axis, size in axes.items())
        raise ValueError(
            f"{name}: expected shape [{shape}]"
            + (f" with {sizes_so_far}" if sizes_so_far else "")
            + f", found {tuple(array.shape)}"
        )
    num_leading = len(array.shape) - len(dims) + 1
    if dims[0].startswith("*"):
        axes[dims.pop(0)[1:]] = tuple(array.shape[:num_leading])
    sizes = array.shape[len(array.shape) - len(dims) :]
    named = zip(dims, sizes, strict=True)
    axes.update((dim, size) for dim, size in named if not dim.isdigit())


def _fill_in(dim: str, axes: dict[str, Any]) -> str:
    """jaxtyping's notation for the size of an axis such as "4", "h" or "*b"."""
    if dim.startswith("*"):
        return " ".join(map(str, axes[dim[1:]])) if dim[1:] in axes else "..."
    return dim if dim.isdigit() else str(axes.get(dim, "_"))


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
    shape = _field_shapes(Batch)["scene_id"]
    _check_shape(f"{name}.scene_id", batch.scene_id, shape, axes)
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
            f"images' {axes['b']}"
        )
    if (cameras.height, cameras.width) != (axes["h"], axes["w"]):
        raise ValueError(
            f"{name}.cameras: made for {cameras.width} x {cameras.height} px, but the "
            f"images are {axes['w']} x {axes['h']}: resize Ks with the images"
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
