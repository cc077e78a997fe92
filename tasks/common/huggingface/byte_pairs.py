"""Tokenizer files of RoBERTa folders: tokenizer.json, or vocab.json and merges.txt.

The files are read as the byte-level byte-pair encoding of GPT-2 (Radford et al. 2019) without
normalization. An option that asks for another tokenization is an error, and so is a contradiction
between files. Special tokens in a text, such as "</s>", are treated as plain text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.common.data.cells import to_json
from tasks.common.errors import UserError
from tasks.common.huggingface.pipelines import BytePairs
from tasks.common.huggingface.tokenizers import (
    MERGES,
    TOKENIZER,
    Rules,
    checked_model,
    checked_options,
    contradiction,
    difference,
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

# Supported values of the options of a model; the first one is the default. Both values of unk_token
# are equivalent: every byte has a piece, so no text has unknown pieces.
_EXPECTED: dict[str, tuple[Any, ...]] = {
    "type": ("BPE",),
    "dropout": (None, 0.0),
    "unk_token": (None, "<unk>"),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (False, True),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}
_HEADER = "#version"


def read_byte_pairs(folder: Path) -> tuple[list[str], BytePairs, list[str]]:
    """Reads the tokenizer of a RoBERTa folder.

    It is in tokenizer.json, or in vocab.json and merges.txt. If all three exist, they must agree.

    Returns:
      The pieces in the order of their ids, the encoding, and notes on options without effect.

    Raises:
      UserError: a file is missing or damaged, contradicts another file, or has an unsupported
        option; the message names the file and the option.
    """
    own = rules("roberta")
    given = checked_options(folder, own)
    path, files = folder / TOKENIZER, (own.vocabulary, MERGES)
    present = [name for name in files if is_file(folder / name)]
    notes: list[str] = []
    if is_file(path):
        values = read_json(path)
        vocabulary, merges, prefix = _whole_tokenizer(path, values, own)
        notes = [*notes_on(folder, values), *mask_notes(path, values, own)]
        if given.get("add_prefix_space", prefix) != prefix:
            raise contradiction(folder, ("add_prefix_space",) * 2, not prefix, prefix)
        _expect_equal(path, vocabulary, merges, folder, own)
    elif len(present) == len(files):
        vocabulary = _vocabulary(folder, own)
        merges, prefix = _merges(folder / MERGES), given.get("add_prefix_space", False)
    elif present:
        (missing,) = {*files} - {*present}
        raise UserError(
            f"{folder}: has {present[0]} but no {missing}; provide {missing} of the same model, or "
            f"{TOKENIZER}"
        )
    else:
        raise UserError(
            f"{folder}: has neither {TOKENIZER} nor {' and '.join(files)}; provide the files of "
            f"the tokenizer"
        )
    expect_special_ids(folder, vocabulary)
    _expect_complete(folder, vocabulary, merges)
    return vocabulary, BytePairs(tuple(merges), prefix), notes


def _whole_tokenizer(
    path: Path, values: Mapping[str, Any], own: Rules
) -> tuple[list[str], list[str], bool]:
    """Checks the content of tokenizer.json.

    Returns:
      The pieces in the order of their ids, the merges, and the value of add_prefix_space.
    """
    files = (own.vocabulary, MERGES)
    model = checked_model(path, values, _EXPECTED, files, others=("merges",))
    if values.get("normalizer") is not None:
        raise unsupported(path, "normalizer", _type(values["normalizer"]), None)
    cutter = values.get("pre_tokenizer")
    if _type(cutter) != "ByteLevel":
        raise unsupported(path, "pre_tokenizer", _type(cutter), "ByteLevel")
    if cutter.get("use_regex", True) is not True:
        raise unsupported(path, "pre_tokenizer.use_regex", cutter["use_regex"], True)
    prefix = cutter.get("add_prefix_space", True)
    if not isinstance(prefix, bool):
        raise unsupported(path, "pre_tokenizer.add_prefix_space", prefix, False)
    expect_ends(path, values, own)
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise UserError(f"{path}: model.merges is {to_json(merges)}, expected a list")
    merges = [
        " ".join(map(str, merge)) if isinstance(merge, list) else str(merge) for merge in merges
    ]
    return ids_of(path, model["vocab"], values.get("added_tokens"), own), merges, prefix


def _type(part: Any) -> Any:
    return part.get("type") if isinstance(part, dict) else part


def _vocabulary(folder: Path, own: Rules) -> list[str]:
    """Returns the pieces of vocab.json and added_tokens.json in the order of their ids."""
    added = read_json(folder / "added_tokens.json", optional=True)
    tokens = [{"content": content, "id": number} for content, number in added.items()]
    path = folder / own.vocabulary
    return ids_of(path, read_json(path), tokens, own, name="the vocabulary")


def _merges(path: Path) -> list[str]:
    """Returns the lines of merges.txt without its header."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    # `splitlines` would also split at characters that pieces may contain.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return [line for line in lines if line and not line.startswith(_HEADER)]


def _expect_equal(
    path: Path, vocabulary: Sequence[str], merges: Sequence[str], folder: Path, own: Rules
) -> None:
    """Raises a UserError if vocab.json or merges.txt exists and differs from tokenizer.json."""
    if is_file(folder / own.vocabulary):
        other = _vocabulary(folder, own)
        # The special tokens, at the end, may be missing in vocab.json.
        if other != vocabulary[: len(other)] or not {*vocabulary[len(other) :]} <= {*own.special}:
            raise UserError(
                f"{path}: {difference(vocabulary, other)} in {own.vocabulary}; use files of the "
                f"same model"
            )
    if is_file(folder / MERGES) and list(merges) != _merges(folder / MERGES):
        raise UserError(f"{path}: model.merges differs from {MERGES}; use files of the same model")


def _expect_complete(folder: Path, vocabulary: Sequence[str], merges: Sequence[str]) -> None:
    """Raises a UserError if the vocabulary is incomplete.

    Every byte must be a piece, and so must both parts and the result of every merge.
    """
    from tokenizers import pre_tokenizers

    pieces = {*vocabulary}
    missing = sorted({*pre_tokenizers.ByteLevel.alphabet()} - pieces)
    if missing:
        raise UserError(
            f"{folder}: its vocabulary has no {missing[0]!r}, expected the 256 characters of "
            f"byte-level encoding; provide the complete vocabulary"
        )
    for number, merge in enumerate(merges):
        pair = merge.split(" ")
        absent = [piece for piece in (*pair, "".join(pair)) if piece not in pieces]
        if len(pair) != 2 or absent:
            expected = f"{absent[0]!r} in the vocabulary" if len(pair) == 2 else "two pieces"
            raise UserError(
                f"{folder}: merge {number} is {merge!r}, expected {expected}; use files of the "
                f"same model"
            )
