"""Image classification by the contract: figures from elsewhere, and rows that count for nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from launch.engine.config import load_file
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.errors import UserError
from tasks.common.images.augmentation import AugmentationConfig
from tasks.figures import AttendedImage, ConfusionMatrix, Shown, SplitResults
from tasks.image_classification import baselines
from tasks.image_classification.data import DataConfig, ImageData
from tasks.image_classification.datasets import Images
from tasks.image_classification.model import ViTConfig
from tasks.image_classification.resnet import ResNetClassifier, ResNetClassifierConfig
from tasks.image_classification.task import TASK, ImageProcessor

MODEL = ViTConfig(patch_size=4, model_size=8, num_layers=1, num_heads=2, feedforward_size=12)


@pytest.fixture(scope="module")
def task():
    return TASK.prepare(DataConfig(), MODEL, None)


@pytest.fixture(scope="module")
def model(task):
    return task.build_model(nnx.Rngs(0))


@pytest.fixture(scope="module")
def batches(task):
    """Returns the validation split in one batch."""
    return list(evaluation_batches(task.examples("validation"), batch_size=160))


def test_statistics_and_metrics_agree_with_scikit_learn(task, model, batches):
    examples = task.examples("validation")
    (batch,) = batches
    statistics, outputs = jax.device_get(nnx.jit(task.evaluate)(model, batch))
    predicted = outputs["probabilities"].argmax(axis=1)
    confusion = metrics.confusion_matrix(examples.labels, predicted, labels=range(10))
    np.testing.assert_array_equal(statistics["confusion"], confusion)
    found = task.metrics(statistics, outputs, "validation")
    assert found["loss"] == pytest.approx(
        metrics.log_loss(examples.labels, outputs["probabilities"], labels=range(10)), rel=1e-5
    )
    assert found["accuracy"] == metrics.accuracy_score(examples.labels, predicted)
    assert task.example_scores(outputs, "validation").mean() == pytest.approx(found["accuracy"])
    assert set(TASK.table_metrics) <= found.keys()


def test_loss_ignores_infinite_padding_rows(task, model, batches):
    (batch,) = batches
    batch = {name: value[:4] for name, value in batch.items()}
    batch["weight"], batch["image"] = np.float32([1, 1, 1, 0]), batch["image"].copy()
    batch["image"][3] = np.inf
    assert np.isfinite(nnx.jit(task.loss)(model, batch, jax.random.key(0))[0])


def test_training_moves_the_pictures_and_evaluation_does_not(batches):
    task = TASK.prepare(DataConfig(), MODEL, None)
    (batch,) = batches
    still = dataclasses.replace(MODEL, dropout_rate=0.0, head_dropout_rate=0.0)
    quiet = task.prepare(DataConfig(), still, None).build_model(nnx.Rngs(0))
    loss = nnx.jit(task.loss)
    losses = {float(loss(quiet, batch, jax.random.key(i))[0]) for i in (0, 0, 1)}
    assert len(losses) == 2
    statistics, _ = nnx.jit(task.evaluate)(quiet, batch)
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


def test_gradients_are_counted_by_their_directions():
    """A ramp: all gradients point one way, and all blocks are equal but at the border."""
    down, right = np.mgrid[0:16, 0:16].astype(np.float32) / 16
    for ramp, direction in ((right, 0.0), (down, np.pi / 2), (right + down, np.pi / 4)):
        found = baselines.oriented_gradients(ramp[None]).reshape(3, 3, 9, 4)[1, 1]
        # Middles of the nine parts of half a circle; a direction is shared between two.
        middles = (np.arange(9) + 0.5) * np.pi / 9
        apart = np.abs((middles - direction + np.pi / 2) % np.pi - np.pi / 2) / (np.pi / 9)
        share = np.maximum(1 - apart, 0)
        share /= np.linalg.norm(np.tile(share, 4))
        share = np.minimum(share, 0.2)
        share /= np.linalg.norm(np.tile(share, 4))
        np.testing.assert_allclose(found, np.tile(share, (4, 1)).T, atol=1e-3)


def colorful(count=60):
    """Returns two classes that differ in where they are bright, in colors."""
    rng = np.random.default_rng(0)
    labels = (np.arange(count) % 2).astype(np.int32)
    images = rng.integers(0, 60, (count, 70, 70, 3), np.uint8)
    images[labels == 1, 20:50, 20:50] += 100
    examples = Images(images, labels)
    return ImageData(("flat", "square"), dict.fromkeys(("train", "validation", "test"), examples))


def colorful_task(data, model):
    return TASK(data, model, ImageProcessor(data, model, ["flat", "square"]), colorful())


def test_baselines_of_own_pictures():
    """Returns examples of the given sizes."""
    task = colorful_task(DataConfig(path="x", image_size=70), MODEL)
    fits = task.baselines()
    assert set(fits) == {"logistic_regression", "hog_linear_svc", "hog_rbf_svm"}
    assert [fits[name]()["accuracy"] for name in fits] == [1.0, 1.0, 1.0]
    # Small images have fewer gradients than the SVM uses components.
    images = np.tile(task.dataset.splits["train"].images, (5, 1, 1, 1))[:, ::8, ::8]
    part = Images(images, np.arange(len(images), dtype=np.int32) % 2)
    found = baselines.hog_rbf_svm(dict.fromkeys(("train", "validation", "test"), part))
    np.testing.assert_array_equal(found, part.labels)
    small = np.zeros((2, 5, 20, 1), np.float32)
    assert baselines._gradients(small).shape == (2, 4 * 36)


# ---------------------------------------------------------------- convolutional networks

RESNET = ResNetClassifierConfig(channels=(4, 8), depths=(1, 1), attention="cbam", dropout_rate=0.5)


def own_batch(side=9):
    pictures = colorful(4).splits["train"]
    return {
        "image": jnp.asarray(pictures.images[:, 20 : 20 + side, 20 : 20 + side]),
        "label": jnp.asarray(pictures.labels),
        "weight": jnp.array([1.0, 1.0, 1.0, 0.0]),
        "id": jnp.array([5, 2, 9, -1], jnp.int32),
    }


@pytest.mark.slow
def test_the_residual_network_classifies_own_pictures():
    """A step with all that can be changed at random; figures and answers after it."""
    augmentation = AugmentationConfig(
        scale_min=0.8, scale_max=1.2, crop_padding=1, flip=True, brightness=0.2, hue=0.1, cutout=3
    )
    data = DataConfig(path="x", image_size=9, shift=0.0, augmentation=augmentation, mixup=0.4)
    task = colorful_task(data, RESNET)
    batch = own_batch()

    @nnx.jit
    def step(model, batch):
        (loss, metrics), slopes = nnx.value_and_grad(
            lambda model: task.loss(model, batch, jax.random.key(0)), has_aux=True
        )(model)
        return loss, metrics, slopes, nnx.state(model, nnx.BatchStat)

    losses = []
    for last in (batch["image"][3], 255 - batch["image"][3]):
        model = task.build_model(nnx.Rngs(0))
        before = jax.tree.map(jnp.copy, nnx.state(model, nnx.BatchStat))
        changed = {**batch, "image": batch["image"].at[3].set(last)}
        loss, metrics, slopes, after = step(model, changed)
        losses.append([loss, slopes, after])
        moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), before, after)
        assert min(jax.tree.leaves(moved)) > 0
        assert 0 <= metrics["accuracy"] <= 1
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes))
    # What the row of weight 0 holds counts for nothing.
    for left, right in zip(*map(jax.tree.leaves, losses), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)

    logits, weights = nnx.jit(ResNetClassifier.__call__, static_argnames="return_weights")(
        model, batch["image"] / jnp.float32(255), return_weights=True
    )
    found = nnx.jit(task.predict)(model, batch)["probabilities"]
    np.testing.assert_allclose(found, jax.nn.softmax(logits), atol=1e-5)
    attention = {name: np.asarray(each[:1]) for name, each in weights.items()}
    outputs = {"probabilities": np.eye(2)[task.examples("test").labels]}
    results = SplitResults({"confusion": np.eye(2)}, outputs, "test", [Shown(0)], attention)
    _, *drawn = task.figures(results)
    assert [figure.weights.shape for figure in drawn] == [(9, 9), (5, 5)]
    assert drawn[0].image.shape == (70, 70, 3)
    assert drawn[1].caption == "test example 0: predicted flat (1.00), true flat (stage 2)"


def test_mixup_takes_both_labels_by_their_shares(monkeypatch):
    """A model with constant predictions has the entropy of the labels as its loss."""
    logits = jnp.array([2.0, -1.0])
    data = DataConfig(path="x", image_size=9, shift=0.0, mixup=1.0)
    task = colorful_task(data, RESNET)
    shares = {}

    def constant(images, **options):
        return jnp.broadcast_to(logits, (len(images), 2))

    def fixed(images, keys, alpha, valid):
        assert alpha == 1.0
        shares["valid"] = valid
        return images, jnp.array([3, 2, 1, 0]), jnp.array([1.0, 0.25, 0.5, 1.0])

    monkeypatch.setattr("tasks.image_classification.task.mixup", fixed)
    loss, metrics = task.loss(constant, own_batch(), jax.random.key(0))
    flat, square = -jax.nn.log_softmax(logits)
    expected = flat + (0.25 * square + 0.75 * flat) + (0.5 * flat + 0.5 * square)
    assert loss == pytest.approx(float(expected) / 3)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    np.testing.assert_array_equal(shares["valid"], [True, True, True, False])


def test_dropout_rate_of_the_residual_network():
    with pytest.raises(ValueError, match=r"^dropout_rate: got 1.0"):
        ResNetClassifierConfig(dropout_rate=1.0)
    with pytest.raises(ValueError, match=r"^depths: got \[1\], expected as many"):
        ResNetClassifierConfig(depths=(1,))


def test_figures(task, model, batches):
    (batch,) = batches
    first = {name: value[:3] for name, value in batch.items()}
    attention = jax.device_get(nnx.jit(task.attention)(model, first))
    outputs = {"probabilities": np.eye(10)[task.examples("validation").labels]}
    statistics = jax.device_get(nnx.jit(task.evaluate)(model, batches[0])[0])
    shown = list(map(Shown, range(3)))
    results = SplitResults(statistics, outputs, "validation", shown, attention)
    matrix, *images = task.figures(results)
    assert isinstance(matrix, ConfusionMatrix)
    assert len(images) == 3
    for index, figure in enumerate(images):
        assert isinstance(figure, AttendedImage)
        label = task.examples("validation").labels[index]
        assert figure.caption == (
            f"validation example {index}: predicted {label} (1.00), true {label}"
        )
        assert figure.image.shape == (8, 8)
        np.testing.assert_allclose(
            figure.weights.ravel(), attention["head"][index].mean(axis=0), rtol=1e-6
        )
        assert figure.weights.shape == (2, 2)


def test_restored_from_assets_it_predicts(task, model):
    restored = TASK.restore(DataConfig(), MODEL, task.assets())
    typed = ",".join(["0"] * 32 + ["16"] * 32)
    (batch,) = evaluation_batches(restored.processor.encode([typed]), batch_size=2)
    found = nnx.jit(restored.predict)(model, batch)
    outputs = {name: np.asarray(value)[:1] for name, value in found.items()}
    (answer,) = restored.processor.decode([typed], outputs)
    best = int(outputs["probabilities"][0].argmax())
    assert answer["label"] == str(best)
    assert answer["text"].startswith(f"{best}  {best} 0.")
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    weights = np.random.default_rng(0).uniform(size=(1, 4, 4))
    (figure,), *none = restored.input_figures([typed], outputs, {"head": weights})
    assert not none
    assert figure.caption == f"{typed}: {best}"
    np.testing.assert_array_equal(figure.image, np.repeat([0.0, 1.0], 32).reshape(8, 8))
    np.testing.assert_allclose(figure.weights, weights[0].mean(axis=0).reshape(2, 2))
    assert restored.input_figures([typed, typed], outputs, {}) == [[], []]


def test_patches_that_do_not_fit_are_refused_before_any_data_is_read():
    with pytest.raises(UserError, match=r"config\.model\.patch_size: got 3, .* 8 pixels"):
        TASK.prepare(DataConfig(), dataclasses.replace(MODEL, patch_size=3), None)


def test_configs():
    load = functools.partial(config_of, "configs/image_classification.py")
    assert load().model.head == "multi_head"
    assert load("cls").name == "vit_cls"
    assert load("cls") == load("digits,vit,cls")
    assert load("convnet,cbam") == load("digits,convnet,cbam")
    with pytest.raises(UserError, match=r"head: got .clss., expected one of 'cls'"):
        load("clss")
    found = load("fashion_mnist,resnet,se(reduction=4)")
    assert (found.name, found.data.name) == ("resnet_se_reduction_4", "fashion_mnist")
    assert found.model.attention == "se(reduction=4)"
    assert load("fashion_mnist").model.head == "multi_head"
    with pytest.raises(UserError, match="attention: got 'cbm'"):
        load("fashion_mnist,convnet,cbm")
    found = load("fashion_mnist,convnet,se(reduction=4),long")
    assert (found.name, found.training.steps) == ("convnet_se_reduction_4_long", 12_000)
    assert found.model == load("fashion_mnist,convnet,se(reduction=4)").model
    with pytest.raises(UserError, match="',long' at the end is for fashion_mnist only"):
        load("digits,convnet,long")


@pytest.mark.parametrize(
    ("model", "expected"),
    [("vit", 86_650), ("vit,cls", 79_690), ("convnet", 83_642), ("resnet", 77_754)],
)
def test_networks_for_fashion_mnist_have_less_than_100_000_weights(model, expected):
    """With CBAM the convolutional ones too."""
    attention = [""] if "vit" in model else ["", ",cbam"]
    counts = [counted(f"fashion_mnist,{model}{slot}") for slot in attention]
    assert counts[0] == expected
    assert max(counts) < 100_000


def counted(argument):
    config = config_of("configs/image_classification.py", argument)
    task = TASK.restore(config.data, config.model, {"labels": [""] * 10})
    shapes = nnx.eval_shape(lambda: nnx.state(task.build_model(nnx.Rngs(0)), nnx.Param))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def config_of(path, argument=""):
    return load_file(f"{path}:{argument}" if argument else path)
