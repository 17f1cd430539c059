"""Synthetic six-view rodents: RGBA, exact depth and cameras, ray-cast on the CPU.

In the order of the work on one scene: `scene` (index to parameters), `pose` (parameters
to a mesh), `rigs` (cameras), `coat` and `light` (appearance of the surface), `render`
(rays to pixels), `write` (pixels to files). `generate` makes many scenes in parallel.
"""

from facelift_jax.data.rodent.generate import generate
from facelift_jax.data.rodent.scene import (
    RodentOptions,
    RodentScene,
    make_scene,
    posed_mesh,
    render_images,
    sample_parameters,
)
from facelift_jax.data.rodent.write import read_parameters

__all__ = [
    "RodentOptions",
    "RodentScene",
    "generate",
    "make_scene",
    "posed_mesh",
    "read_parameters",
    "render_images",
    "sample_parameters",
]
