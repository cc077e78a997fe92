"""Explanations of text classification, with the tokens of the text as positions.

A gate g in [0, 1] fades the embedding x of each token towards a replacement r: g x + (1 - g) r. The
explainer measures how this changes a score of the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tasks.classification import ClassificationExplainer
from tasks.common.backbones.gated import GatedEmbedding
from tasks.common.text.tokenizer import LAST
from tasks.explainer import (
    AttentionPath,
    Description,
    Subject,
    log_odds,
    repeated,
    truncated,
)
from tasks.explanation import AttentionMap, Axis
from tasks.processor import Arrays
from tasks.text_classification import model as models


class TextExplainer(ClassificationExplainer):
    """Explains the log-odds of the predicted class by the tokens of the text."""

    @property
    def replacement(self) -> str:
        """The embedding of [MASK] if the model has one, else the mean of all token embeddings."""
        return LAST[0] if self._has_mask else "the mean of all token embeddings"

    @property
    def _around(self) -> int:
        return models.tokens_around(self.task.model)

    @property
    def _has_mask(self) -> bool:
        return self._around == models.AROUND["bert"]

    def positions(self, inputs: Arrays) -> np.ndarray:
        """Returns True for tokens and False for padding, bool [T]."""
        return np.arange(inputs["tokens"].shape[1]) < int(inputs["length"][0])

    def score(self, model: Any, inputs: Mapping[str, Any], gates: Any, target: Any) -> Any:
        """Computes the log-odds of the predicted class, with gated token embeddings."""
        table = model.tokens.embedding[...]
        size = self.task.processor.tokenizer.size
        replacement = table[-len(LAST)] if self._has_mask else jnp.mean(table[:size], axis=0)
        model.tokens = GatedEmbedding(model.tokens, gates, replacement, min(self._around, 1))
        batch = {name: repeated(inputs[name], gates) for name in ("tokens", "length")}
        return log_odds(self.task.logits(model, batch), target["label"])

    def attention_path(self, subject: Subject) -> AttentionPath | None:
        """Returns the attention weights that lead from the tokens to the logits.

        These are the weights of the encoder's layers, and the weight of each encoded token in the
        prediction: its pooling weight or, with a classification token, 1 for this token.
        """
        attention, first = subject.attention, min(self._around, 1)
        length = int(subject.inputs["length"][0])
        states = length + self._around
        layers = None
        if "encoder" in attention:
            layers = attention["encoder"][:, :, :states, :states]
        if first:
            readout = np.eye(1, states)[0]
        elif "pool" in attention:
            readout = attention["pool"].mean(axis=0)[:length]
        elif layers is None:
            return None
        else:
            readout = np.full(length, 1 / length)
        return AttentionPath(readout, layers, first)

    def describe(self, subject: Subject) -> Description:
        """Returns the tokens, and the attention weights of encoder and pool."""
        text = subject.raw
        if text is None:
            text = self.task.inputs(subject.split)[subject.index]
        length = int(subject.inputs["length"][0])
        named = self.task.attention_axes(text, subject.outputs, subject.attention)
        tokens = [*named["pool"]["token"]][:length]
        axes, maps = {"tokens": Axis("token", tokens)}, []
        if "encoder" in subject.attention:
            states = length + self._around
            around = "tokens"
            if self._around:
                around = "tokens of the encoder"
                axes[around] = Axis("token", [*named["encoder"]["key"]][:states])
            weights = subject.attention["encoder"][:, :, :states, :states]
            maps.append(AttentionMap("encoder", weights, around, around))
        if "pool" in subject.attention:
            weights = subject.attention["pool"][None, :, None, :length]
            maps.append(AttentionMap("pool", weights, None, "tokens"))
        config = self.task.data.text
        notes = truncated(self.task.processor.tokenizer, text, config.max_length)
        return self.described(subject, input=text, axis="tokens", axes=axes, maps=maps, notes=notes)
