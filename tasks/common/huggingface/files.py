"""Folders of BERT and DistilBERT in the format of the library transformers.

A folder contains config.json, model.safetensors, and vocab.txt or tokenizer.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.common.errors import UserError
from tasks.common.huggingface.configs import expect_vocabulary, model_fields, model_kind
from tasks.common.huggingface.tokenizers import (
    SPECIAL_TOKENS,
    TOKENIZER,
    VOCABULARY,
    is_file,
    read_json,
    read_tokenizer,
)
from tasks.common.huggingface.weights import (
    FIELDS,
    NAMES,
    LanguageModelFolder,
    Normalization,
    expected_shapes,
    from_tensors,
    our_order,
    to_tensors,
)
from tasks.common.text.tokenizer import SPECIAL, Tokenizer

_ARCHITECTURES = {
    "bert": ("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    "distilbert": ("DistilBertModel", "DistilBertForMaskedLM"),
}
_WORDS = "embeddings.word_embeddings.weight"
# Other file formats of the weights.
_OTHER = (
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
)
# Dtypes whose values are exact in float32.
_TYPES = ("float32", "float16", "bfloat16")


def read_folder(folder: Path) -> LanguageModelFolder:
    """Reads a folder of BERT or DistilBERT in the format of transformers.

    Raises:
      UserError: a file is missing or damaged, or an option or kind of model is not supported.
    """
    path = folder / "config.json"
    config = read_json(path)
    kind = model_kind(path, config)
    model = model_fields(path, kind, config)
    vocabulary, normalization, notes = read_tokenizer(folder)
    try:
        order = our_order(vocabulary)
    except ValueError as error:
        raise UserError(f"{folder}: its vocabulary {error}") from None
    tensors = _tensors(folder, kind)
    rows = tensors[_WORDS].shape[0] if _WORDS in tensors else len(vocabulary)
    path = folder / "model.safetensors"
    if not _fits(rows, len(vocabulary)):
        raise UserError(
            f"{path}: has embeddings of {rows} tokens, expected {len(vocabulary)} as in the "
            f"vocabulary; use "
            f"files of the same model"
        )
    expect_vocabulary(folder / "config.json", config, vocabulary, rows)
    if model["num_layers"] > len(tensors):
        raise UserError(
            f"{path}: has {len(tensors)} tensors, too few for the {model['num_layers']} layers of "
            "config.json; it is incomplete"
        )
    _expect_shapes(path, tensors, expected_shapes(kind, model, rows))
    padding = {
        name: tensors[theirs][len(vocabulary) :]
        for name, theirs in (("embedding", _WORDS), ("bias", f"{NAMES[kind]['head']}.bias"))
        if rows > len(vocabulary) and theirs in tensors
    }
    for theirs in (_WORDS, f"{NAMES[kind]['head']}.bias"):
        if theirs in tensors:
            tensors[theirs] = tensors[theirs][: len(vocabulary)]
    pair = ("pooler.dense.bias", "cls.seq_relationship.bias", "cls.predictions.bias")
    if all(name in tensors for name in pair):
        model["next_sentence"] = True
    try:
        params, left = from_tensors(kind, model, tensors, order)
    except KeyError as error:
        raise UserError(f"{path}: has no tensor {error.args[0]!r}; it is incomplete") from None
    more = [name for name in left if re.search(r"\blayer\.\d", name)]
    if more:
        raise UserError(f"{path}: has {more[0]}, which is not in the model of config.json")
    _expect_whole_head(path, kind, left)
    return LanguageModelFolder(kind, model, params, vocabulary, normalization, left, padding, notes)


def _fits(rows: int, pieces: int) -> bool:
    """Returns True if an embedding table of `rows` rows fits a vocabulary of `pieces` pieces.

    The table may be padded to the next multiple of a power of two from 8 to 512.
    """
    return rows == pieces or (rows % 8 == 0 and 0 < rows - pieces < min(rows & -rows, 512))


def write_folder(folder: Path, saved: LanguageModelFolder) -> None:
    """Writes a folder for `read_folder` and for transformers' `from_pretrained`."""
    kind, model = saved.kind, saved.model
    tensors = to_tensors(kind, model["num_layers"], saved.params, our_order(saved.vocabulary))
    for name, theirs in (("embedding", _WORDS), ("bias", f"{NAMES[kind]['head']}.bias")):
        if name in saved.padding and theirs in tensors:
            tensors[theirs] = np.concatenate([tensors[theirs], saved.padding[name]])
    rows = len(tensors[_WORDS])
    has_head, pairs = "head/bias" in saved.params, bool(model.get("next_sentence"))
    if has_head:
        # In files with a head, the names of the encoder's tensors have a prefix.
        head = ("cls.", "vocab_")
        tensors = {
            name if name.startswith(head) else f"{kind}.{name}": tensor
            for name, tensor in tensors.items()
        }
    config = {
        "architectures": [_ARCHITECTURES[kind][has_head + pairs]],
        **_config(saved, rows),
    }
    tokenizer = {
        "tokenizer_class": "BertTokenizer" if kind == "bert" else "DistilBertTokenizer",
        "do_lower_case": saved.lower_case,
        "strip_accents": saved.strip_accents,
        "tokenize_chinese_chars": saved.normalization.chinese_characters,
        "model_max_length": model["max_length"],
    }
    _write(folder, config, tokenizer, tensors)
    lines = "".join(f"{piece}\n" for piece in saved.vocabulary)
    (folder / VOCABULARY).write_text(lines, encoding="utf-8")
    _write_tokenizer(folder / TOKENIZER, saved)


def write_classifier(
    folder: Path, saved: LanguageModelFolder, labels: Sequence[str], tokenizer: Tokenizer
) -> None:
    """Writes a folder of BertForSequenceClassification.

    tokenizer.json contains the tokenizer of the classifier as it is, between [CLS] and [SEP].

    Args:
      folder: new folder.
      saved: see `tasks.common.huggingface.weights.of_classifier`.
      labels: names of the classes.
      tokenizer: tokenizer of the classifier.
    """
    tensors = to_tensors(
        saved.kind, saved.model["num_layers"], saved.params, our_order(saved.vocabulary)
    )
    tensors = {
        name if name.startswith("classifier.") else f"{saved.kind}.{name}": tensor
        for name, tensor in tensors.items()
    }
    length = tokenizer.config.max_length + 2
    config = {
        "architectures": ["BertForSequenceClassification"],
        **_config(saved, len(saved.vocabulary)),
        "classifier_dropout": saved.model["head_dropout_rate"],
        "problem_type": "single_label_classification",
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    roles = dict(zip(("pad", "unk", "cls", "mask", "sep"), SPECIAL_TOKENS, strict=True))
    options = {
        # Other classes replace the normalizer by that of BERT.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        **{f"{role}_token": token for role, token in roles.items()},
    }
    _write(folder, config, options, tensors)
    _complete(tokenizer.subwords(), {p: i for i, p in enumerate(saved.vocabulary)}).save(
        str(folder / TOKENIZER)
    )


def _config(saved: LanguageModelFolder, rows: int) -> dict[str, Any]:
    """Returns the fields of config.json that all models of a kind have."""
    return {
        "model_type": saved.kind,
        "vocab_size": rows,
        "pad_token_id": list(saved.vocabulary).index(SPECIAL[0]),
        **{theirs: saved.model[ours] for ours, (theirs, _) in FIELDS[saved.kind].items()},
    }


def _write(
    folder: Path,
    config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> None:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    whole = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(path: Path, saved: LanguageModelFolder) -> None:
    """Writes tokenizer.json if tokenizer_config.json cannot express the normalization."""
    from tokenizers import decoders

    normal = saved.normalization
    if (normal.clean_text, normal.longest_word) == (
        Normalization().clean_text,
        Normalization().longest_word,
    ):
        return
    ids = {piece: number for number, piece in enumerate(saved.vocabulary)}
    tokenizer = normal.pipeline(ids)
    tokenizer.decoder = decoders.WordPiece()
    _complete(tokenizer, ids).save(str(path))


def _complete(tokenizer: Any, ids: Mapping[str, int]) -> Any:
    """Adds the special tokens, and [CLS] and [SEP] around texts, to a `tokenizers.Tokenizer`."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _expect_shapes(
    path: Path, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    for name, expected in shapes.items():
        if name in tensors and tensors[name].shape != expected:
            got = list(tensors[name].shape)
            raise UserError(
                f"{path}: {name} has the shape {got}, expected {list(expected)} according to "
                f"config.json"
            )


def _expect_whole_head(path: Path, kind: str, left: Sequence[str]) -> None:
    """Raises if the head for masked tokens is incomplete."""
    names = [theirs for ours, theirs in NAMES[kind].items() if ours.partition("/")[0] == "head"]
    parts = [name for name in left if name.rpartition(".")[0] in names]
    if parts:
        raise UserError(
            f"{path}: has {parts[0]!r}, but not the complete head for masked tokens; restore "
            f"the file"
        )


def _load(path: Path) -> dict[str, np.ndarray]:
    """Loads all tensors of a file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not is_file(path):
        others = [name for name in _OTHER if is_file(path.with_name(name))]
        other = f"; {others[0]} is not supported" if others else ""
        raise UserError(
            f"{path}: no such file{other}; save the model with transformers' save_pretrained"
        )
    try:
        return load_file(path)
    # The other exceptions are caused by dtypes that NumPy lacks.
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _tensors(folder: Path, kind: str) -> dict[str, np.ndarray]:
    """Returns float32 tensors by name, without "bert." or "distilbert." in front.

    The former names gamma and beta are replaced by weight and bias.
    """
    path = folder / "model.safetensors"
    tensors: dict[str, np.ndarray] = {}
    for stored, tensor in _load(path).items():
        name = stored.removeprefix(f"{kind}.")
        name = re.sub(r"\bgamma$", "weight", re.sub(r"\bbeta$", "bias", name))
        if name.endswith("position_ids"):
            continue
        if name in tensors:
            raise UserError(f"{path}: has {name} twice, once as {stored}")
        if str(tensor.dtype) not in _TYPES:
            expected = ", ".join(_TYPES)
            raise UserError(f"{path}: {stored} is {tensor.dtype}, expected one of {expected}")
        tensors[name] = tensor.astype(np.float32)
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"{path}: {stored} has values that are not finite")
    # The output layer is tied to the embedding table. Its bias is stored under two names.
    for name in ("cls.predictions.decoder", "vocab_projector"):
        table = tensors.pop(f"{name}.weight", None)
        if table is not None and not np.array_equal(table, tensors.get(_WORDS)):
            raise UserError(
                f"{path}: {name}.weight differs from the embedding table, expected tied weights"
            )
    bias = tensors.pop("cls.predictions.decoder.bias", None)
    if bias is not None:
        other = tensors.setdefault("cls.predictions.bias", bias)
        if not np.array_equal(other, bias):
            raise UserError(
                f"{path}: cls.predictions.decoder.bias differs from cls.predictions.bias, expected "
                "tied biases"
            )
    return tensors
