"""Schedules against values computed by hand, and the parameters with weight decay."""

import jax.numpy as jnp
import numpy as np
import pytest

from launch.engine.optimizers import OptimizerConfig, make_optimizer, make_schedule


def test_linear_schedule_with_warmup():
    schedule = make_schedule(
        OptimizerConfig(learning_rate=0.4, schedule="linear", warmup_steps=4), steps=12
    )
    rates = [float(schedule(step)) for step in range(12)]
    # Rises to the peak in four steps, then falls by an eighth of the peak per step.
    np.testing.assert_allclose(rates[:4], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(rates[4:], 0.4 * (1 - np.arange(8) / 8), rtol=1e-6)


def test_cosine_schedule_ends_at_the_final_fraction():
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, final_fraction=0.1), steps=10)
    assert float(schedule(0)) == pytest.approx(1.0)
    assert float(schedule(5)) == pytest.approx(0.55)
    assert float(schedule(10)) == pytest.approx(0.1)


def test_inverse_sqrt_schedule():
    schedule = make_schedule(
        OptimizerConfig(learning_rate=2.0, schedule="inverse_sqrt", warmup_steps=4), steps=100
    )
    assert float(schedule(0)) == pytest.approx(0.5)
    assert float(schedule(3)) == pytest.approx(2.0)
    assert float(schedule(15)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_weight_decay_touches_kernels_and_embeddings_only(name):
    config = OptimizerConfig(
        name=name, learning_rate=0.5, schedule="constant", weight_decay=0.2, clip_norm=0.0
    )
    params = {"a": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}, "t": {"embedding": jnp.ones(3)}}
    optimizer = make_optimizer(config, steps=10)
    zeros = {"a": {"kernel": jnp.zeros(3), "bias": jnp.zeros(3)}, "t": {"embedding": jnp.zeros(3)}}
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["t"]["embedding"], -0.1, rtol=1e-6)
    np.testing.assert_array_equal(updates["a"]["bias"], 0.0)


def test_clipping_bounds_the_global_norm():
    config = OptimizerConfig(
        name="sgd", learning_rate=1.0, schedule="constant", clip_norm=1.0, beta1=0.0
    )
    optimizer = make_optimizer(config, steps=10)
    params = {"kernel": jnp.zeros(2)}
    updates, _ = optimizer.update({"kernel": jnp.array([3.0, 4.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [-0.6, -0.8], rtol=1e-6)
