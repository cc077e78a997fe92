"""Cross-entropy compared with optax's, by hand, and its gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tasks.common.losses import cross_entropy, smoothed_cross_entropy

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
