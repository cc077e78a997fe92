"""The classifiers: independence of padding, dropout keys, and the naive Bayes prior."""

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.naive_bayes import ComplementNB
from sklearn.svm import LinearSVC

from tasks.text_classification import model as models
from tasks.text_classification.baselines import naive_bayes_prior, tfidf_prior
from tasks.text_classification.figures import token_weights

VOCABULARY, CLASSES = 50, 3
CONFIGS = [
    models.AttentionPoolingConfig(embedding_size=8, attention_size=4),
    models.AttentionPoolingConfig(embedding_size=8, pooling="max", length_scaling=False),
    models.TransformerConfig(model_size=8, num_layers=2, num_heads=2, feedforward_size=16),
    models.TransformerConfig(
        model_size=8, num_layers=1, num_heads=2, feedforward_size=16, pooling="cls"
    ),
    models.TransformerConfig(
        model_size=8, num_layers=1, num_heads=2, feedforward_size=16, pooling="bert"
    ),
    models.BiGRUConfig(embedding_size=8, state_size=4),
]
IDS = ["pool", "max", "transformer", "cls", "bert", "bigru"]


def build(config):
    return models.build(config, VOCABULARY, CLASSES, prior=None, rngs=nnx.Rngs(0))


def batch(width: int):
    tokens = np.zeros((3, width), np.int32)
    tokens[0, :5], tokens[1, :1], tokens[2, :3] = [7, 8, 9, 10, 11], [12], [13, 14, 15]
    return tokens, np.array([5, 1, 3], np.int32)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_padding_changes_nothing(config):
    model = build(config)
    tokens, lengths = batch(5)
    expected = model(tokens, lengths)
    assert expected.shape == (3, CLASSES)
    wider, _ = batch(9)
    wider[wider == 0] = 33
    np.testing.assert_allclose(model(wider, lengths), expected, rtol=1e-5, atol=1e-6)
    order = [2, 0, 1]
    np.testing.assert_allclose(
        model(tokens[order], lengths[order]), expected[np.array(order)], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_dropout_follows_its_key(config):
    model = build(config)
    tokens, lengths = batch(5)
    draws = [model(tokens, lengths, dropout_key=jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.allclose(draws[0], draws[2])
    assert np.all(np.isfinite(draws[2]))


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_weights_are_shares_of_the_real_tokens(config):
    tokens, lengths = batch(6)
    _, weights = build(config)(tokens, lengths, return_weights=True)
    around = models.tokens_around(config)
    cls = around > 0
    shares = token_weights(
        {name: np.asarray(value) for name, value in weights.items()}, has_cls=cls
    )
    # With [SEP] after it, the text ends one token later.
    after = max(around - 1, 0)
    assert shares.shape == (3, 6 + after)
    for row, length in zip(shares, lengths + after, strict=True):
        np.testing.assert_allclose(row[length:], 0, atol=1e-7)
        assert row[:length].min() >= 0
        # The classification token keeps a share for itself.
        assert row.sum() == pytest.approx(1, abs=1e-5) or (cls and 0 < row.sum() < 1)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("kind", [models.AttentionPoolingConfig, models.BiGRUConfig])
def test_a_mean_has_no_weights_to_show(kind, pooling):
    tokens, lengths = batch(6)
    _, weights = build(kind(pooling=pooling))(tokens, lengths, return_weights=True)
    expected = (0, 0) if pooling == "mean" else (3, 6)
    assert token_weights(jax.device_get(weights), has_cls=False, lengths=lengths).shape == expected


@pytest.mark.parametrize(("mixer", "shape"), [("dot_product", (3, 6)), ("fourier", (0, 0))])
def test_of_a_mean_over_layers_the_last_layer_is_shown(mixer, shape):
    sizes = {"model_size": 8, "num_layers": 2, "num_heads": 2, "feedforward_size": 16}
    model = build(models.TransformerConfig(**sizes, pooling="mean", mixer=mixer))
    tokens, lengths = batch(6)
    weights = jax.device_get(model(tokens, lengths, return_weights=True)[1])
    assert "pool" not in weights
    shares = token_weights(weights, has_cls=False, lengths=lengths)
    assert shares.shape == shape
    if len(shares):
        # Five tokens, none with equal attention from all others.
        assert np.ptp(shares[0, :5]) > 1e-4
        assert shares[1].tolist() == [1, 0, 0, 0, 0, 0]


def test_token_weights_by_hand():
    # Two heads of one layer over two tokens and padding, whose row counts for nothing.
    first = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]
    second = [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    attention = {"encoder": np.array([[[first, second]]])}
    found = token_weights(attention, has_cls=False, lengths=np.array([2, 9]))
    np.testing.assert_allclose(found, [[0.5, 0.5, 0.0]])
    found = token_weights(attention, has_cls=True, lengths=np.array([2, 9]))
    np.testing.assert_allclose(found, [[0.25, 0.0]])
    # A mixer that subtracts.
    negative = {"encoder": np.array([[[[[1.0, -0.5], [0.5, 0.0]]]]])}
    np.testing.assert_allclose(token_weights(negative, False, np.array([2])), [[0.75, 0.25]])


def test_length_scaling_is_the_square_root_of_the_length():
    config = models.AttentionPoolingConfig(embedding_size=8, pooling="mean")
    model = build(config)
    plain = build(models.AttentionPoolingConfig(embedding_size=8, pooling="mean",
                                                length_scaling=False))  # fmt: skip
    tokens, lengths = batch(5)
    bias = np.asarray(model.classify.bias[...])
    np.testing.assert_allclose(
        model(tokens, lengths) - bias,
        (plain(tokens, lengths) - bias) * np.sqrt(lengths)[:, None],
        rtol=1e-5,
        atol=1e-6,
    )


def test_prior_by_hand_for_two_classes():
    # Class 1 holds id 3 in two of two texts, class 0 in none of one; repeats count once.
    tokens = [np.array([3, 3, 4]), np.array([3]), np.array([4])]
    prior = naive_bayes_prior(tokens, np.array([1, 1, 0]), vocabulary=5, classes=2)
    assert prior.shape == (5, 1)
    inside, outside = np.array([1, 1, 1, 3, 2]), np.array([1, 1, 1, 1, 2])
    expected = np.log(inside / 8) - np.log(outside / 6)
    np.testing.assert_allclose(prior[1:, 0], expected[1:], rtol=1e-6)
    assert prior[0, 0] == 0


@pytest.mark.parametrize("classes", [2, 3])
def test_tfidf_prior_ranks_like_the_linear_models(classes):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), 20)
    # A class has three of the words 3 to 11 more often than others.
    odds = np.where(np.arange(9) % classes == labels[:, None], 0.7, 0.3)
    present = rng.uniform(size=odds.shape) < odds
    present[:, 0] = True
    tokens = [3 + np.flatnonzero(row) for row in present]
    prior = tfidf_prior([np.repeat(ids, 2) for ids in tokens], labels, 12, classes)
    assert prior.shape == (12, 1 if classes == 2 else classes)
    assert not prior[0].any()

    # The same columns as in the prior, because LinearSVC stops at a tolerance.
    features = np.pad(present.astype(float), ((0, 0), (3, 0)))
    features = TfidfTransformer().fit_transform(csr_matrix(features))
    of_svm = LinearSVC(random_state=0).fit(features, labels)
    svm = of_svm.decision_function(features) - of_svm.intercept_
    svm = np.stack([-svm, svm], axis=1) if classes == 2 else svm
    bayes = ComplementNB(alpha=0.1).fit(features, labels).predict_joint_log_proba(features)
    bayes -= bayes.mean(axis=1, keepdims=True)
    scores = svm / svm.std() + bayes / bayes.std()
    expected = scores[:, 1:] - scores[:, :1] if classes == 2 else scores
    # The sums differ by a positive factor of each text.
    sums = np.stack([prior[ids].sum(axis=0) for ids in tokens])
    factors = np.linalg.norm(sums, axis=1) / np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(sums / factors[:, None], expected, rtol=1e-3, atol=1e-5)
    assert 0.5 < np.median(factors / np.sqrt([len(ids) for ids in tokens])) < 2


def test_prior_starts_the_embeddings():
    prior = np.arange(VOCABULARY * 3, dtype=np.float32).reshape(VOCABULARY, 3)
    config = models.AttentionPoolingConfig(embedding_size=8, prior="naive_bayes", prior_scale=0.5)
    model = models.build(config, VOCABULARY, 3, prior=prior, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(model.tokens.embedding[...][:, :3], prior * 0.5)
    np.testing.assert_allclose(model.classify.kernel[...][:3], np.eye(3))


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        ("attention_pooling", {"pooling": "sum"}, "pooling: got .* expected one of"),
        ("attention_pooling", {"prior": "bayes"}, "prior: got 'bayes', expected one of"),
        (
            "attention_pooling",
            {"embedding_scale": 0.0},
            "embedding_scale: got 0.0, expected a",
        ),
        (
            "attention_pooling",
            {"token_dropout_rate": 1.0},
            "token_dropout_rate: got 1.0, exp",
        ),
        ("transformer", {"num_heads": 3}, "num_heads"),
        ("transformer", {"pooling": "first"}, "pooling: got .* expected one of"),
        ("bigru", {"state_size": 0}, "state_size: got 0, expected at least 1"),
    ],
)
def test_impossible_values_are_named(kind, wrong, message):
    with pytest.raises(ValueError, match=message):
        models.MODEL_CONFIGS[kind](**wrong)
