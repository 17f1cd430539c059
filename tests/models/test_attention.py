"""Attention: every implementation against the formula, and the default choice."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facelift_jax.models import attention, cudnn
from facelift_jax.models.attention import attend

TOLERANCE = 2e-6  # float32 sums over a thousand tokens, values near 1


def tokens(length, dtype=jnp.float32):
    rng = np.random.default_rng(length)
    shape = (3, 2, length, 2, 16)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype))


def plain(q, k, v):
    logits = jnp.einsum("blhc,bmhc->bhlm", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("bhlm,bmhc->blhc", jax.nn.softmax(logits), v)


def value_and_gradients(function, args):
    weights = jnp.asarray(np.random.default_rng(0).standard_normal(args[0].shape))
    weights = weights.astype(jnp.float32)

    def loss(*args):
        out = function(*args)
        return jnp.sum(out.astype(jnp.float32) * weights), out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*args)


@pytest.mark.parametrize("length", [7, 512, 1100])
def test_blocked_is_the_plain_formula(length):
    """Part of a block, one block, two blocks and a part."""
    args = tokens(length)
    (_, out), gradients = value_and_gradients(attend, args)
    (_, expected), expected_gradients = value_and_gradients(plain, args)
    np.testing.assert_allclose(out, expected, atol=TOLERANCE, rtol=0)
    for ours, gradient in zip(gradients, expected_gradients, strict=True):
        largest = np.abs(gradient).max()
        np.testing.assert_allclose(ours, gradient, atol=5e-6 * largest, rtol=0)


def test_blocked_never_stores_all_scores(usual_compiler):
    """For 4,096 tokens the plain formula takes 385 MiB, blocks take 66 MiB."""
    args = tuple(x[:1] for x in tokens(4096))

    def loss(*args):
        return attend(*args, implementation="blocked").sum()

    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*args)
    memory = lowered.compile(usual_compiler).memory_analysis().temp_size_in_bytes
    assert memory < 110 * 2**20


def test_the_default_choice_is_logged_once(caplog):
    attention._choose.cache_clear()
    with caplog.at_level(logging.WARNING, logger=attention.__name__):
        for _ in range(3):
            assert attention._choose("gpu", "float32", (64, 2, 16)) == "blocked"
            assert attention._choose("gpu", "bfloat16", (63, 2, 16)) == "blocked"
            assert attention._choose("gpu", "bfloat16", (64, 2, 12)) == "blocked"
    begin = 'attention over {} tokens is "blocked": cuDNN '
    assert [record.getMessage() for record in caplog.records] == [
        begin.format(64) + "takes bfloat16 and float16, found float32",
        begin.format(63) + "has no gradient for an odd number of tokens, found 63",
        begin.format(64)
        + "takes head widths that are multiples of 8 up to 128, found 12",
    ]
    assert attention._choose("gpu", "bfloat16", (64, 2, 16)) == "cudnn"
    assert attention._choose("tpu", "bfloat16", (63, 2, 16)) == "tpu"
    assert attention._choose("cpu", "float32", (63, 2, 16)) == "blocked"


@pytest.mark.parametrize(
    ("implementation", "message"),
    [
        (
            "cudnn",
            'attention "cudnn": cuDNN takes bfloat16 and float16, found float32; use '
            "another or None",
        ),
        ("flash", "attention: unknown 'flash'; known: cudnn, tpu, blocked"),
    ],
)
def test_named_implementations_run_or_raise(implementation, message):
    with pytest.raises(ValueError, match="attention") as caught:
        attend(*tokens(8), implementation=implementation)
    assert str(caught.value) == message


def test_the_tpu_kernel_is_the_plain_formula():
    """Forward in Pallas' interpreter: padding is masked."""
    from jax.experimental.pallas import tpu as pltpu

    args = tokens(600)
    with pltpu.force_tpu_interpret_mode():
        out = attend(*args, implementation="tpu")
    np.testing.assert_allclose(out, plain(*args), atol=TOLERANCE, rtol=0)


def test_the_tpu_kernel_lowers():
    def loss(q, k, v):
        return attend(q, k, v, implementation="tpu").astype(jnp.float32).sum()

    args = tokens(600, jnp.bfloat16)
    gradient = jax.grad(jax.checkpoint(loss, policy=attention.is_attention), (0, 1, 2))
    text = jax.jit(gradient).trace(*args).lower(lowering_platforms=("tpu",)).as_text()
    # forward once, gradients of keys and values, gradients of queries
    assert text.count("@tpu_custom_call(") == 3


def test_rematerialization_keeps_the_result_of_attention():
    """The backward pass of a checkpoint does not recompute attention."""
    q, k, v = tokens(600)

    def loss(q, policy):
        return jnp.sum(jax.checkpoint(lambda q: attend(q, k, v) ** 2, policy=policy)(q))

    def products(policy):
        return str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(q, policy)).count(
            "dot_general"
        )

    assert products(attention.is_attention) < products(None)


def plain_kernel():
    """The formula with statistics; its derivative takes those of all keys."""

    def forward(q, k, v):
        logits = jnp.einsum("blhc,bmhc->blhm", q, k) / np.sqrt(q.shape[-1])
        statistics = jax.nn.logsumexp(logits, axis=-1)
        weights = jnp.exp(logits - statistics[..., None])
        return jnp.einsum("blhm,bmhc->blhc", weights, v), statistics

    def backward(q, k, v, result, statistics, d_result):
        scale = q.shape[-1] ** -0.5
        logits = jnp.einsum("blhc,bmhc->blhm", q, k) * scale
        weights = jnp.exp(logits - statistics[..., None])
        d_weights = jnp.einsum("blhc,bmhc->blhm", d_result, v)
        mean = jnp.sum(d_result * result, axis=-1, keepdims=True)
        d_logits = weights * (d_weights - mean) * scale
        return (
            jnp.einsum("blhm,bmhc->blhc", d_logits, k),
            jnp.einsum("blhm,blhc->bmhc", d_logits, q),
            jnp.einsum("blhm,blhc->bmhc", weights, d_result),
        )

    return cudnn.Kernel(forward, backward)


@pytest.mark.parametrize("num_apart", [1, 2, 8])
def test_the_split_changes_nothing(num_apart):
    """Values and gradients; the first key outweighs the others in some rows."""
    q, k, v = tokens(40)
    k = k.at[:, 0].mul(5)
    kernel = plain_kernel()
    outputs = value_and_gradients(
        lambda *x: cudnn.attend_apart(*x, num_apart, kernel), (q, k, v)
    )
    expected = value_and_gradients(plain, (q, k, v))
    for a, b in zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5 * TOLERANCE * np.abs(b).max())


def test_the_split_takes_the_few_keys_beyond_whole_blocks():
    counts = {n: cudnn.num_apart(n) for n in (2, 128, 130, 136, 137, 4098, 4096)}
    assert counts == {2: 0, 128: 0, 130: 2, 136: 8, 137: 0, 4098: 2, 4096: 0}


@pytest.fixture
def cudnn_without_gpu(monkeypatch):
    """JAX's module of cuDNN's attention, made to trace without a GPU."""
    fused = cudnn.jax_module()
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_is_flash_attention", lambda *_, **__: None)
    return fused


def test_another_jax_is_reported_and_not_split(monkeypatch, cudnn_without_gpu, caplog):
    """A named choice raises; None logs the reason once and gives cuDNN all keys."""
    monkeypatch.delattr(cudnn_without_gpu, "_dot_product_attention_bwd_rule")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "_can_split", attention._can_split.__wrapped__)
    line = (
        f"facelift_jax does not support the cuDNN attention of jax {jax.__version__}: "
        "install jax 0.10 to 0.12, or adapt facelift_jax/models/cudnn.py"
    )
    args = (jax.ShapeDtypeStruct((1, 258, 2, 64), jnp.bfloat16),) * 3
    with pytest.raises(ImportError) as caught:
        jax.make_jaxpr(lambda *x: attend(*x, "cudnn"))(*args)
    assert str(caught.value) == line
    with caplog.at_level(logging.WARNING, logger=attention.__name__):
        text = str(jax.make_jaxpr(attend)(*args))
    assert "bf16[1,258,2,64]" in text
    assert "bf16[1,256,2,64]" not in text
    assert [record.getMessage() for record in caplog.records] == [
        f"attention is not split into cuDNN's blocks: {line}"
    ]


@pytest.mark.usefixtures("cudnn_without_gpu")
def test_the_split_gives_cudnn_whole_blocks():
    """One forward and one backward attention of cuDNN, also inside a checkpoint."""
    q, k, v = (jax.ShapeDtypeStruct((1, 258, 2, 64), jnp.bfloat16) for _ in range(3))

    @functools.partial(jax.checkpoint, policy=attention.is_attention)
    def loss(q, k, v):
        return attend(q, k, v, "cudnn").astype(jnp.float32).sum()

    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, k, v))
    assert text.count("dot_product_attention_fwd_wrapper[") == 1
    assert text.count("dot_product_attention_bwd_wrapper[") == 1
    assert "bf16[1,256,2,64]" in text


@pytest.mark.gpu
@pytest.mark.parametrize("length", [258, 2050])
def test_cudnn_with_the_split_on_a_gpu(length):
    """Half precision against the plain formula in float32 on the same values."""
    q, k, v = (jnp.tile(x, (1, 1, 1, 4)) for x in tokens(length, jnp.bfloat16))
    assert cudnn.num_apart(length) == 2
    outputs = value_and_gradients(lambda *x: attend(*x, "cudnn"), (q, k, v))
    wide = tuple(x.astype(jnp.float32) for x in (q, k, v))
    with jax.default_matmul_precision("highest"):
        expected = value_and_gradients(plain, wide)
    for a, b in zip(
        jax.tree.leaves(outputs)[1:], jax.tree.leaves(expected)[1:], strict=True
    ):
        a, b = np.asarray(a, np.float32), np.asarray(b)
        assert np.linalg.norm(a - b) < 5e-3 * np.linalg.norm(b)
