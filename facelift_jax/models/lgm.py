"""LGM: an asymmetric U-Net with attention across views (Tang et al., ECCV 2024).

Every pixel of every view's output map is one Gaussian. LGM predicts absolute positions,
the `mini` variant predicts offsets from the pixels' rays. Modules have the names of the
published checkpoints: `unet/down_blocks_0/nets_0/conv1/kernel` is
`unet.down_blocks.0.nets.0.conv1.weight`.
"""

from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from facelift_jax.geometry.rays import nearest_point_rays, plucker_rays
from facelift_jax.models import layers
from facelift_jax.models.heads import LGM_HEADS, activate, adjusted, num_channels
from facelift_jax.models.inputs import check_square
from facelift_jax.structs import Cameras, Gaussians, Views

IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet, as torchvision documents it
IMAGE_STD = (0.229, 0.224, 0.225)

_LRM = {
    "down_channels": (64, 128, 256, 512, 1024, 1024),
    "down_attention": (False, False, False, True, True, True),
    "mid_attention": True,
    "up_channels": (1024, 1024, 512, 256),
    "up_attention": (True, True, True, False),
}

# The first four are options of the released code (3DTopia/LGM, core/options.py); `big`
# has released weights. The output map's side is input / 2^(down blocks - up blocks).
VARIANTS: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "lrm": _LRM,
        "small": _LRM,
        "big": {
            **_LRM,
            "up_channels": (1024, 1024, 512, 256, 128),
            "up_attention": (True, True, True, False, False),
        },
        "tiny": {
            "down_channels": (32, 64, 128, 256, 512),
            "down_attention": (False, False, False, False, True),
            "mid_attention": True,
            "up_channels": (512, 256, 128),
            "up_attention": (True, False, False),
        },
        # Not in the released code: small enough for two CPU cores. Because positions
        # are relative to the rays, it learns a surface within minutes of training; LGM
        # needs days. The output map has half the input's side.
        "mini": {
            "anchor": "ray",
            "down_channels": (16, 32, 32, 96),
            "down_attention": (False, False, False, True),
            "mid_attention": True,
            "up_channels": (96, 32, 32),
            "up_attention": (True, False, False),
            "num_heads": 4,
            "num_groups": 8,
            "layers_per_block": 1,
        },
    }
)

# Ordered (regex, value) rules for parameter names. None freezes a parameter, a number
# scales its learning rate. `late_decoder` trains all up blocks except the first two;
# there are five (big), four (small, lrm) or three.
FREEZE_PRESETS: MappingProxyType[str, tuple[tuple[str, float | None], ...]] = (
    MappingProxyType(
        {
            "none": ((r"^.*$", 1.0),),
            "encoder_mid": (
                (r"^unet/(conv_in|down_blocks_\d+|mid_block)/.*$", None),
                (r"^.*$", 1.0),
            ),
            "late_decoder": (
                (r"^unet/(conv_in|down_blocks_\d+|mid_block)/.*$", None),
                (r"^unet/up_blocks_[01]/.*$", None),
                (r"^.*$", 1.0),
            ),
            "last_layer": (
                (r"^(unet/conv_out|conv)/.*$", 1.0),
                (r"^.*$", None),
            ),
        }
    )
)


class DownBlock(nn.Module):
    """Residual blocks at one resolution, each with attention; then stride 2."""

    features: int
    has_attention: bool
    has_downsample: bool
    num_layers: int
    num_heads: int
    num_groups: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "m h w c"], num_views: int
    ) -> list[Float[Array, "m _ _ c2"]]:
        """All maps for the up blocks; the last one is also the block's output."""
        maps = []
        for j in range(self.num_layers):
            x = layers.ResBlock(
                self.features, self.num_groups, self.dtype, name=f"nets_{j}"
            )(x)
            if self.has_attention:
                x = layers.MultiViewAttention(
                    self.num_heads, self.num_groups, self.dtype, name=f"attns_{j}"
                )(x, num_views)
            maps.append(x)
        if self.has_downsample:
            x = layers.conv(
                x, self.features, stride=2, dtype=self.dtype, name="downsample"
            )
            maps.append(x)
        return maps


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    features: int
    has_attention: bool
    num_heads: int
    num_groups: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "m h w c"], num_views: int
    ) -> Float[Array, "m h w c"]:
        """Keeps the shape."""
        x = layers.ResBlock(self.features, self.num_groups, self.dtype, name="nets_0")(
            x
        )
        if self.has_attention:
            x = layers.MultiViewAttention(
                self.num_heads, self.num_groups, self.dtype, name="attns_0"
            )(x, num_views)
        return layers.ResBlock(
            self.features, self.num_groups, self.dtype, name="nets_1"
        )(x)


class UpBlock(nn.Module):
    """One residual block per skip, each with attention; then twice the resolution."""

    features: int
    has_attention: bool
    has_upsample: bool
    num_heads: int
    num_groups: int
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "m h w c"],
        skips: list[Float[Array, "m h w _"]],
        num_views: int,
    ) -> Float[Array, "m h2 w2 c2"]:
        """Maps [m h w c] to [m 2h 2w features]; the last block keeps h and w."""
        for j, skip in enumerate(skips):
            x = layers.ResBlock(
                self.features, self.num_groups, self.dtype, name=f"nets_{j}"
            )(jnp.concatenate([x, skip], axis=-1))
            if self.has_attention:
                x = layers.MultiViewAttention(
                    self.num_heads, self.num_groups, self.dtype, name=f"attns_{j}"
                )(x, num_views)
        if self.has_upsample:
            x = layers.upsample_nearest(x)
            x = layers.conv(x, self.features, dtype=self.dtype, name="upsample")
        return x


class UNet(nn.Module):
    """Down, mid and up blocks around one stack of skips; the first ones stay unused."""

    down_channels: tuple[int, ...]
    down_attention: tuple[bool, ...]
    mid_attention: bool
    up_channels: tuple[int, ...]
    up_attention: tuple[bool, ...]
    layers_per_block: int
    num_heads: int
    num_groups: int
    out_channels: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "m h w c"], num_views: int
    ) -> Float[Array, "m s s c2"]:
        """Maps [m h w c] to float32 [m s s out_channels]."""
        shared = {
            "num_heads": self.num_heads,
            "num_groups": self.num_groups,
            "dtype": self.dtype,
        }
        x = layers.conv(x, self.down_channels[0], dtype=self.dtype, name="conv_in")
        stack = [x]
        for i, features in enumerate(self.down_channels):
            block = DownBlock(
                features,
                has_attention=self.down_attention[i],
                has_downsample=i + 1 < len(self.down_channels),
                num_layers=self.layers_per_block,
                name=f"down_blocks_{i}",
                **shared,
            )
            stack += block(stack[-1], num_views)
        x = MidBlock(
            self.down_channels[-1], self.mid_attention, name="mid_block", **shared
        )(stack[-1], num_views)
        for i, features in enumerate(self.up_channels):
            block = UpBlock(
                features,
                has_attention=self.up_attention[i],
                has_upsample=i + 1 < len(self.up_channels),
                name=f"up_blocks_{i}",
                **shared,
            )
            skips = [stack.pop() for _ in range(self.layers_per_block + 1)]
            x = block(x, skips, num_views)
        # float32 from here on: half precision would put Gaussians on a coarse grid
        x = nn.silu(layers.GroupNorm(self.num_groups, name="norm_out")(x))
        return layers.conv(x, self.out_channels, name="conv_out")


def resized(cameras: Cameras, side: int) -> Cameras:
    """The same cameras for square images of another side, in pixels."""
    scale = jnp.asarray([side / cameras.width, side / cameras.height, 1.0], jnp.float32)
    Ks = cameras.Ks * jnp.broadcast_to(scale[:, None], cameras.Ks.shape)
    return Cameras(cameras.viewmats, Ks, side, side)


class Model(nn.Module):
    """LGM; see VARIANTS.

    Attributes:
      down_channels: channels of each down block.
      down_attention: whether each down block has attention.
      mid_attention: whether the mid block has attention.
      up_channels: channels of each up block.
      up_attention: whether each up block has attention.
      layers_per_block: residual blocks per down block; up blocks have one more.
      num_heads: heads of every attention layer.
      num_groups: groups of every group normalization.
      anchor: what predicted positions are relative to: "origin", the world's origin
        (LGM), or "ray", the point nearest the origin on the ray of the pixel.
      scale_factor: factor on all scales; 1 in LGM.
      opacity_logit: added to the logits of all opacities; 0 in LGM.
      dtype: type of the U-Net's arithmetic.
    """

    down_channels: tuple[int, ...]
    down_attention: tuple[bool, ...]
    mid_attention: bool
    up_channels: tuple[int, ...]
    up_attention: tuple[bool, ...]
    layers_per_block: int = 2
    num_heads: int = 16
    num_groups: int = 32
    anchor: str = "origin"
    scale_factor: float = 1.0
    opacity_logit: float = 0.0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Raises ValueError if the sizes do not fit together."""
        _check_sizes(self)
        super().__post_init__()

    @property
    def stride(self) -> int:
        """Input sides in pixels must be multiples of this."""
        return 2 ** (len(self.down_channels) - 1)

    @property
    def freeze_presets(self) -> dict[str, tuple[tuple[str, float | None], ...]]:
        """Rules for freezing parameters, by the name of the preset."""
        return dict(FREEZE_PRESETS)

    def source_views(self, num_views: int, side: int) -> Int[np.ndarray, "n"]:
        """The input view of each Gaussian, for inputs of `side` pixels."""
        splat_side = side // self.stride * 2 ** (len(self.up_channels) - 1)
        return np.repeat(np.arange(num_views), splat_side**2)

    @nn.compact
    def __call__(self, inputs: Views) -> tuple[Gaussians, dict[str, Array]]:
        """Images with cameras to b scenes of v * s * s Gaussians in the world frame.

        Args:
          inputs: square images over [b v] for any v >= 1.

        Returns:
          Gaussians, where number (view * s + row) * s + column belongs to that pixel of
          the output map, and `aux["raw"]` [b v s s 14], the network's output before
          activation. All are float32, whatever `dtype` is.

        Raises:
          ValueError: the network does not support the shape, size or type of the
            images.
        """
        b, v, side = check_square(inputs, self.stride, "the stride of the U-Net")
        mean = jnp.asarray(IMAGE_MEAN, jnp.float32)[None, None, None, None]
        std = jnp.asarray(IMAGE_STD, jnp.float32)[None, None, None, None]
        x = jnp.concatenate(
            [(inputs.images - mean) / std, plucker_rays(inputs.cameras)], axis=-1
        )
        raw = UNet(
            self.down_channels,
            self.down_attention,
            self.mid_attention,
            self.up_channels,
            self.up_attention,
            self.layers_per_block,
            self.num_heads,
            self.num_groups,
            out_channels=num_channels(LGM_HEADS),
            dtype=self.dtype,
            name="unet",
        )(x.reshape(b * v, side, side, -1), v)
        raw = layers.conv(raw, num_channels(LGM_HEADS), 1, name="conv")
        raw = raw.reshape(b, v, *raw.shape[1:])
        placed = raw
        if self.anchor == "ray":
            points = nearest_point_rays(resized(inputs.cameras, raw.shape[-2]))[..., 3:]
            placed = jnp.concatenate([points + raw[..., :3], raw[..., 3:]], axis=-1)
        heads = adjusted(LGM_HEADS, self.scale_factor, self.opacity_logit)
        gaussians = activate(placed.reshape(b, -1, placed.shape[-1]), heads)
        return gaussians, {"raw": raw}


def _check_sizes(model: Model) -> None:
    """Raises ValueError if the sizes of the blocks do not fit together."""
    if model.anchor not in ("origin", "ray"):
        raise ValueError(f"lgm: anchor={model.anchor!r}: choose origin or ray")
    for name in ("layers_per_block", "num_heads", "num_groups"):
        if getattr(model, name) < 1:
            raise ValueError(f"lgm: {name}={getattr(model, name)}: must be at least 1")
    if not model.scale_factor > 0:
        raise ValueError(f"lgm: scale_factor={model.scale_factor}: must be positive")
    down, up = tuple(model.down_channels), tuple(model.up_channels)
    for name, channels, attention in (
        ("down", down, model.down_attention),
        ("up", up, model.up_attention),
    ):
        if len(channels) != len(attention) or not channels:
            raise ValueError(
                f"lgm: {name}_channels has {len(channels)} entries, {name}_attention "
                f"{len(attention)}; give one of each per block"
            )
        wrong = [c for c in channels if c < 1 or c % model.num_groups]
        if wrong:
            raise ValueError(
                f"lgm: {name}_channels {channels}: {wrong[0]} is not a multiple of the "
                f"{model.num_groups} normalization groups"
            )
        wrong = [c for c, on in zip(channels, attention, strict=True) if on]
        wrong += [down[-1]] if model.mid_attention else []
        wrong = [c for c in wrong if c % model.num_heads]
        if wrong:
            raise ValueError(
                f"lgm: {name}_channels {channels}: attention at {wrong[0]} channels is "
                f"not a multiple of the {model.num_heads} heads"
            )
    if up != down[::-1][: len(up)]:
        raise ValueError(
            f"lgm: up_channels {up} must repeat the end of down_channels {down} in "
            f"reverse, here {down[::-1][: len(up)]}: skips connect blocks of equal "
            "width"
        )
