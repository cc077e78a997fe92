"""Streams, and the answers of models that generate text."""

import json

import pytest

from launch.exports import writer
from launch.exports.reader import MASK, Export
from launch.serving import models
from tests.launch.serving.conftest import NAME, served
from tests.launch.serving.test_protocol import assert_error
from tests.tasks import contract


def events(response):
    """Returns names and data of server-sent events."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("text/event-stream")
    found = []
    for block in response.text.rstrip("\n").split("\n\n"):
        name, data = block.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        found.append((name[7:], json.loads(data[6:])))
    return found


@pytest.fixture
def generating(monkeypatch):
    """Lets the tiny classifier stream its answers."""
    monkeypatch.setattr(models, "GENERATING", frozenset(["text_classification"]))


@pytest.mark.usefixtures("generating")
def test_a_stream_has_an_event_for_each_answer_and_a_last_one(client):
    path = f"/models/{NAME}"
    texts = ["fine film", "dull film", "a"]
    expected = client.post(path, json={"inputs": texts}).json()
    found = events(client.post(f"{path}/stream", json={"inputs": texts}))
    assert [name for name, _ in found] == ["answer"] * 3 + ["done"]
    assert [data["index"] for _, data in found[:-1]] == [0, 1, 2]
    assert [data["answer"] for _, data in found[:-1]] == [[one] for one in expected]
    assert found[-1][1] == {"answers": 3}


@pytest.mark.usefixtures("generating")
def test_errors_of_a_stream(client, export, blocked):
    path = f"/models/{NAME}/stream"
    assert_error(client.post(path, json={"inputs": [1]}), 422, "inputs[0]")
    assert_error(client.post(path, json={"inputs": "x" * 200_000}), 422, "inputs")
    assert_error(client.post(path, json={"inputs": ["a"] * 1000}), 422, "inputs")
    with served({NAME: export}, max_batch=1, timeout_s=0.2) as found:
        event = blocked(found.application)
        (error,) = events(found.post(path, json={"inputs": ["a", "b"]}))
        assert error[0] == "error"
        assert set(error[1]) == {"error", "field"}
        event.set()
        assert found.application.models[NAME]._queue.taken == 0


@pytest.mark.slow
def test_text_and_words_of_a_language_model(tmp_path):
    subject = contract.make_subject("language_modeling", tmp_path)
    writer.write_export(subject.task, subject.config, subject.variables, tmp_path / "export")
    export = Export(tmp_path / "export")
    with served({"text": export}, max_batch=2, timeout_s=120) as client:
        for raw in subject.raw[:3]:
            (answer,) = export([raw])
            found = client.post("/models/text", json={"inputs": raw})
            assert found.status_code == 200, found.text
            if "completion" in answer:
                assert found.json() == [{"generated_text": raw + answer["completion"]}]
                continue
            blanks = found.json() if raw.count(MASK) > 1 else [found.json()]
            for words, given in zip(blanks, answer["blanks"], strict=True):
                assert [one["token_str"] for one in words] == [one["word"] for one in given]
                assert words[0]["sequence"].count(MASK) == raw.count(MASK) - 1
