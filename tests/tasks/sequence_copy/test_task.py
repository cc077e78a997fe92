"""Sequence copy by the contract: hand-made outputs, and rows that count for nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attention import registry
from launch.engine.config import load_file
from launch.engine.evaluation import gather
from launch.reporting.figures import draw
from launch.runs.ablation import load_ablation, resolve_ablation
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.errors import UserError
from tasks.figures import Alignment, Curves, Shown, SplitResults
from tasks.sequence_copy.data import DataConfig, DigitStrings, decode, tokens_of
from tasks.sequence_copy.model import EncoderDecoder, EncoderDecoderConfig
from tasks.sequence_copy.task import TASK, alignment_accuracy, sequence_metrics

DATA = DataConfig(min_length=3, max_length=6, train_size=40, validation_size=9, test_size=20)
MODEL = EncoderDecoderConfig(embedding_size=5, state_size=6)


@pytest.fixture(scope="module")
def task():
    return TASK.prepare(DATA, MODEL, None)


@pytest.fixture(scope="module")
def model(task):
    return task.build_model(nnx.Rngs(0))


def batches_of(task, split, size):
    return list(evaluation_batches(task.examples(split), batch_size=size, buckets=task.buckets))


def test_buckets_hold_every_string(task):
    assert task.buckets == [5, 7]
    assert TASK.restore(DATA, MODEL, task.assets()).buckets == [5, 7]
    assert TASK.prepare(
        DataConfig(min_length=5, max_length=5, train_size=9, validation_size=1, test_size=1),
        MODEL,
        None,
    ).buckets == [6]


def test_matches_by_hand():
    examples = DigitStrings(["12", "345", "7"])
    # Targets: 2 1 end | 5 4 3 end | 7 end. The second lacks the end token, the third is right.
    tokens = np.array([[5, 4, 2, 0, 0], [8, 7, 6, 6, 0], [10, 2, 0, 0, 0]])
    found = sequence_metrics(tokens, examples)
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["token_accuracy"] == pytest.approx(8 / 9)
    # Of one digit, of two and of three, which is the greatest number too.
    assert [found[f"exact_match_{n}"] for n in (1, 2, 3)] == [1, 1, 0]
    # A token after the end token is a mistake too.
    tokens[2, 2] = 5
    assert sequence_metrics(tokens, examples)["exact_match"] == pytest.approx(1 / 3)


def test_matches_by_length():
    """4 to 20 digits: four groups and the greatest length, as the table's columns are named."""
    source = ["7" * n for n in range(4, 21) for _ in range(2)]
    tokens = tokens_of(source, 21)
    # Wrong: one of two of 9 digits, both of 20.
    for row in (10, 32, 33):
        tokens[row, 0] = 4
    found = sequence_metrics(tokens, DigitStrings(source))
    assert found["exact_match"] == pytest.approx(31 / 34)
    expected = {"4_8": 1, "9_12": 7 / 8, "13_16": 1, "17_20": 6 / 8, "20": 0}
    for name, share in expected.items():
        assert found[f"exact_match_{name}"] == pytest.approx(share)
    columns = {name for name in TASK.table_metrics if name.startswith("exact_match")}
    assert columns == found.keys() - {"token_accuracy"}


def test_alignment_accuracy_by_hand():
    # Backwards: the digits written stand at 4 3 2 1 and at 2 1 (counted from 1, as `looked` is).
    looked = np.array([[4, 4, 4, 3, 1], [2, 3, 0, 0, 0]])
    # Distances 0, 1, 2, 2; 0, 2. The step of the end token is excluded.
    assert alignment_accuracy(looked, DigitStrings(["1234", "56"])) == pytest.approx(3 / 6)
    # In order: at 1 2 3 4 and at 1 2.
    copied = DigitStrings(["1234", "56"], "copied_digits")
    assert alignment_accuracy(looked, copied) == pytest.approx(4 / 6)
    # Digits that were not decoded count as errors.
    looked = np.array([[4, 3, 0, 0, 0], [0, 0, 0, 0, 0]])
    assert alignment_accuracy(looked, DigitStrings(["1234", "56"])) == pytest.approx(2 / 6)


@pytest.mark.parametrize("alignment", ["dot", "multi_head(num_heads=2)", "none"])
def test_looked_is_where_the_most_weight_is(task, alignment):
    config = EncoderDecoderConfig(embedding_size=5, state_size=6, alignment=alignment)
    task = TASK(DATA, config, task.processor, task.dataset)
    model = task.build_model(nnx.Rngs(0))
    (batch,) = evaluation_batches(task.examples("test"), batch_size=20, buckets=[7])
    outputs = jax.device_get(nnx.jit(task.predict)(model, batch))
    if alignment == "none":
        assert outputs.keys() == {"tokens"}
        metrics = task.metrics({"tokens": 1, "loss": 1, "right": 1}, outputs, "test")
        assert "alignment_accuracy" not in metrics
        assert jax.device_get(nnx.jit(task.attention)(model, batch)) == {}
        (by_length,) = task.figures(SplitResults({}, outputs, "test"))
        assert isinstance(by_length, Curves)
        return
    weights = jax.device_get(nnx.jit(task.attention)(model, batch))["alignment"]
    weights = weights.mean(axis=2) if weights.ndim == 4 else weights
    for b, t in np.ndindex(20, 7):
        written = outputs["tokens"][b, t] != 0
        assert outputs["looked"][b, t] == (1 + np.argmax(weights[b, t]) if written else 0)
    metrics = task.metrics({"tokens": 1, "loss": 1, "right": 1}, outputs, "test")
    assert metrics["alignment_accuracy"] == alignment_accuracy(
        outputs["looked"], task.examples("test")
    )


@pytest.mark.slow
def test_padding_and_buckets_change_no_figure(task, model):
    statistics, outputs = nnx.jit(task.evaluate), nnx.jit(task.predict)
    found = []
    for batches in (
        batches_of(task, "validation", 9),
        batches_of(task, "validation", 4),
        list(evaluation_batches(task.examples("validation"), batch_size=5, buckets=[7])),
    ):
        total = jax.tree.map(
            lambda *parts: float(np.sum(parts)), *(statistics(model, batch)[0] for batch in batches)
        )
        gathered = gather((batch["id"], outputs(model, batch)) for batch in batches)
        found.append((task.metrics(total, gathered, "validation"), gathered))
    assert any((batch["weight"] == 0).any() for batch in batches_of(task, "validation", 4))
    for metrics, gathered in found[1:]:
        assert metrics == pytest.approx(found[0][0], rel=1e-5)
        np.testing.assert_array_equal(gathered["tokens"], found[0][1]["tokens"])


def test_loss_is_the_mean_over_real_tokens_of_rows_with_weight(task, model):
    (batch,) = evaluation_batches(task.examples("test"), batch_size=24, buckets=[7])
    assert (batch["weight"] == 0).sum() == 4
    calculate = nnx.jit(lambda model, batch: task.loss(model, batch, jax.random.key(0))[0])
    loss = calculate(model, batch)
    logits, _ = nnx.jit(EncoderDecoder.__call__)(
        model, batch["source"], batch["length"], batch["target"]
    )
    losses = np.asarray(
        optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(batch["target"]))
    )
    expected = []
    for row in range(20):
        expected.extend(losses[row, : batch["length"][row] + 1])
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)
    others = {**batch, "target": np.where(batch["weight"][:, None] > 0, batch["target"], 5)}
    assert float(calculate(model, others)) == float(loss)
    real = {name: value[:20] for name, value in batch.items()}
    slope = nnx.jit(nnx.grad(calculate))
    gradients = [slope(model, each) for each in (batch, real)]
    for left, right in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_correctness_has_the_primary_metric_as_its_mean(task):
    examples = task.examples("test")
    (batch,) = evaluation_batches(examples, batch_size=20, buckets=[7])
    tokens = batch["target"].copy()
    tokens[[2, 5], 0] = 4 + tokens[[2, 5], 0] % 5
    tokens = tokens[np.argsort(batch["id"])]
    correct = task.example_scores({"tokens": tokens}, "test")
    assert correct.sum() == 18
    metrics = task.metrics({"tokens": 10, "loss": 5.0, "right": 4.0}, {"tokens": tokens}, "test")
    assert metrics["exact_match"] == pytest.approx(correct.mean()) == pytest.approx(0.9)
    assert metrics["loss"] == 0.5
    assert metrics["forced_accuracy"] == 0.4


def test_figures_show_the_steps_that_were_written(task, model):
    (batch,) = evaluation_batches(task.examples("test"), batch_size=20, buckets=[7])
    attention = jax.device_get(nnx.jit(task.attention)(model, batch))
    assert attention["alignment"].shape == (20, 7, 7)
    tokens = np.asarray(nnx.jit(task.predict)(model, batch)["tokens"])
    shown = list(map(Shown, range(3)))
    results = SplitResults({}, {"tokens": tokens}, "test", shown, attention)
    by_length, *figures = task.figures(results)
    assert isinstance(by_length, Curves)
    ((lengths, shares),) = by_length.series.values()
    correct, digits = (
        task.example_scores({"tokens": tokens}, "test"),
        task.examples("test").lengths - 1,
    )
    assert lengths == sorted(set(digits))
    assert shares == [correct[digits == length].mean() for length in lengths]
    assert "exact match" in draw(by_length)
    assert len(figures) == 3
    for index, figure in enumerate(figures):
        assert isinstance(figure, Alignment)
        source = task.examples("test").strings[index]
        assert "".join(figure.inputs) == source
        assert figure.weights.shape == (len(figure.outputs), len(source))
        np.testing.assert_allclose(figure.weights.sum(axis=1), 1, atol=1e-5)
        start = f"test example {index}: {source} -> {decode(tokens[index])} ("
        assert figure.caption.startswith(start)


def test_figures_show_every_head(task):
    weights = np.zeros((1, 7, 2, 7))
    weights[0, :, 1, 1] = 1
    tokens = tokens_of(task.examples("test").answers, 7)
    results = SplitResults({}, {"tokens": tokens}, "test", [Shown(0)], {"alignment": weights})
    _, first, second = task.figures(results)
    source = task.examples("test").strings[0]
    assert first.caption == f"test example 0: {source} -> {source[::-1]} (right), head 1"
    assert second.caption.endswith("head 2")
    assert first.weights.shape == second.weights.shape == (len(source) + 1, len(source))
    assert (first.weights.sum(), second.weights.sum()) == (0, len(source) + 1)


def test_copying():
    data = DataConfig(**{**vars(DATA), "name": "copied_digits"})
    task = TASK.prepare(data, MODEL, None)
    examples = task.examples("test")
    right = tokens_of(examples.strings, 7)
    assert sequence_metrics(right, examples)["exact_match"] == 1
    assert set(task.baselines()) == {"reversed", "commonest_digit"}
    palindromes = np.mean([string == string[::-1] for string in examples.strings])
    assert task.baselines()["reversed"]()["exact_match"] == palindromes
    weights = {"alignment": np.zeros((1, 7, 7))}
    drawn = task.figures(SplitResults({}, {"tokens": right}, "test", [Shown(0)], weights))
    (caption,) = [figure.caption for figure in drawn if isinstance(figure, Alignment)]
    assert caption.endswith("(right)")


def test_baselines_by_hand(task):
    strings = task.examples("test").strings
    assert set(task.baselines()) == {"unreversed", "commonest_digit"}
    found = task.baselines()["unreversed"]()
    same = [
        sum(left == right for left, right in zip(string, string[::-1], strict=True)) + 1
        for string in strings
    ]
    assert found["token_accuracy"] == pytest.approx(sum(same) / sum(map(len, strings), 20))
    assert found["exact_match"] == np.mean([string == string[::-1] for string in strings])
    found = task.baselines()["commonest_digit"]()
    train = "".join(task.examples("train").strings)
    digit = max("0123456789", key=train.count)
    hits = sum(string.count(digit) for string in strings) + 20
    assert found["token_accuracy"] == pytest.approx(hits / sum(map(len, strings), 20))


def test_restored_it_answers_in_the_order_of_the_inputs(task, model):
    restored = TASK.restore(DATA, MODEL, task.assets())
    typed = ["314159", "27", "161"]
    write = nnx.jit(restored.predict)
    outputs = gather(
        (batch["id"], write(model, batch))
        for batch in evaluation_batches(
            restored.processor.encode(typed), batch_size=2, buckets=restored.buckets
        )
    )
    answers = restored.processor.decode(typed, outputs)
    assert [answer["input"] for answer in answers] == typed
    for answer, tokens in zip(answers, outputs["tokens"], strict=True):
        assert answer["text"] == answer["output"] == decode(tokens)
    with pytest.raises(UserError, match="has 7 digits"):
        restored.processor.encode(["1234567"])


def test_configs():
    assert load_file("configs/sequence_copy.py").model.alignment == "dot"
    assert load_file("configs/sequence_copy.py:none").name == "none"
    for alignment in registry.names("alignment"):
        config = load_file(f"configs/sequence_copy.py:{alignment}")
        assert (config.name, config.model.alignment) == (alignment, alignment)
        assert config.data.name == "reversed_digits"
    spec = "location_aware(width=5, cumulative=True)"
    for prefix, data in (("", "reversed_digits"), ("copied_digits,", "copied_digits")):
        config = load_file(f"configs/sequence_copy.py:{prefix}{spec}")
        assert (config.data.name, config.model.alignment) == (data, spec)
        assert config.name == "location_aware_width_5_cumulative_True"
    assert load_file("configs/sequence_copy.py:copied_digits").model.alignment == "dot"
    with pytest.raises(UserError, match=r"config: alignment: got 'dots', .* did you mean 'dot'"):
        load_file("configs/sequence_copy.py:dots")


def test_the_ablation_has_every_alignment_and_changes_nothing_else():
    found = resolve_ablation(load_ablation("configs/ablations/alignments.py"))
    assert set(found) == set(registry.names("alignment"))
    base = found["dot"]
    for name, config in found.items():
        assert config.model.alignment == name
        same = dataclasses.replace(config.model, alignment="dot")
        assert dataclasses.replace(config, name=base.name, model=same) == base
