"""Numbers about a rendering: loss terms to train on and metrics to judge by."""

from facelift_jax.objectives.image_metrics import (
    DEFINITIONS,
    METRICS,
    object_radius,
    reduce_metrics,
    ssim,
    view_metrics,
)
from facelift_jax.objectives.losses import TERMS, validate_weights, weighted_loss

__all__ = [
    "DEFINITIONS",
    "METRICS",
    "TERMS",
    "object_radius",
    "reduce_metrics",
    "ssim",
    "validate_weights",
    "view_metrics",
    "weighted_loss",
]
