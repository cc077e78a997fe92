"""Conversion of config.json to fields of `LanguageModelConfig`, for the supported kinds of models.

A field of config.json that is not supported is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.common.data.cells import to_json
from tasks.common.errors import UserError
from tasks.common.huggingface.pipelines import ROBERTA, special_tokens
from tasks.common.huggingface.tokenizers import rules
from tasks.common.huggingface.weights import (
    EPSILON,
    FIELDS,
    FIXED,
    NAMES,
    first_position,
)

_WHOLE = ("model_size", "num_layers", "num_heads", "feedforward_size", "max_length", "segments")
_RATES = ("dropout_rate", "attention_dropout_rate")
# Supported values of other options. Their types are compared too, because 1 equals True in Python.
_EXPECTED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute",),
    "tie_word_embeddings": (True,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "auto_map": (None,),
    "directionality": (None, "bidi"),
    "sinusoidal_pos_embds": (False,),
}
# Options that do not affect the prediction of masked tokens. They are about names, storage, other
# heads, and text generation.
_WITHOUT_EFFECT = """
architectures model_type vocab_size pad_token_id _name_or_path name_or_path _commit_hash
transformers_version torch_dtype dtype use_bfloat16 use_cache gradient_checkpointing
classifier_dropout seq_classif_dropout qa_dropout id2label label2id num_labels problem_type
finetuning_task task_specific_params language return_dict output_attentions output_hidden_states
output_past torchscript tf_legacy_loss chunk_size_feed_forward bos_token_id eos_token_id
sep_token_id decoder_start_token_id prefix pooler_fc_size pooler_num_attention_heads
pooler_num_fc_layers pooler_size_per_head pooler_type _attn_implementation attn_implementation
_attn_implementation_autoset tie_weights_ max_length min_length do_sample early_stopping
num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
num_return_sequences output_scores return_dict_in_generate forced_bos_token_id
forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
begin_suppress_tokens
"""


def model_kind(path: Path, config: Mapping[str, Any]) -> str:
    """Returns the kind of a model, such as "bert".

    Args:
      path: config.json, for messages.
      config: content of config.json.

    Raises:
      UserError: the model_type is not supported.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in NAMES:
        expected = ", ".join(map(repr, NAMES))
        raise UserError(
            f"{path}: model_type is {kind!r}, expected one of {expected}; name a checkpoint of "
            f"such a model"
        )
    return kind


def model_fields(path: Path, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Converts config.json to fields of `LanguageModelConfig`.

    Args:
      path: config.json, for messages.
      kind: kind of model.
      config: content of config.json.

    Raises:
      UserError: a value is invalid, or an option is not supported; the message names the option.
    """
    model = {**FIXED, "norm_epsilon": EPSILON}
    model |= {ours: config.get(theirs, it) for ours, (theirs, it) in FIELDS[kind].items()}
    activation = FIELDS[kind]["activation"][0]
    expected = {
        **_EXPECTED,
        activation: ("gelu",),
        "tokenizer_class": (None, *rules(kind).classes),
    }
    if "segments" in FIELDS[kind]:
        expected["type_vocab_size"] = (2, 1) if kind in ROBERTA else (2,)
    for name, values in expected.items():
        value = config.get(name, values[0])
        if not any(value == it and type(value) is type(it) for it in values):
            raise UserError(f"{path}: {name} is {value!r}, expected {values[-1]!r}")
    for ours, (theirs, _) in FIELDS[kind].items():
        wanted = _wanted(ours, model[ours])
        if wanted:
            raise UserError(f"{path}: {theirs} is {to_json(model[ours])}, expected {wanted}")
    # The first rows of RoBERTa's position table are unused, up to the row of the padding id.
    first = first_position(kind, _padding(path, config)) if kind in ROBERTA else 0
    if first >= model["max_length"]:
        theirs = FIELDS[kind]["max_length"][0]
        raise UserError(
            f"{path}: {theirs} is {model['max_length']}, expected more than {first}, the number "
            f"of unused rows before the first position"
        )
    model["max_length"] -= first
    size, heads = model["model_size"], model["num_heads"]
    if size % heads:
        theirs = FIELDS[kind]["num_heads"][0]
        raise UserError(f"{path}: {theirs} is {heads}, expected a divisor of {size}")
    known = (
        {theirs for theirs, _ in FIELDS[kind].values()} | {*expected} | {*_WITHOUT_EFFECT.split()}
    )
    for name, value in config.items():
        if name not in known:
            raise UserError(
                f"{path}: {name} is {to_json(value)}, which is not supported for a {kind}; "
                "remove it if the model computes the same without it"
            )
    return model


def _padding(path: Path, config: Mapping[str, Any]) -> int:
    """Returns the padding id of a RoBERTa. The default is 1, as in transformers."""
    pad = config.get("pad_token_id", 1)
    if isinstance(pad, bool) or not isinstance(pad, int) or pad < 0:
        raise UserError(f"{path}: pad_token_id is {to_json(pad)}, expected a whole number")
    return pad


def expect_vocabulary(
    path: Path, kind: str, config: Mapping[str, Any], vocabulary: Sequence[str], rows: int
) -> None:
    """Checks that vocabulary size and padding id in config.json match the other files.

    Args:
      path: config.json, for messages.
      kind: kind of model.
      config: content of config.json.
      vocabulary: pieces in the order of their ids.
      rows: number of rows of the embedding table.

    Raises:
      UserError: the size matches neither the vocabulary nor the embedding table, or the padding id
        is not the id of the padding token.
    """
    size = config.get("vocab_size", rows)
    if isinstance(size, bool) or size not in (rows, len(vocabulary)) or not isinstance(size, int):
        expected = f"{rows}, the number of embeddings in model.safetensors"
        raise UserError(f"{path}: vocab_size is {to_json(size)}, expected {expected}")
    pad = _padding(path, config) if kind in ROBERTA else config.get("pad_token_id")
    token = special_tokens(kind)[0]
    number = list(vocabulary).index(token)
    if pad is not None and (isinstance(pad, bool) or pad != number):
        expected = f"{number}, the id of {token} in the vocabulary"
        raise UserError(f"{path}: pad_token_id is {to_json(pad)}, expected {expected}")


def _wanted(field: str, value: Any) -> str:
    """Checks the value of a field.

    Returns:
      A description of the expected values, for a message, if the value is wrong; otherwise "".
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if field in _WHOLE:
        fits, wanted = number and isinstance(value, int) and value >= 1, "a whole number above 0"
    elif field in _RATES:
        fits, wanted = number and 0 <= value < 1, "a rate in [0, 1)"
    elif field in ("norm_epsilon", "embedding_scale"):
        fits, wanted = number and 0 < value < math.inf, "a number above 0"
    else:
        return ""
    return "" if fits else wanted
