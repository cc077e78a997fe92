"""Explanations of copied strings, with the digits of the source as positions.

A gate g in [0, 1] fades the embedding x of each position towards a replacement r: g x + (1 - g) r.
The explainer measures how this changes a score of the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tasks.common.backbones.gated import GatedInput
from tasks.explainer import (
    AttentionPath,
    Description,
    SequenceExplainer,
    Subject,
    mean_log_probability,
    repeated,
)
from tasks.explanation import AttentionMap, Axis
from tasks.processor import Arrays
from tasks.sequence_copy import data as strings
from tasks.sequence_copy.data import PAD


class CopyExplainer(SequenceExplainer):
    """Explains the log-probability of the decoded string by the digits of the source."""

    replacement = "the mean of all token embeddings"

    def target(self, outputs: Arrays) -> dict[str, np.ndarray]:
        """Returns the decoded "tokens", int [1, T]."""
        return {"tokens": outputs["tokens"]}

    def positions(self, inputs: Arrays) -> np.ndarray:
        """Returns True for digits and False for padding, bool [S]."""
        return np.arange(inputs["source"].shape[1]) < int(inputs["length"][0])

    def score(self, model: Any, inputs: Mapping[str, Any], gates: Any, target: Any) -> Any:
        """Computes the mean log-probability of the decoded tokens, with a gated source."""
        replacement = jnp.mean(model.decoder.embedding.embedding[...], axis=0)
        model.encoder = GatedInput(model.encoder, gates, replacement)
        tokens = repeated(target["tokens"], gates)
        batch = (repeated(inputs[name], gates) for name in ("source", "length"))
        logits, _ = model(*batch, tokens)
        return mean_log_probability(logits, tokens, tokens != PAD)

    def _alignment(self, subject: Subject) -> np.ndarray | None:
        """Returns the weights [heads, output steps, digits] without padding, or None if none."""
        weights = subject.attention.get("alignment")
        if weights is None:
            return None
        steps = int(np.sum(subject.outputs["tokens"][0] != PAD))
        weights = weights[:steps, ..., : int(subject.inputs["length"][0])]
        return np.moveaxis(weights[:, None] if weights.ndim == 2 else weights, 0, 1)

    def attention_path(self, subject: Subject) -> AttentionPath | None:
        """Returns the attention weights of the digits, averaged over steps and heads."""
        weights = self._alignment(subject)
        return None if weights is None else AttentionPath(weights.mean(axis=(0, 1)))

    def describe(self, subject: Subject) -> Description:
        """Returns the digits of source and output, and the attention weights between them."""
        source, target = subject.raw, None
        if source is None:
            part = self.task.examples(subject.split)
            source, target = part.strings[subject.index], part.answers[subject.index]
        tokens = subject.outputs["tokens"][0]
        written = strings.decode(tokens)
        steps = [*written, *["end"] * (int(np.sum(tokens != PAD)) - len(written))]
        axes = {"source": Axis("token", list(source.strip())), "output": Axis("token", steps)}
        weights, maps = self._alignment(subject), []
        if weights is not None:
            maps.append(AttentionMap("alignment", weights[None], "output", "source"))
        return Description(
            input=source,
            prediction=written,
            explained="mean log-probability of the decoded tokens",
            axis="source",
            axes=axes,
            maps=maps,
            target=target,
            correct=None if target is None else target == written,
        )
