"""Explanations of segmentation, with the cells of a grid as positions.

A gate g in [0, 1] fades each cell x of the image towards the same cell r of a blurred copy:
g x + (1 - g) r. The explainer measures how this changes a score of the prediction.

Y X height and width of an image, y x those of a map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tasks.common.backbones.convolutional import spatial_importance
from tasks.common.backbones.gated import cells, gated_images
from tasks.common.images.pixels import (
    center,
    grid_areas,
    grid_labels,
    on_grid,
    to_unit,
)
from tasks.explainer import AttentionPath, Description, Explainer, Subject
from tasks.explanation import AttentionMap, Axis, Picture
from tasks.processor import Arrays


class SegmentationExplainer(Explainer):
    """Explains one class at its predicted pixels.

    Among the classes other than the background (class 0), it is the class with the most predicted
    pixels. If all pixels are background, the background is explained.
    """

    replacement = "a blurred copy"
    quantity = "probability of the class at its pixels (geometric mean)"

    def _labels(self, outputs: Arrays) -> np.ndarray:
        """Returns predicted classes, int [Y, X]."""
        if "labels" in outputs:
            return outputs["labels"][0].astype(np.int32)
        return outputs["probabilities"][0].argmax(axis=-1).astype(np.int32)

    def target(self, outputs: Arrays) -> dict[str, np.ndarray]:
        """Returns the "class", int [1], and its predicted "pixels", bool [1, Y, X]."""
        labels = self._labels(outputs)
        counts = np.bincount(labels.ravel(), minlength=len(self.task.names))
        chosen = 1 + int(np.argmax(counts[1:])) if counts[1:].any() else 0
        return {"class": np.array([chosen]), "pixels": (labels == chosen)[None]}

    def _grid(self, inputs: Mapping[str, Any]) -> tuple[int, int]:
        _, Y, X, _ = inputs["image"].shape
        return cells(Y), cells(X)

    def positions(self, inputs: Arrays) -> np.ndarray:
        """Returns True for every cell."""
        return np.ones(np.prod(self._grid(inputs)), bool)

    def score(self, model: Any, inputs: Mapping[str, Any], gates: Any, target: Any) -> Any:
        """Computes the mean log-probability of the class at its pixels, for gated images."""
        images = gated_images(to_unit(inputs["image"]), gates, *self._grid(inputs))
        found = jax.nn.log_softmax(model(center(images)).astype(jnp.float32))
        chosen = jnp.take(found, target["class"][0], axis=-1)
        total = jnp.sum(jnp.where(target["pixels"], chosen, 0), axis=(1, 2))
        return total / jnp.maximum(jnp.sum(target["pixels"]), 1)

    def measure(self, scores: np.ndarray, whole: float) -> np.ndarray:
        """Returns the geometric mean of the probabilities."""
        return np.exp(np.minimum(scores, 0))

    def _maps(self, subject: Subject) -> list[tuple[str, np.ndarray]]:
        """Returns name and spatial map [y, x] of each attention whose weights are spatial."""
        model, found = self.task.model, []
        sides = model.sides(*subject.inputs["image"].shape[1:3])
        for name, weights in subject.attention.items():
            grid = sides[int(name.rpartition("_")[2]) - 1]
            spatial = spatial_importance(weights, grid, model.is_gate)
            if spatial is not None:
                found.append((name.replace("_", " "), spatial))
        return found

    def attention_path(self, subject: Subject) -> AttentionPath | None:
        """Returns the attention map with the most positions, averaged within each cell."""
        maps = self._maps(subject)
        if not maps:
            return None
        finest = max((weights for _, weights in maps), key=np.size)
        return AttentionPath(on_grid(finest, self._grid(subject.inputs)).ravel())

    def describe(self, subject: Subject) -> Description:
        """Returns the image with predicted classes, and the attention maps."""
        labels = self._labels(subject.outputs)
        grid = self._grid(subject.inputs)
        axes, maps = {"image": Axis("cell", grid_labels(*grid), grid_areas(*grid))}, []
        for title, weights in self._maps(subject):
            axes[title] = Axis("cell", grid_labels(*weights.shape), grid_areas(*weights.shape))
            maps.append(AttentionMap(title, weights.reshape(1, 1, 1, -1), None, title))
        target = self.target(subject.outputs)
        name, masks = self.task.names[int(target["class"][0])], []
        for number in np.unique(labels[labels < len(self.task.names)]).tolist():
            masks.append((self.task.names[number], labels == number))
        shares = [f"{title} {mask.mean():.0%}" for title, mask in masks]
        text = f"{subject.split} example {subject.index}" if subject.raw is None else subject.raw
        return Description(
            input=text,
            prediction=", ".join(shares),
            explained=f"mean log-probability of {name} at its {int(target['pixels'].sum()):,} "
            "predicted pixels",
            axis="image",
            axes=axes,
            maps=maps,
            medium=Picture(subject.inputs["image"][0], masks=masks),
        )
