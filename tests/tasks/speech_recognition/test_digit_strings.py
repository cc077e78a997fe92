"""Recordings joined into strings."""

import numpy as np
import pytest

from tasks.speech_recognition.datasets.digit_strings import JoinedDigits, Strings

RATE = 8000


@pytest.fixture(scope="module")
def recordings():
    """Returns two speakers; each take is a constant that tells what it is."""
    return {
        speaker: [
            [np.full(400 + 10 * take, 100 * digit + level, np.int16) for take in range(3)]
            for digit in range(10)
        ]
        for speaker, level in (("ann", 20), ("bob", 50))
    }


def made(recordings, count=40, seed=(0, 1), **changed):
    config = Strings(
        **{"least": 2, "most": 4, "pause": 0.02, "overlap": 0.0, "gain": 0.0} | changed
    )
    return JoinedDigits(recordings, count, config, seed, RATE)


def test_what_is_heard_is_what_is_said(recordings):
    strings = made(recordings)
    assert {len(digits) for digits in strings.digits} == {2, 3, 4}
    for index in range(len(strings)):
        samples = strings[index]
        assert samples.dtype == np.int16
        assert len(samples) == strings.lengths[index]
        level = {"ann": 20, "bob": 50}[strings.speakers[index]]
        changes = np.flatnonzero(np.diff(samples)) + 1
        heard = [block[0] for block in np.split(samples, changes) if block[0]]
        expected = [100 * digit + level for digit in strings.digits[index]]
        # Two equal digits without a pause between are one block.
        assert [x for n, x in enumerate(heard) if n == 0 or x != heard[n - 1]] == [
            x for n, x in enumerate(expected) if n == 0 or x != expected[n - 1]
        ]
    assert set(strings.speakers) == {"ann", "bob"}


def test_strings_depend_on_the_seed_and_their_number_alone(recordings):
    first, longer, other = (
        made(recordings), made(recordings, count=60), made(recordings, seed=(1, 1))
    )  # fmt: skip
    for index in range(40):
        np.testing.assert_array_equal(first[index], longer[index])
    assert any(len(first[i]) != len(other[i]) for i in range(40))


def test_neighbours_fade_into_each_other(recordings):
    strings = made(recordings, pause=0.0, overlap=0.01)
    for index in range(10):
        samples, digits = strings[index].astype(int), strings.digits[index]
        assert len(samples) < sum(420 for _ in digits)
        # Two ramps that add up to one stay between the two levels.
        assert samples.min() >= min(digits) * 100 + 19
        assert samples.max() <= max(digits) * 100 + 51


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"least": 0}, r"least: got 0, expected at least 1"),
        ({"least": 5, "most": 4}, r"most: got 4, expected at least least=5"),
        ({"pause": -1.0}, "pause: got -1.0, expected at least 0"),
    ],
)
def test_strings_that_cannot_be_are_named(changed, said):
    with pytest.raises(ValueError, match=said):
        Strings(**changed)
