"""The generic builder and the TFDS catalog, on small data sets made by the tests."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from tasks.common.data import builders, catalog
from tasks.common.data.builders import DatasetDefinition
from tasks.common.data.paths import Paths
from tasks.common.data.sources import Source
from tasks.common.errors import UserError

LINES = "0\tgood\n1\tbad\n0\tfine\n"


def features():
    import tensorflow_datasets as tfds

    return {
        "id": tfds.features.Text(),
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["positive", "negative"]),
    }


def generate(files):
    lines = files["toy/lines.tsv"].read_text().splitlines()

    def rows(lines):
        for number, line in enumerate(lines):
            label, text = line.split("\t")
            yield {"id": f"line-{number}", "text": text, "label": int(label)}

    return {"train": rows(lines[:2]), "test": rows(lines[2:])}


SOURCE = Source("toy/lines.tsv", hashlib.sha256(LINES.encode()).hexdigest(), ())
TOY = DatasetDefinition(
    "toy", "1.0.0", features, (SOURCE,), generate, counts={"train": 2, "test": 1}
)


@pytest.fixture
def where(tmp_path):
    paths = Paths(tmp_path / "data", tmp_path / "cache", tmp_path / "mirror")
    (paths.mirror / "toy").mkdir(parents=True)
    (paths.mirror / "toy/lines.tsv").write_text(LINES)
    return paths


def test_prepare_then_read_in_the_order_of_the_generator(where, capsys):
    assert not builders.is_prepared(TOY, where)
    train = builders.load(TOY, "train", where)
    assert len(train) == 2
    assert [row["text"] for row in train.__getitems__([1, 0])] == [b"bad", b"good"]
    assert train[1] == {"id": b"line-1", "text": b"bad", "label": 1}
    assert builders.is_prepared(TOY, where)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("preparing toy 1.0.0 ... 3 examples in")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("with_array", [False, True])
def test_all_examples_are_those_of_tfds(where, with_array):
    kinds = {"label": ["no", "yes"], "text": str, "other": str}
    kinds |= {"size": int, "values": ((2,), np.float32)} if with_array else {}
    rows = [
        {"label": 1, "text": "ж\x00\n", "other": "", "size": -3, "values": np.float32([0, 1])},
        {"label": 0, "text": "", "other": "x" * 9_999, "size": 7, "values": np.float32([2, 3])},
    ]
    rows = [{name: row[name] for name in kinds} for row in rows]
    made = DatasetDefinition(
        "made", "1.0.0", builders.features_of(**kinds), (), lambda _: {"train": rows}
    )
    source = builders.load(made, "train", where)
    found, expected = builders.read_all(source), [source[0], source[1]]
    for row, other in zip(found, expected, strict=True):
        assert set(row) == set(other)
        for name in kinds:
            assert type(row[name]) is type(other[name])
            np.testing.assert_array_equal(row[name], other[name])


def test_a_second_prepare_reads_no_source(where, capsys):
    builders.prepare(TOY, where, quiet=True)
    (where.mirror / "toy/lines.tsv").unlink()
    builders.prepare(TOY, where)
    assert len(builders.load(TOY, "test", where)) == 1
    assert capsys.readouterr().err == ""


def test_a_missing_source_leaves_nothing_behind(where):
    (where.mirror / "toy/lines.tsv").unlink()
    with pytest.raises(UserError, match=r"cannot get 'toy/lines.tsv'"):
        builders.prepare(TOY, where)
    assert not where.data_dir.exists()


def test_wrong_counts_stop_the_preparation(where):
    wrong = DatasetDefinition("toy", "1.0.0", features, (SOURCE,), generate, counts={"train": 3})
    with pytest.raises(
        RuntimeError, match="'train' has 2 examples, expected 3 according to the definition"
    ):
        builders.prepare(wrong, where, quiet=True)
    assert not builders.is_prepared(wrong, where)


@pytest.mark.parametrize("harm", ["no_info", "no_shard", "cut_shard", "leftover"])
def test_incomplete_folders_are_prepared_again(where, harm):
    builders.prepare(TOY, where, quiet=True)
    folder = builders.folder_of(TOY, where)
    shard = folder / "toy-train.array_record-00000-of-00001"
    if harm == "no_info":
        (folder / "dataset_info.json").unlink()
    elif harm == "no_shard":
        shard.unlink()
    elif harm == "cut_shard":
        shard.write_bytes(shard.read_bytes()[:1000])
    else:
        folder.rename(folder.with_name("1.0.0.incomplete_ABC"))
    assert not builders.is_prepared(TOY, where)
    assert builders.load(TOY, "train", where)[0]["text"] == b"good"
    assert [path.name for path in folder.parent.glob("*incomplete*")] == []


def as_tfrecord(folder):
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))


def test_tfrecord_is_refused_with_the_remedy(where):
    builders.prepare(TOY, where, quiet=True)
    as_tfrecord(builders.folder_of(TOY, where))
    with pytest.raises(UserError, match=r"toy/1.0.0 is prepared as tfrecord.*remove that folder"):
        builders.load(TOY, "train", where)
    with pytest.raises(UserError, match="prepared as tfrecord"):
        catalog.TfdsCatalog("tfds:toy", where)


def test_an_unwritable_data_dir_is_named(where, tmp_path):
    (tmp_path / "blocker").write_text("")
    paths = Paths(tmp_path / "blocker/data", where.cache_dir, where.mirror)
    with pytest.raises(UserError, match=r"cannot write to .*blocker/data.*--data_dir"):
        builders.prepare(TOY, paths, quiet=True)


def test_no_tensorflow_is_imported(where):
    code = (
        "import sys; from pathlib import Path;"
        "from tests.tasks.common.data.test_builders import TOY;"
        "from tasks.common.data import builders; from tasks.common.data.paths import Paths;"
        f"w = Paths(*map(Path, {[str(where.data_dir), str(where.cache_dir), str(where.mirror)]}));"
        "assert builders.load(TOY, 'train', w)[0]['label'] == 0;"
        "print(sorted({'tensorflow', 'torch', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_catalog_reads_whatever_is_prepared(where):
    builders.prepare(TOY, where, quiet=True)
    data = catalog.TfdsCatalog("tfds:toy", where)
    assert data.splits == {"train": 2, "test": 1}
    assert data.features["label"].names == ["positive", "negative"]
    assert data.load("test")[0]["text"] == b"fine"
    assert catalog.is_prepared("tfds:toy:1.0.0", where)
    assert not catalog.is_prepared("tfds:toy:2.0.0", where)
    with pytest.raises(UserError, match=r"tfds:toy has no split 'dev'; it has train, test"):
        data.load("dev")


def test_catalog_takes_the_newest_version_and_asks_for_a_config(where):
    builders.prepare(TOY, where, quiet=True)
    old = builders.folder_of(TOY, where)
    for version in ("1.9.0", "1.10.0"):
        old.with_name(version).mkdir()
    assert catalog.find("tfds:toy", where).name == "1.10.0"
    for config in ("small", "large"):
        (where.data_dir / "many" / config / "1.0.0").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"several configs.*tfds:many/large \(configs: large, small\)"
    ):
        catalog.find("tfds:many", where)
    assert catalog.find("tfds:many/small", where).parent.name == "small"


def test_catalog_says_how_to_prepare(where):
    with pytest.raises(UserError) as error:
        catalog.TfdsCatalog("tfds:ag_news_subset", where)
    assert "\n" not in str(error.value)
    assert "file_format='array_record').download_and_prepare()" in str(error.value)
    assert str(where.data_dir) in str(error.value)


def test_catalog_names_the_nearest(where):
    with pytest.raises(
        UserError,
        match=r"unknown data set of the TFDS catalog: 'tfds:ag_news_subse'.*ag_news_subset",
    ):
        catalog.TfdsCatalog("tfds:ag_news_subse", where)
    with pytest.raises(UserError, match="expected tfds:NAME"):
        catalog.TfdsCatalog("tfds:../x", where)


def test_catalog_names_damage(where):
    builders.prepare(TOY, where, quiet=True)
    (builders.folder_of(TOY, where) / "features.json").unlink()
    with pytest.raises(UserError, match=r"is damaged: dataset_info.json or features.json"):
        catalog.TfdsCatalog("tfds:toy", where)
