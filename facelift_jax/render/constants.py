"""Numbers that define the image; every backend reads them here.

They are the compositing rules of gsplat 1.5.3 (`rasterize_to_pixels`), so images and
gradients can be compared number by number.
"""

ALPHA_MIN = 1.0 / 255.0  # a smaller alpha cannot change an 8-bit image: skipped
TRANSMITTANCE_MIN = 1e-4  # a pixel ends before the Gaussian that would pass this
FRUSTUM_MARGIN = 0.3  # of tan(fov / 2): how far outside the image the Jacobian follows
MEANS2D_LIMIT = 1e15  # pixels; beyond it the exponent's terms overflow float32
AXIS_LIMIT = 1e9  # pixels; a longer axis looks the same and would overflow float32
ROUNDING_SLACK = 4e-6  # float32 rounding of the exponent, per unit of its largest term
