"""Processor of detection: reads images, and converts model outputs to objects in image pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.images.files import SUFFIXES, read_oriented
from tasks.common.images.orientation import warn_displayed
from tasks.detection.data import AnnotatedImage, fit, to_image_pixels
from tasks.detection.metrics import Prediction
from tasks.detection.models.mask_rcnn import MaskRCNNConfig
from tasks.detection.ops.pasting import pasted_codes
from tasks.task import ArraySpec, ProcessingSteps, Processor

# Minimum score of objects in figures and in the printed text.
SHOWN = 0.5


@dataclasses.dataclass(frozen=True)
class DetectionProcessor(Processor):
    """Processor that reads images, and returns objects with boxes, classes and masks.

    Attributes:
      data, model: configs of the data set and of the model.
      names: names of the classes.
      has_masks: whether the data has masks.
      image_size: side length of the examples in pixels.
    """

    names: Sequence[str]
    has_masks: bool
    image_size: int

    input_column = "path"
    input_suffixes = SUFFIXES

    @property
    def predicts_masks(self) -> bool:
        """True if the model predicts masks: Mask R-CNN on data with masks."""
        return self.has_masks and isinstance(self.model, MaskRCNNConfig)

    def encode(self, raw: Sequence[str]) -> UserImages:
        """Reads images. Large images are scaled down to the example size, small ones are padded."""
        return UserImages(raw, self.image_size)

    def decode(self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Returns the size of each image and its objects, highest score first.

        An object has a label, a score, and a box (x1, y1, x2, y2) in image pixels. If the model
        predicts masks, it also has a mask in COCO's encoding. The printed text contains objects
        with a score of at least 0.5.
        """
        answers = []
        for index, path in enumerate(raw):
            size = tuple(int(length) for length in outputs["original"][index])
            found = self.prediction(outputs, index, size)
            objects = []
            for number, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True)):
                row = {
                    "label": self.names[label],
                    "score": round(float(found.scores[number]), 4),
                    "box": [round(float(corner), 2) for corner in box],
                }
                if found.masks is not None:
                    row["mask"] = found.masks[number]
                objects.append(row)
            answer = {"input": path, "height": size[0], "width": size[1], "objects": objects}
            shown = [row for row in objects if row["score"] >= SHOWN]
            answers.append({**answer, "text": object_lines(path, shown)})
        return answers

    def prediction(
        self, outputs: Mapping[str, np.ndarray], index: int, size: tuple[int, int]
    ) -> Prediction:
        """Returns the objects of one image in the pixel coordinates of the original image.

        Args:
          outputs: outputs of `Task.predict`.
          index: index of the image.
          size: height and width of the original image.
        """
        valid = outputs["valid"][index]
        boxes = to_image_pixels(outputs["boxes"][index][valid], size, self.image_size)
        masks = None
        if self.predicts_masks:
            masks = pasted_codes(outputs["masks"][index][valid], boxes, size)
        labels, scores = outputs["labels"][index][valid], outputs["scores"][index][valid]
        return Prediction(boxes, labels, scores, masks)

    def signature(self) -> dict[str, ArraySpec]:
        """Returns the specifications of the arrays of an example.

        These are the padded image, its size without padding, and the size of the original image.
        """
        side = self.image_size
        return {
            "image": ArraySpec(("batch", side, side, 3), "uint8"),
            "size": ArraySpec(("batch", 2), "int32"),
            "original": ArraySpec(("batch", 2), "int32"),
        }

    def steps(self) -> ProcessingSteps:
        """Returns the steps before and after an exported model.

        They scale images, and map predicted objects to pixels of the original image.
        """
        encode = [
            {"op": "read_image", "mode": "RGB", "to": "image"},
            {"op": "fit_square", "side": self.image_size, "to": "image"},
        ]
        found = {
            "op": "objects",
            "names": list(self.names),
            "side": self.image_size,
            "masks": self.predicts_masks,
            "shown": SHOWN,
        }
        return ProcessingSteps("image", encode, [found], libraries=["pillow"])


class UserImages:
    """Random access to unlabeled images by path; each image is read on access."""

    lengths = None
    padded: Mapping[str, Any] = {}

    def __init__(self, paths: Sequence[str], side: int):
        self._paths, self._side = list(paths), side

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image, orientation = read_oriented(self._paths[index])
        warn_displayed(self._paths[index], orientation)
        example = fit(AnnotatedImage(image), self._side, 1)
        return {name: example[name] for name in ("image", "size", "original")}


def object_lines(path: str, shown: Sequence[Mapping[str, Any]]) -> str:
    """Returns the printed text of an image: counts by label, and a line for each object."""
    counts: dict[str, int] = {}
    for row in shown:
        counts[row["label"]] = counts.get(row["label"], 0) + 1
    summary = ", ".join(f"{count} {label}" for label, count in counts.items()) or "nothing"
    lines = [
        f"  {row['score']:.4f}  {row['label']}  at {' '.join(f'{c:g}' for c in row['box'])}"
        for row in shown
    ]
    return "\n".join([f"{path}: {summary}", *lines])
