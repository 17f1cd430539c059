"""Calibrated images of one object to 3D Gaussians in one forward pass, in JAX."""

__version__ = "0.2.0.dev0"
