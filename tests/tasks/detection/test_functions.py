"""Boxes, anchors, matching, suppression, RoIAlign and pasting: what torchvision cannot say of them.

Their values beside torchvision's are in tests/oracles/families/torchvision_detection.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.detection.ops import anchors, boxes, matching, nms, pasting, roi_align
from tasks.detection.ops.masks import masks_to_boxes
from tests.tasks.detection.rle import from_rle

suppress = jax.jit(nms.batched_nms, static_argnums=5)


def random_boxes(rng, *shape, side=40):
    corner, sides = rng.uniform(0, side, (*shape, 2)), rng.uniform(1, side / 2, (*shape, 2))
    return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)


def test_rows_of_padding_give_finite_numbers():
    nothing = np.zeros((2, 4), np.float32)

    def total(reference, other):
        numbers = (
            boxes.iou(reference, other),
            boxes.generalized_iou(reference, other),
            boxes.encode(reference, other),
            boxes.decode(boxes.encode(reference, other), reference),
        )
        return sum(jnp.abs(number).sum() for number in numbers), numbers

    (_, numbers), gradient = jax.jit(jax.value_and_grad(total, argnums=1, has_aux=True))(
        nothing, nothing
    )
    assert all(np.isfinite(number).all() for number in (*numbers, gradient))
    np.testing.assert_array_equal(numbers[0], 0)
    np.testing.assert_array_equal(numbers[1], 0)


def test_boxes_by_hand():
    """Boxes with reversed corners have no area; boxes are clipped to the image."""
    a = np.array([[0, 0, 4, 2], [3, 3, 1, 1]], np.float32)
    b = np.array([[2, 0, 6, 2], [6, 0, 8, 2]], np.float32)
    both = jax.jit(lambda a, b: (boxes.area(a), boxes.iou(a, b), boxes.generalized_iou(a, b)))
    area, iou, generalized = both(a, b)
    np.testing.assert_array_equal(area, [8, 0])
    np.testing.assert_allclose(iou, [[1 / 3, 0], [0, 0]], rtol=1e-6)
    # 12 of the 16 pixels around the first and the last point are covered.
    np.testing.assert_allclose(generalized[0], [1 / 3, -1 / 4], rtol=1e-6)
    clipped = boxes.clip(np.array([[-1, -2, 9, 9]], np.float32), 5, jnp.float32(7))
    np.testing.assert_array_equal(clipped, [[0, 0, 7, 5]])


def test_anchors_lie_around_the_corners_of_places():
    found = anchors.anchors([(1, 2)], (8,), ((4, 16),), (1.0,))
    np.testing.assert_array_equal(
        found, [[-2, -2, 2, 2], [-8, -8, 8, 8], [6, -2, 10, 2], [0, -8, 16, 8]]
    )
    assert found.dtype == np.float32
    tall = anchors.base_anchors((10,), (4.0,))[0]
    np.testing.assert_array_equal(tall, [-2, -10, 2, 10])  # 2.5 is rounded to even
    with pytest.raises(ValueError, match="sizes: got 1 levels, expected 2 as in sides"):
        anchors.anchors([(1, 1), (1, 1)], (1, 2), ((4,),), (1.0,))


def test_matching_by_hand():
    """Between the bounds an anchor is neither; an object's best anchor is never lost."""
    iou = np.array(
        [[0.8, 0.5, 0.1, 0.2, 0.0], [0.1, 0.4, 0.2, 0.2, 0.0], [0.9, 0.9, 0.9, 0.9, 0.9]],
        np.float32,
    )
    valid = np.array([True, True, False])
    match = jax.jit(matching.match, static_argnums=(2, 3, 4))
    np.testing.assert_array_equal(match(iou, valid, 0.7, 0.3, False), [0, -2, -1, -1, -1])
    np.testing.assert_array_equal(match(iou, valid, 0.7, 0.3, True), [0, 0, -1, -1, -1])
    # No object, or an object that overlaps no anchor: all anchors are background.
    np.testing.assert_array_equal(match(iou, valid & False, 0.7, 0.3, True), [-1] * 5)
    np.testing.assert_array_equal(match(iou * 0, valid, 0.7, 0.3, True), [-1] * 5)
    with pytest.raises(ValueError, match=r"low: got 0\.8, expected at most high, 0\.7"):
        matching.match(iou, valid, 0.7, 0.8)
    with pytest.raises(ValueError, match="valid"):
        matching.match(iou, valid[:2], 0.7, 0.3)


def test_sampling_takes_positives_first_and_fills_with_background():
    sample = jax.jit(matching.sample, static_argnums=(2, 3))
    matches = np.array([-1, 3, -2, 0, 1, -1, -1, 2, -2, -1], np.int32)
    seen = set()
    for seed in range(20):
        indices, positive, valid = (
            np.asarray(array) for array in sample(matches, jax.random.key(seed), 6, 0.4)
        )
        assert valid.all()
        assert positive.tolist() == [True] * 2 + [False] * 4
        assert len(set(indices.tolist())) == 6
        assert (matches[indices[:2]] >= 0).all()
        assert (matches[indices[2:]] == matching.BACKGROUND).all()
        seen |= set(indices.tolist())
    assert seen == {0, 1, 3, 4, 5, 6, 7, 9}  # never those between
    # Too few of either kind; more asked for than there are anchors; none positive allowed.
    few = np.array([-2, 0, -1, -2], np.int32)
    indices, positive, valid = sample(few, jax.random.key(0), 6, 0.5)
    assert indices[:2].tolist() == [1, 2]
    assert positive.tolist() == [True] + [False] * 5
    assert valid.tolist() == [True, True] + [False] * 4
    indices, positive, valid = sample(few, jax.random.key(0), 2, 0.0)
    assert (int(indices[0]), bool(positive.any()), valid.tolist()) == (2, False, [True, False])
    for count, share, message in (
        (0, 0.5, "count: got 0"),
        (1, 1.5, r"positive_fraction: got 1\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            matching.sample(few, jax.random.key(0), count, share)


def greedy(found, scores, labels, valid, threshold):
    """Computes NMS one box after another."""
    overlap = np.asarray(jax.jit(boxes.iou)(found, found))
    kept = []
    for i in sorted(np.flatnonzero(valid), key=lambda i: (-scores[i], i)):
        if all(labels[i] != labels[j] or overlap[i, j] <= threshold for j in kept):
            kept.append(i)
    return kept


def test_suppression_is_greedy_under_vmap_with_ties_and_padding():
    rng = np.random.RandomState(0)
    found = random_boxes(rng, 3, 50)
    scores = (rng.randint(0, 12, (3, 50)) / 12).astype(np.float32)
    labels, valid = rng.randint(0, 2, (3, 50)), rng.rand(3, 50) < 0.8
    valid[2] = False
    batch = jax.jit(jax.vmap(lambda *row: nms.batched_nms(*row, 0.3, 40)))
    indices, there = (np.asarray(array) for array in batch(found, scores, labels, valid))
    for row in range(3):
        expected = greedy(found[row], scores[row], labels[row], valid[row], 0.3)
        assert indices[row][there[row]].tolist() == expected
        assert len(expected) <= 40
    assert not there[2].any()
    assert not indices[2].any()


def test_suppression_follows_a_chain_to_its_end():
    """Each box overlaps its neighbors alone, so that every second one stays."""
    left = np.arange(12, dtype=np.float32) * 5
    chain = np.stack([left, left * 0, left + 9, left * 0 + 9], axis=1)
    scores = -np.arange(12, dtype=np.float32)
    indices, there = suppress(chain, scores, np.zeros(12, int), np.ones(12, bool), 0.2, 4)
    assert indices.tolist() == [0, 2, 4, 6]  # as many as are asked for
    assert there.all()
    with pytest.raises(ValueError, match="scores"):
        nms.nms(chain, scores[:3], np.ones(12, bool), 0.2, 4)


def test_a_pixel_aligned_box_gives_its_pixels():
    """One point a bin, bins of one pixel: RoIAlign cuts out; the border is not passed."""
    features = np.arange(48, dtype=np.float32).reshape(6, 8, 1)
    cut = jax.jit(lambda x, b: roi_align.roi_align(x, b, 1.0, 3, 1))
    found = cut(features, np.array([[2, 1, 5, 4], [20, 20, 23, 23]], np.float32))
    np.testing.assert_allclose(found[0, ..., 0], features[1:4, 2:5, 0])
    np.testing.assert_array_equal(found[1], 0)
    for options, message in (
        ({"size": 0}, "size: got 0, expected at least 1"),
        ({"size": 2, "sampling_ratio": -1}, "sampling_ratio: got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            roi_align.roi_align(features, np.zeros((1, 4), np.float32), 1.0, **options)
    maps = [features, features]
    for strides, message in (((4,), "got 1, expected 2"), ((4, 12), r"got \(4, 12\)")):
        with pytest.raises(ValueError, match=f"strides: {message}"):
            roi_align.multilevel_roi_align(maps, np.zeros((1, 4), np.float32), strides, 2)


def test_levels_of_boxes():
    """A box of canonical size has its level, one of half the side the one below, down to the
    lowest; none has no size at all.
    """
    sides = np.array([0, 10, 111, 112, 224, 447, 448, 5000], np.float32)
    square = np.stack([sides * 0, sides * 0, sides, sides], axis=1)
    found = jax.jit(roi_align.box_level, static_argnums=(1, 2, 3, 4))(square, 2, 4, 224.0, 4)
    assert found.tolist() == [0, 0, 0, 1, 2, 2, 3, 3]


def test_mask_targets_are_shares_of_the_bins():
    instances = np.zeros((8, 8), np.uint16)
    instances[2:6, 2:4], instances[2:6, 4:6] = 1, 2
    square = np.tile(np.array([2, 2, 6, 6], np.float32), (3, 1))
    crop = jax.jit(lambda *rows: roi_align.mask_targets(*rows, 4, 1))
    found = crop(instances, np.array([0, 1, -1]), square)
    left = np.tile([1.0, 1.0, 0.0, 0.0], (4, 1))
    np.testing.assert_array_equal(found, [left, 1 - left, 0 * left])


def test_what_is_cropped_is_pasted_back_exactly():
    y, x = np.mgrid[:24, :30]
    instances = np.zeros((24, 30), np.uint16)
    instances[(y - 9) ** 2 + (x - 8) ** 2 / 2 < 40] = 1
    instances[(y - 14) ** 2 / 3 + (x - 23) ** 2 < 20] = 2
    masks = instances == np.arange(1, 3)[:, None, None]
    around = masks_to_boxes(masks)
    crop = jax.jit(lambda *rows: roi_align.mask_targets(*rows, 28))
    squares = crop(instances, np.arange(2), around)
    np.testing.assert_array_equal(pasting.paste(squares, around, 24, 30) >= 0.5, masks)


def test_pasting_and_run_lengths():
    """A full square covers its box; outside the image and without size nothing breaks."""
    masks = np.ones((4, 14, 14), np.float32)
    where = np.array([[2, 1, 7, 5], [-3, -3, 3, 3], [50, 50, 60, 60], [4, 4, 4, 4]], np.float32)
    pasted = pasting.paste(masks, where, 8, 10)
    assert pasted.shape == (4, 8, 10)
    solid = pasted >= 0.5
    expected = np.zeros((2, 8, 10), bool)
    expected[0, 1:5, 2:7] = expected[1, :3, :3] = True
    np.testing.assert_array_equal(solid[:2], expected)
    assert not solid[2:].any()
    # The original method: 1.6 to 7.4 and 0.7 to 5.3, truncated to integers, both ends included.
    expected[0, :6, 1:8] = True
    np.testing.assert_array_equal(
        pasting.paste(masks[:1], where[:1], 8, 10, False) >= 0.5, expected[:1]
    )
    assert np.isfinite(pasting.paste(masks, where, 8, 10, False)).all()
    encoded = pasting.to_rle(solid)
    assert [code["size"] for code in encoded] == [[8, 10]] * 4
    np.testing.assert_array_equal(from_rle(encoded, 8, 10), solid)
    assert pasting.paste(masks[:0], where[:0], 8, 10).shape == (0, 8, 10)
    assert pasting.to_rle(solid[:0]) == []
    assert from_rle([], 8, 10).shape == (0, 8, 10)
    with pytest.raises(ValueError, match=r"boxes: got shape \[3, 4\], expected \[4, 4\]"):
        pasting.paste(masks, where[:3], 8, 10)
    with pytest.raises(ValueError, match=r"masks: got shape \[4, 196\]"):
        pasting.paste(masks.reshape(4, -1), where, 8, 10)
