"""Tokenizer files of BERT folders: vocab.txt, tokenizer.json, tokenizer_config.json,
special_tokens_map.json and added_tokens.json.

The files are read as WordPiece with BERT's normalizer; `huggingface.byte_pairs` reads the files of
RoBERTa. An option that asks for another tokenization is an error, and so is a contradiction between
files. Special tokens in a text, such as "[SEP]", are treated as plain text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.common.data.cells import to_json
from tasks.common.errors import UserError
from tasks.common.huggingface.pipelines import Normalization, special_tokens

PREFIX = "##"

# Files of a tokenizer: the vocabulary of BERT, the tokenizer of any model, the merges of RoBERTa.
VOCABULARY, TOKENIZER, MERGES = "vocab.txt", "tokenizer.json", "merges.txt"
CLASSES = ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast")
_MORE_TOKENS = ("bos_token", "eos_token", "additional_special_tokens", "extra_special_tokens")
# Names of each field of `Normalization` in tokenizer_config.json. The last one is also its name in
# tokenizer.json.
_NAMES = {
    "lower_case": ("do_lower_case", "lowercase"),
    "strip_accents": ("strip_accents",),
    "chinese_characters": ("tokenize_chinese_chars", "handle_chinese_chars"),
    "clean_text": ("clean_text",),
}
# Tokenizer classes of older and newer versions of transformers for a tokenizer that is defined by
# tokenizer.json alone.
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Options of tokenizer_config.json that affect tokenization, and their supported values.
_EXPECTED: dict[str, tuple[Any, ...]] = {
    "truncation_side": ("right",),
    "split_special_tokens": (False,),
    "auto_map": (None,),
}
_EXPECTED_OF_WORDPIECE: dict[str, tuple[Any, ...]] = {
    "do_basic_tokenize": (True,),
    "never_split": (None, []),
    "wordpieces_prefix": (PREFIX,),
    "continuing_subword_prefix": (PREFIX,),
    "max_input_chars_per_word": (100,),
}
# Options that do not affect tokenization: lengths, file names, formats of the result.
_WITHOUT_EFFECT = """
model_max_length max_len max_length min_length padding padding_side pad_to_multiple_of
pad_token_type_id stride truncation truncation_strategy model_input_names name_or_path
special_tokens_map_file tokenizer_file vocab_file init_inputs clean_up_tokenization_spaces
return_tensors processor_class backend is_local local_files_only model_specific_special_tokens
chat_template unk_id
"""


@dataclass(frozen=True)
class Rules:
    """Supported content of the tokenizer files of a kind of model.

    Attributes:
      special: special tokens, see `tasks.common.huggingface.pipelines.special_tokens`.
      classes: supported values of tokenizer_class; the first one is written to new files.
      vocabulary: name of the vocabulary file, which may accompany or replace tokenizer.json.
      names: for each field of the tokenizer's class in `tasks.common.huggingface.pipelines`, its
        names in tokenizer_config.json; the last one is also its name in tokenizer.json.
      expected: supported values of other options that affect tokenization.
    """

    special: tuple[str, ...]
    classes: tuple[str, ...]
    vocabulary: str
    names: Mapping[str, tuple[str, ...]]
    expected: Mapping[str, tuple[Any, ...]]

    @property
    def roles(self) -> dict[str, str]:
        """The special tokens by role: "pad", "unk", "cls", "mask" and "sep"."""
        return dict(zip(("pad", "unk", "cls", "mask", "sep"), self.special, strict=True))


def rules(kind: str) -> Rules:
    """Returns the rules of a kind of model."""
    if kind == "xlm-roberta":
        classes = ("XLMRobertaTokenizer", "XLMRobertaTokenizerFast")
        # tokenizer.json is required and defines the tokenizer. Options in other files are accepted
        # with these values only.
        expected = {"add_prefix_space": (True,), "sp_model_kwargs": (None, {})}
        return Rules(special_tokens(kind), classes, TOKENIZER, {}, expected)
    if kind == "roberta":
        return Rules(
            special_tokens(kind),
            ("RobertaTokenizer", "RobertaTokenizerFast"),
            "vocab.json",
            {"add_prefix_space": ("add_prefix_space",)},
            # Options without effect on ids.
            {"errors": ("strict", "ignore", "replace"), "trim_offsets": (True, False)},
        )
    classes = CLASSES if kind == "bert" else (*CLASSES[2:], *CLASSES[:2])
    return Rules(special_tokens(kind), classes, VOCABULARY, _NAMES, _EXPECTED_OF_WORDPIECE)


_BERT = rules("bert")


def read_tokenizer(folder: Path) -> tuple[list[str], Normalization, list[str]]:
    """Reads the tokenizer of a BERT folder.

    It is in vocab.txt and tokenizer_config.json, or in tokenizer.json. If all of these exist, they
    must agree.

    Returns:
      The pieces in the order of their ids, the normalization, and notes on options without effect.

    Raises:
      UserError: a file is missing or damaged, contradicts another file, or has an unsupported
        option; the message names the file and the option.
    """
    given = checked_options(folder, _BERT)
    text, values = folder / VOCABULARY, read_json(folder / TOKENIZER, optional=True)
    if not is_file(text) and not is_file(folder / TOKENIZER):
        raise UserError(f"{folder}: has neither {VOCABULARY} nor {TOKENIZER}")
    pieces = _pieces(text) if is_file(text) else None
    if not is_file(folder / TOKENIZER):
        vocabulary, found = pieces, {}
    else:
        vocabulary, found = _whole_tokenizer(folder / TOKENIZER, values)
        if pieces is not None and vocabulary != pieces:
            raise UserError(
                f"{folder / TOKENIZER}: {difference(vocabulary, pieces)} in {VOCABULARY}; use "
                f"files of the same model"
            )
    expect_special_ids(folder, vocabulary)
    both = Normalization(**{**given, **found})
    for name, value in given.items():
        if found and Normalization(**{**found, name: value}) != both:
            raise contradiction(folder, _NAMES[name], value, found.get(name))
    return vocabulary, both, notes_on(folder, values)


def contradiction(folder: Path, names: Sequence[str], value: Any, found: Any) -> UserError:
    """Returns the error for an option that has different values in two files.

    Args:
      folder: folder of the files.
      names: names of the option in tokenizer_config.json (the first one) and in tokenizer.json (the
        last one).
      value: value in tokenizer_config.json.
      found: value in tokenizer.json.
    """
    return UserError(
        f"{folder / 'tokenizer_config.json'}: {names[0]} is {json.dumps(value)}, but "
        f"{names[-1]} is {json.dumps(found)} in {TOKENIZER}; make the two agree"
    )


def notes_on(folder: Path, values: Mapping[str, Any]) -> list[str]:
    """Returns notes on the parts of tokenizer.json that have no effect.

    Args:
      folder: folder of the file.
      values: content of tokenizer.json.
    """
    cut = [name for name in ("truncation", "padding") if values.get(name) is not None]
    if not cut:
        return []
    return [f"{folder / TOKENIZER}: config.data.length replaces {' and '.join(cut)}"]


def mask_notes(path: Path, values: Mapping[str, Any], rules: Rules) -> list[str]:
    """Returns a note if the mask token of tokenizer.json does not include the space before it.

    Args:
      path: tokenizer.json.
      values: its content.
      rules: rules of the kind of model.

    Returns:
      A list with the note, or an empty list.
    """
    mask, tokens = rules.roles["mask"], values.get("added_tokens") or []
    if False not in [token.get("lstrip") for token in tokens if token["content"] == mask]:
        return []
    return [
        f"{path}: lstrip of {mask} is false, but this project ignores spaces before a mask token"
    ]


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
      path: path of the file.
      optional: whether the file may be missing; the object is then empty.

    Raises:
      UserError: the file cannot be read, or is not a JSON object.
    """
    try:
        if optional and not is_file(path):
            return {}
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a JSON file ({_not_utf8(error)})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    return values


def is_file(path: Path) -> bool:
    """Returns True if a file exists.

    Raises:
      UserError: the folder cannot be accessed.
    """
    try:
        return path.is_file()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _pieces(path: Path) -> list[str]:
    """Returns the lines of vocab.txt, which are the pieces in the order of their ids."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {_not_utf8(error)}; save it as UTF-8") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines:
        raise UserError(f"{path}: the file is empty")
    first: dict[str, int] = {}
    for number, piece in enumerate(lines, 1):
        if not piece:
            raise UserError(f"{path}: line {number} is empty, expected a piece")
        if piece in first:
            raise UserError(
                f"{path}: line {number} repeats {piece!r} of line {first[piece]}, expected one "
                f"id per piece"
            )
        first[piece] = number
    return lines


def _not_utf8(error: UnicodeDecodeError) -> str:
    line = error.object.count(b"\n", 0, error.start) + 1
    return f"line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x})"


def checked_options(folder: Path, rules: Rules) -> dict[str, Any]:
    """Returns the fields of `Rules.names` that tokenizer_config.json sets; checks other options.

    The special tokens and added tokens in special_tokens_map.json and added_tokens.json are checked
    too.

    Args:
      folder: folder of the files.
      rules: rules of the kind of model.

    Raises:
      UserError: a file is damaged, or has an unsupported option.
    """
    path = folder / "tokenizer_config.json"
    given = _checked_options(path, read_json(path, optional=True), rules)
    name = read_json(path, optional=True).get("tokenizer_class")
    if name in _GENERIC and not is_file(folder / TOKENIZER):
        raise UserError(f"{path}: tokenizer_class is {json.dumps(name)}, which needs {TOKENIZER}")
    path = folder / "special_tokens_map.json"
    _checked_options(path, read_json(path, optional=True), rules)
    path = folder / "added_tokens.json"
    _expect_only_special(path, read_json(path, optional=True), rules)
    return given


def _checked_options(path: Path, options: Mapping[str, Any], rules: Rules) -> dict[str, Any]:
    """Returns the fields of `Rules.names` that a file of options sets; checks its other options."""
    given: dict[str, Any] = {}
    known = {name: field for field, names in rules.names.items() for name in names}
    classes = (None, *_GENERIC, *reversed(rules.classes))
    expected = {**_EXPECTED, "tokenizer_class": classes, **rules.expected}
    for name, value in options.items():
        if name in known:
            field, may_be_null = known[name], name == "strip_accents"
            if not (isinstance(value, bool) or (value is None and may_be_null)):
                raise UserError(f"{path}: {name} is {json.dumps(value)}, expected true or false")
            if given.setdefault(field, value) != value:
                names = " and ".join(rules.names[field])
                raise UserError(f"{path}: {names} contradict each other")
        elif name.removesuffix("_token") in rules.roles and name.endswith("_token"):
            _expect_special(path, name, value, rules)
        elif name in _MORE_TOKENS:
            _expect_only_special(path, dict.fromkeys(_spellings(value)), rules)
        elif name == "added_tokens_decoder":
            _expect_only_special(path, dict(_decoded(path, value)), rules)
        elif name in expected:
            if not any(value == it and type(value) is type(it) for it in expected[name]):
                raise unsupported(path, name, value, expected[name][-1])
        elif name not in _WITHOUT_EFFECT.split():
            raise UserError(
                f"{path}: {name} is {to_json(value)}, an unknown option; remove it if it does not "
                "affect tokenization"
            )
    return given


def unsupported(path: Path, name: str, value: Any, expected: Any) -> UserError:
    """Returns the error for an option with an unsupported value."""
    return UserError(
        f"{path}: {name} is {to_json(value)}, expected {json.dumps(expected)}; other values are "
        "not supported"
    )


def _expect_special(path: Path, name: str, value: Any, rules: Rules) -> None:
    """Checks the special token that an option names.

    The value of the option is a string, or an object with the string as its "content".
    """
    content = value.get("content") if isinstance(value, Mapping) else value
    expected = rules.roles[name.removesuffix("_token")]
    if content not in (None, expected):
        raise unsupported(path, name, content, expected)


def _spellings(value: Any) -> Iterator[str]:
    """Yields the text of each token in the value of an option: a token, a list or an object."""
    if isinstance(value, Mapping) and not isinstance(value.get("content"), str):
        value = list(value.values())
    for token in value if isinstance(value, list) else [] if value is None else [value]:
        content = token.get("content") if isinstance(token, Mapping) else token
        yield content if isinstance(content, str) else to_json(content)


def _decoded(path: Path, value: Any) -> Iterator[tuple[str, int]]:
    """Yields each token of the option added_tokens_decoder, with its id."""
    if not isinstance(value, Mapping):
        raise UserError(f"{path}: added_tokens_decoder is {to_json(value)}, expected an object")
    for number, token in value.items():
        content = token.get("content") if isinstance(token, Mapping) else token
        if not (isinstance(content, str) and number.isdecimal()):
            raise UserError(f"{path}: added_tokens_decoder has no token at {to_json(number)}")
        yield content, int(number)


def _expect_only_special(path: Path, ids: Mapping[str, Any], rules: Rules) -> None:
    """Raises a UserError if an added token is not one of the special tokens.

    Other added tokens are not supported: the library would search texts for them before it applies
    the model.
    """
    for content in ids:
        if content not in rules.special:
            raise UserError(
                f"{path}: has {content!r} as an added token, expected only "
                f"{', '.join(rules.special)}; add it to {rules.vocabulary} and remove it from "
                f"this file"
            )


def expect_special_ids(folder: Path, vocabulary: Sequence[str]) -> None:
    """Checks that added tokens have the same ids as in the vocabulary.

    Raises:
      UserError: the files of the folder disagree.
    """
    path = folder / "tokenizer_config.json"
    options = read_json(path, optional=True)
    listed = {
        path: dict(_decoded(path, options.get("added_tokens_decoder", {}))),
        folder / "added_tokens.json": read_json(folder / "added_tokens.json", optional=True),
    }
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    for file, tokens in listed.items():
        for content, number in tokens.items():
            if content in ids and ids[content] != number:
                raise UserError(
                    f"{file}: gives {content} the id {to_json(number)}, but its id in the "
                    f"vocabulary is {ids[content]}; use files of the same model"
                )


def _whole_tokenizer(path: Path, values: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Checks the content of tokenizer.json.

    Returns:
      The pieces in the order of their ids, and the fields of `Normalization`.
    """
    expected = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": PREFIX}
    model = checked_model(
        path, values, {name: (value,) for name, value in expected.items()}, (VOCABULARY,),
        others=("max_input_chars_per_word",),
    )  # fmt: skip
    longest = model.get("max_input_chars_per_word", 100)
    if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
        raise UserError(
            f"{path}: model.max_input_chars_per_word is {to_json(longest)}, expected a whole "
            "number of at least 1"
        )
    fields = _normalizer(path, values)
    _expect_parts(path, values)
    return ids_of(path, model["vocab"], values.get("added_tokens"), _BERT), fields | {
        "longest_word": longest
    }


def checked_model(
    path: Path,
    values: Mapping[str, Any],
    expected: Mapping[str, tuple[Any, ...]],
    files: Sequence[str] = (),
    others: Sequence[str] = (),
    vocabulary: type = dict,
) -> dict[str, Any]:
    """Checks the options of the model in tokenizer.json, and the names of the other parts.

    Args:
      path: tokenizer.json.
      values: its content.
      expected: supported values of each option of the model; the first one is the default.
      files: files that the user may provide instead, for a message.
      others: names of further options of the model, whose values are not checked.
      vocabulary: type of model.vocab, dict or list.

    Returns:
      The part "model".

    Raises:
      UserError: the model is missing, or has an unsupported option; or a part is unknown.
    """
    model = values.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), vocabulary):
        part = "model.vocab" if isinstance(model, dict) else "model"
        found = model.get("vocab") if isinstance(model, dict) else model
        wanted = "a list" if isinstance(model, dict) and vocabulary is list else "an object"
        instead = f", or {' and '.join(files)} instead" if files else ""
        raise UserError(
            f"{path}: {part} is {to_json(found)}, expected {wanted}; provide a complete file"
            f"{instead}"
        )
    for name, supported in expected.items():
        value = model.get(name, supported[0])
        if not any(value == it and type(value) is type(it) for it in supported):
            raise unsupported(path, f"model.{name}", value, supported[0])
    unknown = sorted({*model} - {*expected, *others, "vocab"})
    if unknown:
        raise UserError(f"{path}: model.{unknown[0]} is an unknown option; remove it")
    known = {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer"}
    unknown = sorted({*values} - known - {"post_processor", "decoder", "model"})
    if unknown:
        raise UserError(f"{path}: {unknown[0]} is an unknown part; remove it")
    return model


def _normalizer(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `Normalization` that the normalizer in tokenizer.json sets.

    Missing options have the values of BERT.
    """
    normalizer = values.get("normalizer")
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        found = normalizer.get("type") if isinstance(normalizer, dict) else normalizer
        raise unsupported(path, "normalizer", found, "BertNormalizer")
    found = {}
    for field, names in _NAMES.items():
        name = names[-1]
        value = normalizer.get(name, None if field == "strip_accents" else True)
        if not (isinstance(value, bool) or (value is None and field == "strip_accents")):
            raise UserError(
                f"{path}: normalizer.{name} is {to_json(value)}, expected true or false"
            )
        found[field] = value
    others = sorted({*normalizer} - {"type"} - {names[-1] for names in _NAMES.values()})
    if others:
        raise UserError(f"{path}: normalizer.{others[0]} is an unknown option; remove it")
    return found


def _expect_parts(path: Path, values: Mapping[str, Any]) -> None:
    """Raises a UserError if another part of tokenizer.json differs from that of BERT.

    The parts are pre-tokenizer, post-processor, truncation and decoder.
    """
    cutter = values.get("pre_tokenizer")
    # If the file is complete except for this part, the library treats each text as a single word.
    # In a file that the library cannot load, missing parts default to those of BERT.
    if ("pre_tokenizer" in values or _loads(values)) and cutter != {"type": "BertPreTokenizer"}:
        found = cutter.get("type") if isinstance(cutter, dict) else cutter
        raise unsupported(path, "pre_tokenizer", found, "BertPreTokenizer")
    expect_ends(path, values, _BERT)
    decoder = values.get("decoder")
    if decoder is not None and (
        not isinstance(decoder, dict)
        or decoder.get("type") != "WordPiece"
        or decoder.get("prefix", PREFIX) != PREFIX
    ):
        raise unsupported(path, "decoder", decoder, "WordPiece")


def _loads(values: Mapping[str, Any]) -> bool:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(json.dumps(values))
    except Exception:  # the library raises plain Exceptions
        return False
    return True


def expect_ends(path: Path, values: Mapping[str, Any], rules: Rules) -> None:
    """Checks that texts are truncated at their end, and put between the special tokens.

    Args:
      path: tokenizer.json.
      values: its content.
      rules: rules of the kind of model.

    Raises:
      UserError: the post-processor adds other tokens, or truncation is at the beginning.
    """
    after = values.get("post_processor")
    if after is not None:
        _expect_template(path, after, [rules.roles["cls"], "A", rules.roles["sep"]])
    truncation = values.get("truncation")
    if isinstance(truncation, dict) and truncation.get("direction", "Right") != "Right":
        raise unsupported(path, "truncation.direction", truncation["direction"], "Right")


def _expect_template(path: Path, after: Any, expected: Sequence[str]) -> None:
    """Raises a UserError if the post-processor of a text does not produce the expected sequence.

    Args:
      path: tokenizer.json.
      after: the post-processor.
      expected: special tokens, and "A" in the place of the text.
    """
    kind = after.get("type") if isinstance(after, dict) else None
    own = "BertProcessing" if expected[0] == "[CLS]" else "RobertaProcessing"
    if kind == own:
        first, last = ((after.get(name) or [None])[0] for name in ("cls", "sep"))
        names = [first, "A", last]
    elif kind == "TemplateProcessing":
        try:
            names = [
                part["SpecialToken"]["id"] if "SpecialToken" in part else part["Sequence"]["id"]
                for part in after["single"]
            ]
        except (KeyError, TypeError):
            names = None
    else:
        raise unsupported(path, "post_processor", kind, "TemplateProcessing")
    if names != expected:
        raise unsupported(path, "post_processor", names, expected)


def ids_of(
    path: Path, vocabulary: Mapping[str, Any], added: Any, rules: Rules, name: str = "model.vocab"
) -> list[str]:
    """Returns the pieces of a vocabulary in the order of their ids.

    Special tokens that the vocabulary lacks are added.

    Args:
      path: file of the vocabulary.
      vocabulary: id of each piece.
      added: added tokens, as objects with `content` and `id`; may be None.
      rules: rules of the kind of model.
      name: name of the vocabulary in messages.

    Raises:
      UserError: ids are not 0 to V - 1, or added tokens are not supported.
    """
    ids = dict(vocabulary)
    if not isinstance(added, list | None) or not all(
        isinstance(token, dict) and isinstance(token.get("content"), str) for token in added or []
    ):
        raise UserError(f"{path}: added_tokens is {to_json(added)}, expected a list of objects")
    _expect_only_special(path, {token["content"]: None for token in added or []}, rules)
    for token in added or []:
        content, number = token["content"], token.get("id")
        if ids.setdefault(content, number) != number:
            raise UserError(
                f"{path}: the id of {content} is {to_json(number)} in added_tokens, expected "
                f"{to_json(ids[content])} as in {name}"
            )
    for piece, number in ids.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise UserError(
                f"{path}: {name} has {to_json(number)} as the id of {piece!r}, expected a "
                "whole number"
            )
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"{path}: the ids of {name} have gaps, expected 0 to {len(ids) - 1}")
    return sorted(ids, key=ids.__getitem__)


def difference(mine: Sequence[str], theirs: Sequence[str]) -> str:
    """Describes the first difference between two vocabularies, for messages."""
    if len(mine) != len(theirs):
        return f"has {len(mine)} pieces, expected the {len(theirs)} pieces"
    index = next(i for i, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1])
    return f"has {mine[index]!r} as piece {index}, expected {theirs[index]!r} as"
