"""Translators: decoding agrees with teacher forcing; padding and the order of a batch change
nothing; every alignment translates.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import registry
from tasks.common.decoding.generate import DecodingConfig
from tasks.translation.model import RecurrentConfig, TransformerConfig, build, max_target_length

VOCABULARY = 11
START, END = VOCABULARY, VOCABULARY + 1
BEAMS = {"method": "beam", "beam_size": 3, "n_best": 2, "max_length": 20}
SOURCE = np.array([[3, 4, 5, 6, 12, 0], [9, 12, 0, 0, 0, 0], [7, 7, 8, 3, 4, 12]], np.int32)

TRANSFORMER = TransformerConfig(
    model_size=8, num_heads=2, num_layers=1, decoder_layers=1, feedforward_size=8, max_length=32
)
RECURRENT = RecurrentConfig(embedding_size=5, state_size=6)
CONFIGS = {
    "transformer": TRANSFORMER,
    "rope": TransformerConfig(
        **{**vars(TRANSFORMER), "positions": "rope", "norm": "post"}
    ),
    "gru": RECURRENT,
    "lstm": RecurrentConfig(
        embedding_size=5, state_size=6, cell="lstm", num_layers=2, alignment="none",
        temporal_attention=2,
    ),
}  # fmt: skip


@functools.cache
def translator(name):
    model = build(CONFIGS[name], VOCABULARY, rngs=nnx.Rngs(1))
    if name == "transformer":
        # Sentences end by themselves now and then.
        table = model.embedding.embedding
        table[...] = table[...].at[END].mul(2.0)
    return model


@functools.cache
def translating(**options):
    method = DecodingConfig(
        **{key: options.pop(key) for key in ("method", "beam_size", "n_best") if key in options}
    )

    @nnx.jit
    def translate(model, source, ids):
        ids = ids if method.method == "sample" else None
        return model.translate(source, config=method, ids=ids, **options)

    return translate


def translate(name, source, ids=None, **options):
    ids = np.arange(len(source)) if ids is None else ids
    return jax.device_get(translating(**options)(translator(name), source, ids))


@nnx.jit
def forced(model, source, target):
    return model(source, target)


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_of_a_beam_are_those_of_teacher_forcing(name):
    decoded = translate(name, SOURCE, **BEAMS)
    B, N, T = decoded.tokens.shape
    assert (B, N, T) == (3, 2, 20)
    tokens = decoded.tokens.reshape(B * N, T)
    logits = forced(translator(name), np.repeat(SOURCE, N, axis=0), tokens)
    gained = np.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
    limits = np.repeat(np.minimum(max_target_length((SOURCE > 0).sum(axis=1)), T), N)
    for row in range(B * N):
        length = int((tokens[row] > 0).sum())
        assert tokens[row, length - 1] == END
        assert not set(tokens[row, : length - 1]) & {0, 1, 2, START, END}
        # The end token that stands at the limit was not chosen.
        chosen = length - 1 if length == limits[row] else length
        expected = gained[row, :chosen].sum() / length
        np.testing.assert_allclose(decoded.scores.reshape(-1)[row], expected, rtol=1e-4)
    assert (np.diff(decoded.scores, axis=1) <= 0).all()


@pytest.mark.parametrize("name", ["transformer", "gru"])
def test_padding_and_the_order_of_the_batch_change_nothing(name):
    expected = translate(name, SOURCE, **BEAMS)
    assert expected.extras == {}
    wider = np.pad(SOURCE, ((0, 0), (0, 5)))[[2, 0, 1, 1]]
    found = translate(name, wider, **BEAMS)
    for row, index in enumerate([2, 0, 1, 1]):
        np.testing.assert_array_equal(found.tokens[row], expected.tokens[index])
        np.testing.assert_allclose(found.scores[row], expected.scores[index], rtol=1e-5)


def test_samples_follow_the_numbers_of_examples():
    options = {"method": "sample", "n_best": 2, "max_length": 9}
    expected = translate("gru", SOURCE, ids=np.array([5, 6, 7]), **options)
    found = translate("gru", SOURCE[::-1], ids=np.array([7, 6, 5]), **options)
    np.testing.assert_array_equal(found.tokens, expected.tokens[::-1])
    assert (expected.tokens[:, 0] != expected.tokens[:, 1]).any()


@pytest.mark.parametrize("name", ["transformer", "gru"])
def test_weights_of_steps_are_distributions_over_real_tokens(name):
    decoded = translate(name, SOURCE, max_length=7, return_weights=True)
    weights = decoded.extras["alignment"]
    S = SOURCE.shape[1]
    assert weights.shape == ((3, 1, 7, 1, 2, S) if name == "transformer" else (3, 1, 7, S))
    written = decoded.tokens != 0
    sums = weights.sum(axis=-1)
    np.testing.assert_allclose(sums[written], 1, atol=1e-5)
    assert not sums[~written].any()
    assert not np.moveaxis(weights, -1, 1)[SOURCE == 0].any()


@pytest.mark.parametrize("name", ["transformer", "gru"])
def test_no_logit_sees_the_token_it_is_for_or_a_later_one(name):
    target = np.array([[3, 4, 5, 6, 12]] * 3, np.int32)
    other = target.copy()
    other[:, 2:] = 9
    same = forced(translator(name), SOURCE, target), forced(translator(name), SOURCE, other)
    np.testing.assert_allclose(same[0][:, :3], same[1][:, :3], atol=1e-6)
    assert np.abs(same[0][:, 3:] - same[1][:, 3:]).max() > 1e-3


def test_dropout_is_applied():
    target = SOURCE[:, :4]
    for name in ("transformer", "gru"):
        model = translator(name)
        dropped = nnx.jit(lambda m, key: m(SOURCE, target, dropout_key=key))
        first, again, second = (dropped(model, jax.random.key(i)) for i in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("alignment", registry.names("alignment"))
def test_every_alignment_fits(alignment):
    config = RecurrentConfig(embedding_size=4, state_size=8, alignment=alignment)
    assert config.aligns == (alignment != "none")
    model = nnx.eval_shape(lambda: build(config, VOCABULARY, rngs=nnx.Rngs(0)))
    decoded = nnx.eval_shape(
        lambda model, source: model.translate(
            source, config=DecodingConfig(), max_length=6, return_weights=True
        ),
        model,
        jnp.asarray(SOURCE),
    )
    assert decoded.tokens.shape == (3, 1, 6)
    weights = decoded.extras["alignment"].shape
    assert (weights[:3], weights[-1]) == ((3, 1, 6), SOURCE.shape[1])


def test_one_table_for_both_languages_and_the_published_number_of_parameters():
    model = nnx.eval_shape(lambda: build(TransformerConfig(), 9_710, rngs=nnx.Rngs(0)))
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    # Wu et al. 2021: 2.6 M. A table of 9,712 rows; attention 4 D² + 4 D, feed-forward 2 D F + F + D
    # and norms 2 D; pre-norm has one more after each stack.
    D, F = 128, 256
    attention, feedforward, norm = 4 * D * D + 4 * D, 2 * D * F + F + D, 2 * D
    layers = 4 * (attention + feedforward + 2 * norm) + 4 * (2 * attention + feedforward + 3 * norm)
    assert sum(sizes) == 9_712 * D + layers + 2 * norm


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_layers": 0}, "decoder_layers: got 0, expected at least 1"),
        ({"label_smoothing": 1.0}, "label_smoothing: got 1.0, expected a rate in"),
        ({"decoder_mixer": "fourier"}, "decoder_mixer: got 'fourier', which cannot decode step by"),
        ({"decoder_mixer": "dot"}, "decoder_mixer: got 'dot'"),
        ({"num_heads": 3}, "num_heads: got 3, expected a divisor"),
    ],
)
def test_impossible_transformers(fields, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cell": "gruu"}, "cell: got 'gruu'"),
        ({"alignment": "dots"}, "^alignment: got 'dots', .* did you mean 'dot'"),
        ({"alignment": "location_aware(width=0)"}, "^alignment: 'location_aware.width=0.': width"),
        (
            {"temporal_attention": 3, "state_size": 8},
            "got 3, expected 0 or a divisor of",
        ),
        ({"temporal_attention": -1}, "temporal_attention: got"),
        ({"state_size": 7}, "state_size: got 7, expected an even number"),
        ({"dropout_rate": 1.0}, "dropout_rate: got 1.0, expected a rate in"),
        ({"num_layers": 0}, "num_layers: got 0, expected at least 1"),
    ],
)
def test_impossible_recurrent_translators(fields, message):
    with pytest.raises(ValueError, match=message):
        RecurrentConfig(**fields)
