"""Explanations of speech recognition, with the encoded frames as positions.

A gate g in [0, 1] fades the standardized features x of the frames of each position to 0, which is
their mean in training: g x. The explainer measures how this changes a score of the transcript.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tasks.common.backbones.gated import GatedInput
from tasks.explanation import Picture, Sound
from tasks.processor import Arrays
from tasks.transcription_explainer import TranscriptionExplainer


class SpeechExplainer(TranscriptionExplainer):
    """Explains transcripts by the frames of the recording."""

    kind = "frame"
    replacement = "the mean of the training features"

    def _encoded(self, samples: int) -> int:
        return self.task.model.frames(self.task.data.features.frames(samples))

    def frames(self, inputs: Arrays) -> tuple[int, int]:
        """Returns the numbers of encoded frames of the recording and of the padded array."""
        return self._encoded(int(inputs["length"][0])), self._encoded(inputs["samples"].shape[1])

    def encode(self, model: Any, batch: Mapping[str, Any], gates: Any) -> Any:
        """Encodes recordings whose standardized features are multiplied by the gates."""
        total = self.task.data.features.frames(batch["samples"].shape[1])
        factor = -(-total // gates.shape[1])
        model.encoder = GatedInput(model.encoder, gates, jnp.zeros(()), factor=factor)
        return self.task.encode(model, batch)

    def medium(self, inputs: Arrays) -> Sound:
        """Returns the recording with its log-mel features."""
        length = int(inputs["length"][0])
        example = {"samples": inputs["samples"][0][:length], "length": inputs["length"][0]}
        image, _ = self.task.input_image(example)
        low, high = float(image.min()), float(image.max())
        picture = Picture((image - low) / max(high - low, 1e-9))
        samples = example["samples"].astype(np.float32) / 32768
        return Sound(samples, self.task.data.features.sample_rate, picture)
