"""Translation metrics of sacrebleu, under the names that results files and tables use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.common.metrics.descriptions import Metric, fraction, lower

TRANSLATION = {
    "bleu": Metric("BLEU of sacrebleu, tokenizer 13a", "from 0 to 100", True),
    "bleu4_lowercase_tokenized": Metric("BLEU on lower case", "from 0 to 100", True),
    "cased_bleu": Metric("BLEU of lower-case output on cased references", "from 0 to 100", True),
    "chrf": Metric("chrF: F-score of character n-grams", "from 0 to 100", True),
    "length_ratio": Metric("length of the translations; 1 is best", "per reference token", None),
    "forced_accuracy": fraction("right tokens under teacher forcing"),
    "loss": lower("cross-entropy under teacher forcing", "nats per token"),
    "cross_entropy": lower("cross-entropy without label smoothing", "nats per token"),
}
"""Descriptions of the metrics of translation."""


def translation_metrics(
    outputs: Sequence[str], references: Sequence[str], lower_case: bool
) -> dict[str, float]:
    """Computes BLEU (Papineni et al. 2002), chrF (Popović 2015), and the length ratio.

    Args:
      outputs: n translations, as plain text.
      references: one reference for each translation.
      lower_case: whether to fold case for `bleu` and `chrf`, for systems that write lower case
        only.

    Returns:
      `bleu`: BLEU of sacrebleu with tokenizer 13a, on lower case if `lower_case` is set. See
      `bleu_signature`.
      `chrf`: character n-grams up to 6, beta 2.
      `bleu4_lowercase_tokenized`: `bleu`, but always on lower case. Published results on Multi30k
        use multi-bleu.perl (the same formula) on lower case, split by Moses' tokenizer.perl without
        -a, which keeps hyphens. The most similar tokenizer of sacrebleu is 13a, as in NIST's
        mteval. The two differ at apostrophes and at full stops of abbreviations, which changes BLEU
        by 0.02 on the German test_2016_flickr (splitting hyphens, -a, would add 0.3).
      `cased_bleu`, only with `lower_case`: BLEU without case folding, in which a missing capital
        letter counts as an error.
      `length_ratio`: number of tokens in the outputs divided by that in the references,
        tokenizer 13a.

    Raises:
      ValueError: there are no texts, or the numbers of outputs and references differ.
    """
    from sacrebleu.metrics import CHRF

    _check_texts(outputs, references)
    outputs, references = list(outputs), [list(references)]
    folded = _bleu(True).corpus_score(outputs, references)
    cased = _bleu(False).corpus_score(outputs, references)
    plain = folded if lower_case else cased
    chrf = CHRF(lowercase=lower_case).corpus_score(outputs, references)
    return {
        "bleu": float(plain.score),
        "chrf": float(chrf.score),
        "bleu4_lowercase_tokenized": float(folded.score),
        **({"cased_bleu": float(cased.score)} if lower_case else {}),
        "length_ratio": folded.sys_len / max(folded.ref_len, 1),
    }


def bleu_signature(lower_case: bool, short: bool = False) -> str:
    """Returns the signature of `bleu`, which has the settings and the version of sacrebleu.

    Args:
      lower_case: see `translation_metrics`.
      short: whether the signature is abbreviated.
    """
    metric = _bleu(lower_case)
    metric.corpus_score(["a"], [["a"]])
    return metric.get_signature().format(short)


def bleu_contributions(
    outputs: Sequence[str], references: Sequence[str], lower_case: bool
) -> np.ndarray:
    """Computes the contribution of each sentence to BLEU, for paired comparisons of two systems.

    Each sentence i has counts s_i: hits and totals of n-grams, and lengths. BLEU is a function f of
    the mean of these counts. The contribution of sentence i is f + ∇f · (s_i - mean), the
    first-order change of f when the sentence gets more weight (infinitesimal jackknife, Efron
    1982). The mean of the contributions is BLEU.

    Returns:
      float64 [n]; BLEU for every sentence if some n-gram order has no hit.

    Raises:
      ValueError: see `translation_metrics`.
    """
    _check_texts(outputs, references)
    metric = _bleu(lower_case)
    scores = [
        metric.corpus_score([output], [[reference]])
        for output, reference in zip(outputs, references, strict=True)
    ]
    total = metric.corpus_score(list(outputs), [list(references)]).score
    hits = np.array([score.counts for score in scores], np.float64)
    totals = np.array([score.totals for score in scores], np.float64)
    lengths = np.array([(score.sys_len, score.ref_len) for score in scores], np.float64)
    if not hits.sum(axis=0).all():
        return np.full(len(scores), float(total))
    # log f = mean over orders of log(hits / totals) + min(0, 1 - reference / output).
    change = (hits / hits.mean(axis=0) - totals / totals.mean(axis=0)).mean(axis=1)
    output, reference = lengths.mean(axis=0)
    if output < reference:
        change += (lengths[:, 0] / output - lengths[:, 1] / reference) * reference / output
    return total * (1 + change)


def _bleu(lower_case: bool):
    from sacrebleu.metrics import BLEU

    # `force` suppresses a warning about outputs that look tokenized. Texts that some tokenizers
    # decode look like this.
    return BLEU(lowercase=lower_case, force=True)


def _check_texts(outputs: Sequence[str], references: Sequence[str]) -> None:
    if len(outputs) != len(references):
        raise ValueError(
            f"outputs: got {len(outputs)}, expected {len(references)} (one per reference)"
        )
    if not len(references):
        raise ValueError("references: got none, expected at least one")
