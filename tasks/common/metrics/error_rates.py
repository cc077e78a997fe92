"""How far what was written is from what was said: error rates by jiwer, and the known ways in which
decoders with attention fail.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def transcript_metrics(
    references: Sequence[str], written: Sequence[str], words: bool = True
) -> dict[str, float]:
    """Error rates over all texts together.

        wer = (substitutions + deletions + insertions) / words of the references,
        cer the same of characters

    Args:
      references: what was said. Texts that say nothing count for `hallucination_rate` alone.
      written: what was written, in the same order.
      words: whether failures are of words, and there is a WER; else they are of characters.

    Returns:
      `wer`, `cer`, `exact_match`; `repeats`, `skips` and `early_stops`, the shares of texts with
      such a failure: see `decoding_failures`. With empty references also `hallucination_rate`, the
      fraction of them for which something was written. NaN if all references are empty.

    Raises:
      ValueError: the numbers of texts differ.
    """
    if len(references) != len(written):
        raise ValueError(f"written: got {len(written)} texts, expected {len(references)}")
    silent = np.array([not text.strip() for text in references], bool)
    metrics: dict[str, float] = {}
    if silent.any():
        invented = [bool(text.strip()) for text, none in zip(written, silent, strict=True) if none]
        metrics["hallucination_rate"] = float(np.mean(invented))
    said = [
        (reference, text)
        for reference, text, none in zip(references, written, silent, strict=True)
        if not none
    ]
    names = ("wer", "cer", "exact_match", "repeats", "skips", "early_stops")[not words :]
    if not said:
        return metrics | dict.fromkeys(names, float("nan"))
    import jiwer

    references, written = ([pair[side] for pair in said] for side in (0, 1))
    if words:
        metrics["wer"] = jiwer.process_words(references, written).wer
    metrics["cer"] = jiwer.process_characters(references, written).cer
    same = [a.split() == b.split() for a, b in said]
    metrics["exact_match"] = float(np.mean(same))
    found = [decoding_failures(*(x.split() if words else x for x in pair)) for pair in said]
    for place, name in enumerate(names[-3:]):
        metrics[name] = float(np.mean([row[place] for row in found]))
    return metrics


def text_errors(
    references: Sequence[str], written: Sequence[str], words: bool = True
) -> np.ndarray:
    """[n] figures whose mean is the WER, or the CER: errors of each text over their mean length.

    Texts that say nothing are left out of both.
    """
    import jiwer

    rate = jiwer.wer if words else jiwer.cer
    lengths = np.array([len(text.split() if words else text) for text in references], np.float64)
    errors = [
        rate(reference, text) * length
        for reference, text, length in zip(references, written, lengths, strict=True)
        if length
    ]
    return np.array(errors) / lengths[lengths > 0].mean() if errors else np.zeros(0)


def decoding_failures(reference: Sequence[str], written: Sequence[str]) -> tuple[bool, bool, bool]:
    """Whether a decoder repeated itself, skipped something, or stopped early.

    By the alignment with fewest errors: something inserted that stands there twice; something left
    out that is not at the end; the end left out.
    """
    import jiwer

    if not reference:
        return False, False, False
    if not written:
        return False, False, True
    result = jiwer.process_words(_spaced(reference), _spaced(written))
    repeats = skips = stops = False
    for chunk in result.alignments[0]:
        if chunk.type == "insert":
            places = range(chunk.hyp_start_idx, chunk.hyp_end_idx)
            # Which of two equal neighbours is the inserted one is the alignment's whim.
            repeats |= any(
                written[place] in (*written[max(place - 1, 0) : place], *written[place + 1 :][:1])
                for place in places
            )
        if chunk.type == "delete":
            last = chunk.ref_end_idx == len(reference)
            stops |= last
            skips |= not last
    return repeats, skips, stops


def _spaced(parts: Sequence[str]) -> str:
    """As words for jiwer; a space among characters has a stand-in."""
    return " ".join("␣" if part == " " else part for part in parts)
