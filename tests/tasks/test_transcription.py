"""Examples with what they say."""

import numpy as np

from tasks.common.data.transcribed import TranscriptionExamples


def test_what_has_no_length_has_a_place_in_a_batch():
    examples = TranscriptionExamples(
        "samples", lambda index: np.zeros(0, np.int16), [0], [np.zeros(0, np.int32)], [""]
    )
    example = examples[0]
    assert example["length"] == 0
    assert example["samples"].tolist() == [0]
    assert example["target"].tolist() == [0]
    assert examples.lengths["samples"].tolist() == examples.lengths["target"].tolist() == [1]
    empty = TranscriptionExamples("image", lambda index: np.zeros((0, 4), np.uint8), [0])
    assert empty[0]["image"].shape == (1, 4)
    assert "target" not in empty[0]
