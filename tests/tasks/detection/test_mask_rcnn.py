"""The stages of Mask R-CNN on hand-made cases; `test_task.py` tests the complete network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tasks.common.backbones.resnet import ResNetConfig
from tasks.detection.models.heads import (
    BOX_WEIGHTS,
    HeadsConfig,
    MaskHead,
    box_losses,
    detect,
    sample_regions,
    select_class,
)
from tasks.detection.models.mask_rcnn import MaskRCNNConfig
from tasks.detection.models.pyramid import (
    FeaturePyramid,
    standardize,
    upsample_nearest,
    valid_pixels,
)
from tasks.detection.models.rpn import Proposals, RPNConfig, proposal_losses, propose
from tasks.detection.ops.anchors import anchors as make_anchors
from tasks.detection.ops.boxes import encode
from tests.attention.subjects import normal

SIZE = jnp.array([40, 36])


# ---------------------------------------------------------------- visible pixels


def test_pictures_have_mean_0_and_variance_1_and_padding_is_0():
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3)).astype(np.uint8)
    images[2] = 80
    sizes = np.array([[6, 5], [4, 3], [6, 5]], np.int32)
    found = np.asarray(standardize(jnp.asarray(images), jnp.asarray(sizes)))
    picture = images[1, :4, :3].astype(np.float64)
    expected = (picture - picture.mean()) / picture.std()
    np.testing.assert_allclose(found[1, :4, :3], expected, atol=1e-5)
    assert not found[1, 4:].any()
    assert not found[1, :, 3:].any()
    assert not found[2].any()
    np.testing.assert_array_equal(
        valid_pixels(jnp.asarray(sizes), 6, 5).sum(axis=(1, 2)), [30, 12, 30]
    )


def test_the_pyramid_adds_what_is_coarser():
    neck = FeaturePyramid((2, 3), 4, extra=1, rngs=nnx.Rngs(0))
    fine, coarse = jnp.asarray(normal(0, 1, 5, 7, 2)), jnp.asarray(normal(1, 1, 3, 4, 3))
    first, second, third = neck([fine, coarse])
    assert [level.shape for level in (first, second, third)] == [
        (1, 5, 7, 4),
        (1, 3, 4, 4),
        (1, 2, 2, 4),
    ]
    above = np.asarray(neck.lateral[1](coarse))
    stretched = above[:, np.arange(5) // 2][:, :, np.arange(7) // 2]
    np.testing.assert_array_equal(upsample_nearest(jnp.asarray(above), 5, 7), stretched)
    merged = neck.lateral[0](fine) + stretched
    np.testing.assert_allclose(first, neck.smooth[0](merged), atol=1e-5)
    np.testing.assert_array_equal(third, second[:, ::2, ::2])
    with pytest.raises(ValueError, match="maps: got 1 maps, expected 2"):
        neck([fine])


# ---------------------------------------------------------------- proposals

RPN = RPNConfig(sizes=(8, 16), ratios=(1.0,), pre_nms_top_k=6, post_nms_top_k=5)
ANCHORS = make_anchors([(5, 5), (3, 3)], (8, 16), [(8,), (16,)], (1.0,))
LEVELS = [25, 9]


def test_the_best_anchors_are_proposed_once_and_not_in_the_padding():
    logits = np.full(34, -5.0, np.float32)
    # Places (row, column) of the finer level: 16 and 16 pixels, 32 and 16, and, in the padding, 40.
    logits[2 * 5 + 2], logits[4 * 5 + 2] = 3, 1
    logits[3 * 5 + 4] = 2
    deltas = np.zeros((34, 4), np.float32)
    # The neighbor of the best anchor becomes nearly the same box.
    logits[2 * 5 + 3] = 2.5
    deltas[2 * 5 + 3, 0] = -0.95
    # The coarser level: all of its middle.
    logits[25 + 4] = 2.9
    find = jax.jit(lambda logits, deltas: propose(logits, deltas, ANCHORS, LEVELS, size, RPN))
    size = jnp.array([40, 32])
    found = find(logits, deltas)
    assert found.valid.tolist()[:3] == [True] * 3
    np.testing.assert_allclose(found.scores[:3], [3, 2.9, 1])
    np.testing.assert_allclose(
        found.boxes[:3], [[12, 12, 20, 20], [8, 8, 24, 24], [12, 28, 20, 36]]
    )
    # What follows is cut at the border of the image.
    rest = np.asarray(found.boxes)[3:][np.asarray(found.valid)[3:]]
    assert (rest >= 0).all()
    assert (rest <= [32, 40, 32, 40]).all()


def test_first_stage_learns_the_object_and_its_box():
    boxes = jnp.array([[11.0, 12, 20, 22], [0, 0, 0, 0]])
    valid = jnp.array([True, False])
    config = dataclasses.replace(RPN, positive_iou=0.6, samples=12)
    best = 2 * 5 + 2
    logits = jnp.zeros(34).at[best].set(7.0)
    deltas = jnp.zeros((34, 4)).at[best].set(encode(jnp.asarray(ANCHORS)[best], boxes[0]))

    @jax.jit
    def losses(logits, valid):
        key = jax.random.key(0)
        return proposal_losses(logits, deltas, ANCHORS, boxes, valid, SIZE, key, config)

    objectness, box = losses(logits, valid)
    assert objectness.count == box.count == 12
    assert box.total == pytest.approx(0, abs=1e-6)
    # One positive, eleven negatives of logit 0.
    assert objectness.total == pytest.approx(11 * np.log(2) + np.log1p(np.exp(-7)), rel=1e-5)
    # Without any object nothing is positive, and nothing is not a number.
    objectness, box = losses(jnp.zeros(34), jnp.array([False, False]))
    assert objectness.total == pytest.approx(12 * np.log(2), rel=1e-5)
    assert box.total == 0


# ---------------------------------------------------------------- heads

HEADS = HeadsConfig(samples=8, detections=4, pre_nms_top_k=6)


def proposals(*boxes, invalid=0):
    rows = np.array([*boxes, *[[0, 0, 5, 5]] * invalid], np.float32)
    valid = np.arange(len(rows)) < len(boxes)
    return Proposals(jnp.asarray(rows), jnp.zeros(len(rows)), jnp.asarray(valid))


def test_regions_are_positives_first_then_background():
    boxes = jnp.array([[4.0, 4, 14, 14], [20, 20, 30, 36], [0, 0, 0, 0]])
    labels = jnp.array([2, 0, -1])
    given = proposals([20, 21, 30, 35], [0, 0, 6, 6], [30, 0, 36, 9], invalid=2)
    found = jax.jit(sample_regions, static_argnums=4)(
        given, boxes, labels, jax.random.key(1), HEADS
    )
    # Two at most: a quarter of eight. Three could be: both true boxes and the first proposal.
    assert (np.asarray(found.labels[:2]) > 0).all()
    assert not np.asarray(found.labels[2:]).any()
    assert found.valid.tolist() == [True] * 4 + [False] * 4
    for box, number, label, target in zip(*(np.asarray(x[:2]) for x in found[:4]), strict=True):
        assert label == labels[number] + 1
        expected = encode(jnp.asarray(box), boxes[number], BOX_WEIGHTS)
        np.testing.assert_allclose(target, expected, atol=1e-5)
    background = {tuple(box) for box in np.asarray(found.boxes[2:4]).tolist()}
    assert background == {(0, 0, 6, 6), (30, 0, 36, 9)}
    logits = jnp.zeros((8, 4))
    deltas = jnp.zeros((8, 3, 4)).at[jnp.arange(8), found.labels - 1].set(found.targets)
    classes, box = box_losses(logits, deltas, found)
    assert classes.total == pytest.approx(4 * np.log(4), rel=1e-5)
    assert box.total == pytest.approx(0, abs=1e-6)
    assert box.count == 4


def test_of_class():
    values = normal(0, 3, 2, 4)
    found = select_class(jnp.asarray(values), jnp.array([1, 0, 1]), 1)
    np.testing.assert_array_equal(found, values[[0, 1, 2], [1, 0, 1]])
    np.testing.assert_array_equal(select_class(jnp.asarray(values[:, :1]), None, 1), values[:, 0])


def test_detections_are_the_best_of_each_class():
    given = proposals([4, 4, 14, 14], [5, 4, 14, 14], [20, 20, 30, 36], invalid=1)
    probabilities = np.array(
        [
            [0.1, 0.8, 0.1],  # the first of class 0
            [0.1, 0.7, 0.2],  # nearly the same box: of class 0 no more, of class 1 the best
            [0.39, 0.01, 0.6],
            [0.0, 1.0, 0.0],  # not there
        ],
        np.float32,
    )
    logits = jnp.log(jnp.maximum(probabilities, 1e-9))
    deltas = np.zeros((4, 2, 4), np.float32)
    deltas[2, 1] = [0, 0, 5 * np.log(2), 0]
    find = jax.jit(detect, static_argnums=4)
    found = find(logits, deltas, given, SIZE, HEADS)
    assert found.valid.tolist() == [True, True, True, False]
    np.testing.assert_allclose(found.scores, [0.8, 0.6, 0.2, 0], atol=1e-6)
    assert found.labels.tolist() == [0, 1, 1, 0]
    # Twice as wide, cut at the border.
    np.testing.assert_allclose(found.boxes[1], [15, 20, 35, 36], atol=1e-4)
    np.testing.assert_allclose(found.boxes[0], [4, 4, 14, 14], atol=1e-5)
    agnostic = find(logits, deltas[:, :1], given, SIZE, HEADS)
    np.testing.assert_allclose(agnostic.boxes[1], [20, 20, 30, 36], atol=1e-5)
    nothing = find(logits, deltas, proposals(invalid=4), SIZE, HEADS)
    assert not nothing.valid.any()
    assert not nothing.boxes.any()


def test_each_position_of_a_region_becomes_four_of_the_mask():
    config = HeadsConfig(mask_resolution=3, mask_channels=2, mask_convolutions=1)
    head = MaskHead(config, 2, 5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.asarray(normal(0, 1, 3, 3, 2))
    found = np.asarray(head(x))
    assert found.shape == (1, 6, 6, 5)
    hidden = np.asarray(head.convolutions[0](x))
    kernel = np.asarray(head.enlarge.kernel[...])
    for y, x in ((0, 0), (3, 2), (5, 5)):
        cell = np.maximum(hidden[0, y // 2, x // 2] @ kernel[:, y % 2, x % 2], 0)
        expected = cell @ np.asarray(head.mask.kernel[...])[0, 0]
        np.testing.assert_allclose(found[0, y, x], expected, atol=1e-5)


# ---------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RPNConfig(sizes=()), r"sizes: got \[\], expected at least one"),
        (
            lambda: RPNConfig(negative_iou=0.8),
            "negative_iou: got 0.8, expected .* positive_iou=0.7",
        ),
        (lambda: RPNConfig(post_nms_top_k=0), "post_nms_top_k: got 0, expected at least 1"),
        (lambda: HeadsConfig(score_threshold=2.0), "score_threshold: got 2.0"),
        (lambda: HeadsConfig(samples=2, positive_fraction=0.25), "positive_fraction: got 0.25"),
        (lambda: MaskRCNNConfig(first_stage=9), "first_stage: got 9, expected a stage from 1 to 4"),
        (lambda: MaskRCNNConfig(first_stage=2), r"rpn.sizes: got \[8, 16, 32, 64\], .* 3 levels"),
    ],
)
def test_impossible_configs_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_strides_of_the_pyramid():
    backbone = ResNetConfig(channels=(4, 4, 4), depths=(1, 1, 1), norm="group", stem_stride=2)
    config = MaskRCNNConfig(
        backbone=backbone, first_stage=2, extra_levels=2, rpn=RPNConfig(sizes=(8, 16, 32, 64))
    )
    assert config.strides == (4, 8, 16, 32)
