"""The compiled train step: number of traces, averages, padding rows."""

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from launch.engine import config as configs
from launch.engine import steps as engine
from tasks.common.text.tokenizer import TextConfig, Tokenizer
from tasks.text_classification.task import TextClassification, TextProcessor

TEXTS = ["a good film", "a bad film", "good good story", "bad plot"]


@pytest.fixture(scope="module")
def config():
    return configs.override(
        configs.load_file("configs/text_classification.py:sst2"),
        {
            "model.model_size": 8,
            "model.num_heads": 2,
            "model.feedforward_size": 16,
            "model.prior": "none",
            "data.text.max_length": 8,
            "training.batch_size": 4,
            "training.evaluation_batch_size": 4,
            "optimizer.average_decay": 0.5,
            "optimizer.schedule": "constant",
            "optimizer.warmup_steps": 0,
        },
    )


@pytest.fixture(scope="module")
def task(config):
    tokenizer = Tokenizer.fit(TEXTS, TextConfig(min_count=1, max_length=8))
    processor = TextProcessor(config.data, config.model, ["bad", "good"], [4, 8], tokenizer)
    return TextClassification(config.data, config.model, processor)


def batch(task, width, weight=(1, 1, 1, 1)):
    rows = task.processor.tokenizer.encode_batch(TEXTS)
    tokens = np.zeros((4, width), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return {
        "tokens": tokens,
        "length": np.array([len(ids) for ids in rows], np.int32),
        "label": np.array([1, 0, 1, 0], np.int32),
        "weight": np.array(weight, np.float32),
        "id": np.arange(4, dtype=np.int32),
    }


def test_one_trace_a_bucket(config, task, monkeypatch):
    """Traces each bucket's shape once, not at every step."""
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(task.loss, n=2)
    monkeypatch.setattr(task, "loss", counted)
    steps = engine.make_steps(task, config)
    state = steps.init()
    for _ in range(3):
        for width in (4, 8):
            state, _ = steps.train(state, steps.place(batch(task, width)))
    assert int(state["step"]) == 6


def test_average_of_the_weights_by_hand(config, task):
    steps = engine.make_steps(task, config)
    state = steps.init()
    average = np.asarray(state["average"]["classify"]["kernel"])
    for step in range(3):
        state, _ = steps.train(state, steps.place(batch(task, 4)))
        decay = min(0.5, (1 + step) / (10 + step))
        now = np.asarray(state["params"]["classify"]["kernel"])
        average = decay * average + (1 - decay) * now
    np.testing.assert_allclose(state["average"]["classify"]["kernel"], average, rtol=1e-5)


def test_rows_of_weight_zero_count_for_nothing(config, task):
    model = task.build_model(nnx.Rngs(0))
    kept, padded = batch(task, 4), batch(task, 4, weight=(1, 1, 0, 0))
    kept = {name: value[:2] for name, value in kept.items()}
    for key in (None,):
        expected, actual = (task.loss(model, rows, key) for rows in (kept, padded))
        np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
        np.testing.assert_allclose(actual[1]["accuracy"], expected[1]["accuracy"], rtol=1e-6)
    expected, actual = (task.evaluate(model, rows)[0] for rows in (kept, padded))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), actual, expected)
    assert int(actual["confusion"].sum()) == 2


def test_loss_is_cross_entropy(config, task):
    model = task.build_model(nnx.Rngs(0))
    rows = batch(task, 4)
    logits = np.asarray(model(rows["tokens"], rows["length"]), np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.mean(np.log(probabilities[np.arange(4), rows["label"]]))
    assert float(task.loss(model, rows, None)[0]) == pytest.approx(expected, rel=1e-5)
