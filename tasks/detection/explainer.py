"""Explanations of detection, with the cells of a grid as positions.

A gate g in [0, 1] mixes each cell x of the image with the same cell r of a blurred copy:
g x + (1 - g) r. The explainer measures how this changes a score of the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tasks.common.backbones.gated import cells, gated_images
from tasks.common.images.pixels import grid_areas, grid_labels, on_grid, to_unit
from tasks.detection.ops.boxes import iou
from tasks.explainer import AttentionPath, Description, Explainer, Subject, repeated
from tasks.explanation import AttentionMap, Axis, Picture
from tasks.processor import Arrays

# Minimum IoU of a detection with the explained object, and minimum score of a drawn detection.
_OVERLAP, _SHOWN = 0.5, 0.5


class DetectionExplainer(Explainer):
    """Explains the log-odds of the most confident object.

    The explained score is the highest score of the detections that have the class of the object and
    an IoU with it of at least 0.5. It has no useful gradients, because the selection of detections
    is not differentiable.
    """

    replacement = "a blurred copy"
    quantity = "score of the object, 0 if it is not found"
    differentiable = False

    def target(self, outputs: Arrays) -> dict[str, np.ndarray]:
        """Returns "box" [1, 4] and "label" [1] of the detection with the highest score."""
        return {"box": outputs["boxes"][:, 0], "label": outputs["labels"][:, 0]}

    def _grid(self, inputs: Mapping[str, Any]) -> tuple[int, int]:
        _, Y, X, _ = inputs["image"].shape
        return cells(Y), cells(X)

    def positions(self, inputs: Arrays) -> np.ndarray:
        """Returns True for cells inside the image, and False for cells in the padding."""
        _, Y, X, _ = inputs["image"].shape
        height, width = inputs["size"][0]
        rows, columns = self._grid(inputs)
        y, x = np.divmod(np.arange(rows * columns), columns)
        return (y * Y // rows < height) & (x * X // columns < width)

    def score(self, model: Any, inputs: Mapping[str, Any], gates: Any, target: Any) -> Any:
        """Computes the log-odds of the object's score, for gated images."""
        images = gated_images(to_unit(inputs["image"]), gates, *self._grid(inputs))
        images = images * 255 if inputs["image"].dtype == jnp.uint8 else images
        batch = {name: repeated(array, gates) for name, array in inputs.items()}
        images = jnp.round(images).astype(inputs["image"].dtype)
        found, _ = model.detect(images, batch["size"])
        overlap = jax.vmap(iou, (0, None))(found.boxes, target["box"])[..., 0]
        same = found.valid & (found.labels == target["label"]) & (overlap >= _OVERLAP)
        best = jnp.clip(jnp.max(jnp.where(same, found.scores, 0), axis=1), 1e-6, 1 - 1e-6)
        return jnp.log(best) - jnp.log1p(-best)

    def attention_path(self, subject: Subject) -> AttentionPath | None:
        """Returns the attention map of the most confident object (DETR) or of the last stage."""
        maps = [weights for _, weights in self.task.attended(subject.attention)]
        if not maps:
            return None
        grid = on_grid(maps[-1], self._grid(subject.inputs)).ravel()
        return AttentionPath(grid[self.positions(subject.inputs)])

    def describe(self, subject: Subject) -> Description:
        """Returns the image with detections, and the attention maps."""
        _, Y, X, _ = subject.inputs["image"].shape
        height, width = subject.inputs["size"][0].tolist()
        real, whole = self.positions(subject.inputs), np.array([X, Y, X, Y])
        inside = np.array([width, height, width, height])
        grid = self._grid(subject.inputs)
        areas = np.minimum(grid_areas(*grid)[real] * whole / inside, 1)
        labels = [label for label, kept in zip(grid_labels(*grid), real, strict=True) if kept]
        axes, maps = {"image": Axis("cell", labels, areas)}, []
        for title, weights in self.task.attended(subject.attention):
            where = np.minimum(grid_areas(*weights.shape) * whole / inside, 1)
            axes[title] = Axis("cell", grid_labels(*weights.shape), where)
            maps.append(AttentionMap(title, weights.reshape(1, 1, 1, -1), None, title))
        names, outputs = self.task.processor.names, subject.outputs
        shown = np.flatnonzero(outputs["valid"][0] & (outputs["scores"][0] >= _SHOWN))
        boxes = [
            (f"{names[outputs['labels'][0][row]]} {outputs['scores'][0][row]:.2f}",
             outputs["boxes"][0][row] / inside)
            for row in shown
        ]  # fmt: skip
        first, score = names[outputs["labels"][0][0]], float(outputs["scores"][0][0])
        text = subject.raw
        if text is None:
            text = self.task.examples(subject.split).ids[subject.index]
        return Description(
            input=text,
            prediction=f"{len(shown)} objects with a score of at least {_SHOWN}",
            explained=f"log-odds of the most confident object ({first})",
            axis="image",
            axes=axes,
            maps=maps,
            medium=Picture(subject.inputs["image"][0][:height, :width], boxes=boxes),
            confidence=score,
        )
