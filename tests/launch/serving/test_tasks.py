"""Every other task over HTTP: the answers of the reader, in the shapes of the tasks."""

import io
import json

import numpy as np
import pytest
import soundfile

from launch.exports import writer
from launch.exports.reader import Export
from launch.serving.responses import as_json
from tests.launch.serving.conftest import served
from tests.launch.serving.test_protocol import assert_error
from tests.tasks import contract

# Task -> keys of an answer, or of the first one of a list.
SHAPES = {
    "detection": {"label", "score", "box"},
    "forecasting": {"input", "times", "forecast"},
    "handwriting_recognition": {"generated_text"},
    "recommendation": {"input", "recommendations"},
    "segmentation": {"input", "size", "masks"},
    "sequence_copy": {"input", "output"},
    "speech_recognition": {"text"},
}


def sound(seconds, rate=8000):
    """Returns a WAV file of a tone."""
    buffer = io.BytesIO()
    tone = np.sin(np.arange(int(seconds * rate)) / 5) / 2
    soundfile.write(buffer, tone.astype(np.float32), rate, format="WAV")
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("task", SHAPES)
def test_answers_are_those_of_the_reader(tmp_path, task):
    subject = contract.make_subject(task, tmp_path)
    writer.write_export(subject.task, subject.config, subject.variables, tmp_path / "export")
    export = Export(tmp_path / "export")
    with served({task: export}, max_batch=1, timeout_s=120, max_sound_s=5) as client:
        path, raw = f"/models/{task}", subject.raw[0]
        if export.kind == "text":
            response = client.post(path, json={"inputs": raw})
        else:
            assert_error(client.post(path, json={"inputs": raw}), 422, "inputs")
            assert_error(client.post(path, files={"file": b"abc"}), 422, "file")
            with open(raw, "rb") as file:
                raw = file.read()
            response = client.post(path, files={"file": raw})
        assert response.status_code == 200, response.text
        found = response.json()
        (answer,) = export([raw])
        first = found[0] if isinstance(found, list) and found else found
        assert not first or set(first) >= SHAPES[task], first
        if task in ("forecasting", "recommendation", "segmentation", "sequence_copy"):
            assert found == json.loads(as_json(answer))
        elif task == "detection":
            assert [one["score"] for one in found] == [one["score"] for one in answer["objects"]]
        else:
            assert next(iter(first.values())) == answer["output"]
        assert str(tmp_path) not in response.text
        if export.kind == "sound":
            assert_error(client.post(path, files={"file": sound(6)}), 422, "file", "6.0 seconds")
