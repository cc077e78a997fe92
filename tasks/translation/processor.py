"""Processor of translation: converts sentences to token ids, and decoded ids to sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.errors import UserError
from tasks.common.text.tokenizer import PAD, Tokenizer
from tasks.task import ArraySpec, ProcessingSteps, Processor
from tasks.translation.data import PairExamples


@dataclasses.dataclass(frozen=True)
class TranslationProcessor(Processor):
    """Processor that converts sentences to token ids, and decoded ids to sentences.

    Attributes:
      tokenizer: tokenizer fitted on both languages of the training split; it does not truncate.
      buckets: lengths (source, target) to which batches are padded.
    """

    tokenizer: Tokenizer
    buckets: Sequence[Mapping[str, int]]

    @property
    def end(self) -> int:
        """Id of the end token."""
        return self.tokenizer.size + 1

    def signature(self) -> dict[str, ArraySpec]:
        """Returns the specifications of the source and, for sampling, of the example ids."""
        arrays = {"source": ArraySpec(("batch", "length"), "int32", PAD)}
        if self.model.decoding.method == "sample":
            arrays["id"] = ArraySpec(("batch",), "int32")
        return arrays

    def steps(self) -> ProcessingSteps:
        """Returns the processing steps of exports, which tokenize texts and restore them."""
        file, limit = "tokenizer.json", self.data.text.max_length
        return ProcessingSteps(
            "text",
            [
                {"op": "tokenize", "file": file, "to": "source", "limit": limit},
                {"op": "append", "to": "source", "value": self.end},
            ],
            [{"op": "sentences", "file": file}],
            {file: self.tokenizer.to_json()},
            self.tokenizer.libraries,
        )

    def encode(self, raw: Sequence[str]) -> PairExamples:
        """Tokenizes sentences.

        Raises:
          UserError: a sentence has more than `config.data.text.max_length` tokens.
        """
        limit = self.data.text.max_length
        sources = self.tokenizer.encode_batch(raw)
        for text, ids in zip(raw, sources, strict=True):
            if len(ids) > limit:
                shown = repr(text if len(text) <= 60 else text[:57] + "...")
                raise UserError(
                    f"input {shown}: got {len(ids)} tokens, expected at most {limit} "
                    "(config.data.text.max_length); split it into sentences"
                )
        return PairExamples(sources, None, self.end)

    def decode(self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Returns translations with scores.

        A score is the log-probability normalized by length, see `DecodingConfig.length_penalty`. If
        config.model.decoding requests several translations, "n_best" contains all of them. An empty
        input has an empty translation.
        """
        ranked = [self.hypotheses(outputs, rank) for rank in range(outputs["tokens"].shape[1])]
        answers = []
        for index, source in enumerate(raw):
            texts = [texts[index] for texts in ranked]
            scores = [round(float(score), 4) for score in outputs["scores"][index]]
            if not source.strip():
                texts, scores = [""], [0.0]
            answer: dict[str, Any] = {"input": source, "output": texts[0], "score": scores[0]}
            if len(texts) > 1:
                answer["n_best"] = [
                    {"output": text, "score": score}
                    for text, score in zip(texts, scores, strict=True)
                    if np.isfinite(score)
                ]
            lines = [f"{row['score']:.4f}  {row['output']}" for row in answer.get("n_best", ())]
            answers.append({**answer, "text": "\n".join(lines) or texts[0]})
        return answers

    def hypotheses(self, outputs: Mapping[str, np.ndarray], rank: int = 0) -> list[str]:
        """Returns the decoded sentence of a given rank for each example; rank 0 is the best."""
        return [self.tokenizer.decode(tokens) for tokens in outputs["tokens"][:, rank]]

    def piece(self, token: int) -> str:
        """Returns the text of a token for the axes of figures."""
        if token >= self.tokenizer.size:
            return "end"
        return self.tokenizer.decode([token]).strip() or "·"
