"""Translation by the contract, on a toy language whose words are those of English backwards."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attention import registry
from launch.engine.config import experiment, load_file, resolve
from launch.engine.evaluation import gather, prediction_inputs
from launch.reporting.figures import draw
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.decoding.generate import DecodingConfig
from tasks.common.errors import UserError
from tasks.common.losses import divergence_of_passes
from tasks.common.metrics.translation import bleu_signature
from tasks.common.text.tokenizer import TextConfig
from tasks.figures import Alignment, Curves, Shown, SplitResults, Transcript
from tasks.translation.baselines import lexicon
from tasks.translation.data import DataConfig
from tasks.translation.model import RecurrentConfig, TransformerConfig
from tasks.translation.processor import TranslationProcessor
from tasks.translation.task import TASK

WORDS = ["tree", "stone", "water", "light", "house", "river", "cloud", "north", "bread", "glass"]
TEXT = TextConfig(tokenizer="bpe", vocabulary_size=500, max_length=12)
MODEL = RecurrentConfig(
    embedding_size=5,
    state_size=6,
    label_smoothing=0.2,
    decoding=DecodingConfig(method="beam", beam_size=2, n_best=2),
)


def sentences(n, seed):
    random = np.random.default_rng(seed)
    rows = [random.choice(WORDS, random.integers(1, 8)) for _ in range(n)]
    sources = [" ".join(row).capitalize() + "." for row in rows]
    targets = [" ".join(word[::-1] for word in row).capitalize() + "." for row in rows]
    return sources, targets


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    for seed, (split, n) in enumerate((("train", 60), ("validation", 9), ("test", 20))):
        for language, lines in zip(("en", "ne"), sentences(n, seed), strict=True):
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n")
    return DataConfig(path=str(folder), source="en", target="ne", text=TEXT)


@pytest.fixture(scope="module")
def task(data, tmp_path_factory):
    return TASK.prepare(data, MODEL, Paths(*[tmp_path_factory.mktemp("paths")] * 3))


@pytest.fixture(scope="module")
def model(task):
    return task.build_model(nnx.Rngs(0))


@pytest.fixture(scope="module")
def predict(task):
    """Computes `predict` of the arrays of the signature, compiled once per shape."""
    compiled = nnx.jit(task.predict)
    return lambda model, batch: compiled(model, prediction_inputs(task, batch))


def batches_of(task, split, size, buckets=None):
    return list(
        evaluation_batches(task.examples(split), batch_size=size, buckets=buckets or task.buckets)
    )


def as_outputs(task, texts):
    """Returns the outputs of a model that decodes these texts."""
    rows = [
        np.append(ids, task.processor.tokenizer.size + 1)
        for ids in task.processor.tokenizer.encode_batch(texts)
    ]
    tokens = np.zeros((len(rows), 1, max(map(len, rows))), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[0, : len(ids)] = ids
    return {"tokens": tokens, "scores": np.zeros((len(rows), 1), np.float32)}


def with_configs(task, data, model):
    """Returns the same data and tokenizer under other configs."""
    processor = TranslationProcessor(data, model, task.processor.tokenizer, [])
    return TASK(data, model, processor, task.dataset)


STATISTICS = {"loss": 6.0, "right": 3.0, "tokens": 4.0}


def test_one_vocabulary_for_both_languages(task):
    for text in ("stone water", "enots retaw"):
        (ids,) = task.processor.tokenizer.encode_batch([text])
        assert len(ids) <= 4
        assert task.processor.tokenizer.decode(ids) == text


def test_long_pairs_are_left_out_of_train_and_cut_elsewhere(task, data):
    short = dataclasses.replace(data, text=dataclasses.replace(TEXT, max_length=4))
    cut = with_configs(task, short, MODEL)
    lengths = task.examples("train").lengths
    fits = (lengths["source"] <= 5) & (lengths["target"] <= 5)
    assert 0 < len(cut.examples("train")) == fits.sum() < 60
    summary = {split: counts.note.split("; ")[0] for split, counts in cut.summary().items()}
    assert summary["train"] == f"{60 - fits.sum()} pairs over max_length=4 are left out"
    assert summary["test"].endswith("pairs over max_length=4 are truncated")
    assert not any("max_length" in task.summary()[split].note for split in summary)
    for split, n in (("validation", 9), ("test", 20)):
        assert len(cut.examples(split)) == n
        for name, values in task.examples(split).lengths.items():
            np.testing.assert_array_equal(cut.examples(split).lengths[name], np.minimum(values, 5))
    tiny = dataclasses.replace(data, text=dataclasses.replace(TEXT, max_length=1))
    tiny = with_configs(task, tiny, MODEL)
    with pytest.raises(UserError, match="max_length: got 1, but the source or the target of every"):
        tiny.examples("train")


def test_buckets_hold_every_sentence(task):
    assert task.buckets == [{"source": 8, "target": 8}, {"source": 13, "target": 13}]
    restored = TASK.restore(task.data, MODEL, task.assets())
    assert restored.buckets == task.buckets
    longest = restored.processor.encode(["stone" + " stone" * 11])
    assert longest.lengths["source"].tolist() == [13]


def test_loss_is_the_mean_over_real_tokens_of_rows_with_weight(task, model):
    (batch,) = batches_of(task, "test", 24, [task.buckets[-1]])
    assert (batch["weight"] == 0).sum() == 4
    calculate = nnx.jit(lambda model, batch: task.loss(model, batch, jax.random.key(0)))
    undropped = with_configs(task, task.data, dataclasses.replace(MODEL, dropout_rate=0.0))
    model = undropped.build_model(nnx.Rngs(0))
    loss, metrics = calculate(model, batch)
    target = batch["target"]
    logits = nnx.jit(lambda model: model(batch["source"], target))(model)
    size = logits.shape[-1]
    smoothed = optax.smooth_labels(jax.nn.one_hot(target, size), 0.2)
    losses = np.asarray(optax.softmax_cross_entropy(logits, smoothed))
    plain = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, target))
    real = (target > 0) & (batch["weight"][:, None] > 0)
    assert float(loss) == pytest.approx(losses[real].mean(), rel=1e-5)
    assert float(metrics["cross_entropy"]) == pytest.approx(plain[real].mean(), rel=1e-5)
    statistics = nnx.jit(task.evaluate)(model, batch)[0]
    assert float(statistics["tokens"]) == real.sum()
    assert float(statistics["loss"]) == pytest.approx(plain[real].sum(), rel=1e-5)
    right = np.asarray(jnp.argmax(logits, axis=-1)) == target
    assert float(statistics["right"]) == right[real].sum()
    others = {**batch, "target": np.where(batch["weight"][:, None] > 0, target, 5)}
    assert float(calculate(model, others)[0]) == pytest.approx(float(loss), rel=1e-6)


@pytest.mark.slow
def test_r_drop_adds_the_divergence_of_two_passes(task, data, model):
    """Rows of weight 0 count nowhere."""
    r_drop = with_configs(task, data, dataclasses.replace(MODEL, r_drop=3.0))
    batch = batches_of(task, "test", 24, [task.buckets[-1]])[0]
    loss, metrics = nnx.jit(lambda model: r_drop.loss(model, batch, jax.random.key(0)))(model)
    twice = {key: np.repeat(batch[key], 2, axis=0) for key in ("source", "target", "weight")}
    mean, _ = nnx.jit(lambda model: task.loss(model, twice, jax.random.key(0)))(model)
    np.testing.assert_allclose(loss, mean + 1.5 * metrics["divergence"], rtol=1e-5)

    @nnx.jit
    def divergences(model):
        logits = model(twice["source"], twice["target"], dropout_key=jax.random.key(0))
        return divergence_of_passes(logits)

    real = (batch["target"] > 0) & (batch["weight"][:, None] > 0)
    expected = np.asarray(divergences(model))[real].mean()
    assert expected > 0
    np.testing.assert_allclose(metrics["divergence"], expected, rtol=1e-4)
    _, metrics = nnx.jit(lambda model: r_drop.loss(model, batch, None))(model)
    assert metrics["divergence"] == 0


def test_padding_and_buckets_change_no_metric(task, model, predict):
    evaluate = nnx.jit(task.evaluate)
    found = []
    for batches in (batches_of(task, "test", 6), batches_of(task, "test", 20, [13])):
        total = jax.tree.map(
            lambda *parts: float(np.sum(parts)), *(evaluate(model, batch)[0] for batch in batches)
        )
        gathered = gather((batch["id"], predict(model, batch)) for batch in batches)
        found.append((task.metrics(total, gathered, "test"), gathered["tokens"]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert found[0][1].shape == (20, 2, 13)


def test_validation_is_decoded_greedily(task, model):
    predict = nnx.jit(functools.partial(task.predict, fast=True))
    (batch,) = batches_of(task, "validation", 9, [13])
    tokens = predict(model, batch)["tokens"]
    assert tokens.shape == (9, 1, 13)
    expected = nnx.jit(
        lambda model: model.translate(batch["source"], config=DecodingConfig(), max_length=13)
    )(model)
    np.testing.assert_array_equal(tokens, expected.tokens)


@pytest.mark.parametrize("lower_case", [True, False])
def test_metrics_of_the_right_translations(task, data, lower_case):
    text = dataclasses.replace(TEXT, lower_case=lower_case)
    task = with_configs(task, dataclasses.replace(data, text=text), MODEL)
    found = task.metrics(STATISTICS, as_outputs(task, task.dataset.splits["test"].targets), "test")
    assert found["bleu4_lowercase_tokenized"] == pytest.approx(100)
    # The encoder of this test writes lower case: where case counts, that is wrong.
    assert (found["bleu"] == pytest.approx(100)) == lower_case
    assert (found["loss"], found["forced_accuracy"]) == (1.5, 0.75)
    assert set(TASK.table_metrics) <= set(found)


def test_the_mean_example_score_is_the_primary_metric(task):
    texts = list(task.dataset.splits["test"].targets)
    texts[3], texts[8] = "retaw enots.", ""
    outputs = as_outputs(task, texts)
    correct = task.example_scores(outputs, "test")
    primary = task.metrics(STATISTICS, outputs, "test")[TASK.primary_metric]
    assert correct.mean() == pytest.approx(primary, rel=1e-5)
    assert primary < 99
    assert set(np.argsort(correct)[:2]) == {3, 8}


def test_figures_show_the_decoding_steps(task, model, predict):
    batch = batches_of(task, "test", 20, [13])[0]
    outputs = jax.device_get(predict(model, batch))
    weights = jax.device_get(nnx.jit(task.attention)(model, batch))["alignment"]
    assert weights.shape == (20, 13, 13)
    shown = [Shown(index, "wrong") for index in range(3)]
    results = SplitResults({}, outputs, "test", shown, {"alignment": weights[:3]})
    by_length, *figures = task.figures(results)
    assert isinstance(by_length, Curves)
    assert by_length.title == f"BLEU by length\n{bleu_signature(True, short=True)}"
    assert "BLEU by length" in draw(by_length)
    assert len(figures) == 6
    for index, (texts, figure) in enumerate(zip(figures[::2], figures[1::2], strict=True)):
        assert isinstance(texts, Transcript)
        assert texts.caption == f"wrong: test example {index}"
        assert texts.source == task.dataset.splits["test"].sources[index]
        assert isinstance(figure, Alignment)
        assert (figure.inputs[-1], figure.outputs[-1]) == ("end", "end")
        assert figure.weights.shape == (len(figure.outputs), len(figure.inputs))
        np.testing.assert_allclose(figure.weights.sum(axis=1), 1, atol=1e-5)
        assert len(figure.inputs) == task.examples("test").lengths["source"][index]
        assert figure.caption == f"attention of test example {index}"
    (alone,) = task.input_figures(
        task.dataset.splits["test"].sources[:1], outputs, {"alignment": weights[:1]}
    )
    assert alone[0].caption.startswith(task.dataset.splits["test"].sources[0] + "\n")


def test_figures_of_layers_and_heads(task):
    outputs = as_outputs(task, task.dataset.splits["test"].targets)
    T = outputs["tokens"].shape[2]
    weights = np.zeros((1, T, 3, 2, 13))
    weights[0, :, 1, :, 0] = 1
    results = SplitResults({}, outputs, "test", [Shown(0)], {"alignment": weights})
    *_, figure = task.figures(results)
    assert figure.caption.endswith(" (layer 2 of 3, mean of 2 heads)")
    np.testing.assert_array_equal(figure.weights[:, 0], 1)
    results = dataclasses.replace(results, attention={"alignment": weights[:, :, 1]})
    *_, figure = task.figures(results)
    assert figure.caption.endswith(" (mean of 2 heads)")
    assert len(task.figures(SplitResults({}, outputs, "test"))) == 1


def test_pictures_of_any_text():
    words = ["$x^{", "$5", "😀", "", "a long word"]
    html = draw(Alignment("costs $5 and $6\n$\\frac{$ 😀 " + "word " * 60, np.eye(5), words, words))
    assert "<figcaption dir='auto'>costs $5 and $6\n$\\frac{$ 😀 word" in html
    assert 'src="data:image/svg+xml;base64,' in html


def test_the_control_has_no_weights_to_show(task):
    control = with_configs(task, task.data, dataclasses.replace(MODEL, alignment="none"))
    assert control.attention(None, {}) == {}


def test_a_lexicon_by_expectation_maximisation():
    translate = lexicon(
        ["the house", "the book", "a book", "the House"],
        ["das Haus", "das Buch", "ein Buch", "das Haus"],
    )
    assert translate(["The book, a house.", "", "unknown"]) == [
        "das buch, ein haus.",
        "",
        "unknown",
    ]


def test_baselines(task):
    found = {name: fit() for name, fit in task.baselines().items()}
    assert set(found) == {"copy", "lexicon"}
    assert found["lexicon"]["bleu"] > 90 > 20 > found["copy"]["bleu"]
    assert found["copy"]["length_ratio"] == 1


def answers(task, model, predict, raw):
    batches = evaluation_batches(task.processor.encode(raw), batch_size=6, buckets=task.buckets)
    outputs = gather((batch["id"], predict(model, batch)) for batch in batches)
    return task.processor.decode(raw, outputs)


def test_restored_it_answers_in_the_order_of_the_inputs(task, model, predict):
    restored = TASK.restore(task.data, MODEL, task.assets())
    typed = ["Stone tree.", "", "😀 \udcff", "water", " \t", "river \x00 nile"]
    found = answers(restored, model, predict, typed)
    assert [answer["input"] for answer in found] == typed
    for index in (1, 4):
        assert found[index] == {"input": typed[index], "output": "", "score": 0.0, "text": ""}
    again = answers(restored, model, predict, typed[::-1])
    assert again[::-1] == found
    ranked = found[0]["n_best"]
    assert ranked[0] == {"output": found[0]["output"], "score": found[0]["score"]}
    assert ranked[0]["score"] >= ranked[1]["score"]
    assert found[0]["text"].count("\n") == 1
    with pytest.raises(
        UserError, match=r"input 'word word .*\.\.\.': got .* tokens, expected at most 12"
    ):
        restored.processor.encode(["water", "word " * 10_000])


def test_a_model_shorter_than_the_sentences_is_refused(data):
    with pytest.raises(UserError, match=r"model\.max_length: got 12, expected at least 13"):
        TASK.prepare(data, TransformerConfig(max_length=12), None)


def test_configs():
    config = load_file("configs/translation.py")
    assert (config.data.name, config.data.source, config.data.target) == ("multi30k", "en", "de")
    assert (config.name, config.model.name) == ("transformer", "transformer")
    assert config.model.decoding == DecodingConfig(method="beam", beam_size=5)
    assert load_file("configs/translation.py:long").model.norm == "post"
    config = load_file("configs/translation.py:bible_en_es,rnn")
    assert (config.data.name, config.data.source, config.data.target) == ("bible_en_es", "en", "es")
    assert load_file("configs/translation.py:multi30k,rnn").model.alignment == "additive"
    for alignment in registry.names("alignment"):
        config = load_file(f"configs/translation.py:multi30k,rnn({alignment})")
        assert (config.name, config.model.alignment) == (f"rnn_{alignment}", alignment)
    config = load_file("configs/translation.py:rnn(location_aware(width=5, cumulative=True))")
    assert config.model.alignment == "location_aware(width=5, cumulative=True)"
    assert config.name == "rnn_location_aware_width_5_cumulative_True"
    with pytest.raises(UserError, match=r"config: alignment: got 'dots', .* did you mean 'dot'"):
        load_file("configs/translation.py:rnn(dots)")
    with pytest.raises(
        UserError, match="config: model: got 'transfomer', expected MODEL or DATA,MODEL"
    ):
        load_file("configs/translation.py:multi30k,transfomer")


def test_a_config_survives_its_json():
    config = experiment(
        task="translation", name="x", data=DataConfig(), model=TransformerConfig()
    ).to_dict()
    assert resolve(config).model == TransformerConfig()
    config["model"]["decoding"]["beam_size"] = 0
    with pytest.raises(UserError, match=r"config\.model\.decoding\.beam_size: got 0"):
        resolve(config)


def test_lost_capitals_are_counted(task, data):
    _, targets = sentences(20, 2)
    words = " ".join(targets).split()
    share = sum(word[0].isupper() for word in words) / len(words)
    note = f"{share:.0%} of the target words lose their capitals (config.data.text.lower_case)"
    assert note in task.summary()["test"].note
    found = task._score([text.lower() for text in targets], "test")
    assert found["bleu"] == pytest.approx(100)
    assert found["cased_bleu"] < 100
    assert task._score(targets, "test")["cased_bleu"] == pytest.approx(100)
    text = dataclasses.replace(TEXT, lower_case=False)
    cased = TASK.prepare(dataclasses.replace(data, text=text), MODEL, Paths(*[data.path] * 3))
    assert cased.summary()["test"].note == ""
    assert "cased_bleu" not in cased._score(targets, "test")
    assert (
        cased.processor.tokenizer.decode(cased.processor.tokenizer.encode_batch([targets[0]])[0])
        == targets[0]
    )


@pytest.mark.parametrize("form", ["two files", "folder", "table"])
def test_labeled_pairs_are_two_files_a_folder_or_a_table(task, tmp_path, form):
    sources, targets = sentences(7, 9)
    given = str(tmp_path)
    if form == "table":
        given = str(tmp_path / "pairs.csv")
        rows = "".join(f'"{x}";"{y}"\n' for x, y in zip(sources, targets, strict=True))
        (tmp_path / "pairs.csv").write_text(f"en;ne\n{rows}")
    else:
        for language, lines in (("en", sources), ("ne", targets)):
            (tmp_path / f"test.{language}").write_text("\n".join(lines) + "\n")
    if form == "two files":
        given = f"{tmp_path}/test.en,{tmp_path}/test.ne"
    part = task.with_file(given).dataset.splits["test"]
    assert (part.sources, part.targets) == (sources, targets)
    with pytest.raises(UserError, match="two files separated by a comma"):
        task.with_file(f"{tmp_path}/test.en" if form != "table" else f"{tmp_path}/x.txt")
