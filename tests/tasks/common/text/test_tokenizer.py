"""Text to ids: hand-made examples, scikit-learn's vectorizers, scripts, determinism, cache."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from tasks.common.checksums import sealed
from tasks.common.text.tokenizer import TextConfig, Tokenizer
from tasks.common.text.words import NgramVocabulary, character_grams, split

TEXTS = [
    "A good film , a very good film .",
    "A bad film !",
    "Not a good plot ; not a bad cast .",
    "good cast , good plot",
]


def fit(texts=TEXTS, **fields):
    return Tokenizer.fit(texts, TextConfig(**{"min_count": 1, **fields}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't STOP, it's 3.5!", ["don't", "stop", ",", "it's", "3", ".", "5", "!"]),
        ("我爱北京。", ["我", "爱", "北", "京", "。"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ﬁlm ＡＢＣ", ["film", "abc"]),
        ("Привет, мир", ["привет", ",", "мир"]),
        ("très\u00a0snake_case", ["très", "snake_case"]),
        ("cafe\u0301 😀", ["café", "😀"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("\x00a\tb\x7f\n", ["a", "b"]),
        ("", []),
    ],
)
def test_words_of_any_script(text, expected):
    assert split(text) == expected


def test_the_fast_way_for_ascii_is_the_same_as_the_general_one():
    text = "It's a--test (of 2.5) 'quoted' x_y; e-mail@host.com \x07 don''t end'"
    general = split(f"{text} é")
    assert general[-1] == "é"
    assert split(text) == general[:-1]


def test_ids_by_hand():
    tokenizer = fit(["b a", "b c a", "b"])  # in three, two and one texts
    assert tokenizer.size == 6
    assert tokenizer.encode("b a c zzz b").tolist() == [3, 4, 5, 1, 3]
    assert tokenizer.encode("b a").dtype == np.int32
    assert tokenizer.tokens("B a C Zzz b") == ["b", "a", "c", "zzz", "b"]


def test_ngrams_follow_their_first_word_and_unknown_ones_are_dropped():
    tokenizer = fit(ngrams=2)
    tokens = tokenizer.tokens("a good plot zzz film")
    assert tokens == ["a", "a good", "good", "good plot", "plot", "zzz", "film"]
    assert tokenizer.encode("a good plot zzz film")[5] == 1
    assert fit(ngrams=3).tokens("a very good film")[:4] == ["a", "a very", "a very good", "very"]


@pytest.mark.parametrize("ngrams", [1, 2, 3])
@pytest.mark.parametrize("min_count", [1, 2])
def test_vocabulary_and_counts_equal_scikit_learn(ngrams, min_count):
    from sklearn.feature_extraction.text import CountVectorizer

    oracle = CountVectorizer(
        tokenizer=split, token_pattern=None, ngram_range=(1, ngrams), min_df=min_count
    )
    counts = oracle.fit_transform(TEXTS).toarray()
    tokenizer = fit(ngrams=ngrams, min_count=min_count)
    assert tokenizer.size == 3 + len(oracle.vocabulary_)
    for row, text in enumerate(TEXTS):
        tokens = tokenizer.tokens(text)
        known = tokenizer.encode(text) != 1
        for gram, column in oracle.vocabulary_.items():
            got = sum(t == gram for t, k in zip(tokens, known, strict=True) if k)
            assert got == counts[row, column], gram


def test_ngrams_do_not_cross_texts():
    tokenizer = fit(["x y", "y x"], ngrams=2)
    batch = tokenizer.encode_batch(["x", "y", "x y"])
    assert [len(ids) for ids in batch] == [1, 1, 3]


def test_a_batch_equals_its_texts_one_by_one():
    texts = [*TEXTS, "", "zzz", "我 good film"]
    for fields in ({"ngrams": 3}, {"unique": True, "ngrams": 2}, {"character_ngrams": (2, 3)}):
        tokenizer = fit(**fields)
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            np.testing.assert_array_equal(tokenizer.encode(text), ids)
            assert len(tokenizer.tokens(text)) == len(ids)


def test_the_most_frequent_grams_are_kept_when_the_vocabulary_is_full():
    tokenizer = fit(vocabulary_size=5)
    # "a" and "good" are in three texts, everything else in two or one.
    assert tokenizer.size == 5
    assert tokenizer.encode("a good film").tolist() == [3, 4, 1]


def test_a_cut_vocabulary_keeps_the_beginning_of_each_gram():
    rng = np.random.default_rng(0)
    texts = [[f"w{i}" for i in rng.zipf(1.5, 20) % 30] for _ in range(200)]
    for size in (10, 50, 200):
        grams = NgramVocabulary.fit(texts, 3, 2, size).grams
        assert len(grams) == size
        assert all(gram.rsplit(" ", 1)[0] in grams for gram in grams if " " in gram)


def test_stems_of_unseen_forms_are_known():
    tokenizer = fit(["running films"], stem="english")
    ids = tokenizer.encode("run runs film filmed unseen")
    assert ids[0] == ids[1] != 1
    assert ids[2] == ids[3] != 1
    assert ids[4] == 1
    assert tokenizer.tokens("runs") == ["runs"]
    assert fit(["singen lieder"], stem="german").encode("lied")[0] != 1


def test_character_grams_equal_scikit_learn():
    from sklearn.feature_extraction.text import CountVectorizer

    analyze = CountVectorizer(analyzer="char_wb", ngram_range=(2, 4)).build_analyzer()
    for word in ("a", "it", "film", "wonderful"):
        assert character_grams(word, 2, 4) == [gram.replace(" ", "_") for gram in analyze(word)]


def test_character_grams_reach_unseen_words():
    tokenizer = fit(["filming"], character_ngrams=(3, 3))
    assert tokenizer.tokens("films")[1:] == ["_fi", "fil", "ilm"]
    assert tokenizer.encode("films")[0] == 1
    assert (tokenizer.encode("films")[1:] > 3).all()


def test_unique_keeps_the_first_of_each():
    tokenizer = fit(unique=True)
    assert tokenizer.tokens("good film good plot film zzz yyy") == ["good", "film", "plot", "zzz"]


def test_long_texts_are_cut_and_empty_ones_are_unknown():
    tokenizer = fit(max_length=3)
    assert len(tokenizer.encode("a good film a bad film")) == 3
    assert tokenizer.encode("").tolist() == [1]
    assert tokenizer.encode(" \n").tolist() == [1]
    assert tokenizer.tokens("") == ["[UNK]"]


SUBWORDS = [{"tokenizer": "bpe", "vocabulary_size": 300}, {"tokenizer": "wordpiece"}]


@pytest.mark.parametrize("fields", SUBWORDS, ids=["bpe", "wordpiece"])
def test_subwords_use_the_reserved_ids_only_for_what_they_mean(fields):
    tokenizer = fit(**fields)
    ids = tokenizer.encode("[CLS] [PAD] [UNK] good film")
    assert not np.isin(ids, [0, 2]).any()
    assert ids.max() < tokenizer.size
    assert len(tokenizer.tokens("good film")) == len(tokenizer.encode("good film"))
    assert tokenizer.encode("").tolist() == [1]


def test_byte_pairs_know_every_script_and_merge_what_is_frequent():
    tokenizer = fit(["the film the film the plot"] * 3, tokenizer="bpe", vocabulary_size=280)
    assert tokenizer.tokens("the film") == ["the", "film"]
    for text in ("我爱", "हिन्दी", "😀", "\x00"):
        assert not np.isin(tokenizer.encode(text), [0, 1, 2]).any()
    assert tokenizer.size <= 280


def test_wordpiece_cuts_words_into_known_pieces():
    tokenizer = fit(
        ["low lower lowest new newer newest"] * 5, tokenizer="wordpiece", vocabulary_size=40
    )
    assert "".join(tokenizer.tokens("newlow")) == "newlow"
    assert 1 not in tokenizer.encode("newlow")
    assert tokenizer.encode("我").tolist() == [1]


def test_wordpiece_leaves_room_for_merges_in_a_large_alphabet():
    rng = np.random.default_rng(1)
    rare = "".join(chr(0x4E00 + i) for i in rng.integers(0, 5000, 3000))
    tokenizer = fit(
        [rare, *["我爱北京 film film"] * 50], tokenizer="wordpiece", vocabulary_size=100
    )
    assert tokenizer.size <= 100
    assert tokenizer.tokens("film") == ["film"]
    assert 1 not in tokenizer.encode("我爱北京")


def test_characters_by_hand():
    tokenizer = fit(["ba\nb", "é😀b"], tokenizer="character", lower_case=False)
    assert tokenizer.size == 3 + 5
    # In the order of code points: line end, a, b, é, 😀.
    assert tokenizer.encode("ab\né😀 c").tolist() == [4, 5, 3, 6, 7, 1, 1]
    assert tokenizer.tokens("ab\né😀 c") == ["a", "b", "\n", "é", "😀", " ", "c"]
    assert tokenizer.decode([4, 5, 3, 6, 7, 1]) == "ab\né😀[UNK]"
    folded = fit(["Ab"], tokenizer="character")
    assert folded.decode(folded.encode("BA")) == "ba"
    counted = fit(["aab", "a"], tokenizer="character", min_count=2)
    assert counted.encode("ab").tolist() == [3, 1]
    assert fit(["aabbbc"], tokenizer="character", vocabulary_size=5).encode("abc").tolist() == [
        3,
        4,
        1,
    ]
    none = fit(["ab"], tokenizer="character", min_count=2)
    assert none.encode("ab").tolist() == [1, 1]


@pytest.mark.parametrize(
    ("fields", "text", "expected"),
    [
        ({}, "A Good  film, zzz!", "a good film , [UNK] !"),
        ({"ngrams": 2, "character_ngrams": (2, 3)}, "very good film", "very good film"),
        ({"stem": "english"}, "films plotting", "film plot"),
        ({"tokenizer": "bpe", "vocabulary_size": 300}, "A  bad\nplot 我😀.", "a  bad\nplot 我😀."),
        ({"tokenizer": "bpe", "vocabulary_size": 300, "lower_case": False}, "A Bad", "A Bad"),
        (
            {"tokenizer": "wordpiece"},
            "A goodfilm, (not) bad!",
            "a goodfilm , [UNK] not [UNK] bad !",
        ),
        ({"tokenizer": "character"}, "A  bad\tfilm", "a  bad[UNK]film"),
    ],
)
def test_ids_give_the_text_back(fields, text, expected):
    tokenizer = fit(**fields)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == expected
    assert tokenizer.decode([0, 2, *ids, tokenizer.size, 0]) == expected
    assert tokenizer.decode([]) == ""
    with pytest.raises(ValueError, match="ids: got -1, expected no negative ids"):
        tokenizer.decode([-1])


def test_half_a_character_is_a_replacement():
    tokenizer = fit(tokenizer="bpe", vocabulary_size=259)
    assert tokenizer.decode(tokenizer.encode("😀")[:2]).startswith("\ufffd")


def test_another_cut_of_the_same_vocabulary():
    tokenizer = fit(max_length=2)
    longer = tokenizer.with_max_length(5)
    assert len(tokenizer.encode("a good film a good film")) == 2
    assert longer.decode(longer.encode("a good film a good film")) == "a good film a good"
    assert longer.config.max_length == 5


def test_training_is_the_same_in_every_process():
    """Hash tables of Python and of the tokenizers library have another seed in each process."""
    rng = np.random.default_rng(2)
    letters = list("abcdefgh")
    texts = [" ".join("".join(rng.choice(letters, 4)) for _ in range(30)) for _ in range(20)]
    code = (
        "import hashlib; from tasks.common.text.tokenizer import *;"
        f"texts, kinds = {texts!r}, {[{'ngrams': 2}, *SUBWORDS]!r};"
        "found = [Tokenizer.fit(texts, TextConfig(**kind, min_count=1)) for kind in kinds];"
        "print(*(hashlib.sha256(each.to_json().encode()).hexdigest() for each in found))"
    )
    run = [sys.executable, "-c", code]
    outputs = {
        subprocess.run(run, capture_output=True, text=True, check=True).stdout for _ in range(3)
    }
    assert len(outputs) == 1
    assert len(set(outputs.pop().split())) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"ngrams": 2, "stem": "english"},
        {"character_ngrams": (2, 3)},
        *SUBWORDS,
        {"tokenizer": "character"},
    ],
    ids=["stems", "character n-grams", "bpe", "wordpiece", "characters"],
)
def test_json_round_trip(fields):
    tokenizer = fit(**fields)
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.config == tokenizer.config
    assert again.size == tokenizer.size
    for text in (*TEXTS, "unseen 我 goodness"):
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))
        assert again.tokens(text) == tokenizer.tokens(text)
    with pytest.raises(ValueError, match="expected a tokenizer of version"):
        Tokenizer.from_json('{"version": 99}')


def test_the_cache_is_keyed_by_content_and_config_and_survives_damage(tmp_path):
    config = TextConfig(min_count=1)
    first = Tokenizer.fit(TEXTS, config, tmp_path)
    (file,) = (tmp_path / "tokenizers").iterdir()
    written = file.read_text(encoding="utf-8")
    changed = first.to_json().replace('"good"', '"evil"')
    file.write_text(json.dumps(sealed(changed)), encoding="utf-8")
    assert Tokenizer.fit(TEXTS, config, tmp_path).encode("evil")[0] != 1  # it was the cache's
    # Damaged files, also those that are still JSON, and files of earlier versions without checksum.
    for content in ("{", written.replace("good", "evil"), first.to_json()):
        file.write_text(content, encoding="utf-8")
        assert Tokenizer.fit(TEXTS, config, tmp_path).to_json() == first.to_json()
        assert file.read_text(encoding="utf-8") == written
    Tokenizer.fit(TEXTS[:2], config, tmp_path)
    Tokenizer.fit(TEXTS, TextConfig(min_count=2), tmp_path)
    Tokenizer.fit(["".join(TEXTS)], config, tmp_path)
    assert len(list((tmp_path / "tokenizers").iterdir())) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"tokenizer": "words"},
            "tokenizer: got 'words', expected one of 'word', 'bpe', 'wordpiece', 'character'",
        ),
        (
            {"tokenizer": "character", "ngrams": 2},
            "ngrams: got 2, expected 1 for tokenizer='character'",
        ),
        ({"stem": "klingon"}, "stem: got 'klingon', expected one of .*english"),
        ({"ngrams": 0}, "ngrams: got 0, expected at least 1"),
        ({"max_length": 0}, "max_length: got 0, expected at least 1"),
        ({"vocabulary_size": 3}, "vocabulary_size: got 3, expected at least 4"),
        (
            {"character_ngrams": (5, 3)},
            r"character_ngrams: got \[5, 3\], expected \(shortest, longest\)",
        ),
        (
            {"tokenizer": "bpe", "vocabulary_size": 100},
            "vocabulary_size: got 100, expected at least 259 for bpe",
        ),
        ({"tokenizer": "bpe", "ngrams": 2}, "ngrams: got 2, expected 1 for tokenizer='bpe'"),
        ({"tokenizer": "wordpiece", "stem": "english"}, "stem: got 'english', expected None"),
    ],
)
def test_impossible_settings_name_the_field_first(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TextConfig(**fields)


def test_no_texts_is_an_error():
    with pytest.raises(ValueError, match="texts: got none, expected at least one"):
        Tokenizer.fit([], TextConfig())


def test_ten_thousand_short_texts_take_seconds():
    rng = np.random.default_rng(3)
    vocabulary = np.array([f"word{i}" for i in range(20_000)])
    texts = [" ".join(vocabulary[rng.zipf(1.3, 20) % 20_000]) for _ in range(10_000)]
    tokenizer = Tokenizer.fit(texts[:2000], TextConfig(ngrams=2))
    start = time.process_time()
    tokenizer.encode_batch(texts)
    assert time.process_time() - start < 3


def test_word_weights_by_hand():
    """The weight of a bigram is halved between its words; a piece gives its full weight to its
    word."""
    config = TextConfig(ngrams=2, character_ngrams=(3, 3), min_count=1)
    tokenizer = Tokenizer.fit(["cat sat"], config)
    tokens = tokenizer.tokens("cat sat")
    weights = np.arange(1.0, len(tokens) + 1)
    words, shares = tokenizer.weights_per_word("cat sat", weights)
    assert words == ["cat", "sat"]
    bigram = weights[tokens.index("cat sat")]
    second = tokens.index("sat")
    # Order of the positions: cat, its pieces, the bigram, sat, its pieces.
    np.testing.assert_allclose(shares[0], weights[: second - 1].sum() + bigram / 2)
    np.testing.assert_allclose(shares[1], weights[second:].sum() + bigram / 2)
    np.testing.assert_allclose(shares.sum(), weights.sum())
    assert tokenizer.weights_per_word("", [1.0])[0] == ["[UNK]"]


def test_word_weights_of_subwords_are_those_of_the_pieces():
    tokenizer = Tokenizer.fit(["abab abab"], TextConfig(tokenizer="bpe", vocabulary_size=300))
    tokens = tokenizer.tokens("abab ab")
    words, shares = tokenizer.weights_per_word("abab ab", np.arange(len(tokens)))
    assert words == tokens
    np.testing.assert_array_equal(shares, np.arange(len(tokens)))


@pytest.mark.parametrize("tokenizer", ["word", "bpe", "wordpiece", "character"])
def test_half_of_a_surrogate_pair_is_a_question_mark(tokenizer):
    config = TextConfig(tokenizer=tokenizer, vocabulary_size=400, min_count=1)
    tokenizer = Tokenizer.fit(["a film?", "a \ud83d plot"], config)
    np.testing.assert_array_equal(tokenizer.encode("a\udcff plot"), tokenizer.encode("a? plot"))
    assert tokenizer.tokens("a\udcff plot") == tokenizer.tokens("a? plot")
