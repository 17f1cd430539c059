"""Gaussians and cameras to images, differentiably."""

from facelift_jax.render.api import BACKENDS, render
from facelift_jax.render.config import RenderConfig

__all__ = ["BACKENDS", "RenderConfig", "render"]
