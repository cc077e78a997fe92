"""Initial parameters of a classifier from a language model: embeddings, encoder and tokenizer.

Devlin et al. 2019, "BERT"; for pre-training on the texts of the task itself see Amos et al. 2023,
"Never Train from Scratch".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from flax import nnx

from tasks.common.backbones.stacking import with_layout
from tasks.common.backbones.transformer import EncoderConfig
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import TextConfig, Tokenizer
from tasks.task import Pretrained

# Config keys that may differ, because the values of parameters do not depend on them.
_FREE = (
    "dropout_rate",
    "attention_dropout_rate",
    "dtype",
    "max_length",
    "rematerialize",
    "scan_layers",
)


@dataclass(frozen=True)
class InitialWeights:
    """Initial parameters of a classifier.

    Attributes:
      table: token embeddings, [vocabulary, D].
      encoder: parameters of the encoder, nested dicts; layers are separate or stacked.
    """

    table: np.ndarray
    encoder: Mapping[str, Any]

    def assign_to(self, tokens: nnx.Module, encoder: nnx.Module) -> None:
        """Assigns the embedding table and the parameters of the encoder."""
        _put(tokens, {"embedding": self.table}, "tokens")
        like = nnx.to_pure_dict(nnx.state(encoder, nnx.Param))
        _put(encoder, with_layout(self.encoder, like), "encoder")


def initial_weights_from(
    pretrained: Pretrained, text: TextConfig, model: Any
) -> tuple[InitialWeights, Tokenizer]:
    """Returns the parameters that a classifier shares with a language model, and its tokenizer.

    Args:
      pretrained: run of language_modeling.
      text: tokenizer config of the classifier, which must equal that of the run except for
        max_length.
      model: config of the classifier, with `init_from`.

    Returns:
      The parameters, and the tokenizer of the run with the max_length of the classifier.

    Raises:
      UserError: the run has another task, or its tokenizer or sizes differ; the message lists all
        differences.
    """
    where = f"config.model.init_from={pretrained.folder}"
    if pretrained.task != "language_modeling":
        raise UserError(
            f"{where}: is a run of {pretrained.task}, expected a run of language_modeling"
        )
    tokenizer = Tokenizer.from_json(pretrained.assets["tokenizer"])
    differing = _differing("config.data.text", text, tokenizer.config, TextConfig, ("max_length",))
    differing += _differing("config.model", model, pretrained.model, EncoderConfig, _FREE)
    learned, wanted = pretrained.model.max_length, model.max_length
    by_length = model.positions_are("learned")
    # A masked language model reads texts after a classification token; the classifier only if it
    # pools that token.
    began = pretrained.model.objective == "masked" or pretrained.assets["begin"] is None
    skipped = int(began and model.pooling != "cls")
    if by_length and wanted + skipped > learned:
        differing.append(
            f"config.model.max_length is {wanted}, expected at most {learned - skipped}"
        )
    elif "max_length" in model.entry.capabilities and learned != wanted:
        differing.append(f"config.model.max_length is {wanted}, expected {learned} as in the run")
    if differing:
        raise UserError(
            f"{where}: the run does not fit the classifier: {'; '.join(differing)}; change these "
            "keys, or use another run"
        )
    params = pretrained.params
    # Special tokens of the language model come last; all tokens are of the first segment.
    table = np.asarray(params["embedding"]["embedding"])[: tokenizer.size]
    if "segment_embedding" in params:
        table = table + np.asarray(params["segment_embedding"]["embedding"])[0]
    layers = dict(params["encoder"])
    if by_length:
        layers["positions"] = {
            name: np.asarray(rows)[skipped : skipped + wanted]
            for name, rows in layers["positions"].items()
        }
    return InitialWeights(table, layers), tokenizer.with_max_length(text.max_length)


def _differing(path: str, mine: Any, theirs: Any, kind: type, free: tuple[str, ...]) -> list[str]:
    names = [field.name for field in fields(kind) if field.name not in free]
    return [
        f"{path}.{name} is {getattr(mine, name)!r}, expected {getattr(theirs, name)!r} as in the "
        "run"
        for name in names
        if getattr(mine, name) != getattr(theirs, name)
    ]


def _put(module: Any, values: Mapping[str, Any], path: str) -> None:
    """Assigns nested arrays to the parameters of the same names."""
    for name, value in values.items():
        child = module[int(name)] if name.isdigit() else getattr(module, name)
        if isinstance(value, Mapping):
            _put(child, value, f"{path}/{name}")
        else:
            if child.shape != value.shape:
                raise ValueError(
                    f"{path}/{name}: got shape {value.shape}, expected {tuple(child.shape)}"
                )
            child[...] = value
