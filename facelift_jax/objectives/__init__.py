"""Numbers about a rendering: loss terms to train on and metrics to judge by."""

from facelift_jax.objectives.image_metrics import (
    DEFINITIONS,
    METRICS,
    object_radius,
    reduce_metrics,
    ssim,
    view_metrics,
)
from facelift_jax.objectives.losses import (
    TERMS,
    describe_weights,
    is_used,
    validate_weights,
    weighted_loss,
    weights_at,
)
from facelift_jax.objectives.lpips import load_lpips
from facelift_jax.objectives.networks import (
    asks_for_lpips,
    check_networks,
    load_networks,
)
from facelift_jax.objectives.perceptual import check_vgg19, load_vgg19, vgg19_shapes

__all__ = [
    "DEFINITIONS",
    "METRICS",
    "TERMS",
    "asks_for_lpips",
    "check_networks",
    "check_vgg19",
    "describe_weights",
    "is_used",
    "load_lpips",
    "load_networks",
    "load_vgg19",
    "object_radius",
    "reduce_metrics",
    "ssim",
    "validate_weights",
    "vgg19_shapes",
    "view_metrics",
    "weighted_loss",
    "weights_at",
]
