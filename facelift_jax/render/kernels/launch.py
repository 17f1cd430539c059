"""Memory layout, static sizes, and how kernels are launched."""

from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxtyping import Float

from facelift_jax.geometry.numerics import Array
from facelift_jax.render.tiling import Grid

# Records are [r, RECORD] float32, 64 bytes each: u, v, the exponent's coefficients
# (-A/2, -B, -C/2) log2(e), opacity, red, green, blue, depth, level (base 2), then the
# rectangle of tiles (column, row, columns, rows). The last float is unused.
RECORD = 16
# Gradient row: moments 1, x, y, xx, xy, yy of d_exponent; red, green, blue, depth.
NUM_SUMS = 10
ROW = 12  # floats per row in memory: 48 bytes keep rows aligned


class Sizes(NamedTuple):
    """Static sizes of a launch.

    Attributes:
      grid: tiles of one image.
      n: Gaussians per image.
      images: number of images.
      capacity: m, list entries of a slice.
      alpha_max: cap on alpha.
      interpret: run in interpret mode.
    """

    grid: Grid
    n: int
    images: int
    capacity: int
    alpha_max: float
    interpret: bool

    @property
    def num_records(self) -> int:
        """r: one record per Gaussian and image."""
        return self.images * self.n

    @property
    def num_tiles(self) -> int:
        """Tiles of all images."""
        return self.images * self.grid.num_tiles


def launch(
    kernel: Any,
    num_programs: int,
    out_shape: Any,
    name: str,
    sizes: Sizes,
    aliases: dict[int, int] | None = None,
    num_warps: int = 1,
) -> Any:
    """A function of whole arrays that launches a kernel.

    Args:
      kernel: takes `sizes`, then references to inputs and outputs.
      num_programs: programs in the grid.
      out_shape: shapes of the outputs.
      name: shown by profilers.
      sizes: static sizes.
      aliases: input position -> output position that reuses its memory.
      num_warps: warps per program.
    """

    def body(*refs):
        kernel(sizes, *refs)

    return pl.pallas_call(
        body,
        grid=(num_programs,),
        out_shape=out_shape,
        input_output_aliases=aliases or {},
        compiler_params=plt.CompilerParams(num_warps=num_warps, num_stages=1),
        interpret=sizes.interpret,
        name=name,
    )


def require_gpu(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Identity that compiles for NVIDIA GPUs only.

    The platform of a traced function is known at lowering, not earlier.

    Raises:
      NotImplementedError: when lowered for another platform.
    """
    return _REQUIRE_GPU.bind(values)


def _raise_unsupported(*_, **__):
    raise NotImplementedError(
        'render: backend "pallas" runs on NVIDIA GPUs; use backend="xla" on other '
        "devices, or RenderConfig(interpret=True) to test the kernels"
    )


_REQUIRE_GPU = Primitive("splat_kernels")
_REQUIRE_GPU.def_abstract_eval(lambda values: values)
_REQUIRE_GPU.def_impl(lambda values: jax.jit(_REQUIRE_GPU.bind)(values))
mlir.register_lowering(_REQUIRE_GPU, _raise_unsupported)
mlir.register_lowering(_REQUIRE_GPU, lambda _, values: [values], platform="cuda")
