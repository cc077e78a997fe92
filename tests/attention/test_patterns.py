"""Sparse patterns against small arrays written out by hand, and what they let kernels skip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import masks
from attention.masks import patterns
from tests.attention.test_masks import dense, pattern

PATTERNS = {
    "dilated": lambda offset=None: patterns.dilated_window(2, 1, 2, offset),
    "dilated_left": lambda offset=None: patterns.dilated_window(None, 0, 3, offset),
    "strided": lambda offset=None: patterns.strided(2, offset),
    "strided_wide": lambda offset=None: patterns.strided(4, offset),
    "fixed": lambda offset=None: patterns.fixed(4, 1, offset),
    "fixed_two": lambda offset=None: patterns.fixed(3, 2, offset),
    "global": lambda offset=None: patterns.global_tokens(2, offset),
    "big_bird": lambda offset=None: patterns.big_bird(
        2, window=0, random_blocks=1, query_offset=offset
    ),
    "big_bird_linked": lambda offset=None: patterns.big_bird(
        3, window=0, global_blocks=0, links=[[2], [], [1], [0, 1]], query_offset=offset
    ),
}
each = pytest.mark.parametrize("make", PATTERNS.values(), ids=PATTERNS)


def square(mask, length):
    return dense(mask, length, length)[0]


def test_dilated_window():
    expected = pattern("x.x...", ".x.x..", "x.x.x.", ".x.x.x", "..x.x.", "...x.x")
    np.testing.assert_array_equal(square(patterns.dilated_window(1, 1, 2), 6), expected)
    expected = pattern("x...", ".x..", "x.x.", ".x.x")
    np.testing.assert_array_equal(square(patterns.dilated_window(None, 0, 2), 4), expected)
    undilated = patterns.dilated_window(2, 1, 1)
    np.testing.assert_array_equal(square(undilated, 6), square(masks.window(2, 1), 6))


def test_strided():
    expected = pattern("xxx.x", "xxxx.", "xxxxx", ".xxxx", "x.xxx")
    np.testing.assert_array_equal(square(patterns.strided(2), 5), expected)
    causal = square(patterns.strided(3) & masks.causal(), 8)
    np.testing.assert_array_equal(causal[6:], pattern("x..xxxx.", ".x..xxxx"))


def test_fixed():
    expected = pattern("xxx..x", "xxx..x", "xxx..x", "..xxxx", "..xxxx", "..xxxx")
    np.testing.assert_array_equal(square(patterns.fixed(3), 6), expected)
    causal = square(patterns.fixed(3, 2) & masks.causal(), 6)
    np.testing.assert_array_equal(causal[3:], pattern(".xxx..", ".xxxx.", ".xxxxx"))


def test_global_tokens():
    expected = pattern("xxxx", "xxxx", "xx..", "xx..")
    np.testing.assert_array_equal(square(patterns.global_tokens(2), 4), expected)
    both = square(patterns.global_tokens(1) | masks.window(1, 0), 4)
    np.testing.assert_array_equal(both, pattern("xxxx", "xx..", "xxx.", "x.xx"))
    assert not square(patterns.global_tokens(0), 4).any()


def test_global_marks():
    marks = np.array([[False, True, False], [False, False, False]])
    array = dense(patterns.global_marks(marks, marks), 3, 3, B=2)
    np.testing.assert_array_equal(array[0], pattern(".x.", "xxx", ".x."))
    assert not array[1].any()
    visible = patterns.global_marks(marks, marks).static_block_mask(3, 3, 1, 1)
    assert visible.all()


def test_big_bird_without_draws():
    expected = pattern("xxxxxx", "xxxxxx", "xxxx..", "xxxx..", "xx..xx", "xx..xx")
    mask = patterns.big_bird(2, window=0, random_blocks=0)
    np.testing.assert_array_equal(square(mask, 6), expected)
    linked = patterns.big_bird(1, window=0, global_blocks=0, links=[[2], [], [0, 1], [3]])
    np.testing.assert_array_equal(square(linked, 3), pattern("x.x", ".x.", "xxx"))


def test_big_bird_draws_among_the_earlier_blocks():
    array = square(patterns.big_bird(1, window=1, random_blocks=2), 40)
    np.testing.assert_array_equal(array, array.T)
    for row in range(3, 40):
        # In addition to the global block 0 and the neighbor row - 1.
        assert array[row, 1 : row - 1].sum() == min(2, row - 2)
    # What is seen of the first positions is not changed by those that follow.
    np.testing.assert_array_equal(square(patterns.big_bird(1, window=1), 23), array[:23, :23])
    assert (square(patterns.big_bird(1, window=1, seed=1), 40) != array).any()
    # A block sees what its positions see.
    wide = square(patterns.big_bird(3, window=1), 119)
    np.testing.assert_array_equal(wide, array.repeat(3, 0).repeat(3, 1)[:119, :119])


def test_big_bird_draws_evenly_and_the_same_for_good():
    drawn = np.zeros(10)
    for seed in range(400):
        mask = patterns.big_bird(1, random_blocks=2, seed=seed)
        drawn += mask.static_block_mask(13, 13, 1, 1)[12, 1:11]
    # Each of ten is drawn with probability 1/5: 80 times of 400, with a deviation of 8.
    assert drawn.sum() == 800
    assert np.abs(drawn - 80).max() < 4 * 8
    # Written down once: weights that were trained with a seed depend on it.
    mask = patterns.big_bird(1, window=0, global_blocks=0, random_blocks=1) & masks.causal()
    expected = pattern("x.....", "xx....", "x.x...", "x..x..", "x...x.", "....xx")
    np.testing.assert_array_equal(square(mask, 6), expected)


@each
@pytest.mark.parametrize("offset", [0, 2, 7])
def test_an_offset_is_the_place_of_the_first_query(make, offset):
    full = square(make(), 10)
    expected = full[offset : offset + 3]
    np.testing.assert_array_equal(dense(make(offset), 3, 10)[0], expected)
    run = jax.jit(lambda offset: make(offset).materialize(2, 1, 3, 10))
    np.testing.assert_array_equal(run(jnp.array(offset))[0, 0], expected)
    several = run(jnp.array([offset, 0]))
    np.testing.assert_array_equal(several[:, 0], [expected, full[:3]])
    with pytest.raises(ValueError, match="query_offset: got none with T=3 queries and S=10 keys"):
        make().materialize(1, 1, 3, 10)


@each
@pytest.mark.parametrize("offset", [-4, 0, 3, 12])
@pytest.mark.parametrize("blocks", [(1, 1), (2, 3), (4, 2), (16, 16)], ids=str)
def test_visible_blocks_are_exact(make, offset, blocks):
    T, S = 7, 10
    array, visible = dense(make(offset), T, S)[0], make(offset).static_block_mask(T, S, *blocks)
    expected = [
        [array[i : i + blocks[0], j : j + blocks[1]].any() for j in range(0, S, blocks[1])]
        for i in range(0, T, blocks[0])
    ]
    np.testing.assert_array_equal(visible, expected)


@each
def test_visible_blocks_of_a_traced_offset_are_all(make):
    assert make(jnp.array(3)).static_block_mask(7, 10, 2, 2).all()


@pytest.mark.parametrize(
    ("mask", "most"),
    [
        # A query block of 1,024 sees what is less than 2^15 away on either side, and where the
        # distance is one of at most 2^20 / 2^15 multiples two blocks each.
        (patterns.strided(2**15), 2 * 32 + 1 + 2 * 32),
        # Its own 2^15 positions and one block at the end of each of 32 others.
        (patterns.fixed(2**15, 1024), 32 + 31),
        (patterns.dilated_window(100, 100, 64), 2 * 7 + 1),
        # In the mean: three near by, the front and, for the front, all; two drawn, twice.
        (patterns.big_bird(1024), 3 + 2 + 4),
        (patterns.global_tokens(4) | masks.window(1000, 1000), 3 + 2),
    ],
    ids=["strided", "fixed", "dilated", "big_bird", "longformer"],
)
def test_long_sequences_skip_most_blocks_without_an_array_of_pairs(mask, most):
    length, block = 2**20, 1024
    visible = mask.static_block_mask(length, length, block, block)
    assert visible.shape == (1024, 1024)
    assert visible.diagonal().all()
    assert visible.sum() / 1024 <= most


@pytest.mark.parametrize(
    ("mask", "most"),
    [
        (patterns.dilated_window(8, 8, 3), 17),
        (patterns.strided(16), 2 * 16 + 512 / 16),
        (patterns.fixed(16, 1), 16 + 512 / 16),
        (patterns.big_bird(8), 8 * (3 + 2 + 4)),
        (patterns.global_tokens(2) | masks.window(8, 8), 17 + 4),
    ],
    ids=["dilated", "strided", "fixed", "big_bird", "longformer"],
)
def test_a_query_sees_few_keys_in_the_mean(mask, most):
    array = square(mask, 512)
    assert array.diagonal().all()
    assert most / 2 < array.sum() / 512 <= most


@each
def test_patterns_are_static_pytrees(make):
    assert not jax.tree.leaves(make(2))
    assert len(jax.tree.leaves(make(jnp.array([1, 2])))) == 1

    @jax.jit
    def through_jit(mask):
        assert mask.static_block_mask(10, 10, 5, 5).any()
        return mask.materialize(1, 1, 10, 10)

    joined = make() & masks.causal()
    np.testing.assert_array_equal(through_jit(joined)[0, 0], square(joined, 10))
    assert hash(jax.tree.structure(make(2))) == hash(jax.tree.structure(make(2)))


@each
def test_mechanisms_without_pairs_refuse_them(make):
    with pytest.raises(NotImplementedError, match=r"mask: got \w+\(\), expected .* for x"):
        masks.padding(make(), 2, 5, 5, of="x")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: patterns.strided(0), "stride: got 0, expected an int of at least 1"),
        (lambda: patterns.strided(2.0), "stride: got 2.0, expected an int"),
        (lambda: patterns.fixed(4, 5), "summary: got 5, expected at most block=4"),
        (lambda: patterns.fixed(4, 0), "summary: got 0, expected an int of at least 1"),
        (lambda: patterns.dilated_window(-1, 0, 2), "left: got -1, expected an int of at least 0"),
        (lambda: patterns.dilated_window(1, 0, 0), "dilation: got 0"),
        (lambda: patterns.global_tokens(-1), "count: got -1"),
        (lambda: patterns.global_tokens(True), "count: got True, expected an int"),
        (
            lambda: patterns.global_marks(np.ones((1, 2), np.int32), np.ones((1, 2), bool)),
            r"query: got dtype int32, expected bool \(True = a global position\)",
        ),
        (
            lambda: patterns.global_marks(np.ones((1, 2), bool), np.ones(2, bool)),
            r"key: got shape \[2\], expected \[B, S\]",
        ),
        (lambda: patterns.big_bird(0), "block: got 0"),
        (lambda: patterns.big_bird(2, window=-1), "window: got -1"),
        (lambda: patterns.big_bird(2, seed=-1), "seed: got -1"),
        (lambda: patterns.big_bird(2, seed=2**32), "seed: got 4294967296, expected at most"),
        (lambda: patterns.big_bird(2, links=3), "links: got 3, expected a list of key"),
        (lambda: patterns.big_bird(2, links=[[-1]]), "links: got -1"),
        (lambda: patterns.strided(2, 1.5), "query_offset: got dtype float"),
    ],
)
def test_mistakes_are_told(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_too_few_links_are_told():
    mask = patterns.big_bird(2, links=[[0], [1]])
    with pytest.raises(ValueError, match="got 2 rows, expected one row for each of the 3 bl"):
        mask.materialize(1, 1, 5, 5)
