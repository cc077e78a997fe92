"""Explanations of transcripts by the encoded frames of a sound or of an image of a text line.

The encoded frames are the positions of an explanation. See `tasks.explainer` for positions, gates
and replacements. In shapes, T is the number of units of a transcript, and S the number of encoded
frames.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tasks.common.text.tokenizer import PAD
from tasks.explainer import AttentionPath, Description, SequenceExplainer, Subject, repeated, spans
from tasks.explanation import AttentionMap, Axis, Medium
from tasks.processor import Arrays


class TranscriptionExplainer(SequenceExplainer):
    """Explains the log-probability of a transcript.

    Subclasses define how gates replace frames (by `encode`), and which sound or image is shown.

    Class attributes:
      kind: kind of the axis of encoded frames, see `tasks.explanation.Axis`.
    """

    kind: str

    def target(self, outputs: Arrays) -> dict[str, np.ndarray]:
        """Returns "units", the unit ids of the transcript without the end token, int [1, T]."""
        tokens = outputs["tokens"]
        real = (tokens > PAD) & (tokens < self.task.processor.tokenizer.size)
        return {"units": np.where(real, tokens, PAD)}

    @abc.abstractmethod
    def frames(self, inputs: Arrays) -> tuple[int, int]:
        """Returns the number of encoded frames without padding, and the number with padding."""

    @abc.abstractmethod
    def encode(self, model: Any, batch: Mapping[str, Any], gates: Any) -> Any:
        """Computes the encoder output of a batch whose frames the gates mix with a replacement."""

    @abc.abstractmethod
    def medium(self, inputs: Arrays) -> Medium:
        """Returns the sound or the image of an example."""

    def positions(self, inputs: Arrays) -> np.ndarray:
        """Returns True for encoded frames of the input, False for padding."""
        real, width = self.frames(inputs)
        return np.arange(width) < real

    def score(self, model: Any, inputs: Mapping[str, Any], gates: Any, target: Any) -> Any:
        """Computes the mean log-probability of the units for each row of gates.

        The log-probabilities of decoder and CTC are weighted as in the training loss.
        """
        batch = {name: repeated(array, gates) for name, array in inputs.items()}
        found = self.encode(model, batch, gates)
        losses = model.transcriber(
            found.memory,
            found.valid,
            found.final_state,
            repeated(jnp.asarray(target["units"]), gates),
            smoothing=False,
        )
        return -model.transcriber.joint(losses) / jnp.maximum(losses.num_units, 1)

    def _alignment(self, subject: Subject) -> np.ndarray | None:
        """Returns the attention weights over the frames, [T, S], without padding.

        The result is None for a model without an alignment.
        """
        weights = subject.attention.get("alignment")
        if weights is None:
            return None
        steps = len(self.task.processor.pieces(subject.outputs["tokens"][0]))
        return weights[:steps, : self.frames(subject.inputs)[0]]

    def attention_path(self, subject: Subject) -> AttentionPath | None:
        """Returns the decoder's attention to the frames, averaged over the decoding steps."""
        weights = self._alignment(subject)
        return None if weights is None or not len(weights) else AttentionPath(weights.mean(axis=0))

    def describe(self, subject: Subject) -> Description:
        """Returns the description of an example: transcript, frames and the alignment, if any."""
        target, text = None, subject.raw
        if text is None:
            text = f"{subject.split} example {subject.index}"
            target = self.task.dataset.splits[subject.split].texts[subject.index]
        real, _ = self.frames(subject.inputs)
        frames = Axis(
            self.kind, [str(number + 1) for number in range(real)], spans(np.arange(real + 1), real)
        )
        steps = self.task.processor.pieces(subject.outputs["tokens"][0])
        weights, maps = self._alignment(subject), []
        if weights is not None:
            maps.append(AttentionMap("alignment", weights[None, None], "transcript", "frames"))
        hypothesis = self.task.processor.hypotheses(subject.outputs)[0]
        return Description(
            input=text,
            prediction=hypothesis,
            explained="mean log-probability of the units of the transcript",
            axis="frames",
            axes={"frames": frames, "transcript": Axis("token", steps)},
            maps=maps,
            medium=self.medium(subject.inputs),
            target=target,
            confidence=float(np.exp(subject.outputs["score"][0])),
            correct=None if target is None else target.strip() == hypothesis.strip(),
        )
