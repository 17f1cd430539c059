"""Synthetic six-view rodents: RGBA, exact depth and cameras, ray-cast on the CPU.

One scene's way, in reading order: `scene` (parameters of an index), `pose`
(parameters to a mesh), `rigs` (cameras), `light` and `coat` (what the surface looks
like), `picture` (rays to pixels), `write` (pixels to files), `dataset` (many scenes).
"""

from facelift_jax.data.rodent.generate import generate
from facelift_jax.data.rodent.scene import (
    Options,
    RodentScene,
    make_scene,
    photograph,
    posed_mesh,
    sample_parameters,
)
from facelift_jax.data.rodent.write import read_parameters

__all__ = [
    "Options",
    "RodentScene",
    "generate",
    "make_scene",
    "photograph",
    "posed_mesh",
    "read_parameters",
    "sample_parameters",
]
