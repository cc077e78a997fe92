"""Error rates compared with jiwer's, and failures of a few texts seen by eye."""

import jiwer
import numpy as np
import pytest

from tasks.common.metrics.error_rates import decoding_failures, text_errors, transcript_metrics

SAID = ["one two three", "four five", "six", "seven eight nine", ""]
WRITTEN = ["one two two three", "four", "six", "seven nine", "two"]


def test_rates_are_jiwers():
    metrics = transcript_metrics(SAID, WRITTEN)
    assert metrics["wer"] == jiwer.wer(SAID[:4], WRITTEN[:4]) == 3 / 9
    assert metrics["cer"] == jiwer.cer(SAID[:4], WRITTEN[:4])
    assert metrics["exact_match"] == 0.25
    assert metrics["hallucination_rate"] == 1.0
    assert (metrics["repeats"], metrics["skips"], metrics["early_stops"]) == (0.25, 0.25, 0.25)
    errors = text_errors(SAID, WRITTEN)
    assert errors.shape == (4,)
    np.testing.assert_allclose(errors.mean(), metrics["wer"])
    errors = text_errors(SAID, WRITTEN, words=False)
    np.testing.assert_allclose(errors.mean(), metrics["cer"])
    letters = transcript_metrics(["a b", "1233"], ["ab", "123"], words=False)
    assert "wer" not in letters
    assert (letters["cer"], letters["skips"]) == (2 / 7, 0.5)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("a b c d", (False, False, False)),
        ("a b c c d", (True, False, False)),
        ("a c d", (False, True, False)),
        ("a b", (False, False, True)),
        ("", (False, False, True)),
        ("a x b c d", (False, False, False)),
        ("a b x d", (False, False, False)),
        ("b c d d", (True, True, False)),
    ],
)
def test_ways_to_fail(written, found):
    assert decoding_failures(["a", "b", "c", "d"], written.split()) == found


def test_nothing_said_is_no_rate():
    metrics = transcript_metrics(["", " "], ["", "x"])
    assert metrics["hallucination_rate"] == 0.5
    assert np.isnan(metrics["wer"])
    with pytest.raises(ValueError, match="hypotheses: got 1 texts, expected 2"):
        transcript_metrics(["a", "b"], ["a"])
