"""Attention: every implementation against the plain formula, and what None takes."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facelift_jax.models import attention
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
        return jnp.sum(out * weights), out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*args)


@pytest.mark.parametrize("length", [7, 512, 1100])
def test_blocked_is_the_plain_formula(length):
    """One block, a whole one, and two and a bit."""
    args = tokens(length)
    (_, out), gradients = value_and_gradients(attend, args)
    (_, expected), expected_gradients = value_and_gradients(plain, args)
    np.testing.assert_allclose(out, expected, atol=TOLERANCE, rtol=0)
    for found, gradient in zip(gradients, expected_gradients, strict=True):
        largest = np.abs(gradient).max()
        np.testing.assert_allclose(found, gradient, atol=5e-6 * largest, rtol=0)


def test_blocked_never_holds_all_scores():
    """4,096 tokens: the plain formula takes 385 MiB, blocks 66 MiB."""
    args = tuple(x[:1] for x in tokens(4096))

    def loss(*args):
        return attend(*args, implementation="blocked").sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*args).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    assert memory < 110 * 2**20


def test_what_none_takes_is_said_once(caplog):
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
        begin.format(64) + "takes heads of a multiple of 8 up to 128, found 12",
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
        found = attend(*args, implementation="tpu")
    np.testing.assert_allclose(found, plain(*args), atol=TOLERANCE, rtol=0)


def test_the_tpu_kernel_lowers():
    def loss(q, k, v):
        return attend(q, k, v, implementation="tpu").astype(jnp.float32).sum()

    args = tokens(600, jnp.bfloat16)
    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*args)
    text = lowered.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text


def test_rematerialisation_keeps_the_result_of_attention():
    """Half of a checkpointed function is made again; its attention is not."""
    q, k, v = tokens(600)

    def loss(q, policy):
        return jnp.sum(jax.checkpoint(lambda q: attend(q, k, v) ** 2, policy=policy)(q))

    def products(policy):
        return str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(q, policy)).count(
            "dot_general"
        )

    assert products(attention.is_attention) < products(None)
