"""Warp operations that Triton lacks, as PTX; in interpret mode as JAX operations.

Values are [p] float32 arrays of one warp, with p / 32 elements in each of its 32 lanes.
The compiler decides which elements share a lane; that affects the order of sums and
nothing else.
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
    """Operations of one warp.

    Attributes:
      interpret: use JAX operations instead of PTX.
    """

    interpret: bool

    def fma(self, a: Array, b: Array, c: Array) -> Array:
        """a b + c, rounded once (fused multiply-add)."""
        if self.interpret:
            return a * b + c
        return self._fused("fma.rn.f32 $0, $1, $2, $3;", a, b, c)

    def fnma(self, a: Array, b: Array, c: Array) -> Array:
        """c - a b, rounded once (fused negative multiply-add)."""
        if self.interpret:
            return c - a * b
        line = "{ .reg .f32 a; neg.f32 a, $1; fma.rn.f32 $0, a, $2, $3; }"
        return self._fused(line, a, b, c)

    def exp2(self, values: Float[Array, "p"]) -> Float[Array, "p"]:
        """2^values; results below 2^-126 are 0."""
        if self.interpret:
            return jnp.exp2(values)
        return self._elementwise("ex2.approx.ftz.f32 $0, $1;", values)

    def reciprocal(self, values: Float[Array, "p"]) -> Float[Array, "p"]:
        """1 / values, accurate to one unit in the last place."""
        if self.interpret:
            return 1 / values
        return self._elementwise("rcp.approx.ftz.f32 $0, $1;", values)

    def lanes(self, values: Float[Array, "p"]) -> Int[Array, "p"]:
        """Lane of each lane's first element; LANES for all other elements.

        The layout is that of `values` itself.
        """
        if self.interpret:
            return jnp.minimum(lax.iota(jnp.int32, values.size), LANES)
        line = "mov.u32 all, %laneid;"
        return self._by_lane(line, values, others=str(LANES), dtype=jnp.int32)

    def any_positive(self, values: Float[Array, "p"]) -> Int[Array, ""]:
        """1 if any value is positive, else 0; integers reduce in one instruction."""
        return jnp.max((values > 0).astype(jnp.int32))

    def sum_products(
        self, products: list[tuple[Float[Array, "p"], ...]]
    ) -> Float[Array, "p"]:
        """Sums over all elements of products of one or two factors, spread over lanes.

        `sum_indices` tells which sum is where. In each of five steps a lane sends half
        of its partial sums to another lane and receives that lane's share of the other
        half. Ten sums take 12 shuffles; one sum at a time takes 50.
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
        """Index of the sum that each element of a `sum_products` result holds.

        Elements that hold no sum get `number` or more. Each sum is in one element.
        """
        lanes = self.lanes(sums)
        which = [jnp.full_like(lanes, j) for j in range(number)]
        for bit in (16, 8, 4, 2, 1):
            is_second, half = (lanes & bit) != 0, (len(which) + 1) // 2
            for j in range(half):  # without a partner, both lanes hold the sum
                other = which[j + half] if j + half < len(which) else number
                which[j] = jnp.where(is_second, other, which[j])
            which = which[:half]
        return jnp.where(lanes < LANES, which[0], number)

    def _sum_in_lane(self, values, factors=None):
        """Sum of values (times factors) within each lane, in all its elements."""
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
        """Adds two lanes whose numbers differ in `bit` only.

        The lane without `bit` gets the sum of `first`, the other that of `second`.
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
        """PTX that sets `all` for a lane's first element; `others` is for the rest."""
        pack = args[0].size // LANES
        lines = [".reg .b32 all;", line, "mov.b32 $0, all;"]
        lines += [f"mov.b32 ${k}, {others};" for k in range(1, pack)]
        text = "{ " + " ".join(lines) + " }"
        return self._elementwise(text, *args, pack=pack, dtype=dtype)

    def _elementwise(self, line, *args, pack=1, dtype=jnp.float32):
        """PTX on `pack` elements per lane: the result ($0 ...), then each argument."""
        result = "=f" if dtype == jnp.float32 else "=r"
        return plt.elementwise_inline_asm(
            line,
            args=args,
            constraints=",".join([result] * pack + ["f"] * pack * len(args)),
            pack=pack,
            result_shape_dtypes=[jax.ShapeDtypeStruct(args[0].shape, dtype)],
        )[0]
