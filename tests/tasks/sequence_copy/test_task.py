"""Sequence copy by the contract: hand-made outputs, and rows that count for nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from launch.engine.config import load_file
from launch.engine.evaluation import gather
from tasks.common.errors import UserError
from tasks.common.pipeline import evaluation_batches
from tasks.figures import Alignment
from tasks.sequence_copy.data import DataConfig, DigitStrings, decode
from tasks.sequence_copy.model import EncoderDecoder, EncoderDecoderConfig
from tasks.sequence_copy.task import TASK, match

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
    # Targets: 2 1 end | 5 4 3 end | 7 end. The second lacks the end sign, the third is right.
    tokens = np.array([[5, 4, 2, 0, 0], [8, 7, 6, 6, 0], [10, 2, 0, 0, 0]])
    found = match(tokens, examples)
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["token_accuracy"] == pytest.approx(8 / 9)
    # A token after the end sign is a mistake too.
    tokens[2, 2] = 5
    assert match(tokens, examples)["exact_match"] == pytest.approx(1 / 3)


def test_padding_and_buckets_change_no_figure(task, model):
    statistics, outputs = nnx.jit(task.batch_statistics), nnx.jit(task.outputs)
    found = []
    for batches in (
        batches_of(task, "validation", 9),
        batches_of(task, "validation", 4),
        list(evaluation_batches(task.examples("validation"), batch_size=5, buckets=[7])),
    ):
        total = jax.tree.map(
            lambda *parts: float(np.sum(parts)), *(statistics(model, batch) for batch in batches)
        )
        gathered = gather((batch["id"], outputs(model, batch)) for batch in batches)
        found.append((task.finalize(total, gathered, "validation"), gathered))
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
    correct = task.correctness({"tokens": tokens}, "test")
    assert correct.sum() == 18
    metrics = task.finalize({"tokens": 10, "loss": 5.0, "right": 4.0}, {"tokens": tokens}, "test")
    assert metrics["exact_match"] == pytest.approx(correct.mean()) == pytest.approx(0.9)
    assert metrics["loss"] == 0.5
    assert metrics["forced_accuracy"] == 0.4


def test_figures_show_the_steps_that_were_written(task, model):
    (batch,) = evaluation_batches(task.examples("test"), batch_size=20, buckets=[7])
    attention = jax.device_get(nnx.jit(task.attention)(model, batch))
    assert attention["alignment"].shape == (20, 7, 7)
    tokens = np.asarray(nnx.jit(task.outputs)(model, batch)["tokens"])
    figures = task.figures(
        {}, {"tokens": tokens}, "test", {"alignment": attention["alignment"][:3]}
    )
    assert len(figures) == 3
    for index, figure in enumerate(figures):
        assert isinstance(figure, Alignment)
        source = task.examples("test").strings[index]
        assert "".join(figure.inputs) == source
        assert figure.weights.shape == (len(figure.outputs), len(source))
        np.testing.assert_allclose(figure.weights.sum(axis=1), 1, atol=1e-5)
        assert figure.caption.startswith(f"{source} -> {decode(tokens[index])} (")


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
    write = nnx.jit(restored.outputs)
    outputs = gather(
        (batch["id"], write(model, batch))
        for batch in evaluation_batches(
            restored.inputs(typed), batch_size=2, buckets=restored.buckets
        )
    )
    answers = restored.describe(typed, outputs)
    assert [answer["input"] for answer in answers] == typed
    for answer, tokens in zip(answers, outputs["tokens"], strict=True):
        assert answer["text"] == answer["output"] == decode(tokens)
    with pytest.raises(UserError, match="has 7 digits"):
        restored.inputs(["1234567"])


def test_configs():
    assert load_file("configs/sequence_copy.py").model.alignment == "dot"
    assert load_file("configs/sequence_copy.py:none").name == "none"
    with pytest.raises(UserError, match="alignment must be one of dot"):
        load_file("configs/sequence_copy.py:dots")
