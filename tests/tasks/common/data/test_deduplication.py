"""Normal forms, split hashes, near-duplicates and their groups, on hand-made texts."""

import hashlib

import numpy as np

from tasks.common.data.deduplication import (
    duplicate_group_hashes,
    near_duplicates,
    normalize_text,
    text_hash,
)


def test_norm_by_hand():
    assert normalize_text("  It's a Très--good\tfilm, 10/10!! ") == "it s a tr s good film 10 10"
    assert normalize_text("Très 我爱_x", unicode=True) == "très 我爱 x"
    assert normalize_text("!?") == ""


def test_norm_hash_is_md5_of_the_normal_form():
    expected = int(hashlib.md5(b"a good film").hexdigest(), 16)
    assert text_hash("A good... film") == expected
    assert text_hash("A good... film", unicode=True) == expected


def test_groups_are_joined_through_common_neighbours():
    long = "one two three four five six seven eight nine ten"
    texts = [
        long,
        long.replace("one", "eleven"),
        long.replace("one two", "eleven twelve"),
        long.replace("one two three", "eleven twelve thirteen"),
        "quite another text altogether",
        "",
    ]
    groups = duplicate_group_hashes(texts)
    assert groups[0] == groups[1] == groups[2] == groups[3] == min(map(text_hash, texts[:4]))
    assert groups[4] == text_hash(texts[4])
    assert groups[5] == text_hash("")
    # The ends of the chain alone are too far apart.
    assert len(set(duplicate_group_hashes([texts[0], texts[3], texts[4]]))) == 3


def test_near_duplicates_by_hand():
    train = ["the quick brown fox jumps over the lazy dog", "an unrelated sentence", "!!!"]
    test = [
        "The quick brown fox jumps over the lazy dog!",
        "the quick brown fox jumps over the lazy cat",
        "some quite new words here",
        "???",
        "",
    ]
    assert near_duplicates(train, test).tolist() == [True, True, False, True, True]
    assert near_duplicates(train, test, similarity=0.99).tolist() == [
        True,
        False,
        False,
        True,
        True,
    ]


def test_near_duplicates_equal_a_dense_computation():
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import cosine_similarity

    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 25, 12)) for _ in range(300)]
    vectors = TfidfVectorizer().fit(texts[:200]).transform(texts)
    dense = cosine_similarity(vectors[200:], vectors[:200]).max(axis=1) >= 0.7 - 1e-12
    assert 0 < dense.sum() < 100
    np.testing.assert_array_equal(near_duplicates(texts[:200], texts[200:]), dense)
