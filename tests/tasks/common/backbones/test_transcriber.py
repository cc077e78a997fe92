"""Transcriber: both losses, and a beam search that combines their scores."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tasks.common.backbones.transcriber import PAD, Transcriber, TranscriberConfig
from tasks.common.decoding.generate import DecodingConfig
from tasks.common.losses import divergence_of_passes

B, S, M, U = 3, 5, 8, 3
LENGTHS = np.array([5, 3, 0])
WIDE = DecodingConfig(method="beam", beam_size=40, length_penalty=0.0, stopping="exact")
KINDS = {
    "recurrent": {"alignment": "location_aware(width=3)"},
    "transformer": {"num_heads": 2, "feedforward_size": 8},
    "none": {"ctc_weight": 1.0},
}


def made(decoder, **changed):
    options = KINDS[decoder] | {"state_size": 8, "embedding_size": 4, "max_length": 4} | changed
    config = TranscriberConfig(decoder=decoder, decoding=WIDE, **options)
    model = Transcriber(config, M, U, rngs=nnx.Rngs(0))
    # Sharp enough for an unambiguous best hypothesis.
    if model.frames is not None:
        model.frames.kernel[...] = 3 * model.frames.kernel[...]
    return model


@pytest.fixture(scope="module")
def memory():
    return jnp.asarray(np.random.default_rng(0).normal(size=(B, S, M)), jnp.float32)


VALID = jnp.asarray(np.arange(S) < LENGTHS[:, None])


def everything(frames):
    """Returns all transcripts of a number of frames."""
    most = min(frames, 4)
    return [units for n in range(most + 1) for units in itertools.product((1, 2), repeat=n)]


@pytest.mark.parametrize("decoder", KINDS)
def test_a_wide_beam_finds_the_best_transcript_by_both_scores(memory, decoder):
    model = made(decoder)
    decoded = jax.jit(lambda: model.transcribe(memory, VALID, None))()
    weight = 1.0 if decoder == "none" else model.config.decoding_ctc_weight
    losses = jax.jit(lambda *args: model(*args, smoothing=False))
    for row, frames in enumerate(LENGTHS):
        texts = everything(frames)
        targets = np.zeros((len(texts), 4), np.int32)
        for index, units in enumerate(texts):
            targets[index, : len(units)] = units
        pad = [(0, 31 - len(texts)), (0, 0)]
        targets = np.pad(targets, pad)
        same = [jnp.broadcast_to(leaf[row], (31, *leaf.shape[1:])) for leaf in (memory, VALID)]
        found = losses(*same, None, targets)
        scores = -(weight * found.ctc + (1 - weight) * found.decoder)
        scores = np.where(found.has_path, scores, -np.inf)[: len(texts)]
        best = int(np.argmax(scores))
        tokens = [int(token) for token in decoded.tokens[row, 0] if token != PAD]
        assert tokens == [*texts[best], model.end]
        np.testing.assert_allclose(decoded.scores[row, 0], scores[best], rtol=1e-3, atol=1e-4)


def test_the_loss_is_the_weighted_sum_and_padding_changes_nothing(memory):
    model = made("recurrent", label_smoothing=0.0)
    targets = np.array([[1, 2, 2], [2, 0, 0], [0, 0, 0]])
    compute = jax.jit(lambda memory, targets: model(memory, VALID, None, targets))
    losses = compute(memory, targets)
    assert losses.num_units.tolist() == [4, 2, 1]
    weight = model.config.ctc_weight
    expected = (1 - weight) * losses.decoder + weight * losses.ctc
    np.testing.assert_allclose(model.joint(losses), expected)
    noise = jnp.where(VALID[..., None], memory, 7.0)
    for one, other in zip(losses, compute(noise, targets), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decoder", KINDS)
def test_the_divergence_of_pairs_is_that_of_both_outputs_over_real_positions(memory, decoder):
    model = made(decoder)
    targets = np.repeat([[1, 2, 2], [2, 0, 0], [0, 0, 0]], 2, axis=0)
    other = jax.random.normal(jax.random.key(0), memory.shape)
    pairs = jnp.stack([memory, other], axis=1).reshape(2 * B, S, M)
    valid = jnp.repeat(VALID, 2, axis=0)
    compute = jax.jit(lambda memory: model(memory, valid, None, targets, pairs=True))
    losses = compute(pairs)
    weight = model.config.ctc_weight
    by_frame = np.asarray(divergence_of_passes(model.frames(pairs)))
    expected = weight * np.where(VALID, by_frame, 0).sum(1)
    if decoder != "none":
        inputs = np.pad(targets, ((0, 0), (1, 0)), constant_values=model.start)
        logits = model._teacher_forcing(pairs, valid, None, jnp.asarray(inputs), None)
        real = np.arange(4) <= np.array([[3], [1], [0]])
        by_unit = np.where(real, divergence_of_passes(logits), 0)
        expected = expected + (1 - weight) * by_unit.sum(1)
    np.testing.assert_allclose(losses.divergence, expected, rtol=1e-3, atol=1e-5)
    assert np.all(expected[:2] > 0)
    noise = jnp.where(valid[..., None], pairs, 7.0)
    np.testing.assert_allclose(compute(noise).divergence, losses.divergence, rtol=1e-5, atol=1e-6)
    same = compute(jnp.repeat(memory, 2, axis=0))
    np.testing.assert_allclose(same.divergence, 0, atol=1e-6)


def test_weights_of_a_transcript(memory):
    model = made("recurrent")
    options = {"decoding": DecodingConfig(), "return_weights": True}
    decoded = jax.jit(lambda: model.transcribe(memory, VALID, None, **options))()
    weights = decoded.extras["alignment"]
    assert weights.shape == (B, 1, 5, S)
    written = np.asarray(decoded.tokens[:, 0] != PAD)
    np.testing.assert_allclose(weights[0, 0].sum(-1), written[0], atol=1e-5)
    assert not weights[1, 0, :, 3:].any()
    # Without frames the transcript is empty.
    assert decoded.tokens[2, 0].tolist() == [model.end, 0, 0, 0, 0]


def test_the_best_path_ends_as_a_decoder_would():
    model = made("none")
    frames, valid, config = jnp.ones((1, S, M)), jnp.ones((1, S), bool), DecodingConfig()
    decoded = jax.jit(lambda: model.transcribe(frames, valid, None, decoding=config))()
    tokens = decoded.tokens[0, 0].tolist()
    assert model.end in tokens[:2]
    assert np.isfinite(decoded.scores).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"decoder": "ctc"}, "decoder: got 'ctc'"),
        ({"decoder": "none"}, "ctc_weight: got 0.3, expected 1 without a decoder"),
        ({"ctc_weight": 1.0}, "ctc_weight: got 1.0, expected a fraction below 1"),
        ({"ctc_weight": 0.0}, "decoding_ctc_weight: got 0.3, expected 0 if ctc_weight is 0"),
        ({"decoding_ctc_weight": 1.0}, "decoding_ctc_weight: got 1.0, expected a fraction below 1"),
        ({"alignment": "nearby"}, "alignment"),
        ({"max_length": 0}, "max_length: got 0"),
        ({"decoding": DecodingConfig(method="sample")}, "decoding.method: got 'sample'"),
    ],
)
def test_invalid_configs_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        TranscriberConfig(**changed)
