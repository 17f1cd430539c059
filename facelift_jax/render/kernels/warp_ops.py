"""Arithmetic that Triton has no operation for: PTX, and the same for the interpreter.

Values are [p] float32 arrays of one warp, p / 32 elements in each of its 32 lanes. What
a result depends on beyond its inputs is the order of sums: on which elements share a
lane, which the compiler decides.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plt
from jaxtyping import Float, Int

from facelift_jax.geometry.numerics import Array

LANES = 32


@dataclasses.dataclass(frozen=True)
class Warp:
    """One warp's arithmetic.

    Attributes:
      interpret: compute with JAX operations instead of PTX.
    """

    interpret: bool

    def fma(self, a: Array, b: Array, c: Array) -> Array:
        """a b + c, rounded once."""
        if self.interpret:
            return a * b + c
        return self._fused("fma.rn.f32 $0, $1, $2, $3;", a, b, c)

    def fnma(self, a: Array, b: Array, c: Array) -> Array:
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

    def lanes(self, values: Float[Array, "p"]) -> Int[Array, "p"]:
        """Lane that holds each element, LANES for all but a lane's first element.

        It asks where the elements of these very values are.
        """
        if self.interpret:
            return jnp.minimum(lax.iota(jnp.int32, values.size), LANES)
        line = "mov.u32 all, %laneid;"
        return self._by_lane(line, values, others=str(LANES), dtype=jnp.int32)

    def any_positive(self, values: Float[Array, "p"]) -> Int[Array, ""]:
        """1 if any value is, else 0; GPUs reduce integers in one instruction."""
        return jnp.max((values > 0).astype(jnp.int32))

    def sum_products(
        self, products: list[tuple[Float[Array, "p"], ...]]
    ) -> Float[Array, "p"]:
        """Sums of one or two factors' products over all elements, spread over lanes.

        `sum_indices` says which sum is where. Each of five steps exchanges half of the
        sums a lane still has for another lane's share of the other half: 12 shuffles
        for ten sums, where summing one by one takes 50.
        """
        values = [self._sum_in_lane(*factors) for factors in products]
        for bit in (16, 8, 4, 2, 1):
            half = (len(values) + 1) // 2
            for j in range(half):
                other = values[j + half] if j + half < len(values) else values[j]
                values[j] = self._exchange(values[j], other, bit)
            values = values[:half]
        return values[0]

    def sum_indices(self, sums: Float[Array, "p"], number: int) -> Int[Array, "p"]:
        """Which of `number` products each element of `sum_products` is the sum of.

        `number` or more where an element is none's; each sum has one element.
        """
        lanes = self.lanes(sums)
        which = [jnp.full_like(lanes, j) for j in range(number)]
        for bit in (16, 8, 4, 2, 1):
            is_second, half = (lanes & bit) != 0, (len(which) + 1) // 2
            for j in range(half):  # where there is no other, both lanes hold the sum
                other = which[j + half] if j + half < len(which) else number
                which[j] = jnp.where(is_second, other, which[j])
            which = which[:half]
        return jnp.where(lanes < LANES, which[0], number)

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

    def _exchange(self, first, second, bit):
        """In lanes without `bit` both lanes' sum of `first`, in the others of `second`.

        The two lanes' numbers differ in `bit` alone.
        """
        if self.interpret:
            is_second = (lax.iota(jnp.int32, first.size) & bit) != 0
            kept = jnp.where(is_second, second, first)
            sent = jnp.where(is_second, first, second)
            return kept + jnp.flip(sent.reshape(-1, 2, bit), 1).reshape(-1)
        pack = first.size // LANES
        first_here, second_here = f"${pack}", f"${2 * pack}"
        lines = [
            ".reg .pred p; .reg .b32 lane, sent, kept;",
            f"mov.u32 lane, %laneid; and.b32 lane, lane, {bit};",
            "setp.ne.b32 p, lane, 0;",
            f"selp.b32 sent, {first_here}, {second_here}, p;",
            f"selp.b32 kept, {second_here}, {first_here}, p;",
            f"shfl.sync.bfly.b32 sent, sent, {bit}, 31, -1;",
            "add.f32 all, kept, sent;",
        ]
        return self._by_lane(" ".join(lines), first, second)

    def _fused(self, line, a, b, c):
        shape = jnp.broadcast_shapes(*(jnp.shape(value) for value in (a, b, c)))
        return self._elementwise(line, *(jnp.broadcast_to(x, shape) for x in (a, b, c)))

    def _by_lane(self, line, *args, others="all", dtype=jnp.float32):
        """PTX that sets `all`, which every element of a lane gets, or its first one."""
        pack = args[0].size // LANES
        lines = [".reg .b32 all;", line, "mov.b32 $0, all;"]
        lines += [f"mov.b32 ${k}, {others};" for k in range(1, pack)]
        text = "{ " + " ".join(lines) + " }"
        return self._elementwise(text, *args, pack=pack, dtype=dtype)

    def _elementwise(self, line, *args, pack=1, dtype=jnp.float32):
        """PTX over `pack` elements of the result ($0 ...) and of each argument."""
        result = "=f" if dtype == jnp.float32 else "=r"
        return plt.elementwise_inline_asm(
            line,
            args=args,
            constraints=",".join([result] * pack + ["f"] * pack * len(args)),
            pack=pack,
            result_shape_dtypes=[jax.ShapeDtypeStruct(args[0].shape, dtype)],
        )[0]
