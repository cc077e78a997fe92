"""Explanations of image classification, with patches of a ViT or cells of a grid as positions.

A gate g in [0, 1] fades each patch or cell x of the image towards the same part r of a blurred
copy: g x + (1 - g) r. The explainer measures how this changes a score of the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tasks.classification import ClassificationExplainer
from tasks.common.backbones import convolutional
from tasks.common.backbones.gated import cells, gated_images
from tasks.common.images.pixels import (
    drawable,
    grid_areas,
    grid_labels,
    on_grid,
    to_unit,
)
from tasks.explainer import AttentionPath, Description, Subject, log_odds
from tasks.explanation import AttentionMap, Axis, Picture
from tasks.image_classification.model import ViTConfig
from tasks.processor import Arrays


class ImageExplainer(ClassificationExplainer):
    """Explains the log-odds of the predicted class by patches of a ViT, or by cells of a grid."""

    replacement = "a blurred copy"

    @property
    def _grid(self) -> tuple[int, int]:
        Y, X = self.task.data.image_shape[:2]
        if isinstance(self.task.model, ViTConfig):
            return Y // self.task.model.patch_size, X // self.task.model.patch_size
        return cells(Y), cells(X)

    def positions(self, inputs: Arrays) -> np.ndarray:
        """Returns True for every cell."""
        return np.ones(np.prod(self._grid), bool)

    def score(self, model: Any, inputs: Mapping[str, Any], gates: Any, target: Any) -> Any:
        """Computes the log-odds of the predicted class for gated images."""
        images = gated_images(to_unit(inputs["image"]), gates, *self._grid)
        return log_odds(self.task.logits(model, {"image": images}), target["label"])

    def attention_path(self, subject: Subject) -> AttentionPath | None:
        """Returns the attention weights that lead from the positions to the logits.

        For a ViT these are the weights of its layers and of its head. For a convolutional network
        they are the last map that `_spatial` returns, averaged within each cell.
        """
        attention = subject.attention
        if not isinstance(self.task.model, ViTConfig):
            maps = [found for _, found in self._spatial(attention)]
            if not maps:
                return None
            return AttentionPath(on_grid(maps[-1], self._grid).ravel())
        if "encoder" not in attention:
            return None
        layers, patches = attention["encoder"], int(np.prod(self._grid))
        first = layers.shape[-1] - patches
        if first:
            readout = np.eye(1, layers.shape[-1])[0]
        elif self.task.model.head == "mean":
            readout = np.full(patches, 1 / patches)
        else:
            readout = attention["head"].mean(axis=0)
        return AttentionPath(readout, layers, first)

    def _spatial(self, attention: Arrays) -> list[tuple[str, np.ndarray]]:
        """Returns name and spatial map [y, x] of each stage whose attention weights are spatial."""
        if not attention:
            return []
        grids = self.task.model.sides(*self.task.data.image_shape[:2])
        entry = convolutional.map_attention_entry(self.task.model.attention)
        gate = entry is not None and "gate" in entry.capabilities
        pairs = zip(grids, attention.items(), strict=True)
        found = [(k, convolutional.spatial_importance(w, grid, gate)) for grid, (k, w) in pairs]
        return [(name, weights) for name, weights in found if weights is not None]

    def describe(self, subject: Subject) -> Description:
        """Returns the image, with the weights of a ViT or the maps of a convolutional network."""
        rows, columns = self._grid
        kind = "patch" if isinstance(self.task.model, ViTConfig) else "cell"
        areas = grid_areas(rows, columns)
        where = Axis(kind, grid_labels(rows, columns), areas)
        axes, maps = {"image": where}, []
        if kind == "patch" and "encoder" in subject.attention:
            weights = subject.attention["encoder"]
            others, name = weights.shape[-1] - rows * columns, "image"
            if others:
                name = "image and [CLS]"
                areas = np.concatenate([np.zeros((others, 4)), areas])
                axes[name] = Axis(kind, ["[CLS]"] * others + [*where.labels], areas)
            maps.append(AttentionMap("encoder", weights, name, name))
            maps.append(
                AttentionMap("head", subject.attention["head"][None, :, None], None, "image")
            )
        elif kind == "cell":
            for name, weights in self._spatial(subject.attention):
                title = name.replace("_", " ")
                axes[title] = Axis("cell", grid_labels(*weights.shape), grid_areas(*weights.shape))
                maps.append(AttentionMap(title, weights.reshape(1, 1, 1, -1), None, title))
        return self.described(
            subject,
            input=subject.raw or f"{subject.split} example {subject.index}",
            axis="image",
            axes=axes,
            maps=maps,
            medium=Picture(drawable(subject.inputs["image"][0])),
        )
