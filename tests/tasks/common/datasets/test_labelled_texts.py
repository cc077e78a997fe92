"""Built-in data sets of texts: counts, leaks, and accuracies of the baselines.

Counts and accuracies are those of the protocols in the definitions, measured independently. Data
sets that cannot be obtained are skipped.
"""

import functools
import json
import tarfile

import numpy as np
import pytest

from tasks.common.data.deduplication import (
    duplicate_group_hashes,
    near_duplicates,
    normalize_text,
    text_hash,
)
from tasks.common.data.paths import Paths
from tasks.common.datasets.labelled_texts import DEFINITIONS, shared_with, spam_assassin
from tasks.text_classification import baselines
from tasks.text_classification.data import DataConfig, load
from tests.tasks.public import needed


@functools.cache
def public(name):
    with needed():
        return load(DataConfig(name=name), Paths.default())


def sizes(data):
    return tuple(len(data.splits[name]) for name in ("train", "validation", "test"))


def accuracy(data, fit):
    train, test = data.splits["train"], data.splits["test"]
    return float(np.mean(fit(train.texts, train.labels)(test.texts) == test.labels))


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "counts", "classes"),
    [
        ("movie_reviews", (7970, 1023, 1050), 2),
        ("sst2", (6920, 872, 1821), 2),
        pytest.param("newsgroups20", (10179, 1114, 7528), 20, marks=slow),
        pytest.param("reuters_r8", (4952, 533, 2189), 8, marks=slow),
        pytest.param("spam_assassin", (4918, 604, 524), 2, marks=slow),
    ],
)
def test_counts(name, counts, classes):
    data = public(name)
    assert sizes(data) == counts
    assert len(data.label_names) == classes
    assert data.label_names == sorted(data.label_names)
    for split in data.splits.values():
        assert set(split.labels) == set(range(classes))
        assert len(set(split.ids)) == len(split)


@pytest.mark.parametrize(
    ("name", "fit", "figure"),
    [
        ("movie_reviews", "tfidf_logistic_regression", 0.786),
        ("movie_reviews", "tfidf_linear_svc", 0.787),
        ("movie_reviews", "nb_svm", 0.796),
        ("sst2", "tfidf_logistic_regression", 0.803),
        ("sst2", "tfidf_linear_svc", 0.806),
        ("sst2", "nb_svm", 0.828),
        pytest.param("newsgroups20", "tfidf_linear_svc", 0.861, marks=slow),
        pytest.param("reuters_r8", "tfidf_linear_svc", 0.974, marks=slow),
        pytest.param("spam_assassin", "tfidf_linear_svc", 0.985, marks=slow),
    ],
)
@pytest.mark.slow
def test_baselines_reach_their_figures(name, fit, figure):
    """At most half a point lower, because a weak baseline would flatter the model."""
    assert accuracy(public(name), getattr(baselines, fit)) >= figure - 0.005


def test_movie_reviews_hold_hardly_any_near_duplicates():
    data = public("movie_reviews")
    found = near_duplicates(data.splits["train"].texts, data.splits["test"].texts)
    assert found.sum() == 3
    labels = [data.label_names[label] for label in data.splits["test"].labels[:2]]
    assert data.splits["test"].ids[:2] == ["line-3", "line-6"]
    assert labels == ["positive", "positive"]


def test_movie_reviews_and_sst2_are_one_corpus():
    """6,797 of the snippets are in SST-2; 1,293 of its test sentences are among the snippets."""
    reviews, treebank = public("movie_reviews"), public("sst2")
    snippets = [normalize_text(text) for split in reviews.splits.values() for text in split.texts]
    sentences = {normalize_text(text) for split in treebank.splits.values() for text in split.texts}
    assert sum(text in sentences for text in snippets) == 6797
    known = set(snippets)
    assert sum(normalize_text(text) in known for text in treebank.splits["test"].texts) == 1293
    assert shared_with("movie_reviews") == {"sst2"}
    assert shared_with("sst2") == {"movie_reviews"}
    assert shared_with("reuters_r8") == set()


@slow
def test_spam_assassin_groups_stay_together():
    data = public("spam_assassin")
    texts = [text for split in data.splits.values() for text in split.texts]
    owners = [name for name, split in data.splits.items() for _ in split.texts]
    splits_of = {}
    for key, owner in zip(duplicate_group_hashes(texts, min_count=3), owners, strict=True):
        splits_of.setdefault(key, set()).add(owner)
        assert owner == {0: "test", 1: "validation"}.get(key % 10, "train")
    assert all(len(splits) == 1 for splits in splits_of.values())
    # A split by the hash of each mail alone would leak: 580 test mails, about 200 with a twin.
    hashes = np.array([text_hash(text) % 10 for text in texts])
    groups = np.array(duplicate_group_hashes(texts, min_count=3), dtype=object)
    assert (hashes == 0).sum() == 580
    train_groups = set(groups[hashes > 1])
    assert sum(group in train_groups for group in groups[hashes == 0]) > 190


@slow
def test_newsgroups_test_split_has_near_duplicates_in_train():
    """The given split leaks: 329 test rows elsewhere, and an accuracy of 0.857 without them."""
    data = public("newsgroups20")
    train, test = data.splits["train"], data.splits["test"]
    found = near_duplicates(train.texts, test.texts, ngrams=2)
    assert abs(found.sum() - 329) <= 2
    predictions = baselines.tfidf_linear_svc(train.texts, train.labels)(test.texts)
    right = predictions == test.labels
    assert right[~found].mean() == pytest.approx(0.857, abs=0.002)
    assert right[~found].mean() < right.mean()


def test_every_definition_says_what_it_is():
    for name, definition in DEFINITIONS.items():
        assert definition.name == name
        assert definition.description
        assert definition.license
        assert all(source.fetchers and len(source.sha256) == 64 for source in definition.sources)


MAIL = """From spammer@example.org
Subject: BUY NOW
X-Spam: yes
Content-Type: multipart/alternative; boundary=B

--B
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

Caf=E9 1 <2
--B
Content-Type: text/html; charset=no-such-charset
Content-Transfer-Encoding: base64

PGh0bWw+PHN0eWxlPnAge308L3N0eWxlPjwhLS0gaGlkZGVuIDxiPiAtLT48cD5CdXkgJmFtcDsgcGF5PC9wPg==
--B
Content-Type: image/gif

GIF89
--B--
"""


def test_mail_bodies_are_decoded_and_headers_left_out():
    # The base64 part is <html><style>p {}</style><!-- hidden <b> --><p>Buy &amp; pay</p>
    assert spam_assassin.body(MAIL) == "Café 1 <2 Buy & pay"


def test_mails_are_joined_in_the_order_of_their_names(tmp_path):
    import io

    archive = tmp_path / "mails.tgz"
    with tarfile.open(archive, "w:gz") as file:
        for name in ("spam-1/00002.bb", "easy-ham-1/00001.aa"):
            data = json.dumps({"id": "x", "text": name.upper()}).encode()
            member = tarfile.TarInfo(f"package/data/{name}.json")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
        file.addfile(tarfile.TarInfo("package/data/spam-1/00002.bb.txt"))
        file.addfile(tarfile.TarInfo("package/package.json"))
    spam_assassin._join(archive, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows == [
        {"id": "easy-ham-1/00001.aa", "text": "EASY-HAM-1/00001.AA"},
        {"id": "spam-1/00002.bb", "text": "SPAM-1/00002.BB"},
    ]
