"""GS-LRM: a transformer over the patches of all views (Zhang et al., ECCV 2024).

It follows FaceLift's released reconstructor (Lyu et al., 2024). Every pixel of every
view is one Gaussian on its ray, and a few learned tokens are Gaussians too. The tokens
of all views attend to each other in every block.
"""

import math
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from facelift_jax.geometry.rays import nearest_point_rays
from facelift_jax.models.attention import attend, is_attention
from facelift_jax.models.heads import GSLRM_HEADS, activate, adjusted, num_channels
from facelift_jax.models.inputs import check_square
from facelift_jax.models.layers import NORM_EPS, gelu
from facelift_jax.models.lora import LoRADense
from facelift_jax.structs import Gaussians, Views

INIT_STD = 0.02  # of every linear map and the learned tokens
REACH = 1.8  # largest distance of a Gaussian from its ray's point nearest the origin

# `facelift` is the released network; `small` and `mini` exist only in this package.
VARIANTS: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "facelift": {"width": 1024, "depth": 24},
        "small": {"width": 512, "depth": 12},
        "mini": {"width": 128, "depth": 4, "head_dim": 32},
    }
)

Rules = tuple[tuple[str, float | None], ...]
_DECAY = 0.9  # `layer_decay`: factor on the learning rate per block towards the input
_TOKENS = r"^(patch_embedder|global_tokens|input_norm)(/.*)?$"
_HEADS, _REST = r"^(global|pixel)_head/.*$", r"^.*$"


def freeze_presets(depth: int) -> dict[str, Rules]:
    """Presets of ordered (regex, value) rules for a network of `depth` blocks.

    A regex matches parameter names. The value None freezes a parameter, a number scales
    its learning rate. `lora` is for networks with `adapter_rank`.
    """

    def blocks(first: int, end: int) -> str:
        return rf"^block_({'|'.join(f'{i:02d}' for i in range(first, end))})/.*$"

    half, last_quarter = math.ceil(depth / 2), depth - math.ceil(depth / 4)
    decayed = ((blocks(i, i + 1), _DECAY ** (depth - 1 - i)) for i in range(depth))
    return {
        "none": ((_REST, 1.0),),
        "first_half": ((_TOKENS, None), (blocks(0, half), None), (_REST, 1.0)),
        "last_quarter": (
            (blocks(last_quarter, depth), 1.0),
            (_HEADS, 1.0),
            (_REST, None),
        ),
        "heads": ((_HEADS, 1.0), (_REST, None)),
        "layer_decay": ((_TOKENS, _DECAY**depth), *decayed, (_HEADS, 1.0)),
        "lora": ((r"^.*/adapter_[ab]$", 1.0), (_REST, None)),
    }


class LayerNorm(nn.Module):
    """Normalizes the last axis with a gain and no bias, in float32.

    `nn.LayerNorm` is not used because it first multiplies the gain by 1/std: gradients
    of six blocks over 6 views of 512 px then take 133.2 ms instead of 132.3 ms (H200).
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Keeps the shape; float32."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        variance = jnp.mean(x * x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(variance + NORM_EPS) * scale[None, None]


def _dense(features: int, name: str, dtype: Any = jnp.float32, rank: int = 0):
    """A linear map without bias, with low-rank adapters if `rank` is positive."""
    init = nn.initializers.normal(INIT_STD)
    settings = {"use_bias": False, "dtype": dtype, "kernel_init": init}
    if rank:
        return LoRADense(nn.Dense(features, **settings, parent=None), rank, name=name)
    return nn.Dense(features, **settings, name=name)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, no biases."""

    head_dim: int
    implementation: str | None
    adapter_rank: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Keeps the shape; the output has the module's `dtype`."""
        b, length, width = x.shape
        qkv = _dense(3 * width, "qkv", self.dtype, self.adapter_rank)(x)
        qkv = qkv.reshape(b, length, 3, width // self.head_dim, self.head_dim)
        q, k, v = (qkv[:, :, j] for j in range(3))
        x = attend(q, k, v, self.implementation).reshape(b, length, width)
        return _dense(width, "fc", self.dtype, self.adapter_rank)(x)


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); the sums in float32."""

    head_dim: int
    implementation: str | None
    adapter_rank: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Keeps the shape; float32."""
        width = x.shape[-1]
        attention = Attention(
            self.head_dim,
            self.implementation,
            self.adapter_rank,
            self.dtype,
            name="attn",
        )
        x = x + attention(LayerNorm(name="norm1")(x)).astype(jnp.float32)
        h = LayerNorm(name="norm2")(x)
        h = _dense(4 * width, "mlp_in", self.dtype, self.adapter_rank)(h)
        h = _dense(width, "mlp_out", self.dtype, self.adapter_rank)(gelu(h))
        return x + h.astype(jnp.float32)


class GaussianHead(nn.Module):
    """Normalized tokens to raw Gaussian channels.

    Computed in float32: half precision would put Gaussians on a coarse grid.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l f"]:
        """Maps [b l d] to [b l features]."""
        return _dense(self.features, "linear")(LayerNorm(name="norm")(x))


def to_patches(x: Float[Array, "b v s s c"], size: int) -> Float[Array, "b l p"]:
    """Square patches as tokens (view, patch row, patch column).

    The values of a token are ordered (row, column, channel), channel fastest.
    """
    b, v, side, _, channels = x.shape
    per_side = side // size
    x = x.reshape(b, v, per_side, size, per_side, size, channels)
    return x.swapaxes(3, 4).reshape(b, v * per_side**2, size**2 * channels)


def from_patches(x: Float[Array, "b l p"], views: int, size: int) -> Array:
    """The inverse of `to_patches`: [b v s s c] images of all views."""
    b, length, width = x.shape
    per_side = math.isqrt(length // views)
    x = x.reshape(b, views, per_side, per_side, size, size, width // size**2)
    return x.swapaxes(3, 4).reshape(b, views, per_side * size, per_side * size, -1)


class Model(nn.Module):
    """GS-LRM; see VARIANTS.

    Attributes:
      width: channels of a token.
      depth: number of blocks.
      head_dim: width of one attention head.
      patch_size: side of a patch, pixels.
      num_global: number of learned tokens, each of which is a Gaussian.
      scale_factor: factor on all scales and their cap; 1 in the original.
      attention: an implementation of `attention.attend`; None for the fastest that
        supports the inputs.
      adapter_rank: rank of LoRA adapters on the blocks' matrices; 0 for none. The
        preset "lora" trains only the adapters; `lora.merge_adapters` adds them to the
        kernels.
      remat: recompute the intermediate values of a block in the backward pass, except
        the result of attention, instead of saving them.
      dtype: type of the blocks' arithmetic.
    """

    width: int
    depth: int
    head_dim: int = 64
    patch_size: int = 8
    num_global: int = 2
    scale_factor: float = 1.0
    attention: str | None = None
    remat: bool = False
    adapter_rank: int = 0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Raises ValueError if a size is out of range or does not fit the others."""
        for name in ("width", "depth", "head_dim", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"gslrm: {name}={getattr(self, name)}: must be >= 1")
        for name in ("num_global", "adapter_rank"):
            if getattr(self, name) < 0:
                raise ValueError(f"gslrm: {name}={getattr(self, name)}: must be >= 0")
        if not self.scale_factor > 0:
            raise ValueError(
                f"gslrm: scale_factor={self.scale_factor}: must be positive"
            )
        if self.width % self.head_dim:
            raise ValueError(
                f"gslrm: width={self.width} is not a multiple of head_dim="
                f"{self.head_dim}"
            )
        super().__post_init__()

    @property
    def stride(self) -> int:
        """Input sides in pixels must be multiples of this."""
        return self.patch_size

    @property
    def freeze_presets(self) -> dict[str, Rules]:
        """Rules for freezing parameters, by the name of the preset."""
        return freeze_presets(self.depth)

    def source_views(self, num_views: int, side: int) -> Int[np.ndarray, "n"]:
        """The input view of each Gaussian, for inputs of `side` pixels.

        It is -1 for learned Gaussians.
        """
        views = np.repeat(np.arange(num_views), side**2)
        return np.concatenate([np.full(self.num_global, -1), views])

    @nn.compact
    def __call__(self, inputs: Views) -> tuple[Gaussians, dict[str, Array]]:
        """Images with cameras to b scenes of num_global + v * s * s Gaussians each.

        Args:
          inputs: square images over [b v] for any v >= 1.

        Returns:
          Gaussians, the learned ones first, then those of the pixels in the order view,
          patch row, patch column, row, column. `aux["raw"]` [b n 14] is the network's
          output before activation: position, color, scale, rotation, opacity. For
          losses, `aux` also holds the `means` [b v s s 3] of the pixels' Gaussians, the
          `directions` [b v s s 3] of their rays, the cameras' `origins` [b v 3] and the
          input `masks` [b v s s 1]. All are float32, whatever `dtype` is.

        Raises:
          ValueError: the network does not support the shape, size or type of the
            images.
        """
        check_square(inputs, self.stride, "the patch's side")
        rays = jnp.asarray(nearest_point_rays(inputs.cameras))
        x = jnp.concatenate([2 * inputs.images - 1, rays], axis=-1)
        x = self._transform(to_patches(x, self.patch_size))

        aux = {
            "origins": jnp.asarray(inputs.cameras.centers),
            "directions": rays[..., :3],
            "masks": inputs.masks,
        }
        channels = num_channels(GSLRM_HEADS)
        per_token = self.patch_size**2 * channels
        b, num_global = x.shape[0], self.num_global
        pixels = GaussianHead(per_token, name="pixel_head")(x[:, num_global:])
        raw = pixels = pixels.reshape(b, -1, channels)
        rays = to_patches(rays, self.patch_size).reshape(b, -1, 6)
        # the mean of the three position channels is the position along the ray
        along = 2 * jax.nn.sigmoid(pixels[..., :3].mean(-1, keepdims=True)) - 1
        means = rays[..., 3:] + REACH * along * rays[..., :3]
        patches = means.reshape(b, -1, self.patch_size**2 * 3)
        aux["means"] = from_patches(patches, inputs.images.shape[1], self.patch_size)
        placed = jnp.concatenate([means, pixels[..., 3:]], axis=-1)
        if num_global:
            learned = GaussianHead(channels, name="global_head")(x[:, :num_global])
            raw, placed = (jnp.concatenate([learned, y], axis=1) for y in (raw, placed))
        heads = adjusted(GSLRM_HEADS, self.scale_factor)
        return activate(placed, heads), {"raw": raw, **aux}

    def _transform(self, patches: Float[Array, "b l p"]) -> Float[Array, "b l2 d"]:
        """Patches to tokens through all blocks, learned tokens first."""
        x = _dense(self.width, "patch_embedder", self.dtype)(patches)
        x = x.astype(jnp.float32)
        if self.num_global:
            shape = (self.num_global, self.width)
            init = nn.initializers.normal(INIT_STD)
            learned = self.param("global_tokens", init, shape, jnp.float32)
            learned = jnp.broadcast_to(learned[None], (x.shape[0], *shape))
            x = jnp.concatenate([learned, x], axis=1)
        x = LayerNorm(name="input_norm")(x)
        block = nn.remat(Block, policy=is_attention) if self.remat else Block
        for i in range(self.depth):
            x = block(
                self.head_dim,
                self.attention,
                self.adapter_rank,
                self.dtype,
                name=f"block_{i:02d}",
            )(x)
        return x
