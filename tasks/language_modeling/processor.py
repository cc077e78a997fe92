"""Processor of language modeling: encodes prompts or texts with [MASK], and decodes outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.errors import UserError
from tasks.common.text.tokenizer import CLS, PAD, SPECIAL, Tokenizer, replace_surrogates
from tasks.language_modeling import examples as sequences
from tasks.language_modeling.examples import MASK, TextRows
from tasks.task import ArraySpec, ProcessingSteps, Processor


@dataclasses.dataclass(frozen=True)
class LanguageProcessor(Processor):
    """Processor that tokenizes prompts for a causal model, or texts with [MASK] for a masked one.

    Attributes:
      tokenizer: tokenizer fitted on the training texts.
      buckets: lengths to which batches are padded; None if all sequences have `data.length` tokens.
      begin: for models of running text, the token that replaces an empty prompt; None for models of
        separate texts, which begin with CLS.
    """

    tokenizer: Tokenizer
    buckets: Sequence[int] | None = None
    begin: int | None = None

    @property
    def mask_id(self) -> int:
        """Id of the token at masked positions."""
        return sequences.mask_id(self.tokenizer)

    @property
    def end_id(self) -> int:
        """Id of the end token."""
        return sequences.end_id(self.tokenizer)

    @property
    def vocabulary(self) -> int:
        """Number of tokens, V."""
        return self.tokenizer.size + sequences.RESERVED

    @property
    def causal(self) -> bool:
        """True for a causal model."""
        return self.model.objective == "causal"

    def signature(self) -> dict[str, ArraySpec]:
        """Returns the specifications of the input arrays.

        A causal model has "id", the id of the example, from which sampling seeds are derived. A
        masked model has "blank", the position of the mask.
        """
        scalar = ArraySpec(("batch",), "int32")
        tokens = ArraySpec(("batch", "length"), "int32", PAD)
        found = {"tokens": tokens, "length": scalar}
        if self.causal:
            return {**found, "id": scalar}
        if self.model.next_sentence:
            found["segments"] = tokens
        return {**found, "blank": scalar}

    def steps(self) -> ProcessingSteps:
        """Returns the processing steps of exports, which tokenize texts and decode outputs."""
        file = "tokenizer.json"
        width, tokens = self.export_sizes()[0]["length"], {"file": file, "end": self.end_id}
        if self.causal:
            begin = CLS if self.begin is None else None
            empty = CLS if self.begin is None else self.begin
            encode = {"op": "prompt", **tokens, "width": width, "begin": begin, "empty": empty}
            decode = {"op": "completion", **tokens}
        else:
            tokens["mask"] = self.mask_id
            segments = self.model.next_sentence
            encode = {"op": "blanks", **tokens, "width": width, "segments": segments}
            decode = {"op": "fill_blanks", **tokens}
        files = {file: self.tokenizer.to_json()}
        return ProcessingSteps("text", [encode], [decode], files, self.tokenizer.libraries)

    def export_sizes(self) -> list[dict[str, int]]:
        """Returns the length to which all prompts, or all texts with [MASK], are padded."""
        return [{"length": self.model.max_length // 2 if self.causal else self.data.length}]

    def encode(self, raw: Sequence[str]) -> TextRows:
        """Tokenizes prompts, or makes one example for each [MASK]."""
        raw = [replace_surrogates(text) for text in raw]
        if not self.causal:
            return TextRows(self._masked_rows(raw))
        return sequences.prompts(
            sequences.encode(self.tokenizer, raw),
            CLS if self.begin is None else None,
            CLS if self.begin is None else self.begin,
            self.model.max_length // 2,
        )

    def _masked_rows(self, raw: Sequence[str]) -> list[dict[str, np.ndarray]]:
        parts = [mask_inputs(self.tokenizer, text) for text in raw]
        rows = sequences.masked_rows(parts, self.mask_id, self.end_id, self.data.length)
        if self.model.next_sentence:
            rows = [{**row, "segments": np.zeros_like(row["tokens"])} for row in rows]
        return rows

    def decode(self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Returns completions of prompts, or the most probable words of each [MASK]."""
        raw = [replace_surrogates(text) for text in raw]
        if not self.causal:
            return fill_mask(self.tokenizer, raw, outputs["words"], outputs["probabilities"])
        return [
            completion(self.tokenizer, text, tokens)
            for text, tokens in zip(raw, outputs["completion"], strict=True)
        ]


def token_text(tokenizer: Tokenizer, number: int) -> str:
    """Returns the text of a token for display, with escaped control characters."""
    reserved = {
        CLS: SPECIAL[CLS],
        sequences.mask_id(tokenizer): MASK,
        sequences.end_id(tokenizer): "[END]",
    }
    if int(number) in reserved:
        return reserved[int(number)]
    word = tokenizer.decode([number])
    return word if word.isprintable() and word else repr(word)[1:-1] or " "


def completion(tokenizer: Tokenizer, prompt: str, tokens: np.ndarray) -> dict[str, Any]:
    """Returns a prompt and its completion.

    Args:
      tokenizer: tokenizer of the run.
      prompt: prompt as typed.
      tokens: generated tokens, int [t]; those after an end token are ignored.
    """
    end = sequences.end_id(tokenizer)
    ids = tokens[: int(np.argmax(tokens == end))] if end in tokens else tokens
    # Prompt and completion are decoded together, since the first token may continue a word.
    (before,) = sequences.encode(tokenizer, [prompt])
    known = tokenizer.decode(before)
    whole = tokenizer.decode(np.concatenate([before, ids]))
    after = whole[len(known) :] if whole.startswith(known) else tokenizer.decode(ids)
    return {"input": prompt, "completion": after, "text": prompt + after}


def mask_inputs(tokenizer: Tokenizer, text: str) -> list[np.ndarray]:
    """Tokenizes the parts of a text before, between and after its masks.

    Raises:
      UserError: the text has no [MASK].
    """
    if MASK not in text:
        shown = repr(text if len(text) <= 60 else text[:57] + "...")
        raise UserError(f"input {shown}: has no {MASK}; write {MASK} in place of a missing word")
    between = text.split(MASK)
    if tokenizer.config.tokenizer != "character":
        # The space before a masked word belongs to the masked word.
        between = [*(part.rstrip() for part in between[:-1]), between[-1]]
    return sequences.encode(tokenizer, between)


def fill_mask(
    tokenizer: Tokenizer, texts: Sequence[str], tokens: np.ndarray, probabilities: np.ndarray
) -> list[dict[str, Any]]:
    """Returns for each text the candidate words of its masks, and the text with the best words.

    Args:
      tokenizer: tokenizer of the run.
      texts: texts that contain [MASK].
      tokens: the k most probable tokens for each mask, [masks, k]. The rows are the masks of all
        texts, in order.
      probabilities: probabilities of these tokens, [masks, k], in descending order.
    """
    answers, row = [], 0
    for text in texts:
        ranked, full = [], text
        for _ in range(text.count(MASK)):
            words = [token_text(tokenizer, token) for token in tokens[row]]
            rounded = [round(float(probability), 4) for probability in probabilities[row]]
            pairs = zip(words, rounded, strict=True)
            ranked.append([{"word": word, "probability": value} for word, value in pairs])
            full = full.replace(MASK, words[0], 1)
            row += 1
        line = blank_line(ranked)
        answers.append({"input": text, "blanks": ranked, "filled": full, "text": line})
    return answers


def blank_line(blanks: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Returns the candidate words of all masks of a text, with probabilities, as one line."""
    return " | ".join(
        "  ".join(f"{w['word']} {w['probability']:.4f}" for w in words) for words in blanks
    )
