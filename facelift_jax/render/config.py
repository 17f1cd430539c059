"""Settings of the renderer."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RenderConfig:
    """Settings of `render`; hashable, so usable as a static argument of `jit`.

    Attributes:
      near: Gaussians with a smaller camera z are culled, world units.
      far: Gaussians with a larger camera z are culled, world units.
      eps2d: blur added to the diagonal of the image-plane covariance, pixels^2.
      alpha_max: cap on one Gaussian's alpha; its gradient is zero where the cap acts.
      antialiased: compensate the blur (Mip-Splatting, Yu et al. 2024):
        opacity *= sqrt(det / det_blurred).
      max_entries: cap on the (tile, Gaussian) entries of one image; the farthest
        Gaussians beyond it are dropped and counted. With None nothing is dropped.
      interpret: run the Pallas kernels in interpret mode, on any machine.
      tile_size: side of a square tile in pixels.
      slice_entries: (tile, Gaussian) entries of one image held in memory at a time;
        with None the backend chooses. Affects speed and memory, not the image.
    """

    near: float = 0.01
    far: float = 1e10
    eps2d: float = 0.3
    alpha_max: float = 0.99
    antialiased: bool = False
    max_entries: int | None = None
    interpret: bool = False
    tile_size: int = 8
    slice_entries: int | None = None

    def __post_init__(self):
        requirements = {
            "near": (self.near > 0, "a positive depth"),
            "far": (self.far > self.near, f"a depth beyond near ({self.near})"),
            "eps2d": (self.eps2d >= 0, "a blur of 0 or more"),
            "alpha_max": (0 < self.alpha_max < 1, "a cap between 0 and 1"),
            "max_entries": (_is_count(self.max_entries), "None or a count >= 1"),
            "tile_size": (_is_count(self.tile_size), "a whole number of pixels >= 1"),
            "slice_entries": (_is_count(self.slice_entries), "None or a count >= 1"),
        }
        for field, (is_met, expected) in requirements.items():
            if not is_met:
                raise ValueError(
                    f"RenderConfig.{field}: expected {expected}, "
                    f"found {getattr(self, field)}"
                )


def _is_count(value: int | None) -> bool:
    return value is None or (value >= 1 and value == int(value))
