"""Baseline of handwriting recognition: an SVM on runs of columns with ink."""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.common.data.transcribed import TranscriptionExamples
from tasks.common.metrics.error_rates import text_errors, transcript_metrics
from tasks.handwriting_recognition.data import HandwritingData

_SIDE, _INK = 16, 110
# Number of training lines.
_LINES = 3000


def cut_and_classify(lines: HandwritingData) -> dict[str, Any]:
    """Evaluates an SVM that classifies each run of adjacent columns with ink as one digit.

    The SVM is fitted on the training lines in which the number of runs equals the number of digits.
    """
    from sklearn.svm import SVC

    pieces, labels = [], []
    train = lines.splits["train"]
    for index in range(min(len(train), _LINES)):
        found = _pieces(train[index]["columns"])
        if len(found) == len(train.texts[index]):
            pieces += found
            labels += list(train.texts[index])
    model = SVC(C=10.0).fit(np.stack(pieces), labels)
    test = lines.splits["test"]
    chosen = np.flatnonzero(test.groups == 0)
    pair = [test.texts[i] for i in chosen], [_read(test, i, model) for i in chosen]
    metrics = transcript_metrics(*pair, words=False)
    found = {name: metrics[name] for name in ("cer", "exact_match")}
    return {**found, "example_scores": text_errors(*pair, words=False)}


def _read(test: TranscriptionExamples, index: int, model) -> str:
    found = _pieces(test[index]["columns"])
    return "".join(model.predict(np.stack(found))) if found else ""


def _pieces(columns: np.ndarray) -> list[np.ndarray]:
    """Returns each run of at least two columns with ink, resized to 16 x 16 and flattened."""
    from tasks.common.images.files import resize

    inked = np.concatenate([[False], (columns > _INK).any(axis=1), [False]])
    edges = np.flatnonzero(inked[1:] != inked[:-1])
    found = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        if end - begin < 2:
            continue
        piece = columns[begin:end]
        rows = np.flatnonzero((piece > _INK).any(axis=0))
        piece = piece[:, rows[0] : rows[-1] + 1]
        side = max(piece.shape)
        square = np.zeros((side, side), np.uint8)
        top, left = ((side - size) // 2 for size in piece.shape)
        square[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
        found.append(resize(square, (_SIDE, _SIDE)).ravel() / 255)
    return found
