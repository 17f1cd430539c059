"""Gaussians and cameras to pictures, differentiably."""

from facelift_jax.render.api import BACKENDS, render
from facelift_jax.render.config import RenderConfig

__all__ = ["BACKENDS", "RenderConfig", "render"]
