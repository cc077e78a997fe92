"""Paired intervals: by hand, and as often right as they say."""

import numpy as np
import pytest

from launch.engine.pairs import interval, spell


def test_without_overlap_it_is_the_normal_interval():
    difference = np.array([0.0, 1.0, 0.5, 0.0])
    mean, half = interval(difference)
    assert mean == pytest.approx(0.375)
    assert half == pytest.approx(1.96 * difference.std(ddof=1) / 2)
    assert interval(np.array([0.25])) == (0.25, 0.0)
    assert spell(mean, half) == f"+0.3750 ± {half:.4f}"


def test_with_overlap_by_hand():
    difference = np.array([1.0, 2.0, 4.0, 1.0, 0.0, 4.0])
    mean, half = interval(difference, overlap=2)
    centred = difference - 2.0
    lags = [sum(centred[k:] * centred[: 6 - k]) / 5 for k in range(3)]
    variance = lags[0] + 2 * (2 / 3 * lags[1] + 1 / 3 * lags[2])
    assert mean == 2.0
    assert half == pytest.approx(1.96 * np.sqrt(variance / 6))


def test_interval_of_windows_that_overlap_covers_the_truth():
    """Moving means of noise around 0: nineteen of twenty intervals are to hold it."""
    rng = np.random.default_rng(0)
    kernel = np.full(24, 1 / 24)
    found = {1: 0, 24: 0}
    for _ in range(300):
        difference = np.convolve(rng.normal(size=2023), kernel, mode="valid")
        for overlap in found:
            mean, half = interval(difference, overlap)
            found[overlap] += abs(mean) <= half
    assert found[24] / 300 > 0.9
    # As if they were apart, it would be far too narrow.
    assert found[1] / 300 < 0.5
