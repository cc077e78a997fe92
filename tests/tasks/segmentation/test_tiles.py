"""Windows cover the complete image, label each pixel once, and are blended without seams."""

import numpy as np
import pytest

from tasks.segmentation.tiles import (
    blend_windows,
    crop_window,
    training_windows,
    window_corners,
    window_starts,
)

VOID = 255
RNG = np.random.default_rng(0)


def test_starts_by_hand():
    assert window_starts(5, 8, 4) == [0]
    assert window_starts(8, 8, 4) == [0]
    assert window_starts(9, 8, 4) == [0, 1]
    assert window_starts(20, 8, 4) == [0, 4, 8, 12]
    # Evenly: three windows rather than two and a last that hardly moves on.
    assert window_starts(17, 8, 6) == [0, 4, 9]


@pytest.mark.parametrize("sides", [(1, 1), (4, 6), (5, 13), (17, 9)])
def test_windows_hold_every_pixel(sides):
    seen = np.zeros(sides, int)
    for top, left in window_corners(*sides, (4, 6), 0.25):
        assert top + 4 <= max(sides[0], 4)
        assert left + 6 <= max(sides[1], 6)
        seen[top : top + 4, left : left + 6] += 1
    assert seen.min() >= 1


@pytest.mark.parametrize("sides", [(1, 1), (4, 6), (5, 13), (17, 9)])
def test_each_pixel_is_labelled_once(sides):
    image = RNG.integers(0, 255, (*sides, 3)).astype(np.uint8)
    labels = np.arange(np.prod(sides)).reshape(sides).astype(np.uint8)
    windows = list(training_windows(image, labels, (4, 6), VOID))
    found = np.concatenate([window[window != VOID] for _, window in windows])
    np.testing.assert_array_equal(np.sort(found), labels.ravel())
    for window, window_labels in windows:
        assert window.shape == (4, 6, 3)
        y, x = np.nonzero(window_labels != VOID)
        at = window_labels[y, x].astype(int)
        np.testing.assert_array_equal(window[y, x], image.reshape(-1, 3)[at])


def test_what_lies_beyond_repeats_the_edge():
    window = crop_window(np.array([[1, 2], [3, 4]]), 0, 0, (3, 3))
    np.testing.assert_array_equal(window, [[1, 2, 2], [3, 4, 4], [3, 4, 4]])


@pytest.mark.parametrize("sides", [(1, 2), (23, 31), (600, 9)])
def test_windows_of_a_map_blend_to_the_map(sides):
    labels = RNG.integers(0, 3, sides)
    whole = np.eye(3)[labels]
    size = (8, 10)
    places = window_corners(*sides, size, 0.25)
    tiles = [np.round(255 * crop_window(whole, *place, size)).astype(np.uint8) for place in places]
    np.testing.assert_array_equal(blend_windows(tiles, places, *sides), labels)


def test_the_middle_of_a_window_has_more_say_than_its_edge():
    # Two windows of 8 that overlap by 4: one is sure of class 0, the other of class 1.
    tiles = [np.tile(np.eye(2)[k], (8, 8, 1)) for k in (0, 1)]
    found = blend_windows(tiles, [(0, 0), (0, 4)], 8, 12)
    np.testing.assert_array_equal(found, [[0] * 6 + [1] * 6] * 8)
