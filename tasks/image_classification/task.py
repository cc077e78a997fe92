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
from tasks.classification import classes_by_probability
from tasks.common.backbones import convolutional, transformer
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SplitSummary
from tasks.common.errors import UserError
from tasks.common.images.augmentation import (
    AugmentationConfig,
    augment,
    mixup,
    random_translation,
)
from tasks.common.keys import example_keys
from tasks.common.metrics.classification import classification_metrics
from tasks.figures import AttendedImage, ConfusionMatrix, Figure
from tasks.image_classification import baselines, user_files
from tasks.image_classification.convnet import ConvNet, ConvNetConfig
from tasks.image_classification.data import DataConfig, ImageData, load
from tasks.image_classification.datasets import DATA_SETS, Images
from tasks.image_classification.model import MODEL_CONFIGS, VisionTransformer, ViTConfig
from tasks.image_classification.resnet import ResNetClassifier, ResNetClassifierConfig
from tasks.task import OldTask

Config = ViTConfig | ConvNetConfig | ResNetClassifierConfig
Model = VisionTransformer | ConvNet | ResNetClassifier


class ImageClassification(OldTask):
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
        pictures: ImageData | None = None,
    ):
        """Use `prepare` or `restore`.

        Args:
          data, model: configs.
          labels: names of the classes.
          pictures: the splits; None where only predictions are wanted.
        """
        self._data, self._model = data, model
        self._labels, self._pictures = tuple(labels), pictures

    # ------------------------------------------------------------------ making

    @classmethod
    def prepare(cls, data: DataConfig, model: Config, paths: Paths) -> ImageClassification:
        """See `Task.prepare`."""
        if isinstance(model, ViTConfig):
            _check_patches(model, data.side)
        pictures = load(data, paths)
        return cls(data, model, pictures.labels, pictures)

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
        return self._pictures.fingerprint

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the parts of the data."""
        return self._pictures.parts

    # ------------------------------------------------------------------ data

    def examples(self, split: str) -> Images:
        """See `Task.examples`."""
        return self._pictures.splits[split]

    def summary(self) -> dict[str, SplitSummary]:
        """Images by class."""
        return self._pictures.summary()

    # ------------------------------------------------------------------ model

    def build_model(self, rngs: nnx.Rngs) -> Model:
        """See `Task.build_model`."""
        shape, classes = self._data.image_shape, len(self._labels)
        if isinstance(self._model, ViTConfig):
            return VisionTransformer(self._model, shape, classes, rngs=rngs)
        kind = ConvNet if isinstance(self._model, ConvNetConfig) else ResNetClassifier
        return kind(self._model, shape[-1], classes, rngs=rngs)

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], dropout_key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy, and the accuracy, both of pictures changed at random and under dropout.

        With mixup the loss is of both labels, each by its share of the picture, and the accuracy is
        that of the first.
        """
        images, mixed = self._changed(batch, dropout_key)
        options = {"dropout_key": jax.random.split(dropout_key)[1]}
        if not isinstance(model, VisionTransformer):
            options |= {"valid": batch["weight"] > 0, "training": True}
        logits = model(images, **options)
        rows = jnp.maximum(jnp.sum(batch["weight"]), 1)
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        accuracy = jnp.sum(correct * batch["weight"]) / rows
        losses = _losses(logits, batch)
        if mixed is not None:
            partner, share = mixed
            other = _losses(logits, {**batch, "label": batch["label"][partner]})
            losses = share * losses + (1 - share) * other
        return jnp.sum(losses) / rows, {"accuracy": accuracy}

    def _changed(
        self, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """The pictures as training sees them, and partners and shares of mixup if it is there."""
        data = self._data
        images = random_translation(_floating(batch["image"]), data.shift, jax.random.split(key)[0])
        if data.augmentation == AugmentationConfig() and not data.mixup:
            return images, None
        # Of other numbers than those of split.
        augment_keys, mixup_keys = (
            example_keys(jax.random.fold_in(key, number), batch["id"]) for number in (2, 3)
        )
        images = augment(images, augment_keys, data.augmentation)
        if not data.mixup:
            return images, None
        images, *mixed = mixup(images, mixup_keys, data.mixup, batch["weight"] > 0)
        return images, tuple(mixed)

    def batch_statistics(
        self, model: Model, batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Summed cross-entropy, number of pictures, confusion counts [true, predicted]."""
        logits = model(_floating(batch["image"]))
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
        return {"probabilities": jax.nn.softmax(model(_floating(batch["image"])))}

    def attention(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What the model returns: of a ViT the encoder's layers [B, L, N, T, T] and what the head
        takes [B, heads, P]; of a convolutional network the map attention of each stage."""
        vit = isinstance(model, VisionTransformer)
        if vit and "weights" not in registry.find("mixer", self._model.mixer).capabilities:
            return {}
        return model(_floating(batch["image"]), return_weights=True)[1]

    # ------------------------------------------------------------------ on the host

    def finalize(
        self, statistics: Mapping[str, Any], outputs: Mapping[str, np.ndarray], split: str
    ) -> dict[str, float]:
        """Loss, and the metrics of `tasks.common.metrics.classification`."""
        labels = self._pictures.splits[split].labels
        metrics = classification_metrics(labels, _predicted(outputs), self._labels)
        return {**metrics, "loss": float(statistics["loss"] / statistics["weight"])}

    def example_ids(self, split: str) -> np.ndarray:
        """Of the files, or of images of one size, and the names of their classes."""
        part = self._pictures.splits[split]
        images = part.images if part.ids is None else part.ids
        return digests.ids(images, [self._labels[label] for label in part.labels])

    def correctness(self, outputs: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """1 where the class is right."""
        return (_predicted(outputs) == self._pictures.splits[split].labels).astype(np.float32)

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
        examples = self._pictures.splits[split]
        for index, where, weights in self._attended(attention):
            predicted = self._labels[_predicted(outputs)[index]]
            true = self._labels[examples.labels[index]]
            caption = f"predicted {predicted}, true {true}{where}"
            drawn.append(AttendedImage(caption, _shown(examples.images[index]), weights))
        return drawn

    def _attended(
        self, attention: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[int, str, np.ndarray]]:
        """Number of the picture, words about the place in the model, and a map [y, x]."""
        if isinstance(self._model, ViTConfig):
            grid = [side // self._model.patch_size for side in self._data.image_shape[:2]]
            for index, weights in enumerate(attention.get("head", ())):
                yield index, "", weights.mean(axis=0).reshape(grid)
            return
        grids = self._model.sides(*self._data.image_shape[:2])
        line = convolutional.map_attention_entry(self._model.attention)
        for index in range(min(map(len, attention.values()), default=0)):
            for grid, (name, weights) in zip(grids, attention.items(), strict=True):
                found = convolutional.spatial_importance(
                    weights[index], grid, "gate" in line.capabilities
                )
                if found is not None:
                    yield index, f" ({name.replace('_', ' ')})", found

    def baselines(self) -> dict[str, Callable[[], dict[str, float]]]:
        """Softmax regression on the pixels, and an SVM: on the pixels of digits, which are few, on
        oriented gradients of other pictures.
        """
        fits = {"logistic_regression": baselines.logistic_regression}
        if self._data.name == "digits":
            fits["rbf_svm"] = baselines.rbf_svm
        else:
            fits["hog_linear_svc"] = baselines.hog_linear_svc
        return {
            name: functools.partial(fit, self._pictures.splits, self._labels)
            for name, fit in fits.items()
        }

    # ------------------------------------------------------------------ predict

    def inputs(self, raw: Sequence[str]) -> Images:
        """Paths of pictures, or numbers; see `files.read_inputs`."""
        return user_files.read_inputs(raw, DATA_SETS.get(self._data.name), self._data.side)

    def describe(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """Label and probabilities, the most probable first."""
        # Ten classes are too many for a line.
        return classes_by_probability(raw, outputs["probabilities"], self._labels, shown=3)

    def pictures(
        self,
        raw: Sequence[str],
        outputs: Mapping[str, np.ndarray],
        attention: Mapping[str, np.ndarray],
    ) -> list[list[Figure]]:
        """Where the model looked in each picture, which is drawn as the model has it."""
        drawn: list[list[Figure]] = [[] for _ in raw]
        images = self.inputs(raw).images
        for index, where, weights in self._attended(attention):
            predicted = self._labels[_predicted(outputs)[index]]
            caption = f"{raw[index]}: {predicted}{where}"
            drawn[index].append(AttendedImage(caption, _shown(images[index]), weights))
        return drawn


def _predicted(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.argmax(outputs["probabilities"], axis=-1)


def _shown(image: np.ndarray) -> np.ndarray:
    """[Y, X, C] as figures take it: grey without the last axis."""
    return image[..., 0] if image.shape[-1] == 1 else image


def _losses(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Cross-entropy of each row, 0 for padding rows: [B]."""
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return jnp.where(batch["weight"] > 0, rows * batch["weight"], 0)


def _floating(images: jax.Array) -> jax.Array:
    """Pictures from 0 to 1; bytes are divided by 255."""
    return images / jnp.float32(255) if images.dtype == jnp.uint8 else images


def _check_patches(model: ViTConfig, side: int) -> None:
    if side % model.patch_size:
        raise UserError(
            f"config.model.patch_size: must divide the pictures' {side} pixels a side, got "
            f"{model.patch_size}"
        )


TASK = ImageClassification
