"""Addresses of the server, in the process of the tests: answers, errors, limits and access."""

import concurrent.futures
import json
import re

import numpy as np
import pytest
from starlette.testclient import TestClient

from launch.serving.app import Application
from launch.serving.options import Options
from tests.launch.serving.conftest import NAME, served

TEXTS = ["fine lovely film", "dull", "", "awful awful 日本語 film", "  \n", "\x00 superb"] * 4
PREDICT, INFER = f"/models/{NAME}", f"/v2/models/{NAME}/infer"


def tensor(data, shape=None, name="tokens", datatype="INT32"):
    shape = np.shape(data) if shape is None else shape
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": data}


def inference(tokens=((3, 4, 5),), lengths=(3,)):
    return {"inputs": [tensor([list(row) for row in tokens]),
                       tensor(list(lengths), name="length")]}  # fmt: skip


def assert_error(response, status, field=None, words=""):
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error", "field"}
    assert "\n" not in body["error"]
    assert words in body["error"]
    assert body["field"] == field
    return body


# ---------------------------------------------------------------- Open Inference Protocol


def test_server_and_health(client):
    assert client.get("/v2").json() == {"name": "attention", "version": "1", "extensions": []}
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get(f"/v2/models/{NAME}/ready").json() == {"name": NAME, "ready": True}


def test_metadata_of_a_model(client):
    assert client.get(f"/v2/models/{NAME}").json() == {
        "name": NAME,
        "versions": ["1"],
        "platform": "jax_stablehlo",
        "inputs": [
            {"name": "tokens", "datatype": "INT32", "shape": [-1, -1]},
            {"name": "length", "datatype": "INT32", "shape": [-1]},
        ],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}],
    }


def test_inference_has_the_outputs_of_the_reader(client, export):
    rows = [row for text in TEXTS[:3] for row in export.encode(text).rows]
    longest = max(len(row["tokens"]) for row in rows)
    tokens = [np.pad(row["tokens"], (0, longest - len(row["tokens"]))).tolist() for row in rows]
    given = {**inference(tokens, [len(row["tokens"]) for row in rows]), "id": "one"}
    answer = client.post(INFER, json=given)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["model_name"], found["id"]) == (NAME, "one")
    (output,) = found["outputs"]
    assert (output["name"], output["datatype"]) == ("probabilities", "FP32")
    assert output["shape"] == [3, 2]
    expected = [one["probabilities"] for one in export.run(rows)]
    values = np.reshape(output["data"], (3, 2))
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    given["inputs"][0]["data"] = [token for row in tokens for token in row]
    given["outputs"] = [{"name": "probabilities"}]
    flat = client.post(INFER, json=given).json()["outputs"][0]["data"]
    np.testing.assert_allclose(flat, output["data"], rtol=1e-6)


WRONG_TENSORS = {
    "nan": ([tensor([[3.0, float("nan")]], name="tokens")], "inputs[0].data"),
    "text": ([tensor([["a", "b"]], [1, 2])], "inputs[0].data"),
    "bool": ([tensor([[True, False]])], "inputs[0].data"),
    "fraction": ([tensor([[1.5]])], "inputs[0].data"),
    "overflow": ([tensor([[2**31]])], "inputs[0].data"),
    "huge": ([tensor([[10**400]], [1, 1])], "inputs[0].data"),
    "count": ([tensor([1, 2, 3], [1, 2])], "inputs[0].data"),
    "ragged": ([tensor([[1, 2], [3]], [2, 2])], "inputs[0].data"),
    "no data": ([{"name": "tokens", "shape": [1, 1], "datatype": "INT32"}], "inputs[0].data"),
    "rank": ([tensor([1], [1])], "inputs[0].shape"),
    "zero": ([tensor([], [0, 2])], "inputs[0].shape"),
    "negative": ([tensor([], [-1, 2])], "inputs[0].shape"),
    "fractional shape": ([tensor([], [1.0, 2])], "inputs[0].shape"),
    "too long": ([tensor([[1] * 5000])], "inputs[0].shape"),
    "too many": ([tensor([[1]] * 5000)], "inputs[0].shape"),
    "huge shape": ([tensor([1], [2**62, 2**62])], "inputs[0].shape"),
    "datatype": ([tensor([[1]], datatype="INT64")], "inputs[0].datatype"),
    "unknown": ([tensor([[1]], name="other")], "inputs[0].name"),
    "name": ([tensor([[1]], name=[1])], "inputs[0].name"),
    "twice": ([tensor([[1]]), tensor([[1]])], "inputs[1].name"),
    "batch": ([tensor([[1]]), tensor([1, 1], name="length")], "inputs[1].shape"),
    "missing": ([tensor([[1]])], "inputs"),
    "none": ([], "inputs"),
    "object": ({}, "inputs"),
    "string": ("tokens", "inputs"),
    "no object": ([1], "inputs[0]"),
    "unknown key": ([{**tensor([[1]]), "more": 1}], "inputs[0].more"),
    "binary": ([{**tensor([[1]]), "parameters": {"binary_data_size": 4}}],
               "inputs[0].parameters"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_wrong_tensors_are_refused_by_name(client, case):
    inputs, field = WRONG_TENSORS[case]
    assert_error(client.post(INFER, content=json.dumps({"inputs": inputs}),
                             headers={"Content-Type": "application/json"}), 422, field)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": 1}, "id"),
        ({"outputs": [{"name": "other"}]}, "outputs[0].name"),
        ({"outputs": []}, "outputs"),
        ({"outputs": [1]}, "outputs[0]"),
        ({"parameters": {"binary_data_output": True}}, "parameters"),
        ({"more": 1}, "more"),
    ],
)
def test_wrong_fields_of_inference(client, change, field):
    assert_error(client.post(INFER, json={**inference(), **change}), 422, field)


# ---------------------------------------------------------------- tasks


def test_classes_have_the_shape_of_hugging_face(client, export):
    (expected,) = export([TEXTS[0]])
    (found,) = client.post(PREDICT, json={"inputs": TEXTS[0]}).json()
    assert [one["label"] for one in found] == list(expected["probabilities"])
    scores = [one["score"] for one in found]
    assert scores == pytest.approx(list(expected["probabilities"].values()), abs=1.1e-4)
    several = client.post(PREDICT, json={"inputs": TEXTS[:2]}).json()
    assert several[0] == found
    (best,) = client.post(PREDICT, json={"inputs": TEXTS[0], "parameters": {"top_k": 1}}).json()
    assert best == found[:1]


def test_requests_in_parallel_have_the_answers_of_the_reader(client, export):
    expected = export(TEXTS)

    def ask(text):
        return client.post(PREDICT, json={"inputs": text})

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, TEXTS))
    for response, answer in zip(found, expected, strict=True):
        assert response.status_code == 200
        scores = {one["label"]: one["score"] for one in response.json()[0]}
        assert scores == pytest.approx(answer["probabilities"], abs=1.1e-4)


def test_attention_of_a_text(client, export):
    text = "fine lovely film"
    found = client.post(f"{PREDICT}/attention", json={"inputs": text}).json()
    (row,) = export.encode(text).rows
    assert len(found["tokens"]) == len(row["tokens"])
    # A word also stands among its character n-grams.
    words = [token for token in found["tokens"] if token in text.split()]
    assert list(dict.fromkeys(words)) == text.split()
    assert found["words"] == text.split()
    assert len(found["spans"]) == len(found["tokens"])
    for token, (first, end) in zip(found["tokens"], found["spans"], strict=True):
        of = " ".join(found["words"][first:end])
        assert token == "[UNK]" or token.strip("_") in of, (token, of)
    (outputs,) = export.run([row], "attention")
    assert set(found["attention"]) == set(outputs)
    for name, array in outputs.items():
        given = found["attention"][name]
        assert given["shape"][-1] == len(row["tokens"])
        values = np.reshape(given["data"], given["shape"])
        expected = array[..., : len(row["tokens"])]
        np.testing.assert_allclose(values, expected, atol=2e-5)
        np.testing.assert_allclose(values.sum(-1), 1, atol=1e-3)


def test_a_model_that_generates_no_text_has_no_stream(client):
    assert_error(client.post(f"{PREDICT}/stream", json={"inputs": "a"}), 404, "name")


WRONG_INPUTS = [
    ({}, "inputs"),
    ({"inputs": None}, "inputs"),
    ({"inputs": 1}, "inputs"),
    ({"inputs": {"path": "/etc/passwd"}}, "inputs"),
    ({"inputs": []}, "inputs"),
    ({"inputs": ["a", 1]}, "inputs[1]"),
    ({"inputs": ["a", ["b"]]}, "inputs[1]"),
    ({"inputs": ["a"] * 10_000}, "inputs"),
    ({"inputs": "\ud800"}, "inputs"),
    ({"inputs": "a", "options": {}}, "options"),
    ({"inputs": "a", "parameters": 1}, "parameters"),
    ({"inputs": "a", "parameters": {"top_k": 0}}, "parameters.top_k"),
    ({"inputs": "a", "parameters": {"top_k": True}}, "parameters.top_k"),
    ({"inputs": "a", "parameters": {"top_k": 1.5}}, "parameters.top_k"),
    ({"inputs": "a", "parameters": {"other": 1}}, "parameters.other"),
    (["a"], "body"),
    ("a", "body"),
    (None, "body"),
]


@pytest.mark.parametrize(("given", "field"), WRONG_INPUTS)
def test_wrong_inputs_are_refused_by_name(client, given, field):
    body = json.dumps(given)
    headers = {"Content-Type": "application/json"}
    assert_error(client.post(PREDICT, content=body, headers=headers), 422, field)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b'{"inputs": "\xff"}', b"[" * 100_000, b"1" * 5000, b"{'a': 1}"],
    ids=lambda body: repr(body[:10]),
)
def test_bodies_that_are_no_json(client, body):
    headers = {"Content-Type": "application/json"}
    assert_error(client.post(PREDICT, content=body, headers=headers), 400, "body")


def test_other_content_types(client):
    for kind in ("text/plain", "", "application/x-www-form-urlencoded", "image/png"):
        response = client.post(PREDICT, content=b"{}", headers={"Content-Type": kind})
        assert_error(response, 415, "Content-Type")
    response = client.post(PREDICT, files={"file": b"abc"})
    assert_error(response, 415, "Content-Type")
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert_error(client.post(PREDICT, content=b"{}", headers=headers), 415, "Content-Encoding")


def test_unknown_addresses_and_methods(client):
    for path in ("/nope", "/models/other/nope", "/v2/", "/models/..%2f..%2fetc", "/%00"):
        assert_error(client.get(path), 404)
    for path in ("/models/other", "/v2/models/other/infer", "/models/other/stream"):
        assert_error(client.post(path, json={}), 404, "name")
    assert_error(client.get("/v2/models/other"), 404, "name")
    for method, path in (("GET", PREDICT), ("DELETE", "/v2"), ("PUT", INFER), ("POST", "/")):
        response = client.request(method, path)
        assert_error(response, 405)
        assert response.headers["Allow"]


# ---------------------------------------------------------------- limits


def test_limits_of_bodies_and_texts(export):
    with served({NAME: export}, max_body_bytes=1000, max_text=20) as found:
        assert_error(found.post(PREDICT, json={"inputs": "x" * 1000}), 413)
        parts = iter([b'{"inputs": "', b"x" * 600, b"x" * 600, b'"}'])
        headers = {"Content-Type": "application/json"}
        # Without Content-Length.
        assert_error(found.post(PREDICT, content=parts, headers=headers), 413)
        assert_error(found.post(PREDICT, json={"inputs": ["a", "x" * 21]}), 422, "inputs[1]")
        assert found.post(PREDICT, json={"inputs": "x" * 20}).status_code == 200
        assert found.application._bodies._held == 0


def test_a_full_queue_and_a_deadline(export, blocked):
    with served({NAME: export}, max_queue=4, max_batch=1, timeout_s=0.5) as found:
        event = blocked(found.application)
        (model,) = found.application.models.values()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(found.post, PREDICT, json={"inputs": "a"}) for _ in range(4)]
            for _ in range(500):
                if model._queue.taken == 4:
                    break
                event.wait(0.01)
            assert model._queue.taken == 4
            response = found.post(PREDICT, json={"inputs": "b"})
            assert_error(response, 429)
            assert int(response.headers["Retry-After"]) >= 1
            for future in waiting:
                assert_error(future.result(30), 504, None, "0.5 seconds")
        event.set()
        assert model._queue.taken == 0
        assert found.post(PREDICT, json={"inputs": "a"}).status_code == 200
        assert_error(found.post(PREDICT, json={"inputs": ["a"] * 5}), 422, "inputs")


def test_not_ready_until_programs_are_compiled(export, monkeypatch):
    import threading

    from launch.serving.models import Model

    event, compiled = threading.Event(), Model._compile
    monkeypatch.setattr(Model, "_compile", lambda self: event.wait(30) and compiled(self))
    with served({NAME: export}, wait=False) as found:
        assert found.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", f"/v2/models/{NAME}/ready"):
            assert_error(found.get(path), 503)
        response = found.post(PREDICT, json={"inputs": "a"})
        assert_error(response, 503)
        assert response.headers["Retry-After"]
        event.set()


def test_a_failing_program_is_an_error_of_the_server_without_details(export, monkeypatch):
    def broken(*_):
        raise RuntimeError(f"out of memory in {export.folder}")

    with served({NAME: export}, max_batch=1) as found:
        (model,) = found.application.models.values()
        # Of both threads that run programs.
        monkeypatch.setattr(model._batcher, "_run", broken)
        monkeypatch.setattr(model, "_run", broken)
        response = found.post(PREDICT, json={"inputs": "a"})
        assert_error(response, 500)
        assert "memory" not in response.text
        monkeypatch.undo()
        assert found.post(PREDICT, json={"inputs": "a"}).status_code == 200


# ---------------------------------------------------------------- access, metrics, page


def test_a_token_guards_all_but_health_and_the_page(export):
    application = Application({NAME: export}, Options(token="sécret"))
    found = TestClient(application.asgi())
    for path in ("/", "/v2/health/live"):
        assert found.get(path).status_code == 200
    assert found.get("/v2/health/ready").status_code == 503
    guarded = ("/v2", "/models", "/metrics", "/openapi.json", "/v2/models/x", "/nope")
    for path in guarded:
        for given in (None, "Bearer secret", "sécret", "Basic sécret", "Bearer "):
            header = {} if given is None else {"Authorization": given}
            encoded = {key: value.encode() for key, value in header.items()}
            response = found.get(path, headers=encoded)
            assert_error(response, 401, "Authorization")
            assert response.headers["WWW-Authenticate"] == "Bearer"
        headers = {"Authorization": "bearer sécret".encode()}
        assert found.get(path, headers=headers).status_code in (200, 404)


def test_other_origins_are_refused_unless_one_is_allowed(export):
    origin = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    for allowed in ("", "https://example.org"):
        options = Options(cors_origin=allowed, token="t")
        found = TestClient(Application({NAME: export}, options).asgi())
        preflight = found.options(PREDICT, headers=origin)
        assert preflight.status_code == (200 if allowed else 401)
        for response in (preflight, found.get("/v2", headers=origin)):
            value = response.headers.get("Access-Control-Allow-Origin", "")
            assert value == allowed
        other = found.get("/", headers={"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in other.headers


def test_metrics_count_batches_answers_and_errors(client):
    client.post(PREDICT, json={"inputs": ["a", "b"]})
    client.post(PREDICT, json={})
    response = client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    text = response.text
    for line in (
        r'attention_responses_total\{route="/models/\{name\}",status="200"\} [1-9]',
        r'attention_responses_total\{route="/models/\{name\}",status="422"\} [1-9]',
        rf'attention_queue_length\{{model="{NAME}"\}} 0',
        rf'attention_batch_rows_count\{{model="{NAME}"\}} [1-9]',
        rf'attention_request_seconds_count\{{model="{NAME}"\}} [1-9]',
        rf'attention_model_ready\{{model="{NAME}"\}} 1',
    ):
        assert re.search(line, text), line


def test_the_page_has_no_external_resource_and_only_its_own_script(client):
    response = client.get("/")
    assert response.headers["Content-Type"].startswith("text/html")
    assert not re.search(r"(?:src|href|url|import)\s*[=(]\s*[\"']?(?:https?:)?//", response.text)
    assert not re.search(r"\son\w+=|\sstyle=", response.text), "the policy forbids it"
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for control in re.findall(r"<(?:input|select|textarea)[^>]*id=\"(\w+)\"", response.text):
        assert f'for="{control}"' in response.text, f"{control} has no label"


def test_no_response_has_a_path_of_the_server(client, export):
    responses = [
        client.get(path)
        for path in ("/", "/models", "/v2", f"/v2/models/{NAME}", "/openapi.json", "/metrics")
    ]
    responses += [client.post(PREDICT, json={"inputs": text}) for text in ("a", "", "x" * 3000)]
    headers = {"Content-Type": "application/json"}
    for given, _ in WRONG_INPUTS:
        responses.append(client.post(PREDICT, content=json.dumps(given), headers=headers))
    for response in responses:
        for path in (str(export.folder), str(export.folder.parent), "/launch/", "Traceback"):
            assert path not in response.text


# ---------------------------------------------------------------- description


def test_the_document_describes_every_address(client):
    document = client.get("/openapi.json").json()
    routes = {
        (route.path, method.lower())
        for route in client.app.routes
        for method in route.methods - {"HEAD"}
    }
    described = {
        (path, method)
        for path, operations in document["paths"].items()
        for method in operations.keys() - {"parameters"}
    }
    assert described == routes
    names = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert names == set(document["components"]["schemas"])


TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
         "integer": int, "number": (int, float)}  # fmt: skip


def check_schema(value, schema, document, where="body"):
    """Checks a value by the keywords of JSON Schema that the document uses."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(isinstance(value, TYPES[kind]) for kind in kinds), (where, value)
    assert value in schema.get("enum", [value]), (where, value)
    assert value == schema.get("const", value), (where, value)
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        assert set(schema.get("required", [])) <= set(value), where
        for key, one in value.items():
            rest = schema.get("additionalProperties", True)
            assert key in properties or rest is not False, (where, key)
            inner = properties.get(key, rest if isinstance(rest, dict) else {})
            check_schema(one, inner, document, f"{where}.{key}")
    if isinstance(value, list):
        for one in value:
            check_schema(one, schema.get("items", {}), document, f"{where}[]")


def test_responses_follow_the_document(client):
    document = client.get("/openapi.json").json()

    def check(path, method, response):
        described = document["paths"][path][method]["responses"][str(response.status_code)]
        schema = described["content"]["application/json"]["schema"]
        check_schema(response.json(), schema, document)

    for path in ("/v2", "/models", "/v2/health/live", "/v2/health/ready"):
        check(path, "get", client.get(path))
    check("/v2/models/{name}", "get", client.get(f"/v2/models/{NAME}"))
    for given, _ in WRONG_INPUTS:
        body, headers = json.dumps(given), {"Content-Type": "application/json"}
        check("/models/{name}", "post", client.post(PREDICT, content=body, headers=headers))
    check("/models/{name}", "post", client.post(PREDICT, json={"inputs": "a"}))
    check("/v2/models/{name}/infer", "post", client.post(INFER, json=inference()))
    attention = client.post(f"{PREDICT}/attention", json={"inputs": "a"})
    check("/models/{name}/attention", "post", attention)
    with pytest.raises(AssertionError):
        check_schema({"error": 1, "field": None}, {"$ref": "#/Error"}, document)
