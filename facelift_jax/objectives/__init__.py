"""Numbers about a rendering: loss terms to train on and metrics to judge by."""

from facelift_jax.objectives.collapse import WATCH_DEFINITIONS, watch_figures
from facelift_jax.objectives.image_metrics import (
    DEFINITIONS,
    METRICS,
    object_radius,
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
from facelift_jax.objectives.shape_metrics import (
    HEALTH_DEFINITIONS,
    OWN_VIEW_DEFINITIONS,
    blend_weights,
    gaussian_health,
    nearest_input_angles,
    own_view_metrics,
)
from facelift_jax.objectives.summaries import (
    by_angle,
    paired_interval,
    scene_figures,
    summarize_scenes,
)
from facelift_jax.objectives.surface import (
    SURFACE_DEFINITIONS,
    surface_metrics,
)
from facelift_jax.objectives.turntable import (
    TURNTABLE_DEFINITIONS,
    turntable_metrics,
)

__all__ = [
    "DEFINITIONS",
    "HEALTH_DEFINITIONS",
    "METRICS",
    "OWN_VIEW_DEFINITIONS",
    "SURFACE_DEFINITIONS",
    "TERMS",
    "TURNTABLE_DEFINITIONS",
    "WATCH_DEFINITIONS",
    "asks_for_lpips",
    "blend_weights",
    "by_angle",
    "check_networks",
    "check_vgg19",
    "describe_weights",
    "gaussian_health",
    "is_used",
    "load_lpips",
    "load_networks",
    "load_vgg19",
    "nearest_input_angles",
    "object_radius",
    "own_view_metrics",
    "paired_interval",
    "scene_figures",
    "ssim",
    "summarize_scenes",
    "surface_metrics",
    "turntable_metrics",
    "validate_weights",
    "vgg19_shapes",
    "view_metrics",
    "watch_figures",
    "weighted_loss",
    "weights_at",
]
