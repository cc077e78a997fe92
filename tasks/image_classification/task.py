"""Image classification by the task contract."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from attention import registry
from tasks.common.answers import ranked_classes
from tasks.common.augmentation import random_shift
from tasks.common.backbones import convolutional, transformer
from tasks.common.errors import UserError
from tasks.common.metrics import classification_metrics
from tasks.common.paths import Paths
from tasks.figures import AttendedImage, ConfusionMatrix, Figure
from tasks.image_classification import baselines
from tasks.image_classification import data as pictures
from tasks.image_classification.convnet import ConvNet, ConvNetConfig
from tasks.image_classification.data import DataConfig, Images
from tasks.image_classification.model import MODEL_CONFIGS, VisionTransformer, ViTConfig
from tasks.task import Task

IMAGE_SHAPE = (pictures.SIDE, pictures.SIDE, 1)
Config = ViTConfig | ConvNetConfig
Model = VisionTransformer | ConvNet


class ImageClassification(Task):
    """A picture [Y, X, C] -> one of the classes."""

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    primary_metric = "accuracy"
    table_metrics = ("accuracy", "macro_f1", "mcc")
    sharding_rules = (*transformer.SHARDING_RULES, *convolutional.SHARDING_RULES)

    def __init__(
        self,
        data: DataConfig,
        model: Config,
        labels: Sequence[str],
        splits: Mapping[str, Images] | None = None,
    ):
        """Use `prepare` or `restore`.

        Args:
          data, model: configs.
          labels: names of the classes.
          splits: the pictures; None where only predictions are wanted.
        """
        self._data, self._model = data, model
        self._labels, self._splits = tuple(labels), splits

    # ------------------------------------------------------------------ making

    @classmethod
    def prepare(cls, data: DataConfig, model: Config, paths: Paths) -> ImageClassification:
        """See `Task.prepare`; the pictures come with scikit-learn."""
        if isinstance(model, ViTConfig):
            _check_patches(model)
        return cls(data, model, pictures.LABELS, pictures.load(data))

    @classmethod
    def restore(
        cls, data: DataConfig, model: Config, assets: Mapping[str, Any]
    ) -> ImageClassification:
        """See `Task.restore`."""
        return cls(data, model, assets["labels"])

    def assets(self) -> dict[str, Any]:
        """Names of the classes."""
        return {"labels": list(self._labels)}

    @property
    def fingerprint(self) -> str:
        """Of the pictures, their labels and splits."""
        return pictures.fingerprint(self._splits)

    # ------------------------------------------------------------------ data

    def examples(self, split: str) -> Images:
        """See `Task.examples`."""
        return self._splits[split]

    # ------------------------------------------------------------------ model

    def build_model(self, rngs: nnx.Rngs) -> Model:
        """See `Task.build_model`."""
        if isinstance(self._model, ConvNetConfig):
            return ConvNet(self._model, IMAGE_SHAPE[-1], len(self._labels), rngs=rngs)
        return VisionTransformer(self._model, IMAGE_SHAPE, len(self._labels), rngs=rngs)

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], dropout_key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy, and the accuracy, both of pictures moved at random and under dropout."""
        shift_key, dropout_key = jax.random.split(dropout_key)
        images = random_shift(batch["image"], self._data.shift, shift_key)
        options = {"dropout_key": dropout_key}
        if isinstance(model, ConvNet):
            options |= {"valid": batch["weight"] > 0, "training": True}
        logits = model(images, **options)
        rows = jnp.maximum(jnp.sum(batch["weight"]), 1)
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        accuracy = jnp.sum(correct * batch["weight"]) / rows
        return jnp.sum(_losses(logits, batch)) / rows, {"accuracy": accuracy}

    def batch_statistics(
        self, model: Model, batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Summed cross-entropy, number of pictures, confusion counts [true, predicted]."""
        logits = model(batch["image"])
        classes = len(self._labels)
        confusion = jnp.zeros((classes, classes), jnp.int32)
        counted = (batch["weight"] > 0).astype(jnp.int32)
        return {
            "loss": jnp.sum(_losses(logits, batch)),
            "weight": jnp.sum(batch["weight"]),
            "confusion": confusion.at[batch["label"], jnp.argmax(logits, axis=-1)].add(counted),
        }

    def outputs(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Probabilities [B, classes]."""
        return {"probabilities": jax.nn.softmax(model(batch["image"]))}

    def attention(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What the model returns: of a ViT the encoder's layers [B, L, N, T, T] and what the head
        takes [B, heads, P]; of a convolutional network the map attention of each stage."""
        vit = isinstance(model, VisionTransformer)
        if vit and "weights" not in registry.find("mixer", self._model.mixer).can:
            return {}
        return model(batch["image"], return_weights=True)[1]

    # ------------------------------------------------------------------ on the host

    def finalize(
        self, statistics: Mapping[str, Any], outputs: Mapping[str, np.ndarray], split: str
    ) -> dict[str, float]:
        """Loss, and the metrics of `tasks.common.metrics`."""
        labels = self._splits[split].labels
        metrics = classification_metrics(labels, _predicted(outputs), self._labels)
        return {**metrics, "loss": float(statistics["loss"] / statistics["weight"])}

    def correctness(self, outputs: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """1 where the class is right."""
        return (_predicted(outputs) == self._splits[split].labels).astype(np.float32)

    def figures(
        self,
        statistics: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
        split: str,
        attention: Mapping[str, np.ndarray],
    ) -> list[Figure]:
        """Confusion matrix, and where the model looks in the first pictures."""
        drawn: list[Figure] = [
            ConfusionMatrix(f"{split} split", statistics["confusion"], self._labels)
        ]
        examples = self._splits[split]
        for index, where, weights in self._attended(attention):
            predicted = self._labels[_predicted(outputs)[index]]
            true = self._labels[examples.labels[index]]
            caption = f"predicted {predicted}, true {true}{where}"
            drawn.append(AttendedImage(caption, examples.images[index, ..., 0], weights))
        return drawn

    def _attended(
        self, attention: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[int, str, np.ndarray]]:
        """Number of the picture, words about the place in the model, and a map [y, x]."""
        if isinstance(self._model, ViTConfig):
            grid = [side // self._model.patch_size for side in IMAGE_SHAPE[:2]]
            for index, weights in enumerate(attention.get("head", ())):
                yield index, "", weights.mean(axis=0).reshape(grid)
            return
        grids = self._model.sides(*IMAGE_SHAPE[:2])
        line = convolutional.slot_line(self._model.attention)
        for index in range(min(map(len, attention.values()), default=0)):
            for grid, (name, weights) in zip(grids, attention.items(), strict=True):
                found = convolutional.places(weights[index], grid, "gate" in line.can)
                if found is not None:
                    yield index, f" ({name.replace('_', ' ')})", found

    def baselines(self) -> dict[str, Callable[[], dict[str, float]]]:
        """Softmax regression and an SVM on the pixels."""
        fits = {
            "logistic_regression": baselines.logistic_regression,
            "rbf_svm": baselines.rbf_svm,
        }
        return {
            name: functools.partial(fit, self._splits, self._labels) for name, fit in fits.items()
        }

    # ------------------------------------------------------------------ predict

    def inputs(self, raw: Sequence[str]) -> Images:
        """Paths of pictures, or their 64 numbers; see `data.read_image`."""
        return pictures.read_images(raw)

    def describe(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """Label and probabilities, the most probable first."""
        # Ten classes are too many for a line.
        return ranked_classes(raw, outputs["probabilities"], self._labels, shown=3)


def _predicted(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.argmax(outputs["probabilities"], axis=-1)


def _losses(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Cross-entropy of each row, 0 for padding rows: [B]."""
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return jnp.where(batch["weight"] > 0, rows * batch["weight"], 0)


def _check_patches(model: ViTConfig) -> None:
    if pictures.SIDE % model.patch_size:
        raise UserError(
            f"config.model.patch_size: must divide the pictures' {pictures.SIDE} pixels a side, "
            f"got {model.patch_size}"
        )


TASK = ImageClassification
