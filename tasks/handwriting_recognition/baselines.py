"""What a few lines get of composed strings of digits."""

from __future__ import annotations

import time

import numpy as np

from tasks.common.data.transcribed import TranscriptionExamples
from tasks.common.metrics.error_rates import transcript_metrics
from tasks.handwriting_recognition.data import HandwritingData

_SIDE, _INK = 16, 110
# Lines of train whose pieces a classifier is fitted on.
_LINES = 3000


def cut_and_classify(lines: HandwritingData) -> dict[str, float]:
    """Connected columns of ink are taken for a digit each, and classified by their pixels with a
    support vector machine; fitted on the lines of train that have as many pieces as digits.
    """
    from sklearn.svm import SVC

    began = time.monotonic()
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
    metrics = transcript_metrics(
        [test.texts[i] for i in chosen], [_read(test, i, model) for i in chosen], words=False
    )
    kept = {name: metrics[name] for name in ("cer", "exact_match")}
    return kept | {"seconds": round(time.monotonic() - began, 2)}


def _read(test: TranscriptionExamples, index: int, model) -> str:
    found = _pieces(test[index]["columns"])
    return "".join(model.predict(np.stack(found))) if found else ""


def _pieces(columns: np.ndarray) -> list[np.ndarray]:
    """Stretches of columns with ink, each 16 x 16, flat."""
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
