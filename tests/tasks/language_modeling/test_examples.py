"""Sequences by hand."""

import numpy as np
import pytest

from tasks.common.text.tokenizer import TextConfig, Tokenizer
from tasks.language_modeling import examples as sequences
from tasks.language_modeling.examples import CausalTexts, MaskedTexts, RunningText

END = 99


def ids(*numbers):
    return np.array(numbers, np.int32)


def rows(examples):
    # Without the position to predict, which only examples of inputs have.
    found = [{k: v.tolist() for k, v in examples[i].items()} for i in range(len(examples))]
    assert all(row.pop("blank", 0) == 0 for row in found)
    return found


def test_every_window_of_a_running_text_is_seen_once():
    examples = RunningText(ids(3, 4, 5, 6, 7), length=3, stride=1)
    assert rows(examples) == [
        {"tokens": [3, 4, 5], "targets": [4, 5, 6], "length": 3},
        {"tokens": [4, 5, 6], "targets": [5, 6, 7], "length": 3},
    ]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 8, 20])
def test_every_id_but_the_first_is_predicted_once(count):
    text = np.arange(count, dtype=np.int32)
    examples = RunningText(text, length=3, stride=3)
    targets = np.concatenate([examples[i]["targets"] for i in range(len(examples))])
    np.testing.assert_array_equal(targets, text[1:])
    for i in range(len(examples)):
        row = examples[i]
        np.testing.assert_array_equal(row["targets"], row["tokens"] + 1)
        assert row["length"] == examples.lengths[i] == len(row["tokens"]) <= 3


def test_a_running_text_shorter_than_a_window():
    assert rows(RunningText(ids(3, 4), 5, 1)) == [{"tokens": [3], "targets": [4], "length": 1}]
    assert len(RunningText(ids(3), 5, 5)) == 0 or len(RunningText(ids(3), 5, 5)[0]["tokens"]) == 0


def test_texts_begin_and_end():
    examples = CausalTexts([ids(5, 6), ids(7)], END)
    assert rows(examples) == [
        {"tokens": [2, 5, 6], "targets": [5, 6, END], "length": 3},
        {"tokens": [2, 7], "targets": [7, END], "length": 2},
    ]
    assert rows(MaskedTexts([ids(5, 6)], END)) == [{"tokens": [2, 5, 6, END], "length": 4}]


def test_long_texts_go_on_in_the_next_piece():
    found = sequences.chunk_texts([ids(3, 4, 5, 6, 7), ids(), ids(8)], 2)
    assert [piece.tolist() for piece in found] == [[3, 4], [5, 6], [7], [8]]


def test_words_are_numbered_through_both_segments():
    starts = np.zeros(20, bool)
    starts[[5, 7]] = True
    examples = MaskedTexts([ids(5, 6, 7)], END, starts=starts)
    assert examples[0]["words"].tolist() == [-1, 0, 0, 1, -1]
    # A piece that begins within a word counts that as one.
    assert MaskedTexts([ids(6, 6, 7)], END, starts=starts)[0]["words"].tolist() == [-1, 0, 0, 1, -1]
    pair = MaskedTexts([ids(5, 6, 7, 5)], END, starts=starts, pair_seed=0)[0]
    assert pair["words"].tolist() == [-1, 0, 0, -1, 1, 2, -1]
    assert pair["segments"].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_half_of_the_pairs_follow():
    texts = [np.arange(10 * i + 100, 10 * i + 100 + 4 + i % 3, dtype=np.int32) for i in range(400)]
    examples = MaskedTexts([*texts, ids(3)], END, pair_seed=0)
    assert len(examples) == 400
    follows = []
    for i in range(400):
        row = examples[i]
        tokens, segments = row["tokens"], row["segments"]
        first, second = tokens[(segments == 0)][1:-1], tokens[segments == 1][:-1]
        np.testing.assert_array_equal(first, texts[i][: len(texts[i]) // 2])
        whole = np.concatenate([first, second])
        assert row["follows"] == np.array_equal(whole, texts[i])
        assert (tokens == END).sum() == 2
        assert row["length"] == len(tokens) <= examples.lengths[i]
        follows.append(row["follows"])
    assert 160 < np.sum(follows) < 240
    again = MaskedTexts(texts, END, pair_seed=0)
    np.testing.assert_array_equal(again[7]["tokens"], examples[7]["tokens"])
    assert MaskedTexts([ids(5, 6)], END, pair_seed=0)[0]["follows"] == 1


def test_texts_without_a_token_have_no_ids():
    words = Tokenizer.fit(["a b"], TextConfig(min_count=1))
    assert [len(x) for x in sequences.encode(words, ["", " \n", "zzz", "a b a"])] == [0, 0, 1, 3]
    characters = Tokenizer.fit(["a b"], TextConfig(tokenizer="character", min_count=1))
    # A space is a character that is known; nothing is cut off.
    assert [len(x) for x in sequences.encode(characters, ["", " ", "a" * 600])] == [0, 1, 600]


def test_prompts_keep_their_ends():
    found = sequences.prompts([ids(4, 5, 6, 7), ids(), ids(8)], None, 3, 3)
    assert [(r["tokens"], r["length"]) for r in rows(found)] == [
        ([5, 6, 7], 3),
        ([3, 0, 0], 1),
        ([8, 0, 0], 1),
    ]
    found = sequences.prompts([ids(4), ids()], 2, 2, 3)
    assert [r["tokens"] for r in rows(found)] == [[2, 4, 0], [2, 0, 0]]


def test_each_blank_has_what_is_around_it():
    mask = 98
    (row,) = sequences.masked_rows([[ids(5, 6), ids(7)]], mask, END, 8)
    assert row["tokens"].tolist() == [2, 5, 6, mask, 7, END, 0, 0]
    assert (row["length"], row["blank"]) == (6, 3)
    two = sequences.masked_rows([[ids(), ids(5), ids()]], mask, END, 8)
    assert [row["tokens"][row["blank"]] for row in two] == [mask, mask]
    assert [int(row["blank"]) for row in two] == [1, 3]
    long = np.arange(100, 1100, dtype=np.int32)
    for before in (0, 1, 500, 999, 1000):
        (row,) = sequences.masked_rows([[long[:before], long[before:]]], mask, END, 10)
        assert row["length"] == 10
        assert row["tokens"][row["blank"]] == mask
        kept = row["tokens"][1:-1].tolist()
        place = int(row["blank"]) - 1
        assert kept[:place] == long[before - place : before].tolist()
        assert kept[place + 1 :] == long[before : before + 7 - place].tolist()
        if before == 500:
            assert place in (3, 4)
