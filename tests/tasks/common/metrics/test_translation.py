"""BLEU by hand, and what each sentence does to it."""

import math

import numpy as np
import pytest

from tasks.common.metrics.translation import bleu_contributions, bleu_signature, translation_metrics

OUTPUTS = ["The cat sat on the mat", "a dog runs fast", "hello there my good friend ."]
REFERENCES = ["the cat sat on a mat today", "a dog runs fast", "hello there my friend again ."]


def test_bleu_by_hand():
    """Papineni's formula on the words of the first two, which no tokenizer divides further."""
    found = translation_metrics(OUTPUTS[:2], REFERENCES[:2], True)
    # n-grams that occur in the reference: the cat sat on | mat; all of the other text. "the" is in
    # the reference once.
    precisions = [(5 + 4) / 10, (3 + 3) / 8, (2 + 2) / 6, (1 + 1) / 4]
    brevity = math.exp(1 - 11 / 10)
    expected = 100 * brevity * math.prod(precisions) ** (1 / 4)
    assert found["bleu"] == pytest.approx(expected)
    assert found["bleu4_lowercase_tokenized"] == found["bleu"]
    assert found["length_ratio"] == pytest.approx(10 / 11)


def test_case():
    found = translation_metrics(OUTPUTS, REFERENCES, False)
    folded = translation_metrics(OUTPUTS, REFERENCES, True)
    assert found["bleu"] < found["bleu4_lowercase_tokenized"] == folded["bleu"]
    assert folded["cased_bleu"] == found["bleu"]
    assert "cased_bleu" not in found
    assert found["chrf"] < folded["chrf"]
    same = translation_metrics(REFERENCES, REFERENCES, False)
    assert same == pytest.approx(
        {"bleu": 100, "chrf": 100, "bleu4_lowercase_tokenized": 100, "length_ratio": 1}
    )
    assert all(type(value) is float for value in found.values())


def test_punctuation_is_split_off_and_hyphens_are_not():
    right = translation_metrics(
        ["ein rotes t-shirt, und mehr ."], ["ein rotes T-Shirt, und mehr."], True
    )
    assert right["bleu"] == pytest.approx(100)
    wrong = translation_metrics(
        ["ein rotes t - shirt, und mehr ."], ["ein rotes T-Shirt, und mehr."], True
    )
    assert wrong["bleu"] < 60


def test_nothing_is_written():
    found = translation_metrics(["", ""], REFERENCES[:2], True)
    names = ("bleu", "chrf", "bleu4_lowercase_tokenized", "cased_bleu", "length_ratio")
    assert found == dict.fromkeys(names, 0)
    assert bleu_contributions(["", ""], REFERENCES[:2], True).tolist() == [0, 0]


def test_signature_names_case_tokens_and_version():
    assert bleu_signature(True).startswith("nrefs:1|case:lc|eff:no|tok:13a|smooth:exp|version:")
    assert "case:mixed" in bleu_signature(False)
    assert bleu_signature(True, short=True).startswith("#:1|c:lc|e:no|tok:13a|s:exp|v:")


@pytest.mark.parametrize("outputs", [OUTPUTS, [text + " and some more" for text in OUTPUTS]])
def test_contributions_are_the_change_of_bleu_with_a_sentences_weight(outputs):
    found = bleu_contributions(outputs, REFERENCES, True)
    copies = 200
    total = translation_metrics(outputs * copies, REFERENCES * copies, True)["bleu"]
    assert found.mean() == pytest.approx(total)
    for index, value in enumerate(found):
        more = translation_metrics(
            outputs * copies + outputs[index : index + 1],
            REFERENCES * copies + REFERENCES[index : index + 1],
            True,
        )["bleu"]
        change = (more - total) * 3 * copies
        assert value == pytest.approx(total + change, abs=0.5)
    assert np.ptp(found) > 10


def test_mistakes():
    with pytest.raises(ValueError, match="outputs: got 1, expected 3"):
        translation_metrics(OUTPUTS[:1], REFERENCES, True)
    with pytest.raises(ValueError, match="references: got none"):
        bleu_contributions([], [], True)
