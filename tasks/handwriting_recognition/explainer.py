"""Explanations of handwriting recognition, with the encoded columns as positions.

A gate g in [0, 1] fades the ink x of the image columns of each position to blank paper: g x. The
explainer measures how this changes a score of the transcript.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from tasks.explanation import Picture
from tasks.processor import Arrays
from tasks.transcription_explainer import TranscriptionExplainer


class HandwritingExplainer(TranscriptionExplainer):
    """Explains transcripts by the columns of the line."""

    kind = "column"
    replacement = "blank paper"

    def frames(self, inputs: Arrays) -> tuple[int, int]:
        """Returns the numbers of encoded columns of the line and of the padded array."""
        model = self.task.model
        return model.frames(int(inputs["length"][0])), model.frames(inputs["columns"].shape[1])

    def encode(self, model: Any, batch: Mapping[str, Any], gates: Any) -> Any:
        """Encodes lines whose ink is multiplied by the gates."""
        width = batch["columns"].shape[1]
        factor = -(-width // gates.shape[1])
        shares = jnp.repeat(gates, factor, axis=1)[:, :width, None]
        return self.task.encode(model, {**batch, "columns": batch["columns"] * shares})

    def medium(self, inputs: Arrays) -> Picture:
        """Returns the image of the line."""
        length = int(inputs["length"][0])
        return Picture(self.task.input_image({"columns": inputs["columns"][0][:length]})[0])
