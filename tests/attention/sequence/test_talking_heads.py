"""Talking heads: by hand, compared with multi-head attention, masks that differ by head."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import MultiHeadAttention, attend, masks, recording
from attention.sequence.talking_heads import (
    TalkingHeadsAttention,
    talking_heads,
    talking_heads_weights,
)
from tests.attention.compiled import compiled
from tests.attention.subjects import normal

attend, talking_heads, talking_heads_weights = map(
    compiled, (attend, talking_heads, talking_heads_weights)
)

B, T, S, N, H, V, D = 2, 4, 5, 2, 3, 6, 8
EYE = np.eye(N, dtype=np.float32)


def arrays():
    return normal(0, B, T, N, H), normal(1, B, S, N, H), normal(2, B, S, N, V)


def test_swapped_heads_by_hand():
    query, key, value = arrays()
    swap = EYE[::-1]
    # Logits of head 0 serve head 1 and the other way round.
    expected = attend(query[:, :, ::-1], key[:, :, ::-1], value)
    np.testing.assert_allclose(talking_heads(query, key, value, swap, EYE), expected, atol=1e-6)
    # Weights swapped back: the values' heads are all that has moved.
    expected = attend(query, key, value)
    np.testing.assert_allclose(talking_heads(query, key, value, swap, swap), expected, atol=1e-6)


def test_one_key_by_hand():
    # One key has all of every softmax: the weights are the sums of R's columns.
    query, key, value = arrays()
    R = np.array([[1.0, -3.0], [0.5, 2.0]], np.float32)
    weights = talking_heads_weights(query, key[:, :1], EYE, R)
    np.testing.assert_allclose(weights[0, :, 0, 0], [1.5, -1.0], rtol=1e-6)
    heads = talking_heads(query, key[:, :1], value[:, :1], EYE, R)
    np.testing.assert_allclose(heads[:, 0], value[:, 0] * [[1.5], [-1.0]], rtol=1e-5)


def test_it_starts_as_multi_head_attention():
    talking = TalkingHeadsAttention(D, N, rngs=nnx.Rngs(0))
    plain = MultiHeadAttention(D, N, rngs=nnx.Rngs(0))
    for name in ("query", "key", "value", "out"):
        getattr(plain, name).kernel[...] = getattr(talking, name).kernel[...]
    x = normal(3, B, T, D)
    np.testing.assert_allclose(
        talking(x, mask=masks.causal()), plain(x, mask=masks.causal()), atol=1e-6
    )


def test_a_mask_that_differs_by_head_hides_after_both_mixings():
    query, key, value = arrays()
    seen = np.random.default_rng(0).uniform(size=(B, N, T, S)) < 0.6
    seen[0, 0, 0] = False
    P, R = normal(3, N, N), normal(4, N, N)
    weights = np.asarray(talking_heads_weights(query, key, P, R, mask=seen))
    np.testing.assert_array_equal(weights[~seen], 0)
    assert (weights[seen] != 0).all()
    heads = talking_heads(query, key, value, P, R, mask=seen)
    np.testing.assert_array_equal(heads[0, 0, 0], 0)
    np.testing.assert_allclose(heads, np.einsum("bnts,bsnv->btnv", weights, value), atol=1e-5)


def test_what_is_recorded_is_what_is_returned():
    module = TalkingHeadsAttention(D, N, rngs=nnx.Rngs(0))
    seen = []
    with recording.recorder(lambda compute: seen.append(compute())):
        _, weights = module(normal(0, B, T, D), return_weights=True)
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], weights)


def test_a_full_cache_is_told():
    module = TalkingHeadsAttention(D, N, rngs=nnx.Rngs(0))
    cache = module.init_cache(B, 3, dtype=jnp.bfloat16)
    assert cache.key.dtype == jnp.bfloat16
    _, cache = module.decode(normal(0, B, 3, D), cache)
    with pytest.raises(ValueError, match="cache: got 4 positions, expected at most max_length=3"):
        module.decode(normal(0, B, 1, D), cache)


def test_mistakes_are_told():
    for wrong, message in (
        ({"num_heads": 3}, "num_heads: got 3, expected a positive divisor of model_size=8"),
        ({"dropout_rate": 1.0}, "dropout_rate: got 1.0"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            TalkingHeadsAttention(D, **({"num_heads": 2} | wrong), rngs=nnx.Rngs(0))
    query, key, value = arrays()
    for arguments, message in (
        ((query, key, value, EYE, EYE[:1]), r"weight_mixing: got shape \[1, 2\], expected"),
        ((query, key, value, EYE[0], EYE), r"logit_mixing: got shape \[2\], expected \[N, N\]"),
        ((query, key[:, :, :1], value[:, :, :1], EYE, EYE), r"key: got shape \[2, 5, 1, 3\]"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            talking_heads(*arguments)
    module = TalkingHeadsAttention(D, N, memory_size=5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"^memory: got shape \[2, 4, 8\], expected \[B, S, M\]"):
        module(normal(0, B, T, D), normal(0, B, T, D))
