"""The task over words that are tones, which a small network can tell apart."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import soundfile
from flax import nnx

from configs.speech_recognition import get_config
from launch.engine import config as configs
from tasks.common.audio.files import to_pcm
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import Tokenizer
from tasks.speech_recognition.data import DataConfig, SpeechData, encoded
from tasks.speech_recognition.model import SpeechConfig, SpeechRecognizer, Subsampled
from tasks.speech_recognition.task import SpeechRecognition, _log_mel

RATE, HERTZ = 8000, {"low": 300, "mid": 900, "high": 2500}
TINY = {"model_size": 16, "num_layers": 1, "num_heads": 2, "feedforward_size": 16, "channels": 4}


def spoken(words, rng):
    parts = [np.zeros(400)]
    for word in words:
        t = np.arange(rng.integers(900, 1400)) / RATE
        parts += [0.3 * np.sin(2 * np.pi * HERTZ[word] * t), np.zeros(rng.integers(200, 500))]
    return to_pcm(np.concatenate(parts) + 0.01 * rng.normal(size=sum(map(len, parts))))


def tones(count, config, tokenizer=None, seed=0):
    rng = np.random.default_rng(seed)
    texts = [list(rng.choice(list(HERTZ), rng.integers(1, 4))) for _ in range(count)]
    sounds = [spoken(words, rng) for words in texts]
    texts = [" ".join(words) for words in texts]
    tokenizer = tokenizer or Tokenizer.fit(texts, config.text)
    return encoded(config, tokenizer, sounds, texts), tokenizer


def made(monkeypatch, model, data=None, count=40):
    data = data or DataConfig()
    train, tokenizer = tones(count, data)
    splits = {"train": train}
    for seed, split in enumerate(("validation", "test"), 1):
        splits[split] = tones(12, data, tokenizer, seed)[0]
    # Of test the last four are a second condition, in which nobody speaks.
    test = splits["test"]
    test.groups[8:] = 1
    test.texts[8:] = [""] * 4
    speech = SpeechData(splits, tokenizer, ("", "silence"))
    monkeypatch.setattr("tasks.speech_recognition.task.load", lambda config, paths: speech)
    return SpeechRecognition.prepare(data, model, Paths(None, None))


@pytest.fixture
def task(monkeypatch):
    config = get_config("pyramid,joint").model
    config.update(model_size=16, num_layers=2)
    config.transcriber.update(state_size=12, max_length=6)
    return made(monkeypatch, configs.resolve(_with(config)).model)


def _with(model):
    config = get_config("joint")
    config.model = model
    return config.to_dict()


def test_the_contract(task):
    model = task.build_model(nnx.Rngs(0))
    graph, state = nnx.split(model)
    outputs = jax.jit(lambda state, batch: task.outputs(nnx.merge(graph, state), batch))
    statistics = jax.jit(lambda state, batch: task.batch_statistics(nnx.merge(graph, state), batch))
    found, sums = {}, None
    longest = [task.buckets[-1]]
    for batch in evaluation_batches(task.examples("test"), batch_size=5, buckets=longest):
        result, part = outputs(state, batch), statistics(state, batch)
        sums = part if sums is None else jax.tree.map(np.add, sums, part)
        for row, number in enumerate(batch["id"]):
            if number >= 0:
                found[int(number)] = {name: np.asarray(x)[row] for name, x in result.items()}
    assert sorted(found) == list(range(12))
    gathered = {name: np.stack([found[i][name] for i in range(12)]) for name in found[0]}
    metrics = task.finalize(sums, gathered, "test")
    assert {"wer", "cer", "exact_match", "loss", "invention_rate", "skips"} <= set(metrics)
    np.testing.assert_allclose(task.correctness(gathered, "test").mean(), metrics["wer"], rtol=1e-6)
    assert np.isfinite(list(metrics.values())).all()
    # Alone, without padding by others, the same comes out.
    alone = task.examples("test")[3]
    batch = next(evaluation_batches(task.examples("test"), batch_size=5, buckets=longest))
    batch["length"][0] = alone["length"]
    for field in ("samples", "target"):
        batch[field][0] = 0
        batch[field][0, : len(alone[field])] = alone[field]
    again = outputs(state, batch)
    np.testing.assert_array_equal(again["tokens"][0], found[3]["tokens"])
    figures = task.figures(sums, gathered, "test", jax.device_get(task.attention(model, batch)))
    assert len(figures) == 5
    answers = task.describe(["a.wav"] * 12, gathered)
    assert len(answers) == 12
    assert json.dumps(answers[0])


def test_restored_from_assets_it_reads_files(task, tmp_path):
    assets = json.loads(json.dumps(task.assets()))
    again = SpeechRecognition.restore(task.data, task.model, assets)
    path = tmp_path / "Straße.wav"
    soundfile.write(path, np.zeros((500, 2)), 44100)
    clips = again.inputs([str(path)])
    assert clips[0]["length"] == pytest.approx(500 * RATE / 44100, abs=2)
    outputs, weights = {"tokens": np.array([[4, 6, 0, 0]])}, {"alignment": np.ones((1, 4, 9))}
    if task.writer.aligns:
        ((picture,),) = again.pictures([str(path)], outputs, weights)
        assert picture.weights.shape == (2, len(picture.inputs))
        assert picture.outputs[1] == "end"
        assert picture.over.shape[0] == task.data.features.bands
    else:
        with pytest.raises(UserError, match="--figures: CTC writes alone in this run"):
            again.pictures([str(path)], outputs, {})
    with pytest.raises(UserError, match=r"input '.*none.wav': .*: no such file; give the path"):
        again.inputs([str(tmp_path / "none.wav")])
    soundfile.write(path, np.zeros(61 * RATE), RATE)
    with pytest.raises(UserError, match=r"lasts 61.0 s, longer than"):
        again.inputs([str(path)])
    assert again.settings == {"held_out": "george"}
    single = dataclasses.replace(task.data, name="spoken_digits", held_out="official")
    leaking = SpeechRecognition.restore(single, task.model, assets)
    assert leaking.settings == {"speakers": "in_train"}


def test_what_a_microphone_adds_changes_nothing(task):
    clip = task.examples("test")[0]
    samples = clip["samples"][None].astype(np.float32) / 32768
    noise = 1e-2 * np.random.default_rng(0).normal(size=samples.shape).astype(np.float32)
    lengths = clip["length"][None]
    features, _ = task._features(samples + noise, lengths)
    louder, _ = task._features(3 * (samples + noise), lengths)
    np.testing.assert_allclose(louder, features, atol=1e-3)


def test_what_is_far_below_the_loudest_is_alike(monkeypatch):
    rng = np.random.default_rng(0)
    tone = 0.3 * np.sin(2 * np.pi * 900 * np.arange(4000) / RATE)
    clip = np.concatenate([np.zeros(2000), tone, np.zeros(2000)])[None].astype(np.float32)
    # A floor 60 decibels below the tone.
    noisy = (clip + 3e-4 * rng.normal(size=clip.shape)).astype(np.float32)
    lengths, changed = np.array([8000]), {}
    for decibels in (0.0, 30.0):
        task = made(monkeypatch, SpeechConfig(**TINY), DataConfig(dynamic_range=decibels))
        quiet, loud = (_log_mel(samples, lengths, task.data)[0] for samples in (clip, noisy))
        changed[decibels] = float(abs(quiet - loud).max())
    assert changed[0.0] > 1.0
    assert changed[30.0] < 0.05


def test_a_chunked_encoder_cannot_have_normalised_clips(monkeypatch):
    with pytest.raises(UserError, match=r"config.data.normalised: with config.model.chunk"):
        made(monkeypatch, SpeechConfig(**TINY, chunk=4))


def test_texts_longer_than_what_is_written_are_named(monkeypatch):
    model = SpeechConfig(**TINY)
    short = {"transcriber": type(model.transcriber)(max_length=2)}
    with pytest.raises(UserError, match="max_length: got 2, expected at least 3"):
        made(monkeypatch, SpeechConfig(**TINY, **short))


def test_chunks_hide_what_comes_later():
    config = SpeechConfig(encoder="conformer", width=3, chunk=2, left_chunks=1, **TINY)
    encoder = Subsampled(config, 8, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 40, 8))
    valid = np.ones((1, 40), bool)
    compute = jax.jit(lambda x: encoder(x, valid, None).memory)
    # Ten frames after the convolutions; the last chunk is frames 8 and 9.
    first, changed = compute(x), compute(x.at[:, 34:].multiply(-1))
    np.testing.assert_allclose(first[:, :8], changed[:, :8], atol=1e-5)
    assert not np.allclose(first[:, 8:], changed[:, 8:], atol=1e-3)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"encoder": "cnn"}, "encoder: got 'cnn', expected one of 'pyramid'"),
        ({"width": 4}, "width: got 4, expected an odd number"),
        ({"encoder": "pyramid", "chunk": 4}, "chunk: got 4, expected 0 for a pyramid"),
        ({"model_size": 0}, "model_size: got 0"),
        ({"chunk": -1}, "chunk: got -1"),
    ],
)
def test_configs_that_make_no_sense_are_named(changed, said):
    with pytest.raises(ValueError, match=said):
        SpeechConfig(**changed)


@pytest.mark.parametrize(
    "argument",
    ["spoken_digits,conformer,ctc", "pyramid,additive", "prompts_en", "transformer,none",
     "spoken_digit_strings,transformer_decoder", "multi_head(num_heads=4)"],
)  # fmt: skip
def test_every_kind_of_config_resolves(argument):
    config = configs.resolve(get_config(argument).to_dict())
    assert isinstance(config.model, SpeechConfig)
    assert "(" not in config.name


def test_a_wrong_config_is_named():
    with pytest.raises(UserError, match=r"config: .*'nowhere'.*WRITER joint, ctc"):
        get_config("spoken_digits,nowhere")


@pytest.mark.slow
def test_tones_are_learned(monkeypatch):
    import optax

    model = SpeechConfig(**TINY | {"num_layers": 2, "model_size": 32})
    task = made(monkeypatch, model, count=200)
    network: SpeechRecognizer = task.build_model(nnx.Rngs(0))
    graph, state = nnx.split(network, nnx.Param)[0], nnx.state(network, nnx.Param)
    tx = optax.adam(3e-3)
    memory = tx.init(state)

    @jax.jit
    def step(state, memory, batch, key):
        def loss(state):
            return task.loss(nnx.merge(graph, state), batch, key)[0]

        value, gradient = jax.value_and_grad(loss)(state)
        update, memory = tx.update(gradient, memory, state)
        return optax.apply_updates(state, update), memory, value

    longest = [task.buckets[-1]]
    batches = list(evaluation_batches(task.examples("train"), batch_size=20, buckets=longest))
    for number in range(300):
        key = jax.random.key(number)
        state, memory, value = step(state, memory, batches[number % len(batches)], key)
    assert value < 0.8
    outputs = jax.jit(lambda state, batch: task.outputs(nnx.merge(graph, state), batch))
    batch = next(evaluation_batches(task.examples("test"), batch_size=20, buckets=longest))
    rows = np.argsort(batch["id"][:12])
    written = {name: np.asarray(x)[:12][rows] for name, x in outputs(state, batch).items()}
    assert task.correctness(written, "test").mean() < 0.1
