"""Checks of the task contract. Each takes a `Subject` and raises AssertionError on a violation."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.engine import config as configs
from launch.engine import evaluation
from launch.engine import state as states
from launch.engine.evaluation import Subset, evaluate, gather, prediction_inputs
from launch.engine.predictor import Predictor, outputs_of_examples
from launch.engine.steps import make_steps
from launch.exports import reader, writer
from launch.reporting import examples, figures
from launch.runs import predictions
from launch.runs.run import described_data
from tasks.answers import AnswerOptions
from tasks.common.data import summary
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.errors import UserError
from tasks.figures import SplitResults
from tasks.task import SPLITS, Processor, Task
from tests.launch.own_data import CASES
from tests.tasks.explanations import check_explanations

BATCH = 4
# Methods of a task that are compiled.
COMPILED = ("build_model", "loss", "evaluate", "predict", "attention")
# Tasks whose data are generated: config file, changes of keys, and raw inputs.
GENERATED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "sequence_copy": (
        "configs/sequence_copy.py",
        {
            "data.train_size": 40,
            "data.validation_size": 9,
            "data.test_size": 10,
            "data.min_length": 3,
            "data.max_length": 6,
            "model.state_size": 8,
            "model.embedding_size": 8,
        },
        ["314", "15926"],
    ),
}
TASKS = (*CASES, *GENERATED)
# Raw inputs that no task has seen: each gives an answer or a UserError.
ODD = ("", " ", "\n", "\0", "no/such/file.png", "x" * 5000, "日本語 ärger \U0001f600", "-1", "nan")


@dataclasses.dataclass
class Subject:
    """A tiny task on made-up data.

    Attributes:
      name: of the task.
      config: its experiment.
      paths: folders of data and caches.
      raw: valid raw inputs.
      task: prepared.
      labeled: labeled file of an evaluation; None if the task reads none.
    """

    name: str
    config: Any
    paths: Paths
    raw: list[str]
    task: Task
    labeled: str | None = None

    @functools.cached_property
    def steps(self) -> Any:
        """Compiled functions."""
        return make_steps(self.task, self.config)

    @functools.cached_property
    def variables(self) -> Any:
        """Variables of an initialized model."""
        return states.evaluation_variables(self.steps.init())

    @functools.cached_property
    def predictor(self) -> Predictor:
        """Answers raw inputs with the initialized model."""
        return Predictor(self.task, self.config, self.steps, self.variables)

    def with_task(self, kind: type[Task]) -> Subject:
        """Returns the subject with a task of another class on the same data."""
        task = kind(self.task.data, self.task.model, self.task.processor, self.task.dataset)
        found = Subject(self.name, self.config, self.paths, self.raw, task)
        own = type(self.task)
        if all(getattr(kind, name, None) is getattr(own, name, None) for name in COMPILED):
            found.steps, found.variables = self.steps, self.variables
        return found

    def batch(self, split: str = "train", size: int = BATCH) -> dict[str, np.ndarray]:
        """Returns the first examples of a split as a batch without padding rows."""
        return next(iter(self.batches(size, split)))

    def batches(self, size: int, split: str = "train", multiple: int = 1) -> Iterator[dict]:
        """Yields one batch of the first examples of a split, with rows a multiple of `multiple`."""
        examples = Subset(self.task.examples(split), range(size))
        return evaluation_batches(
            examples, batch_size=size, buckets=self.longest, multiple=multiple
        )

    @property
    def longest(self) -> list[Any] | None:
        """The longest bucket alone."""
        return None if self.task.buckets is None else [self.task.buckets[-1]]

    @functools.cached_property
    def model(self) -> Any:
        """The initialized model."""
        from flax import nnx

        return self.task.build_model(nnx.Rngs(0))


def make_subject(
    name: str,
    folder: Path,
    argument: str | None = None,
    plant: Callable[[Path], None] | None = None,
    **changed: Any,
) -> Subject:
    """Writes the data of a task, and prepares it.

    Args:
      name: of the task.
      folder: folder for the data.
      argument: of the config file; the model then has the sizes of that config.
      plant: changes the data before they are read.
      **changed: fields of the model to change.
    """
    if name in GENERATED:
        (file, changes, raw), labeled = GENERATED[name], None
    else:
        case = CASES[name]
        (folder / "data").mkdir(parents=True)
        case.write(folder / "data")
        if plant is not None:
            plant(folder / "data")
        file, changes = case.config, case.overrides(folder / "data")
        raw = case.inputs(folder / "data") * 2
        labeled = case.labeled.replace("FOLDER", str(folder / "data"))
    if argument is not None:
        file = f"{file.partition(':')[0]}:{argument}"
        changes = {key: value for key, value in changes.items() if key.startswith("data.")}
    changes |= {f"model.{key}": value for key, value in changed.items()}
    sizes = {"training.batch_size": BATCH, "training.evaluation_batch_size": BATCH}
    config = configs.override(configs.load_file(file), {**changes, **sizes})
    paths = Paths(folder / "prepared", folder / "cache", None)
    task = configs.task_class(config.task).prepare(config.data, config.model, paths)
    return Subject(name, config, paths, raw, task, labeled)


def _evaluated(subject: Subject, batch_size: int = BATCH, split: str = "validation") -> Any:
    return evaluate(subject.task, subject.steps, subject.variables, split, batch_size)


def _assert_close(actual: Any, expected: Any, what: str) -> None:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.ndim > 1 and actual.shape != expected.shape:
        # Outputs are padded to the longest of their batches.
        sizes = tuple(slice(min(pair)) for pair in zip(actual.shape, expected.shape, strict=True))
        actual, expected = actual[sizes], expected[sizes]
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5, err_msg=what)


def _with_padding_rows(
    examples: Any, *, batch_size: int, buckets: Any, multiple: int, shards: Any
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of the same size whose last row is a padding row."""
    assert multiple == 1
    assert list(shards) == [0]
    for batch in evaluation_batches(examples, batch_size=batch_size - 1, buckets=buckets):
        padded = {name: np.concatenate([array, array[:1]]) for name, array in batch.items()}
        padded["weight"][-1], padded["id"][-1] = 0, -1
        yield padded


def check_padding_rows(subject: Subject) -> None:
    """Checks that metrics and outputs do not depend on padding rows."""
    one = _evaluated(subject)
    with mock.patch.object(evaluation, "evaluation_batches", _with_padding_rows):
        other = _evaluated(subject)
    _assert_same_results(one, other)


def check_batch_size(subject: Subject) -> None:
    """Checks that metrics and outputs do not depend on the batch size."""
    _assert_same_results(_evaluated(subject), _evaluated(subject, 3))


def _assert_same_results(one: Any, other: Any) -> None:
    """Checks that the metrics and outputs of two evaluations are equal."""
    assert one.metrics.keys() == other.metrics.keys()
    for name, value in one.metrics.items():
        _assert_close(other.metrics[name], value, name)
    for name, value in one.outputs.items():
        _assert_close(other.outputs[name], value, name)


def check_order(subject: Subject) -> None:
    """Checks that outputs follow the ids of their examples, for any batches."""
    task, split = subject.task, "validation"
    expected = _evaluated(subject).outputs
    examples = task.examples(split)
    order = np.random.default_rng(0).permutation(len(examples))
    pending = []
    batches = evaluation_batches(Subset(examples, order), batch_size=BATCH, buckets=task.buckets)
    for batch in batches:
        ids = np.where(batch["id"] < 0, -1, order[batch["id"]])
        placed = subject.steps.place(dict(batch, id=ids.astype(batch["id"].dtype)))
        _, outputs = subject.steps.evaluate(subject.variables, placed)
        if task.decodes:
            predict = subject.steps.predict_fast
            outputs = predict(subject.variables, prediction_inputs(task, placed))
        pending.append((ids, outputs))
    found = gather(pending)
    for name, value in expected.items():
        _assert_close(found[name], value, name)


def check_restored(subject: Subject) -> None:
    """Assets survive JSON, and the restored task encodes inputs to the same arrays."""
    task = subject.task
    assets = json.loads(json.dumps(task.assets()))
    restored = type(task).restore(task.data, task.model, assets)
    assert json.loads(json.dumps(restored.assets())) == assets
    # Buckets that depend on all splits, as those of transcription, are not saved.
    assert restored.buckets is None or list(restored.buckets) == list(task.buckets)
    one, other = (each.processor.encode(subject.raw) for each in (task, restored))
    assert len(one) == len(other) == len(subject.raw)
    for index in range(len(one)):
        left, right = one[index], other[index]
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    outputs = subject.predictor.outputs(one)
    expected, found = (each.processor.decode(subject.raw, outputs) for each in (task, restored))
    assert json.dumps(found) == json.dumps(expected)


def check_signature(subject: Subject) -> None:
    """Checks that encoded inputs and examples have the arrays of the signature."""
    task = subject.task
    specs = task.processor.signature()
    assert specs
    encoded = task.processor.encode(subject.raw)
    found = [subject.batch(), *evaluation_batches(encoded, batch_size=BATCH, buckets=task.buckets)]
    for batch in found:
        sizes: dict[str, int] = {}
        for name, spec in specs.items():
            assert name in batch, f"{name}: named by the signature, but not encoded"
            array = batch[name]
            assert str(array.dtype) == spec.dtype, (name, array.dtype, spec.dtype)
            assert array.ndim == len(spec.shape), (name, array.shape, spec.shape)
            for size, given in zip(spec.shape, array.shape, strict=True):
                known = sizes.setdefault(size, given) if isinstance(size, str) else size
                assert known == given, (name, array.shape, spec.shape)


def check_metrics(subject: Subject) -> None:
    """Metrics are numbers for JSON, and the mean of the scores is the primary metric."""
    task = subject.task
    for split in ("validation", "test"):
        found = _evaluated(subject, split=split)
        assert task.primary_metric in found.metrics
        for name, value in found.metrics.items():
            assert isinstance(value, float), (name, value)
            assert math.isfinite(value), (name, value)
        scores = task.example_scores(found.outputs, split)
        assert scores.shape == task.example_ids(split).shape
        _assert_close(np.mean(scores), found.metrics[task.primary_metric], task.primary_metric)


def _training(subject: Subject) -> Any:
    """Returns a function of a batch: ((loss, (metrics, batch statistics)), gradients)."""
    graphdef = states.graph_definition(subject.task, 0)

    @jax.jit
    def training(variables: Any, batch: Any, key: Any) -> Any:
        def objective(params: Any) -> Any:
            model = states.merge_model(graphdef, params, variables["statistics"])
            loss, metrics = subject.task.loss(model, batch, key)
            return loss, (metrics, states.split_model(model)[2])

        return jax.value_and_grad(objective, has_aux=True)(variables["params"])

    return training


def _loss(subject: Subject) -> Any:
    training = _training(subject)

    def loss(*arguments: Any) -> Any:
        (value, _), gradients = training(*arguments)
        return value, gradients

    return loss


def check_loss(subject: Subject) -> None:
    """Rows of weight 0 change neither loss nor gradient; every parameter has a finite gradient."""
    loss, key = _loss(subject), jax.random.key(0)
    batch = {**subject.batch(), "weight": np.array([1, 1, 1, 0], np.float32)}
    changed = {}
    for name, array in batch.items():
        changed[name] = array.copy()
        if name not in ("weight", "id"):
            # Another valid example in the row that does not count.
            changed[name][3] = array[0]
    one, gradients = loss(subject.variables, batch, key)
    other, others = loss(subject.variables, changed, key)
    again, _ = loss(subject.variables, batch, key)
    assert float(one) == float(again), "the loss depends on more than its arguments"
    _assert_close(other, one, "loss with another row of weight 0")
    for (path, left), right in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(others), strict=True
    ):
        name = states.path_name(path)
        assert np.isfinite(left).all(), f"{name}: gradient is not finite"
        scale = float(jnp.max(jnp.abs(left))) + 1e-3
        _assert_close(right / scale, left / scale, name)


def _perturbed(variables: Any) -> Any:
    """Returns variables with noise, so that no input of a ReLU is 0 but for rounding."""
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return {**variables, "params": jax.tree.unflatten(tree, noisy)}


def check_added_rows(subject: Subject) -> None:
    """Checks that padding rows at the end change no result of a training step.

    Batches of meshes whose devices do not divide the batch size have such rows.
    """
    training, key = _training(subject), jax.random.key(0)
    batch = subject.batch()
    longer = next(iter(subject.batches(BATCH, multiple=3)))
    assert longer["weight"].tolist() == [1] * BATCH + [0] * 2
    for name, array in batch.items():
        np.testing.assert_array_equal(longer[name][:BATCH], array, err_msg=name)
    variables = _perturbed(subject.variables)
    (loss, rest), gradients = training(variables, batch, key)
    (other, others), found = training(variables, longer, key)
    _assert_close(other, loss, "loss")
    for (path, left), right in zip(
        jax.tree_util.tree_leaves_with_path(rest), jax.tree.leaves(others), strict=True
    ):
        _assert_close(right, left, states.path_name(path))
    for (path, left), right in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(found), strict=True
    ):
        scale = float(jnp.max(jnp.abs(left))) + 1e-3
        _assert_close(right / scale, left / scale, states.path_name(path))


def check_every_parameter_is_trained(subject: Subject) -> None:
    """Checks that each parameter has a nonzero gradient within some steps."""
    loss, variables = _loss(subject), subject.variables
    optimizer = optax.adam(1e-2)
    state, params = optimizer.init(variables["params"]), variables["params"]
    seen: dict[str, bool] = {}
    for step in range(4):
        _, gradients = loss({**variables, "params": params}, subject.batch(), jax.random.key(step))
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
            name = states.path_name(path)
            seen[name] = seen.get(name, False) or bool(jnp.any(leaf != 0))
        updates, state = optimizer.update(gradients, state)
        params = optax.apply_updates(params, updates)
    missing = [name for name, found in seen.items() if not found]
    assert not missing, f"no gradient: {', '.join(missing)}"


def check_overfits(subject: Subject, steps: int = 300) -> None:
    """Checks that the loss on four examples falls below a quarter of its initial value."""
    loss, batch = _loss(subject), subject.batch()
    optimizer, variables = optax.adam(1e-2), subject.variables
    state, params = optimizer.init(variables["params"]), variables["params"]
    key = jax.random.key(0)
    first, gradients = loss({**variables, "params": params}, batch, key)
    best = math.inf
    for _ in range(steps):
        updates, state = optimizer.update(gradients, state)
        params = optax.apply_updates(params, updates)
        value, gradients = loss({**variables, "params": params}, batch, key)
        best = min(best, float(value))
    assert best < float(first) / 4, (float(first), best)


def check_predictions(subject: Subject) -> None:
    """Checks that every valid input has a JSON answer with a text, in the order of the inputs."""
    answers = subject.predictor(subject.raw)
    assert len(answers) == len(subject.raw)
    for raw, answer in zip(subject.raw, answers, strict=True):
        assert isinstance(answer["text"], str)
        assert answer["input"] == raw
        json.dumps(answer, allow_nan=False)


def check_example_predictions(subject: Subject) -> None:
    """Checks that records have the ids and scores of the examples, and survive JSON and CSV."""
    task, found = subject.task, _evaluated(subject, split="test")
    ids, scores = task.example_ids("test"), task.example_scores(found.outputs, "test")
    rows = task.predictions(found.outputs, "test")
    assert [int(row["id"], 16) for row in rows] == ids.tolist()
    _assert_close([row["score"] for row in rows], scores, "score")
    for row in rows:
        assert tuple(row) == predictions.COLUMNS
        assert row["input"] is None or isinstance(row["input"], str)
        assert row["confidence"] is None or 0 <= row["confidence"] <= 1 + 1e-6
        # A recommender predicts a ranked list for one item.
        if task.primary_metric != "ndcg_at_10":
            assert type(row["target"]) is type(row["prediction"])
        assert json.loads(json.dumps(row, allow_nan=False)) == row
    given = list(csv.DictReader(io.StringIO(predictions.as_csv(rows), newline="")))
    assert len(given) == len(rows)
    for cells, row in zip(given, rows, strict=True):
        for column, value in row.items():
            if isinstance(value, str):
                assert cells[column] == value
            else:
                assert (json.loads(cells[column]) if cells[column] else None) == value
    # Computing them needs no more than the outputs that a run directory holds.
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/outputs.npz", **found.outputs)
        with np.load(f"{folder}/outputs.npz") as saved:
            assert task.predictions(dict(saved), "test", ids, scores) == rows


def check_attention_axes(subject: Subject) -> None:
    """Checks that axes have a name for each dimension, and a label for each position or none."""
    raw, predictor = subject.raw[0], subject.predictor
    weights, axes = predictor.attention(raw)
    assert weights.keys() == axes.keys()
    for name, array in weights.items():
        assert len(axes[name]) == array.ndim, name
        for labels, size in zip(axes[name].values(), array.shape, strict=True):
            assert labels is None or len(labels) == size, (name, axes[name], array.shape)
            assert labels is None or all(isinstance(label, str) for label in labels)


def check_odd_inputs(subject: Subject) -> None:
    """Checks that odd inputs give an answer, or a one-line UserError with the input or its flag."""
    for raw in ODD:
        try:
            (answer,) = subject.predictor([raw])
        except UserError as error:
            message = str(error).strip()
        else:
            assert isinstance(answer["text"], str)
            continue
        assert "\n" not in message


def check_figures(subject: Subject) -> None:
    """Checks that the figures of a report can be drawn as HTML."""
    found = _evaluated(subject, split="test")
    task, steps, variables = subject.task, subject.steps, subject.variables
    chosen = examples.choose(task, found, "test", seed=0)
    indices = [example.index for example in chosen.shown]
    assert len(set(indices)) == min(task.drawn_examples, len(task.scored_examples("test")))
    outputs = outputs_of_examples(task, steps, variables, "test", indices)
    results = SplitResults(found.statistics, found.outputs, "test", chosen.shown, *outputs)
    drawn = task.figures(results)
    # Every example is drawn, and has its id.
    pages = [figures.draw(figure) for figure in drawn]
    for example in chosen.shown:
        assert any(f"(id {example.id})" in page for page in pages), example
    for page in pages:
        assert page.count("<img") == page.count('alt="')
        assert 'alt=""' not in page


def check_input_figures(subject: Subject) -> None:
    """Checks that predictions are drawn as PNG, or that an error says that there are none."""
    try:
        answers, drawn = subject.predictor.with_figures(subject.raw)
    except UserError as error:
        message = str(error)
        assert message.startswith("--figures: ")
        return
    assert len(answers) == len(drawn) == len(subject.raw)
    for shown in drawn:
        assert shown
        for figure in shown:
            assert figures.png(figure).startswith(b"\x89PNG")


def check_fingerprint(subject: Subject) -> None:
    """Checks that data that are read again have the same hashes, and that all splits have
    hashes."""
    task = subject.task
    config = subject.config
    again = type(task).prepare(config.data, config.model, subject.paths)
    assert again.fingerprint == task.fingerprint
    assert dict(again.fingerprints) == dict(task.fingerprints)
    assert json.dumps(again.assets()) == json.dumps(task.assets())
    for split in SPLITS:
        np.testing.assert_array_equal(again.example_ids(split), task.example_ids(split))
        assert len(task.examples(split)) == len(task.example_ids(split)) or split == "train"


def check_summary(subject: Subject) -> None:
    """Checks that the counts printed before training are those of the examples, one line per
    split."""
    summary = subject.task.summary()
    assert list(summary) == list(SPLITS)
    for split, counts in summary.items():
        assert counts.examples == len(subject.task.examples(split)), split
        assert "\n" not in str(counts)


def check_columns(subject: Subject) -> None:
    """Checks the summary of the data that is printed before training, and kept in the record.

    If the test split is the train split, all its inputs are shared, and none has another label.
    """
    task = subject.task
    found, lines = described_data(task)
    assert list(found["splits"]) == list(SPLITS)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    # Inputs and labels do not depend on the number of reads.
    assert described_data(task)[0] == found
    assert 4 <= len(lines) <= 12
    assert not any("\n" in line for line in lines)
    for split, row in found["splits"].items():
        column = task.columns(split)
        assert row["compared"]["rows"] == column.count > 0
        assert row.get("sizes") or row.get("facts"), split
        for unit, sizes in column.sizes.items():
            assert row["sizes"][unit]["max"] == pytest.approx(np.max(sizes), rel=1e-3)
    train = task.columns("train")
    counts = {split: task.summary()["train"] for split in ("train", "test")}
    leaked = summary.summarize(counts, {"train": train, "test": train})["splits"]["test"]
    if train.shares:
        assert leaked["compared"]["shared"] == {"train": train.count}
        assert leaked["compared"]["shared_example"]
    alone = summary.summarize(counts, {"train": train})["splits"]["train"]
    assert leaked["compared"]["duplicates"] == alone["compared"]["duplicates"]
    assert leaked["compared"].get("conflicts", 0) == alone["compared"].get("conflicts", 0)
    # Most examples of the made-up data are distinct.
    assert alone["compared"]["duplicates"] < train.count / 2


def check_descriptions(subject: Subject) -> None:
    """Checks that all metrics have a description with unit and direction, and a direction that
    agrees with that of the task."""
    task = subject.task
    first = task.describe_metric(task.primary_metric)
    assert first is not None
    assert first.higher_is_better is task.higher_is_better
    names = {name for split in SPLITS[1:] for name in _evaluated(subject, split=split).metrics}
    _, shapes = jax.eval_shape(subject.task.loss, subject.model, subject.batch(), jax.random.key(0))
    for name in {*names, *shapes, *task.table_metrics}:
        metric = task.describe_metric(name)
        assert metric is not None, f"{name}: has no description"
        assert metric.about, name
        assert metric.unit, name
        assert "{" not in metric.about


def check_steps(subject: Subject) -> None:
    """Checks that the declared steps give the arrays of `encode` and the answers of `decode`.

    A processor without `steps` cannot be exported, which is allowed.
    """
    processor = subject.task.processor
    try:
        steps = processor.steps()
    except UserError:
        return
    json.dumps([list(steps.encode), list(steps.decode)], allow_nan=False)
    with tempfile.TemporaryDirectory() as folder:
        names = {"format": reader.FORMAT, "input": steps.kind}
        operations = {"encode": list(steps.encode), "decode": list(steps.decode)}
        content = json.dumps({**names, **operations})
        (Path(folder) / "signature.json").write_text(content, encoding="utf-8")
        writer.write_step_files(Path(folder), steps)
        export = reader.Export(folder)
        items = [export.encode(raw) for raw in subject.raw]
        examples = processor.encode(subject.raw)
        rows = [row for item in items for row in item.rows]
        assert len(rows) == len(examples)
        for raw, item in zip(subject.raw, items, strict=True):
            # Alone, since windows of images have the number of their input.
            alone = processor.encode([raw])
            assert len(alone) == len(item.rows)
            for index, row in enumerate(item.rows):
                example = alone[index]
                for name, spec in processor.signature().items():
                    if name in example:
                        assert np.asarray(row[name]).dtype == spec.dtype, name
                        _assert_padded_close(row[name], example[name], spec.padding or 0, name)
        outputs = subject.predictor.outputs(examples)
        for index, row in enumerate(rows):
            item = next(one for one in items if any(row is other for other in one.rows))
            item.outputs.append({name: value[index] for name, value in outputs.items()})
        found = [export.decode(item) for item in items]
        assert json.dumps(found) == json.dumps(processor.decode(subject.raw, outputs))


def _assert_padded_close(actual: Any, expected: Any, padding: Any, name: str) -> None:
    """Compares two arrays that may differ in padding at the end."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.ndim == expected.ndim, name
    widest = np.maximum(actual.shape, expected.shape)

    def padded(array: np.ndarray) -> np.ndarray:
        more = [(0, int(wide - size)) for wide, size in zip(widest, array.shape, strict=True)]
        return np.pad(array, more, constant_values=padding)

    if actual.shape != expected.shape:
        actual, expected = padded(actual), padded(expected)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6, err_msg=name)


def check_baselines(subject: Subject) -> None:
    """Baselines run on the data of the subject and return the primary metric."""
    for name, fit in subject.task.baselines().items():
        found = fit()
        assert math.isfinite(found[subject.task.primary_metric]), name
        for metric in found.keys() - {"example_scores"}:
            assert subject.task.describe_metric(metric), metric


def check_declarations(subject: Subject) -> None:
    """Class attributes are there, and the processor is a frozen dataclass."""
    task = subject.task
    assert task.primary_metric == task.table_metrics[0]
    assert {field.name for field in dataclasses.fields(task.data_config)} >= {"name"}
    assert subject.config.model.name in task.model_configs
    assert isinstance(task.processor, Processor)
    assert isinstance(task.processor, task.processor_type)


# Tasks whose example ids depend on the place in the split.
_OTHER_IDS = ("speech_recognition", "handwriting_recognition")


def check_labeled_file(subject: Subject) -> None:
    """Checks metrics, intervals and predictions on a labeled file, without the run's data."""
    task = subject.task
    restored = type(task).restore(task.data, task.model, json.loads(json.dumps(task.assets())))
    if subject.labeled is None:
        with pytest.raises(UserError, match="--file: does not apply"):
            restored.with_file("x.csv")
        return
    read = restored.with_file(subject.labeled)
    found = evaluate(read, subject.steps, subject.variables, "test", BATCH)
    assert task.primary_metric in found.metrics
    assert all(math.isfinite(value) for value in found.metrics.values()), found.metrics
    # Forecasts have no MASE, whose divisor is of the training split.
    assert set(_evaluated(subject, split="test").metrics) - set(found.metrics) <= {"mase"}
    scores = read.example_scores(found.outputs, "test")
    _assert_close(np.mean(scores), found.metrics[task.primary_metric], task.primary_metric)
    rows = read.predictions(found.outputs, "test")
    assert len(rows) == len(scores)
    assert all(row["input"] for row in rows)
    for name, (low, high) in read.intervals(found.outputs, "test").items():
        assert low <= high, name
    # Examples of the test split that the file contains have the same predictions.
    known = {row["id"]: row["prediction"] for row in rows}
    split = task.predictions(_evaluated(subject, split="test").outputs, "test")
    shared = [row for row in split if row["id"] in known]
    assert shared or subject.name in _OTHER_IDS
    for row in shared:
        assert json.dumps(row["prediction"]) == json.dumps(known[row["id"]])


def check_answer_options(subject: Subject) -> None:
    """Checks that each option of predictions applies, or that a line says why it does not."""
    task = subject.task
    outputs = subject.predictor.outputs(task.processor.encode(subject.raw))
    whole = task.answers(subject.raw, outputs)
    assert json.dumps(whole) == json.dumps(task.processor.decode(subject.raw, outputs))
    for answer in whole:
        rows = task.rows(answer)
        assert rows
        assert all(row.keys() == rows[0].keys() for row in rows)
    labels = getattr(task, "labels", ["x"])
    for options in ({"top_k": 1}, {"threshold": 1.0}, {"positive": labels[0]}):
        (name,) = options
        if task.answer_options.get(name, "no") is not None:
            with pytest.raises(UserError, match=f"^--{name}: does not apply, because "):
                task.with_options(AnswerOptions(**options))
            continue
        chosen = task.with_options(AnswerOptions(**options))
        assert task.options == AnswerOptions(), "the task itself is unchanged"
        for answer in chosen.answers(subject.raw, outputs):
            assert answer["text"] is not None
            json.dumps(answer)


FAST = (
    check_declarations,
    check_restored,
    check_signature,
    check_padding_rows,
    check_order,
    check_metrics,
    check_loss,
    check_added_rows,
    check_predictions,
    check_labeled_file,
    check_answer_options,
    check_example_predictions,
    check_attention_axes,
    check_odd_inputs,
    check_figures,
    check_input_figures,
    check_fingerprint,
    check_summary,
    check_columns,
    check_descriptions,
    check_steps,
)
SLOW = (
    check_batch_size,
    check_every_parameter_is_trained,
    check_overfits,
    check_baselines,
    check_explanations,
)
