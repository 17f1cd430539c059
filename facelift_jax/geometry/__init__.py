"""Cameras, rays and rotations, for NumPy and JAX arrays."""
