"""Low-rank adapters of linear maps: LoRA (Hu et al., ICLR 2022)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from facelift_jax.geometry.numerics import einsum
from facelift_jax.models.layers import uniform_fan_in


class LoRADense(nn.Module):
    """A linear map with the product of two thin matrices added to its kernel.

    Equation 3 of the paper with alpha = r. The product is zero at first. The parameters
    of `base` and the adapters are in one dictionary.
    """

    base: nn.Dense
    rank: int

    def setup(self) -> None:
        """Makes `base` share this module's scope."""
        nn.share_scope(self, self.base)

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d2"]:
        """Maps [b l d] to [b l base.features]."""
        x = x.astype(self.base.dtype)
        y = self.base(x)
        before, rank, after = x.shape[-1], self.rank, self.base.features
        down, zeros = uniform_fan_in(before), nn.initializers.zeros
        a = self.param("adapter_a", down, (before, rank), jnp.float32)
        b = self.param("adapter_b", zeros, (rank, after), jnp.float32)
        return y + (x @ a.astype(x.dtype)) @ b.astype(x.dtype)


def merge_adapters(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of an equivalent network without adapters."""
    merged = {
        name: merge_adapters(value) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if name not in ("adapter_a", "adapter_b")
    }
    if "adapter_a" in params:
        product = einsum("ir,ro->io", params["adapter_a"], params["adapter_b"])
        merged["kernel"] = params["kernel"] + product
    return merged
