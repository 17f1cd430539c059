"""Loss terms by name, and the frozen networks that some of them look through."""

from facelift_jax.losses.networks import asks_for_lpips, check_networks, load_networks
from facelift_jax.losses.perceptual import check_vgg19, load_vgg19, vgg19_shapes
from facelift_jax.losses.terms import (
    TERMS,
    describe_weights,
    is_used,
    validate_weights,
    weighted_loss,
    weights_at,
)

__all__ = [
    "TERMS",
    "asks_for_lpips",
    "check_networks",
    "check_vgg19",
    "describe_weights",
    "is_used",
    "load_networks",
    "load_vgg19",
    "validate_weights",
    "vgg19_shapes",
    "weighted_loss",
    "weights_at",
]
