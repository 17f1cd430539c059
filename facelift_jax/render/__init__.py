"""Differentiable rendering of 3D Gaussians."""

from facelift_jax.render.api import BACKENDS, render
from facelift_jax.render.config import RenderConfig

__all__ = ["BACKENDS", "RenderConfig", "render"]
