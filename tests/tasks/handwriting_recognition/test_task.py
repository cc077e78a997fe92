"""Lines with their texts, and the task over them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from configs.handwriting_recognition import get_config
from launch.engine import config as configs
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.errors import UserError
from tasks.figures import Shown, SplitResults
from tasks.handwriting_recognition.data import DataConfig, load, read_line
from tasks.handwriting_recognition.datasets.digit_lines import Lines
from tasks.handwriting_recognition.model import LineConfig
from tasks.handwriting_recognition.task import HandwritingRecognition
from tests.tasks.public import needed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Makes thirty images with one or two dark bars, whose number is the transcript."""
    folder = tmp_path_factory.mktemp("lines")
    rng = np.random.default_rng(0)
    for number in range(30):
        bars = rng.integers(1, 3)
        picture = np.full((40, 50 * bars), 255, np.uint8)
        picture[5:35, 20::50] = 0
        Image.fromarray(picture).save(folder / f"ж {number}.png")
        text = "|" * bars + "".join(rng.choice(list("abc"), 3))
        (folder / f"ж {number}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def task(folder):
    config = get_config("additive")
    config.data.path = str(folder)
    config.model.update(channels=(4, 4, 4), model_size=8)
    config.model.transcriber.update(state_size=8, embedding_size=4, max_length=6)
    resolved = configs.resolve(config.to_dict())
    return HandwritingRecognition.prepare(resolved.data, resolved.model, Paths(None, None))


def test_the_contract(task):
    assert task.data.name.startswith("own_lines")
    graph, state = nnx.split(task.build_model(nnx.Rngs(0)))
    outputs = jax.jit(lambda state, batch: task.predict(nnx.merge(graph, state), batch))
    longest = [task.buckets[-1]]
    examples = task.examples("test")
    batch = next(evaluation_batches(examples, batch_size=8, buckets=longest))
    written = outputs(state, batch)
    # What stands at padding changes nothing.
    noisy = dict(batch)
    beyond = np.arange(batch["columns"].shape[1]) >= batch["length"][:, None]
    noisy["columns"] = np.where(beyond[..., None], 77, batch["columns"]).astype(np.uint8)
    np.testing.assert_array_equal(outputs(state, noisy)["tokens"], written["tokens"])
    gathered = {name: np.asarray(x)[: len(examples)] for name, x in written.items()}
    sums = {"loss": 1.0, "units": 2.0, "ctc_infeasible": 0.0}
    metrics = task.metrics(sums, gathered, "test")
    assert {"cer", "exact_match", "loss", "early_stops"} <= set(metrics)
    np.testing.assert_allclose(
        task.example_scores(gathered, "test").mean(), metrics["cer"], rtol=1e-6
    )
    weights = {"alignment": np.zeros((1, 7, 60))}
    _, drawn = task.figures(SplitResults(sums, gathered, "test", [Shown(0)], weights))
    assert drawn.over.shape[0] == 32
    assert json.dumps(task.processor.decode(["a"] * len(examples), gathered))


def test_splits_without_a_text_are_refused(folder, tmp_path):
    rows = {
        name: [f"{folder / f'ж {number}.png'},{text}" for number, text in enumerate(texts)]
        for name, texts in (("train", ["", ""]), ("val", ["a"]), ("test", ["a"]))
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,text", *lines]), encoding="utf-8")
    three = ",".join(str(tmp_path / f"{name}.csv") for name in rows)
    with pytest.raises(
        UserError, match=r"none of 2 examples of the train split has a label \(2 lines "
    ):
        load(DataConfig(path=three), None)
    with pytest.raises(UserError, match="1 distinct texts in 2 examples are too few to split"):
        load(DataConfig(path=str(tmp_path / "train.csv")), None)
    data = load(DataConfig(path=str(folder)), None)
    summary = data.summary()
    assert sum(split.examples for split in summary.values()) == 30
    assert str(summary["test"]) == f"{len(data.splits['test'])} examples"


def test_restored_it_reads_pictures(task, tmp_path):
    again = HandwritingRecognition.restore(
        task.data, task.model, json.loads(json.dumps(task.assets()))
    )
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(tmp_path / "one.png")
    assert again.processor.encode([str(tmp_path / "one.png")])[0]["columns"].shape == (32, 32)
    with pytest.raises(UserError, match=r"input '.*none.png': .*no such file; give the path"):
        again.processor.encode([str(tmp_path / "none.png")])
    Image.fromarray(np.zeros((2, 200), np.uint8)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match="got 3200 columns at 32 rows, expected at most"):
        read_line(str(tmp_path / "wide.png"), DataConfig())


def test_broken_pictures_are_named(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "ж 3.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"ж 3.png: not an image; .*skip_broken"):
        load(DataConfig(path=str(tmp_path)), Paths(None, None))
    data = load(DataConfig(path=str(tmp_path), skip_broken=True), Paths(None, None))
    assert sum(len(part) for part in data.splits.values()) == 29


def test_composed_lines():
    small = DataConfig(train_size=20, validation_size=8, test_size=12)
    with needed():
        data = load(small, Paths.default())
    assert [len(data.splits[split]) for split in data.splits] == [20, 8, 15]
    test = data.splits["test"]
    assert data.conditions == ("", "long")
    assert all(3 <= len(text) <= 8 for text in test.texts[:12])
    assert all(9 <= len(text) <= 14 for text in test.texts[12:])
    assert data.tokenizer.size == 3 + 10
    bent = load(dataclasses.replace(small, train_lines=Lines(wobble=0.3)), Paths.default())
    for split, alike in (("train", False), ("validation", True), ("test", True)):
        first, second = data.splits[split], bent.splits[split]
        same = [np.array_equal(first[i]["columns"], second[i]["columns"]) for i in range(8)]
        assert all(same) == any(same) == alike


@pytest.mark.parametrize(
    "writer", ["ctc", "ctc_long", "joint", "temporal", "multi_head(num_heads=2)", "none"]
)
def test_every_kind_of_config_resolves(writer):
    assert isinstance(configs.resolve(get_config(writer).to_dict()).model, LineConfig)


def test_what_makes_no_sense_is_named():
    with pytest.raises(UserError, match=r"config: .*'nowhere'"):
        get_config("nowhere")
    with pytest.raises(ValueError, match="channels: got"):
        LineConfig(channels=(4,))
    with pytest.raises(ValueError, match="test_size: got 1, expected at least 4"):
        DataConfig(test_size=1)
