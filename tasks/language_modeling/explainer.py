"""Explanations of masked words and of next tokens, with tokens as positions.

A gate g in [0, 1] fades the embedding x of each token towards a replacement r: g x + (1 - g) r. The
explainer measures how this changes a score of the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tasks.common.backbones.gated import GatedInput, mean_embedding
from tasks.common.text.tokenizer import CLS, LAST, PAD, SPECIAL
from tasks.explainer import AttentionPath, Description, Explainer, Subject, log_odds, repeated
from tasks.explanation import AttentionMap, Axis
from tasks.language_modeling.examples import MASK
from tasks.language_modeling.processor import token_text
from tasks.processor import Arrays

# Maximum number of tokens of an explained example of a split; further tokens are dropped.
_TOKENS = 64


class LanguageExplainer(Explainer):
    """Explains the log-odds of the best word for a [MASK], or of the token after a prompt."""

    @property
    def _causal(self) -> bool:
        return self.task.processor.causal

    @property
    def replacement(self) -> str:
        """The embedding of [MASK], or the mean of all token embeddings for a causal model."""
        return "the mean of all token embeddings" if self._causal else LAST[0]

    def target(self, outputs: Arrays) -> dict[str, np.ndarray]:
        """Returns the predicted "token", int [1]."""
        return {"token": outputs["completion" if self._causal else "words"][:, 0]}

    def raw(self, split: str, index: int) -> str:
        """Returns the text with one masked word; for a causal model, the first half of the text."""
        return self._asked(split, index)[0]

    def _asked(self, split: str, index: int) -> tuple[str, str]:
        """Returns the raw input for an example of a split, and the true word or next token."""
        tokenizer = self.task.processor.tokenizer
        tokens = self.task.examples(split)[index]["tokens"]
        known = tokens[(tokens != PAD) & (tokens != CLS) & (tokens < tokenizer.size)][:_TOKENS]
        if self._causal:
            half = max(len(known) // 2, 1)
            return tokenizer.decode(known[:half]), tokenizer.decode(known[half : half + 1])
        words = tokenizer.decode(known).split()
        if not words:
            return MASK, ""
        chosen = int(np.random.default_rng(index).integers(len(words)))
        word, words[chosen] = words[chosen], MASK
        return " ".join(words), word

    def positions(self, inputs: Arrays) -> np.ndarray:
        """Returns True for tokens and False for padding, bool [T]."""
        return np.arange(inputs["tokens"].shape[1]) < int(inputs["length"][0])

    def score(self, model: Any, inputs: Mapping[str, Any], gates: Any, target: Any) -> Any:
        """Computes the log-odds of the predicted token, with gated token embeddings."""
        size, mask = self.task.processor.tokenizer.size, self.task.processor.mask_id
        if self._causal:
            replacement = mean_embedding(model.embedding, size)
        else:
            replacement = model.embedding(jnp.array([mask]))[0]
        if model.segment_embedding is not None:
            replacement = replacement + model.segment_embedding(jnp.zeros(1, jnp.int32))[0]
        model.encoder = GatedInput(model.encoder, gates, replacement)
        batch = {name: repeated(array, gates) for name, array in inputs.items()}
        hidden = model(batch["tokens"], batch["length"], segments=batch.get("segments"))
        rows = jnp.arange(hidden.shape[0])
        at = batch["length"] - 1 if self._causal else batch["blank"]
        logits = model.logits(hidden[rows, at])
        ids = jnp.arange(logits.shape[-1])
        logits = jnp.where((ids < len(SPECIAL)) | (ids >= mask), -jnp.inf, logits)
        return log_odds(logits, target["token"])

    def attention_path(self, subject: Subject) -> AttentionPath | None:
        """Returns the attention weights of all layers, and the position of the prediction."""
        if "encoder" not in subject.attention:
            return None
        length = int(subject.inputs["length"][0])
        at = length - 1 if self._causal else int(subject.inputs["blank"][0])
        layers = subject.attention["encoder"][:, :, :length, :length]
        return AttentionPath(np.eye(length)[at], layers)

    def describe(self, subject: Subject) -> Description:
        """Returns the tokens and the attention weights of all layers."""
        tokenizer, length = self.task.processor.tokenizer, int(subject.inputs["length"][0])
        tokens = [token_text(tokenizer, token) for token in subject.inputs["tokens"][0][:length]]
        maps = []
        if "encoder" in subject.attention:
            weights = subject.attention["encoder"][:, :, :length, :length]
            maps.append(AttentionMap("encoder", weights, "tokens", "tokens"))
        (found,) = self.target(subject.outputs)["token"]
        word = token_text(tokenizer, int(found))
        confidence = None
        if not self._causal:
            confidence = float(subject.outputs["probabilities"][0, 0])
        target = None
        if subject.index is not None:
            target = self._asked(subject.split, subject.index)[1]
        return Description(
            input=subject.raw or "",
            prediction=word,
            target=target,
            explained=f"log-odds of {word!r}",
            axis="tokens",
            axes={"tokens": Axis("token", tokens)},
            maps=maps,
            confidence=confidence,
        )
