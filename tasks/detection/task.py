"""Object detection and instance segmentation with Mask R-CNN and DETR.

In shapes, B is the batch size, D the number of detections of an image, Q that of queries, and S the
number of cells of a map or of cells along each side of a mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.answers import AnswerOptions
from tasks.common.backbones import convolutional
from tasks.common.backbones.convolutional import map_attention_entry, spatial_importance
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.common.keys import example_keys
from tasks.common.metrics.descriptions import fraction, lower
from tasks.detection import baselines
from tasks.detection.augmentation import augment
from tasks.detection.data import (
    DataConfig,
    DetectionDataset,
    load,
    read_labeled,
    to_image_pixels,
)
from tasks.detection.explainer import DetectionExplainer
from tasks.detection.metrics import (
    Prediction,
    Truth,
    ap50_contributions,
    detection_metrics,
    dsb2018_scores,
)
from tasks.detection.models import losses
from tasks.detection.models.detr import DETR, DETRConfig
from tasks.detection.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from tasks.detection.ops.pasting import THRESHOLD, paste
from tasks.detection.processor import SHOWN, DetectionProcessor, object_lines
from tasks.detection.user_files import OWN_DATA
from tasks.figures import AttendedImage, DetectedImage, Figure, SplitResults
from tasks.task import Arrays, Axes, Batch, Columns, ExamplePrediction, Task

Model = MaskRCNN | DETR
Config = MaskRCNNConfig | DETRConfig
MODEL_CONFIGS: dict[str, type] = {"mask_rcnn": MaskRCNNConfig, "detr": DETRConfig}

# Maximum number of objects of an image that count in the loss of Mask R-CNN when a run is evaluated
# on a user file.
MOST_OBJECTS = 1000


class Detection(Task):
    """Detection of boxes and classes of objects, and of masks if model and data have them."""

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    processor_type = DetectionProcessor
    own_data = OWN_DATA
    # The primary metric evaluates boxes, because not all data and models have masks.
    primary_metric = "box_ap50"
    table_metrics = ("box_ap50", "box_ap", "mask_ap50", "mask_ap", "dsb2018_score")
    metric_table: ClassVar = {
        "loss": lower("sum of all loss terms", "sum of terms"),
        "(.+)_loss": lower("loss term {0}", "mean per counted anchor, region or object"),
        "(box|mask)_ap": fraction("average precision of {0} matches, mean of IoU 0.50 to 0.95"),
        "(box|mask)_ap50": fraction("average precision of {0} matches at an IoU of 0.50"),
        "(box|mask)_ap75": fraction("average precision of {0} matches at an IoU of 0.75"),
        "(box|mask)_ap_(.+)": fraction("average precision of {0} matches of the class {1}"),
        "dsb2018_score": fraction("score of the nuclei contest: hits / (hits + misses + extra)"),
    }
    baseline_version = 2
    drawn_examples = 6
    sharding_rules = convolutional.SHARDING_RULES
    separate_images = True
    answer_options: ClassVar[dict[str, str | None]] = {
        "threshold": None,
        "top_k": "every object above the threshold is listed",
    }

    load = staticmethod(load)

    @classmethod
    def fit(
        cls, dataset: DetectionDataset, data: DataConfig, model: Config, paths: Paths
    ) -> DetectionProcessor:
        """Builds the processor with the data set's classes, and checks the number of queries.

        Raises:
          UserError: DETR has fewer queries than an image may have objects.
        """
        if isinstance(model, DETRConfig) and model.queries < dataset.max_objects:
            raise UserError(
                f"config.model.queries: got {model.queries}, expected at least one for each of the "
                f"{dataset.max_objects} objects that an image may have; raise the number of "
                f"queries, or lower config.data.max_objects"
            )
        described = list(dataset.names), dataset.has_masks, dataset.image_size
        return DetectionProcessor(data, model, *described)

    def with_file(self, file: str, images: str | None = None) -> Task:
        """Reads an annotation file in COCO's format; its categories are matched by name."""
        processor = self.processor
        most = self.model.queries if isinstance(self.model, DETRConfig) else MOST_OBJECTS
        described = list(processor.names), processor.predicts_masks, processor.image_size
        return self._with_dataset(read_labeled(file, images, *described, most))

    def columns(self, split: str) -> Columns:
        """Returns the images of the examples for the data summary, with boxes and classes."""
        examples = self.examples(split)

        def pair(index: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
            example = examples[index]
            return example["image"], (example["boxes"], example["labels"])

        objects = np.array([len(examples.labels(index)[0]) for index in range(len(examples))])
        sizes = {"objects": objects}
        if self.data.path is not None:
            sides = np.array([truth.size for truth in self._truths(split)]).reshape(-1, 2)
            sizes |= {"pixels of height": sides[:, 0], "pixels of width": sides[:, 1]}
        name = examples.ids.__getitem__
        return Columns(len(examples), pair, name=name, sizes=sizes, facts=self.fixed_sizes())

    # ------------------------------------------------------------------ objective

    def build_model(self, rngs: nnx.Rngs) -> Model:
        """Returns the detector of the config's type for RGB images."""
        classes = len(self.processor.names)
        if isinstance(self.model, DETRConfig):
            return DETR(self.model, 3, classes, rngs=rngs)
        has_masks = self.processor.predicts_masks
        return MaskRCNN(self.model, 3, classes, has_masks=has_masks, rngs=rngs)

    def loss(self, model: Model, batch: Batch, dropout_key: jax.Array) -> tuple[jax.Array, dict]:
        """Computes the sum of the model's losses on augmented images, and each term as a metric."""
        augment_key, sample_key, dropout_key = jax.random.split(dropout_key, 3)
        batch = augment(batch, example_keys(augment_key, batch["id"]), self.data.augmentation)
        terms = self._losses(model, batch, sample_key, dropout_key, training=True)
        means = {name: losses.mean(term, batch["weight"] > 0) for name, term in terms.items()}
        return sum(means.values()), {f"{name}_loss": value for name, value in means.items()}

    def evaluate(self, model: Model, batch: Batch) -> tuple[dict, dict]:
        """Sums each term of the model's loss over the batch; the outputs are the detections.

        The sampling of anchors and regions depends only on the id of the example.
        """
        terms = self._losses(model, batch, jax.random.key(0), None, training=False)
        real = batch["weight"] > 0
        statistics = jax.tree.map(
            lambda leaf: jnp.sum(jnp.where(real, leaf, 0)),
            {name: term._asdict() for name, term in terms.items()},
        )
        return statistics, self._detections(model, batch)

    def _losses(
        self,
        model: Model,
        batch: Batch,
        sample_key: jax.Array,
        dropout_key: jax.Array | None,
        training: bool,
    ) -> dict[str, losses.LossTerm]:
        options = {"valid": batch["weight"] > 0, "training": training}
        if isinstance(model, DETR):
            return model.losses(batch, dropout_key, **options)
        return model.losses(batch, example_keys(sample_key, batch["id"]), **options)

    def predict(self, model: Model, inputs: Batch, *, fast: bool = False) -> dict[str, jax.Array]:
        """Detects the objects of each image, highest score first.

        Returns:
          "boxes" [B, D, 4] in pixels of the example; "scores", "labels" and "valid" [B, D]; and the
          input "original" [B, 2], height and width of the original images. If the model predicts
          masks, also "masks", float16 [B, D, S, S], which are probabilities of the S x S cells of
          each box.
        """
        return {**self._detections(model, inputs), "original": inputs["original"]}

    @classmethod
    def chosen(cls, answer: dict[str, Any], options: AnswerOptions) -> dict[str, Any]:
        """Returns an answer without the objects whose score is below the threshold."""
        if options.threshold is None:
            return answer
        found = [row for row in answer["objects"] if row["score"] >= options.threshold]
        text = object_lines(answer["input"], found)
        return {**answer, "objects": found, "text": text}

    def _detections(self, model: Model, inputs: Batch) -> dict[str, jax.Array]:
        found, masks = model.detect(inputs["image"], inputs["size"])
        found = found._asdict()
        return found if masks is None else {**found, "masks": masks.astype(jnp.float16)}

    def attention(self, model: Model, inputs: Batch) -> dict[str, jax.Array]:
        """Returns the attention weights of the backbone's stages by name, "stage_1", ...

        DETR also has "objects" [B, Q, S], the weights of each of Q detections over the S cells of
        the last backbone map.
        """
        return model.attention(inputs["image"], inputs["size"])

    # ------------------------------------------------------------------ on the host

    def metrics(self, statistics: Arrays, outputs: Arrays, split: str) -> dict[str, float]:
        """Returns COCO's average precision of boxes and masks, each loss, and their sum `loss`.

        If the model predicts masks of a single class, the score of the nuclei contest is included.
        """
        names = self.processor.names
        truths, predictions = self._truths(split), self._predictions(outputs, split)
        metrics = detection_metrics(truths, predictions, names)
        if self.processor.predicts_masks and len(names) == 1:
            metrics["dsb2018_score"] = float(dsb2018_scores(truths, predictions).mean())
        means = {
            f"{name}_loss": float(term["total"]) / max(float(term["count"]), 1.0)
            for name, term in statistics.items()
        }
        return {**metrics, **means, "loss": sum(means.values())}

    def example_ids(self, split: str) -> np.ndarray:
        """Returns for each image a hash of its name, size and true objects."""
        names, truths = self.examples(split).ids, self._truths(split)
        shown = [(truth.size, truth.boxes, truth.labels) for truth in truths]
        return digests.ids(names, shown)

    def example_scores(self, outputs: Arrays, split: str) -> np.ndarray:
        """Returns the contribution of each image to the AP50 of boxes."""
        found = self._truths(split), self._predictions(outputs, split)
        return ap50_contributions(*found, self.processor.names, "box").astype(np.float32)

    @functools.cache  # noqa: B019 - a task lives as long as its run
    def _truths(self, split: str) -> list[Truth]:
        examples = self.examples(split)
        return [examples.truth(index) for index in range(len(examples))]

    def _predictions(self, outputs: Arrays, split: str) -> list[Prediction]:
        return [
            self.processor.prediction(outputs, index, truth.size)
            for index, truth in enumerate(self._truths(split))
        ]

    def example_predictions(self, outputs: Arrays, split: str) -> list[ExamplePrediction]:
        """Returns the name of each image, its true objects, and its predicted objects.

        An object has a label and a box (x1, y1, x2, y2) in pixels of the image. A predicted object
        also has a score, which is at least 0.5.
        """
        names, side, found = self.processor.names, self.processor.image_size, []
        for index, truth in enumerate(self._truths(split)):
            shown = outputs["valid"][index] & (outputs["scores"][index] >= SHOWN)
            boxes = to_image_pixels(outputs["boxes"][index][shown], truth.size, side)
            labels, scores = outputs["labels"][index][shown], outputs["scores"][index][shown]
            predicted = [
                {**_object(names[label], box), "score": round(float(score), 4)}
                for label, box, score in zip(labels, boxes, scores, strict=True)
            ]
            pairs = zip(truth.labels, truth.boxes, strict=True)
            true = [_object(names[label], box) for label, box in pairs]
            found.append(ExamplePrediction(self.examples(split).ids[index], true, predicted))
        return found

    def attention_axes(self, raw: str, outputs: Arrays, attention: Arrays) -> dict[str, Axes]:
        """Names the axes of DETR's detections and of the cells of the last map."""
        return {"objects": {"object": None, "cell": None}}

    def explainer(self) -> DetectionExplainer:
        """Returns the explainer, which attributes predictions to cells of the image."""
        return DetectionExplainer(self)

    def figures(self, results: SplitResults) -> list[Figure]:
        """Draws detections and attention weights of the shown images."""
        examples, drawn = self.examples(results.split), []
        for row, each in enumerate(results.shown):
            index = each.index
            weights = {name: array[row] for name, array in results.attention.items()}
            name = results.caption(each, examples.ids[index])
            drawn += self._drawn(name, examples[index], results.outputs, weights, index)
        return drawn

    def input_figures(
        self, raw: Sequence[str], outputs: Arrays, attention: Arrays
    ) -> list[list[Figure]]:
        """Draws detections and attention weights of each image."""
        examples = self.processor.encode(raw)
        return [
            self._drawn(
                path,
                examples[index],
                outputs,
                {name: array[index] for name, array in attention.items()},
                index,
            )
            for index, path in enumerate(raw)
        ]

    def _drawn(
        self, name: str, example: Arrays, outputs: Arrays, attention: Arrays, index: int
    ) -> list[Figure]:
        """Draws one image as the model receives it, with true boxes if known.

        `attention` has the attention weights of this image, without the batch dimension.
        """
        height, width = example["size"]
        image = example["image"][:height, :width]
        shown = outputs["valid"][index] & (outputs["scores"][index] >= SHOWN)
        boxes, masks, true = outputs["boxes"][index][shown], None, None
        if self.processor.predicts_masks:
            masks = paste(outputs["masks"][index][shown], boxes, height, width) >= THRESHOLD
        caption = f"{name}: {len(boxes)} found"
        if "labels" in example:
            true = example["boxes"][example["labels"] >= 0]
            caption += f", {len(true)} true"
        labels = [self.processor.names[label] for label in outputs["labels"][index][shown]]
        scores = outputs["scores"][index][shown]
        drawn: list[Figure] = [DetectedImage(caption, image, boxes, labels, scores, masks, true)]
        for where, weights in self.attended(attention):
            # Cropped to the image, because the attention weights cover the padded square.
            rows, columns = (
                -(-length * cells // self.processor.image_size)
                for length, cells in zip((height, width), weights.shape, strict=True)
            )
            drawn.append(AttendedImage(f"{name} ({where})", image, weights[:rows, :columns]))
        return drawn

    def attended(self, attention: Arrays) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the name of a layer, for captions, and its attention weights as a map [y, x]."""
        backbone, side = self.model.backbone, self.processor.image_size
        grids = backbone.sides(side, side)
        for stage, grid in enumerate(grids, 1):
            if f"stage_{stage}" in attention:
                gate = "gate" in map_attention_entry(backbone.attention).capabilities
                weights = spatial_importance(attention[f"stage_{stage}"], grid, gate)
                if weights is not None:
                    yield f"stage {stage}", weights
        if "objects" in attention:
            yield "most confident object", attention["objects"][0].reshape(grids[-1])

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns the baseline: Otsu's threshold with touching objects split by inscribed discs."""
        return {
            "otsu_discs": lambda: baselines.otsu_discs(
                self.dataset.splits, self.processor.names, self.processor.has_masks
            )
        }


def _object(label: str, box: np.ndarray) -> dict[str, Any]:
    """Returns an object as a JSON value."""
    return {"label": label, "box": [round(float(corner), 2) for corner in box]}


TASK = Detection
