"""Paired confidence intervals: values computed by hand, and coverage."""

import numpy as np
import pytest

from launch.reporting.paired import format_difference, mean_and_interval, read
from tasks.common.errors import UserError


def test_without_overlap_it_is_the_normal_interval():
    difference = np.array([0.0, 1.0, 0.5, 0.0])
    mean, half = mean_and_interval(difference)
    assert mean == pytest.approx(0.375)
    assert half == pytest.approx(1.96 * difference.std(ddof=1) / 2)
    assert mean_and_interval(np.array([0.25])) == (0.25, 0.0)
    assert format_difference(mean, half) == f"+0.3750 ± {half:.4f}"


def test_with_overlap_by_hand():
    difference = np.array([1.0, 2.0, 4.0, 1.0, 0.0, 4.0])
    mean, half = mean_and_interval(difference, overlap=2)
    centred = difference - 2.0
    lags = [sum(centred[k:] * centred[: 6 - k]) / 5 for k in range(3)]
    variance = lags[0] + 2 * (2 / 3 * lags[1] + 1 / 3 * lags[2])
    assert mean == 2.0
    assert half == pytest.approx(1.96 * np.sqrt(variance / 6))


def test_interval_of_windows_that_overlap_covers_the_truth():
    """Moving means of noise around 0: 95 % of the intervals must contain 0."""
    rng = np.random.default_rng(0)
    kernel = np.full(24, 1 / 24)
    found = {1: 0, 24: 0}
    for _ in range(300):
        difference = np.convolve(rng.normal(size=2023), kernel, mode="valid")
        for overlap in found:
            mean, half = mean_and_interval(difference, overlap)
            found[overlap] += abs(mean) <= half
    assert found[24] / 300 > 0.9
    # Treated as independent, the interval is far too narrow.
    assert found[1] / 300 < 0.5


def scores(folder, correctness, ids=None):
    folder.mkdir()
    more = {} if ids is None else {"example_ids": np.array(ids, np.uint64)}
    np.savez(folder / "outputs-test.npz", correctness=np.array(correctness, np.float32), **more)
    return read(folder)


def test_examples_are_joined_by_their_ids(tmp_path):
    base = scores(tmp_path / "base", [0, 0, 0, 0], [7, 3, 3, 2**64 - 1])
    other = scores(tmp_path / "other", [1, 2, 3, 4], [3, 2**64 - 1, 7, 3])
    # Equal examples are paired in order.
    assert other.aligned_to(base, same_data=False).tolist() == [3, 1, 4, 2]


def test_other_examples_are_refused(tmp_path):
    base = scores(tmp_path / "base", [0, 1, 0], [1, 2, 3])
    fewer = scores(tmp_path / "fewer", [0, 1], [1, 2])
    with pytest.raises(UserError, match=r"has 2 test examples, expected the 3 examples of"):
        fewer.aligned_to(base, same_data=True)
    other = scores(tmp_path / "other", [0, 1, 0], [1, 2, 4])
    with pytest.raises(UserError, match="the test examples differ from those of"):
        other.aligned_to(base, same_data=True)


def test_files_without_ids_need_equal_data(tmp_path):
    base = scores(tmp_path / "base", [0, 1, 0], [1, 2, 3])
    old = scores(tmp_path / "old", [1, 1, 0])
    assert old.aligned_to(base, same_data=True).tolist() == [1, 1, 0]
    with pytest.raises(UserError, match=r"old/outputs-test\.npz: has no example ids"):
        old.aligned_to(base, same_data=False)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 and then nothing"])
def test_outputs_that_cannot_be_read_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "outputs-test.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"outputs-test\.npz: cannot be read .* launch\.evaluate"):
        read(tmp_path)
