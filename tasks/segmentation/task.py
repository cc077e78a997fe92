"""Segmentation: the task contract over `data.py` and `unet.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tasks.common.backbones.convolutional import SHARDING_RULES, spatial_importance
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SplitSummary
from tasks.common.errors import UserError
from tasks.common.images.augmentation import augment
from tasks.common.images.files import read_image, resize
from tasks.common.keys import example_keys
from tasks.figures import AttendedImage, ConfusionMatrix, Figure, SegmentedImage
from tasks.segmentation import baselines
from tasks.segmentation.data import (
    DataConfig,
    InferenceWindows,
    SegmentationData,
    SegmentationExamples,
    load,
    merge_windows,
    nearest,
)
from tasks.segmentation.losses import total_loss
from tasks.segmentation.metrics import (
    VOID,
    boundary_f1,
    confusion_matrices,
    iou_contributions,
    segmentation_metrics,
)
from tasks.segmentation.unet import MODEL_CONFIGS, UNet, UNetConfig
from tasks.task import OldTask

# Of the pictures in a report, how many show where the model looks.
_ATTENDED = 2
# Classes in the line for people, and pixels a side of a picture that is drawn for them.
_SHOWN, _LARGEST = 6, 1200


class Segmentation(OldTask):
    """A picture [Y, X, 3] -> the class of each pixel.

    Void pixels are no part of any loss or figure.
    """

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    primary_metric = "mean_iou"
    table_metrics = ("mean_iou", "pixel_accuracy", "boundary_f1", "loss")
    sharding_rules = SHARDING_RULES

    def __init__(
        self,
        data: DataConfig,
        model: UNetConfig,
        names: Sequence[str],
        pictures: SegmentationData | None = None,
        class_weights: np.ndarray | None = None,
    ):
        """Use `prepare` or `restore`.

        Args:
          data, model: configs.
          names: of the classes.
          pictures: the splits; None where only predictions are wanted.
          class_weights: [K], of the loss; likewise.
        """
        self.data, self.model, self.names = data, model, tuple(names)
        self._pictures, self._class_weights = pictures, class_weights

    # ------------------------------------------------------------------ making

    @classmethod
    def prepare(cls, data: DataConfig, model: UNetConfig, paths: Paths) -> Segmentation:
        """See `Task.prepare`."""
        pictures = load(data, paths)
        try:
            weights = model.loss.weights(pictures.splits["train"].labels, len(pictures.names))
        except ValueError as error:
            raise UserError(f"config.model.loss.{error}") from None
        return cls(data, model, pictures.names, pictures, weights)

    @classmethod
    def restore(
        cls, data: DataConfig, model: UNetConfig, assets: Mapping[str, Any]
    ) -> Segmentation:
        """See `Task.restore`."""
        return cls(data, model, assets["names"])

    def assets(self) -> dict[str, Any]:
        """Names of the classes."""
        return {"names": list(self.names)}

    @property
    def fingerprint(self) -> str:
        """Of the pictures, their labels and splits."""
        return self._pictures.fingerprint

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the parts of the data."""
        return self._pictures.parts

    # ------------------------------------------------------------------ data

    def examples(self, split: str) -> SegmentationExamples:
        """See `Task.examples`."""
        return self._pictures.splits[split]

    def summary(self) -> dict[str, SplitSummary]:
        """Pixels by class, and void ones."""
        return self._pictures.summary()

    # ------------------------------------------------------------------ model

    def build_model(self, rngs: nnx.Rngs) -> UNet:
        """See `Task.build_model`."""
        return UNet(self.model, 3, len(self.names), rngs=rngs)

    def loss(
        self, model: UNet, batch: Mapping[str, jax.Array], dropout_key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What `config.model.loss` asks for, and the pixel accuracy, both of pictures changed as
        `config.data.augmentation` says, and under dropout.
        """
        augment_key, dropout_key = jax.random.split(dropout_key)
        images, labels = augment(
            _unit(batch["image"]),
            example_keys(augment_key, batch["id"]),
            self.data.augmentation,
            batch["labels"].astype(jnp.int32),
            VOID,
        )
        valid = batch["weight"] > 0
        logits = model(_centred(images), valid=valid, training=True, dropout_key=dropout_key)
        counted = self._counted(labels, batch["weight"])
        weights = jnp.asarray(self._class_weights)
        loss = total_loss(self.model.loss, logits, labels, counted, weights)
        right = jnp.sum((jnp.argmax(logits, axis=-1) == labels) & counted)
        return loss, {"pixel_accuracy": right / jnp.maximum(jnp.sum(counted), 1)}

    def batch_statistics(self, model: UNet, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Summed cross-entropy of pixels, their number, confusion counts [true, predicted]."""
        logits = model(_centred(_unit(batch["image"])))
        counted = self._counted(batch["labels"], batch["weight"])
        labels = jnp.where(counted, batch["labels"], 0).astype(jnp.int32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        true, predicted = (
            jax.nn.one_hot(numbers, len(self.names), dtype=jnp.float32)
            for numbers in (labels, jnp.argmax(logits, axis=-1))
        )
        # Whole numbers up to a picture's pixels: exact in float32.
        true = true * counted[..., None]
        confusion = jnp.einsum("byxk,byxl->bkl", true, predicted, precision="highest")
        return {
            "loss": jnp.sum(jnp.where(counted, losses, 0)),
            "pixels": jnp.sum(counted),
            "confusion": jnp.sum(confusion.astype(jnp.int32), axis=0),
        }

    def outputs(self, model: UNet, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The likeliest class of each pixel, uint8 [B, Y, X]; of windows to be blended the
        probabilities [B, Y, X, K] in 255ths. `place`, where the batch has it, goes along.
        """
        logits = model(_centred(_unit(batch["image"])))
        found = {"place": batch["place"]} if "place" in batch else {}
        if found and self.data.fit == "tiles":
            levels = jnp.round(255 * jax.nn.softmax(logits)).astype(jnp.uint8)
            return {**found, "probabilities": levels}
        return {**found, "labels": jnp.argmax(logits, axis=-1).astype(jnp.uint8)}

    def attention(self, model: UNet, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What the model returns: gates "gate_1" ..., or the map attention of each stage."""
        return model(_centred(_unit(batch["image"])), return_weights=True)[1]

    def _counted(self, labels: jax.Array, weight: jax.Array) -> jax.Array:
        """Which pixels there are: bool [B, Y, X]."""
        return (labels < len(self.names)) & (weight > 0)[:, None, None]

    # ------------------------------------------------------------------ on the host

    def finalize(
        self, statistics: Mapping[str, Any], outputs: Mapping[str, np.ndarray], split: str
    ) -> dict[str, float]:
        """The metrics of `tasks.segmentation.metrics`; `loss`, the cross-entropy of a pixel without
        class weights; and of pictures whose figures are told apart, those with their name added.
        """
        pictures, classes = self._pictures.splits[split], len(self.names)
        metrics = segmentation_metrics(statistics["confusion"], self.names)
        for name, chosen in pictures.subsets.items():
            labels, predicted = pictures.labels[chosen], outputs["labels"][chosen]
            confusion = confusion_matrices(labels, predicted, classes).sum(axis=0)
            told = segmentation_metrics(confusion, self.names, f"_{name}")
            shown = (f"{metric}_{name}" for metric in ("pixel_accuracy", "mean_iou"))
            metrics |= {metric: told[metric] for metric in shown}
        metrics["boundary_f1"] = boundary_f1(pictures.labels, outputs["labels"], classes)
        return metrics | {"loss": float(statistics["loss"] / max(statistics["pixels"], 1))}

    def example_ids(self, split: str) -> np.ndarray:
        """Of the images and masks in their own sizes."""
        return self._pictures.splits[split].ids

    def correctness(self, outputs: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """See `iou_contributions`; the mean is the primary metric."""
        labels = self._pictures.splits[split].labels
        confusions = confusion_matrices(labels, outputs["labels"], len(self.names))
        return iou_contributions(confusions).astype(np.float32)

    def figures(
        self,
        statistics: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
        split: str,
        attention: Mapping[str, np.ndarray],
    ) -> list[Figure]:
        """Confusion matrix, some pictures with truth and prediction, and where the model looks."""
        drawn: list[Figure] = [
            ConfusionMatrix(f"{split} split", statistics["confusion"], self.names)
        ]
        pictures = self._pictures.splits[split]
        # From all over the split: neighbours are often alike.
        for index in np.unique(np.linspace(0, len(pictures) - 1, 6).astype(int)):
            truth, found = pictures.labels[index], outputs["labels"][index]
            confusion = confusion_matrices(truth[None], found[None], len(self.names))[0]
            right = segmentation_metrics(confusion, self.names)["pixel_accuracy"]
            caption = f"{split} picture {index}: pixel accuracy {right:.3f}"
            image = pictures.images[index]
            drawn.append(SegmentedImage(caption, image, found, self.names, truth))
        for index, name, weights in self._attended(attention, _ATTENDED):
            caption = f"{split} picture {index}, {name.replace('_', ' ')}"
            drawn.append(AttendedImage(caption, pictures.images[index], weights))
        return drawn

    def _attended(
        self, attention: Mapping[str, np.ndarray], most: int
    ) -> Iterator[tuple[int, str, np.ndarray]]:
        """Number of the picture, the place in the model, and a map [y, x]."""
        sides = self.model.sides(*self.data.image_size)
        for index in range(min(most, min(map(len, attention.values()), default=0))):
            for name, weights in attention.items():
                grid = sides[int(name.rpartition("_")[2]) - 1]
                found = spatial_importance(weights[index], grid, self.model.is_gate)
                if found is not None:
                    yield index, name, found

    def baselines(self) -> dict[str, Callable[[], dict[str, float]]]:
        """The most frequent class of each place, and a random forest on colours and places."""
        fits = {
            "location_prior": baselines.location_prior,
            "random_forest": baselines.random_forest,
        }
        return {
            name: functools.partial(fit, self._pictures.splits, self.names)
            for name, fit in fits.items()
        }

    # ------------------------------------------------------------------ predict

    def inputs(self, raw: Sequence[str]) -> InferenceWindows:
        """Paths of pictures of any size; see `tasks.common.images.files`."""
        return InferenceWindows(raw, self.data)

    def describe(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """For each picture its size, the share of each class that is in it, the largest first, and
        the mask of each of them in COCO's compressed run lengths, in the picture's own pixels.
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

    def pictures(
        self,
        raw: Sequence[str],
        outputs: Mapping[str, np.ndarray],
        attention: Mapping[str, np.ndarray],
    ) -> list[list[Figure]]:
        """The classes over each picture, and, of one that was not cut, where the model looked."""
        drawn: list[list[Figure]] = []
        maps = merge_windows(self.data, outputs) if len(raw) else ()
        for source, labels in zip(raw, maps, strict=True):
            size = _shown_size(*labels.shape)
            image = resize(read_image(source), size)
            drawn.append([SegmentedImage(source, image, nearest(labels, size), self.names)])
        if self.data.fit == "resize":
            for index, name, weights in self._attended(attention, len(raw)):
                caption = f"{raw[index]}, {name.replace('_', ' ')}"
                drawn[index].append(AttendedImage(caption, drawn[index][0].image, weights))
        return drawn


def _shown_size(Y: int, X: int) -> tuple[int, int]:
    """Height and width at which a picture is drawn: its own, or smaller."""
    share = min(1.0, _LARGEST / max(Y, X))
    return max(1, round(Y * share)), max(1, round(X * share))


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask [Y, X] as {"size": [Y, X], "counts": ...}, which `pycocotools.mask.decode` reads."""
    from pycocotools import mask as coco

    found = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode()}


def _unit(images: jax.Array) -> jax.Array:
    """Bytes -> float32 from 0 to 1."""
    return images.astype(jnp.float32) / 255


def _centred(images: jax.Array) -> jax.Array:
    """From 0..1 to -2..2, near the spread that networks are drawn for."""
    return 4 * images - 2


TASK = Segmentation
