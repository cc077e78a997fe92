"""Detection: the task contract over `data.py`, `mask_rcnn.py` and `detr.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.backbones import convolutional
from tasks.common.backbones.convolutional import map_attention_entry, spatial_importance
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SplitSummary
from tasks.common.errors import UserError
from tasks.common.images.files import read_oriented
from tasks.common.images.orientation import warn_displayed
from tasks.common.keys import example_keys
from tasks.detection import baselines
from tasks.detection.augmentation import augment
from tasks.detection.data import (
    DataConfig,
    DetectionData,
    DetectionExamples,
    Picture,
    fit,
    in_own_pixels,
    load,
)
from tasks.detection.metrics import (
    Prediction,
    ap50_contributions,
    contest_scores,
    detection_metrics,
)
from tasks.detection.models import losses
from tasks.detection.models.detr import DETR, DETRConfig
from tasks.detection.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from tasks.detection.ops.pasting import THRESHOLD, paste, pasted_codes
from tasks.figures import AttendedImage, DetectedImage, Figure
from tasks.task import OldTask

Model = MaskRCNN | DETR
MODEL_CONFIGS: dict[str, type] = {"mask_rcnn": MaskRCNNConfig, "detr": DETRConfig}

# Probability from which on a mask has a pixel, and an object is shown to a person.
SHOWN = 0.5
# Pictures of a report.
_PICTURES = 4


class Detection(OldTask):
    """Pictures -> boxes, classes and, by Mask R-CNN where the data has them, masks."""

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    # Not of masks: not all data and models have them.
    primary_metric = "box_ap50"
    table_metrics = ("box_ap50", "box_ap", "mask_ap50", "mask_ap", "contest_score")
    sharding_rules = convolutional.SHARDING_RULES

    def __init__(
        self,
        data: DataConfig,
        model: MaskRCNNConfig | DETRConfig,
        names: Sequence[str],
        has_masks: bool,
        image_size: int,
        pictures: DetectionData | None = None,
    ):
        """Use `prepare` or `restore`.

        Args:
          data: data config.
          model: one of model_configs.
          names: of the classes.
          has_masks: whether the data has masks.
          image_size: side of the examples in pixels.
          pictures: the splits; None where only predictions are wanted.
        """
        self._data, self._model, self._names = data, model, list(names)
        self._has_masks, self._side, self._pictures = has_masks, image_size, pictures

    # ------------------------------------------------------------------ making

    @classmethod
    def prepare(
        cls, data: DataConfig, model: MaskRCNNConfig | DETRConfig, paths: Paths
    ) -> Detection:
        """See `Task.prepare`."""
        pictures = load(data, paths)
        if isinstance(model, DETRConfig) and model.queries < pictures.max_objects:
            raise UserError(
                f"config.model.queries: got {model.queries}, expected at least one for each of the "
                f"{pictures.max_objects} objects that a picture may have; raise it, or lower "
                "config.data.max_objects"
            )
        described = pictures.names, pictures.has_masks, pictures.image_size
        return cls(data, model, *described, pictures)

    @classmethod
    def restore(
        cls, data: DataConfig, model: MaskRCNNConfig | DETRConfig, assets: Mapping[str, Any]
    ) -> Detection:
        """See `Task.restore`."""
        return cls(data, model, assets["names"], assets["has_masks"], assets["image_size"])

    def assets(self) -> dict[str, Any]:
        """Names of the classes, whether there are masks, and the side of an example."""
        return {
            "names": self._names,
            "has_masks": self._has_masks,
            "image_size": self._side,
        }

    @property
    def fingerprint(self) -> str:
        """Of the data."""
        return self._pictures.fingerprint

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the parts of the data."""
        return self._pictures.parts

    # ------------------------------------------------------------------ data

    def examples(self, split: str) -> DetectionExamples:
        """See `Task.examples`."""
        return self._pictures.splits[split]

    def summary(self) -> dict[str, SplitSummary]:
        """Objects by class, and crowd regions."""
        return self._pictures.summary()

    # ------------------------------------------------------------------ model

    @property
    def gives_masks(self) -> bool:
        """Whether the model says masks: Mask R-CNN where there are some to learn from."""
        return self._has_masks and isinstance(self._model, MaskRCNNConfig)

    def build_model(self, rngs: nnx.Rngs) -> Model:
        """See `Task.build_model`."""
        if isinstance(self._model, DETRConfig):
            return DETR(self._model, 3, len(self._names), rngs=rngs)
        options = {"has_masks": self.gives_masks, "rngs": rngs}
        return MaskRCNN(self._model, 3, len(self._names), **options)

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], dropout_key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sum of the model's losses, and each of them as `<name>_loss`; of augmented pictures."""
        augment_key, sample_key, dropout_key = jax.random.split(dropout_key, 3)
        batch = augment(batch, example_keys(augment_key, batch["id"]), self._data.augmentation)
        parts = self._losses(model, batch, sample_key, dropout_key, training=True)
        means = {name: losses.mean(part, batch["weight"] > 0) for name, part in parts.items()}
        return sum(means.values()), {f"{name}_loss": value for name, value in means.items()}

    def batch_statistics(
        self, model: Model, batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Total and count of each of the model's losses; anchors and regions are sampled by the
        example's number alone.
        """
        parts = self._losses(model, batch, jax.random.key(0), None, training=False)
        real = batch["weight"] > 0
        return jax.tree.map(
            lambda leaf: jnp.sum(jnp.where(real, leaf, 0)),
            {name: part._asdict() for name, part in parts.items()},
        )

    def _losses(
        self,
        model: Model,
        batch: Mapping[str, jax.Array],
        sample_key: jax.Array,
        dropout_key: jax.Array | None,
        training: bool,
    ) -> dict[str, losses.Part]:
        options = {"valid": batch["weight"] > 0, "training": training}
        if isinstance(model, DETR):
            return model.losses(batch, dropout_key, **options)
        return model.losses(batch, example_keys(sample_key, batch["id"]), **options)

    def outputs(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What is found, the best first, D places for it: boxes [B, D, 4] in pixels of the example,
        scores [B, D], labels [B, D], valid [B, D], whether the place is taken; and where the model
        says masks, masks float16 [B, D, S, S], probabilities over the box. A picture's own size
        goes through as original [B, 2], where it is given.
        """
        found, masks = model.detect(batch["image"], batch["size"])
        result = found._asdict()
        if masks is not None:
            result["masks"] = masks.astype(jnp.float16)
        if "original" in batch:
            result["original"] = batch["original"]
        return result

    def attention(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What the map attention after each stage of the backbone gives, "stage_1", ...; of DETR
        also "objects" [B, Q, S], of each detection over the last map.
        """
        return model.attention(batch["image"], batch["size"])

    # ------------------------------------------------------------------ on the host

    def finalize(
        self, statistics: Mapping[str, Any], outputs: Mapping[str, np.ndarray], split: str
    ) -> dict[str, float]:
        """COCO's average precision of boxes and, where the model says them, masks; for one class
        with masks the contest score of nuclei too; the losses, and their sum as `loss`.
        """
        truths, predictions = self._truths(split), self._predictions(outputs, split)
        metrics = detection_metrics(truths, predictions, self._names)
        if self.gives_masks and len(self._names) == 1:
            metrics["contest_score"] = float(contest_scores(truths, predictions).mean())
        parts = {
            f"{name}_loss": float(part["total"]) / max(float(part["count"]), 1.0)
            for name, part in statistics.items()
        }
        return {**metrics, **parts, "loss": sum(parts.values())}

    def example_ids(self, split: str) -> np.ndarray:
        """Of names, sizes and true objects."""
        names, truths = self.examples(split).ids, self._truths(split)
        shown = [(truth.size, truth.boxes, truth.labels) for truth in truths]
        return digests.ids(names, shown)

    def correctness(self, outputs: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """See `ap50_contributions`, of boxes; the mean is the primary metric."""
        found = self._truths(split), self._predictions(outputs, split)
        return ap50_contributions(*found, self._names, "box").astype(np.float32)

    @functools.cache  # noqa: B019 - a task lives as long as its run
    def _truths(self, split: str) -> list[Any]:
        examples = self.examples(split)
        return [examples.truth(index) for index in range(len(examples))]

    def _predictions(self, outputs: Mapping[str, np.ndarray], split: str) -> list[Prediction]:
        return [
            self._prediction(outputs, index, truth.size)
            for index, truth in enumerate(self._truths(split))
        ]

    def _prediction(
        self, outputs: Mapping[str, np.ndarray], index: int, size: tuple[int, int]
    ) -> Prediction:
        """What was found in one picture of that height and width, in its own pixels."""
        there = outputs["valid"][index]
        boxes = in_own_pixels(outputs["boxes"][index][there], size, self._side)
        masks = (
            pasted_codes(outputs["masks"][index][there], boxes, size) if self.gives_masks else None
        )
        labels, scores = outputs["labels"][index][there], outputs["scores"][index][there]
        return Prediction(boxes, labels, scores, masks)

    def figures(
        self,
        statistics: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
        split: str,
        attention: Mapping[str, np.ndarray],
    ) -> list[Figure]:
        """What is found in the first pictures, and where the attention looks in them."""
        examples, drawn = self.examples(split), []
        for index in range(min(_PICTURES, len(examples))):
            name, example = examples.ids[index], examples[index]
            drawn += self._drawn(name, example, outputs, attention, index)
        return drawn

    def _drawn(
        self,
        name: str,
        example: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        attention: Mapping[str, np.ndarray],
        index: int,
    ) -> list[Figure]:
        """The figures of one picture, drawn as the model has it; with true boxes if it has some."""
        height, width = example["size"]
        image = example["image"][:height, :width]
        shown = outputs["valid"][index] & (outputs["scores"][index] >= SHOWN)
        boxes, masks, true = outputs["boxes"][index][shown], None, None
        if self.gives_masks:
            masks = paste(outputs["masks"][index][shown], boxes, height, width) >= THRESHOLD
        caption = f"{name}: {len(boxes)} found"
        if "labels" in example:
            true = example["boxes"][example["labels"] >= 0]
            caption += f", {len(true)} true"
        labels = [self._names[label] for label in outputs["labels"][index][shown]]
        scores = outputs["scores"][index][shown]
        drawn: list[Figure] = [DetectedImage(caption, image, boxes, labels, scores, masks, true)]
        for where, weights in self._attended(attention, index):
            # Of the padded square, of which the picture is a part.
            rows, columns = (
                -(-length * cells // self._side)
                for length, cells in zip((height, width), weights.shape, strict=True)
            )
            drawn.append(AttendedImage(f"{name} ({where})", image, weights[:rows, :columns]))
        return drawn

    def _attended(
        self, attention: Mapping[str, np.ndarray], index: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Words about the place in the model, and a map [y, x]."""
        backbone = self._model.backbone
        grids = backbone.sides(self._side, self._side)
        for stage, grid in enumerate(grids, 1):
            if f"stage_{stage}" in attention:
                gate = "gate" in map_attention_entry(backbone.attention).capabilities
                weights = spatial_importance(attention[f"stage_{stage}"][index], grid, gate)
                if weights is not None:
                    yield f"stage {stage}", weights
        if "objects" in attention:
            yield "the surest object", attention["objects"][index][0].reshape(grids[-1])

    def baselines(self) -> dict[str, Callable[[], dict[str, float]]]:
        """Bright or dark blobs: a threshold, and discs that part what touches."""
        return {
            "otsu_discs": lambda: baselines.otsu_discs(
                self._pictures.splits, self._names, self._has_masks
            )
        }

    # ------------------------------------------------------------------ predict

    def inputs(self, raw: Sequence[str]) -> _Files:
        """Paths of pictures of any size: larger ones are scaled down, smaller ones padded."""
        return _Files(raw, self._side)

    def describe(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """Size of the picture and its objects, the surest first: label, score, box (x1, y1, x2, y2)
        in the picture's own pixels and, where the model says masks, the mask as COCO has it. The
        line for people counts those of a score of at least 0.5.
        """
        answers = []
        for index, path in enumerate(raw):
            size = tuple(int(length) for length in outputs["original"][index])
            found = self._prediction(outputs, index, size)
            objects = []
            for number, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True)):
                row = {
                    "label": self._names[label],
                    "score": round(float(found.scores[number]), 4),
                    "box": [round(float(corner), 2) for corner in box],
                }
                if found.masks is not None:
                    row["mask"] = found.masks[number]
                objects.append(row)
            answer = {"input": path, "height": size[0], "width": size[1], "objects": objects}
            answers.append({**answer, "text": _line(path, objects)})
        return answers

    def pictures(
        self,
        raw: Sequence[str],
        outputs: Mapping[str, np.ndarray],
        attention: Mapping[str, np.ndarray],
    ) -> list[list[Figure]]:
        """What is found in each picture, and where the attention looks in it."""
        examples = self.inputs(raw)
        return [
            self._drawn(path, examples[index], outputs, attention, index)
            for index, path in enumerate(raw)
        ]


class _Files:
    """Random access to pictures without labels, by path; each is read when it is asked for."""

    lengths = None
    padded: Mapping[str, Any] = {}

    def __init__(self, paths: Sequence[str], side: int):
        self._paths, self._side = list(paths), side

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image, orientation = read_oriented(self._paths[index])
        warn_displayed(self._paths[index], orientation)
        example = fit(Picture(image), self._side, 1)
        return {
            "image": example["image"],
            "size": example["size"],
            "original": np.array(image.shape[:2], np.int32),
        }


def _line(path: str, objects: Sequence[Mapping[str, Any]]) -> str:
    sure = [row for row in objects if row["score"] >= SHOWN]
    counts: dict[str, int] = {}
    for row in sure:
        counts[row["label"]] = counts.get(row["label"], 0) + 1
    said = ", ".join(f"{count} {label}" for label, count in counts.items()) or "nothing"
    lines = [
        f"  {row['score']:.4f}  {row['label']}  at {' '.join(f'{c:g}' for c in row['box'])}"
        for row in sure
    ]
    return "\n".join([f"{path}: {said}", *lines])


TASK = Detection
