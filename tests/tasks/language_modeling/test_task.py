"""Contract tests of language modeling, and user inputs."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from launch.engine.config import load_file, resolve, to_dict
from launch.engine.evaluation import gather
from launch.reporting.figures import draw
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import evaluation_batches, train_iterator
from tasks.common.decoding.generate import DecodingConfig
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import TextConfig
from tasks.figures import Shown, SplitResults
from tasks.language_modeling.data import DataConfig
from tasks.language_modeling.model import LanguageModelConfig
from tasks.language_modeling.task import TASK

WORDS = ["the", "a", "film", "plot", "is", "was", "very", "good", "bad", "dull", "funny", "warm"]
SMALL = {
    "model_size": 8,
    "num_layers": 1,
    "num_heads": 2,
    "feedforward_size": 8,
    "dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
}
KINDS = ("running", "texts", "masked", "pairs")


def text_file(folder):
    rng = np.random.default_rng(0)
    file = folder / "text.txt"
    lines = [" ".join(rng.choice(WORDS, rng.integers(2, 15))) + "." for _ in range(120)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return str(file)


def configs(kind, file):
    causal = kind in ("running", "texts")
    model = {
        "running": {"max_new_tokens": 9},
        "texts": {"max_new_tokens": 9, "decoding": DecodingConfig("sample", seed=3)},
        "masked": {"objective": "masked", "whole_words": True},
        "pairs": {"objective": "masked", "segments": 2, "next_sentence": True},
    }[kind]
    text = {
        "running": TextConfig(tokenizer="character", lower_case=False, min_count=1),
        "texts": TextConfig(tokenizer="bpe", vocabulary_size=280),
        "masked": TextConfig(tokenizer="wordpiece", vocabulary_size=99),
        "pairs": TextConfig(min_count=1),
    }[kind]
    data = DataConfig(train_file=file, lines=kind != "running", length=16, text=text)
    return data, LanguageModelConfig(**SMALL, max_length=16 if causal else 20, **model)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    file, tasks = text_file(folder), {}
    paths = Paths(folder / "data", folder / "cache")
    for kind in KINDS:
        task = TASK.prepare(*configs(kind, file), paths)
        tasks[kind] = (task, task.build_model(nnx.Rngs(0)))
    return tasks


@functools.cache
def compiled(task, model):
    """Returns the state of the model, and compiled functions of it and a batch."""
    graph, state = nnx.split(model)

    def run(function):
        return jax.jit(lambda state, batch: function(nnx.merge(graph, state), batch))

    return state, run(task.evaluate), run(task.predict)


def evaluated(task, model, split, size):
    total, pending = {}, []
    state, evaluate, _ = compiled(task, model)
    for batch in evaluation_batches(task.examples(split), batch_size=size, buckets=task.buckets):
        statistics, outputs = evaluate(state, batch)
        for name, value in statistics.items():
            total[name] = total.get(name, 0) + np.asarray(value, np.float64)
        pending.append((batch["id"], outputs))
    outputs = gather(pending)
    return task.metrics(total, outputs, split), outputs, total


def predicted(task, model, raw, size=2):
    state, _, run = compiled(task, model)
    examples = task.processor.encode(raw)
    batches = evaluation_batches(examples, batch_size=size, buckets=task.buckets)
    return task.processor.decode(raw, gather((b["id"], run(state, b)) for b in batches))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_figures_do_not_depend_on_the_batches(made, kind):
    task, model = made[kind]
    metrics, outputs, statistics = evaluated(task, model, "test", 7)
    other, _, _ = evaluated(task, model, "test", 16)
    assert metrics.keys() == other.keys()
    for name, value in metrics.items():
        assert other[name] == pytest.approx(value, rel=1e-5), name
    assert task.example_scores(outputs, "test").mean() == pytest.approx(metrics["loss"], rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert metrics["loss"] == pytest.approx(
        outputs["loss"].sum() / outputs["tokens"].sum(), rel=1e-5
    )
    assert statistics["tokens"] == outputs["tokens"].sum()
    assert ("bits_per_character" in metrics) == (kind in ("running", "texts"))
    assert ("next_sentence_accuracy" in metrics) == (kind == "pairs")


def test_sizes_of_pairs_are_those_of_the_texts(made):
    task, _ = made["pairs"]
    texts = task.examples("train").texts
    sizes = task.columns("train").sizes["tokens"]
    assert sizes.tolist() == [len(ids) for ids in texts]
    assert min(sizes) < max(sizes) < task.examples("train").lengths[0]


def test_loss_of_a_running_text_by_hand(made):
    """All ids but the first, each read from its own window."""
    task, model = made["running"]
    metrics, _, _ = evaluated(task, model, "test", 4)
    text = task.dataset.splits["test"][0]
    ids = task.processor.tokenizer.with_max_length(10**6).encode(text)
    forward = jax.jit(lambda tokens, lengths: model.logits(model(tokens, lengths)))
    losses = []
    for start in range(0, len(ids) - 1, 16):
        window = ids[start : start + 17]
        tokens = np.pad(window[:-1], (0, 17 - len(window)))[None]
        logits = forward(tokens, np.array([len(window) - 1]))[0, : len(window) - 1]
        losses.append(optax.softmax_cross_entropy_with_integer_labels(logits, window[1:]))
    losses = np.concatenate(losses)
    assert len(losses) == len(text) - 1
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert metrics["bits_per_character"] == pytest.approx(losses.mean() / math.log(2), rel=1e-5)


def test_loss_of_texts_counts_the_end(made):
    task, model = made["texts"]
    examples = task.examples("test")
    metrics, outputs, _ = evaluated(task, model, "test", 8)
    row = examples[0]
    forward = jax.jit(lambda tokens, lengths: model.logits(model(tokens, lengths)))
    logits = forward(row["tokens"][None], np.array([row["length"]]))[0]
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, row["targets"]).sum()
    assert outputs["loss"][0] == pytest.approx(float(expected), rel=1e-5)
    assert outputs["tokens"][0] == len(row["tokens"])
    nats = metrics["loss"] * outputs["tokens"].sum()
    characters = sum(map(len, task.dataset.splits["test"]))
    assert metrics["bits_per_character"] == pytest.approx(nats / math.log(2) / characters, rel=1e-5)


def test_evaluation_hides_the_same_each_time_and_training_does_not(made):
    task, model = made["masked"]
    batches = train_iterator(task.examples("train"), batch_size=8, seed=0, buckets=task.buckets)
    batch = {name: jnp.asarray(value) for name, value in next(batches).items()}
    outputs = jax.jit(lambda batch: task.evaluate(model, batch)[1])
    loss = jax.jit(lambda key: task.loss(model, batch, key)[0])
    order = np.random.default_rng(0).permutation(8)
    one, two = outputs(batch), outputs({name: value[order] for name, value in batch.items()})
    np.testing.assert_allclose(one["loss"][order], two["loss"], rtol=1e-5)
    losses = {float(loss(jax.random.key(seed))) for seed in (0, 0, 1)}
    assert len(losses) == 2


@pytest.mark.parametrize("kind", ["running", pytest.param("pairs", marks=pytest.mark.slow)])
def test_some_steps_learn_the_frequencies(made, kind):
    task, model = made[kind]
    graph, state = nnx.split(model)
    optimizer = optax.adam(3e-2)

    @jax.jit
    def step(state, moments, batch, key):
        def loss(state):
            return task.loss(nnx.merge(graph, state), batch, key)[0]

        value, gradient = jax.value_and_grad(loss)(state)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(state, updates), moments, value

    batches = train_iterator(task.examples("train"), batch_size=16, seed=0, buckets=[16])
    moments, losses = optimizer.init(state), []
    for number in range(30):
        batch = {name: jnp.asarray(value) for name, value in next(batches).items()}
        key = jax.random.fold_in(jax.random.key(0), number)
        state, moments, value = step(state, moments, batch, key)
        losses.append(float(value))
    assert np.mean(losses[-5:]) < losses[0] - 0.4


def test_baselines(made):
    found = {name: fit() for name, fit in made["running"][0].baselines().items()}
    assert found["kneser_ney_6"]["loss"] < found["unigram"]["loss"] - 0.5
    bits = found["unigram"]["loss"] / math.log(2)
    assert found["unigram"]["bits_per_character"] == pytest.approx(bits)
    found = {name: fit() for name, fit in made["masked"][0].baselines().items()}
    assert found.keys() == {"unigram"}
    assert 0 < found["unigram"]["accuracy"] < 0.5


@pytest.mark.parametrize("kind", ["running", "texts"])
def test_a_restored_task_encodes_alike(made, kind):
    task, _ = made[kind]
    again = TASK.restore(task.data, task.model, json.loads(json.dumps(task.assets())))
    assert (again.buckets, again.processor.begin) == (task.buckets, task.processor.begin)
    for found, expected in zip(
        *(x.processor.encode(["the", ""]) for x in (again, task)), strict=True
    ):
        np.testing.assert_array_equal(found["tokens"], expected["tokens"])


HOSTILE = ["", " \n", "half \ud83d", "the film " * 5000, "😀🎬", "我爱", "\x00", "the [MASK] film"]


@pytest.mark.parametrize("kind", ["running", "texts"])
def test_any_prompt_is_completed(made, kind):
    task, model = made[kind]
    answers = predicted(task, model, HOSTILE)
    for typed, answer in zip(HOSTILE, answers, strict=True):
        raw = typed.replace("\ud83d", "?")
        assert answer["text"] == raw + answer["completion"]
        assert answer["input"] == raw
    if kind == "running":
        known = set(task.dataset.splits["train"][0])
        for answer in answers:
            assert len(answer["completion"]) == 9
            assert set(answer["completion"]) <= known
    # The last words are what counts.
    end = ("the film " * 5000)[-task.model.max_length // 2 :]
    (long, short) = predicted(task, model, ["the film " * 5000, end]) if kind == "running" else "xx"
    assert long == short or long["completion"] == short["completion"]


@pytest.mark.parametrize("kind", ["masked", "pairs"])
def test_blanks_are_filled(made, kind):
    task, model = made[kind]
    raw = ["the film is [MASK].", "[MASK]", "a [MASK] plot, [MASK]!", "😀 [MASK] 我"]
    raw.append("the film " * 2500 + "[MASK]" + " was dull" * 2500)
    answers = predicted(task, model, raw)
    for text, answer in zip(raw, answers, strict=True):
        assert len(answer["blanks"]) == text.count("[MASK]")
        for words in answer["blanks"]:
            shares = [word["probability"] for word in words]
            assert len(words) == 5
            assert shares == sorted(shares, reverse=True)
            assert not {word["word"] for word in words} & {"[PAD]", "[UNK]", "[CLS]", "[MASK]"}
        assert "[MASK]" not in answer["filled"]
    assert answers[2]["text"].count(" | ") == 1
    best = answers[0]["blanks"][0][0]["word"]
    assert answers[0]["filled"] == f"the film is {best}."
    for text in ("", "no blank", "word " * 10_000, "😀"):
        with pytest.raises(
            UserError, match=r"has no \[MASK\]; write \[MASK\] in place of a missing"
        ) as caught:
            task.processor.encode([text])
        assert len(str(caught.value)) < 200


@pytest.mark.slow
def test_figures_are_drawn(made):
    for kind in KINDS:
        task, model = made[kind]
        batch = next(iter(evaluation_batches(task.examples("test"), batch_size=2, buckets=[16])))
        _, outputs, statistics = evaluated(task, model, "test", 16)
        order = np.argsort(batch["id"])
        attention = {
            name: np.asarray(value)[order] for name, value in task.attention(model, batch).items()
        }
        shown = list(map(Shown, range(2)))
        figures = task.figures(SplitResults(statistics, outputs, "test", shown, attention))
        assert len(figures) == 2
        for figure in figures:
            assert figure.weights.shape == (len(figure.outputs), len(figure.inputs))
            np.testing.assert_allclose(figure.weights.sum(axis=1), 1, rtol=1e-4)
        assert draw(figures[0])


def test_what_does_not_fit_together_is_one_line(tmp_path):
    data, model = configs("masked", text_file(tmp_path))
    short = dataclasses.replace(model, max_length=15)
    characters = dataclasses.replace(data, text=TextConfig(tokenizer="character"))
    for pair, message in (
        ((data, short), "config.model.max_length: got 15, expected at least"),
        ((characters, model), "config.model.whole_words: got True, but a character tokenizer"),
    ):
        with pytest.raises(UserError, match=message):
            TASK.prepare(*pair, Paths(tmp_path / "data", tmp_path / "cache"))


@pytest.mark.parametrize(
    ("argument", "data", "objective", "name"),
    [
        ("", "tiny_shakespeare", "causal", "causal"),
        (":tiny_shakespeare,modern", "tiny_shakespeare", "causal", "modern"),
        (":tiny_shakespeare,wide", "tiny_shakespeare", "causal", "wide"),
        (":tiny_shakespeare,long", "tiny_shakespeare", "causal", "long"),
        (":movie_reviews", "movie_reviews", "masked", "masked"),
        (":sst2,bert", "sst2", "masked", "bert"),
        (":path:some/my.txt", "own_my", "causal", "causal"),
        (":path:some/my.txt,masked", "own_my", "masked", "masked"),
    ],
)
def test_configs_resolve(argument, data, objective, name):
    config = load_file(f"configs/language_modeling.py{argument}")
    assert resolve(to_dict(config)) == config
    assert (config.data.name, config.model.objective, config.name) == (data, objective, name)


def test_the_default_is_the_published_budget():
    config = load_file("configs/language_modeling.py")
    model, training = config.model, config.training
    sizes = (model.num_layers, model.num_heads, model.model_size, config.data.length)
    assert sizes == (4, 4, 128, 64)
    assert (training.batch_size, training.steps) == (12, 2000)
    with pytest.raises(UserError, match="model: got 'gpt', expected one of causal"):
        load_file("configs/language_modeling.py:tiny_shakespeare,gpt")
