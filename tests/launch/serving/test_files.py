"""Files that are sent to models of images: forms, base64, limits and errors."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from launch.exports import writer
from launch.exports.reader import Export
from tests.launch.serving.conftest import served
from tests.launch.serving.test_protocol import assert_error
from tests.tasks import contract

NAME = "photos"
PREDICT = f"/models/{NAME}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Writes the export of an image classifier, and returns it with the paths of inputs."""
    folder = tmp_path_factory.mktemp("photos")
    subject = contract.make_subject("image_classification", folder)
    writer.write_export(subject.task, subject.config, subject.variables, folder / NAME)
    return Export(folder / NAME), subject.raw


@pytest.fixture(scope="module")
def client(photos):
    with served({NAME: photos[0]}, max_pixels=1_000_000, max_body_bytes=2**20) as found:
        yield found


def read(path):
    with open(path, "rb") as file:
        return file.read()


def test_answers_to_forms_and_base64_are_those_of_the_reader(client, photos):
    export, paths = photos
    for path, answer in zip(paths, export(paths), strict=True):
        form = client.post(PREDICT, files={"file": ("../../a.png", read(path))})
        assert form.status_code == 200, form.text
        expected = [{"label": k, "score": v} for k, v in answer["probabilities"].items()]
        assert [one["label"] for one in form.json()] == [one["label"] for one in expected]
        for one, other in zip(form.json(), expected, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1.1e-4)
        coded = base64.b64encode(read(path)).decode()
        assert client.post(PREDICT, json={"inputs": coded}).json() == form.json()
        url = f"data:image/png;base64,{coded}"
        (several,) = client.post(PREDICT, json={"inputs": [url]}).json()
        assert several == form.json()
    form = client.post(PREDICT, files={"file": read(paths[0])}, data={"parameters": '{"top_k": 1}'})
    assert len(form.json()) == 1


def test_a_string_is_never_a_path(client, photos):
    for path in (*photos[1][:2], "/etc/passwd", "a.png", "file:///etc/passwd"):
        response = client.post(PREDICT, json={"inputs": str(path)})
        body = assert_error(response, 422, "inputs")
        assert "passwd" not in body["error"]
        assert str(path) not in response.text


def png(width, height):
    """Returns a PNG that declares a size and has no pixels of it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data))  # fmt: skip

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b""))  # fmt: skip


def test_damaged_files_and_bombs(client, photos):
    good = read(photos[1][0])
    for content in (b"", b"abc", good[:40], good[: len(good) // 2], png(30_000, 30_000), png(8, 8),
                    png(2**31 - 1, 2**31 - 1), png(1001, 1000), b"\0" * 1000,
                    b"GIF89a" + b"\xff" * 100, b"RIFF\0\0\0\0WEBPVP8 ", b"<svg/>"):  # fmt: skip
        response = client.post(PREDICT, files={"file": content})
        body = assert_error(response, 422, "file")
        assert "/" not in body["error"].replace("image/", ""), body


def test_images_within_the_limits_of_pixels(client):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((1000, 1000), np.uint8)).save(buffer, "PNG")
    assert client.post(PREDICT, files={"file": buffer.getvalue()}).status_code == 200


def test_malformed_forms(client, photos, caplog):
    good = read(photos[1][0])
    for files, data, field in (
        ({"other": good}, {}, "other"),
        ({"file": good}, {"other": "a"}, "other"),
        ({"file": good}, {"parameters": "{"}, "parameters"),
        ({"file": good}, {"parameters": '{"a": 1}'}, "parameters.a"),
        ({"parameters": b"{}"}, {}, "parameters"),
    ):
        assert_error(client.post(PREDICT, files=files, data=data), 422, field)
    assert_error(client.post(PREDICT, files=[("file", good), ("file", good)]), 400, "body")
    line = b'--x\r\nContent-Disposition: form-data; name="file"'
    for kind, body, statuses in (
        ("multipart/form-data", b"", {400}),
        ("multipart/form-data; boundary=x", b"", {400, 422}),
        ("multipart/form-data; boundary=x", b"abc", {400}),
        ("multipart/form-data; boundary=x", line, {400, 422}),
        ("multipart/form-data; boundary=x", line + b"\r\n\r\nabc\r\n--x--\r\n", {422}),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nabc\r\n--x--\r\n", {400}),
        ("multipart/form-data; boundary=x", b"--x\r\nA\rB: c\r\n\r\nabc\r\n--x--\r\n", {400}),
        ("multipart/form-data; boundary=x; charset=no", line + b"\r\n\r\nabc", {400, 422}),
    ):
        response = client.post(PREDICT, content=body, headers={"Content-Type": kind})
        assert response.status_code in statuses, (kind, body, response.text)
        assert set(response.json()) == {"error", "field"}
    assert not [one for one in caplog.records if one.levelname in ("WARNING", "ERROR")]


def test_a_large_file_is_refused(client):
    assert_error(client.post(PREDICT, files={"file": b"x" * 2**21}), 413)


def test_texts_and_tensors_for_images(client, photos):
    export, _ = photos
    for given in ("é", "a b", "YQ=", "YQ===", "data:image/png;base64,?", 3, [1], None):
        field = "inputs[0]" if isinstance(given, list) else "inputs"
        body, headers = json.dumps({"inputs": given}), {"Content-Type": "application/json"}
        assert_error(client.post(PREDICT, content=body, headers=headers), 422, field)
    (name, spec), *rest = export.signature["inputs"].items()
    shape = [1, *spec["shape"][1:]]
    datatype = {"float32": "FP32", "uint8": "UINT8"}[spec["dtype"]]
    tensor = {"name": name, "shape": shape, "datatype": datatype}
    answer = client.post(
        f"/v2/models/{NAME}/infer",
        json={"inputs": [{**tensor, "data": np.zeros(shape, int).tolist()}]},
    )
    assert not rest
    assert answer.status_code == 200, answer.text
    assert np.sum(answer.json()["outputs"][0]["data"]) == pytest.approx(1, abs=1e-3)
