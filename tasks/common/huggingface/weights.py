"""Conversion of BERT, DistilBERT, RoBERTa and XLM-RoBERTa weights.

Devlin et al. 2019, "BERT"; Sanh et al. 2019, "DistilBERT"; Liu et al. 2019, "RoBERTa"; Conneau et
al. 2020, "Unsupervised Cross-lingual Representation Learning at Scale".

Parameter names of the library transformers are converted to those of masked language models in
tasks/language_modeling, and back. `huggingface.files` reads and writes the files.

"Our" ids and names are those of this project. Our token ids differ from those of transformers: the
padding, unknown and classification token come first, and the mask and end token last. Therefore the
rows of embedding tables are permuted. The position tables of RoBERTa begin with unused rows.

In shapes, V is the number of pieces of the vocabulary, D the model size, and n a number of rows.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from tasks.common.huggingface.pipelines import (
    ROBERTA,
    BytePairs,
    Normalization,
    Unigram,
    special_tokens,
)
from tasks.common.text.subword_tokenizer import SubwordTokenizer
from tasks.common.text.tokenizer import LAST, SPECIAL, TextConfig, Tokenizer

# Name of a file in the directory of a run with imported weights. It contains the result of
# `LanguageModelFolder.tokenizer`.
IMPORTED = "imported.json"

# For our name of each module, its name in transformers; "{}" is the layer index. A module has a
# matrix (which is transposed in transformers) or a scale, and a bias.
NAMES = {
    "bert": {
        "embedding": "embeddings.word_embeddings",
        "encoder/positions": "embeddings.position_embeddings",
        "segment_embedding": "embeddings.token_type_embeddings",
        "encoder/input_norm": "embeddings.LayerNorm",
        "encoder/layers/{}/attention/query": "encoder.layer.{}.attention.self.query",
        "encoder/layers/{}/attention/key": "encoder.layer.{}.attention.self.key",
        "encoder/layers/{}/attention/value": "encoder.layer.{}.attention.self.value",
        "encoder/layers/{}/attention/out": "encoder.layer.{}.attention.output.dense",
        "encoder/layers/{}/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
        "encoder/layers/{}/feedforward/up": "encoder.layer.{}.intermediate.dense",
        "encoder/layers/{}/feedforward/down": "encoder.layer.{}.output.dense",
        "encoder/layers/{}/feedforward_norm": "encoder.layer.{}.output.LayerNorm",
        "head/transform": "cls.predictions.transform.dense",
        "head/norm": "cls.predictions.transform.LayerNorm",
        "head": "cls.predictions",
        "pooler": "pooler.dense",
        "follows": "cls.seq_relationship",
        "classify": "classifier",
    },
    "distilbert": {
        "embedding": "embeddings.word_embeddings",
        "encoder/positions": "embeddings.position_embeddings",
        "encoder/input_norm": "embeddings.LayerNorm",
        "encoder/layers/{}/attention/query": "transformer.layer.{}.attention.q_lin",
        "encoder/layers/{}/attention/key": "transformer.layer.{}.attention.k_lin",
        "encoder/layers/{}/attention/value": "transformer.layer.{}.attention.v_lin",
        "encoder/layers/{}/attention/out": "transformer.layer.{}.attention.out_lin",
        "encoder/layers/{}/attention_norm": "transformer.layer.{}.sa_layer_norm",
        "encoder/layers/{}/feedforward/up": "transformer.layer.{}.ffn.lin1",
        "encoder/layers/{}/feedforward/down": "transformer.layer.{}.ffn.lin2",
        "encoder/layers/{}/feedforward_norm": "transformer.layer.{}.output_layer_norm",
        "head/transform": "vocab_transform",
        "head/norm": "vocab_layer_norm",
        "head": "vocab_projector",
    },
}
# The pooler of a RoBERTa is a part of its classifier.
NAMES["roberta"] = {ours: theirs for ours, theirs in NAMES["bert"].items() if ours != "follows"} | {
    "head/transform": "lm_head.dense",
    "head/norm": "lm_head.layer_norm",
    "head": "lm_head",
    "pooler": "classifier.dense",
    "classify": "classifier.out_proj",
}
NAMES["xlm-roberta"] = NAMES["roberta"]
# Prefix of the encoder's tensors in files with a head.
PREFIXES = {kind: kind for kind in NAMES} | {"xlm-roberta": "roberta"}
# For our name of each field, its name and default in config.json of BERT, and the same for
# DistilBERT. None means that there is no such field.
_FIELDS = {
    "model_size": (("hidden_size", 768), ("dim", 768)),
    "num_layers": (("num_hidden_layers", 12), ("n_layers", 6)),
    "num_heads": (("num_attention_heads", 12), ("n_heads", 12)),
    "feedforward_size": (("intermediate_size", 3072), ("hidden_dim", 3072)),
    "dropout_rate": (("hidden_dropout_prob", 0.1), ("dropout", 0.1)),
    "attention_dropout_rate": (("attention_probs_dropout_prob", 0.1), ("attention_dropout", 0.1)),
    "activation": (("hidden_act", "gelu"), ("activation", "gelu")),
    "max_length": (("max_position_embeddings", 512),) * 2,
    "segments": (("type_vocab_size", 2), None),
    "norm_epsilon": (("layer_norm_eps", 1e-12), None),
    "embedding_scale": (("initializer_range", 0.02),) * 2,
}
FIELDS = {
    kind: {name: pair[number] for name, pair in _FIELDS.items() if pair[number] is not None}
    for number, kind in enumerate(("bert", "distilbert"))
}
FIELDS |= {kind: FIELDS["bert"] for kind in ROBERTA}
# Epsilon of the norms. DistilBERT has no such field in config.json.
EPSILON = 1e-12
# Fields of `LanguageModelConfig` with the same value in all of these models.
FIXED = {
    "name": "transformer",
    "objective": "masked",
    "norm": "post",
    "input_norm": True,
    "positions": "learned",
}


@dataclass(frozen=True)
class LanguageModelFolder:
    """Content of a transformers folder, with the parameter names of this project.

    Attributes:
      kind: "bert", "distilbert", "roberta" or "xlm-roberta".
      model: fields of `LanguageModelConfig`.
      params: parameters by path, such as "encoder/layers/0/attention/query/kernel". Embedding table
        and output bias have their rows in the order of our ids. There is no head if the folder has
        none.
      vocabulary: pieces in the order of their ids.
      normalization: options of the tokenizer; their class depends on the kind of model.
      left_out: names of the tensors in the folder that are not used.
      padding: rows in the folder that our model does not use; may be empty. They are "embedding"
        [n, D] and, with a head, "bias" [n], which follow the rows of the vocabulary; and
        "positions" [first_position, D], which precede the rows of positions.
      notes: notes for the user on options without effect.
    """

    kind: str
    model: Mapping[str, Any]
    params: Mapping[str, Any]
    vocabulary: Sequence[str]
    normalization: Normalization | BytePairs | Unigram = field(default_factory=Normalization)
    left_out: Sequence[str] = ()
    padding: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def lower_case(self) -> bool:
        """True if the tokenizer folds case."""
        return self.normalization.lower_case

    @property
    def strip_accents(self) -> bool:
        """True if the tokenizer removes accents."""
        return self.normalization.strip_accents

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Special tokens, see `tasks.common.huggingface.pipelines.special_tokens`."""
        return special_tokens(self.kind)

    @property
    def order(self) -> np.ndarray:
        """Id in transformers for each of our ids, see `our_order`."""
        return our_order(self.vocabulary, self.special_tokens)

    @property
    def first_position(self) -> int:
        """Row of the first token in the table of positions, see the function `first_position`."""
        return first_position(self.kind, list(self.vocabulary).index(self.special_tokens[0]))

    def tokenizer(self) -> dict[str, Any]:
        """Returns the arguments of `of_model`, except `model`, as JSON values."""
        padding = {
            name: {"shape": list(rows.shape), "float32": base64.b64encode(rows.tobytes()).decode()}
            for name, rows in self.padding.items()
        }
        return {
            "kind": self.kind,
            "vocabulary": list(self.vocabulary),
            **asdict(self.normalization),
            **({"padding": padding} if padding else {}),
        }

    def text_tokenizer(self) -> Tokenizer:
        """Returns a tokenizer with our ids. It lacks the mask and end token, which tasks add."""
        order = self.order[: -len(LAST)]
        ids = {self.vocabulary[theirs]: ours for ours, theirs in enumerate(order)}
        name = self.normalization.tokenizer
        config = TextConfig(name, lower_case=self.lower_case, vocabulary_size=len(ids))
        return Tokenizer(config, SubwordTokenizer(self.normalization.pipeline(ids)))


def first_position(kind: str, padding: int) -> int:
    """Returns the row of the table of positions that belongs to the first token.

    In tables of RoBERTa it is the row after that of the padding id; in others it is row 0.

    Args:
      kind: kind of model.
      padding: id of the padding token.
    """
    return padding + 1 if kind in ROBERTA else 0


def our_order(vocabulary: Sequence[str], special: Sequence[str] = (*SPECIAL, *LAST)) -> np.ndarray:
    """Returns the id in transformers for each of our ids, int [V].

    Args:
      vocabulary: pieces in the order of the ids in transformers.
      special: see `special_tokens`.

    Raises:
      ValueError: a special token is missing, a piece occurs twice, or there are only special
        tokens.
    """
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    missing = [token for token in special if token not in ids]
    if missing:
        raise ValueError(f"has no {', '.join(missing)}")
    if len(ids) < len(vocabulary):
        raise ValueError("has a piece twice")
    if len(ids) == len(special):
        raise ValueError(f"has no piece except {', '.join(special)}")
    numbers = [ids[token] for token in special]
    first, last = numbers[: len(SPECIAL)], numbers[len(SPECIAL) :]
    others = [number for number in range(len(vocabulary)) if number not in numbers]
    return np.array([*first, *others, *last])


def to_tensors(
    kind: str, num_layers: int, params: Mapping[str, Any], order: np.ndarray
) -> dict[str, Any]:
    """Converts our parameters to tensors of transformers.

    Args:
      kind: kind of model.
      num_layers: number of layers.
      params: parameters by path. They may be arrays of NumPy or PyTorch, because they are
        only reshaped, transposed and permuted.
      order: see `our_order`.

    Returns:
      The tensors by name, without the prefix of the encoder.
    """
    theirs = np.argsort(order)
    tensors = {}
    for ours, name in _modules(kind, num_layers):
        bias = params.get(f"{ours}/bias")
        if ours == "head" and bias is not None:
            tensors[f"{name}.bias"] = bias[theirs]
            continue
        if f"{ours}/embedding" in params:
            table = params[f"{ours}/embedding"]
            tensors[f"{name}.weight"] = table[theirs] if ours == "embedding" else table
        elif f"{ours}/scale" in params:
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = params[f"{ours}/scale"], bias
        elif bias is not None:
            bias = bias.reshape(-1)
            matrix = params[f"{ours}/kernel"].reshape(-1, bias.shape[0]).T
            if ours == "follows":
                matrix, bias = matrix[[1, 0]], bias[[1, 0]]
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = matrix, bias
    return tensors


def from_tensors(
    kind: str, model: Mapping[str, Any], tensors: Mapping[str, Any], order: np.ndarray
) -> tuple[dict[str, Any], list[str]]:
    """Converts tensors of transformers to our parameters.

    This is the inverse of `to_tensors`, except that some tensors are left out: the output layer of
    a classifier, an incomplete head and, unless the model has next_sentence, the modules for
    sentence pairs.

    Args:
      kind: kind of model.
      model: fields of `LanguageModelConfig`.
      tensors: tensors by name, without the prefix of the encoder. The table of positions must not
        contain the rows before `first_position`.
      order: see `our_order`.

    Returns:
      The parameters by path, and the names of the tensors that are left out.

    Raises:
      KeyError: a tensor of the encoder is missing.
    """
    N = model["num_heads"]
    params, rest = {}, dict(tensors)
    modules = list(_modules(kind, model["num_layers"]))
    headless = any(f"{name}.bias" not in rest for ours, name in modules if _part(ours) == "head")
    absent = {"classify", "head"} if headless else {"classify"}
    if not model.get("next_sentence"):
        absent |= {"pooler", "follows"}
    for ours, name in modules:
        if _part(ours) in absent:
            continue
        if ours == "head":
            params["head/bias"] = rest.pop(f"{name}.bias")[order]
            continue
        weight = rest.pop(f"{name}.weight")
        if ours.endswith(("embedding", "positions")):
            params[f"{ours}/embedding"] = weight[order] if ours == "embedding" else weight
            continue
        bias = rest.pop(f"{name}.bias")
        if ours.endswith("norm"):
            params[f"{ours}/scale"], params[f"{ours}/bias"] = weight, bias
            continue
        if ours == "follows":
            # In transformers, the first of the two classes means that the sentence follows.
            weight, bias = weight[[1, 0]], bias[[1, 0]]
        kernel = weight.T
        if ours.endswith(("attention/query", "attention/key", "attention/value")):
            kernel, bias = kernel.reshape(kernel.shape[0], N, -1), bias.reshape(N, -1)
        elif ours.endswith("attention/out"):
            kernel = kernel.reshape(N, -1, kernel.shape[1])
        params[f"{ours}/kernel"], params[f"{ours}/bias"] = kernel, bias
    return params, sorted(rest)


def fitted_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the arguments of `of_model`, except `model`, for a tokenizer fitted by this project.

    Raises:
      ValueError: the tokenizer is not WordPiece.
    """
    if tokenizer.config.tokenizer != "wordpiece":
        got = tokenizer.config.tokenizer
        raise ValueError(f"config.data.text.tokenizer: got {got!r}, expected 'wordpiece'")
    lower = tokenizer.config.lower_case
    pieces = [*tokenizer.pieces(), *LAST]
    return {"vocabulary": pieces, "lower_case": lower, "strip_accents": False}


def of_model(
    model: Mapping[str, Any],
    vocabulary: Sequence[str],
    padding: Mapping[str, Any] | None = None,
    kind: str | None = None,
    **normalization: Any,
) -> LanguageModelFolder:
    """Returns the content of a folder for a masked language model; its parameters are empty.

    Args:
      model: fields of `LanguageModelConfig`.
      vocabulary: pieces in the order of the file.
      padding: unused rows, as returned by `LanguageModelFolder.tokenizer`; None if there are none.
      kind: kind of model. If None, a model with segment embeddings is a BERT, otherwise a
        DistilBERT.
      **normalization: fields of `Normalization`, of `BytePairs` for RoBERTa, or of `Unigram` for
        XLM-RoBERTa.

    Raises:
      ValueError: values are not supported (the message lists them), or `our_order` rejects the
        vocabulary.
    """
    kind = kind or ("bert" if model["segments"] else "distilbert")
    fixed = {
        **FIXED,
        "normalization": "layer",
        "activation": "gelu",
        "use_bias": True,
        "mixer": "dot_product",
    }
    if kind == "distilbert":
        fixed["norm_epsilon"] = EPSILON
    if kind == "bert":
        fixed["segments"] = 2
    differing = [
        f"config.model.{name}: got {model[name]!r}, expected {value!r}"
        for name, value in fixed.items()
        if model[name] != value
    ]
    if differing:
        raise ValueError(f"is no {kind}: {'; '.join(differing)}")
    try:
        our_order(vocabulary, special_tokens(kind))
    except ValueError as error:
        raise ValueError(f"its vocabulary {error}") from None
    rows = {
        name: np.frombuffer(base64.b64decode(it["float32"]), np.float32).reshape(it["shape"])
        for name, it in (padding or {}).items()
    }
    kinds = {"roberta": BytePairs, "xlm-roberta": Unigram}
    normal = kinds.get(kind, Normalization)(**normalization)
    return LanguageModelFolder(kind, model, {}, vocabulary, normal, padding=rows)


def of_classifier(
    model: Mapping[str, Any], params: Mapping[str, Any], tokenizer: Tokenizer
) -> LanguageModelFolder:
    """Converts a text classifier with pooling "bert" to a BERT, RoBERTa or XLM-RoBERTa.

    If its tokenizer has the special tokens of RoBERTa, the result is an XLM-RoBERTa for a unigram
    model, and a RoBERTa otherwise. With other special tokens, it is a BERT. The segment embeddings
    are zeros, because the token embeddings of the classifier include those of the first segment.

    Args:
      model: fields of `tasks.text_classification.model.TransformerConfig`.
      params: parameters by path.
      tokenizer: tokenizer of the classifier.

    Raises:
      ValueError: values are not supported (the message lists them).
    """
    if model["pooling"] != "bert":
        raise ValueError(f"config.model.pooling: got {model['pooling']!r}, expected 'bert'")
    # Special tokens of a unigram model end with a space.
    pieces = [piece.rstrip(" ") for piece in tokenizer.pieces()]
    kind = "xlm-roberta" if tokenizer.config.tokenizer == Unigram.tokenizer else "roberta"
    special = special_tokens(kind)
    if tuple(pieces[: len(SPECIAL)]) != special[: len(SPECIAL)]:
        kind, special = "bert", special_tokens("bert")
    segments = 2 if kind == "bert" else 1
    model = {**model, "objective": "masked", "segments": segments}
    found = of_model(model, [*pieces, *special[len(SPECIAL) :]], kind=kind)
    begin = {"tokens": "embedding", "pool": "pooler"}
    params = {
        "/".join([begin.get(first, first), *rest]): value
        for first, *rest, value in ((*path.split("/"), value) for path, value in params.items())
    }
    zeros = np.zeros((segments, model["model_size"]), np.float32)
    return replace(found, params={**params, "segment_embedding/embedding": zeros})


def expected_shapes(
    kind: str, model: Mapping[str, Any], rows: int, first: int = 0
) -> dict[str, tuple[int, ...]]:
    """Returns the expected shape of each tensor of a file, by its name.

    Args:
      kind: kind of model.
      model: fields of `LanguageModelConfig`.
      rows: number of rows of the embedding table.
      first: see `first_position`.
    """
    D, F = model["model_size"], model["feedforward_size"]
    tables = {
        "embedding": rows,
        "encoder/positions": first + model["max_length"],
        "segment_embedding": model.get("segments", 0),
    }
    sizes = {"up": (F, D), "down": (D, F), "follows": (2, D)}
    shapes: dict[str, tuple[int, ...]] = {}
    for ours, theirs in _modules(kind, model["num_layers"]):
        if ours == "classify":
            continue
        if ours == "head":
            shapes[f"{theirs}.bias"] = (rows,)
        elif ours in tables:
            shapes[f"{theirs}.weight"] = (tables[ours], D)
        else:
            matrix = (D,) if ours.endswith("norm") else sizes.get(ours.split("/")[-1], (D, D))
            shapes |= {f"{theirs}.weight": matrix, f"{theirs}.bias": matrix[:1]}
    return shapes


def _modules(kind: str, num_layers: int) -> Iterator[tuple[str, str]]:
    for ours, theirs in NAMES[kind].items():
        for i in range(num_layers if "{}" in ours else 1):
            yield ours.format(i), theirs.format(i)


def _part(name: str) -> str:
    return name.partition("/")[0]
