"""Weights of BERT (Devlin et al. 2019) and DistilBERT (Sanh et al. 2019), to and from the folders
of the library transformers: config.json, model.safetensors, and vocab.txt or tokenizer.json.

Here they are a masked language model: names of its config and of its parameters are those of
tasks/language_modeling. Ids differ: padding, unknown and classification token come first here, mask
and end sign last, so the rows that belong to tokens change places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.common.errors import UserError
from tasks.common.subwords import Subwords
from tasks.common.text import SPECIAL, TextConfig, TextEncoder

_LAST = ("[MASK]", "[SEP]")

# Our name -> theirs; "{}" is the number of a layer. A module has a matrix (theirs transposed) or a
# scale, and a bias.
_NAMES = {
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
# Our field -> theirs, and theirs where it stands in no config.json.
_FIELDS = {
    "bert": {
        "model_size": ("hidden_size", 768),
        "num_layers": ("num_hidden_layers", 12),
        "num_heads": ("num_attention_heads", 12),
        "feedforward_size": ("intermediate_size", 3072),
        "dropout_rate": ("hidden_dropout_prob", 0.1),
        "attention_dropout_rate": ("attention_probs_dropout_prob", 0.1),
        "activation": ("hidden_act", "gelu"),
        "max_length": ("max_position_embeddings", 512),
        "segments": ("type_vocab_size", 2),
        "norm_epsilon": ("layer_norm_eps", 1e-12),
        "embedding_scale": ("initializer_range", 0.02),
    },
    "distilbert": {
        "model_size": ("dim", 768),
        "num_layers": ("n_layers", 6),
        "num_heads": ("n_heads", 12),
        "feedforward_size": ("hidden_dim", 3072),
        "dropout_rate": ("dropout", 0.1),
        "attention_dropout_rate": ("attention_dropout", 0.1),
        "activation": ("activation", "gelu"),
        "max_length": ("max_position_embeddings", 512),
        "embedding_scale": ("initializer_range", 0.02),
    },
}
# What all of them are.
_FIXED = {
    "name": "transformer",
    "objective": "masked",
    "norm": "post",
    "input_norm": True,
    "positions": "learned",
}
_ARCHITECTURES = {
    "bert": ("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    "distilbert": ("DistilBertModel", "DistilBertForMaskedLM"),
}


@dataclass(frozen=True)
class LanguageModelFolder:
    """What such a folder holds, in the terms of this project.

    Attributes:
      kind: "bert" or "distilbert".
      model: fields of `LanguageModelConfig`.
      params: parameters by path, "encoder/layers/0/attention/query/kernel", with rows in the order
        of our ids. Those of the head are missing where the folder had none.
      vocabulary: pieces in the order of their ids.
      lower_case, strip_accents: how text is normalised.
      left_out: names of tensors that have no place here.
    """

    kind: str
    model: Mapping[str, Any]
    params: Mapping[str, Any]
    vocabulary: Sequence[str]
    lower_case: bool = True
    strip_accents: bool = True
    left_out: Sequence[str] = ()

    def text_encoder(self) -> TextEncoder:
        """The tokenizer with our ids; mask and end sign are the task's."""
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        order = our_order(self.vocabulary)[: -len(_LAST)]
        ids = {self.vocabulary[place]: number for number, place in enumerate(order)}
        tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=True,
            strip_accents=self.strip_accents,
            lowercase=self.lower_case,
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        config = TextConfig("wordpiece", lower_case=self.lower_case, vocabulary_size=len(ids))
        return TextEncoder(config, Subwords(tokenizer))


def our_order(vocabulary: Sequence[str]) -> np.ndarray:
    """Their id of each of our ids, int [V].

    Raises:
      ValueError: a sign is missing, or a piece stands there twice.
    """
    places = {piece: place for place, piece in enumerate(vocabulary)}
    missing = [sign for sign in (*SPECIAL, *_LAST) if sign not in places]
    if missing:
        raise ValueError(f"has no {', '.join(missing)}")
    if len(places) < len(vocabulary):
        raise ValueError("holds a piece twice")
    signs = {places[sign] for sign in (*SPECIAL, *_LAST)}
    others = [place for place in range(len(vocabulary)) if place not in signs]
    first, last = ([places[sign] for sign in signs_] for signs_ in (SPECIAL, _LAST))
    return np.array([*first, *others, *last])


def to_tensors(
    kind: str, num_layers: int, params: Mapping[str, Any], order: np.ndarray
) -> dict[str, Any]:
    """Their tensors, by name without a prefix, from our parameters.

    Args:
      kind: "bert" or "distilbert".
      num_layers: L.
      params: by path; arrays of NumPy or PyTorch, for they are only turned and reordered.
      order: see `our_order`.
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
    """Our parameters from their tensors, the inverse of `to_tensors`, and names of what is left.

    A head that is not there whole is left out, and so are the parts for pairs of sentences unless
    the model has next_sentence.

    Raises:
      KeyError: a tensor of the encoder is missing.
    """
    N = model["num_heads"]
    params, rest = {}, dict(tensors)
    modules = list(_modules(kind, model["num_layers"]))
    headless = any(f"{name}.bias" not in rest for ours, name in modules if _part(ours) == "head")
    absent = {"head"} if headless else set()
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
            # There the first of the two says that the sentence follows.
            weight, bias = weight[[1, 0]], bias[[1, 0]]
        kernel = weight.T
        if ours.endswith(("attention/query", "attention/key", "attention/value")):
            kernel, bias = kernel.reshape(kernel.shape[0], N, -1), bias.reshape(N, -1)
        elif ours.endswith("attention/out"):
            kernel = kernel.reshape(N, -1, kernel.shape[1])
        params[f"{ours}/kernel"], params[f"{ours}/bias"] = kernel, bias
    return params, sorted(rest)


def read_folder(folder: Path) -> LanguageModelFolder:
    """A folder of BERT or DistilBERT as transformers saves it.

    Raises:
      UserError: a file is missing or damaged, or it is another kind of model.
    """
    config = _json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in _NAMES:
        raise UserError(
            f"{folder / 'config.json'}: model_type is {kind!r}, expected one of "
            f"{', '.join(map(repr, _NAMES))}"
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
    fields = {theirs: model[ours] for ours, (theirs, _) in _FIELDS[kind].items()}
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


def _modules(kind: str, num_layers: int) -> Iterator[tuple[str, str]]:
    for ours, theirs in _NAMES[kind].items():
        for i in range(num_layers if "{}" in ours else 1):
            yield ours.format(i), theirs.format(i)


def _part(name: str) -> str:
    return name.partition("/")[0]


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
    model = {**_FIXED, "norm_epsilon": 1e-12}
    model |= {ours: config.get(theirs, it) for ours, (theirs, it) in _FIELDS[kind].items()}
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
