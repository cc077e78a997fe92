"""Folders of BERT and DistilBERT as the library transformers saves them: config.json,
model.safetensors, and vocab.txt or tokenizer.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tasks.common.errors import UserError
from tasks.common.huggingface import (
    EPSILON,
    FIELDS,
    FIXED,
    NAMES,
    LanguageModelFolder,
    from_tensors,
    our_order,
    to_tensors,
)
from tasks.common.text import SPECIAL

_ARCHITECTURES = {
    "bert": ("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    "distilbert": ("DistilBertModel", "DistilBertForMaskedLM"),
}


def read_folder(folder: Path) -> LanguageModelFolder:
    """A folder of BERT or DistilBERT as transformers saves it.

    Raises:
      UserError: a file is missing or damaged, or it is another kind of model.
    """
    config = _json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in NAMES:
        raise UserError(
            f"{folder / 'config.json'}: model_type is {kind!r}, expected one of "
            f"{', '.join(map(repr, NAMES))}"
        )
    model = _model_fields(folder / "config.json", kind, config)
    vocabulary, lower_case, strip_accents = _tokenizer(folder)
    try:
        order = our_order(vocabulary)
    except ValueError as error:
        raise UserError(f"{folder}: its vocabulary {error}") from None
    path = folder / "model.safetensors"
    tensors = _tensors(path, kind)
    rows = tensors.get("embeddings.word_embeddings.weight", np.zeros((0, 0))).shape[0]
    if rows and rows != len(vocabulary):
        raise UserError(
            f"{path}: has embeddings of {rows} tokens, the vocabulary {len(vocabulary)}; bring "
            "the files of one model"
        )
    pair = ("pooler.dense.bias", "cls.seq_relationship.bias", "cls.predictions.bias")
    if all(name in tensors for name in pair):
        model["next_sentence"] = True
    try:
        params, left = from_tensors(kind, model, tensors, order)
    except KeyError as error:
        raise UserError(f"{path}: has no tensor {error.args[0]!r}; it is not whole") from None
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: does not fit config.json ({error})") from None
    more = [name for name in left if re.search(r"\blayer\.\d", name)]
    if more:
        raise UserError(f"{path}: does not fit config.json, which has no place for {more[0]}")
    return LanguageModelFolder(kind, model, params, vocabulary, lower_case, strip_accents, left)


def write_folder(folder: Path, saved: LanguageModelFolder) -> None:
    """Writes what `read_folder` reads, for transformers' `from_pretrained` too."""
    from safetensors.numpy import save_file

    kind, model = saved.kind, saved.model
    tensors = to_tensors(kind, model["num_layers"], saved.params, our_order(saved.vocabulary))
    has_head, pairs = "head/bias" in saved.params, bool(model.get("next_sentence"))
    if has_head:
        # The encoder is then a part of the whole.
        own = ("cls.", "vocab_")
        tensors = {
            name if name.startswith(own) else f"{kind}.{name}": tensor
            for name, tensor in tensors.items()
        }
    fields = {theirs: model[ours] for ours, (theirs, _) in FIELDS[kind].items()}
    config = {
        "architectures": [_ARCHITECTURES[kind][has_head + pairs]],
        "model_type": kind,
        "vocab_size": len(saved.vocabulary),
        "pad_token_id": list(saved.vocabulary).index(SPECIAL[0]),
        **fields,
    }
    tokenizer = {
        "tokenizer_class": "BertTokenizer" if kind == "bert" else "DistilBertTokenizer",
        "do_lower_case": saved.lower_case,
        "strip_accents": saved.strip_accents,
        "model_max_length": model["max_length"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    lines = "".join(f"{piece}\n" for piece in saved.vocabulary)
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    return values


def _model_fields(path: Path, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    model = {**FIXED, "norm_epsilon": EPSILON}
    model |= {ours: config.get(theirs, it) for ours, (theirs, it) in FIELDS[kind].items()}
    # What this model could not honour.
    expected = {
        "hidden_act" if kind == "bert" else "activation": "gelu",
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "is_decoder": False,
    } | ({"type_vocab_size": 2} if kind == "bert" else {})
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise UserError(f"{path}: {name} is {config[name]!r}, expected {value!r}")
    return model


def _tensors(path: Path, kind: str) -> dict[str, np.ndarray]:
    """float32 by name, without the prefix of the encoder, old names brought to the new ones."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise UserError(
            f"{path}: is not there; save the model with transformers' save_pretrained, which "
            "writes it"
        )
    try:
        loaded = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    tensors = {}
    for name, tensor in loaded.items():
        name = name.removeprefix(f"{kind}.")
        name = re.sub(r"\bgamma$", "weight", re.sub(r"\bbeta$", "bias", name))
        if not name.endswith("position_ids"):
            tensors[name] = tensor.astype(np.float32)
    # The output layer is the table of the embeddings; its bias has two names.
    for name in ("cls.predictions.decoder", "vocab_projector"):
        table = tensors.pop(f"{name}.weight", None)
        words = tensors.get("embeddings.word_embeddings.weight")
        if table is not None and not np.array_equal(table, words):
            raise UserError(
                f"{path}: {name}.weight is not the table of the embeddings; tied ones are needed"
            )
    bias = tensors.pop("cls.predictions.decoder.bias", None)
    if bias is not None:
        tensors.setdefault("cls.predictions.bias", bias)
    return tensors


def _tokenizer(folder: Path) -> tuple[list[str], bool, bool]:
    """Pieces by id, whether case is folded, and whether accents are stripped."""
    lower, strip = True, None
    if (folder / "tokenizer_config.json").is_file():
        options = _json(folder / "tokenizer_config.json")
        lower, strip = options.get("do_lower_case", True), options.get("strip_accents")
    path = folder / "vocab.txt"
    if path.is_file():
        pieces = path.read_text(encoding="utf-8").split("\n")
        pieces = [piece.rstrip("\r") for piece in pieces]
        return pieces[:-1] if pieces[-1] == "" else pieces, lower, lower if strip is None else strip
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder}: has neither vocab.txt nor tokenizer.json")
    values = _json(path)
    words, normalizer = values.get("model", {}), values.get("normalizer") or {}
    if words.get("type", "WordPiece") != "WordPiece" or normalizer.get("type") != "BertNormalizer":
        raise UserError(f"{path}: is no WordPiece tokenizer of BERT")
    ids = {token["content"]: token["id"] for token in values.get("added_tokens", [])}
    ids = {**words["vocab"], **ids}
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"{path}: its ids have gaps")
    lower, strip = normalizer.get("lowercase", True), normalizer.get("strip_accents")
    return sorted(ids, key=ids.__getitem__), lower, lower if strip is None else strip
