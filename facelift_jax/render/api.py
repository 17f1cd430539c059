"""`render`: input checks, choice of backend, batching and background."""

import functools
import logging
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from facelift_jax.geometry.numerics import Array, safe_divide
from facelift_jax.render import rasterize_pallas, rasterize_reference, rasterize_xla
from facelift_jax.render.batching import map_scenes, unify_varying_axes
from facelift_jax.render.config import RenderConfig
from facelift_jax.render.projection import project
from facelift_jax.render.splats import Pixels, Splats
from facelift_jax.structs import Cameras, Gaussians, RenderOutput, check

_RASTERIZERS = {
    "reference": rasterize_reference.rasterize,
    "xla": rasterize_xla.rasterize,
    "pallas": rasterize_pallas.rasterize,
}

BACKENDS = tuple(_RASTERIZERS)

_log = logging.getLogger(__name__)


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Float[Array, "..."] | None = None,
    *,
    config: RenderConfig = RenderConfig(),
    backend: str | None = None,
) -> RenderOutput:
    """Renders every scene of Gaussians from each of its cameras.

    Differentiable with respect to means, quats, scales, opacities, sh, viewmats and
    background. Works under jit, grad, vmap, pmap and shard_map. Repeated runs give the
    same bits.

    Args:
      gaussians: over [*b], world frame; float32, or float64 with backend "reference".
      cameras: over [*b v]; viewmats from world to camera, Ks in pixels.
      background: RGB in [0, 1], [3] or [*b v 3]; None is black.
      config: cut-offs, blur, caps and tile size.
      backend: "reference", "xla", "pallas", or None for the fastest on the default
        device. To compute on the CPU of a machine with a GPU, pass "xla". A named
        backend runs or raises; there is no fallback.

    Returns:
      RenderOutput over [*b v].

    Raises:
      ValueError: unknown backend, or shapes or dtypes that do not match.
      NotImplementedError: the backend cannot run on the program's platform.
    """
    backend = _choose_backend(backend)
    lead = _check_axes(gaussians, cameras)
    dtype = _check_dtypes(gaussians, cameras, backend)
    background = _check_background(background, lead, dtype)
    splats = project_all(gaussians, cameras, lead, config, backend)
    splats = unify_varying_axes(splats)
    pixels = _RASTERIZERS[backend](splats, cameras.width, cameras.height, config)
    return _add_background(pixels, background, lead)


def _choose_backend(backend: str | None) -> str:
    if backend is None:
        backend = "pallas" if _has_nvidia_gpu() else "xla"
        _log_choice(backend)
    if backend not in BACKENDS:
        choices = ", ".join(f'"{name}"' for name in BACKENDS)
        raise ValueError(
            f'render: unknown backend "{backend}"; choose one of {choices}'
        )
    return backend


def _has_nvidia_gpu() -> bool:
    """Whether the default device is an NVIDIA GPU, Ampere or newer."""
    device = jax.default_device.value or jax.devices()[0]
    device = jax.devices(device)[0] if isinstance(device, str) else device
    capability = getattr(device, "compute_capability", "")  # AMD's contain letters
    return capability.replace(".", "").isdigit() and float(capability) >= 8.0


@functools.cache  # once per process
def _log_choice(backend: str) -> None:
    _log.info('rendering with backend "%s"', backend)


def _check_axes(gaussians: Gaussians, cameras: Cameras) -> tuple[int, ...]:
    """Leading axes [*b v] of the images."""
    scenes = check(gaussians, "gaussians")["b"]
    views = check(cameras, "cameras")["b"]
    if len(views) != len(scenes) + 1 or views[:-1] != scenes:
        raise ValueError(
            f"cameras: expected leading axes {(*scenes, 'v')} (the gaussians' axes, "
            f"then views), found {views}"
        )
    for name in ("width", "height"):
        size = getattr(cameras, name)
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"cameras.{name}: expected an int >= 1, found {size!r}")
    return views


def _check_dtypes(gaussians: Gaussians, cameras: Cameras, backend: str) -> jnp.dtype:
    dtype = gaussians.means.dtype
    allowed = ("float32", "float64") if backend == "reference" else ("float32",)
    if dtype not in allowed:
        raise ValueError(
            f'gaussians.means: backend "{backend}" computes in {" or ".join(allowed)}, '
            f"found {dtype}; convert the Gaussians"
        )
    fields = {
        "gaussians.quats": gaussians.quats,
        "gaussians.scales": gaussians.scales,
        "gaussians.opacities": gaussians.opacities,
        "gaussians.sh": gaussians.sh,
        "cameras.viewmats": cameras.viewmats,
        "cameras.Ks": cameras.Ks,
    }
    for name, array in fields.items():
        if array.dtype != dtype:
            raise ValueError(
                f"{name}: expected {dtype} like gaussians.means, found {array.dtype}"
            )
    return dtype


def _check_background(background, lead: tuple[int, ...], dtype: jnp.dtype):
    """Background color over [*b v 3]."""
    if background is None:
        return jnp.zeros((*lead, 3), dtype)
    background = jnp.asarray(background)
    if background.shape not in ((3,), (*lead, 3)):
        raise ValueError(
            f"background: expected shape (3,) or {(*lead, 3)}, found {background.shape}"
        )
    if background.dtype != dtype:
        raise ValueError(
            f"background: expected {dtype} like the Gaussians, found {background.dtype}"
        )
    return jnp.broadcast_to(background, (*lead, 3))


def project_all(
    gaussians: Gaussians,
    cameras: Cameras,
    lead: tuple[int, ...],
    config: RenderConfig,
    backend: str,
) -> Splats:
    """Splats [i n ...] of all i = scenes x views images, the input of a rasterizer.

    Only the Gaussians are saved for the backward pass, which projects them again.
    """
    scenes, views = math.prod(lead[:-1]), lead[-1]
    gaussians = jax.tree.map(
        lambda x: jnp.reshape(x, (scenes, *x.shape[len(lead) - 1 :])), gaussians
    )
    cameras = jax.tree.map(
        lambda x: jnp.reshape(x, (scenes, views, *x.shape[len(lead) :])), cameras
    )

    def project_scene(scene):
        gaussians, cameras = scene
        return jax.vmap(lambda camera: project(gaussians, camera, config))(cameras)

    if backend == "pallas":
        splats = map_scenes(project_scene, unify_varying_axes((gaussians, cameras)))
    else:
        splats = jax.vmap(jax.checkpoint(project_scene))((gaussians, cameras))
    return jax.tree.map(lambda x: x.reshape(scenes * views, *x.shape[2:]), splats)


def _add_background(pixels: Pixels, background, lead: tuple[int, ...]) -> RenderOutput:
    pixels = jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), pixels)
    transmittances = pixels.transmittances[..., None]
    alphas = 1 - transmittances
    return RenderOutput(
        colors=pixels.colors + transmittances * background[..., None, None, :],
        alphas=alphas,
        depths=safe_divide(pixels.depths[..., None], alphas),
        dropped=pixels.dropped,
    )
