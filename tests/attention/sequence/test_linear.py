"""Linear attention: what the contract does not ask. The Performer is in test_performer.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import MultiHeadAttention, masks
from attention.sequence.gated_delta_net import GatedDeltaNet
from attention.sequence.linear import (
    LinearAttention,
    LinearState,
    elu_features,
    linear_attention,
)
from attention.sequence.performer import Performer
from tests.attention.sequence.shapes_of import largest
from tests.attention.subjects import normal

B, T, N, F, V, D = 2, 37, 2, 5, 3, 8


def problem(length=T, seed=0):
    """Returns φ(q), φ(k), v and the mask of valid keys."""
    query, key = (np.exp(normal(seed + i, B, length, N, F)) for i in (0, 1))
    valid = np.random.default_rng(seed).random((B, length)) < 0.7
    return query, key, normal(seed + 2, B, length, N, V), valid


def dense(query, key, value, allowed):
    """Computes the definition with a dense matrix of weights, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    similarities = np.einsum("btnf,bsnf->bnts", query, key) * allowed
    total = similarities.sum(-1, keepdims=True)
    weights = similarities / np.where(total == 0, 1, total)
    return np.einsum("bnts,bsnv->btnv", weights, value)


def allowed(valid, causal):
    length = valid.shape[1]
    seen = np.broadcast_to(valid[:, None, None], (B, 1, length, length))
    return seen & np.tri(length, dtype=bool) if causal else seen


def test_elu_features_by_hand():
    expected = [np.exp(-34.0), np.exp(-30.0), np.exp(-1.0), 1.0, 3.0]
    x = jnp.array([-1000.0, -30.0, -1.0, 0.0, 2.0])
    np.testing.assert_allclose(elu_features(x), expected, 1e-6)
    slopes = jax.vmap(jax.grad(elu_features))(jnp.array([-1.0, 2.0, 200.0]))
    np.testing.assert_allclose(slopes, [np.exp(-1.0), 1.0, 1.0], 1e-6)


def test_by_hand():
    # φ(q)·φ(k) is 1·1 + 2·0 = 1 with the first key, 1·1 + 2·1 = 3 with the second.
    query = jnp.array([1.0, 2.0]).reshape(1, 1, 1, 2)
    key = jnp.array([[1.0, 0.0], [1.0, 1.0]]).reshape(1, 2, 1, 2)
    value = jnp.array([[8.0, 0.0], [0.0, 4.0]]).reshape(1, 2, 1, 2)
    out, state = linear_attention(query, key, value, return_state=True)
    np.testing.assert_allclose(out.reshape(-1), [2.0, 3.0])
    np.testing.assert_allclose(state.sums[0, 0], [[8.0, 4.0], [0.0, 4.0]])
    np.testing.assert_allclose(state.total[0, 0], [2.0, 1.0])


@pytest.mark.parametrize("chunk_size", [1, 7, 64])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_the_dense_form(causal, chunk_size):
    query, key, value, valid = problem()
    options = {"causal": causal, "key_valid": valid, "chunk_size": chunk_size}
    out = jax.jit(lambda *arrays: linear_attention(*arrays, **options))(query, key, value)
    expected = dense(query, key, value, allowed(valid, causal))
    np.testing.assert_allclose(out, expected, atol=2e-6, rtol=2e-6)


def test_gradient_does_not_depend_on_the_chunks():
    query, key, value, valid = problem()
    cotangent = normal(9, *value.shape)

    def gradient(chunk_size):
        def total(*arrays):
            out = linear_attention(*arrays, causal=True, key_valid=valid, chunk_size=chunk_size)
            return jnp.sum(out * cotangent)

        return jax.jit(jax.grad(total, (0, 1, 2)))(query, key, value)

    for one, other in zip(gradient(4), gradient(64), strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6, rtol=5e-6)


def test_pieces_with_a_state_equal_the_whole():
    query, key, value, valid = problem()
    options = {"causal": True, "chunk_size": 4, "return_state": True}
    run = jax.jit(functools.partial(linear_attention, **options))
    whole, last = run(query, key, value, key_valid=valid)
    state, pieces = None, []
    for part in (slice(0, 3), slice(3, 4), slice(4, T)):
        arrays = (x[:, part] for x in (query, key, value))
        out, state = run(*arrays, key_valid=valid[:, part], state=state)
        pieces.append(out)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=2e-6)
    np.testing.assert_allclose(state.sums, last.sums, rtol=1e-5)
    np.testing.assert_allclose(state.total, last.total, rtol=1e-5)


def test_state_without_causal_is_more_keys():
    query, key, value, _ = problem()
    _, state = linear_attention(query, key[:, :9], value[:, :9], return_state=True)
    out = linear_attention(query, key[:, 9:], value[:, 9:], state=state)
    np.testing.assert_allclose(out, linear_attention(query, key, value), atol=2e-6)


def test_query_marks_give_zero():
    query, key, value, valid = problem()
    out = linear_attention(query, key, value, query_valid=valid)
    assert (np.asarray(out)[~valid] == 0).all()
    plain = linear_attention(query, key, value)
    np.testing.assert_array_equal(np.asarray(out)[valid], np.asarray(plain)[valid])


def test_small_features_are_no_empty_rows():
    # Products of about exp(-100): no float32, unless the query's scale cancels first.
    query, key, value, _ = problem()
    out = linear_attention(query * np.float32(1e-25), key * np.float32(1e-20), value)
    np.testing.assert_allclose(out, linear_attention(query, key, value), rtol=1e-5, atol=1e-6)


def test_large_inputs_stay_finite():
    module, x = LinearAttention(D, N, rngs=nnx.Rngs(0)), 30 * normal(0, B, T, D)

    def total(x, mask):
        return jnp.sum(module(x, mask=mask) ** 2)

    for mask in (None, masks.causal()):
        value, gradient = jax.jit(jax.value_and_grad(total))(x, mask)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("kernel", ["linear", "softmax", "relu"])
def test_padding_anywhere_and_however_much_changes_nothing(kernel):
    module = LinearAttention(D, N, chunk_size=4, rngs=nnx.Rngs(0))
    if kernel != "linear":
        module = Performer(D, N, kernel=kernel, features=8, chunk_size=4, rngs=nnx.Rngs(0))
    x = normal(0, B, 5, D)
    places = np.array([2, 3, 7, 8, 15])
    spread = np.full((B, 17, D), 50.0, np.float32)
    spread[:, places] = x
    valid = np.zeros((B, 17), bool)
    valid[:, places] = True
    for arrow in (None, masks.causal()):
        mask = masks.valid(key=valid)
        run = jax.jit(lambda x, mask: module(x, mask=mask))
        out = run(spread, mask if arrow is None else mask & arrow)
        np.testing.assert_allclose(out[:, places], run(x, arrow), atol=2e-6)


@pytest.mark.parametrize("cls", [LinearAttention, Performer, GatedDeltaNet])
def test_query_lengths_leave_the_bias(cls):
    module = cls(D, N, rngs=nnx.Rngs(0))
    module.out.bias[...] = jnp.arange(1.0, D + 1)
    x = normal(0, B, 6, D)
    run = jax.jit(lambda lengths: module(x, mask=masks.lengths(query=lengths), return_weights=True))
    (plain, _), (out, weights) = run(np.array([6, 6])), run(np.array([6, 2]))
    np.testing.assert_array_equal(out[0], plain[0])
    np.testing.assert_array_equal(out[1, :2], plain[1, :2])
    np.testing.assert_array_equal(out[1, 2:], np.broadcast_to(np.arange(1.0, D + 1), (4, D)))
    assert (np.asarray(weights)[1, :, 2:] == 0).all()


LONG = 1024


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (LinearAttention, {}),
        (Performer, {"features": 16}),
        (Performer, {"features": 16, "kernel": "relu"}),
        (GatedDeltaNet, {}),
    ],
    ids=["linear", "performer", "performer_relu", "gated_delta_net"],
)
@pytest.mark.parametrize("causal", [True, False])
def test_nothing_of_the_length_squared_is_formed(cls, options, causal):
    module = cls(D, 1, **options, rngs=nnx.Rngs(0))
    mask = masks.lengths(key=np.array([1000]))
    mask = mask & masks.causal() if causal else mask
    x = jax.ShapeDtypeStruct((1, LONG, D), jnp.float32)
    # A chunk's weights for each position: 64. Sums have F·(V + 1) entries a chunk.
    assert largest(lambda x: module(x, mask=mask), x) <= LONG * 64
    cache = jax.eval_shape(lambda: module.init_cache(1, LONG))
    assert largest(lambda x, cache: module.decode(x, cache)[0], x, cache) <= LONG * 64


def test_the_measure_sees_what_is_of_the_length_squared():
    module = MultiHeadAttention(D, 1, implementation="reference", rngs=nnx.Rngs(0))
    x = jax.ShapeDtypeStruct((1, LONG, D), jnp.float32)
    assert largest(lambda x: module(x, mask=masks.causal()), x) >= LONG**2


def test_state_is_as_large_for_any_length():
    for module in (
        LinearAttention(D, N, rngs=nnx.Rngs(0)),
        Performer(D, N, rngs=nnx.Rngs(0)),
        GatedDeltaNet(D, N, rngs=nnx.Rngs(0)),
    ):
        short, long = (module.init_cache(B, length) for length in (1, 10**6))
        assert jax.tree.map(jnp.shape, short) == jax.tree.map(jnp.shape, long)
        low = module.init_cache(B, 1, dtype=jnp.bfloat16)
        assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype("float32")}


def test_float64_stays():
    query, key, value, valid = problem()
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x, jnp.float64) for x in (query, key, value)]
        options = {"causal": True, "key_valid": valid, "chunk_size": 8}
        out = jax.jit(functools.partial(linear_attention, **options))(*arrays)
        assert out.dtype == jnp.float64
        expected = dense(query, key, value, allowed(valid, True))
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-13)


def test_result_has_the_dtype_of_the_value():
    query, key, value, _ = problem()
    out, state = linear_attention(query, key, jnp.asarray(value, jnp.bfloat16), return_state=True)
    assert out.dtype == jnp.bfloat16
    assert state.sums.dtype == jnp.float32


QUERY, KEY, VALUE, VALID = problem(6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: linear_attention(QUERY, KEY[:, :4], VALUE[:, :4], causal=True),
            r"key_features: got S=4 keys, expected T=6",
        ),
        (
            lambda: linear_attention(QUERY, KEY[..., :2], VALUE),
            r"key_features: got shape \[2, 6, 2, 2\], expected .*F=5",
        ),
        (
            lambda: linear_attention(QUERY, KEY, VALUE, key_valid=VALID[:, :3]),
            r"key_valid: got shape \[2, 3\], expected .*S=6",
        ),
        (
            lambda: linear_attention(QUERY, KEY, VALUE, query_valid=VALID.astype(float)),
            r"query_valid: ",
        ),
        (
            lambda: linear_attention(QUERY, KEY.astype(np.float16), VALUE),
            r"key_features: got dtype float16, expected float32",
        ),
        (
            lambda: linear_attention(QUERY, KEY, VALUE, chunk_size=0),
            r"chunk_size: got 0, expected an int of at least 1",
        ),
        (
            lambda: linear_attention(
                QUERY, KEY, VALUE, state=LinearState(jnp.ones((B, N, F, 4)), jnp.ones((B, N, F)))
            ),
            r"state.sums: got shape \[2, 2, 5, 4\], expected .*V=3",
        ),
        (lambda: LinearAttention(8, 3, rngs=nnx.Rngs(0)), r"num_heads: got 3, expected"),
        (
            lambda: LinearAttention(8, 2, chunk_size=0, rngs=nnx.Rngs(0)),
            r"chunk_size: got 0, expected",
        ),
        (
            lambda: LinearAttention(8, 2, dropout_rate=1.0, rngs=nnx.Rngs(0)),
            r"dropout_rate: got 1.0, expected",
        ),
        (
            lambda: LinearAttention(8, 2, rngs=nnx.Rngs(0))(np.ones((2, 5, 7), np.float32)),
            r"x: got shape \[2, 5, 7\], expected .*D=8",
        ),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
