"""Image classification by the contract: figures from elsewhere, and rows that count for nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from launch.engine.config import load_file
from tasks.common.errors import UserError
from tasks.common.pipeline import evaluation_batches
from tasks.figures import AttendedImage, ConfusionMatrix
from tasks.image_classification import baselines
from tasks.image_classification.data import DataConfig
from tasks.image_classification.model import ViTConfig
from tasks.image_classification.task import TASK

MODEL = ViTConfig(patch_size=4, model_size=8, num_layers=1, num_heads=2, feedforward_size=12)


@pytest.fixture(scope="module")
def task():
    return TASK.prepare(DataConfig(), MODEL, None)


@pytest.fixture(scope="module")
def model(task):
    return task.build_model(nnx.Rngs(0))


@pytest.fixture(scope="module")
def batches(task):
    """The validation split in one batch of 160 rows, and in three of 64 with padding."""
    examples = task.examples("validation")
    return [list(evaluation_batches(examples, batch_size=size)) for size in (160, 64)]


def summed(function, model, batches):
    jitted = nnx.jit(function)
    return jax.tree.map(lambda *parts: np.sum(parts, axis=0), *(jitted(model, b) for b in batches))


def test_padding_rows_change_no_statistic(task, model, batches):
    whole, parts = (summed(task.batch_statistics, model, each) for each in batches)
    assert [batch["weight"].sum() for batch in batches[1]] == [64, 64, 32]
    assert whole["weight"] == parts["weight"] == 160
    np.testing.assert_array_equal(whole["confusion"], parts["confusion"])
    np.testing.assert_allclose(whole["loss"], parts["loss"], rtol=1e-5)


def test_statistics_and_metrics_agree_with_scikit_learn(task, model, batches):
    examples = task.examples("validation")
    (batch,) = batches[0]
    outputs = {"probabilities": np.asarray(nnx.jit(task.outputs)(model, batch)["probabilities"])}
    statistics = summed(task.batch_statistics, model, batches[0])
    predicted = outputs["probabilities"].argmax(axis=1)
    confusion = metrics.confusion_matrix(examples.labels, predicted, labels=range(10))
    np.testing.assert_array_equal(statistics["confusion"], confusion)
    found = task.finalize(statistics, outputs, "validation")
    assert found["loss"] == pytest.approx(
        metrics.log_loss(examples.labels, outputs["probabilities"], labels=range(10)), rel=1e-5
    )
    assert found["accuracy"] == metrics.accuracy_score(examples.labels, predicted)
    assert task.correctness(outputs, "validation").mean() == pytest.approx(found["accuracy"])
    assert set(TASK.table_metrics) <= found.keys()


def test_loss_ignores_rows_without_weight():
    task = TASK.prepare(DataConfig(shift=0.0), MODEL, None)
    images = jnp.asarray(task.examples("train").images[:4])
    labels = jnp.asarray(task.examples("train").labels[:4])
    plain = dataclasses.replace(MODEL, dropout_rate=0.0, head_dropout_rate=0.0)
    model = TASK.prepare(DataConfig(), plain, None).build_model(nnx.Rngs(0))

    @nnx.jit
    def with_slope(model, batch):
        return nnx.value_and_grad(lambda model: task.loss(model, batch, jax.random.key(0))[0])(
            model
        )

    def gradient(batch):
        value, slope = with_slope(model, batch)
        return value, jax.tree.leaves(slope)

    real = {"image": images[:3], "label": labels[:3], "weight": jnp.ones(3)}
    weight = jnp.array([1.0, 1.0, 1.0, 0.0])
    padded = {"image": images, "label": labels, "weight": weight}
    expected, slopes = gradient(real)
    found, others = gradient(padded)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for left, right in zip(slopes, others, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)
    # Not even a row that is not finite.
    broken = {**padded, "image": images.at[3].set(jnp.inf)}
    assert np.isfinite(gradient(broken)[0])


def test_training_moves_the_pictures_and_evaluation_does_not(batches):
    task = TASK.prepare(DataConfig(), MODEL, None)
    (batch,) = batches[0]
    still = dataclasses.replace(MODEL, dropout_rate=0.0, head_dropout_rate=0.0)
    quiet = task.prepare(DataConfig(), still, None).build_model(nnx.Rngs(0))
    loss = nnx.jit(task.loss)
    losses = {float(loss(quiet, batch, jax.random.key(i))[0]) for i in (0, 0, 1)}
    assert len(losses) == 2
    statistics = nnx.jit(task.batch_statistics)(quiet, batch)
    evaluated = float(statistics["loss"] / statistics["weight"])
    unmoved = TASK.prepare(DataConfig(shift=0.0), still, None)
    assert float(nnx.jit(unmoved.loss)(quiet, batch, jax.random.key(0))[0]) == pytest.approx(
        evaluated, rel=1e-5
    )


def test_baselines_are_fitted_on_train_and_scored_on_test(task, monkeypatch):
    fits = task.baselines()
    assert set(fits) == {"logistic_regression", "rbf_svm"}
    assert fits["rbf_svm"]()["accuracy"] > 0.97
    monkeypatch.setattr(baselines, "STRENGTHS", (0.1,))
    train, test = task.examples("train"), task.examples("test")
    classifier = LogisticRegression(C=0.1, max_iter=2000)
    classifier.fit(train.images.reshape(-1, 64), train.labels)
    expected = metrics.f1_score(
        test.labels, classifier.predict(test.images.reshape(-1, 64)), average="macro"
    )
    found = fits["logistic_regression"]()
    assert found["macro_f1"] == pytest.approx(expected)
    assert found["seconds"] >= 0


def test_figures(task, model, batches):
    (batch,) = batches[0]
    first = {name: value[:3] for name, value in batch.items()}
    attention = jax.device_get(nnx.jit(task.attention)(model, first))
    outputs = {"probabilities": np.eye(10)[task.examples("validation").labels]}
    statistics = summed(task.batch_statistics, model, batches[0])
    matrix, *images = task.figures(statistics, outputs, "validation", attention)
    assert isinstance(matrix, ConfusionMatrix)
    assert len(images) == 3
    for index, figure in enumerate(images):
        assert isinstance(figure, AttendedImage)
        label = task.examples("validation").labels[index]
        assert figure.caption == f"predicted {label}, true {label}"
        assert figure.image.shape == (8, 8)
        np.testing.assert_allclose(
            figure.weights.ravel(), attention["head"][index].mean(axis=0), rtol=1e-6
        )
        assert figure.weights.shape == (2, 2)


def test_restored_from_assets_it_predicts(task, model):
    restored = TASK.restore(DataConfig(), MODEL, task.assets())
    typed = ",".join(["0"] * 32 + ["16"] * 32)
    (batch,) = evaluation_batches(restored.inputs([typed]), batch_size=2)
    found = nnx.jit(restored.outputs)(model, batch)
    outputs = {name: np.asarray(value)[:1] for name, value in found.items()}
    (answer,) = restored.describe([typed], outputs)
    best = int(outputs["probabilities"][0].argmax())
    assert answer["label"] == str(best)
    assert answer["text"].startswith(f"{best}  {best} 0.")
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-3)


def test_patches_that_do_not_fit_are_refused_before_any_data_is_read():
    with pytest.raises(UserError, match=r"config\.model\.patch_size: must divide .* 8 pixels"):
        TASK.prepare(DataConfig(), dataclasses.replace(MODEL, patch_size=3), None)


def test_configs():
    assert load_file("configs/image_classification.py").model.head == "multi_head"
    assert load_file("configs/image_classification.py:cls").name == "vit_cls"
    with pytest.raises(UserError, match="head must be one of cls"):
        load_file("configs/image_classification.py:clss")
