"""GPU kernels of the `pallas` backend; nothing else uses Pallas' Triton lowering.

All functions take whole arrays. A record is one Gaussian seen from one camera. There
are r = images x Gaussians records and m list entries per depth slice. Tile indices run
over all images. Sums have a fixed order and each address has one writer, so results are
the same bits in every run.
"""
