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
from tasks.common.text.tokenizer import LAST, TextConfig, Tokenizer
from tasks.task import Pretrained

# Config keys in which the classifier may differ from the language model. The parameters of the
# encoder do not depend on them.
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
      pooler: parameters of the pooler of next-sentence prediction, for pooling "bert"; None if the
        language model has none, or for another pooling.
    """

    table: np.ndarray
    encoder: Mapping[str, Any]
    pooler: Mapping[str, Any] | None = None

    def assign_to(self, tokens: nnx.Module, encoder: nnx.Module, pool: nnx.Module | None) -> None:
        """Assigns the embedding table and the parameters of encoder and pooler."""
        _put(tokens, {"embedding": self.table}, "tokens")
        like = nnx.to_pure_dict(nnx.state(encoder, nnx.Param))
        _put(encoder, with_layout(self.encoder, like), "encoder")
        if self.pooler is not None:
            _put(pool, self.pooler, "pool")


def initial_weights_from(
    pretrained: Pretrained, text: TextConfig, model: Any
) -> tuple[InitialWeights, Tokenizer]:
    """Returns the initial parameters of a classifier, and its tokenizer, from a language model.

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
    # In masked language models, and in causal language models of separate texts, the first position
    # is that of a classification token. A classifier without this token has no use for the learned
    # embedding of the first position.
    began = pretrained.model.objective == "masked" or pretrained.assets["begin"] is None
    pools_first = model.pooling in ("cls", "bert")
    skipped = int(began and not pools_first)
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
    # The vocabulary of the language model ends with [MASK] and [SEP]. Only classifiers with pooling
    # "bert" need the embeddings of these two tokens.
    # All tokens of a classifier are in the first segment, so the embedding of this segment is added
    # to the table.
    is_bert = model.pooling == "bert"
    rows = tokenizer.size + (len(LAST) if is_bert else 0)
    table = np.asarray(params["embedding"]["embedding"])[:rows]
    if "segment_embedding" in params:
        table = table + np.asarray(params["segment_embedding"]["embedding"])[0]
    layers = dict(params["encoder"])
    if by_length:
        layers["positions"] = {
            name: np.asarray(rows)[skipped : skipped + wanted]
            for name, rows in layers["positions"].items()
        }
    initial = InitialWeights(table, layers, params.get("pooler") if is_bert else None)
    return initial, tokenizer.with_max_length(text.max_length)


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
