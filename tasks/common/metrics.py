"""Figures of a classification, by scikit-learn, and of translations, by sacrebleu, named as results
files and tables name them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def classification_metrics(
    labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """Accuracy, macro precision, recall and F1, MCC, and the three for each class.

        precision = TP / (TP + FP),   recall = TP / (TP + FN),   F1 = 2·TP / (2·TP + FP + FN)

    with 0 / 0 = 0. The macro figures are plain means over the classes that occur among labels or
    predictions, as `sklearn.metrics.f1_score(average="macro")` has them. MCC is Gorodkin's (2004)
    for many classes, and 0 where labels or predictions are of one class only.

    Args:
      labels: int [n], true classes.
      predictions: int [n], predicted classes.
      names: of the classes, in the order of their numbers.

    Returns:
      `accuracy`, `macro_f1`, `macro_precision`, `macro_recall`, `mcc`, and for each name
      `precision_<name>`, `recall_<name>`, `f1_<name>`.

    Raises:
      ValueError: no examples, shapes that differ, or a class number without a name.
    """
    from sklearn import metrics

    labels, predictions = np.asarray(labels), np.asarray(predictions)
    _check(labels, predictions, names)
    classes = np.arange(len(names))
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, predictions, labels=classes, zero_division=0
    )
    occurring = np.union1d(labels, predictions)
    result = {
        "accuracy": metrics.accuracy_score(labels, predictions),
        "macro_f1": f1[occurring].mean(),
        "macro_precision": precision[occurring].mean(),
        "macro_recall": recall[occurring].mean(),
        "mcc": metrics.matthews_corrcoef(labels, predictions),
    }
    for number, name in enumerate(names):
        result[f"precision_{name}"] = precision[number]
        result[f"recall_{name}"] = recall[number]
        result[f"f1_{name}"] = f1[number]
    return {name: float(value) for name, value in result.items()}


def translation_metrics(
    outputs: Sequence[str], references: Sequence[str], lower_case: bool
) -> dict[str, float]:
    """BLEU (Papineni et al. 2002), chrF (Popović 2015), and the ratio of lengths.

    Args:
      outputs: n translations, as plain text.
      references: one for each.
      lower_case: fold case for `bleu` and `chrf`: for a system that knows lower case alone.

    Returns:
      `bleu`: sacrebleu's, on its own tokens (13a); with `lower_case` on lower case. See
        `bleu_signature`.
      `chrf`: of characters up to 6-grams, beta 2.
      `bleu4_lowercase_tokenized`: on lower case always. Published figures of Multi30k are on text
        in lower case that Moses' tokenizer.perl (without -a: hyphens stay) has split, by
        multi-bleu.perl, the same formula; 13a, the tokens of NIST's mteval, is what sacrebleu has
        nearest to it. The two differ at apostrophes and at full stops of abbreviations, on the
        German test_2016_flickr by 0.02 (splitting hyphens, -a, would add 0.3).
      `length_ratio`: tokens of the outputs by tokens of the references, 13a.

    Raises:
      ValueError: no texts, or not one output for each reference.
    """
    from sacrebleu.metrics import CHRF

    _check_texts(outputs, references)
    outputs, references = list(outputs), [list(references)]
    folded = _bleu(True).corpus_score(outputs, references)
    plain = folded if lower_case else _bleu(False).corpus_score(outputs, references)
    chrf = CHRF(lowercase=lower_case).corpus_score(outputs, references)
    return {
        "bleu": float(plain.score),
        "chrf": float(chrf.score),
        "bleu4_lowercase_tokenized": float(folded.score),
        "length_ratio": folded.sys_len / max(folded.ref_len, 1),
    }


def bleu_signature(lower_case: bool, short: bool = False) -> str:
    """How sacrebleu names the settings of `bleu`, version included; with letters if short."""
    metric = _bleu(lower_case)
    metric.corpus_score(["a"], [["a"]])
    return metric.get_signature().format(short)


def bleu_contributions(
    outputs: Sequence[str], references: Sequence[str], lower_case: bool
) -> np.ndarray:
    """What each sentence does to the BLEU of all, so that two systems can be compared in pairs.

    BLEU is a function f of the mean of each sentence's counts s_i, hits and totals of n-grams and
    lengths; the figure of sentence i is f + ∇f · (s_i - mean), the first-order change of f with its
    weight (the infinitesimal jackknife, Efron 1982). The mean over sentences is BLEU itself.

    Returns:
      float64 [n]; BLEU for every sentence where some n-gram order has no hit at all.

    Raises:
      ValueError: as `translation_metrics`.
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

    # It warns of outputs that look tokenized; some tokenizers here cannot be undone wholly.
    return BLEU(lowercase=lower_case, force=True)


def _check_texts(outputs: Sequence[str], references: Sequence[str]) -> None:
    if len(outputs) != len(references):
        raise ValueError(f"outputs: got {len(outputs)}, expected {len(references)} as references")
    if not len(references):
        raise ValueError("references: got none, expected at least one")


def _check(labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> None:
    if labels.ndim != 1 or labels.shape != predictions.shape:
        raise ValueError(
            f"predictions: got shape {predictions.shape}, expected that of labels, "
            f"{labels.shape}, with one dimension"
        )
    if labels.size == 0:
        raise ValueError("labels: got no examples, expected at least one")
    for name, values in (("labels", labels), ("predictions", predictions)):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name}: got dtype {values.dtype}, expected integers")
        if values.min() < 0 or values.max() >= len(names):
            raise ValueError(
                f"{name}: got classes {values.min()} to {values.max()}, "
                f"expected 0 to {len(names) - 1}"
            )
