"""Arithmetic that Triton has no operation for: PTX, and the same for the interpreter.

Values are [pixels] arrays of one warp, pixels / 32 in each of its 32 lanes. Results do
not depend on which pixels share a lane but through the order of sums.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plt
from jaxtyping import Float, Int

from facelift_jax.numerics import Array

LANES = 32


@dataclasses.dataclass(frozen=True)
class Warp:
    """One warp's arithmetic.

    Attributes:
      interpret: compute with JAX operations instead of PTX.
    """

    interpret: bool

    def fma(self, a, b, c) -> Array:
        """a b + c, rounded once."""
        if self.interpret:
            return a * b + c
        return self._fused("fma.rn.f32 $0, $1, $2, $3;", a, b, c)

    def minus_product(self, a, b, c) -> Array:
        """c - a b, rounded once."""
        if self.interpret:
            return c - a * b
        line = "{ .reg .f32 a; neg.f32 a, $1; fma.rn.f32 $0, a, $2, $3; }"
        return self._fused(line, a, b, c)

    def exp2(self, values: Float[Array, "p"]) -> Float[Array, "p"]:
        """2 to the power of values; 0 below 2^-126."""
        if self.interpret:
            return jnp.exp2(values)
        return self._elementwise("ex2.approx.ftz.f32 $0, $1;", values)

    def reciprocal(self, values: Float[Array, "p"]) -> Float[Array, "p"]:
        """1 / values, to one unit in the last place."""
        if self.interpret:
            return 1 / values
        return self._elementwise("rcp.approx.ftz.f32 $0, $1;", values)

    def lanes(self, num_pixels: int) -> Int[Array, "p"]:
        """Lane that holds each pixel, LANES for all but a lane's first pixel."""
        if self.interpret:
            return jnp.minimum(lax.iota(jnp.int32, num_pixels), LANES)
        zeros = jnp.zeros((num_pixels,), jnp.int32)
        return self._by_lane("mov.u32 all, %laneid;", zeros, others=str(LANES))

    def any_positive(self, values: Float[Array, "p"]) -> Int[Array, ""]:
        """1 if any value is, else 0; GPUs reduce integers in one instruction."""
        return jnp.max((values > 0).astype(jnp.int32))

    def sum_products(
        self,
        lanes: Int[Array, "p"],
        products: list[tuple[Float[Array, "p"], ...]],
    ) -> tuple[Float[Array, "p"], Int[Array, "p"]]:
        """Sums of one or two factors' products over all pixels, spread over the lanes.

        Each of five steps exchanges half of the values a lane still has for another
        lane's share of the other half: 12 shuffles for ten sums, where summing one by
        one takes 50.

        Args:
          lanes: from `lanes`.
          products: factors of each term.

        Returns:
          (sums, which): sums[p] is the sum of products[which[p]]; which[p] is
          len(products) where p holds none. Every sum is held once.
        """
        values = [self._sum_in_lane(*factors) for factors in products]
        none, which = (
            len(products),
            [jnp.full_like(lanes, j) for j in range(len(values))],
        )
        for bit in (16, 8, 4, 2, 1):
            is_second, half = (lanes & bit) != 0, (len(values) + 1) // 2
            for j in range(half):
                other = j + half
                if other < len(values):
                    sent = jnp.where(is_second, values[j], values[other])
                    kept = jnp.where(is_second, values[other], values[j])
                    which[j] = jnp.where(is_second, which[other], which[j])
                else:  # both lanes go on with the same sum; one of them says so
                    sent = kept = values[j]
                    which[j] = jnp.where(is_second, none, which[j])
                values[j] = kept + self._exchange(sent, bit)
            values = values[:half]
        return values[0], jnp.where(lanes < LANES, which[0], none)

    def _sum_in_lane(self, values, factors=None):
        """Sum of values (x factors) over a lane's pixels, in all of them."""
        pack = values.size // LANES
        if self.interpret:
            values = values if factors is None else values * factors
            return jnp.tile(values.reshape(pack, LANES).sum(0), pack)
        if factors is None:
            lines = [f"mov.b32 all, ${pack};"]
            lines += [f"add.f32 all, all, ${pack + k};" for k in range(1, pack)]
            return self._by_lane(" ".join(lines), values)
        lines = [f"mul.f32 all, ${pack}, ${2 * pack};"]
        for k in range(1, pack):
            lines += [f"fma.rn.f32 all, ${pack + k}, ${2 * pack + k}, all;"]
        return self._by_lane(" ".join(lines), values, factors)

    def _exchange(self, values, bit):
        """What the lane whose number differs in `bit` holds."""
        if self.interpret:
            return jnp.flip(values.reshape(-1, 2, bit), 1).reshape(-1)
        source = values.size // LANES
        line = f"shfl.sync.bfly.b32 all, ${source}, {bit}, 31, -1;"
        return self._by_lane(line, values)

    def _fused(self, line, a, b, c):
        shape = jnp.broadcast_shapes(*(jnp.shape(value) for value in (a, b, c)))
        return self._elementwise(line, *(jnp.broadcast_to(x, shape) for x in (a, b, c)))

    def _by_lane(self, line, *args, others="all"):
        """PTX that sets `all`, which every pixel of a lane gets, or its first one."""
        pack = args[0].size // LANES
        lines = [".reg .b32 all;", line, "mov.b32 $0, all;"]
        lines += [f"mov.b32 ${k}, {others};" for k in range(1, pack)]
        return self._elementwise("{ " + " ".join(lines) + " }", *args, pack=pack)

    def _elementwise(self, line, *args, pack=1):
        """PTX over `pack` elements of the result ($0 ...) and of each argument."""
        letter = "f" if args[0].dtype == jnp.float32 else "r"
        return plt.elementwise_inline_asm(
            line,
            args=args,
            constraints=",".join([f"={letter}"] * pack + [letter] * pack * len(args)),
            pack=pack,
            result_shape_dtypes=[jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)],
        )[0]
