"""The language model: visible positions, and equality of step-by-step decoding and full passes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tasks.common.decoding.generate import DecodingConfig
from tasks.language_modeling.model import LanguageModel, LanguageModelConfig, complete

V = 23  # the last two are the task's
END = V - 1
SMALL = {"model_size": 16, "num_layers": 2, "num_heads": 2, "feedforward_size": 24}
CAUSAL = LanguageModelConfig(**SMALL, max_length=8, max_new_tokens=11, embedding_scale=0.5)
MODERN = dataclasses.replace(
    CAUSAL,
    normalization="rms",
    activation="swiglu",
    positions="rope",
    use_bias=False,
    mixer="dot_product(qk_norm=True, use_bias=False)",
    tied=False,
)
MASKED = LanguageModelConfig(
    **SMALL,
    max_length=8,
    objective="masked",
    norm="post",
    input_norm=True,
    norm_epsilon=1e-12,
    positions="learned",
    segments=2,
    next_sentence=True,
)
CONFIGS = {"causal": CAUSAL, "modern": MODERN, "masked": MASKED}
TOKENS = np.array([[2, 5, 6, 7, 8, 9], [4, 3, 11, 12, 0, 0], [19, 5, 0, 0, 0, 0]], np.int32)
LENGTHS = np.array([6, 4, 2], np.int32)


def build(config):
    return LanguageModel(config, V, rngs=nnx.Rngs(0))


@functools.cache
def hidden_of(name):
    """Returns the model of a config, and its compiled hidden states."""
    model = build(CONFIGS[name])
    return model, jax.jit(
        lambda ids, lengths, segments=None: model(ids, lengths, segments=segments)
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_and_order_change_nothing(name):
    model, run = hidden_of(name)
    hidden = np.asarray(run(TOKENS, LENGTHS))
    assert model.logits(jnp.asarray(hidden)).shape == (3, 6, V)
    wider = np.full((3, 8), 20, np.int32)
    for row, length in enumerate(LENGTHS):
        wider[row, :length] = TOKENS[row, :length]
    order = [2, 0, 1]
    other = np.asarray(run(wider[order], LENGTHS[order]))
    for row, place in enumerate(order):
        length = LENGTHS[place]
        np.testing.assert_allclose(
            other[row, :length], hidden[place, :length], rtol=1e-5, atol=1e-5
        )


def test_a_causal_model_sees_nothing_of_what_follows_and_a_masked_one_does():
    changed = TOKENS.copy()
    changed[0, 4] = 13
    for name, sees in (("causal", False), ("masked", True)):
        _, run = hidden_of(name)
        one, two = (np.asarray(run(tokens, LENGTHS)) for tokens in (TOKENS, changed))
        assert np.allclose(one[0, :4], two[0, :4], atol=1e-6) != sees
        assert not np.allclose(one[0, 4:], two[0, 4:], atol=1e-3)


def test_heads():
    names = {"/".join(map(str, path)) for path, _ in nnx.iter_graph(build(MASKED))}
    assert {
        "embedding/embedding",
        "segment_embedding/embedding",
        "head/transform/kernel",
        "head/norm/scale",
        "head/bias",
        "pooler/kernel",
        "follows/kernel",
        "encoder/input_norm/scale",
        "encoder/positions/embedding",
    } <= names
    assert build(CAUSAL).head is None
    assert build(MODERN).head.kernel.shape == (16, V)
    tied = build(CAUSAL)
    x = jax.random.normal(jax.random.key(0), (2, 16))
    np.testing.assert_allclose(
        tied.logits(x), x @ tied.embedding.embedding[...].T, rtol=1e-5, atol=1e-6
    )
    model = build(MASKED)
    model.head.bias[...] = jnp.arange(V, dtype=jnp.float32)
    h = x @ model.head.transform.kernel[...]
    h = jax.scipy.stats.norm.cdf(h) * h
    h = (h - h.mean(-1, keepdims=True)) / h.std(-1, keepdims=True)
    expected = h @ model.embedding.embedding[...].T + np.arange(V)
    np.testing.assert_allclose(model.logits(x), expected, rtol=1e-4, atol=1e-4)


def test_segments_are_added():
    model, run = hidden_of("masked")
    plain = run(TOKENS, LENGTHS)
    segments = np.zeros_like(TOKENS)
    np.testing.assert_allclose(plain, run(TOKENS, LENGTHS, segments), rtol=1e-5, atol=1e-6)
    segments[0, 3:] = 1
    other = run(TOKENS, LENGTHS, segments)
    assert not np.allclose(plain[0], other[0], atol=1e-4)
    np.testing.assert_allclose(plain[1:], other[1:], rtol=1e-5, atol=1e-6)
    assert model.next_sentence(plain).shape == (3, 2)


def uncached(model, forward, prompt, end):
    """Decodes greedily with a full pass per token; returns the last four ids if the length is used
    up."""
    config = model.config
    kept = config.max_length // 2
    window, written = list(prompt)[-kept:], []
    signs = {0, 1, 2, V - 2, V - 1} - {end}
    while len(written) < config.max_new_tokens:
        # One part of the text is decoded: as many ids as fit after the retained ones.
        for _ in range(config.max_length - kept):
            tokens, lengths = prompts_of(config.max_length, window)
            logits = forward(tokens, lengths)[0, len(window) - 1]
            logits = np.where(np.isin(np.arange(V), list(signs)), -np.inf, logits)
            token = int(np.argmax(logits))
            written.append(token)
            window.append(token)
            if token == end:
                return (written + [0] * config.max_new_tokens)[: config.max_new_tokens]
        window = window[-kept:]
    return written[: config.max_new_tokens]


def prompts_of(width, *texts):
    prompt = np.zeros((len(texts), width), np.int32)
    for row, text in zip(prompt, texts, strict=True):
        row[: len(text)] = text
    return prompt, np.array([len(text) for text in texts], np.int32)


@pytest.mark.parametrize(
    "mixer",
    [
        "modern",
        pytest.param("gated_delta_net", marks=pytest.mark.slow),
        pytest.param("dot_product", marks=pytest.mark.slow),
        pytest.param("sliding_window(left=3, right=0)", marks=pytest.mark.slow),
        pytest.param("linear", marks=pytest.mark.slow),
    ],
)
def test_completions_equal_those_of_reading_all_anew(mixer):
    model = build(MODERN if mixer == "modern" else dataclasses.replace(CAUSAL, mixer=mixer))
    texts = [[5], [7, 8, 9, 10], [2, 6]]
    prompt, lengths = prompts_of(4, *texts)
    run = jax.jit(lambda p, n: complete(model, p, n, jnp.arange(len(p)), None))
    found = np.asarray(run(prompt, lengths))
    forward = jax.jit(lambda tokens, lengths: model.logits(model(tokens, lengths)))
    for row, text in zip(found, texts, strict=True):
        assert row.tolist() == uncached(model, forward, text, None)
    assert not np.isin(found, [0, 1, 2, V - 2, V - 1]).any()


def test_what_has_ended_is_padded():
    model = build(CAUSAL)
    # Likelier than 12 where that is likely.
    table = model.embedding.embedding[...]
    model.embedding.embedding[...] = table.at[END].set(1.5 * table[12])
    texts = [[5], [7, 8, 9, 10], [2, 6], [3, 3, 3]]
    prompt, lengths = prompts_of(4, *texts)
    run = jax.jit(lambda p, n: complete(model, p, n, jnp.arange(len(p)), END))
    found = np.asarray(run(prompt, lengths))
    assert 0 < (found == END).any(axis=1).sum() < 4
    forward = jax.jit(lambda tokens, lengths: model.logits(model(tokens, lengths)))
    for row, text in zip(found, texts, strict=True):
        assert row.tolist() == uncached(model, forward, text, END)


def test_samples_follow_the_id_and_the_seed():
    decoding = DecodingConfig(method="sample", temperature=2.0, top_k=9)
    config = dataclasses.replace(CAUSAL, decoding=decoding)
    prompt, lengths = prompts_of(4, [5], [5], [6, 7])

    @functools.partial(jax.jit, static_argnums=0)
    def completed(config, *inputs):
        return complete(build(config), *inputs, None)

    def run(config, ids, order=slice(None)):
        return np.asarray(completed(config, prompt[order], lengths[order], jnp.array(ids)))

    found = run(config, [0, 1, 2])
    assert found.shape == (3, 11)
    assert not np.array_equal(found[0], found[1])
    np.testing.assert_array_equal(run(config, [2, 0, 1], [2, 0, 1]), found[[2, 0, 1]])
    reseeded = dataclasses.replace(config, decoding=dataclasses.replace(decoding, seed=1))
    assert not np.array_equal(run(reseeded, [0, 1, 2]), found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "mask"}, "objective: got 'mask', expected one of 'causal', 'masked'"),
        ({"mask_rate": 0.3}, "mask_rate: got 0.3, expected 0.15, or objective 'masked'"),
        ({"whole_words": True}, "whole_words: got True"),
        ({"segments": 2}, "segments: got 2, expected 0, or objective 'masked'"),
        ({"objective": "masked", "segments": 3}, "segments: got 3, expected one of 0, 1, 2"),
        ({"objective": "masked", "next_sentence": True}, "segments: got 0, expected 2"),
        ({"objective": "masked", "tied": False}, "tied: got False"),
        ({"objective": "masked", "mask_rate": 1.0}, "mask_rate: got 1.0"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"embedding_scale": 0.0}, "embedding_scale: got 0.0"),
        ({"mixer": "fourier"}, "mixer: got 'fourier', which cannot be causal"),
        ({"objective": "masked", "mixer": "gated_delta_net"}, "mixer: got 'gated_delta_net'"),
        (
            {"decoding": DecodingConfig("beam", beam_size=3, n_best=2)},
            r"decoding\.n_best: got 2, expected 1",
        ),
        (
            {"objective": "masked", "decoding": DecodingConfig("sample")},
            "decoding: got DecodingConfig",
        ),
    ],
)
def test_impossible_values_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        LanguageModelConfig(**{**SMALL, **fields})


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_of_padding_change_nothing(name):
    config = CONFIGS[name]
    model, run = hidden_of(name)
    padded = build(dataclasses.replace(config, min_rows=32))
    assert padded.embedding.embedding.shape == (32, 16)
    assert build(dataclasses.replace(config, min_rows=V - 1)).embedding.embedding.shape == (V, 16)
    # Rows of padding are large, so that they would be predicted.
    padded.embedding.embedding[...] = 9 + 0 * padded.embedding.embedding[...]
    padded.embedding.embedding[:V] = model.embedding.embedding[...]
    if name == "modern":
        padded.head.kernel[...] = 9 + 0 * padded.head.kernel[...]
        padded.head.kernel[:, :V] = model.head.kernel[...]
    if name == "masked":
        padded.head.bias[V:] = 9.0
    hidden = run(TOKENS, LENGTHS)
    expected, found = model.logits(hidden), padded.logits(hidden)
    np.testing.assert_allclose(found[..., :V], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[..., V:], -jnp.inf)
    losses = [it.compare(hidden, TOKENS) for it in (model, padded)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *losses)
    if name != "masked":
        prompt = jnp.asarray(TOKENS[:, :4]), jnp.minimum(jnp.asarray(LENGTHS), 4), jnp.arange(3)
        for other in (model, padded):
            other.encoder = model.encoder
        texts = [complete(other, *prompt, END) for other in (model, padded)]
        np.testing.assert_array_equal(*texts)


@pytest.mark.parametrize("name", ["causal", "modern"])
def test_loss_in_chunks_of_the_vocabulary(name):
    model, run = hidden_of(name)
    hidden = run(TOKENS, LENGTHS)
    targets = jnp.argmax(model.logits(hidden), axis=-1).at[:, ::2].set(3)
    expected = model.compare(hidden, targets)
    model.config = dataclasses.replace(model.config, loss_chunk_size=10)
    found = model.compare(hidden, targets)
    model.config = CONFIGS[name]
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[1].any()
    assert not found[1].all()


def test_a_masked_model_has_no_loss_in_chunks():
    with pytest.raises(ValueError, match=r"loss_chunk_size: got 5, expected 0, or objective 'caus"):
        dataclasses.replace(MASKED, loss_chunk_size=5)
