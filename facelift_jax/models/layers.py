"""Convolution, residual block and attention over the views of a scene.

Feature maps are [m h w c] with the views folded into the first axis, m = b * v and
index b * v + view. Parameters are float32, arithmetic is in the module's `dtype`,
normalisation statistics and softmax are float32. Matrix precision is left to
`jax_default_matmul_precision`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from facelift_jax.geometry.numerics import einsum
from facelift_jax.models.attention import attend

RESIDUAL_SCALE = 0.5**0.5  # keeps the variance of a sum of two branches (LGM's U-Net)
GROUP_NORM_EPS = 1e-5  # PyTorch's default; Flax's own is 1e-6


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for weights and biases."""
    bound = fan_in**-0.5

    def init(key: Any, shape: Any, dtype: Any = jnp.float32, **_: Any) -> Any:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@jax.custom_vjp
def gelu(x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    """x P(x), P the standard normal distribution (Hendrycks and Gimpel, 2016).

    In float32 through the error function, which costs a third of its complement. The
    backward pass keeps x alone.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_distribution(wide)).astype(x.dtype)


def _normal_distribution(x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


def _gelu_backward(x: Float[Array, "b l d"], d_y: Float[Array, "b l d"]):
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    slope = _normal_distribution(wide) + wide * density
    return ((d_y.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class Conv(nn.Module):
    """Convolution with bias; `kernel_size // 2` zeros on every side at any stride.

    XLA's "SAME" would pad an even side by (0, 1) at stride 2.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "m h w c"]) -> Float[Array, "m h2 w2 c2"]:
        """Maps [m h w c] to [m h/stride w/stride features]."""
        size, pad = self.kernel_size, self.kernel_size // 2
        shape = (size, size, x.shape[-1], self.features)
        init = uniform_fan_in(size * size * x.shape[-1])
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", init, shape[-1:], jnp.float32)
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + bias.astype(self.dtype)[None, None, None]


class Dense(nn.Module):
    """Linear map of the last axis; `init_std=None` is PyTorch's default.

    With `adapter_rank` a product of two thin matrices is added to the kernel, zero at
    first (LoRA: Hu et al., ICLR 2022, equation 3 with alpha = r).
    """

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    init_std: float | None = None
    adapter_rank: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d2"]:
        """Maps [b l d] to [b l features]."""
        init = uniform_fan_in(x.shape[-1])
        if self.init_std is not None:
            init = nn.initializers.normal(self.init_std)
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape, jnp.float32)
        x = x.astype(self.dtype)
        y = x @ kernel.astype(self.dtype)
        if self.adapter_rank:
            rank, (before, after) = self.adapter_rank, shape
            down = uniform_fan_in(before)
            a = self.param("adapter_a", down, (before, rank), jnp.float32)
            zeros = nn.initializers.zeros
            b = self.param("adapter_b", zeros, (rank, after), jnp.float32)
            y = y + (x @ a.astype(self.dtype)) @ b.astype(self.dtype)
        if not self.use_bias:
            return y
        bias = self.param("bias", init, shape[-1:], jnp.float32)
        return y + bias.astype(self.dtype)[None, None]


def merge_adapters(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the same network without adapters, which computes the same."""
    merged = {
        name: merge_adapters(value) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if name not in ("adapter_a", "adapter_b")
    }
    if "adapter_a" in params:
        product = einsum("ir,ro->io", params["adapter_a"], params["adapter_b"])
        merged["kernel"] = params["kernel"] + product
    return merged


class GroupNorm(nn.Module):
    """Group normalisation over one view's pixels; two-pass float32 statistics."""

    num_groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "m h w c"]) -> Float[Array, "m h w c"]:
        """Normalises each of `num_groups` runs of channels, then scales and shifts."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        x = x - self._group_mean(x)
        variance = self._group_mean(x * x)
        scale = scale[None, None, None] * jax.lax.rsqrt(variance + GROUP_NORM_EPS)
        return (x * scale + bias[None, None, None]).astype(self.dtype)

    def _group_mean(self, x: Float[Array, "m h w c"]) -> Float[Array, "m 1 1 c"]:
        """Mean over pixels and the channels of a group, repeated for its channels."""
        m, _, _, channels = x.shape
        means = x.mean((1, 2)).reshape(m, self.num_groups, -1)
        means = jnp.broadcast_to(means.mean(-1, keepdims=True), means.shape)
        return means.reshape(m, 1, 1, channels)


class ResBlock(nn.Module):
    """(conv2(silu(norm2(conv1(silu(norm1(x)))))) + shortcut(x)) * sqrt(1/2)."""

    features: int
    num_groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "m h w c"]) -> Float[Array, "m h w c2"]:
        """Maps [m h w c] to [m h w features]; 1x1 shortcut where the two differ."""
        h = nn.silu(GroupNorm(self.num_groups, self.dtype, name="norm1")(x))
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h)
        h = nn.silu(GroupNorm(self.num_groups, self.dtype, name="norm2")(h))
        h = Conv(self.features, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, dtype=self.dtype, name="shortcut")(x)
        return (h + x) * RESIDUAL_SCALE


class SelfAttention(nn.Module):
    """Unmasked multi-head self-attention; qkv without bias, projection with bias."""

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Attends over all l tokens of each b; d splits head-major into heads."""
        b, length, d = x.shape
        qkv = Dense(3 * d, use_bias=False, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(b, length, 3, self.num_heads, -1), 2, 0)
        x = attend(q, k, v).reshape(b, length, d)
        return Dense(d, dtype=self.dtype, name="proj")(x)


class MultiViewAttention(nn.Module):
    """(attention(norm(x)) + x) * sqrt(1/2), joint over all pixels of a scene."""

    num_heads: int
    num_groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "m h w c"], num_views: int
    ) -> Float[Array, "m h w c"]:
        """Attends within each run of `num_views` maps; scenes never see each other."""
        m, h, w, c = x.shape
        tokens = GroupNorm(self.num_groups, self.dtype, name="norm")(x)
        tokens = tokens.reshape(m // num_views, num_views * h * w, c)
        tokens = SelfAttention(self.num_heads, self.dtype, name="attn")(tokens)
        return (tokens.reshape(m, h, w, c) + x) * RESIDUAL_SCALE


def upsample_nearest(x: Float[Array, "m h w c"]) -> Float[Array, "m h2 w2 c"]:
    """Doubles height and width by repetition."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
