"""Semantic segmentation with a U-Net.

B batch, Y X height and width, K classes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.backbones.convolutional import SHARDING_RULES, spatial_importance
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.common.images.augmentation import augment
from tasks.common.images.files import SUFFIXES, read_image, resize
from tasks.common.images.pixels import center, to_unit
from tasks.common.keys import example_keys
from tasks.common.losses import cross_entropy
from tasks.common.metrics.descriptions import fraction, lower
from tasks.figures import AttendedImage, ConfusionMatrix, Figure, SegmentedImage, SplitResults
from tasks.segmentation import baselines
from tasks.segmentation.data import (
    OVERLAP,
    DataConfig,
    InferenceWindows,
    SegmentationData,
    load,
    merge_windows,
    nearest,
    read_labeled,
)
from tasks.segmentation.explainer import SegmentationExplainer
from tasks.segmentation.losses import total_loss
from tasks.segmentation.metrics import (
    VOID,
    boundary_f1,
    confusion_matrices,
    iou_contributions,
    segmentation_metrics,
)
from tasks.segmentation.unet import MODEL_CONFIGS, UNet, UNetConfig
from tasks.segmentation.user_files import OWN_DATA
from tasks.task import (
    Arrays,
    ArraySpec,
    Batch,
    Columns,
    ExamplePrediction,
    ProcessingSteps,
    Processor,
    Task,
)

# Maximum number of images whose attention is drawn in a report.
_ATTENDED = 2
# Maximum number of classes that the text of a prediction lists, and maximum side of a figure in
# pixels.
_SHOWN, _LARGEST = 6, 1200


@dataclasses.dataclass(frozen=True)
class SegmentationProcessor(Processor):
    """Processor that reads images and returns the mask of each class.

    Attributes:
      data, model: configs of the data set and of the model.
      names: names of the classes.
    """

    names: Sequence[str]

    input_suffixes = SUFFIXES

    @property
    def input_column(self) -> str:
        """Column of the paths of images."""
        return self.data.image_column

    def encode(self, raw: Sequence[str]) -> InferenceWindows:
        """Reads images of any size, see `tasks.common.images.files`."""
        return InferenceWindows(raw, self.data)

    def decode(self, raw: Sequence[str], outputs: Arrays) -> list[dict[str, Any]]:
        """Returns the size of each image, and the fraction and the mask of each class in it.

        Classes are sorted by their fraction of the pixels, largest first. Masks are in COCO's
        compressed run-length encoding, at the size of the image file.
        """
        answers = []
        maps = merge_windows(self.data, outputs) if len(raw) else ()
        for source, labels in zip(raw, maps, strict=True):
            counts = np.bincount(labels.ravel(), minlength=len(self.names))
            order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
            shares = {self.names[k]: round(float(counts[k] / labels.size), 4) for k in order}
            words = [f"{name} {share:.4f}" for name, share in shares.items()]
            if len(words) > _SHOWN:
                words[_SHOWN:] = ["..."]
            answers.append(
                {
                    "input": source,
                    "size": list(labels.shape),
                    "shares": shares,
                    "masks": {self.names[k]: _run_lengths(labels == k) for k in order},
                    "text": "  ".join(words),
                }
            )
        return answers

    def signature(self) -> dict[str, ArraySpec]:
        """Returns the specifications of a window and of its position (`InferenceWindows.place`)."""
        image = ArraySpec(("batch", *self.data.image_size, 3), "uint8")
        return {"image": image, "place": ArraySpec(("batch", 5), "int32")}

    def steps(self) -> ProcessingSteps:
        """Returns the processing steps of exports, which read images and return masks."""
        size, tiled = list(self.data.image_size), self.data.fit == "tiles"
        overlap = OVERLAP if tiled else None
        encode = [
            {"op": "read_image", "mode": "RGB", "to": "image"},
            {"op": "windows", "size": size, "overlap": overlap, "to": "image"},
        ]
        names = list(self.names)
        decode = [{"op": "class_masks", "names": names, "blend": tiled, "shown": _SHOWN}]
        return ProcessingSteps("image", encode, decode, libraries=["pillow"])


class Segmentation(Task):
    """Classification of each pixel of an image [Y, X, 3].

    Void pixels are excluded from losses and metrics.
    """

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    processor_type = SegmentationProcessor
    own_data = OWN_DATA
    primary_metric = "mean_iou"
    table_metrics = ("mean_iou", "pixel_accuracy", "boundary_f1", "loss")
    metric_table: ClassVar = {
        "mean_iou": fraction("intersection over union of pixels, mean of the classes"),
        "pixel_accuracy": fraction("pixels with the true class"),
        "boundary_f1": fraction("F1 of boundaries within some pixels, mean of the classes"),
        "loss": lower("cross-entropy of the true class, without class weights", "nats per pixel"),
        "iou_(.+)": fraction("intersection over union of the class {0}"),
        "mean_iou_(.+)": fraction("mean intersection over union of the subset {0}"),
        "pixel_accuracy_(.+)": fraction("pixels with the true class in the subset {0}"),
    }
    baseline_version = 2
    drawn_examples = 6
    sharding_rules = SHARDING_RULES
    answer_options: ClassVar[dict[str, str | None]] = {
        "threshold": "each pixel is assigned its most probable class",
        "positive": "each pixel is assigned its most probable class",
    }

    load = staticmethod(load)

    @classmethod
    def fit(
        cls, dataset: SegmentationData, data: DataConfig, model: UNetConfig, paths: Paths
    ) -> SegmentationProcessor:
        """Builds the processor with the data set's classes, and checks the class weights.

        Raises:
          UserError: the number of class weights differs from the number of classes.
        """
        try:
            model.loss.weights(dataset.splits["train"].labels, len(dataset.names))
        except ValueError as error:
            raise UserError(f"config.model.loss.{error}") from None
        return SegmentationProcessor(data, model, list(dataset.names))

    def with_file(self, file: str, images: str | None = None) -> Task:
        """Reads a folder with images/ and masks/, or a table with the columns of the run."""
        dataset, files = read_labeled(file, self.data, self.names)
        return self._with_dataset(dataset, files)

    @functools.cached_property
    def class_weights(self) -> np.ndarray:
        """Weights of the classes in the loss, [K]."""
        return self.model.loss.weights(self.dataset.splits["train"].labels, len(self.names))

    def columns(self, split: str) -> Columns:
        """Returns images, or windows of images, for the data summary, with the masks as labels."""
        part = self.dataset.splits[split]
        return Columns(
            len(part),
            lambda index: (part.images[index], part.labels[index]),
            name="image {}".format,
            facts=self.fixed_sizes(),
        )

    @property
    def names(self) -> Sequence[str]:
        """Names of the classes."""
        return self.processor.names

    # ------------------------------------------------------------------ objective

    def build_model(self, rngs: nnx.Rngs) -> UNet:
        """Returns a U-Net for RGB images."""
        return UNet(self.model, 3, len(self.names), rngs=rngs)

    def loss(self, model: UNet, batch: Batch, dropout_key: jax.Array) -> tuple[jax.Array, dict]:
        """Computes the configured loss and the pixel accuracy of augmented images under dropout."""
        augment_key, dropout_key = jax.random.split(dropout_key)
        images, labels = augment(
            to_unit(batch["image"]),
            example_keys(augment_key, batch["id"]),
            self.data.augmentation,
            batch["labels"].astype(jnp.int32),
            VOID,
            self.data.crop_size or None,
        )
        valid = batch["weight"] > 0
        logits = model(center(images), valid=valid, training=True, dropout_key=dropout_key)
        counted = self._counted(labels, batch["weight"])
        weights = jnp.asarray(self.class_weights)
        loss = total_loss(self.model.loss, logits, labels, counted, weights)
        correct = jnp.sum((jnp.argmax(logits, axis=-1) == labels) & counted)
        return loss, {"pixel_accuracy": correct / jnp.maximum(jnp.sum(counted), 1)}

    def evaluate(self, model: UNet, batch: Batch) -> tuple[dict, dict]:
        """Sums the cross-entropy, and counts pixels in total and by true and predicted class.

        The outputs are the predicted "labels", uint8 [B, Y, X].
        """
        logits = model(center(to_unit(batch["image"])))
        predicted = jnp.argmax(logits, axis=-1)
        counted = self._counted(batch["labels"], batch["weight"])
        labels = jnp.where(counted, batch["labels"], 0).astype(jnp.int32)
        true, found = (
            jax.nn.one_hot(classes, len(self.names), dtype=jnp.float32)
            for classes in (labels, predicted)
        )
        # The product counts the pixels of an image in float32, which is exact up to 2^24.
        true = true * counted[..., None]
        confusion = jnp.einsum("byxk,byxl->bkl", true, found, precision="highest")
        statistics = {
            "loss": jnp.sum(jnp.where(counted, cross_entropy(logits, labels), 0)),
            "pixels": jnp.sum(counted),
            "confusion": jnp.sum(confusion.astype(jnp.int32), axis=0),
        }
        return statistics, {"labels": predicted.astype(jnp.uint8)}

    def predict(self, model: UNet, inputs: Batch, *, fast: bool = False) -> dict[str, jax.Array]:
        """Returns "labels" uint8 [B, Y, X], and "place" of the inputs.

        If `config.data.fit` is "tiles", "probabilities" uint8 [B, Y, X, K] in units of 1 / 255
        replace the labels.
        """
        logits = model(center(to_unit(inputs["image"])))
        if self.data.fit == "tiles":
            levels = jnp.round(255 * jax.nn.softmax(logits)).astype(jnp.uint8)
            return {"place": inputs["place"], "probabilities": levels}
        return {"place": inputs["place"], "labels": jnp.argmax(logits, axis=-1).astype(jnp.uint8)}

    def attention(self, model: UNet, inputs: Batch) -> dict[str, jax.Array]:
        """Returns attention weights by name.

        The names are "gate_1", ... for gates, or "encoder_1", ..., "decoder_1", ... for the map
        attention of each stage.
        """
        return model(center(to_unit(inputs["image"])), return_weights=True)[1]

    def _counted(self, labels: jax.Array, weight: jax.Array) -> jax.Array:
        """Returns bool [B, Y, X], False for void pixels and padding rows."""
        return (labels < len(self.names)) & (weight > 0)[:, None, None]

    # ------------------------------------------------------------------ on the host

    def metrics(self, statistics: Arrays, outputs: Arrays, split: str) -> dict[str, float]:
        """Returns the metrics of `tasks.segmentation.metrics`, and the mean cross-entropy `loss`.

        The loss has no class weights. Metrics of subsets have the name of the subset as a suffix.
        """
        images, classes = self.dataset.splits[split], len(self.names)
        metrics = segmentation_metrics(statistics["confusion"], self.names)
        for name, chosen in images.subsets.items():
            labels, predicted = images.labels[chosen], outputs["labels"][chosen]
            confusion = confusion_matrices(labels, predicted, classes).sum(axis=0)
            found = segmentation_metrics(confusion, self.names, f"_{name}")
            shown = (f"{metric}_{name}" for metric in ("pixel_accuracy", "mean_iou"))
            metrics |= {metric: found[metric] for metric in shown}
        metrics["boundary_f1"] = boundary_f1(images.labels, outputs["labels"], classes)
        return metrics | {"loss": float(statistics["loss"] / max(statistics["pixels"], 1))}

    def example_ids(self, split: str) -> np.ndarray:
        """Returns the ids of the examples: hashes of images and masks in their original sizes."""
        return self.dataset.splits[split].ids

    def example_scores(self, outputs: Arrays, split: str) -> np.ndarray:
        """Returns the contribution of each image to the mean IoU."""
        labels = self.dataset.splits[split].labels
        confusions = confusion_matrices(labels, outputs["labels"], len(self.names))
        return iou_contributions(confusions).astype(np.float32)

    def example_predictions(self, outputs: Arrays, split: str) -> list[ExamplePrediction]:
        """Returns true and predicted fractions of the classes, over pixels with a true class."""
        truths = self.dataset.splits[split].labels
        return [
            ExamplePrediction(None, self._fractions(truth), self._fractions(found[truth != VOID]))
            for truth, found in zip(truths, outputs["labels"], strict=True)
        ]

    def _fractions(self, labels: np.ndarray) -> dict[str, float]:
        """Returns the fraction of each class that occurs in labels, in the order of the classes."""
        counts = np.bincount(labels[labels != VOID].ravel(), minlength=len(self.names))
        total = max(int(counts.sum()), 1)
        pairs = zip(self.names, counts.tolist(), strict=True)
        return {name: round(count / total, 4) for name, count in pairs if count}

    def explainer(self) -> SegmentationExplainer:
        """Returns the explainer, which attributes predictions to cells of the image."""
        return SegmentationExplainer(self)

    def figures(self, results: SplitResults) -> list[Figure]:
        """Draws the confusion matrix, the true and predicted classes, and attention over images."""
        drawn: list[Figure] = [
            ConfusionMatrix(
                "confusion matrix of pixels",
                results.statistics["confusion"],
                self.names,
            )
        ]
        examples, shown = self.dataset.splits[results.split], results.shown
        for example in shown:
            index = example.index
            truth, found = examples.labels[index], results.outputs["labels"][index]
            confusion = confusion_matrices(truth[None], found[None], len(self.names))[0]
            accuracy = segmentation_metrics(confusion, self.names)["pixel_accuracy"]
            caption = f"{results.caption(example)}: pixel accuracy {accuracy:.3f}"
            image = examples.images[index]
            drawn.append(SegmentedImage(caption, image, found, self.names, truth))
        for row, name, weights in self._attended(results.attention, _ATTENDED):
            caption = f"{results.caption(shown[row])}, {name.replace('_', ' ')}"
            drawn.append(AttendedImage(caption, examples.images[shown[row].index], weights))
        return drawn

    def input_figures(
        self, raw: Sequence[str], outputs: Arrays, attention: Arrays
    ) -> list[list[Figure]]:
        """Draws predicted classes over each image; with `fit` "resize" also attention weights."""
        drawn: list[list[Figure]] = []
        maps = merge_windows(self.data, outputs) if len(raw) else ()
        for source, labels in zip(raw, maps, strict=True):
            size = _figure_size(*labels.shape)
            image = resize(read_image(source), size)
            drawn.append([SegmentedImage(source, image, nearest(labels, size), self.names)])
        if self.data.fit == "resize":
            for index, name, weights in self._attended(attention, len(raw)):
                caption = f"{raw[index]}, {name.replace('_', ' ')}"
                drawn[index].append(AttendedImage(caption, drawn[index][0].image, weights))
        return drawn

    def _attended(self, attention: Arrays, most: int) -> Iterator[tuple[int, str, np.ndarray]]:
        """Yields the index of an image, the name of a layer, and the layer's weights [y, x]."""
        sides = self.model.sides(*self.data.image_size)
        for index in range(min(most, min(map(len, attention.values()), default=0))):
            for name, weights in attention.items():
                grid = sides[int(name.rpartition("_")[2]) - 1]
                found = spatial_importance(weights[index], grid, self.model.is_gate)
                if found is not None:
                    yield index, name, found

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns the most frequent class at each position, and a random forest on pixels."""
        fits = {
            "location_prior": baselines.location_prior,
            "random_forest": baselines.random_forest,
        }
        return {
            name: functools.partial(fit, self.dataset.splits, self.names)
            for name, fit in fits.items()
        }


def _figure_size(Y: int, X: int) -> tuple[int, int]:
    """Returns height and width, in pixels, of the figure of an image of Y x X pixels."""
    scale = min(1.0, _LARGEST / max(Y, X))
    return max(1, round(Y * scale)), max(1, round(X * scale))


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Encodes a mask [Y, X] as {"size": [Y, X], "counts": str}, like pycocotools."""
    from pycocotools import mask as coco

    found = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode()}


TASK = Segmentation
