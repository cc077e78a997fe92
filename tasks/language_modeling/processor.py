"""What a language model is asked and answers: completions of prompts, words for blanks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.common.errors import UserError
from tasks.common.text.tokenizer import CLS, SPECIAL, Tokenizer
from tasks.language_modeling import examples as sequences
from tasks.language_modeling.examples import MASK


def spelled(tokenizer: Tokenizer, number: int) -> str:
    """A token for people: line ends and the like are escaped, the task's signs in brackets."""
    signs = {
        CLS: SPECIAL[CLS],
        sequences.mask_id(tokenizer): MASK,
        sequences.end_id(tokenizer): "[END]",
    }
    if int(number) in signs:
        return signs[int(number)]
    word = tokenizer.decode([number])
    return word if word.isprintable() and word else repr(word)[1:-1] or " "


def completed(tokenizer: Tokenizer, prompt: str, tokens: np.ndarray) -> dict[str, Any]:
    """A prompt and what was written after it.

    Args:
      tokenizer: tokenizer.
      prompt: as typed.
      tokens: int [t], read up to an end token.
    """
    end = sequences.end_id(tokenizer)
    ids = tokens[: int(np.argmax(tokens == end))] if end in tokens else tokens
    # Read together, for the first may go on with the prompt's last word.
    (before,) = sequences.encode(tokenizer, [prompt])
    known = tokenizer.decode(before)
    whole = tokenizer.decode(np.concatenate([before, ids]))
    after = whole[len(known) :] if whole.startswith(known) else tokenizer.decode(ids)
    return {"input": prompt, "completion": after, "text": prompt + after}


def blanks(tokenizer: Tokenizer, texts: Sequence[str], width: int) -> sequences.Rows:
    """An example for each [MASK] of each text; see `examples.blanks`.

    Raises:
      UserError: a text without any.
    """
    parts = []
    for text in texts:
        if MASK not in text:
            shown = repr(text if len(text) <= 60 else text[:57] + "...")
            raise UserError(f"input {shown}: has no {MASK}; write it where a word is missing")
        between = text.split(MASK)
        if tokenizer.config.tokenizer != "character":
            # The space before a word belongs to the word that is missing.
            between = [*(part.rstrip() for part in between[:-1]), between[-1]]
        parts.append(sequences.encode(tokenizer, between))
    mask, end = sequences.mask_id(tokenizer), sequences.end_id(tokenizer)
    return sequences.Rows(sequences.blanks(parts, mask, end, width))


def filled(
    tokenizer: Tokenizer, texts: Sequence[str], tokens: np.ndarray, probabilities: np.ndarray
) -> list[dict[str, Any]]:
    """Words for the blanks of each text, and the text with the likeliest in their places.

    Args:
      tokenizer: tokenizer.
      texts: with [MASK] in them.
      tokens, probabilities: [blanks, k] of all texts' blanks in order, the likeliest first.
    """
    answers, row = [], 0
    for text in texts:
        ranked, full = [], text
        for _ in range(text.count(MASK)):
            words = [spelled(tokenizer, token) for token in tokens[row]]
            shares = [round(float(share), 4) for share in probabilities[row]]
            pairs = zip(words, shares, strict=True)
            ranked.append([{"word": word, "probability": share} for word, share in pairs])
            full = full.replace(MASK, words[0], 1)
            row += 1
        lines = [
            "  ".join(f"{w['word']} {w['probability']:.4f}" for w in words) for words in ranked
        ]
        answers.append({"input": text, "blanks": ranked, "filled": full, "text": " | ".join(lines)})
    return answers
