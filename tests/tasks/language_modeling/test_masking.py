"""Masking: the fraction and the kind of replacements, and their random keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.language_modeling.masking import mask_tokens, max_masked

FIRST, MASK, END = 3, 1000, 1001


@functools.partial(jax.jit, static_argnames="rate")
def compiled(tokens, seeds, rate, words):
    keys = jax.vmap(jax.random.key)(seeds)
    return mask_tokens(tokens, keys, first=FIRST, mask=MASK, rate=rate, words=words)


def masked(tokens, seeds, rate=0.15, words=None):
    found = compiled(jnp.asarray(tokens), jnp.asarray(seeds), rate, words)
    return type(found)(*map(np.asarray, found))


def texts(count, length, width):
    tokens = np.zeros((count, width), np.int32)
    tokens[:, 0] = 2
    tokens[:, 1 : length + 1] = np.random.default_rng(0).integers(FIRST, MASK, (count, length))
    tokens[:, length + 1] = END
    return tokens


@pytest.mark.parametrize(("length", "expected"), [(1, 1), (3, 1), (10, 2), (17, 3), (40, 6)])
def test_fifteen_percent_and_at_least_one(length, expected):
    tokens = texts(8, length, 44)
    found = masked(tokens, range(8))
    np.testing.assert_array_equal(found.weight.sum(axis=1), expected)
    assert found.positions.shape == (8, max_masked(44, 0.15, False)) == (8, 7)
    for row in range(8):
        places = found.positions[row][found.weight[row] > 0]
        assert np.all(np.diff(places) > 0)
        assert places.min() >= 1
        assert places.max() <= length
        np.testing.assert_array_equal(
            found.targets[row][found.weight[row] > 0], tokens[row, places]
        )
        others = np.setdiff1d(np.arange(44), places)
        np.testing.assert_array_equal(found.tokens[row, others], tokens[row, others])


def test_eighty_ten_ten():
    tokens = texts(400, 60, 64)
    found = masked(tokens, range(400), rate=0.5)
    rows = np.arange(400)[:, None]
    read, weight = found.tokens[rows, found.positions], found.weight > 0
    hidden = (read == MASK)[weight]
    same = (read == found.targets)[weight]
    assert len(hidden) == 400 * 30
    # Three standard errors of 12,000 draws are 0.011 and 0.008.
    assert np.mean(hidden) == pytest.approx(0.8, abs=0.011)
    assert np.mean(same) == pytest.approx(0.1, abs=0.009)
    others = read[weight][~hidden & ~same]
    assert others.min() >= FIRST
    assert others.max() < MASK
    # All positions are chosen equally often.
    counts = np.bincount(found.positions[weight], minlength=62)[1:61]
    assert counts.min() > 150
    assert counts.max() < 250


def test_it_follows_from_the_key_of_the_example_alone():
    tokens = texts(6, 20, 24)
    seeds = np.arange(6)
    whole = masked(tokens, seeds)
    order = np.array([4, 0, 5])
    # In a batch with other examples.
    rows = np.concatenate([order, order])
    part = masked(tokens[rows], seeds[rows])
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_array_equal(one[rows], other)
    assert np.any(masked(tokens, seeds + 6).positions != whole.positions)


def test_words_are_hidden_whole():
    tokens = texts(200, 30, 32)
    words = np.full((200, 32), -1, np.int32)
    words[:, 1:31] = np.arange(30) // 3
    found = masked(tokens, range(200), rate=0.2, words=jnp.asarray(words))
    chosen = np.zeros((200, 32), bool)
    for row in range(200):
        chosen[row, found.positions[row][found.weight[row] > 0]] = True
    by_word = chosen[:, 1:31].reshape(200, 10, 3)
    assert np.all(by_word.all(axis=2) == by_word.any(axis=2))
    np.testing.assert_array_equal(by_word.any(axis=2).sum(axis=1), 2)


def test_a_long_word_is_hidden_as_far_as_there_are_places():
    tokens = texts(1, 20, 22)
    words = np.full((1, 22), -1, np.int32)
    words[:, 1:21] = 0
    found = masked(tokens, [0], words=jnp.asarray(words))
    assert found.weight.sum() == max_masked(22, 0.15, True) == 6


def test_nothing_to_hide_has_no_weight():
    tokens = np.array([[2, 1, 1, END, 0], [2, END, 0, 0, 0]], np.int32)
    found = masked(tokens, range(2))
    assert found.weight.sum() == 0
    np.testing.assert_array_equal(found.tokens, tokens)
    # The known tokens of a partially unknown word can be predicted.
    words = jnp.array([[-1, 0, 0, -1, -1], [-1, -1, -1, -1, -1]])
    tokens[0, 2] = 7
    found = masked(tokens, range(2), words=words)
    assert found.weight.sum() == 1
    assert found.targets[0, 0] == 7
