"""Server-sent events: answers after each token."""

import json

import pytest

from launch.exports import writer
from launch.exports.reader import Export
from tests.launch.serving.conftest import served
from tests.tasks import contract


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Returns the subject of a translation model, and its export."""
    folder = tmp_path_factory.mktemp("streamed")
    subject = contract.make_subject("translation", folder)
    writer.write_export(subject.task, subject.config, subject.variables, folder / "translator")
    return subject, Export(folder / "translator")


@pytest.fixture(scope="module")
def streaming(model):
    """Returns a client of the model."""
    with served({"translator": model[1]}, max_batch=2) as client:
        yield client


def events(response):
    """Returns names and values of server-sent events."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_each_token_is_an_event(model, streaming):
    subject, export = model
    found = events(streaming.post("/models/translator/stream", json={"inputs": subject.raw}))
    assert found[-1] == ("done", {"answers": len(subject.raw)})
    for index, raw in enumerate(subject.raw):
        own = [(name, data) for name, data in found[:-1] if data["index"] == index]
        assert [name for name, _ in own] == ["partial"] * (len(own) - 1) + ["answer"]
        texts = [data["answer"][0]["translation_text"] for _, data in own]
        assert texts == [answer["output"] for answer in export.stream(raw)]


def test_a_wrong_input_is_an_error_before_any_event(streaming):
    response = streaming.post("/models/translator/stream", json={"inputs": "word " * 5000})
    assert response.status_code == 422
    assert response.json()["field"] == "inputs"


def test_answers_at_once_are_those_of_the_reader(model, streaming):
    subject, export = model
    found = streaming.post("/models/translator", json={"inputs": subject.raw}).json()
    assert [one["translation_text"] for one in found] == [
        one["output"] for one in export(subject.raw)
    ]
