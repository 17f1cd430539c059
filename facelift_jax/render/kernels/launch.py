"""Sizes of a launch, memory layout, and how a kernel is called."""

from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxtyping import Float

from facelift_jax.geometry.numerics import Array
from facelift_jax.render.tiling import Grid

# Records are [R, RECORD] float32, 64 bytes each: u, v, the exponent's coefficients
# (-A/2, -B, -C/2) log2(e), opacity, red, green, blue, depth, the exponent's level (base
# 2), then the rectangle of tiles: column, row, columns, rows; one is spare.
RECORD = 16
# A gradient row: moments 1, x, y, xx, xy, yy of d_exponent; red, green, blue, depth.
NUM_SUMS = 10
ROW = 12  # floats a row takes: 48 bytes keep rows aligned


class Sizes(NamedTuple):
    """Static sizes of a launch.

    Attributes:
      grid: tiles of one image.
      n: Gaussians of one image.
      images: how many.
      capacity: M, list entries of a slice.
      alpha_max: cap on alpha.
      interpret: run in the interpreter.
    """

    grid: Grid
    n: int
    images: int
    capacity: int
    alpha_max: float
    interpret: bool

    @property
    def num_records(self) -> int:
        """R."""
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
    """A function of whole arrays that runs the programs of a kernel.

    Args:
      kernel: body; takes `sizes`, then references to inputs and outputs.
      num_programs: how many run.
      out_shape: shapes of the outputs.
      name: what profilers show.
      sizes: of the launch.
      aliases: outputs that take over the memory of an input, by position.
      num_warps: of one program.
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
    """The same values, in programs for NVIDIA GPUs alone.

    Raises:
      NotImplementedError: when compiled for another platform. What a traced function
        will run on is not known before.
    """
    return _REQUIRE_GPU.bind(values)


def _refuse(*_, **__):
    raise NotImplementedError(
        'render: backend "pallas" runs on NVIDIA GPUs; use backend="xla" for programs '
        "on other devices, or RenderConfig(interpret=True) to test its kernels"
    )


_REQUIRE_GPU = Primitive("splat_kernels")
_REQUIRE_GPU.def_abstract_eval(lambda values: values)
_REQUIRE_GPU.def_impl(lambda values: jax.jit(_REQUIRE_GPU.bind)(values))
mlir.register_lowering(_REQUIRE_GPU, _refuse)
mlir.register_lowering(_REQUIRE_GPU, lambda _, values: [values], platform="cuda")
