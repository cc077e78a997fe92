"""Consistency of images, boxes and instances: boxes are those of the transformed instances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.detection.augmentation import (
    AugmentationConfig,
    augment,
    flip,
    scale_and_crop,
    tight_boxes,
    transpose,
)

SIDE = 20
HEIGHT, WIDTH = 16, 18


def example():
    """Returns two objects and a padding row; each object has a constant value in the image."""
    instances = np.zeros((SIDE, SIDE), np.uint16)
    instances[2:7, 3:6], instances[10:14, 8:17] = 1, 3
    boxes = np.array([[3, 2, 6, 7], [0, 0, 0, 0], [8, 10, 17, 14]], np.float32)
    return {
        "image": np.repeat(100.0 * (instances > 0)[..., None], 3, axis=-1).astype(np.float32),
        "size": np.array([HEIGHT, WIDTH], np.int32),
        "boxes": boxes,
        "labels": np.array([4, -1, 5], np.int32),
        "instances": instances,
    }


def boxes_by_numpy(instances):
    found = np.zeros((3, 4))
    for number in range(3):
        rows, columns = np.nonzero(instances == number + 1)
        if len(rows):
            found[number] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return found


def arrays(changed):
    return {name: np.asarray(value) for name, value in changed.items()}


def test_tight_boxes():
    boxes, there = tight_boxes(jnp.asarray(example()["instances"]), 3)
    np.testing.assert_array_equal(boxes, example()["boxes"])
    assert there.tolist() == [True, False, True]


@pytest.mark.parametrize("change", [functools.partial(flip, axis=a) for a in (0, 1)] + [transpose])
def test_flips_stay_in_the_corner_and_are_their_own_inverse(change):
    given = example()
    found = arrays(change(given))
    np.testing.assert_array_equal(boxes_by_numpy(found["instances"]), found["boxes"])
    np.testing.assert_array_equal(found["image"][..., 0] > 0, found["instances"] > 0)
    height, width = found["size"]
    assert not found["instances"][height:].any()
    assert not found["instances"][:, width:].any()
    assert not np.array_equal(found["boxes"], given["boxes"])
    for name, value in change(found).items():
        np.testing.assert_array_equal(value, given[name], err_msg=name)


def test_zoom_cuts_and_drops_what_is_hardly_left():
    given = example()
    found = arrays(jax.jit(scale_and_crop)(given, 2.0, jnp.array([12.0, 9.0])))
    # Twice as large: object 0 was in rows 4..14, columns 6..12; its rows 12.. and columns 9.. are
    # left: 2 x 3 of 10 x 6, too little. Of object 2, 20..28 x 16..34, all but what juts out.
    assert found["labels"].tolist() == [-1, -1, 5]
    np.testing.assert_array_equal(found["boxes"], [[0] * 4, [0] * 4, [7, 8, 20, 16]])
    np.testing.assert_array_equal(found["size"], [20, 20])
    inside = found["image"][9:15, 8:19]
    np.testing.assert_allclose(inside, 100, rtol=1e-4)


def test_zoom_out_leaves_padding_to_the_right_and_below():
    given = example()
    found = arrays(jax.jit(scale_and_crop)(given, 0.5, jnp.zeros(2)))
    np.testing.assert_array_equal(found["size"], [8, 9])
    np.testing.assert_array_equal(boxes_by_numpy(found["instances"]), found["boxes"])
    np.testing.assert_allclose(found["boxes"][2], np.array([8, 10, 17, 14]) / 2, atol=0.5)
    assert not found["image"][8:].any()
    assert not found["image"][:, 9:].any()
    # Without masks the boxes themselves are scaled.
    del given["instances"]
    found = arrays(jax.jit(scale_and_crop)(given, 0.5, jnp.zeros(2)))
    np.testing.assert_array_equal(found["boxes"][0], [1.5, 1, 3, 3.5])


def test_a_row_is_changed_by_its_own_key_alone():
    config = AugmentationConfig(
        scale_min=0.7, scale_max=1.5, flip=True, transpose=True, brightness=0.2, contrast=0.2
    )
    row = example()
    batch = {name: np.stack([value] * 3) for name, value in row.items()} | {"id": np.arange(3)}
    changed = jax.jit(functools.partial(augment, config=config))
    keys = jax.random.split(jax.random.key(3), 3)
    found, again = changed(batch, keys), changed(batch, keys[::-1])
    for name in row:
        np.testing.assert_array_equal(found[name][0], again[name][2], err_msg=name)
    assert np.abs(found["image"][0] - found["image"][1]).max() > 1
    np.testing.assert_array_equal(found["id"], batch["id"])
    for row in range(3):
        boxes = boxes_by_numpy(np.asarray(found["instances"][row]))
        there = np.asarray(found["labels"][row]) >= 0
        np.testing.assert_array_equal(found["boxes"][row][there], boxes[there])
    nothing = augment(batch, keys, AugmentationConfig())
    np.testing.assert_allclose(nothing["image"], batch["image"], atol=1e-4)


def test_impossible_values_are_named():
    with pytest.raises(ValueError, match="scale_min: got 2"):
        AugmentationConfig(scale_min=2.0)
    with pytest.raises(ValueError, match="hue: got 1"):
        AugmentationConfig(hue=1.0)
