"""Distances and patterns of heads on weights whose pattern is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import inspect

T = 6


def heads(*matrices):
    return np.stack(matrices)[None].astype(np.float32)


PREVIOUS = np.roll(np.eye(T), 1, axis=0)
FIRST = np.eye(T)[[0] * T]
TOKENS = np.array([[7, 3, 5, 7, 3, 5]])
# From the second 7, 3 and 5 to what follows the first ones; other rows attend to the first token.
INDUCTION = np.eye(T)[[0, 0, 0, 1, 2, 3]]


def test_patterns_of_known_heads():
    weights = heads(
        np.eye(T),
        PREVIOUS,
        PREVIOUS.T,
        FIRST,
        np.full((T, T), 1 / T),
        0.8 * np.eye(T)[[5] * T] + 0.2 * np.eye(T),
        0.49 * (np.eye(T) + PREVIOUS) + 0.02 * np.full((T, T), 1 / T),
        INDUCTION,
    )
    separators = np.arange(T)[None] == 5
    found = inspect.head_pattern(weights, separators=separators, tokens=TOKENS)
    assert found == [
        *("diagonal", "previous token", "next token", "first token", "broad", "separator"),
        *("", "induction"),
    ]
    # Without tokens and separators those patterns have no name.
    found = inspect.head_pattern(weights)
    assert found[5] == found[7] == ""


def test_causal_uniform_weights_are_broad():
    causal = np.tril(np.ones((T, T)))
    weights = heads(causal / causal.sum(-1, keepdims=True))
    assert inspect.head_pattern(weights) == ["broad"]


def test_hidden_rows_and_one_position():
    weights = heads(np.eye(T), PREVIOUS)
    weights[0, 0, 3:] = FIRST[3:]
    valid = np.arange(T)[None] < 3
    assert inspect.head_pattern(weights, valid) == ["diagonal", "previous token"]
    weights[0, 0, 3:] = 0
    assert inspect.head_pattern(weights) == ["diagonal", "previous token"]
    assert inspect.head_pattern(np.zeros((1, 1, T, T), "f")) == [""]
    assert (
        inspect.head_pattern(np.ones((1, 2, 1, 1), "f"), tokens=TOKENS[:, :1]) == ["diagonal"] * 2
    )
    # Sinks take weight; rows are scaled.
    assert inspect.head_pattern(0.2 * heads(np.eye(T))) == ["diagonal"]
    assert inspect.head_pattern(jnp.asarray(heads(PREVIOUS), jnp.bfloat16)) == ["previous token"]


def test_distance_by_hand():
    uniform = np.full((T, T), 1 / T)
    weights = heads(np.eye(T), FIRST, uniform, np.zeros((T, T)))
    found = jax.jit(inspect.head_distance)(weights)[0]
    apart = np.abs(np.arange(T)[:, None] - np.arange(T))
    np.testing.assert_allclose(found[:3], [0, 2.5, apart.mean()], rtol=1e-6)
    assert np.isnan(found[3])
    valid = np.arange(T)[None] < 2
    np.testing.assert_allclose(inspect.head_distance(weights, valid)[0, 1], 0.5, rtol=1e-6)
    doubled = inspect.head_distance(0.5 * weights, distances=2.0 * apart)
    np.testing.assert_allclose(doubled[0, :3], 2 * found[:3], rtol=1e-6)
    rectangle = inspect.head_distance(weights[:, :, 4:])
    np.testing.assert_allclose(rectangle[0, 1], 0.5, rtol=1e-6)
    stacked = inspect.head_distance(jnp.asarray(np.stack([weights] * 2), jnp.bfloat16))
    assert stacked.dtype == jnp.float32
    np.testing.assert_allclose(stacked[1, 0, :2], [0, 2.5], rtol=1e-2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: inspect.head_pattern(w[..., :3]), r"weights: got shape .* \[B, N, T, T\]"),
        (lambda w: inspect.head_pattern(w, np.ones((1, T))), "valid: got dtype float"),
        (lambda w: inspect.head_pattern(w, separators=TOKENS), "separators: got dtype int"),
        (lambda w: inspect.head_pattern(w, tokens=TOKENS[:, :3]), r"tokens: got shape \[1, 3\]"),
        (lambda w: inspect.head_pattern(w, tokens=TOKENS / 2), "tokens: got dtype float"),
        (
            lambda w: inspect.head_distance(w, distances=np.ones((2, T))),
            r"distances: got shape \[2, 6\], expected \[T, S\] with T=6, S=6",
        ),
        (lambda w: inspect.head_distance(w[0]), r"weights: got shape .* \[..., B, N, T, S\]"),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call(heads(np.eye(T)))
