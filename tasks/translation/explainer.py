"""Explanations of translations, with the tokens of the source as positions.

A gate g in [0, 1] fades the embedding x of each token towards a replacement r: g x + (1 - g) r. The
explainer measures how this changes a score of the translation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tasks.common.backbones.gated import GatedInput, mean_embedding
from tasks.common.text.tokenizer import PAD
from tasks.explainer import (
    AttentionPath,
    Description,
    SequenceExplainer,
    Subject,
    mean_log_probability,
    repeated,
    truncated,
)
from tasks.explanation import AttentionMap, Axis
from tasks.processor import Arrays


class TranslationExplainer(SequenceExplainer):
    """Explains the log-probability of the translation by the tokens of the source."""

    replacement = "the mean of all token embeddings"

    def target(self, outputs: Arrays) -> dict[str, np.ndarray]:
        """Returns the "tokens" of the best translation, int [1, T]."""
        return {"tokens": outputs["tokens"][:, 0]}

    def positions(self, inputs: Arrays) -> np.ndarray:
        """Returns True for tokens, including the end token, and False for padding, bool [S]."""
        return inputs["source"][0] != PAD

    def score(self, model: Any, inputs: Mapping[str, Any], gates: Any, target: Any) -> Any:
        """Computes the mean log-probability of the translation's tokens, with a gated source."""
        replacement = mean_embedding(model.embedding, model.start)
        model.encoder = GatedInput(model.encoder, gates, replacement)
        tokens = repeated(target["tokens"], gates)
        logits = model(repeated(inputs["source"], gates), tokens)
        return mean_log_probability(logits, tokens, tokens != PAD)

    def _alignment(self, subject: Subject) -> np.ndarray | None:
        """Returns the weights [layers, heads, steps, tokens] without padding, or None if none."""
        weights = subject.attention.get("alignment")
        if weights is None:
            return None
        steps = int(np.sum(subject.outputs["tokens"][0, 0] != PAD))
        length = int(self.positions(subject.inputs).sum())
        weights = weights[:steps, ..., :length]
        weights = weights.reshape(len(weights), *(1,) * (4 - weights.ndim), *weights.shape[1:])
        return np.moveaxis(weights, 0, 2)

    def attention_path(self, subject: Subject) -> AttentionPath | None:
        """Returns the weights of the second to last layer, averaged over steps and heads.

        This layer aligns best (Garg et al. 2019).
        """
        weights = self._alignment(subject)
        if weights is None:
            return None
        return AttentionPath(weights[max(len(weights) - 2, 0)].mean(axis=(0, 1)))

    def describe(self, subject: Subject) -> Description:
        """Returns the tokens of source and translation, and the attention weights between them."""
        target = None
        source = subject.raw
        if source is None:
            part = self.task.dataset.splits[subject.split]
            source, target = part.sources[subject.index], part.targets[subject.index]
        outputs = subject.outputs
        named = self.task.attention_axes(source, outputs, subject.attention)["alignment"]
        length = int(self.positions(subject.inputs).sum())
        axes = {
            "source": Axis("token", [*named["source"]][:length]),
            "translation": Axis("token", [*named["output"]]),
        }
        weights, maps = self._alignment(subject), []
        if weights is not None:
            maps.append(AttentionMap("alignment", weights, "translation", "source"))
        return Description(
            input=source,
            prediction=self.task.processor.hypotheses(outputs)[0],
            explained="mean log-probability of the tokens of the translation",
            axis="source",
            axes=axes,
            maps=maps,
            target=target,
            confidence=float(np.exp(outputs["scores"][0, 0])),
            notes=truncated(self.task.processor.tokenizer, source, self.task.data.text.max_length),
        )
