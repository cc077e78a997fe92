"""BERT and DistilBERT folders as saved by transformers: reading, writing, runs made from them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launch.runs import directory
from tasks.common.errors import UserError
from tasks.common.huggingface import files, hub

D, N, F, LENGTH = 8, 2, 12, 16
PIECES = ["the", "film", "was", "good", "bad", "cafe", "##ly", ".", "a"]
VOCABULARY = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]
V = len(VOCABULARY)


def linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name):
    return {f"{name}.weight": (D,), f"{name}.bias": (D,)}


def bert_shapes(prefix="bert."):
    """Returns names and shapes of the tensors of BertForPreTraining."""
    embeddings = f"{prefix}embeddings"
    shapes = {
        f"{embeddings}.word_embeddings.weight": (V, D),
        f"{embeddings}.position_embeddings.weight": (LENGTH, D),
        f"{embeddings}.token_type_embeddings.weight": (2, D),
        **norm(f"{embeddings}.LayerNorm"),
        **linear(f"{prefix}pooler.dense", D, D),
    }
    for i in range(2):
        layer = f"{prefix}encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{layer}.attention.{part}", D, D)
        shapes |= linear(f"{layer}.intermediate.dense", D, F) | linear(
            f"{layer}.output.dense", F, D
        )
        shapes |= norm(f"{layer}.attention.output.LayerNorm") | norm(f"{layer}.output.LayerNorm")
    return shapes


HEAD = {
    "cls.predictions.bias": (V,),
    **linear("cls.predictions.transform.dense", D, D),
    **norm("cls.predictions.transform.LayerNorm"),
}
PAIRS = linear("cls.seq_relationship", D, 2)
BERT = {
    "architectures": ["BertForPreTraining"],
    "model_type": "bert",
    "vocab_size": V,
    "pad_token_id": 0,
    "hidden_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": N,
    "intermediate_size": F,
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "max_position_embeddings": LENGTH,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
}
DISTILBERT = {
    "architectures": ["DistilBertForMaskedLM"],
    "model_type": "distilbert",
    "vocab_size": V,
    "pad_token_id": 0,
    "dim": D,
    "n_layers": 1,
    "n_heads": N,
    "hidden_dim": F,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation": "gelu",
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.02,
}


def distilbert_shapes():
    layer = "distilbert.transformer.layer.0"
    shapes = {
        "distilbert.embeddings.word_embeddings.weight": (V, D),
        "distilbert.embeddings.position_embeddings.weight": (LENGTH, D),
        **norm("distilbert.embeddings.LayerNorm"),
        **norm(f"{layer}.sa_layer_norm"),
        **norm(f"{layer}.output_layer_norm"),
        **linear(f"{layer}.ffn.lin1", D, F),
        **linear(f"{layer}.ffn.lin2", F, D),
        **linear("vocab_transform", D, D),
        **norm("vocab_layer_norm"),
        "vocab_projector.bias": (V,),
    }
    for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
        shapes |= linear(f"{layer}.attention.{part}", D, D)
    return shapes


def write(folder, config, shapes):
    """Writes a folder with random parameters and returns them."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    tensors = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in VOCABULARY))
    return tensors


@pytest.mark.parametrize(
    ("config", "shapes"),
    [(BERT, bert_shapes() | HEAD | PAIRS), (DISTILBERT, distilbert_shapes())],
    ids=["bert", "distilbert"],
)
def test_written_back_is_what_was_read(config, shapes, tmp_path):
    tensors = write(tmp_path / "from", config, shapes)
    read = files.read_folder(tmp_path / "from")
    assert read.left_out == []
    files.write_folder(tmp_path / "to", read)
    written = load_file(tmp_path / "to" / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
    assert json.loads((tmp_path / "to" / "config.json").read_text()) == config
    assert (tmp_path / "to/vocab.txt").read_text() == (tmp_path / "from/vocab.txt").read_text()


def test_rows_follow_the_tokens(tmp_path):
    tensors = write(tmp_path / "bert", BERT, bert_shapes() | HEAD | PAIRS)
    read = files.read_folder(tmp_path / "bert")
    tokenizer = read.text_tokenizer()
    words = tensors["bert.embeddings.word_embeddings.weight"]
    table = read.params["embedding/embedding"]
    # Accents go with the case; "goodly" is two pieces; an unknown word is [UNK].
    ids = tokenizer.encode("The CAFÉ was goodly zebra")
    pieces = ["the", "cafe", "was", "good", "##ly", "[UNK]"]
    np.testing.assert_array_equal(table[ids], words[[VOCABULARY.index(p) for p in pieces]])
    # The task's own tokens, mask and end, follow the tokenizer's.
    assert tokenizer.size == V - 2
    np.testing.assert_array_equal(table[-2:], words[[5, 4]])
    np.testing.assert_array_equal(table[:3], words[[0, 2, 3]])
    bias = tensors["cls.predictions.bias"]
    np.testing.assert_array_equal(read.params["head/bias"][-2:], bias[[5, 4]])
    # BERT's first class is "next sentence"; here it is the last.
    follows = tensors["cls.seq_relationship.weight"]
    np.testing.assert_array_equal(read.params["follows/kernel"], follows[::-1].T)


def test_old_names_bare_encoders_and_tokenizer_json(tmp_path):
    shapes = bert_shapes(prefix="") | {"embeddings.position_ids": (1, LENGTH)}
    folder = tmp_path / "bare"
    tensors = write(folder, BERT, shapes)
    old = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
        for name, tensor in tensors.items()
    }
    save_file(old, folder / "model.safetensors")
    (folder / "vocab.txt").unlink()
    tokenizer = {
        "added_tokens": [{"id": 5, "content": "[MASK]"}],
        "normalizer": {"type": "BertNormalizer", "lowercase": False, "strip_accents": None},
        "model": {"type": "WordPiece", "vocab": {p: i for i, p in enumerate(VOCABULARY)}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    read = files.read_folder(folder)
    scale = tensors["embeddings.LayerNorm.weight"]
    np.testing.assert_array_equal(read.params["encoder/input_norm/scale"], scale)
    assert read.left_out == ["pooler.dense.bias", "pooler.dense.weight"]
    assert not any(name.startswith("head") for name in read.params)
    assert list(read.vocabulary) == VOCABULARY
    assert not read.lower_case
    assert not read.strip_accents


def without(folder, name):
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    # As transformers writes it.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configured(**changes):
    return lambda folder: (folder / "config.json").write_text(json.dumps(BERT | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            configured(model_type="gpt2"),
            r"config.json: model_type is 'gpt2', expected one of",
        ),
        (configured(hidden_act="relu"), r"config.json: hidden_act is 'relu', expected 'gelu'"),
        (configured(is_decoder=True), r"is_decoder is True, expected False"),
        (configured(num_hidden_layers=1), r"has encoder.layer.1.*not in the model"),
        (configured(num_hidden_layers=3), r"no tensor 'encoder.layer.2.*the file is incomplete"),
        (lambda f: (f / "config.json").write_text("{"), r"config.json: not a JSON file"),
        (lambda f: (f / "config.json").unlink(), r"config.json: cannot be read \(No such file"),
        (lambda f: (f / "model.safetensors").unlink(), r"model.safetensors: no such file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), r"safetensors: cannot be read"),
        (lambda f: (f / "vocab.txt").unlink(), r"neither vocab.txt nor tokenizer.json"),
        (lambda f: (f / "vocab.txt").write_text("a\nb\n"), r"vocabulary has no \[PAD\], \[UNK\]"),
        (
            lambda f: (f / "vocab.txt").write_text("".join(f"{p}\n" for p in VOCABULARY[:-1])),
            rf"embeddings of {V} tokens, expected {V - 1} as in the vocabulary",
        ),
        (lambda f: without(f, "bert.embeddings.LayerNorm.bias"), r"no tensor 'embeddings.LayerNo"),
    ],
)
def test_what_is_not_such_a_folder_is_one_line(damage, message, tmp_path):
    write(tmp_path / "bert", BERT, bert_shapes() | HEAD)
    damage(tmp_path / "bert")
    with pytest.raises(UserError, match=message):
        files.read_folder(tmp_path / "bert")


def test_a_run_that_predicts(tmp_path, command):
    source, folder = tmp_path / "bert", tmp_path / "run"
    tensors = write(source, BERT, bert_shapes() | HEAD)
    done = command("import_weights", f"--from={source}", f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    assert "not imported: pooler.dense.bias, pooler.dense.weight" in done.stdout
    config = directory.saved_config(folder)
    assert config.model.dropout_rate == 0.2
    task = directory.restored_task(config, folder)
    predictor = directory.load_predictor(task, config, folder)
    params = predictor._variables["params"]
    query = tensors["bert.encoder.layer.1.attention.self.query.weight"]
    kernel = np.asarray(params["encoder"]["layers"]["1"]["attention"]["query"]["kernel"])
    np.testing.assert_array_equal(kernel.reshape(D, D), query.T)
    (answer,) = predictor(["the film was [MASK] ."])
    assert len(answer["blanks"][0]) == 5
    assert {blank["word"] for blank in answer["blanks"][0]} <= {*PIECES, "[unused0]", "ly"}
    written = tmp_path / "written"
    done = command("export_weights", f"--workdir={folder}", f"--to={written}")
    assert done.returncode == 0, done.stderr
    without(source, "bert.pooler.dense.weight")
    without(source, "bert.pooler.dense.bias")
    for name in ("model.safetensors", "vocab.txt"):
        assert (written / name).read_bytes() == (source / name).read_bytes()
    again = command("import_weights", f"--from={source}", f"--workdir={folder}")
    assert again.returncode == 2
    assert "already exists" in again.stderr


@pytest.mark.slow
def test_weights_of_stacked_layers_and_padded_rows_are_exported(tmp_path, command):
    text = "the film was good . the film was bad . a good film .\n" * 30
    (tmp_path / "texts.txt").write_text(text, encoding="utf-8")
    run, target = tmp_path / "run", tmp_path / "to"
    done = command(
        "train",
        f"--config=configs/language_modeling.py:path:{tmp_path / 'texts.txt'},bert",
        f"--workdir={run}",
        "--config.data.length=16",
        "--config.model.model_size=8",
        "--config.model.num_heads=2",
        "--config.model.scan_layers=True",
        "--config.model.min_rows=64",
        "--config.training.steps=1",
        "--config.training.evaluate_every=1",
        "--config.training.log_every=1",
        "--config.training.batch_size=4",
    )
    assert done.returncode == 0, done.stderr
    done = command("export_weights", f"--workdir={run}", f"--to={target}")
    assert done.returncode == 0, done.stderr
    read = files.read_folder(target)
    config = directory.saved_config(run)
    task = directory.restored_task(config, run)
    params = directory.load_variables(task, config, run)[1]["params"]
    kernel = params["encoder"]["layers"]["stacked"]["attention"]["query"]["kernel"]
    for number in range(2):
        found = read.params[f"encoder/layers/{number}/attention/query/kernel"]
        np.testing.assert_array_equal(found, kernel[number])
    table = params["embedding"]["embedding"]
    assert table.shape == (64, 8)
    np.testing.assert_array_equal(read.params["embedding/embedding"], table[: len(read.vocabulary)])


def test_models_of_the_hub_are_downloaded_without_other_files(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.download("google-bert/bert-base-cased") == tmp_path
    ((name, patterns),) = asked
    assert name == "google-bert/bert-base-cased"
    assert {"config.json", "model.safetensors", "vocab.txt"} <= set(patterns)
    assert not any("bin" in pattern or "*" in pattern for pattern in patterns)


def test_a_download_that_fails_names_the_command(monkeypatch):
    import huggingface_hub

    def interrupted(*_, **__):
        raise RuntimeError("peer closed connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", interrupted)
    with pytest.raises(UserError, match=r"cannot be reached; .* hf download bert-base-cased conf"):
        hub.download("bert-base-cased")


def test_a_cached_model_needs_no_network(tmp_path, monkeypatch):
    """The library's own cache layout: snapshots/REVISION, and refs/main with the revision."""
    cache = tmp_path / "hub" / "models--mine--tiny"
    write_folder = cache / "snapshots" / "abc"
    write_folder.parent.mkdir(parents=True)
    write(write_folder, BERT, bert_shapes() | HEAD)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    read = files.read_folder(hub.download("mine/tiny"))
    assert list(read.vocabulary) == VOCABULARY
