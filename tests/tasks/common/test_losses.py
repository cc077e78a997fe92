"""Cross-entropy compared with optax's, by hand, and its gradient."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from tasks.common.losses import (
    cross_entropy,
    divergence_of_passes,
    linear_cross_entropy,
    repeat_examples,
    smoothed_cross_entropy,
)

LOGITS = 5 * jax.random.normal(jax.random.key(0), (3, 4, 7))
LABELS = jax.random.randint(jax.random.key(1), (3, 4), 0, 7)
WEIGHT = jax.random.normal(jax.random.key(2), (3, 4))


def of_optax(logits, smoothing):
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(jnp.eye(7)[LABELS], smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_are_those_of_optax(smoothing):
    @jax.jit
    def here(x):
        def total(x):
            smoothed, plain = smoothed_cross_entropy(x, LABELS, smoothing)
            return jnp.sum(WEIGHT * smoothed) + jnp.sum(plain), plain

        return jax.value_and_grad(total, has_aux=True)(x)

    (total, plain), gradient = here(LOGITS)
    np.testing.assert_allclose(plain, of_optax(LOGITS, 0.0), rtol=1e-5, atol=1e-5)
    expected = jnp.sum(WEIGHT * of_optax(LOGITS, smoothing)) + jnp.sum(of_optax(LOGITS, 0.0))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    wanted = jax.grad(lambda x: jnp.sum(WEIGHT * of_optax(x, smoothing)))(LOGITS)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_by_hand():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.25]))
    loss, gradient = jax.value_and_grad(cross_entropy)(logits, jnp.array(1))
    assert loss == pytest.approx(math.log(4))
    np.testing.assert_allclose(gradient, [0.5, -0.75, 0.25], rtol=1e-6)


def test_bfloat16_is_summed_in_float32_and_has_a_bfloat16_gradient():
    logits = LOGITS.astype(jnp.bfloat16)
    assert cross_entropy(logits, LABELS).dtype == jnp.float32
    assert jax.grad(lambda x: jnp.sum(cross_entropy(x, LABELS)))(logits).dtype == jnp.bfloat16


def test_labels_of_few_bits_meet_many_classes():
    logits = jnp.zeros(300)
    gradient = jax.grad(cross_entropy)(logits, jnp.array(2, jnp.uint8))
    np.testing.assert_allclose(gradient, 1 / 300 - (jnp.arange(300) == 2), rtol=1e-5)


def test_infinite_logits_and_large_ones_give_finite_gradients():
    logits = jnp.array([1e4, -jnp.inf, 0.0])
    loss, gradient = jax.value_and_grad(cross_entropy)(logits, jnp.array(0))
    assert loss == 0
    np.testing.assert_allclose(gradient, [0, 0, 0], atol=1e-6)


def test_smoothing_is_a_rate():
    with pytest.raises(ValueError, match="smoothing: got 1, expected a rate in"):
        smoothed_cross_entropy(LOGITS, LABELS, 1)


ROWS = 11
X = 2 * jax.random.normal(jax.random.key(3), (3, 4, 5))
TABLE = jax.random.normal(jax.random.key(4), (ROWS, 5))


def complete_logits(x, table):
    """Returns the loss and the best class with all logits at once."""
    logits = jnp.einsum("btd,vd->btv", x, table[:7], preferred_element_type=jnp.float32)
    return cross_entropy(logits, LABELS), jnp.argmax(logits, axis=-1)


def in_chunks(x, table, chunk_size, labels=LABELS):
    return linear_cross_entropy(x, table, labels, classes=7, chunk_size=chunk_size)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, ROWS, 100])
def test_loss_and_gradients_in_chunks_of_classes(chunk_size):
    def both(function):
        def total(x, table):
            loss, best = function(x, table)
            return jnp.sum(WEIGHT * loss), (loss, best)

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(X, TABLE)

    (_, (loss, best)), grads = both(functools.partial(in_chunks, chunk_size=chunk_size))
    (_, (wanted, wanted_best)), wanted_grads = both(complete_logits)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(best, wanted_best)
    assert best.dtype == jnp.int32
    for found, expected in zip(grads, wanted_grads, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.any(grads[1][7:])


def test_chunks_in_bfloat16_are_summed_in_float32():
    x = X.astype(jnp.bfloat16)
    loss, _ = in_chunks(x, TABLE, 3)
    assert loss.dtype == jnp.float32
    table = TABLE.astype(jnp.bfloat16)
    np.testing.assert_allclose(loss, complete_logits(x, table)[0], rtol=1e-5, atol=1e-5)
    total = lambda run: jax.grad(lambda x, table: jnp.sum(run(x, table)[0]), (0, 1))  # noqa: E731
    by_x, by_table = total(functools.partial(in_chunks, chunk_size=3))(x, TABLE)
    assert (by_x.dtype, by_table.dtype) == (jnp.bfloat16, jnp.float32)
    exact_x, exact_table = total(complete_logits)(x.astype(jnp.float32), TABLE)
    # The product of the gradient and x is rounded to 8 bits in each of its factors.
    np.testing.assert_allclose(by_x.astype(jnp.float32), exact_x, atol=0.05)
    np.testing.assert_allclose(by_table, exact_table, atol=0.1)


def test_chunks_with_equal_logits_and_labels_that_are_no_class():
    loss, best = in_chunks(jnp.zeros_like(X), TABLE, 3)
    np.testing.assert_allclose(loss, math.log(7), rtol=1e-6)
    np.testing.assert_array_equal(best, 0)
    labels = jnp.full((3, 4), -1).at[0].set(ROWS).at[1, 1].set(2)
    loss, _ = in_chunks(X, TABLE, 3, labels)
    assert np.isfinite(loss).sum() == 1
    assert np.isfinite(loss[1, 1])
    with pytest.raises(ValueError, match="chunk_size: got 0, expected at least 1"):
        in_chunks(X, TABLE, 0)


def test_no_array_has_the_logits_of_all_classes():
    def total(x, table):
        return jnp.sum(linear_cross_entropy(x, table, LABELS, classes=900, chunk_size=64)[0])

    table = jnp.zeros((960, 5))
    program = str(jax.make_jaxpr(jax.grad(total, (0, 1)))(X, table))
    assert "3,4,64]" in program
    assert "3,4,960]" not in program
    assert "3,4,900]" not in program


def test_divergence_of_passes_is_that_of_scipy():
    """Also with large logits, and equal passes."""
    logits = jnp.concatenate([LOGITS[:2], 40 * LOGITS[:2], LOGITS[2:], LOGITS[2:]])
    p, q = np.moveaxis(np.exp(jax.nn.log_softmax(logits)).reshape(3, 2, 4, 7).astype(float), 1, 0)
    expected = (scipy.special.rel_entr(p, q) + scipy.special.rel_entr(q, p)).sum(-1) / 2
    found = np.asarray(divergence_of_passes(logits))
    np.testing.assert_allclose(found[[0, 2]], expected[[0, 2]], rtol=1e-4, atol=1e-6)
    assert not np.any(found[2])
    # Probabilities of 0 in float32 have an infinite relative entropy, but finite logarithms.
    assert np.isfinite(found).all()
    assert np.isfinite(jax.grad(lambda x: jnp.sum(divergence_of_passes(x)))(logits)).all()


def test_divergence_of_passes_in_bfloat16_is_summed_in_float32():
    assert divergence_of_passes(LOGITS[:2].astype(jnp.bfloat16)).dtype == jnp.float32


def test_examples_are_repeated_beside_each_other():
    batch = repeat_examples({"source": jnp.array([[1, 2], [3, 4]]), "weight": jnp.array([1, 0])})
    np.testing.assert_array_equal(batch["source"], [[1, 2], [1, 2], [3, 4], [3, 4]])
    np.testing.assert_array_equal(batch["weight"], [1, 1, 0, 0])
    np.testing.assert_array_equal(batch["pass"], [0, 1, 0, 1])
