"""Loss terms by name, their weights, and the frozen networks that some terms use."""

from facelift_jax.losses.networks import check_networks, load_networks, uses_lpips
from facelift_jax.losses.perceptual import check_vgg19, load_vgg19, vgg19_shapes
from facelift_jax.losses.terms import TERMS, weighted_loss
from facelift_jax.losses.weights import (
    describe_weights,
    is_used,
    term_weights,
    validate_weights,
    weights_at,
)

__all__ = [
    "TERMS",
    "check_networks",
    "check_vgg19",
    "describe_weights",
    "is_used",
    "load_networks",
    "load_vgg19",
    "term_weights",
    "uses_lpips",
    "validate_weights",
    "vgg19_shapes",
    "weighted_loss",
    "weights_at",
]
