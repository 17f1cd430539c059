"""Convolution, residual block and attention over the views of a scene.

Feature maps are [m h w c]; the first axis holds all views of all scenes, m = b * v, and
map scene * v + view belongs to that view. Parameters are float32, arithmetic is in the
module's `dtype`, normalization statistics and softmax are float32. The precision of
matrix products follows `jax_default_matmul_precision`.

`conv` and `dense` apply the layers of `flax.linen` with PyTorch's initial values. They
are called in the `nn.compact` method of the module that owns their parameters.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from facelift_jax.models.attention import attend

RESIDUAL_SCALE = 0.5**0.5  # keeps the variance of a sum of two branches (LGM's U-Net)
NORM_EPS = 1e-5  # PyTorch's default; Flax's is 1e-6


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for weights and biases."""
    bound = fan_in**-0.5

    def init(key: Any, shape: Any, dtype: Any = jnp.float32, **_: Any) -> Any:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(
    x: Float[Array, "m h w c"],
    features: int,
    kernel_size: int = 3,
    stride: int = 1,
    *,
    dtype: Any = jnp.float32,
    name: str,
) -> Float[Array, "m h2 w2 c2"]:
    """Convolution with bias, from [m h w c] to [m h/stride w/stride features].

    It pads `kernel_size // 2` zeros on every side. Flax's "SAME" would pad an even side
    by (0, 1) at stride 2.
    """
    init = uniform_fan_in(kernel_size**2 * x.shape[-1])
    layer = nn.Conv(
        features,
        (kernel_size, kernel_size),
        stride,
        padding=kernel_size // 2,
        dtype=dtype,
        kernel_init=init,
        bias_init=init,
        name=name,
    )
    return layer(x)


def dense(
    x: Float[Array, "b l d"],
    features: int,
    use_bias: bool = True,
    *,
    dtype: Any = jnp.float32,
    name: str,
) -> Float[Array, "b l d2"]:
    """Linear map of the last axis, from [b l d] to [b l features]."""
    init = uniform_fan_in(x.shape[-1])
    layer = nn.Dense(
        features, use_bias, dtype, kernel_init=init, bias_init=init, name=name
    )
    return layer(x)


class GroupNorm(nn.Module):
    """Group normalization over the pixels of one map; two-pass float32 statistics.

    Not `flax.linen.GroupNorm`: with it LGM's gradients on 8 scenes peak at 14.9 GiB
    instead of 14.2 (one H200).
    """

    num_groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "m h w c"]) -> Float[Array, "m h w c"]:
        """Normalizes each of `num_groups` runs of channels, then scales and shifts."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        x = x - self._group_mean(x)
        variance = self._group_mean(x * x)
        scale = scale[None, None, None] * jax.lax.rsqrt(variance + NORM_EPS)
        return (x * scale + bias[None, None, None]).astype(self.dtype)

    def _group_mean(self, x: Float[Array, "m h w c"]) -> Float[Array, "m 1 1 c"]:
        """Mean over pixels and the channels of a group, repeated for its channels."""
        m, _, _, channels = x.shape
        means = x.mean((1, 2)).reshape(m, self.num_groups, -1)
        means = jnp.broadcast_to(means.mean(-1, keepdims=True), means.shape)
        return means.reshape(m, 1, 1, channels)


@jax.custom_vjp
def gelu(x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    """x P(x), P the standard normal distribution (Hendrycks and Gimpel, 2016).

    Computed in float32 with the error function, which takes a third of the time of
    `erfc`, the complement that `jax.nn.gelu` uses. Only x is saved for the backward
    pass.
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


class ResBlock(nn.Module):
    """(conv2(silu(norm2(conv1(silu(norm1(x)))))) + shortcut(x)) * sqrt(1/2)."""

    features: int
    num_groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "m h w c"]) -> Float[Array, "m h w c2"]:
        """Maps [m h w c] to [m h w features]; if c = features, shortcut(x) = x."""
        h = nn.silu(GroupNorm(self.num_groups, self.dtype, name="norm1")(x))
        h = conv(h, self.features, dtype=self.dtype, name="conv1")
        h = nn.silu(GroupNorm(self.num_groups, self.dtype, name="norm2")(h))
        h = conv(h, self.features, dtype=self.dtype, name="conv2")
        if x.shape[-1] != self.features:
            x = conv(x, self.features, 1, dtype=self.dtype, name="shortcut")
        return (h + x) * RESIDUAL_SCALE


class SelfAttention(nn.Module):
    """Unmasked multi-head self-attention; qkv without bias, projection with bias."""

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Attends over all l tokens of each b; d is the concatenation of the heads."""
        b, length, d = x.shape
        qkv = dense(x, 3 * d, use_bias=False, dtype=self.dtype, name="qkv")
        q, k, v = jnp.moveaxis(qkv.reshape(b, length, 3, self.num_heads, -1), 2, 0)
        x = attend(q, k, v).reshape(b, length, d)
        return dense(x, d, dtype=self.dtype, name="proj")


class MultiViewAttention(nn.Module):
    """(attention(norm(x)) + x) * sqrt(1/2), joint over all pixels of a scene."""

    num_heads: int
    num_groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "m h w c"], num_views: int
    ) -> Float[Array, "m h w c"]:
        """Attends within each run of `num_views` maps; scenes never mix."""
        m, h, w, c = x.shape
        tokens = GroupNorm(self.num_groups, self.dtype, name="norm")(x)
        tokens = tokens.reshape(m // num_views, num_views * h * w, c)
        tokens = SelfAttention(self.num_heads, self.dtype, name="attn")(tokens)
        return (tokens.reshape(m, h, w, c) + x) * RESIDUAL_SCALE


def upsample_nearest(x: Float[Array, "m h w c"]) -> Float[Array, "m h2 w2 c"]:
    """Doubles height and width by repetition."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
