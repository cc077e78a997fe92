"""Own files of events, the order rule and the splits by hand, and the data sets' own counts."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest

from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.errors import UserError
from tasks.recommendation.data import DataConfig, RecommendationData, load
from tasks.recommendation.sequences import RecommendationDataset
from tests.tasks.public import needed

# Out of order; Ann has Öl again; two of Ann's stamps are equal; Bo has but one event.
OWN = """user,item,timestamp,title
ann,c,2024-01-03,Crème
ann,a,2024-01-01T00:00:00+00:00,"Øl, öl"
bo,a,1704153600,
ann,b,1704067200.0,Brötchen
ann,a,1704500000,ignored
ann,d,1704672000,
cy,d,1,
cy,c,3,
cy,b,2,
"""


def own(tmp_path, text, name="mine.csv", **fields):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    config = DataConfig(path=str(path), **fields)
    return config, load(config, None)


def examples(data, config, split, with_validation=False):
    return RecommendationDataset(data, config, with_validation).splits[split]


def named(data, items):
    return [data.names[item] for item in items if item >= 0]


def test_own_events_are_put_in_order(tmp_path, capsys):
    config, data = own(tmp_path, OWN, max_length=2)
    said = capsys.readouterr().err
    assert config.name == "own_mine"
    assert "1 events repeat an item of their user" in said
    assert "1 of 3 users have fewer than 3 events" in said
    assert data.users == ("ann", "bo", "cy")
    histories = [named(data, data.items[slice(*data.starts[u : u + 2])]) for u in range(3)]
    assert histories == [["a", "b", "c", "d"], ["a"], ["d", "b", "c"]]
    titles = dict(zip(data.names, data.titles, strict=True))
    assert titles == {"a": "Øl, öl", "b": "Brötchen", "c": "Crème", "d": "d"}
    np.testing.assert_allclose(data.ages[:4], [7, 7, 5, 0])
    assert json.loads(json.dumps(data.to_json())) == data.to_json()
    assert RecommendationData.from_json(data.to_json()).fingerprint == data.fingerprint


def test_last_event_is_test_and_the_one_before_validation(tmp_path):
    config, data = own(tmp_path, OWN, max_length=2)
    test, validation = (examples(data, config, split) for split in ("test", "validation"))
    assert [data.users[user] for user in test.users] == ["ann", "cy"]
    assert named(data, test.target) == ["d", "c"]
    assert named(data, validation.target) == ["c", "b"]
    example = test[0]
    assert named(data, example["items"]) == ["b", "c"]
    assert named(data, example["seen"]) == named(data, test.history(0)) == ["a", "b", "c"]
    np.testing.assert_allclose(example["ages"], [2, 0])
    assert example["user"] == 0
    np.testing.assert_array_equal(test.seen(np.arange(2))[0], example["seen"])
    assert example["seen"].shape == (4,)
    for with_validation, counts in ((False, (2, 1, 1)), (True, (3, 1, 2))):
        matrix = data.train_matrix(with_validation)
        assert tuple(np.diff(matrix.indptr)) == counts
        popularity = np.bincount(matrix.indices, minlength=4)
        np.testing.assert_array_equal(data.popularity(with_validation), popularity)
    # An entry is the place in the history.
    places = [matrix[0, data.names.index(name)] for name in "abcd"]
    assert places == [1, 2, 3, 0]


def test_long_histories_are_learned_in_full(tmp_path):
    lines = [f"u{user},i{(user + time) % 30},{time}" for user in range(3) for time in range(15)]
    config, data = own(tmp_path, "\n".join(lines), max_length=4)
    for with_validation in (False, True):
        train = examples(data, config, "train", with_validation)
        found = {user: [] for user in range(3)}
        for index in range(len(train)):
            example = train[index]
            real = example["next"] >= 0
            assert (real == (example["items"] >= 0)).all()
            assert example["target"] == -1
            user = int(example["user"])
            seen = example["seen"][example["seen"] >= 0].tolist()
            for item, after in zip(example["items"][real], example["next"][real], strict=True):
                assert seen.index(after) == seen.index(item) + 1
            found[user] += example["next"][real].tolist()
        events = 14 if with_validation else 13
        for user, items in found.items():
            begin = data.starts[user]
            assert sorted(items) == sorted(data.items[begin + 1 : begin + events])


def test_weights_of_a_history(tmp_path):
    config, data = own(tmp_path, "\n".join(f"u,i{time},{time}" for time in range(6)))
    test = examples(data, config, "test")
    order = [data.names.index(f"i{time}") for time in range(5)]
    np.testing.assert_allclose(test.matrix(0.5).toarray()[0, order], [1 / 16, 1 / 8, 1 / 4, 0.5, 1])
    np.testing.assert_allclose(test.matrix(0.5, 2).toarray()[0, order], [0, 0, 0, 0.5, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", r"line 1: got 2 fields, expected user,item,timestamp"),
        ("a,b,1\n\na,,2\n", r"line 3: a field is empty"),
        ("a,b,1\na,c,soon\n", r"line 2: timestamp 'soon' is neither a number"),
        ("a,b,1\na,c,nan\n", r"line 2: timestamp 'nan' is not a finite number"),
        ("user,item\na,b\n", r"no column 'timestamp'; the columns are: user, item"),
        ("user,item,timestamp,user\n", r"column 'user' occurs twice in the header"),
        ("user,item,timestamp\n", r"the file contains no events"),
        (b"a,b,1\na,\xff,2\n", r"line 2 is not UTF-8"),
        ('a,"b,1\n', r"line 1 is malformed"),
        ("a,b,1\na,c,2\n", r"none of 1 users of .* has 3 events or more"),
    ],
)
def test_bad_files_are_named_by_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        own(tmp_path, text)


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(UserError, match=r"the folder .* has no file that ends in one of .csv"):
        load(DataConfig(path=str(tmp_path)), None)
    with pytest.raises(UserError, match="cannot be read"):
        load(DataConfig(path=str(tmp_path / "none.csv")), None)
    with pytest.raises(ValueError, match="did you mean 'beauty'"):
        DataConfig(name="beuty")
    with pytest.raises(ValueError, match="max_length: got 0"):
        DataConfig(max_length=0)


def test_one_user_is_enough(tmp_path):
    config, data = own(tmp_path, "a\tx\t1\na\ty\t2\na\tz\t3\na\tw\t4\n", name="one.tsv")
    assert [len(examples(data, config, split)) for split in ("train", "validation", "test")] == [
        1, 1, 1
    ]  # fmt: skip


def test_train_needs_one_transition(tmp_path):
    config, data = own(tmp_path, "a,x,1\na,y,2\na,z,3\n")
    with pytest.raises(UserError, match="none of 1 users has two training events"):
        examples(data, config, "train")
    # With validation there is one.
    assert len(examples(data, config, "train", with_validation=True)) == 1


def test_movielens_is_ordered_by_time_and_line():
    with needed():
        data = load(DataConfig(), Paths.default())
    assert (data.num_users, data.num_items, len(data.items)) == (943, 1682, 100_000)
    assert data.features.shape == (1682, 19)
    assert "Toy Story (1995)" in data.titles
    # Ties at the end, which the rule decides.
    last = data.starts[1:] - 1
    assert np.sum(data.ages[last - 1] == 0) == 415
    # User 196, whose two earliest events have one stamp; the first stands on the file's first line.
    begin, end = data.starts[(user := data.users.index("196")) : user + 2]
    assert [data.names[item] for item in data.items[begin : begin + 2]] == ["242", "286"]
    assert (np.diff(data.ages[begin:end]) <= 0).all()


def test_a_share_of_beautys_targets_never_occurs_before():
    with needed():
        config = DataConfig(name="beauty")
        data = load(config, Paths.default())
    assert (data.num_users, data.num_items, len(data.items)) == (40_226, 54_542, 353_962)
    assert data.ages is None
    known = data.popularity(True)[examples(data, config, "test").target] > 0
    assert 1 - known.mean() == pytest.approx(0.078, abs=5e-4)
    # Numbers say nothing of when an item came first.
    first = np.unique(data.items, return_index=True)[1]
    assert abs(np.corrcoef(np.arange(len(first)), first)[0, 1]) < 0.02


def test_buckets_change_the_padding_of_training_sequences_alone(tmp_path):
    rng = np.random.default_rng(0)
    lines = [
        f"{user},{item},{time}\n"
        for user in range(40)
        for time, item in enumerate(rng.choice(60, rng.integers(3, 40), replace=False))
    ]
    config, data = own(tmp_path, "".join(lines))
    config = dataclasses.replace(config, max_length=20)
    bucketed = dataclasses.replace(config, bucketed=True)
    assert (config.buckets, bucketed.buckets) == (None, [4, 8, 16, 20])
    assert dataclasses.replace(bucketed, max_length=16).buckets == [4, 8, 16]
    assert dataclasses.replace(bucketed, max_length=5).buckets == [4, 5]
    for split in ("train", "validation", "test"):
        plain, short = (examples(data, each, split) for each in (config, bucketed))
        found, shapes = {}, set()
        options = {"batch_size": 4, "buckets": bucketed.buckets}
        for batch in evaluation_batches(short, **options):
            shapes.add(batch["items"].shape[1])
            for row, index in enumerate(batch["id"]):
                found[int(index)] = {key: value[row] for key, value in batch.items()}
        assert shapes == ({4, 8, 16, 20} if split == "train" else {20})
        assert found.keys() - {-1} == set(range(len(plain)))
        for index in range(len(plain)):
            for key, value in plain[index].items():
                if key in ("items", "next", "ages"):
                    kept = len(found[index][key])
                    assert np.all(value[kept:] == (0 if key == "ages" else -1))
                    value = value[:kept]
                np.testing.assert_array_equal(found[index][key], value)


def test_beauty_5core_has_the_counts_of_its_papers_and_permuted_items():
    with needed():
        data = load(DataConfig(name="beauty_5core"), Paths.default())
    assert (data.num_users, data.num_items, len(data.items)) == (22_363, 12_101, 198_502)
    assert data.ages is None
    assert len(data.tested) == 22_363
    assert np.diff(data.starts).min() == np.bincount(data.items).min() == 5
    # The first line of the file.
    user = data.users.index("1")
    begin, end = data.starts[user : user + 2]
    assert [data.names[item] for item in data.items[begin:end]] == ["1", "2", "3", "4", "5"]
    first = np.unique(data.items, return_index=True)[1]
    assert abs(np.corrcoef(np.arange(len(first)), first)[0, 1]) < 0.03


def test_memory_is_of_arrays_not_of_objects(tmp_path):
    rng, count = np.random.default_rng(0), 20_000
    rows = np.stack([rng.integers(0, high, count) for high in (500, 1000, 10**9)], axis=1)
    np.savetxt(tmp_path / "many.csv", rows, "%d", delimiter=",")
    tracemalloc.start()
    data = load(DataConfig(path=str(tmp_path / "many.csv")), None)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data.items) > 0.9 * count
    # Three Python objects of an event would take 150 bytes.
    assert most < 120 * count
