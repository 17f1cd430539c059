"""Unmasked attention that never stores the complete score matrix."""

import dataclasses
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import flash_attention as flash
from jaxtyping import Float

from facelift_jax.models import cudnn

IMPLEMENTATIONS = ("cudnn", "tpu", "blocked")
CUDNN_MAX_HEAD_DIM = 128  # of GPUs before Hopper; newer ones support 256
QUERY_BLOCK = 512  # queries whose scores are computed together
TPU_BLOCK = 512  # tokens are padded to a multiple of this

_log = logging.getLogger(__name__)


def attend(
    q: Float[Array, "b l heads c"],
    k: Float[Array, "b l heads c"],
    v: Float[Array, "b l heads c"],
    implementation: str | None = None,
) -> Float[Array, "b l heads c"]:
    """softmax(q k^T / sqrt(c)) v over all l tokens of each b, with a float32 softmax.

    Args:
      q: queries.
      k: keys, of the same type.
      v: values, of the same type.
      implementation: "cudnn" (half precision on NVIDIA GPUs), "tpu" (the flash kernel
        of JAX), "blocked" (anywhere), or None for the fastest that supports the inputs.
        If that is not "cudnn" on a GPU, the reason is logged once. A named
        implementation runs or raises.

    Raises:
      ValueError: unknown implementation, or a named one that does not support the
        inputs.
      ImportError: "cudnn" does not support this version of JAX.
    """
    is_named = implementation is not None
    if implementation is None:
        implementation = _choose(jax.default_backend(), q.dtype.name, q.shape[1:])
    if implementation not in IMPLEMENTATIONS:
        names = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"attention: unknown {implementation!r}; known: {names}")
    if implementation == "cudnn":
        problem = _cudnn_problem(q.dtype.name, q.shape[1:])
        if problem:
            raise ValueError(f'attention "cudnn": {problem}; use another or None')
        apart = cudnn.num_apart(k.shape[1])
        if apart and (is_named or _can_split()):
            return cudnn.attend_apart(q, k, v, apart, cudnn.CUDNN)
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return _flash_on_tpu(q, k, v) if implementation == "tpu" else _blocked(q, k, v)


def is_attention(primitive: Any, *_: Any, **params: Any) -> bool:
    """Whether an operation computes attention: a policy of `jax.checkpoint`.

    Saving the result of attention, and the softmax statistics of its kernel, takes
    little memory compared with the time that recomputing them would take.
    """
    name = primitive.name
    if name == "name":  # the primitive of `checkpoint_name`
        return params["name"] == cudnn.RESULT
    return name == "pallas_call" or name.startswith("dot_product_attention_fwd")


@functools.cache  # logs once
def _can_split() -> bool:
    """Whether `attend_apart` supports this version of JAX."""
    try:
        cudnn.jax_module()
    except ImportError as error:
        _log.warning("attention is not split into cuDNN's blocks: %s", error)
        return False
    return True


@functools.cache  # logs once per kind of input
def _choose(platform: str, dtype: str, shape: tuple[int, ...]) -> str:
    if platform == "tpu":
        return "tpu"
    if platform != "gpu":
        return "blocked"
    problem = _cudnn_problem(dtype, shape)
    if problem:
        _log.warning('attention over %d tokens is "blocked": %s', shape[0], problem)
    return "blocked" if problem else "cudnn"


def _cudnn_problem(dtype: str, shape: tuple[int, ...]) -> str:
    """Why cuDNN's flash attention does not support such inputs; empty if it does."""
    num_tokens, _, width = shape
    if dtype not in ("bfloat16", "float16"):
        return f"cuDNN takes bfloat16 and float16, found {dtype}"
    if num_tokens % 2:
        return f"cuDNN has no gradient for an odd number of tokens, found {num_tokens}"
    if width % 8 or width > CUDNN_MAX_HEAD_DIM:
        return (
            "cuDNN takes head widths that are multiples of 8 up to "
            f"{CUDNN_MAX_HEAD_DIM}, found {width}"
        )
    return ""


def _blocked(q, k, v):
    """One block of queries at a time; the backward pass recomputes its scores."""
    b, length, heads, width = q.shape

    @jax.checkpoint
    def one_block(queries):
        logits = jnp.einsum(
            "blhc,bmhc->bhlm", queries, k, preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(logits * width**-0.5, axis=-1)
        return jnp.einsum("bhlm,bmhc->blhc", weights.astype(v.dtype), v)

    if length <= QUERY_BLOCK:
        return checkpoint_name(one_block(q), cudnn.RESULT)
    num_blocks = -(-length // QUERY_BLOCK)
    padding = num_blocks * QUERY_BLOCK - length
    blocks = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(
        blocks.reshape(b, num_blocks, QUERY_BLOCK, heads, width), 1, 0
    )
    out = jnp.moveaxis(lax.map(one_block, blocks), 0, 1)
    out = out.reshape(b, -1, heads, width)[:, :length]
    return checkpoint_name(out, cudnn.RESULT)


def _flash_on_tpu(q, k, v):
    """JAX's kernel; tokens are padded to full blocks, the padding is a segment."""
    length, width = q.shape[1], q.shape[-1]
    padding = -length % TPU_BLOCK
    widths = ((0, 0), (0, 0), (0, padding), (0, 0))
    q, k, v = (jnp.pad(jnp.moveaxis(x, 1, 2), widths) for x in (q, k, v))
    is_padding = jnp.arange(length + padding, dtype=jnp.int32) >= length
    ids = jnp.broadcast_to(is_padding.astype(jnp.int32)[None], (q.shape[0], q.shape[2]))
    segments = flash.SegmentIds(ids, ids)
    sizes = {field.name: TPU_BLOCK for field in dataclasses.fields(flash.BlockSizes)}
    sizes = flash.BlockSizes(**{**sizes, "block_b": 1})
    out = flash.flash_attention(
        q, k, v, segment_ids=segments, sm_scale=width**-0.5, block_sizes=sizes
    )
    return jnp.moveaxis(out[:, :, :length], 2, 1)
