"""Folders of BERT, DistilBERT, RoBERTa and XLM-RoBERTa in the format of the library transformers.

A folder contains config.json, model.safetensors, and the files of the tokenizer. These are
tokenizer.json, or vocab.txt for BERT, or vocab.json and merges.txt for RoBERTa.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.common.errors import UserError
from tasks.common.huggingface.byte_pairs import read_byte_pairs
from tasks.common.huggingface.configs import expect_vocabulary, model_fields, model_kind
from tasks.common.huggingface.pipelines import (
    ROBERTA,
    BytePairs,
    Normalization,
    Unigram,
    special_tokens,
)
from tasks.common.huggingface.tokenizers import (
    MERGES,
    TOKENIZER,
    VOCABULARY,
    is_file,
    read_json,
    read_tokenizer,
    rules,
)
from tasks.common.huggingface.unigrams import read_unigrams
from tasks.common.huggingface.weights import (
    FIELDS,
    NAMES,
    PREFIXES,
    LanguageModelFolder,
    expected_shapes,
    first_position,
    from_tensors,
    our_order,
    to_tensors,
)
from tasks.common.text.tokenizer import Tokenizer

_ARCHITECTURES = {
    "bert": ("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    "distilbert": ("DistilBertModel", "DistilBertForMaskedLM"),
    "roberta": ("RobertaModel", "RobertaForMaskedLM"),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaForMaskedLM"),
}
_CLASSIFIERS = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
}
# Beginnings of the names of tensors that belong to heads instead of the encoder.
_HEADS = ("cls.", "vocab_", "lm_head.")
_WORDS = "embeddings.word_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"
# Files with weights in other formats, which are not supported.
_OTHER = (
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
)
# Dtypes that are converted to float32 without rounding.
_TYPES = ("float32", "float16", "bfloat16")


def read_folder(folder: Path) -> LanguageModelFolder:
    """Reads a folder of a supported model in the format of transformers.

    Raises:
      UserError: a file is missing or damaged, or an option or kind of model is not supported.
    """
    path = folder / "config.json"
    config = read_json(path)
    kind = model_kind(path, config)
    model = model_fields(path, kind, config)
    read = {"roberta": read_byte_pairs, "xlm-roberta": read_unigrams}.get(kind, read_tokenizer)
    vocabulary, normalization, notes = read(folder)
    try:
        order = our_order(vocabulary, special_tokens(kind))
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
    expect_vocabulary(folder / "config.json", kind, config, vocabulary, rows)
    if model["num_layers"] > len(tensors):
        raise UserError(
            f"{path}: has {len(tensors)} tensors, too few for the {model['num_layers']} layers of "
            "config.json; the file is incomplete"
        )
    first = first_position(kind, list(vocabulary).index(special_tokens(kind)[0]))
    _expect_shapes(path, tensors, expected_shapes(kind, model, rows, first))
    padding = {
        name: tensors[theirs][len(vocabulary) :]
        for name, theirs in (("embedding", _WORDS), ("bias", f"{NAMES[kind]['head']}.bias"))
        if rows > len(vocabulary) and theirs in tensors
    }
    for theirs in (_WORDS, f"{NAMES[kind]['head']}.bias"):
        if theirs in tensors:
            tensors[theirs] = tensors[theirs][: len(vocabulary)]
    if first and _POSITIONS in tensors:
        padding["positions"] = tensors[_POSITIONS][:first]
        tensors[_POSITIONS] = tensors[_POSITIONS][first:]
    pair = ("pooler.dense.bias", "cls.seq_relationship.bias", "cls.predictions.bias")
    if all(name in tensors for name in pair):
        model["next_sentence"] = True
    try:
        params, left = from_tensors(kind, model, tensors, order)
    except KeyError as error:
        raise UserError(
            f"{path}: has no tensor {error.args[0]!r}; the file is incomplete"
        ) from None
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
    """Writes a folder that `read_folder`, and `from_pretrained` of transformers, can read.

    Args:
      folder: new folder.
      saved: content of the folder.
    """
    kind, model = saved.kind, saved.model
    tensors = _tensors_of(saved)
    for name, theirs in (("embedding", _WORDS), ("bias", f"{NAMES[kind]['head']}.bias")):
        if name in saved.padding and theirs in tensors:
            tensors[theirs] = np.concatenate([tensors[theirs], saved.padding[name]])
    rows = len(tensors[_WORDS])
    has_head, pairs = "head/bias" in saved.params, bool(model.get("next_sentence"))
    if has_head:
        # In files with a head, the names of the encoder's tensors have a prefix.
        tensors = {
            name if name.startswith(_HEADS) else f"{PREFIXES[kind]}.{name}": tensor
            for name, tensor in tensors.items()
        }
    config = {
        "architectures": [_ARCHITECTURES[kind][has_head + pairs]],
        **_config(saved, rows),
    }
    _write(folder, config, _tokenizer_options(saved), tensors)
    _write_vocabulary(folder, saved)


def _tensors_of(saved: LanguageModelFolder) -> dict[str, np.ndarray]:
    """Returns the tensors of a folder by name, without the prefix of the encoder.

    The table of positions begins with its unused rows.
    """
    tensors = to_tensors(saved.kind, saved.model["num_layers"], saved.params, saved.order)
    if saved.first_position:
        shape = (saved.first_position, saved.model["model_size"])
        unused = saved.padding.get("positions", np.zeros(shape, np.float32))
        tensors[_POSITIONS] = np.concatenate([unused, tensors[_POSITIONS]])
    return tensors


def _tokenizer_options(saved: LanguageModelFolder) -> dict[str, Any]:
    """Returns the content of tokenizer_config.json."""
    options = {
        "tokenizer_class": rules(saved.kind).classes[0],
        "model_max_length": saved.model["max_length"],
    }
    if isinstance(saved.normalization, Unigram):
        # XLMRobertaTokenizer would replace the pre-tokenizer of tokenizer.json.
        return options | {"tokenizer_class": "PreTrainedTokenizerFast", **_roles(saved.kind)}
    if isinstance(saved.normalization, BytePairs):
        return options | {
            "add_prefix_space": saved.normalization.add_prefix_space,
            **_roles(saved.kind),
        }
    return options | {
        "do_lower_case": saved.lower_case,
        "strip_accents": saved.strip_accents,
        "tokenize_chinese_chars": saved.normalization.chinese_characters,
    }


def _roles(kind: str) -> dict[str, Any]:
    """Returns the special tokens under the names that they have in tokenizer_config.json."""
    roles: dict[str, Any] = {f"{role}_token": it for role, it in rules(kind).roles.items()}
    if kind in ROBERTA:
        # The space before a mask token belongs to the mask token.
        roles["mask_token"] = {
            "__type": "AddedToken",
            "content": roles["mask_token"],
            "lstrip": True,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
    return roles


def _write_vocabulary(folder: Path, saved: LanguageModelFolder) -> None:
    """Writes the tokenizer files.

    For BERT, they are vocab.txt and, if necessary, tokenizer.json. For RoBERTa, they are
    vocab.json, merges.txt and tokenizer.json. For XLM-RoBERTa, there is tokenizer.json alone.
    """
    ids = {piece: number for number, piece in enumerate(saved.vocabulary)}
    if isinstance(saved.normalization, Unigram):
        # `_complete` adds the special tokens that are not pieces of the model.
        own = {
            piece: number for piece, number in ids.items() if piece in saved.normalization.scores
        }
        tokenizer = _with_plain_names(saved.normalization.pipeline(own))
        _complete(tokenizer, ids, saved.kind).save(str(folder / TOKENIZER))
        return
    if not isinstance(saved.normalization, BytePairs):
        lines = "".join(f"{piece}\n" for piece in saved.vocabulary)
        (folder / VOCABULARY).write_text(lines, encoding="utf-8")
        _write_tokenizer(folder / TOKENIZER, saved)
        return
    text = json.dumps(ids, ensure_ascii=False)
    (folder / rules(saved.kind).vocabulary).write_text(text, encoding="utf-8")
    lines = "".join(f"{merge}\n" for merge in ("#version: 0.2", *saved.normalization.merges))
    (folder / MERGES).write_text(lines, encoding="utf-8")
    tokenizer = saved.normalization.pipeline(ids)
    _complete(tokenizer, ids, saved.kind).save(str(folder / TOKENIZER))


def _with_plain_names(tokenizer: Any) -> Any:
    """Removes the space at the end of the special pieces of a unigram tokenizer.

    Tokenizers of other kinds are returned unchanged. See `Unigram.pipeline`.
    """
    import tokenizers

    whole = json.loads(tokenizer.to_str())
    model = whole["model"]
    if model["type"] != "Unigram":
        return tokenizer
    model["vocab"] = [[piece.rstrip(" "), score] for piece, score in model["vocab"]]
    return tokenizers.Tokenizer.from_str(json.dumps(whole))


def write_classifier(
    folder: Path, saved: LanguageModelFolder, labels: Sequence[str], tokenizer: Tokenizer
) -> None:
    """Writes a folder of BertForSequenceClassification, or of its equivalent for (XLM-)RoBERTa.

    tokenizer.json contains the tokenizer of the classifier, extended by a step that puts each text
    between [CLS] and [SEP], or between <s> and </s>.

    Args:
      folder: new folder.
      saved: see `tasks.common.huggingface.weights.of_classifier`.
      labels: names of the classes.
      tokenizer: tokenizer of the classifier.
    """
    tensors = {
        name if name.startswith("classifier.") else f"{PREFIXES[saved.kind]}.{name}": tensor
        for name, tensor in _tensors_of(saved).items()
    }
    length = tokenizer.config.max_length + 2
    config = {
        "architectures": [_CLASSIFIERS[saved.kind]],
        **_config(saved, len(saved.vocabulary)),
        "classifier_dropout": saved.model["head_dropout_rate"],
        "problem_type": "single_label_classification",
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    options = {
        # Other tokenizer classes would replace the normalizer by that of BERT.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        **_roles(saved.kind),
    }
    _write(folder, config, options, tensors)
    ids = {piece: number for number, piece in enumerate(saved.vocabulary)}
    subwords = _with_plain_names(tokenizer.subwords())
    _complete(subwords, ids, saved.kind).save(str(folder / TOKENIZER))


def _config(saved: LanguageModelFolder, rows: int) -> dict[str, Any]:
    """Returns the fields of config.json that language models and classifiers have in common."""
    ids = {
        role: list(saved.vocabulary).index(token) for role, token in rules(saved.kind).roles.items()
    }
    ends = {"bos_token_id": ids["cls"], "eos_token_id": ids["sep"]}
    fields = {theirs: saved.model[ours] for ours, (theirs, _) in FIELDS[saved.kind].items()}
    fields[FIELDS[saved.kind]["max_length"][0]] += saved.first_position
    return {
        "model_type": saved.kind,
        "vocab_size": rows,
        "pad_token_id": ids["pad"],
        **(ends if saved.kind in ROBERTA else {}),
        **fields,
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
    """Writes tokenizer.json of a BERT if tokenizer_config.json cannot hold all options.

    The options are those of `saved.normalization`.
    """
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
    _complete(tokenizer, ids, saved.kind).save(str(path))


def _complete(tokenizer: Any, ids: Mapping[str, int], kind: str) -> Any:
    """Adds the special tokens to a `tokenizers.Tokenizer`, which then puts them around texts.

    Args:
      tokenizer: tokenizer without special tokens.
      ids: id of each piece.
      kind: kind of model.
    """
    from tokenizers import AddedToken, processors

    _, _, begin, mask, end = special_tokens(kind)
    # RoBERTa encodes pairs of texts as one segment, with two end tokens between the texts.
    between = f"{end} {end} $B {end}" if kind in ROBERTA else f"{end} $B:1 {end}:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {between}",
        special_tokens=[(token, ids[token]) for token in (begin, end)],
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(token, lstrip=kind in ROBERTA and token == mask, special=True)
            # Sorted by id, because new tokens get the next ids in this order.
            for token in sorted(special_tokens(kind), key=ids.__getitem__)
        ]
    )
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
    """Raises a UserError if unused tensors belong to the head for masked tokens.

    In this case the head is incomplete, and `from_tensors` has left it out.
    """
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
    # The exceptions after OSError are raised for dtypes that NumPy lacks.
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _tensors(folder: Path, kind: str) -> dict[str, np.ndarray]:
    """Reads and checks the tensors of a folder, and converts them to float32.

    Returns:
      The tensors by name, without the prefix of the encoder, such as "bert.". The names gamma and
      beta, which old files use for layer norms, are replaced by weight and bias.
    """
    path = folder / "model.safetensors"
    tensors: dict[str, np.ndarray] = {}
    for stored, tensor in _load(path).items():
        name = stored.removeprefix(f"{PREFIXES[kind]}.")
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
    for name in ("cls.predictions.decoder", "vocab_projector", "lm_head.decoder"):
        table = tensors.pop(f"{name}.weight", None)
        if table is not None and not np.array_equal(table, tensors.get(_WORDS)):
            raise UserError(
                f"{path}: {name}.weight differs from the embedding table, expected tied weights"
            )
    for head in ("cls.predictions", "lm_head"):
        bias = tensors.pop(f"{head}.decoder.bias", None)
        if bias is not None:
            other = tensors.setdefault(f"{head}.bias", bias)
            if not np.array_equal(other, bias):
                raise UserError(
                    f"{path}: {head}.decoder.bias differs from {head}.bias, expected tied biases"
                )
    return tensors
