"""Error rates of transcripts, computed by jiwer, and typical failures of attention decoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tasks.common.metrics.descriptions import Metric, fraction, lower


def _with_conditions(table: Mapping[str, Metric]) -> dict[str, Metric]:
    """Adds descriptions of the same metrics under other test conditions to a table of metrics."""
    conditions = {
        f"{name}_(?!accuracy)(.+)": dataclasses.replace(x, about=f"{x.about}, condition {{0}}")
        for name, x in table.items()
    }
    return {**table, **conditions}


TRANSCRIPTS = {
    "loss": lower("loss of the model's objective, without label smoothing", "nats per unit"),
    "decoder_loss": lower("cross-entropy of the attention decoder", "nats per unit"),
    "ctc_loss": lower("CTC loss", "nats per unit"),
    "ctc_infeasible": lower("texts that are too long for a CTC path", "texts"),
    "hallucination_rate": fraction("empty references whose hypothesis is not empty", False),
    **_with_conditions(
        {
            "wer": lower("word error rate: wrong, missing and extra words", "per reference word"),
            "cer": lower("character error rate", "per reference character"),
            "exact_match": fraction("texts without an error"),
            "repeats": fraction("texts with repeated words or characters", False),
            "skips": fraction("texts with skipped words or characters", False),
            "early_stops": fraction("texts that end too early", False),
        }
    ),
}
"""Descriptions of the metrics of transcription."""


def transcript_metrics(
    references: Sequence[str], hypotheses: Sequence[str], words: bool = True
) -> dict[str, float]:
    """Computes error rates over all texts together.

        wer = (substitutions + deletions + insertions) / words of the references

    cer is the same for characters instead of words.

    Args:
      references: true transcripts. Empty ones are used only for `hallucination_rate`.
      hypotheses: predicted transcripts, in the same order.
      words: whether to compute the WER and word-level failures; otherwise failures are at the
        character level.

    Returns:
      `wer` (if `words` is set), `cer` and `exact_match`; and `repeats`, `skips` and `early_stops`,
      the fractions of texts with such a failure, see `decoding_failures`. If there are empty
      references, also `hallucination_rate`, the fraction of them whose hypothesis is not empty. The
      other metrics are NaN if all references are empty.

    Raises:
      ValueError: the numbers of texts differ.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"hypotheses: got {len(hypotheses)} texts, expected {len(references)}")
    empty = np.array([not text.strip() for text in references], bool)
    metrics: dict[str, float] = {}
    if empty.any():
        invented = [
            bool(text.strip()) for text, none in zip(hypotheses, empty, strict=True) if none
        ]
        metrics["hallucination_rate"] = float(np.mean(invented))
    pairs = [
        (reference, text)
        for reference, text, none in zip(references, hypotheses, empty, strict=True)
        if not none
    ]
    names = ("wer", "cer", "exact_match", "repeats", "skips", "early_stops")[not words :]
    if not pairs:
        return metrics | dict.fromkeys(names, float("nan"))
    import jiwer

    references, hypotheses = ([pair[side] for pair in pairs] for side in (0, 1))
    if words:
        metrics["wer"] = jiwer.process_words(references, hypotheses).wer
    metrics["cer"] = jiwer.process_characters(references, hypotheses).cer
    same = [a.split() == b.split() for a, b in pairs]
    metrics["exact_match"] = float(np.mean(same))
    found = [decoding_failures(*(x.split() if words else x for x in pair)) for pair in pairs]
    for index, name in enumerate(names[-3:]):
        metrics[name] = float(np.mean([row[index] for row in found]))
    return metrics


def text_errors(
    references: Sequence[str], hypotheses: Sequence[str], words: bool = True
) -> np.ndarray:
    """Computes a value for each text such that the mean is the WER, or the CER without `words`.

    The value of a text is its number of errors divided by the mean length of the references.

    Returns:
      float64 [n], where n is the number of texts whose reference is not empty.
    """
    import jiwer

    rate = jiwer.wer if words else jiwer.cer
    lengths = np.array([len(text.split() if words else text) for text in references], np.float64)
    errors = [
        rate(reference, text) * length
        for reference, text, length in zip(references, hypotheses, lengths, strict=True)
        if length
    ]
    return np.array(errors) / lengths[lengths > 0].mean() if errors else np.zeros(0)


def decoding_failures(
    reference: Sequence[str], hypothesis: Sequence[str]
) -> tuple[bool, bool, bool]:
    """Returns three values: whether a decoder repeated words, skipped words, and stopped early.

    These failures are found in the alignment with the fewest errors. A repeat is an inserted word
    that equals an adjacent word. A skip is a deletion before the end, and an early stop is a
    deletion at the end.

    Args:
      reference, hypothesis: true and predicted words, or characters instead of words.
    """
    import jiwer

    if not reference:
        return False, False, False
    if not hypothesis:
        return False, False, True
    result = jiwer.process_words(_spaced(reference), _spaced(hypothesis))
    repeats = skips = stops = False
    for chunk in result.alignments[0]:
        if chunk.type == "insert":
            inserted = range(chunk.hyp_start_idx, chunk.hyp_end_idx)
            # For two equal adjacent words the alignment marks either one as inserted; check both
            # sides.
            repeats |= any(
                hypothesis[i] in (*hypothesis[max(i - 1, 0) : i], *hypothesis[i + 1 :][:1])
                for i in inserted
            )
        if chunk.type == "delete":
            last = chunk.ref_end_idx == len(reference)
            stops |= last
            skips |= not last
    return repeats, skips, stops


def _spaced(parts: Sequence[str]) -> str:
    """Joins words or characters by spaces, for jiwer. The character " " becomes a visible one."""
    return " ".join("␣" if part == " " else part for part in parts)
