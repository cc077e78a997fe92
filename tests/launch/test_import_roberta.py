"""RoBERTa folders as saved by transformers, also XLM-RoBERTa: reading, writing, runs from them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launch.export_weights import export
from launch.import_weights import _experiment, _write_run
from launch.runs import directory
from tasks.common.errors import UserError
from tasks.common.huggingface.files import read_folder, write_folder
from tests.launch.test_import_weights import BERT, LENGTH, D, bert_shapes, linear, norm
from tests.tasks.common.huggingface import test_unigrams
from tests.tasks.common.huggingface.test_byte_pairs import IDS, MERGES, VOCABULARY, whole

V, PAD = len(VOCABULARY), 1
EMBEDDINGS = "roberta.embeddings"
SHAPES = {
    name: shape
    for name, shape in bert_shapes("roberta.").items()
    if "embedding" not in name and "pooler" not in name
} | {
    f"{EMBEDDINGS}.word_embeddings.weight": (V, D),
    f"{EMBEDDINGS}.position_embeddings.weight": (LENGTH + PAD + 1, D),
    f"{EMBEDDINGS}.token_type_embeddings.weight": (1, D),
    **norm(f"{EMBEDDINGS}.LayerNorm"),
    "lm_head.bias": (V,),
    **linear("lm_head.dense", D, D),
    **norm("lm_head.layer_norm"),
}
ROBERTA = BERT | {
    "architectures": ["RobertaForMaskedLM"],
    "model_type": "roberta",
    "vocab_size": V,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "max_position_embeddings": LENGTH + PAD + 1,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}


def write(folder, config=ROBERTA, tokenizer=True):
    """Writes a folder with random parameters and returns them."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    tensors = {name: rng.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        (folder / "tokenizer.json").write_text(json.dumps(whole()))
    else:
        (folder / "vocab.json").write_text(json.dumps(IDS))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return tensors


@pytest.mark.parametrize("tokenizer", [True, False])
def test_written_back_is_what_was_read(tokenizer, tmp_path):
    write(tmp_path / "from", tokenizer=tokenizer)
    read = read_folder(tmp_path / "from")
    assert (read.left_out, read.model["max_length"], read.model["segments"]) == ([], LENGTH, 1)
    target = tmp_path / "to"
    write_folder(target, read)
    stored = (tmp_path / "from" / "model.safetensors").read_bytes()
    assert (target / "model.safetensors").read_bytes() == stored
    assert json.loads((target / "config.json").read_text()) == ROBERTA
    assert json.loads((target / "vocab.json").read_text()) == IDS
    assert (target / "merges.txt").read_text().split("\n") == ["#version: 0.2", *MERGES, ""]
    options = json.loads((target / "tokenizer_config.json").read_text())
    assert (options["tokenizer_class"], options["model_max_length"]) == ("RobertaTokenizer", LENGTH)
    again = read_folder(target)
    assert (again.vocabulary, again.normalization) == (read.vocabulary, read.normalization)


def test_unigram_model_is_written_back(tmp_path):
    rows = len(test_unigrams.VOCABULARY)
    config = ROBERTA | {
        "architectures": ["XLMRobertaForMaskedLM"],
        "model_type": "xlm-roberta",
        "vocab_size": rows,
    }
    write(tmp_path / "from", config)
    path = tmp_path / "from" / "model.safetensors"
    tensors = {name: it[:rows] if len(it) == V else it for name, it in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    (tmp_path / "from" / "tokenizer.json").write_text(json.dumps(test_unigrams.whole()))
    read = read_folder(tmp_path / "from")
    write_folder(tmp_path / "to", read)
    assert (tmp_path / "to" / "model.safetensors").read_bytes() == path.read_bytes()
    assert json.loads((tmp_path / "to" / "config.json").read_text()) == config
    again = read_folder(tmp_path / "to")
    assert (again.vocabulary, again.normalization) == (read.vocabulary, read.normalization)
    assert again.kind == "xlm-roberta"


def test_a_run_that_predicts(tmp_path):
    source, folder = tmp_path / "roberta", tmp_path / "run"
    tensors = write(source)
    saved = read_folder(source)
    assert _write_run(saved, _experiment(saved, source), folder) == []
    config = directory.saved_config(folder)
    task = directory.restored_task(config, folder)
    predictor = directory.load_predictor(task, config, folder)
    params = predictor._variables["params"]
    # The rows before the first token are not in the model.
    positions = tensors[f"{EMBEDDINGS}.position_embeddings.weight"]
    np.testing.assert_array_equal(params["encoder"]["positions"]["embedding"], positions[PAD + 1 :])
    segment = tensors[f"{EMBEDDINGS}.token_type_embeddings.weight"]
    np.testing.assert_array_equal(params["segment_embedding"]["embedding"], segment)
    words = tensors[f"{EMBEDDINGS}.word_embeddings.weight"]
    ids = task.processor.tokenizer.encode("the good")
    expected = words[[IDS[piece] for piece in ("the", "\u0120good")]]
    np.testing.assert_array_equal(np.asarray(params["embedding"]["embedding"])[ids], expected)
    (answer,) = predictor(["the good [MASK] ."])
    (blank,) = answer["blanks"]
    assert len(blank) == 5
    assert not {word["word"] for word in blank} & {"<s>", "</s>", "<pad>", "<mask>", "<unk>"}
    export(config, folder, tmp_path / "written")
    stored = (source / "model.safetensors").read_bytes()
    assert (tmp_path / "written" / "model.safetensors").read_bytes() == stored
    assert json.loads((tmp_path / "written" / "vocab.json").read_text()) == IDS


def without_merges(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(IDS))


def untied(folder):
    path = folder / "model.safetensors"
    table = np.ones((V, D), np.float32)
    save_file(load_file(path) | {"lm_head.decoder.weight": table}, path)


def without_norm(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.layer_norm.weight"]
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"model_type": "gpt2"}, "is 'gpt2', expected one of 'bert', .*'xlm-roberta'; name"),
        ({"model_type": "modernbert"}, "model_type is 'modernbert', expected one of 'bert'"),
        ({"hidden_act": "relu"}, "config.json: hidden_act is 'relu', expected 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "is 'relative_key', expected 'absolute'"),
        ({"type_vocab_size": 3}, "type_vocab_size is 3, expected 1"),
        ({"pad_token_id": 2}, "pad_token_id is 2, expected 1, the id of <pad> in the vocabulary"),
        ({"pad_token_id": None}, "pad_token_id is null, expected a whole number"),
        ({"max_position_embeddings": 2}, "max_position_embeddings is 2, expected more than 2"),
        ({"max_position_embeddings": 17}, r"has the shape \[18, 8\], expected \[17, 8\]"),
        ({"tokenizer_class": "BertTokenizer"}, "tokenizer_class is 'BertTokenizer', expected 'Rob"),
        (without_merges, "has vocab.json but no merges.txt; provide merges.txt"),
        (lambda f: (f / "tokenizer.json").unlink(), "has neither tokenizer.json nor vocab.json"),
        (untied, "lm_head.decoder.weight differs from the embedding table"),
        (without_norm, "has no tensor 'lm_head.layer_norm.weight'; the file is incomplete"),
    ],
)
def test_unsupported_folders_are_one_line(damage, message, tmp_path):
    folder = tmp_path / "roberta"
    write(folder, ROBERTA | damage if isinstance(damage, dict) else ROBERTA)
    if callable(damage):
        damage(folder)
    with pytest.raises(UserError, match=message) as refused:
        read_folder(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_any_damage_is_one_line_or_harmless(kind, tmp_path):
    """Replaces a value of a file by another one: an answer, or one line."""
    folder = tmp_path / "roberta"
    write(folder, ROBERTA | {"model_type": kind})
    good = {"config.json": ROBERTA | {"model_type": kind}}
    good["tokenizer.json"] = whole() if kind == "roberta" else test_unigrams.whole()
    good["tokenizer_config.json"] = {"mask_token": {"content": "<mask>", "lstrip": True}}
    others = (None, True, 7, -1.5, "x", [], {}, [[1]], {"content": 3, "type": "Sequence"})
    rng, refused = np.random.default_rng(0), []
    for number in range(150):
        for name, values in good.items():
            text = json.dumps(values)
            if name == list(good)[number % 3]:
                text = json.dumps(damaged(values, rng, others[rng.integers(len(others))]))
            (folder / name).write_text(text)
        try:
            read_folder(folder)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert not any("\n" in message for message in refused)


def damaged(values, rng, other):
    """Returns a copy of JSON values in which one value, at a random depth, is another."""
    if isinstance(values, dict | list) and values and rng.random() < 0.8:
        keys = list(values) if isinstance(values, dict) else range(len(values))
        key = keys[rng.integers(len(keys))]
        copy = dict(values) if isinstance(values, dict) else list(values)
        copy[key] = damaged(values[key], rng, other)
        return copy
    return other


def test_former_files_are_read(tmp_path):
    """Files with tied output layers, position ids and another pooler, in half precision."""
    folder = tmp_path / "roberta"
    tensors = write(folder)
    more = {
        "lm_head.decoder.weight": tensors[f"{EMBEDDINGS}.word_embeddings.weight"],
        "lm_head.decoder.bias": tensors["lm_head.bias"],
        f"{EMBEDDINGS}.position_ids": np.arange(LENGTH)[None],
        "roberta.pooler.dense.weight": np.zeros((D, D), np.float32),
        "roberta.pooler.dense.bias": np.zeros(D, np.float32),
    }
    save_file(tensors | more, folder / "model.safetensors")
    read = read_folder(folder)
    assert read.left_out == ["pooler.dense.bias", "pooler.dense.weight"]
    assert read.params["head/bias"].shape == (V,)
