"""Class weights against scikit-learn's, and the weighted loss of classifiers."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from tasks.common.class_weights import ClassWeightsConfig
from tasks.text_classification.model import AttentionPoolingConfig

LABELS, NAMES = np.array([0] * 70 + [1] * 20 + [2] * 10), ("ham", "news", "spam")


def weights(text):
    return ClassWeightsConfig(class_weights=text).weights(LABELS, NAMES)


def test_balanced_weights_are_those_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(weights("balanced"), expected, rtol=1e-6)
    assert weights("none") is None


@pytest.mark.parametrize(
    ("text", "expected"), [("1,2,3", [1, 2, 3]), ("spam=5", [1, 1, 5]), ("spam=3,ham=2", [2, 1, 3])]
)
def test_given_weights_have_mean_1_over_the_examples(text, expected):
    found = weights(text)
    np.testing.assert_allclose(found / found[1], np.array(expected) / expected[1], rtol=1e-6)
    assert found[LABELS].mean() == pytest.approx(1)


@pytest.mark.parametrize("text", ["", "some", "1,-2", "1,0", "spam=x", "=3", "inf", "spam=2,3"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"class_weights: got .*, expected 'none', 'balanced', nu"):
        AttentionPoolingConfig(class_weights=text)


def test_weights_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="got 2 numbers, expected 3, one for each of the classes"):
        weights("1,2")
    with pytest.raises(ValueError, match="got the class 'Spam', expected one of ham, news, spam"):
        weights("Spam=2")


def test_the_loss_of_a_classifier_is_weighted():
    """The loss of a batch is the mean over its examples of weight times cross-entropy."""
    import types

    import jax
    import jax.numpy as jnp

    from tasks.classification import ClassificationTask

    class Task(ClassificationTask):
        labels = NAMES
        build_model = load = None

        def logits(self, model, batch, dropout_key=None):
            return batch["logits"]

    splits = {"train": types.SimpleNamespace(labels=LABELS)}
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 2, 0, 1])
    batch = {"logits": jnp.asarray(logits), "label": labels, "weight": np.ones(6, np.float32)}
    each = -np.asarray(jax.nn.log_softmax(logits))[np.arange(6), labels]
    for text, factors in (("none", np.ones(3)), ("balanced", weights("balanced"))):
        task = object.__new__(Task)
        task.model = ClassWeightsConfig(class_weights=text)
        task.dataset = types.SimpleNamespace(splits=splits)
        loss, metrics = task.loss(None, batch, None)
        assert float(loss) == pytest.approx((each * factors[labels]).mean(), rel=1e-5)
        assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(1) == labels).mean())
