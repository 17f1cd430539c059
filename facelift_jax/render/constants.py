"""Constants shared by all backends.

They are those of gsplat 1.5.3 (`rasterize_to_pixels`), so that images and gradients can
be compared with gsplat's.
"""

ALPHA_MIN = 1.0 / 255.0  # a smaller alpha is skipped: 8-bit images cannot show it
TRANSMITTANCE_MIN = 1e-4  # blending stops before a pixel's transmittance reaches this
FRUSTUM_MARGIN = 0.3  # of tan(fov / 2): clamp of the Jacobian outside the image
MEANS2D_LIMIT = 1e15  # pixels; beyond it the exponent's terms overflow float32
AXIS_LIMIT = 1e9  # pixels; a longer axis looks the same and would overflow float32
ROUNDING_SLACK = 4e-6  # float32 rounding of the exponent, per unit of its largest term
