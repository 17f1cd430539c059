"""cuDNN's flash attention where the number of keys is no multiple of its block size.

There, cuDNN's kernels are a tenth slower, even with masked padding. So cuDNN gets the
full blocks of keys, the few remaining keys are computed here, "apart" from cuDNN, and
the two results are combined by their log-sum-exps, as flash attention combines its
blocks (Dao, ICLR 2024). cuDNN's backward pass for its own keys is exact when it gets
the result and the log-sum-exp over all keys.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

RESULT = "attention"  # name of attention's result and statistics in `jax.checkpoint`
BLOCK = 128  # keys in one block of cuDNN
MAX_APART = 8  # more remaining keys would take longer here than in cuDNN
_SETTINGS = (  # first parameters of JAX's backward rule
    *("scale", "seed", "dropout_rate", "variadic_args", "mask_type", "layout"),
    "sliding_window_length",
)
_BACKWARD = (*_SETTINGS, "is_training", "return_residual", "res", "grad_output")
_BACKWARD_WITH_SCORE_MOD = (  # from JAX 0.12 on: a function may change the logits
    *(*_SETTINGS, "score_mod", "cudnn_version"),
    *("return_residual", "res", "grad_output"),
)

Tokens = Float[Array, "b l heads c"]
Statistics = Float[Array, "b l heads"]  # log-sum-exp of a query's logits, float32


class Kernel(NamedTuple):
    """softmax(q k^T / sqrt(c)) v with statistics.

    `forward(q, k, v)` returns (result, statistics). `backward(q, k, v, result,
    statistics, d_result)` returns (d_q, d_k, d_v) for these keys, given result and
    statistics over all keys.
    """

    forward: Callable[..., tuple[Tokens, Statistics]]
    backward: Callable[..., tuple[Tokens, Tokens, Tokens]]


def num_apart(num_keys: int) -> int:
    """How many keys to compute apart from cuDNN; zero where cuDNN alone is as fast."""
    rest = num_keys % BLOCK
    return rest if rest <= MAX_APART and num_keys > BLOCK else 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attend_apart(
    q: Tokens, k: Tokens, v: Tokens, num_apart: int, kernel: Kernel
) -> Tokens:
    """Attention of all queries to all keys.

    `kernel` gets all keys except the first `num_apart`. With `CUDNN` as the kernel, it
    raises the ImportError of `jax_module`.
    """
    return _forward(q, k, v, num_apart, kernel)[0]


def _forward(q, k, v, num_apart, kernel):
    result, statistics = kernel.forward(q, k[:, num_apart:], v[:, num_apart:])
    logits = _products(q, k[:, :num_apart]) * q.shape[-1] ** -0.5
    total = jnp.logaddexp(statistics, jax.nn.logsumexp(logits, axis=-1))
    weights = jnp.exp(logits - total[..., None])
    result = result.astype(jnp.float32) * jnp.exp(statistics - total)[..., None]
    result = result + _combine(weights, v[:, :num_apart])
    return result.astype(q.dtype), total


def _forward_rule(q, k, v, num_apart, kernel):
    outputs = _forward(q, k, v, num_apart, kernel)
    result, total = (checkpoint_name(x, RESULT) for x in outputs)
    return result, (q, k, v, result, total)


def _backward_rule(num_apart, kernel, residuals, d_result):
    """The softmax gives d_logits = weights * (d_weights - sum(d_result * result))."""
    q, k, v, result, total = residuals
    kernel_inputs = (q, k[:, num_apart:], v[:, num_apart:])
    d_q, d_k, d_v = kernel.backward(*kernel_inputs, result, total, d_result)
    keys, values = k[:, :num_apart], v[:, :num_apart]
    scale = q.shape[-1] ** -0.5
    weights = jnp.exp(_products(q, keys) * scale - total[..., None])
    mean = jnp.sum(_float32(d_result) * _float32(result), axis=-1)
    d_logits = weights * (_products(d_result, values) - mean[..., None]) * scale
    d_q = (_float32(d_q) + _combine(d_logits, keys)).astype(q.dtype)
    d_keys, d_values = (
        jnp.einsum("blhm,blhc->bmhc", x, _float32(y)).astype(k.dtype)
        for x, y in ((d_logits, q), (weights, d_result))
    )
    return (
        d_q,
        jnp.concatenate([d_keys, d_k], axis=1),
        jnp.concatenate([d_values, d_v], axis=1),
    )


attend_apart.defvjp(_forward_rule, _backward_rule)


def _float32(x: Array) -> Array:
    return x.astype(jnp.float32)


def _products(x: Tokens, keys: Float[Array, "b m heads c"]) -> Array:
    """Products [b l heads m]; for few keys, sums are faster than a matmul."""
    x, keys = _float32(x), _float32(keys)
    columns = [jnp.sum(x * keys[:, m : m + 1], axis=-1) for m in range(keys.shape[1])]
    return jnp.stack(columns, axis=-1)


def _combine(weights: Array, values: Float[Array, "b m heads c"]) -> Array:
    """Sum [b l heads c] of the values with weights [b l heads m]."""
    values = _float32(values)
    columns = range(values.shape[1])
    parts = [weights[..., m : m + 1] * values[:, m : m + 1] for m in columns]
    return functools.reduce(jnp.add, parts)


def jax_module() -> Any:
    """JAX's private module with cuDNN's attention.

    Raises:
      ImportError: this version of JAX does not have the module, or its backward rule
        has other parameters.
    """
    # The public `jax.nn.dot_product_attention` returns the statistics, but its backward
    # pass does not accept any, so attention could not be split. GS-LRM over 6 views of
    # 512 px would then take 180 ms forward, 14 ms more than with the split, and 45 ms
    # more with the backward pass (H100).
    try:
        from jax._src.cudnn import fused_attention_stablehlo as fused

        parameters = _backward_parameters(fused)
        is_supported = parameters in (_BACKWARD, _BACKWARD_WITH_SCORE_MOD)
    except (ImportError, AttributeError):
        is_supported = False
    if not is_supported:
        raise ImportError(
            "facelift_jax does not support the cuDNN attention of jax "
            f"{jax.__version__}: install jax 0.10 to 0.12, or adapt "
            "facelift_jax/models/cudnn.py"
        )
    return fused


def _backward_parameters(fused: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(fused._dot_product_attention_bwd_rule).parameters)


def _cudnn_forward(q, k, v):
    result, statistics = jax_module().dot_product_attention(
        q, k, v, scale=q.shape[-1] ** -0.5, return_residual=True
    )
    return result, jnp.swapaxes(statistics, 1, 2)


def _cudnn_backward(q, k, v, result, statistics, d_result):
    fused, unused = jax_module(), jnp.zeros(0, q.dtype)
    residuals = (q, k, v, *[unused] * 7)
    static = (q.shape[-1] ** -0.5, 0, 0.0, (False, False), fused.MaskType.NO_MASK)
    static += (fused.AttentionLayout.BTNH.value, None)
    if _backward_parameters(fused) == _BACKWARD_WITH_SCORE_MOD:
        # no function, so no arguments
        residuals, static = (*residuals, ()), (*static, None)
    residuals += (jnp.swapaxes(statistics, 1, 2), result)
    backward = fused._dot_product_attention_bwd_rule
    return backward(*static, 0, False, residuals, d_result)[:3]


CUDNN = Kernel(_cudnn_forward, _cudnn_backward)
