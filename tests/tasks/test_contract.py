"""The task contract on every task, and faults that its checks must find."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.runs.run import described_data
from tasks.text_classification.task import TextClassification, TextProcessor
from tests.tasks import contract
from tests.tasks.planted import PLANTED


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Returns name -> subject, made once each."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = contract.make_subject(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


def _id(check):
    return check.__name__.removeprefix("check_")


@pytest.mark.parametrize("check", contract.FAST, ids=_id)
@pytest.mark.parametrize("name", contract.TASKS)
def test_contract(subjects, name, check):
    check(subjects(name))


@pytest.mark.slow
@pytest.mark.parametrize("check", contract.SLOW, ids=_id)
@pytest.mark.parametrize("name", contract.TASKS)
def test_contract_slow(subjects, name, check):
    check(subjects(name))


@pytest.mark.parametrize("name", PLANTED)
def test_planted_duplicates_are_found(subjects, name, tmp_path):
    plant, repeated, conflicting = PLANTED[name]
    found = []
    for subject in (subjects(name), contract.make_subject(name, tmp_path, plant=plant)):
        rows = [split["compared"] for split in described_data(subject.task)[0]["splits"].values()]
        duplicates = sum(row["duplicates"] for row in rows)
        shared = sum(max(row.get("shared", {}).values(), default=0) for row in rows)
        found.append((duplicates + shared, sum(row.get("conflicts", 0) for row in rows)))
    (before, none), (after, conflicts) = found
    assert none == 0
    # A duplicated user has a duplicated history in each split.
    splits = 3 if name == "recommendation" else 1
    assert after - before == splits * repeated
    assert conflicts == conflicting
    lines = described_data(subject.task)[1]
    assert any(" such as " in line for line in lines if line.startswith("duplicates"))
    assert any(line.startswith("conflicts") for line in lines) == bool(conflicting)


def test_what_readers_skip_is_in_the_summary(tmp_path):
    def plant(folder):
        path = folder / "x.csv"
        path.write_text(path.read_text().replace("\n", "\n\n", 3))

    def break_image(folder):
        (folder / "cat" / "07.png").write_bytes(b"broken")

    subject = contract.make_subject("text_classification", tmp_path / "texts", plant=plant)
    (note,) = described_data(subject.task)[0]["notes"]
    assert note.endswith("x.csv: 3 empty lines are ignored; the first is line 2")
    # Also if the reader has said so before.
    again = type(subject.task).prepare(subject.config.data, subject.config.model, subject.paths)
    assert list(again.notes) == [note]
    images = contract.make_subject("image_classification", tmp_path / "images")
    data = dataclasses.replace(images.config.data, skip_broken=True)
    break_image(tmp_path / "images" / "data")
    task = type(images.task).prepare(data, images.config.model, images.paths)
    (note,) = described_data(task)[0]["notes"]
    assert note.startswith("skipped ")
    assert "07.png" in note


# ---------------------------------------------------------------- planted faults


class CountsPadding(TextClassification):
    def evaluate(self, model, batch):
        statistics, outputs = super().evaluate(model, batch)
        rows = jnp.float32(len(batch["weight"]))
        return {**statistics, "weight": rows, "loss": statistics["loss"] + rows}, outputs


class MixesRows(TextClassification):
    def evaluate(self, model, batch):
        statistics, outputs = super().evaluate(model, batch)
        probabilities = outputs["probabilities"]
        return statistics, {"probabilities": probabilities + probabilities.mean(axis=0)}


class TrainsOnPadding(TextClassification):
    def loss(self, model, batch, dropout_key):
        return super().loss(model, {**batch, "weight": jnp.ones_like(batch["weight"])}, dropout_key)


class NotFinite(TextClassification):
    def loss(self, model, batch, dropout_key):
        loss, metrics = super().loss(model, batch, dropout_key)
        return loss + jnp.sqrt(loss - jax.lax.stop_gradient(loss)), metrics


class OtherScores(TextClassification):
    def example_scores(self, outputs, split):
        return 1 - super().example_scores(outputs, split)


class NotANumber(TextClassification):
    def metrics(self, statistics, outputs, split):
        return {**super().metrics(statistics, outputs, split), "share": float("nan")}


class MiscountsExamples(TextClassification):
    def summary(self):
        counts = super().summary()
        return {**counts, "test": dataclasses.replace(counts["test"], examples=1)}


class RandomLoss(TextClassification):
    def loss(self, model, batch, dropout_key):
        loss, metrics = super().loss(model, batch, dropout_key)
        self.calls = getattr(self, "calls", 0) + 1
        noise = jax.pure_callback(lambda: np.float32(np.random.rand()), jnp.float32(0))
        return loss + noise, metrics


def _processor(**methods):
    """A task whose processor has other methods."""
    kind = dataclasses.dataclass(frozen=True)(type("Changed", (TextProcessor,), methods))

    class Changed(TextClassification):
        processor_type = kind

        def __init__(self, data, model, processor, dataset=None):
            fields = {f.name: getattr(processor, f.name) for f in dataclasses.fields(processor)}
            super().__init__(data, model, kind(**fields), dataset)

    return Changed


def _lose_labels(self):
    return {**TextProcessor.assets(self), "labels": []}


def _no_text(self, raw, outputs):
    return [{"input": one} for one in raw]


def _crash(self, raw):
    if not raw[0].strip():
        raise IndexError("list index out of range")
    return TextProcessor.encode(self, raw)


def _other_dtype(self):
    specs = TextProcessor.signature(self)
    return {**specs, "tokens": dataclasses.replace(specs["tokens"], dtype="int64")}


def _reversed_labels(self):
    steps = TextProcessor.steps(self)
    return dataclasses.replace(
        steps, decode=[{**steps.decode[0], "labels": list(self.labels)[::-1]}]
    )


def _other_tokens(self):
    steps = TextProcessor.steps(self)
    append = {"op": "append", "to": "tokens", "value": 1}
    return dataclasses.replace(steps, encode=[*steps.encode, append])


class ComparesIndices(TextClassification):
    def columns(self, split):
        calls = iter(range(10**9))
        return dataclasses.replace(
            super().columns(split), pair=lambda index: (f"text {next(calls)}", 0)
        )


class ComparesNothing(TextClassification):
    def columns(self, split):
        return dataclasses.replace(super().columns(split), pair=lambda index: ("text", 0))


class HasNoDescription(TextClassification):
    def metrics(self, statistics, outputs, split):
        return {**super().metrics(statistics, outputs, split), "share": 0.5}


class OtherDirection(TextClassification):
    higher_is_better = False


def _process_hash(self):
    return f"{TextClassification.fingerprint.fget(self)}{id(self)}"


FAULTS = {
    "padding rows are counted": (CountsPadding, "padding_rows"),
    "rows depend on each other": (MixesRows, "order"),
    "padding rows are trained on": (TrainsOnPadding, "loss"),
    "a gradient is not finite": (NotFinite, "loss"),
    "the loss is random": (RandomLoss, "loss"),
    "scores are not the metric": (OtherScores, "metrics"),
    "a metric is NaN": (NotANumber, "metrics"),
    "assets lose the labels": (_processor(assets=_lose_labels), "restored"),
    "the summary miscounts examples": (MiscountsExamples, "summary"),
    "the summary compares no inputs": (ComparesIndices, "columns"),
    "the summary takes all inputs as equal": (ComparesNothing, "columns"),
    "a metric has no description": (HasNoDescription, "descriptions"),
    "the direction of the metric is another": (OtherDirection, "descriptions"),
    "an answer has no text": (_processor(decode=_no_text), "predictions"),
    "an odd input crashes": (_processor(encode=_crash), "odd_inputs"),
    "the signature names another dtype": (_processor(signature=_other_dtype), "signature"),
    "the exported labels are others": (_processor(steps=_reversed_labels), "steps"),
    "the exported tokens are others": (_processor(steps=_other_tokens), "steps"),
    "the fingerprint depends on the process": (
        type("Hash", (TextClassification,), {"fingerprint": property(_process_hash)}),
        "fingerprint",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(subjects, fault):
    kind, name = FAULTS[fault]
    subject = subjects("text_classification").with_task(kind)
    with pytest.raises((AssertionError, KeyError, IndexError)):
        getattr(contract, f"check_{name}")(subject)
