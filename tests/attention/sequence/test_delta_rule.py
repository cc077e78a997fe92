"""The gated delta rule, its convolution and Gated DeltaNet: what the contract does not ask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import masks
from attention.sequence.delta_rule import (
    gated_delta_rule_chunked,
    gated_delta_rule_recurrent,
    gated_delta_rule_weights,
)
from attention.sequence.gated_delta_net import (
    GatedDeltaNet,
    causal_depthwise_convolution,
    l2_normalize,
)
from tests.attention.subjects import normal

B, T, K, N, H, V, D = 2, 70, 2, 4, 6, 3, 8


def problem(length=T, seed=0, decay=1.0):
    """Returns query, key of length 1, value, log decay, β."""
    rng = np.random.default_rng(seed)
    key = normal(seed, B, length, K, H)
    return (
        normal(seed + 1, B, length, K, H),
        key / np.linalg.norm(key, axis=-1, keepdims=True),
        normal(seed + 2, B, length, N, V),
        -decay * rng.random((B, length, N), np.float32),
        rng.random((B, length, N), np.float32),
    )


def column(*numbers):
    """Reshapes to [1, T, 1, 1]."""
    return jnp.array(numbers).reshape(1, -1, 1, 1)


@pytest.mark.parametrize("rule", [gated_delta_rule_recurrent, gated_delta_rule_chunked])
def test_by_hand(rule):
    # One number of memory, read as it is, keys 1: m becomes α m + β (v - α m).
    gates = (jnp.log(jnp.array([1.0, 1.0, 0.5, 1.0])), jnp.array([1.0, 0.5, 0.0, 1.0]))
    gates = [gate.reshape(1, -1, 1) for gate in gates]
    ones = column(1.0, 1, 1, 1)
    out, state = jax.jit(rule)(ones, ones, column(8.0, 4, 9, 2), *gates)
    # 8 is written; half way to 4; nothing is written, half is forgotten; 2 replaces all.
    np.testing.assert_allclose(out.reshape(-1), [8.0, 6.0, 3.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(state.reshape(-1), [2.0], rtol=1e-6)


def test_a_key_is_read_back_and_another_left_alone():
    # The delta rule replaces the value of a key that is written again, and keeps orthogonal keys.
    keys = np.eye(3, dtype=np.float32)[[0, 1, 0, 2, 2]].reshape(1, 5, 1, 3)
    value = normal(0, 1, 5, 1, 2)
    query = np.eye(3, dtype=np.float32)[[0, 0, 1, 0, 2]].reshape(1, 5, 1, 3)
    always = np.ones((1, 5, 1), np.float32)
    rule = jax.jit(functools.partial(gated_delta_rule_chunked, chunk_size=2))
    out, _ = rule(query, keys, value, 0 * always, always)
    np.testing.assert_allclose(out[0, :, 0], value[0, [0, 0, 1, 2, 4], 0], atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 5, 64])
def test_chunks_equal_steps(chunk_size):
    arrays, state = problem(), normal(9, B, N, H, V)
    cotangents = normal(10, B, T, N, V), normal(11, B, N, H, V)

    @functools.partial(jax.jit, static_argnums=0)
    def run(rule, *arrays):
        results, backward = jax.vjp(rule, *arrays)
        return results, backward(cotangents)

    chunked = functools.partial(gated_delta_rule_chunked, chunk_size=chunk_size)
    results, gradient = run(chunked, *arrays, state)
    expected, expected_gradient = run(gated_delta_rule_recurrent, *arrays, state)
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6, rtol=5e-6)
    for one, other in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("decay", [0.0, 300.0])
def test_chunks_equal_steps_where_it_is_hard(decay):
    # The same key 64 times: the inverse's terms grow like binomials unless it is solved row by row.
    # With this decay, the quotient of two cumulative decays would overflow.
    query, _, value, log_decay, _ = problem(64, decay=decay)
    key = np.broadcast_to(problem(1)[1], (B, 64, K, H))
    beta = np.ones((B, 64, N), np.float32)
    arrays = (query, key, value, log_decay, beta)
    out, state = jax.jit(gated_delta_rule_chunked)(*arrays)
    expected, expected_state = jax.jit(gated_delta_rule_recurrent)(*arrays)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    np.testing.assert_allclose(state, expected_state, atol=2e-5)
    gradient = jax.grad(lambda *a: jnp.sum(gated_delta_rule_chunked(*a)[0] ** 2), range(5))
    for leaf in jax.jit(gradient)(*arrays):
        assert np.isfinite(leaf).all()


def test_pieces_with_a_state_equal_the_whole():
    arrays = problem(12)
    rule = jax.jit(functools.partial(gated_delta_rule_chunked, chunk_size=4))
    whole, last = rule(*arrays)
    first, state = rule(*(x[:, :5] for x in arrays))
    second, state = rule(*(x[:, 5:] for x in arrays), state)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=2e-6)
    np.testing.assert_allclose(state, last, atol=2e-6)


def test_weights_take_values_to_results():
    query, key, value, log_decay, beta = problem(11)
    weigh = jax.jit(functools.partial(gated_delta_rule_weights, chunk_size=4))
    weights = weigh(query, key, log_decay, beta)
    out, _ = jax.jit(gated_delta_rule_recurrent)(query, key, value, log_decay, beta)
    np.testing.assert_allclose(np.einsum("bnts,bsnv->btnv", weights, value), out, atol=5e-6)
    assert (np.triu(weights, 1) == 0).all()
    assert weights.min() < -0.1


def test_float64_stays():
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x, jnp.float64) for x in problem()]
        out, state = jax.jit(gated_delta_rule_chunked)(*arrays)
        expected, _ = jax.jit(gated_delta_rule_recurrent)(*arrays)
        assert out.dtype == state.dtype == jnp.float64
        np.testing.assert_allclose(out, expected, atol=1e-13)
    low = [jnp.asarray(x, jnp.bfloat16) for x in problem()]
    out, state = jax.eval_shape(gated_delta_rule_chunked, *low)
    assert (out.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)


def test_convolution_equals_numpys():
    x, filters = normal(0, B, 9, 3), normal(1, 4, 3)
    out, conv_state = causal_depthwise_convolution(x, filters)
    for b, c in np.ndindex(B, 3):
        np.testing.assert_allclose(
            out[b, :, c], np.convolve(x[b, :, c], filters[:, c])[:9], atol=1e-6
        )
    np.testing.assert_array_equal(conv_state, x[:, -3:])


def test_convolution_skips_what_is_not_real():
    x, filters, conv_state = normal(0, 2, 9, 3), normal(1, 4, 3), normal(2, 2, 3, 3)
    valid = np.array([[0, 0, 1, 1, 0, 0, 1, 0, 1], [1, 0, 0, 0, 0, 0, 0, 0, 0]], bool)
    out, after = jax.jit(causal_depthwise_convolution)(
        x, filters, valid=valid, conv_state=conv_state
    )
    for b in range(2):
        real = x[b : b + 1, valid[b]]
        expected, last = causal_depthwise_convolution(
            real, filters, conv_state=conv_state[b : b + 1]
        )
        np.testing.assert_allclose(out[b : b + 1, valid[b]], expected, atol=1e-6)
        np.testing.assert_array_equal(after[b : b + 1], last)


def test_convolution_of_one_tap_has_no_tail():
    x, filters = normal(0, B, 5, 3), normal(1, 1, 3)
    out, conv_state = causal_depthwise_convolution(x, filters, valid=np.ones((B, 5), bool))
    np.testing.assert_allclose(out, x * filters[0], rtol=1e-6)
    assert conv_state.shape == (B, 0, 3)


def test_unit_length_by_hand():
    np.testing.assert_allclose(l2_normalize(jnp.array([3.0, -4.0])), [0.6, -0.8], rtol=1e-6)
    zeros = jnp.zeros(3)
    np.testing.assert_array_equal(l2_normalize(zeros), zeros)
    assert np.isfinite(jax.grad(lambda x: l2_normalize(x).sum())(zeros)).all()


def mixer(**options):
    return GatedDeltaNet(D, 2, **({"chunk_size": 4} | options), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "places", [[0, 1, 2, 3, 4], [12, 13, 14, 15, 16], [2, 3, 7, 8, 15]], ids=["end", "start", "any"]
)
def test_padding_anywhere_and_however_much_changes_nothing(places):
    module, x = mixer(), normal(0, B, 5, D)
    run = jax.jit(lambda x, mask: module(x, mask=mask, return_weights=True))
    spread = np.full((B, 17, D), 50.0, np.float32)
    spread[:, places] = x
    valid = np.zeros((B, 17), bool)
    valid[:, places] = True
    out, weights = run(spread, masks.valid(key=valid))
    plain, plain_weights = run(x, None)
    np.testing.assert_allclose(out[:, places], plain, atol=2e-6)
    chosen = np.asarray(weights)[:, :, places][..., places]
    np.testing.assert_allclose(chosen, plain_weights, atol=1e-6)
    hidden = np.delete(weights, places, axis=-1)
    np.testing.assert_array_equal(hidden, 0)


def test_it_is_causal_asked_or_not():
    module, x = jax.jit(mixer()), normal(0, B, 9, D)
    np.testing.assert_array_equal(module(x), module(x, mask=masks.causal()))
    np.testing.assert_allclose(module(x)[:, :6], module(x[:, :6]), atol=2e-6)


def test_a_call_without_real_positions_leaves_the_state():
    module, x = mixer(), normal(0, B, 4, D)
    decode = jax.jit(module.decode)
    _, cache = decode(x, module.init_cache(B, 9), lengths=np.array([4, 2]))
    _, same = decode(x, cache, lengths=np.array([0, 1]))
    for before, after in zip(jax.tree.leaves(cache), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(before[0], after[0])
        assert np.abs(before[1] - after[1]).max() > 1e-3


def test_large_inputs_stay_finite():
    module, x = mixer(), 30 * normal(0, B, 9, D)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: jnp.sum(module(x) ** 2)))(x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_parameter_layout():
    module = GatedDeltaNet(
        8, 4, key_heads=2, key_head_size=6, value_head_size=3, conv_size=5, rngs=nnx.Rngs(0)
    )
    state = nnx.to_flat_state(nnx.state(module, nnx.Param))
    assert {"/".join(map(str, path)): leaf[...].shape for path, leaf in state} == {
        "query/kernel": (8, 2, 6),
        "query/bias": (2, 6),
        "key/kernel": (8, 2, 6),
        "key/bias": (2, 6),
        "value/kernel": (8, 4, 3),
        "value/bias": (4, 3),
        "gate/kernel": (8, 4, 3),
        "gate/bias": (4, 3),
        "beta/kernel": (8, 4),
        "beta/bias": (4,),
        "decay/kernel": (8, 4),
        "decay/bias": (4,),
        "log_rate": (4,),
        "query_filter": (5, 2, 6),
        "key_filter": (5, 2, 6),
        "value_filter": (5, 4, 3),
        "norm/scale": (3,),
        "out/kernel": (4, 3, 8),
        "out/bias": (8,),
    }
    bare = nnx.eval_shape(lambda: GatedDeltaNet(8, 4, use_bias=False, rngs=nnx.Rngs(0)))
    names = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(bare))]
    assert [name for name in names if name.endswith("bias")] == ["decay/bias"]


def test_memory_begins_long():
    module = GatedDeltaNet(64, 64, rngs=nnx.Rngs(0))
    rate = np.exp(module.log_rate[...])
    step = np.log1p(np.exp(np.asarray(module.decay.bias[...], np.float64)))
    assert rate.min() >= 1
    assert rate.max() <= 16
    assert step.min() >= 0.00099
    assert step.max() <= 0.101
    assert np.ptp(rate) > 10
    assert np.ptp(np.log(step)) > 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixer(key_heads=3), r"key_heads: got 3, expected a positive divisor"),
        (lambda: mixer(key_head_size=0), r"key_head_size: got 0, expected at least 1"),
        (lambda: mixer(value_head_size=-1), r"value_head_size: got -1, expected at least 1"),
        (lambda: mixer(conv_size=0), r"conv_size: got 0, expected at least 1"),
        (lambda: mixer(chunk_size=0), r"chunk_size: got 0, expected an int of at least 1"),
        (lambda: mixer(epsilon=0.0), r"epsilon: got 0.0, expected a number above 0"),
        (lambda: mixer(dropout_rate=1.5), r"dropout_rate: got 1.5, expected"),
        (lambda: GatedDeltaNet(8, 3, rngs=nnx.Rngs(0)), r"num_heads: got 3, expected"),
        (lambda: mixer()(np.ones((2, 5, 7), np.float32)), r"x: got shape \[2, 5, 7\], expected"),
        (
            lambda: mixer().decode(normal(0, 3, 1, D), mixer().init_cache(B, 4)),
            r"x: got shape \[3, 1, 8\], expected .*B=2",
        ),
        (
            lambda: gated_delta_rule_chunked(*problem(5)[:4], np.ones((B, 5, 3), np.float32)),
            r"beta: got shape \[2, 5, 3\], expected .*N=4",
        ),
        (
            lambda: gated_delta_rule_recurrent(*problem(5), np.ones((B, N, V, H), np.float32)),
            r"state: got shape \[2, 4, 3, 6\], expected .*H=6, V=3",
        ),
        (
            lambda: gated_delta_rule_recurrent(*(x[:, :, :3] for x in problem(5))),
            r"key: got K=2 heads, expected a divisor of the value's N=3",
        ),
        (
            lambda: causal_depthwise_convolution(normal(0, B, 5, 3), normal(1, 4, 2)),
            r"filters: got shape \[4, 2\], expected .*C=3",
        ),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
