"""Mixers with sparse patterns: special cases, visibility of distant positions, caches, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import MultiHeadAttention, masks, recording, registry
from attention.sequence.longformer import Longformer
from attention.sequence.sparse import BigBird, Fixed, SlidingWindow, Strided
from tests.attention.subjects import normal

B, T, N, D = 2, 12, 2, 8
X = normal(0, B, T, D)


def built(kind, **options):
    """Builds a module whose parameters depend only on their names, not on the class."""
    return kind(D, N, **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "module",
    [
        built(SlidingWindow, left=None, right=T),
        built(SlidingWindow, left=T, right=None),
        built(Strided, stride=1),
        built(Strided, stride=T),
        built(Fixed, block=T, summary=1),
        built(Fixed, block=1, summary=1),
        built(BigBird, block=4, window=2),
        built(BigBird, block=2, window=0, global_blocks=6),
        built(Longformer, window=T, global_tokens=0),
        built(Longformer, window=0, global_tokens=T, share_projections=True),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_pattern_of_all_pairs_is_attention(module):
    plain = built(MultiHeadAttention)(X, mask=masks.causal(), return_weights=True)
    for actual, expected in zip(
        module(X, mask=masks.causal(), return_weights=True), plain, strict=True
    ):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "position", "seen"),
    [
        (built(SlidingWindow, left=2, right=1), 5, [3, 4, 5, 6]),
        (built(SlidingWindow, left=2, right=1, dilation=3), 6, [0, 3, 6, 9]),
        (built(Strided, stride=4), 9, [1, 5, 6, 7, 8, 9, 10, 11]),
        (built(Fixed, block=5, summary=2), 1, [0, 1, 2, 3, 4, 8, 9]),
        (built(BigBird, block=2, window=0, random_blocks=0), 7, [0, 1, 6, 7]),
        (built(Longformer, window=1), 6, [0, 5, 6, 7]),
        (built(Longformer, window=1), 0, list(range(T))),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nnx.Module) else "",
)
def test_a_result_depends_on_what_is_seen(module, position, seen):
    gradient = jax.jacobian(lambda x: module(x)[0, position].sum())(X)
    np.testing.assert_array_equal(np.flatnonzero(np.abs(gradient[0]).max(-1)), seen)
    _, weights = module(X, return_weights=True)
    for head in weights[0, :, position]:
        np.testing.assert_array_equal(np.flatnonzero(head), seen)


def test_uniform_weights_by_hand():
    # Without a query all logits are 0, so the result is the mean of the visible values.
    module = built(SlidingWindow, left=1, right=0, use_bias=False)
    module.query.kernel[...] = jnp.zeros_like(module.query.kernel[...])
    module.value.kernel[...] = jnp.eye(D).reshape(D, N, D // N)
    module.out.kernel[...] = jnp.eye(D).reshape(N, D // N, D)
    expected = (X[:, 1:] + X[:, :-1]) / 2
    np.testing.assert_allclose(module(X)[:, 1:], expected, atol=1e-6)
    np.testing.assert_allclose(module(X)[:, 0], X[:, 0], atol=1e-6)


def test_a_window_keeps_few_keys():
    kept = {"left": 3, "right": 128}
    assert built(SlidingWindow, **kept).init_cache(B, 100).capacity == 4
    assert built(SlidingWindow, **kept, dilation=2).init_cache(B, 100).capacity == 100
    assert built(SlidingWindow, left=None, right=0).init_cache(B, 100).capacity == 100
    assert built(Strided).init_cache(B, 100).capacity == 100
    cache = built(Longformer, global_tokens=3).init_cache(B, 100)
    assert (cache.local.capacity, cache.start.capacity) == (100, 3)
    assert built(Longformer, share_projections=True).init_cache(B, 100).start is None


@pytest.mark.parametrize(
    "module",
    [
        built(SlidingWindow, left=3, right=3),
        built(SlidingWindow, left=2, dilation=2),
        built(Strided, stride=5),
        built(Fixed, block=4, summary=1),
        built(BigBird, block=2, window=1, random_blocks=1),
        built(Longformer, window=2, global_tokens=4),
    ],
    ids=lambda module: type(module).__name__,
)
def test_decoding_one_by_one(module):
    full = module(X, mask=masks.causal())
    cache, step = module.init_cache(B, T + 3), jax.jit(module.decode)
    for t in range(T):
        out, cache = step(X[:, t : t + 1], cache)
        np.testing.assert_allclose(out[:, 0], full[:, t], atol=2e-6)


def test_longformer_with_marks():
    module = built(Longformer, window=1, global_tokens=2)
    marks = np.zeros((B, T), bool)
    marks[:, :2] = True
    expected = module(X, return_weights=True)
    actual = module(X, global_marks=marks, return_weights=True)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    # Another place in each example: as if that one had come first, in a window of all.
    wide = built(Longformer, window=T)
    marks = np.arange(T) == np.array([[4], [7]])
    out = wide(X, global_marks=marks)
    for b, place in ((0, 4), (1, 7)):
        order = [place, *(t for t in range(T) if t != place)]
        expected = wide(X[b : b + 1, order])
        np.testing.assert_allclose(out[b, order], expected[0], atol=1e-6)
    none = wide(X, global_marks=np.zeros((B, T), bool))
    np.testing.assert_allclose(none, built(MultiHeadAttention)(X), atol=1e-6)


def test_longformer_shares_projections_or_has_its_own():
    own, shared = built(Longformer), built(Longformer, share_projections=True)
    assert own.query_global.kernel.shape == own.query.kernel.shape
    assert shared.query_global is None
    expected = built(Longformer, window=1, share_projections=True)
    module = built(Longformer, window=1)
    for name in ("query", "key", "value"):
        setattr(module, f"{name}_global", getattr(module, name))
    np.testing.assert_allclose(module(X), expected(X), atol=1e-6)


def test_longformer_honours_a_bias_in_both_branches():
    module, bias = built(Longformer, window=1), np.zeros((1, 1, T, T), np.float32)
    bias[..., 3:] = -np.inf
    mask = masks.lengths(query=jnp.array([4, 4]), key=jnp.array([3, 3]))
    expected = module(X, mask=mask)
    np.testing.assert_allclose(module(X, bias=bias)[:, :4], expected[:, :4], atol=1e-6)


def test_longformer_options_reach_both_branches():
    options = {"qk_norm": True, "gate": "headwise", "sinks": True, "logit_cap": 5.0}
    module = built(Longformer, window=T, positions="alibi", **options)
    plain = built(MultiHeadAttention, positions="alibi", **options)
    for name in ("query", "key", "value", "out", "gate"):
        setattr(module, name, getattr(plain, name))
    for name in ("query", "key", "value"):
        setattr(module, f"{name}_global", getattr(plain, name))
    full = jax.jit(lambda x: plain(x, mask=masks.causal()))(X)
    np.testing.assert_allclose(
        jax.jit(lambda x: module(x, mask=masks.causal()))(X), full, atol=2e-6
    )
    decoded, _ = jax.jit(module.decode)(X, module.init_cache(B, T))
    np.testing.assert_allclose(decoded, full, atol=2e-6)


def test_longformer_records_once_what_it_returns():
    module, taken = built(Longformer, window=1), []
    with recording.recorder(lambda compute: taken.append(compute())):
        module(X)
    assert len(taken) == 1
    np.testing.assert_array_equal(taken[0], module(X, return_weights=True)[1])


def test_longformer_shorter_than_its_global_positions():
    module = built(Longformer, global_tokens=20)
    full, weights = module(X, mask=masks.causal(), return_weights=True)
    assert weights.shape == (B, N, T, T)
    out, _ = jax.jit(module.decode)(X, module.init_cache(B, T))
    np.testing.assert_allclose(out, full, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SlidingWindow, {"left": -1}, "left: got -1, expected an int of at least 0"),
        (SlidingWindow, {"right": 1.5}, "right: got 1.5"),
        (SlidingWindow, {"dilation": 0}, "dilation: got 0, expected an int of at least 1"),
        (Strided, {"stride": 0}, "stride: got 0"),
        (Fixed, {"summary": 65}, "summary: got 65, expected at most block=64"),
        (BigBird, {"block": 0}, "block: got 0"),
        (BigBird, {"global_blocks": -1}, "global_blocks: got -1"),
        (BigBird, {"links": 3}, "links: got 3"),
        (Longformer, {"window": -1}, "window: got -1"),
        (Longformer, {"global_tokens": 0.5}, "global_tokens: got 0.5"),
        (Longformer, {"key_value_heads": 3}, "key_value_heads: got 3"),
    ],
)
def test_options_that_do_not_fit_are_told(kind, options, message):
    with pytest.raises(ValueError, match=message):
        built(kind, **options)


def test_mistakes_in_a_call_are_told():
    expected = "memory: got an array, expected None because Strided"
    with pytest.raises(NotImplementedError, match=expected):
        built(Strided)(X, X)
    module = built(Longformer)
    with pytest.raises(ValueError, match=r"global_marks: got dtype float32, expected bool"):
        module(X, global_marks=np.ones((B, T), np.float32))
    with pytest.raises(ValueError, match=r"global_marks: got shape \[2, 5\], expected \[B, T\]"):
        module(X, global_marks=np.ones((B, 5), bool))
    with pytest.raises(ValueError, match=r"links: got 1 rows, expected one row for each of the 3"):
        built(BigBird, block=4, links=[[0]])(X)


def test_specs_of_a_config():
    module = registry.build(
        "mixer", "bigbird(block=2, seed=4, positions=rope)", D, N, rngs=nnx.Rngs(0)
    )
    assert (module.block, module.seed) == (2, 4)
    with pytest.raises(ValueError, match=r"got option 'windw' .*; did you mean 'window'"):
        registry.build("mixer", "longformer(windw=2)", D, N, rngs=nnx.Rngs(0))
