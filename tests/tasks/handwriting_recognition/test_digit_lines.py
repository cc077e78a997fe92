"""Digits joined into lines."""

import numpy as np
import pytest

from tasks.handwriting_recognition.datasets import digit_lines
from tasks.handwriting_recognition.datasets.digit_lines import HEIGHT, Lines, WrittenLines
from tasks.handwriting_recognition.datasets.mnist_digits import SIDE


@pytest.fixture(scope="module")
def pictures():
    """Discs, one a digit, the larger the greater it is."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    return [
        np.repeat(((x**2 + y**2 <= (3 + 0.8 * digit) ** 2) * 255).astype(np.uint8)[None], 2, axis=0)
        for digit in range(10)
    ]


def made(pictures, count=20, seed=(0, 1), **changed):
    quiet = {"slant": 0.0, "thickness": 0.0, "noise": 0.0, "scale": 0.0, "spacing": (3, 6)}
    return WrittenLines(pictures, count, Lines(**quiet | changed), seed)


def test_a_line_has_its_digits_from_left_to_right(pictures):
    lines = made(pictures)
    assert {len(text) for text in lines.texts} <= set(range(3, 9))
    for index, text in enumerate(lines.texts):
        columns = lines[index]
        assert columns.dtype == np.uint8
        assert columns.shape[1] == HEIGHT
        inked = np.concatenate([[False], (columns > 60).any(axis=1), [False]])
        edges = np.flatnonzero(inked[1:] != inked[:-1])
        widths = edges[1::2] - edges[::2]
        assert len(widths) == len(text)
        # The greater, the wider.
        expected = [6 + 1.6 * int(digit) for digit in text]
        np.testing.assert_allclose(widths, expected, atol=2.5)


def test_a_line_depends_on_the_seed_and_its_number_alone(pictures):
    first, more = made(pictures, noise=30.0), made(pictures, count=40, noise=30.0)
    other = made(pictures, seed=(1, 1), noise=30.0)
    assert first.texts == more.texts[:20] != other.texts
    np.testing.assert_array_equal(first[7], more[7])
    np.testing.assert_array_equal(first[7], first[7])


def test_slant_and_pen_change_what_is_seen(pictures):
    upright = made(pictures)[0].astype(int)
    for changed in ({"slant": 0.5}, {"thickness": 0.9}, {"scale": 0.3}):
        other = made(pictures, **changed)
        assert other.texts[0] == made(pictures).texts[0]
        assert other[0].shape != upright.shape or (other[0] != upright).any()


@pytest.mark.parametrize("changed", [{"wobble": 0.3}, {"elastic": 1.4}])
def test_distorted_digits_differ_within_a_line(pictures, changed):
    lines = made(pictures, 40, **changed)
    twice = next(i for i, text in enumerate(lines.texts) if len(set(text)) < len(text))
    text = lines.texts[twice]
    digit = next(digit for digit in text if text.count(digit) > 1)
    for distorted in (False, True):
        columns = made(pictures, 40, **(changed if distorted else {}))[twice]
        inked = np.concatenate([[False], (columns > 60).any(axis=1), [False]])
        edges = np.flatnonzero(inked[1:] != inked[:-1])
        shapes = [
            columns[begin:end].sum()
            for begin, end, said in zip(edges[::2], edges[1::2], text, strict=True)
            if said == digit
        ]
        assert (len(set(shapes)) > 1) == distorted


def test_elastic_distortion_moves_pixels_by_the_given_deviation():
    rng = np.random.default_rng(0)
    moved = np.stack([digit_lines._displacements(rng, 1.4) for _ in range(200)])
    np.testing.assert_allclose(moved.std(axis=(0, 2, 3)), 1.4, rtol=0.05)
    # Neighbors move together.
    np.testing.assert_array_less(np.abs(np.diff(moved, axis=-1)).std(), 0.3)


def test_displacements_of_zero_are_the_affine_transformation(pictures):
    image, matrix = pictures[7][0].astype(np.float32), np.array([[1.1, 0.0], [0.3, 0.9]])
    plain = digit_lines._transform(image, matrix, 0.4)
    moved = digit_lines._transform(image, matrix, 0.4, np.zeros((2, 44, 44)))
    np.testing.assert_allclose(moved, plain, atol=0.01)
    right = digit_lines._transform(image, matrix, 0.4, np.stack([np.zeros((44, 44))] * 2) + 1.0)
    assert np.abs(right - plain).max() > 50


@pytest.mark.parametrize("changed", [{"elastic": 100.0, "thickness": 1.0}, {"spacing": (60, 70)}])
def test_extreme_settings_give_lines(pictures, changed):
    lines = made(pictures, 50, **changed)
    assert all(lines[index].shape[1] == HEIGHT for index in range(50))
    assert min(len(lines[index]) for index in range(50)) >= 1


def test_close_digits_touch(pictures):
    apart, close = made(pictures), made(pictures, spacing=(-4, -2))
    assert all(len(close[i]) < len(apart[i]) for i in range(20))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"least": 0}, "least: got 0, expected at least 1"),
        ({"most": 2}, "most: got 2, expected at least least=3"),
        ({"spacing": (3, 1)}, "spacing: got .3, 1., expected two numbers in ascending order"),
        ({"spacing": (-9, 1)}, "spacing: got .-9, 1., expected .* at least -6"),
        ({"scale": 0.6}, r"scale: got 0.6, expected a number in \[0, 0.5\)"),
        ({"wobble": 0.5}, r"wobble: got 0.5, expected a number in \[0, 0.5\)"),
        ({"noise": -1.0}, "noise: got -1.0, expected at least 0"),
        ({"elastic": -1.0}, "elastic: got -1.0, expected at least 0"),
    ],
)
def test_lines_that_cannot_be_are_named(changed, said):
    with pytest.raises(ValueError, match=said):
        Lines(**changed)
