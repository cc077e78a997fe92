"""Image classification with convolutional networks and Vision Transformers.

B batch, Y X height and width, C channels, P patches, T tokens, L layers, N heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import registry
from tasks.classification import (
    ClassificationTask,
    check_class_weights,
    classes_by_probability,
    predicted_classes,
)
from tasks.common.backbones import convolutional, transformer
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.splits import class_indices
from tasks.common.errors import UserError
from tasks.common.images.augmentation import AugmentationConfig, augment, mixup, random_translation
from tasks.common.images.files import SUFFIXES
from tasks.common.images.pixels import drawable, grid_labels, to_unit
from tasks.common.keys import example_keys
from tasks.figures import AttendedImage, ConfusionMatrix, Figure, SplitResults
from tasks.image_classification import baselines, user_files
from tasks.image_classification.convnet import ConvNet, ConvNetConfig
from tasks.image_classification.data import DataConfig, ImageData, load
from tasks.image_classification.datasets import DATA_SETS, Images
from tasks.image_classification.explainer import ImageExplainer
from tasks.image_classification.labeled_files import OWN_DATA
from tasks.image_classification.model import MODEL_CONFIGS, VisionTransformer, ViTConfig
from tasks.image_classification.resnet import ResNetClassifier, ResNetClassifierConfig
from tasks.task import Arrays, ArraySpec, Axes, Batch, ProcessingSteps, Processor, Task

Config = ViTConfig | ConvNetConfig | ResNetClassifierConfig
Model = VisionTransformer | ConvNet | ResNetClassifier
# Number of classes that the text of a prediction lists.
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class ImageProcessor(Processor):
    """Processor that reads images and returns class names.

    Attributes:
      data, model: configs of the data set and of the model.
      labels: names of the classes.
    """

    labels: Sequence[str]

    input_suffixes = SUFFIXES

    @property
    def input_column(self) -> str:
        """Column of the paths of images."""
        return self.data.image_column

    def encode(self, raw: Sequence[str]) -> Images:
        """Reads images from paths or lists of pixel values, see `user_files.read_inputs`."""
        return user_files.read_inputs(raw, DATA_SETS.get(self.data.name), self.data.side)

    def decode(self, raw: Sequence[str], outputs: Arrays) -> list[dict[str, Any]]:
        """Returns label, class probabilities and, as text, the three most probable classes."""
        return classes_by_probability(raw, outputs["probabilities"], self.labels, _SHOWN)

    def signature(self) -> dict[str, ArraySpec]:
        """Returns the specification of the image: float32 for built-in data sets, else uint8."""
        dtype = "float32" if self.data.path is None else "uint8"
        return {"image": ArraySpec(("batch", *self.data.image_shape), dtype)}

    def steps(self) -> ProcessingSteps:
        """Returns the processing steps of exports, which read images and rank classes."""
        side, built_in = self.data.side, DATA_SETS.get(self.data.name)
        if built_in is None:
            encode: list[dict[str, Any]] = [
                {"op": "read_image", "mode": "RGB", "to": "image"},
                {"op": "crop_square", "to": "image"},
                {"op": "resize", "size": [side, side], "to": "image"},
            ]
        else:
            encode = [{"op": "light_on_dark", "side": side, "ink": built_in.ink, "to": "image"}]
        decode = [{"op": "rank_labels", "labels": list(self.labels), "shown": _SHOWN}]
        return ProcessingSteps("image", encode, decode, libraries=["pillow"])


class ImageClassification(ClassificationTask):
    """Classification of images [Y, X, C]."""

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    processor_type = ImageProcessor
    own_data = OWN_DATA
    baseline_version = 2
    sharding_rules = (*transformer.SHARDING_RULES, *convolutional.SHARDING_RULES)

    @classmethod
    def check(cls, data: DataConfig, model: Config) -> None:
        """Checks that patches divide the image."""
        if isinstance(model, ViTConfig) and data.side % model.patch_size:
            raise UserError(
                f"config.model.patch_size: got {model.patch_size}, expected a divisor of the "
                f"images' side of {data.side} pixels"
            )

    load = staticmethod(load)

    @classmethod
    def fit(
        cls, dataset: ImageData, data: DataConfig, model: Config, paths: Paths
    ) -> ImageProcessor:
        """Builds the processor with the data set's classes."""
        check_class_weights(model, dataset.splits["train"].labels, dataset.labels)
        return ImageProcessor(data, model, list(dataset.labels))

    def with_file(self, file: str, images: str | None = None) -> Task:
        """Reads a folder with a folder for each class, or a table with paths and labels."""
        paths, labels, places = user_files.labeled_paths(file, self.data)
        numbers = class_indices(file, labels, places, self.labels)
        read = user_files.read_labeled(file, paths, DATA_SETS.get(self.data.name), self.data.side)
        split = Images(read.images, numbers, read.ids)
        return self._with_dataset(ImageData(tuple(self.labels), {"test": split}), paths)

    # ------------------------------------------------------------------ objective

    def build_model(self, rngs: nnx.Rngs) -> Model:
        """Returns the network of the config's type."""
        shape, classes = self.data.image_shape, len(self.labels)
        if isinstance(self.model, ViTConfig):
            return VisionTransformer(self.model, shape, classes, rngs=rngs)
        kind = ConvNet if isinstance(self.model, ConvNetConfig) else ResNetClassifier
        return kind(self.model, shape[-1], classes, rngs=rngs)

    def logits(self, model: Model, batch: Batch, dropout_key: jax.Array | None = None) -> jax.Array:
        """Computes the logits [B, classes] of a batch; with a dropout key, in training mode."""
        options: dict[str, Any] = {"dropout_key": dropout_key}
        if dropout_key is not None and not isinstance(model, VisionTransformer):
            options |= {"valid": batch["weight"] > 0, "training": True}
        return model(to_unit(batch["image"]), **options)

    def loss(self, model: Model, batch: Batch, dropout_key: jax.Array) -> tuple[jax.Array, dict]:
        """Computes cross-entropy and accuracy of augmented images under dropout.

        Mixup mixes two images with weights s and 1 - s. The loss is then s times the cross-entropy
        for the label of the first image, plus 1 - s times the cross-entropy for the label of the
        second image. The accuracy uses the label of the first image.
        """
        images, mixed = self._augmented(batch, dropout_key)
        key = jax.random.split(dropout_key)[1]
        logits = self.logits(model, {**batch, "image": images}, key)
        losses = self.weighted_cross_entropy(logits, batch["label"])
        if mixed is not None:
            partner, share = mixed
            other = self.weighted_cross_entropy(logits, batch["label"][partner])
            losses = share * losses + (1 - share) * other
        weight = batch["weight"]
        rows = jnp.maximum(jnp.sum(weight), 1)
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        # The losses of padding rows may be infinite, and infinity times a weight of 0 is NaN.
        total = jnp.sum(jnp.where(weight > 0, losses * weight, 0))
        return total / rows, {"accuracy": jnp.sum(correct * weight) / rows}

    def _augmented(
        self, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Returns augmented images and, with mixup, the pair (indices, weights), else None.

        Image b is mixed with image indices[b] and has the weight weights[b] in the mixture."""
        data = self.data
        images = random_translation(to_unit(batch["image"]), data.shift, jax.random.split(key)[0])
        if data.augmentation == AugmentationConfig() and not data.mixup:
            return images, None
        # Not 0 and 1, for which `fold_in` gives the same keys as `split`.
        augment_keys, mixup_keys = (
            example_keys(jax.random.fold_in(key, number), batch["id"]) for number in (2, 3)
        )
        images = augment(images, augment_keys, data.augmentation)
        if not data.mixup:
            return images, None
        images, *mixed = mixup(images, mixup_keys, data.mixup, batch["weight"] > 0)
        return images, tuple(mixed)

    def attention(self, model: Model, inputs: Batch) -> dict[str, jax.Array]:
        """Returns attention weights.

        A ViT returns "encoder" [B, L, N, T, T] and "head" [B, heads, P]; see
        `VisionTransformer.__call__`. A convolutional network returns the map attention weights of
        each stage, "stage_1", ...
        """
        vit = isinstance(model, VisionTransformer)
        if vit and "weights" not in registry.find("mixer", self.model.mixer).capabilities:
            return {}
        return model(to_unit(inputs["image"]), return_weights=True)[1]

    # ------------------------------------------------------------------ on the host

    def example_ids(self, split: str) -> np.ndarray:
        """Returns for each example a hash of its class name and its image file.

        Built-in data sets have no image files, so their pixels are hashed instead.
        """
        part = self.dataset.splits[split]
        images = part.images if part.ids is None else part.ids
        return digests.ids(images, [self.labels[label] for label in part.labels])

    def attention_axes(self, raw: str, outputs: Arrays, attention: Arrays) -> dict[str, Axes]:
        """Returns the row and column of each patch of a ViT, such as "0,3"."""
        if not isinstance(self.model, ViTConfig):
            return {}
        rows, columns = (side // self.model.patch_size for side in self.data.image_shape[:2])
        patches = grid_labels(rows, columns)
        found: dict[str, Axes] = {"head": {"head": None, "patch": patches}}
        if "encoder" in attention:
            # Tokens that are no patches, such as a classification token, come first.
            others = attention["encoder"].shape[-1] - len(patches)
            tokens = ["[CLS]"] * others + patches
            found["encoder"] = {"layer": None, "head": None, "query": tokens, "key": tokens}
        return found

    def explainer(self) -> ImageExplainer:
        """Returns the explainer, which attributes predictions to patches or cells of the image."""
        return ImageExplainer(self)

    def figures(self, results: SplitResults) -> list[Figure]:
        """Draws the confusion matrix, and attention weights over the images of `results.shown`.

        For a model without attention weights, the images are shown alone.
        """
        drawn: list[Figure] = [
            ConfusionMatrix("confusion matrix", results.statistics["confusion"], self.labels)
        ]
        examples = self.dataset.splits[results.split]
        maps: dict[int, list[tuple[str, Any]]] = {}
        for row, where, weights in self._attended(results.attention):
            maps.setdefault(row, []).append((where, weights))
        for row, example in enumerate(results.shown):
            probabilities = results.outputs["probabilities"][example.index]
            best, true = int(np.argmax(probabilities)), examples.labels[example.index]
            caption = (
                f"{results.caption(example)}: predicted {self.labels[best]} "
                f"({probabilities[best]:.2f}), true {self.labels[true]}"
            )
            image = drawable(examples.images[example.index])
            for where, weights in maps.get(row, [("", None)]):
                drawn.append(AttendedImage(caption + where, image, weights))
        return drawn

    def input_figures(
        self, raw: Sequence[str], outputs: Arrays, attention: Arrays
    ) -> list[list[Figure]]:
        """Draws attention weights over each image in the size that the model receives."""
        drawn: list[list[Figure]] = [[] for _ in raw]
        images, predicted = self.processor.encode(raw).images, predicted_classes(outputs)
        for index, where, weights in self._attended(attention):
            caption = f"{raw[index]}: {self.labels[predicted[index]]}{where}"
            drawn[index].append(AttendedImage(caption, drawable(images[index]), weights))
        return drawn

    def _attended(self, attention: Arrays) -> Iterator[tuple[int, str, np.ndarray]]:
        """Yields the index of an image, a layer name for captions, and that layer's map [y, x]."""
        if isinstance(self.model, ViTConfig):
            grid = [side // self.model.patch_size for side in self.data.image_shape[:2]]
            for index, weights in enumerate(attention.get("head", ())):
                yield index, "", weights.mean(axis=0).reshape(grid)
            return
        grids = self.model.sides(*self.data.image_shape[:2])
        entry = convolutional.map_attention_entry(self.model.attention)
        for index in range(min(map(len, attention.values()), default=0)):
            for grid, (name, weights) in zip(grids, attention.items(), strict=True):
                gate = "gate" in entry.capabilities
                found = convolutional.spatial_importance(weights[index], grid, gate)
                if found is not None:
                    yield index, f" ({name.replace('_', ' ')})", found

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns the baselines: softmax regression on pixels, and SVMs.

        The features of the SVMs are the pixels for digits, which are small images, and oriented
        gradients for other data sets.
        """
        fits = {"logistic_regression": baselines.logistic_regression}
        if self.data.name == "digits":
            fits["rbf_svm"] = baselines.rbf_svm
        else:
            fits["hog_linear_svc"] = baselines.hog_linear_svc
            if len(self.dataset.splits["train"]) <= baselines.MOST_FOR_KERNEL:
                fits["hog_rbf_svm"] = baselines.hog_rbf_svm
        return {
            name: lambda fit=fit: self.baseline_metrics(fit(self.dataset.splits))
            for name, fit in fits.items()
        }


TASK = ImageClassification
