"""GPU kernels of the `pallas` backend: all that uses Pallas' Triton lowering.

All kernels see whole arrays. R = images x Gaussians, a Gaussian seen from one camera
being a record; M = entries of one depth slice; a tile index runs over all images.
Every sum has a fixed order and every address one writer: the same bits every time.
"""
