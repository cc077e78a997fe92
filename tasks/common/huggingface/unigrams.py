"""Tokenizer files of XLM-RoBERTa folders: tokenizer.json.

The file is read as a unigram model over pieces (Kudo 2018) with the normalizer and pre-tokenizer of
the file. Special tokens in a text, such as "</s>", are treated as plain text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.common.data.cells import to_json
from tasks.common.errors import UserError
from tasks.common.huggingface.pipelines import SPACE, Unigram
from tasks.common.huggingface.tokenizers import (
    TOKENIZER,
    checked_model,
    checked_options,
    expect_ends,
    expect_special_ids,
    ids_of,
    is_file,
    mask_notes,
    notes_on,
    read_json,
    rules,
    unsupported,
)


def read_unigrams(folder: Path) -> tuple[list[str], Unigram, list[str]]:
    """Reads the tokenizer of an XLM-RoBERTa folder.

    Returns:
      The pieces in the order of their ids, the unigram model, and notes on options without effect.

    Raises:
      UserError: a file is missing or damaged, contradicts another file, or has an unsupported
        option; the message names the file and the option.
    """
    own, path = rules("xlm-roberta"), folder / TOKENIZER
    if not is_file(path):
        raise UserError(
            f"{folder}: has no {TOKENIZER}; save the tokenizer with transformers' save_pretrained"
        )
    checked_options(folder, own)
    values = read_json(path)
    expected = {"type": ("Unigram",), "byte_fallback": (False,)}
    model = checked_model(path, values, expected, others=("unk_id",), vocabulary=list)
    scores = _scores(path, model["vocab"])
    ids = {piece: number for number, piece in enumerate(scores)}
    vocabulary = ids_of(path, ids, values.get("added_tokens"), own)
    unknown = own.roles["unk"]
    if model.get("unk_id") != ids.get(unknown):
        raise unsupported(path, "model.unk_id", model.get("unk_id"), ids.get(unknown))
    _expect_spaces(path, values)
    expect_ends(path, values, own)
    expect_special_ids(folder, vocabulary)
    found = Unigram(scores, values.get("normalizer"), values["pre_tokenizer"])
    # The library checks normalizer and pre-tokenizer when it builds the tokenizer.
    try:
        found.pipeline({piece: number for number, piece in enumerate(vocabulary)})
    except Exception as error:  # the library raises plain Exceptions
        raise UserError(f"{path}: cannot be read ({error})") from None
    notes = [*notes_on(folder, values), *mask_notes(path, values, own)]
    return vocabulary, found, notes


def _scores(path: Path, pieces: list[Any]) -> dict[str, float]:
    """Returns the score of each piece, in the order of the ids."""
    scores: dict[str, float] = {}
    for number, pair in enumerate(pieces):
        fits = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
        if not fits or not _finite(pair[1]):
            raise UserError(
                f"{path}: model.vocab has {to_json(pair)} as piece {number}, expected a piece and "
                "its score"
            )
        if pair[0] in scores:
            raise UserError(f"{path}: model.vocab has {pair[0]!r} twice, expected one id per piece")
        scores[pair[0]] = float(pair[1])
    return scores


def _finite(score: Any) -> bool:
    number = isinstance(score, int | float) and not isinstance(score, bool)
    return number and math.isfinite(score)


def _expect_spaces(path: Path, values: Mapping[str, Any]) -> None:
    """Raises a UserError if the pre-tokenizer does not replace spaces by `SPACE`.

    It must also add a space before each text.
    """
    cutter = values.get("pre_tokenizer")
    spaces = [part for part in _parts(cutter) if part.get("type") == "Metaspace"]
    if not spaces:
        kind = cutter.get("type") if isinstance(cutter, dict) else cutter
        raise unsupported(path, "pre_tokenizer", kind, "Metaspace")
    expected = {"replacement": SPACE, "prepend_scheme": "always", "add_prefix_space": True}
    for name, value in expected.items():
        if spaces[0].get(name, value) != value:
            raise unsupported(path, f"pre_tokenizer.{name}", spaces[0][name], value)


def _parts(cutter: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the parts of a sequence of pre-tokenizers, or a pre-tokenizer that has no parts."""
    if isinstance(cutter, dict):
        nested = cutter.get("pretokenizers")
        parts = nested if isinstance(nested, list) else [cutter]
        yield from (part for part in parts if isinstance(part, dict))
