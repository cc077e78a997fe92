"""Masks against small arrays written out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import masks
from attention.masks import patterns


def pattern(*rows):
    return np.array([[cell == "x" for cell in row] for row in rows])


def dense(mask, T, S, B=1, N=1):
    array = mask.materialize(B, N, T, S)
    assert array.dtype == jnp.bool_
    assert array.shape[0] in (1, B)
    assert array.shape[1] in (1, N)
    assert array.shape[2:] == (T, S)
    return np.broadcast_to(array, (B, N, T, S))[:, 0]


def test_causal():
    np.testing.assert_array_equal(dense(masks.causal(), 3, 3)[0], pattern("x..", "xx.", "xxx"))
    np.testing.assert_array_equal(dense(masks.causal(2), 2, 4)[0], pattern("xxx.", "xxxx"))
    np.testing.assert_array_equal(dense(masks.causal(-1), 3, 2)[0], pattern("..", "x.", "xx"))


def test_causal_with_an_offset_for_each_example():
    array = dense(masks.causal(jnp.array([0, 2])), 2, 4, B=2)
    np.testing.assert_array_equal(array[0], pattern("x...", "xx.."))
    np.testing.assert_array_equal(array[1], pattern("xxx.", "xxxx"))


def test_window():
    expected = pattern("xx..", "xxx.", ".xxx", "..xx")
    np.testing.assert_array_equal(dense(masks.window(1, 1), 4, 4)[0], expected)
    expected = pattern("x...", "xx..", "xxx.", ".xxx")
    np.testing.assert_array_equal(dense(masks.window(2, 0), 4, 4)[0], expected)
    expected = pattern("xxxx", ".xxx", "..xx", "...x")
    np.testing.assert_array_equal(dense(masks.window(0, None), 4, 4)[0], expected)
    np.testing.assert_array_equal(dense(masks.window(0, 0, 2), 2, 4)[0], pattern("..x.", "...x"))


def test_lengths():
    array = dense(masks.lengths(query=jnp.array([1, 2]), key=jnp.array([3, 0])), 2, 3, B=2)
    np.testing.assert_array_equal(array[0], pattern("xxx", "..."))
    np.testing.assert_array_equal(array[1], pattern("...", "..."))


def test_valid():
    mask = masks.valid(query=np.array([[True, False]]), key=np.array([[True, False, True]]))
    np.testing.assert_array_equal(dense(mask, 2, 3)[0], pattern("x.x", "..."))


def test_segments():
    mask = masks.segments(np.array([[1, 2, 2]]), np.array([[1, 1, 2, 3]]))
    np.testing.assert_array_equal(dense(mask, 3, 4)[0], pattern("xx..", "..x.", "..x."))


def test_prefix():
    np.testing.assert_array_equal(
        dense(masks.prefix(2), 4, 4)[0], pattern("xx..", "xx..", "xxx.", "xxxx")
    )
    array = dense(masks.prefix(jnp.array([0, 3])), 3, 3, B=2)
    np.testing.assert_array_equal(array[0], pattern("x..", "xx.", "xxx"))
    np.testing.assert_array_equal(array[1], pattern("xxx", "xxx", "xxx"))


def test_joined():
    mask = masks.causal() & masks.lengths(key=jnp.array([2])) & masks.window(1, None)
    np.testing.assert_array_equal(dense(mask, 3, 3)[0], pattern("x..", "xx.", ".x."))
    with pytest.raises(TypeError):
        masks.causal() & np.ones((1, 1, 3, 3), bool)


def test_dense_holds_to_its_rank():
    array = np.random.default_rng(0).random((2, 1, 3, 4)) < 0.5
    np.testing.assert_array_equal(dense(masks.dense(array), 3, 4, B=2, N=2), array[:, 0])
    with pytest.raises(ValueError, match="always rank 4"):
        masks.dense(array[:, 0])
    with pytest.raises(ValueError, match=r"did you pass \[B, N, T, H\]"):
        # A mask with T and N exchanged.
        masks.dense(np.ones((2, 1, 5, 5), bool)).materialize(2, 5, 3, 3)


def test_masks_are_frozen_pytrees_and_ints_stay_static():
    mask = masks.causal(1) & masks.lengths(key=jnp.array([2, 3])) & masks.prefix(2)
    assert [leaf.shape for leaf in jax.tree.leaves(mask)] == [(2,)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        mask.terms = ()

    @jax.jit
    def through_jit(mask):
        # Blocks can only be asked inside jit if the ints were not traced.
        assert not mask.static_block_mask(4, 4, 2, 2).all()
        return mask.materialize(2, 1, 4, 4)

    only = masks.causal(0) & masks.lengths(key=jnp.array([2, 3]))
    np.testing.assert_array_equal(through_jit(only), only.materialize(2, 1, 4, 4))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, masks.lengths(key=jnp.array([1, 2])))
    np.testing.assert_array_equal(doubled.terms[0].key, [2, 4])
    offsets = jnp.array([[0], [1]])
    mapped = jax.vmap(lambda offset: masks.causal(offset).materialize(1, 1, 2, 3))(offsets)
    np.testing.assert_array_equal(mapped[1, 0, 0], pattern("xx.", "xxx"))


def test_visible_blocks_by_hand():
    np.testing.assert_array_equal(
        masks.causal().static_block_mask(6, 6, 2, 3), pattern("x.", "xx", "xx")
    )
    np.testing.assert_array_equal(
        masks.window(1, 0).static_block_mask(6, 6, 2, 2), pattern("x..", "xx.", ".xx")
    )
    dynamic = masks.lengths(key=jnp.array([1]))
    np.testing.assert_array_equal(dynamic.static_block_mask(4, 4, 2, 2), pattern("xx", "xx"))
    with pytest.raises(ValueError, match="blocks: got 0 x 2"):
        dynamic.static_block_mask(4, 4, 0, 2)


@pytest.mark.parametrize(
    "mask",
    [
        masks.causal(3),
        masks.causal(-4),
        masks.window(2, 1, 1),
        masks.window(None, 0, 3),
        masks.window(0, None, 0),
        masks.prefix(4, 1),
        masks.prefix(0, 0) & masks.window(1, 1, 0),
    ],
)
@pytest.mark.parametrize("blocks", [(1, 1), (2, 3), (4, 2), (16, 16)])
def test_a_block_that_is_not_visible_holds_nothing(mask, blocks):
    T, S = 7, 10
    array = dense(mask, T, S)[0]
    visible = mask.static_block_mask(T, S, *blocks)
    assert visible.shape == (-(-T // blocks[0]), -(-S // blocks[1]))
    single = len(mask.terms) == 1
    for i, j in np.ndindex(visible.shape):
        block = array[i * blocks[0] : (i + 1) * blocks[0], j * blocks[1] : (j + 1) * blocks[1]]
        # Exact for one condition; for several it may be cautious, never wrong.
        assert visible[i, j] or not block.any()
        assert not single or visible[i, j] == block.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masks.causal(1.5), r"query_offset: got dtype float"),
        (lambda: masks.causal(np.zeros((2, 2), int)), r"query_offset: got shape \[2, 2\]"),
        (lambda: masks.window(-1, 0), r"left: got -1, expected an int of at least 0"),
        (lambda: masks.window(0, 1.0), r"right: got 1.0"),
        (lambda: masks.lengths(), r"lengths: got neither"),
        (lambda: masks.lengths(key=np.ones(2, bool)), r"key: got dtype bool, expected an integer"),
        (lambda: masks.lengths(key=np.ones((2, 1), int)), r"key: got shape \[2, 1\], expected \[B"),
        (lambda: masks.valid(), r"valid: got neither"),
        (lambda: masks.valid(key=np.ones((2, 3))), r"key: got dtype float.*, expected bool"),
        (lambda: masks.segments(np.ones(3, int), np.ones((1, 3), int)), r"query_ids: got shape"),
        (lambda: masks.dense(np.zeros((1, 1, 2, 2))), r"mask: got dtype float.* as bias"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_either_of_two_masks():
    mask = (masks.window(0, 1) | masks.dense(np.array([[[[True, False, False]] * 3]]))) & (
        masks.lengths(key=jnp.array([2]))
    )
    np.testing.assert_array_equal(dense(mask, 3, 3)[0], pattern("xx.", "xx.", "x.."))
    near, far = masks.window(0, 0), masks.window(None, -0) & masks.window(None, 0, -3)
    blocks = (near | far).static_block_mask(8, 8, 2, 2)
    expected = near.static_block_mask(8, 8, 2, 2) | far.static_block_mask(8, 8, 2, 2)
    np.testing.assert_array_equal(blocks, expected)
    assert not blocks.all()
    array = dense(near | far, 8, 8)[0]
    tiles = array.reshape(4, 2, 4, 2).any(axis=(1, 3))
    assert (blocks >= tiles).all()
    # A pytree like the others: under jit, static fields stay static.
    jitted = jax.jit(lambda m: m.materialize(1, 1, 3, 3))(mask)
    np.testing.assert_array_equal(jitted[0, 0], dense(mask, 3, 3)[0])


def test_padding_reads_what_it_can_and_refuses_the_rest():
    mask = (
        masks.causal()
        & masks.lengths(query=jnp.array([1, 3]))
        & masks.valid(key=np.array([[True, False, True], [True, True, True]]))
        & masks.lengths(key=jnp.array([2, 3]))
    )
    found = masks.padding(mask, 2, 3, 3, of="x")
    assert found.causal
    np.testing.assert_array_equal(found.key, [[1, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(found.query, [[1, 0, 0], [1, 1, 1]])
    nothing = masks.padding(None, 2, 3, 3, of="x")
    assert (nothing.causal, nothing.query, nothing.key) == (False, None, None)
    for bad, says in [
        (
            masks.window(1, 0),
            r"mask: got window\(\), expected only causal\(\), lengths\(\) and valid\(\) for x",
        ),
        (np.ones((1, 1, 3, 3), bool), r"got dense\(\)"),
        (masks.causal() | masks.window(1, 1), "joined with |"),
        (masks.causal(1), r"got causal\(\) with a query_offset that is an array or not 0"),
    ]:
        with pytest.raises(NotImplementedError, match=says):
            masks.padding(bad, 2, 3, 3, of="x")
    with pytest.raises(NotImplementedError, match=r"expected only lengths\(\) and valid\(\) for x"):
        masks.padding(masks.causal(), 2, 3, 3, of="x", causal=False)
    with pytest.raises(ValueError, match="lengths"):
        masks.padding(masks.lengths(key=jnp.array([1])), 2, 3, 3, of="x")


KINDS = {
    "causal": masks.causal(3),
    "causal_each": masks.causal(jnp.array([0, 4])),
    "window": masks.window(2, 1, 1),
    "lengths": masks.lengths(jnp.array([3, 7]), jnp.array([10, 5])),
    "valid": masks.valid(key=np.arange(20).reshape(2, 10) % 3 > 0),
    "valid_queries": masks.valid(np.arange(14).reshape(2, 7) % 3 > 0),
    "segments": masks.segments(np.arange(14).reshape(2, 7) // 3, np.arange(20).reshape(2, 10) // 4),
    "prefix": masks.prefix(jnp.array([4, 2]), 0),
    "dense": masks.dense(np.arange(280).reshape(2, 2, 7, 10) % 7 < 3),
    "either": masks.causal(1) | masks.lengths(key=jnp.array([4, 9])),
    "marks": patterns.global_marks(
        np.arange(14).reshape(2, 7) % 5 < 1, np.arange(20).reshape(2, 10) % 4 < 1
    ),
    "strided": patterns.strided(3, 1) & masks.causal(1),
    "big_bird": patterns.big_bird(2, window=0, query_offset=2),
}


SIZES = [(1, 1), (2, 3), (4, 5), (7, 10)]


@pytest.mark.parametrize("mask", KINDS.values(), ids=KINDS)
def test_a_block_is_what_the_whole_has_there(mask):
    """Also where the last block ends beyond the sequence, and where the start is traced."""
    T, S = 7, 10
    array = np.broadcast_to(mask.materialize(2, 2, T, S), (2, 2, T, S))
    starts = {size: np.mgrid[: T : size[0], : S : size[1]].reshape(2, -1) for size in SIZES}

    @jax.jit
    def blocks(starts):
        def block(height, width, top, left):
            spans = masks.Span(top, height), masks.Span(left, width)
            return jnp.broadcast_to(mask.materialize(2, 2, T, S, *spans), (2, 2, height, width))

        return {size: jax.lax.map(lambda at: block(*size, *at), starts[size].T) for size in SIZES}  # noqa: B023

    for (height, width), found in blocks(starts).items():
        for (top, left), block in zip(starts[height, width].T, found, strict=True):
            expected = array[:, :, top : top + height, left : left + width]
            block = block[:, :, : expected.shape[2], : expected.shape[3]]
            np.testing.assert_array_equal(block, expected)


@pytest.mark.parametrize("mask", KINDS.values(), ids=KINDS)
def test_block_visibility_is_never_wrong(mask):
    T, S = 7, 10
    array = np.broadcast_to(mask.materialize(2, 2, T, S), (2, 2, T, S))
    sizes = [*SIZES, (16, 16)]
    found = jax.jit(lambda mask: [mask.block_visibility(2, T, S, *size) for size in sizes])(mask)
    for (height, width), pair in zip(sizes, found, strict=True):
        counts = (-(-T // height), -(-S // width))
        visible, full = (np.broadcast_to(x, (2, *counts)) for x in pair)
        for b, i, j in np.ndindex(2, *counts):
            block = array[b, :, i * height : (i + 1) * height, j * width : (j + 1) * width]
            assert visible[b, i, j] or not block.any()
            assert block.all() or not full[b, i, j]
        if len(mask.terms) == 1 and (height, width) == (1, 1):
            assert (visible == array.any(1)).all()
            assert (full == array.all(1)).all()


@pytest.mark.parametrize("mask", KINDS.values(), ids=KINDS)
def test_one_example_and_head_of_a_mask(mask):
    full = np.broadcast_to(mask.materialize(2, 2, 7, 10), (2, 2, 7, 10))

    @jax.jit
    def each(pairs):
        def one(pair):
            mine = mask.select(pair[0], masks.Span(pair[1], 1))
            return jnp.broadcast_to(mine.materialize(1, 1, 7, 10), (1, 1, 7, 10))

        return jax.lax.map(one, pairs)

    found = each(jnp.array(list(np.ndindex(2, 2))))
    np.testing.assert_array_equal(found[:, 0, 0].reshape(full.shape), full)
