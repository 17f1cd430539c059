"""Reconstruction without a network: the visual hull, and refinement by rendering."""

from facelift_jax.reconstruction.hull import hull_surface, visual_hull
from facelift_jax.reconstruction.refine import (
    NUM_STEPS,
    refine,
    refine_hull,
    subdivide,
)

__all__ = [
    "NUM_STEPS",
    "hull_surface",
    "refine",
    "refine_hull",
    "subdivide",
    "visual_hull",
]
