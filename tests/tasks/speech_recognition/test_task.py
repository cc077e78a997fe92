"""The task over words that are tones, which a small network can tell apart."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import soundfile
from flax import nnx

from attention import masks
from configs.speech_recognition import get_config
from launch.engine import config as configs
from launch.engine.evaluation import gather
from tasks.common.audio.augmentation import SoundAugmentation
from tasks.common.audio.files import to_pcm
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.errors import UserError
from tasks.common.losses import repeat_examples
from tasks.common.text.tokenizer import Tokenizer
from tasks.figures import Alignment, Shown, SplitResults, Transcript
from tasks.speech_recognition.data import DataConfig, SpeechData, encoded
from tasks.speech_recognition.model import (
    ChunkTerm,
    SpeechConfig,
    SpeechRecognizer,
    Subsampled,
)
from tasks.speech_recognition.processor import normalized_log_mel
from tasks.speech_recognition.task import SpeechRecognition

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


def made(model, data=None, count=40):
    data = data or DataConfig()
    train, tokenizer = tones(count, data)
    splits = {"train": train}
    for seed, split in enumerate(("validation", "test"), 1):
        splits[split] = tones(12, data, tokenizer, seed)[0]
    # The last four test examples are a second condition, without speech.
    test = splits["test"]
    test.groups[8:] = 1
    test.texts[8:] = [""] * 4
    speech = SpeechData(splits, tokenizer, ("", "silence"))
    processor = SpeechRecognition.fit(speech, data, model, None)
    return SpeechRecognition(data, model, processor, speech)


@pytest.fixture(scope="module")
def task():
    config = get_config("pyramid,joint")
    config.model.update(model_size=16, num_layers=2)
    config.model.transcriber.update(state_size=12, max_length=6)
    return made(configs.resolve(config.to_dict()).model)


def test_metrics_of_conditions_and_an_example_alone(task):
    graph, state = nnx.split(task.build_model(nnx.Rngs(0)))

    @jax.jit
    def compute(state, batch):
        model = nnx.merge(graph, state)
        return task.evaluate(model, batch)[0], task.predict(model, batch)

    longest = [task.buckets[-1]]
    batches = list(evaluation_batches(task.examples("test"), batch_size=5, buckets=longest))
    found = [compute(state, batch) for batch in batches]
    sums = jax.tree.map(lambda *parts: np.sum(parts), *(part for part, _ in found))
    pairs = zip(batches, found, strict=True)
    outputs = gather((batch["id"], part) for batch, (_, part) in pairs)
    assert len(outputs["tokens"]) == 12
    metrics = task.metrics(sums, outputs, "test")
    assert {"wer", "cer", "exact_match", "loss", "hallucination_rate", "skips"} <= set(metrics)
    scores = task.example_scores(outputs, "test")
    np.testing.assert_allclose(scores.mean(), metrics["wer"], rtol=1e-6)
    assert np.isfinite(list(metrics.values())).all()
    # The values of padding change nothing.
    batch, alone = batches[0], task.examples("test")[3]
    batch["length"][0] = alone["length"]
    for field in ("samples", "target"):
        batch[field][0] = 0
        batch[field][0, : len(alone[field])] = alone[field]
    again = compute(state, batch)[1]
    np.testing.assert_array_equal(again["tokens"][0], outputs["tokens"][3])
    weights = {"alignment": np.ones((5, 7, 20))}
    results = SplitResults(sums, outputs, "test", list(map(Shown, range(5))), weights)
    assert [type(figure) for figure in task.figures(results)] == [Transcript, Alignment] * 5


def test_restored_from_assets_it_reads_files(task, tmp_path):
    assets = json.loads(json.dumps(task.assets()))
    again = SpeechRecognition.restore(task.data, task.model, assets)
    path = tmp_path / "Straße.wav"
    soundfile.write(path, np.zeros((500, 2)), 44100)
    clips = again.processor.encode([str(path)])
    assert clips[0]["length"] == pytest.approx(500 * RATE / 44100, abs=2)
    outputs, weights = {"tokens": np.array([[4, 6, 0, 0]])}, {"alignment": np.ones((1, 4, 9))}
    ((figure,),) = again.input_figures([str(path)], outputs, weights)
    assert figure.weights.shape == (2, len(figure.inputs))
    assert figure.outputs[1] == "end"
    assert figure.over.shape[0] == task.data.features.bands
    alone = dataclasses.replace(task.decoder_config, decoder="none", ctc_weight=1.0)
    alone = dataclasses.replace(task.model, transcriber=alone)
    with pytest.raises(UserError, match="--figures: this run has only a CTC output"):
        SpeechRecognition.restore(task.data, alone, assets).input_figures([str(path)], outputs, {})
    with pytest.raises(UserError, match=r"input '.*none.wav': .*: no such file; give the path"):
        again.processor.encode([str(tmp_path / "none.wav")])
    soundfile.write(path, np.zeros(61 * RATE), RATE)
    with pytest.raises(UserError, match=r"got 61.0 s, expected at most"):
        again.processor.encode([str(path)])
    assert again.settings == {"held_out": "george"}
    single = dataclasses.replace(task.data, name="spoken_digits", held_out="official")
    leaking = SpeechRecognition.restore(single, task.model, assets)
    assert leaking.settings == {"speakers": "in_train"}


def test_passes_over_a_clip_have_the_same_frames_and_other_features(task):
    """The loss is the mean of both passes plus the divergence; padding rows have no effect."""
    augmentation = SoundAugmentation(speed=0.2, warp=0.15, time_masks=1, noise=(0.0, 30.0))
    transcriber = dataclasses.replace(task.model.transcriber, consistency=0.4)
    model_config = dataclasses.replace(task.model, transcriber=transcriber, dropout_rate=0.0)
    changed = made(model_config, DataConfig(augmentation=augmentation))
    batch = dict(next(iter(evaluation_batches(changed.examples("test"), batch_size=16))))
    assert (batch["weight"] == 0).sum() == 4
    twice = repeat_examples({key: jax.numpy.asarray(value) for key, value in batch.items()})
    model = changed.build_model(nnx.Rngs(0))
    found = nnx.jit(lambda model: changed.encode(model, twice, jax.random.key(0)))(model)
    valid, memory = (np.asarray(each).reshape(16, 2, *each.shape[1:]) for each in found[1::-1])
    np.testing.assert_array_equal(valid[:, 0], valid[:, 1])
    assert np.all(np.abs(memory[:12, 0] - memory[:12, 1]).max((1, 2)) > 0.01)
    compute = nnx.jit(lambda model: changed.loss(model, batch, jax.random.key(1)))
    loss, parts = compute(model)
    weight = transcriber.ctc_weight
    mean = (1 - weight) * parts["decoder_loss"] + weight * parts["ctc_loss"]
    assert parts["divergence"] > 0
    np.testing.assert_allclose(loss, mean + 0.2 * parts["divergence"], rtol=1e-5)
    batch["target"] = np.where(batch["weight"][:, None] > 0, batch["target"], 1)
    np.testing.assert_allclose(compute(model)[1]["divergence"], parts["divergence"], rtol=1e-5)


def test_what_a_microphone_adds_changes_nothing(task):
    clip = task.examples("test")[0]
    samples = clip["samples"][None].astype(np.float32) / 32768
    noise = 1e-2 * np.random.default_rng(0).normal(size=samples.shape).astype(np.float32)
    lengths = clip["length"][None]
    features, _ = task.processor.features(samples + noise, lengths)
    louder, _ = task.processor.features(3 * (samples + noise), lengths)
    np.testing.assert_allclose(louder, features, atol=1e-3)


def test_what_is_far_below_the_loudest_is_alike():
    rng = np.random.default_rng(0)
    tone = 0.3 * np.sin(2 * np.pi * 900 * np.arange(4000) / RATE)
    clip = np.concatenate([np.zeros(2000), tone, np.zeros(2000)])[None].astype(np.float32)
    # A floor 60 decibels below the tone.
    noisy = (clip + 3e-4 * rng.normal(size=clip.shape)).astype(np.float32)
    lengths, changed = np.array([8000]), {}
    for decibels in (0.0, 30.0):
        task = made(SpeechConfig(**TINY), DataConfig(dynamic_range=decibels))
        quiet, loud = (
            normalized_log_mel(samples, lengths, task.data)[0] for samples in (clip, noisy)
        )
        changed[decibels] = float(abs(quiet - loud).max())
    assert changed[0.0] > 1.0
    assert changed[30.0] < 0.05


def test_a_chunked_encoder_cannot_have_normalised_clips():
    with pytest.raises(
        UserError, match=r"config.data.normalised: got True with config.model.chunk_size"
    ):
        SpeechRecognition.check(DataConfig(), SpeechConfig(**TINY, chunk_size=4))


def test_texts_longer_than_what_is_written_are_named():
    model = SpeechConfig(**TINY)
    short = {"transcriber": type(model.transcriber)(max_length=2)}
    with pytest.raises(UserError, match="max_length: got 2, expected at least 3"):
        made(SpeechConfig(**TINY, **short))


@pytest.mark.parametrize("left_chunks", [-1, 0, 2])
def test_blocks_of_a_chunk_mask(left_chunks):
    term, T = ChunkTerm(3, left_chunks), 24
    chunks = np.arange(T) // 3
    distance = chunks[:, None] - chunks
    expected = (distance >= 0) & ((distance <= left_chunks) | (left_chunks < 0))
    np.testing.assert_array_equal(masks.Mask((term,)).materialize(1, 1, T, T)[0, 0], expected)
    for size in (2, 4, 8):
        blocks = expected.reshape(T // size, size, T // size, size)
        visible, full = term.block_visibility(1, T, T, size, size)
        np.testing.assert_array_equal(visible[0], blocks.any(axis=(1, 3)))
        np.testing.assert_array_equal(full[0], blocks.all(axis=(1, 3)))


def test_chunks_hide_what_comes_later():
    config = SpeechConfig(
        encoder="conformer", conv_kernel_size=3, chunk_size=2, left_chunks=1, **TINY
    )
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
        ({"conv_kernel_size": 4}, "conv_kernel_size: got 4, expected an odd number"),
        ({"encoder": "pyramid", "chunk_size": 4}, "chunk_size: got 4, expected 0 for a pyramid"),
        ({"model_size": 0}, "model_size: got 0"),
        ({"chunk_size": -1}, "chunk_size: got -1"),
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
    with pytest.raises(UserError, match=r"config: .*'nowhere'.*DECODER joint, ctc"):
        get_config("spoken_digits,nowhere")


@pytest.mark.slow
def test_tones_are_learned():
    import optax

    model = SpeechConfig(**TINY | {"num_layers": 2, "model_size": 32})
    task = made(model, count=200)
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
    outputs = jax.jit(lambda state, batch: task.predict(nnx.merge(graph, state), batch))
    batch = next(evaluation_batches(task.examples("test"), batch_size=20, buckets=longest))
    rows = np.argsort(batch["id"][:12])
    written = {name: np.asarray(x)[:12][rows] for name, x in outputs(state, batch).items()}
    assert task.example_scores(written, "test").mean() < 0.1
