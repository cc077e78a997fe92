"""Exports of the models that the subjects of the contract suite do not have."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from launch.exports import reader, writer
from tests.launch.exports.test_text import assert_same
from tests.tasks import contract

TRANSFORMER = {
    "model.model_size": 8,
    "model.num_heads": 2,
    "model.num_layers": 1,
    "model.feedforward_size": 8,
}
SPEECH = {**TRANSFORMER, "model.channels": 4, "model.transcriber.max_length": 8}
DECODER = {"model.transcriber.state_size": 8, "model.transcriber.embedding_size": 8}
BEAM = {"model.transcriber.decoding.method": "beam", "model.transcriber.decoding.beam_size": 3}
WINDOW = {"data.lookback": 24, "data.horizon": 4}
# Task, argument of its config, and changes of keys.
MODELS = [
    ("text_classification", "movie_reviews,transformer", TRANSFORMER),
    ("language_modeling", "tiny_shakespeare", {**TRANSFORMER, "model.max_length": 16}),
    (
        "language_modeling",
        "tiny_shakespeare",
        {
            **TRANSFORMER,
            "model.max_length": 16,
            "model.num_layers": 2,
            "model.scan_layers": True,
            "model.min_rows": 320,
        },
    ),
    ("translation", "multi30k", {**TRANSFORMER, "model.decoder_layers": 1}),
    (
        "image_classification",
        "digits,vit,cls",
        {**TRANSFORMER, "model.num_layers": 2, "model.scan_layers": True},
    ),
    ("image_classification", "digits,vit,cls", TRANSFORMER),
    ("segmentation", "camvid,gates", {"model.channels": (4, 8)}),
    ("detection", "nuclei,se", {}),
    ("forecasting", "etth1,ridge_seasonal,4,quantile", WINDOW),
    ("forecasting", "etth1,patchtst,4,student_t", WINDOW),
    ("recommendation", "movielens_100k,hybrid", {}),
    ("speech_recognition", "spoken_digits,conformer,joint", {**SPEECH, **DECODER, **BEAM}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "argument", "changes"),
    MODELS,
    ids=[
        f"{task}-{given}{'-scanned' * ('model.scan_layers' in more)}"
        for task, given, more in MODELS
    ],
)
def test_answers_are_those_of_the_predictor(task, argument, changes, monkeypatch, tmp_path):
    case = contract.CASES[task]
    data = {key: value for key, value in case.changes.items() if key.startswith("data.")}
    case = dataclasses.replace(
        case, config=f"configs/{task}.py:{argument}", changes={**data, **changes}
    )
    monkeypatch.setitem(contract.CASES, task, case)
    subject = contract.make_subject(task, tmp_path)
    folder = tmp_path / "export"
    writer.write_export(
        subject.task, subject.config, subject.variables, folder, with_attention=True
    )
    assert_same(reader.Export(folder)(subject.raw), subject.predictor(subject.raw))


def test_weights_keep_shapes_and_dtypes(tmp_path):
    weights = {
        "scalar": jnp.float32(3),
        "empty": jnp.zeros((2, 0)),
        "half": jnp.ones((3,), jnp.bfloat16),
        "transposed": np.arange(6, dtype=np.int8).reshape(2, 3).T,
    }
    writer.write_tensors(weights, tmp_path / "weights.safetensors")
    found = reader.read_tensors(tmp_path / "weights.safetensors")
    assert found.keys() == weights.keys()
    for name, x in weights.items():
        assert (found[name].shape, found[name].dtype) == (x.shape, x.dtype)
        np.testing.assert_array_equal(found[name], x)
