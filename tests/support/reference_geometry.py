"""Geometry that only tests need: definitions and the frames of other programs."""

import numpy as np

from facelift_jax.geometry.rigid import opengl_to_opencv_c2w
from facelift_jax.geometry.rotations import quat_to_matrix


def covariances(quats, scales):
    """R diag(s)^2 R^T [*b 3 3] of quaternions [*b 4] and scales [*b 3], as NumPy."""
    factors = np.asarray(quat_to_matrix(quats)) * np.asarray(scales)[..., None, :]
    return np.einsum("...ij,...kj->...ik", factors, factors)


def blender_to_opengl_c2w(c2w):
    """OpenCV cameras in a z-up Blender world to OpenGL cameras in LGM's y-up world."""
    world = [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]
    return opengl_to_opencv_c2w(np.einsum("ij,...jk->...ik", world, c2w))
