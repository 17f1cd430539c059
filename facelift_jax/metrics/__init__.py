"""Metrics of renderings: per view, per scene and per data set."""

from facelift_jax.metrics.aggregation import (
    AngleBin,
    Timestamp,
    average_views,
    mean_by_angle,
    paired_interval,
    summarize_scenes,
)
from facelift_jax.metrics.collapse import MONITOR_DEFINITIONS, monitor_metrics
from facelift_jax.metrics.image import (
    DEFINITIONS,
    METRICS,
    object_radius,
    ssim,
    view_metrics,
)
from facelift_jax.metrics.lpips import load_lpips
from facelift_jax.metrics.multiview import (
    HEALTH_DEFINITIONS,
    OWN_VIEW_DEFINITIONS,
    blend_weights,
    gaussian_health,
    nearest_input_angles,
    own_view_metrics,
)
from facelift_jax.metrics.surface import SURFACE_DEFINITIONS, surface_metrics
from facelift_jax.metrics.turntable import TURNTABLE_DEFINITIONS, turntable_metrics

__all__ = [
    "DEFINITIONS",
    "HEALTH_DEFINITIONS",
    "METRICS",
    "MONITOR_DEFINITIONS",
    "OWN_VIEW_DEFINITIONS",
    "SURFACE_DEFINITIONS",
    "TURNTABLE_DEFINITIONS",
    "AngleBin",
    "Timestamp",
    "average_views",
    "blend_weights",
    "gaussian_health",
    "load_lpips",
    "mean_by_angle",
    "monitor_metrics",
    "nearest_input_angles",
    "object_radius",
    "own_view_metrics",
    "paired_interval",
    "ssim",
    "summarize_scenes",
    "surface_metrics",
    "turntable_metrics",
    "view_metrics",
]
