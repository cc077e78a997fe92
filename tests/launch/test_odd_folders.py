"""Unusual or damaged BERT folders: padded vocabularies, other dtypes, bad values."""

import json
import shutil

import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file

from launch.import_weights import _experiment
from launch.runs import directory
from tasks.common.errors import UserError
from tasks.common.huggingface.files import read_folder, write_folder
from tests.launch.test_import_weights import (
    BERT,
    DISTILBERT,
    HEAD,
    PAIRS,
    VOCABULARY,
    D,
    V,
    bert_shapes,
    configured,
    distilbert_shapes,
    write,
)

WORDS = "bert.embeddings.word_embeddings.weight"


def change(folder, **tensors):
    """Replaces tensors by name; None removes one."""
    path = folder / "model.safetensors"
    stored = load_file(path)
    for name, tensor in tensors.items():
        if tensor is None:
            del stored[name]
        else:
            stored[name] = tensor
    save_file(stored, path, metadata={"format": "pt"})
    return stored


def padded(folder, rows, **config):
    """Pads the rows of the vocabulary and returns all tensors."""
    stored = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(7)
    for name, tensor in stored.items():
        if len(tensor) == V and name.endswith(("word_embeddings.weight", "predictions.bias")):
            more = rng.normal(size=(rows - V, *tensor.shape[1:])).astype(np.float32)
            stored[name] = np.concatenate([tensor, more])
        if name == "vocab_projector.bias":
            more = rng.normal(size=rows - V).astype(np.float32)
            stored[name] = np.concatenate([tensor, more])
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(saved | {"vocab_size": rows} | config))
    return stored


@pytest.mark.parametrize(
    ("config", "shapes"),
    [(BERT, bert_shapes() | HEAD | PAIRS), (DISTILBERT, distilbert_shapes())],
    ids=["bert", "distilbert"],
)
@pytest.mark.parametrize("rows", [16, 64])
def test_padding_rows_stay_beside_the_model(config, shapes, rows, tmp_path):
    assert V == 15
    tensors = write(tmp_path / "from", config, shapes)
    plain = read_folder(tmp_path / "from")
    tensors = padded(tmp_path / "from", rows)
    read = read_folder(tmp_path / "from")
    # The model is that of the folder without padding.
    assert read.params.keys() == plain.params.keys()
    for name, array in plain.params.items():
        np.testing.assert_array_equal(read.params[name], array, err_msg=name)
    assert read.text_tokenizer().size == V - 2
    write_folder(tmp_path / "to", read)
    written = load_file(tmp_path / "to" / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
    saved = json.loads((tmp_path / "to" / "config.json").read_text())
    assert saved == config | {"vocab_size": rows}


@pytest.mark.parametrize("rows", [14, 17, 24, 4096])
def test_other_numbers_of_rows_are_another_model_s(rows, tmp_path):
    """Sizes below the 15 pieces, no multiple of 8, the multiple after the next, far too large."""
    write(tmp_path / "bert", BERT, bert_shapes() | HEAD)
    change(tmp_path / "bert", **{WORDS: np.zeros((rows, D), np.float32)})
    with pytest.raises(UserError, match=f"embeddings of {rows} tokens, expected {V} as in"):
        read_folder(tmp_path / "bert")


@pytest.mark.slow
def test_a_run_with_padding_predicts_and_is_written_back(tmp_path, command):
    source, folder, written = tmp_path / "bert", tmp_path / "run", tmp_path / "written"
    write(source, BERT, bert_shapes() | HEAD | PAIRS)
    # Padding rows that would win every prediction if they were not masked.
    padded(source, 16)
    stored = load_file(source / "model.safetensors")
    stored["cls.predictions.bias"][15] = 1e6
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    options = {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False}
    (source / "tokenizer_config.json").write_text(json.dumps(options))
    done = command("import_weights", f"--from={source}", f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    assert "pad the vocabulary and are never predicted: 1" in done.stdout
    config = directory.saved_config(folder)
    task = directory.restored_task(config, folder)
    assert task.processor.vocabulary == V
    (answer,) = directory.load_predictor(task, config, folder)(["the film was [MASK] ."])
    words = {blank["word"] for blank in answer["blanks"][0]}
    assert words <= {piece.removeprefix("##") for piece in VOCABULARY}
    assert np.isfinite([blank["probability"] for blank in answer["blanks"][0]]).all()
    done = command("export_weights", f"--workdir={folder}", f"--to={written}")
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "vocab.txt"):
        assert (written / name).read_bytes() == (source / name).read_bytes()
    said = json.loads((written / "tokenizer_config.json").read_text())
    assert said.items() >= options.items()
    assert not (written / "tokenizer.json").exists()


def test_what_the_config_cannot_say_is_written_as_tokenizer_json(tmp_path):
    from tests.tasks.common.huggingface.test_tokenizers import whole

    folder = tmp_path / "from"
    write(folder, BERT, bert_shapes() | HEAD | PAIRS)
    (folder / "vocab.txt").unlink()
    values = whole(VOCABULARY, longest=5, clean_text=False, strip_accents=False)
    values["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [3]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    read = read_folder(folder)
    write_folder(tmp_path / "to", read)
    again = read_folder(tmp_path / "to")
    assert again.normalization == read.normalization
    assert again.normalization.longest_word == 5
    assert not again.normalization.clean_text
    assert again.vocabulary == VOCABULARY


def test_half_precision_is_exact_in_float32(tmp_path):
    folder = tmp_path / "bert"
    tensors = write(folder, BERT, bert_shapes() | HEAD | PAIRS)
    for kind in (np.float16, bfloat16):
        half = {name: tensor.astype(kind) for name, tensor in tensors.items()}
        save_file(half, folder / "model.safetensors")
        scale = read_folder(folder).params["encoder/input_norm/scale"]
        assert scale.dtype == np.float32
        expected = tensors["bert.embeddings.LayerNorm.weight"].astype(kind)
        np.testing.assert_array_equal(scale, expected.astype(np.float32))


def reshaped(name, shape):
    return lambda folder: change(folder, **{name: np.zeros(shape, np.float32)})


def typed(name, kind):
    return lambda folder: change(
        folder, **{name: load_file(folder / "model.safetensors")[name].astype(kind)}
    )


def broken(folder):
    tensor = load_file(folder / "model.safetensors")[WORDS]
    tensor[3, 2] = np.nan
    change(folder, **{WORDS: tensor})


def twice(folder):
    change(folder, **{"embeddings.LayerNorm.bias": np.zeros(D, np.float32)})


def cut(share):
    def damage(folder):
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: int(len(data) * share)])

    return damage


def other_form(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


QUERY = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (reshaped(QUERY, (D, D + 1)), r"self.query.weight has the shape \[8, 9\], .* \[8, 8\]"),
        (reshaped(QUERY, (D,)), r"self.query.weight has the shape \[8\], expected \[8, 8\]"),
        (reshaped(WORDS, (V, D - 2)), r"word_embeddings.weight has the shape \[15, 6\]"),
        (
            reshaped("bert.embeddings.position_embeddings.weight", (9, D)),
            r"position_embeddings.weight has the shape \[9, 8\], expected \[16, 8\]",
        ),
        (
            reshaped("bert.embeddings.LayerNorm.weight", (D, 1)),
            r"LayerNorm.weight has the shape \[8, 1\]",
        ),
        (reshaped("cls.predictions.bias", (V + 1,)), r"predictions.bias has the shape \[16\]"),
        (reshaped("cls.seq_relationship.weight", (3, D)), r"seq_relationship.weight has the shap"),
        (typed(QUERY, np.float64), "query.weight is float64, expected one of float32, float16"),
        (typed(QUERY, np.int8), "query.weight is int8, expected one of float32"),
        (broken, "word_embeddings.weight has values that are not finite"),
        (twice, "has embeddings.LayerNorm.bias twice"),
        (cut(0.999), "cannot be read"),
        (cut(0.05), "cannot be read"),
        (cut(0), "cannot be read"),
        (other_form, "no such file; pytorch_model.bin is not supported; save the model with"),
        (
            lambda folder: change(folder, **{"cls.predictions.transform.dense.bias": None}),
            "not the complete head for masked tokens",
        ),
        (
            lambda folder: change(folder, **{"cls.predictions.bias": None}),
            "not the complete head for masked tokens",
        ),
        (
            lambda folder: change(folder, **{QUERY: None}),
            "no tensor .*query.weight'; the file is inc",
        ),
    ],
)
def test_damaged_weights_are_one_line(damage, message, tmp_path):
    write(tmp_path / "bert", BERT, bert_shapes() | HEAD | PAIRS)
    damage(tmp_path / "bert")
    with pytest.raises(UserError, match=f"model.safetensors: .*{message}") as refused:
        read_folder(tmp_path / "bert")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": None}, "num_attention_heads is null, expected a whole number"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3, expected a divisor of 8"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, expected a whole number above 0"),
        ({"hidden_size": 8.0}, "hidden_size is 8.0, expected a whole number above 0"),
        ({"hidden_size": "8"}, 'hidden_size is "8", expected a whole number above 0'),
        ({"num_hidden_layers": True}, "num_hidden_layers is true, expected a whole number"),
        ({"intermediate_size": -12}, "intermediate_size is -12, expected a whole number above 0"),
        ({"max_position_embeddings": []}, r"max_position_embeddings is \[\], expected a whole"),
        ({"num_hidden_layers": 10**12}, "tensors, too few for the 1000000000000 layers"),
        ({"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob is 1.5, expected a rate in \[0, 1\)"),
        ({"attention_probs_dropout_prob": None}, "attention_probs_dropout_prob is null, expected"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0, expected a number above 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is NaN, expected a number above 0"),
        ({"initializer_range": "0.02"}, 'initializer_range is "0.02", expected a number above 0'),
        ({"type_vocab_size": 1}, "type_vocab_size is 1, expected 2"),
        ({"hidden_act": "swish"}, "hidden_act is 'swish', expected 'gelu'"),
        ({"hidden_act": None}, "hidden_act is None, expected 'gelu'"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key', expected 'absolute'",
        ),
        ({"position_embedding_type": None}, "position_embedding_type is None, expected"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False, expected True"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected True"),
        ({"add_cross_attention": True}, "add_cross_attention is True, expected False"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is True, expected False"),
        ({"pruned_heads": {"0": [1]}}, r"pruned_heads is \{'0': \[1\]\}, expected"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config is .*, expected None"),
        ({"auto_map": {"AutoModel": "x.py"}}, "auto_map is .*, expected None"),
        ({"embedding_size": 4}, "embedding_size is 4, which is not supported for a bert"),
        ({"rope_theta": 1e4}, "rope_theta is 10000.0, which is not supported for a bert"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "tokenizer_class is 'BertJapanese"),
        ({"model_type": ["bert"]}, r"model_type is \['bert'\], expected one of"),
        ({"model_type": None}, "model_type is None, expected one of"),
        ({"vocab_size": 20}, "vocab_size is 20, expected 15, the number of embeddings"),
        ({"vocab_size": None}, "vocab_size is null, expected 15"),
        ({"vocab_size": [15]}, r"vocab_size is \[15\], expected 15"),
        ({"pad_token_id": 3}, r"pad_token_id is 3, expected 0, the id of \[PAD\]"),
        (
            {"max_position_embeddings": 8},
            r"position_embeddings.weight has the shape \[16, 8\]",
        ),
    ],
)
def test_impossible_configs_are_one_line(changes, message, tmp_path):
    write(tmp_path / "bert", BERT, bert_shapes() | HEAD | PAIRS)
    configured(**changes)(tmp_path / "bert")
    with pytest.raises(UserError, match=message):
        read_folder(tmp_path / "bert")


def test_options_without_effect_are_read(tmp_path):
    more = {
        "_name_or_path": "x",
        "transformers_version": "4.1",
        "torch_dtype": "float16",
        "use_cache": True,
        "classifier_dropout": None,
        "position_embedding_type": "absolute",
        "pruned_heads": {},
        "pooler_type": "first_token_transform",
        "directionality": "bidi",
        "gradient_checkpointing": False,
        "id2label": {"0": "a"},
        "pad_token_id": None,
    }
    write(tmp_path / "bert", BERT, bert_shapes() | HEAD | PAIRS)
    configured(**more)(tmp_path / "bert")
    assert read_folder(tmp_path / "bert").model["model_size"] == D


def test_any_damage_of_a_byte_is_one_line_or_harmless(tmp_path):
    """Damages the bytes of each file in turn: an answer, or one line that names the file."""
    source, folder = tmp_path / "good", tmp_path / "bad"
    write(source, BERT, bert_shapes() | HEAD | PAIRS)
    (source / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    shutil.copytree(source, folder)
    names = ["config.json", "vocab.txt", "tokenizer_config.json", "model.safetensors"]
    rng, refused = np.random.default_rng(0), []
    for _ in range(400):
        name = rng.choice(names)
        data = bytearray((source / name).read_bytes())
        header = min(len(data), 4000)
        for place in rng.integers(header, size=rng.integers(1, 4)):
            data[place] = rng.integers(256)
        (folder / name).write_bytes(data[: len(data) - rng.integers(2) * rng.integers(header)])
        try:
            _experiment(read_folder(folder), folder)
        except UserError as error:
            refused.append(str(error))
        shutil.copy(source / name, folder / name)
    assert len(refused) > 300
    for message in refused:
        assert message.startswith(str(folder))
        assert "\n" not in message
