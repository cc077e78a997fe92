"""Random invalid requests: no answer of the server's own errors, and none that does not come."""

import base64
import copy
import json
import logging
import random

import numpy as np
import pytest

from launch.serving.tensors import metadata
from tests.launch.serving.conftest import KINDS, NAME, served

COUNT = 1000
VALUES = [None, True, False, 0, -1, 1.5, 2**63, 10**400, float("nan"), float("inf"), "", "a",
          "\ud800", "\x00", "x" * 20_000, [], {}, [[]], [None], ["a", None], {"a": {}},
          [[1, 2], [3]], "/etc/passwd", "../../signature.json",
          base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()]  # fmt: skip
KEYS = ["inputs", "parameters", "outputs", "id", "name", "shape", "datatype", "data", "top_k", ""]
OTHERS = ["/v2", "/", "/metrics", "/models", "/openapi.json?x=%ff", "/v2/health/ready",
          "/models/%2e%2e/%2e%2e", "/models/" + "a" * 5000, "/v2/models/%00/infer"]  # fmt: skip
TYPES = ["application/json", "application/json; charset=utf-16", "multipart/form-data",
         "multipart/form-data; boundary=x", "multipart/form-data; boundary=" + "y" * 300,
         "text/plain", "", "a/b/c;;;", "application/x-www-form-urlencoded"]  # fmt: skip


def form(content):
    """Returns the body of a form with a file, whose boundary is x."""
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="../a"\r\n\r\n'
    return head + content + b"\r\n--x--\r\n"


def value(rng, depth=0):
    """Returns a random JSON value."""
    choice = rng.random()
    if depth < 3 and choice < 0.3:
        return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randint(0, 4))}
    if depth < 3 and choice < 0.5:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return rng.choice(VALUES)


def tensors(export):
    """Returns valid inputs of the Open Inference Protocol, with two rows."""
    found = []
    for spec in metadata(export.signature["inputs"]):
        shape = [2 if size == -1 else size for size in spec["shape"]]
        fill = spec["datatype"] == "BOOL" or 1
        found.append({**spec, "shape": shape, "data": np.full(shape, fill).tolist()})
    return {"inputs": found}


def nearly_valid(rng, valid):
    """Returns a request with one random change."""
    given = copy.deepcopy(valid)
    target = given
    while rng.random() < 0.7 and isinstance(target, dict | list) and target:
        inner = rng.choice(list(target.values() if isinstance(target, dict) else target))
        if not isinstance(inner, dict | list) or not inner:
            break
        target = inner
    key = rng.choice(list(target) if isinstance(target, dict) else range(len(target)))
    target[key] = value(rng)
    return given


def damaged(rng, body):
    """Returns bytes with random changes."""
    changed = bytearray(body[:2000])
    for _ in range(rng.randint(1, 5)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randint(0, len(changed))])


def request(rng, kinds):
    """Returns method, address, media type and body of a random request to one of the models."""
    name = rng.choice(list(kinds))
    export, raw = kinds[name]
    method, kind = "POST", "application/json"
    path = rng.choice(["/models/{}", "/models/{}", "/models/{}/attention", "/models/{}/stream",
                       "/v2/models/{}/infer", "/v2/models/{}/infer"]).format(name)  # fmt: skip
    content = raw if isinstance(raw, bytes) else raw.encode()
    coded = raw if isinstance(raw, str) else base64.b64encode(raw[:5000]).decode()
    valid = tensors(export) if path.endswith("infer") else {"inputs": [coded, coded]}
    choice = rng.random()
    if choice < 0.5:
        body = json.dumps(nearly_valid(rng, valid)).encode()
    elif choice < 0.65:
        body = json.dumps(value(rng)).encode()
    elif choice < 0.75:
        body = damaged(rng, json.dumps(valid).encode())
    elif choice < 0.9:
        body, kind = form(damaged(rng, content)), "multipart/form-data; boundary=x"
    else:
        body = damaged(rng, form(content))
    if rng.random() < 0.1:
        method = rng.choice(["GET", "PUT", "HEAD", "PATCH", "DELETE", "OPTIONS"])
    if rng.random() < 0.1:
        path = rng.choice([*OTHERS, f"/v2/models/{name}", f"/v2/models/{name}/ready"])
    if rng.random() < 0.1:
        kind = rng.choice(TYPES)
    return method, path, kind, body


@pytest.mark.slow
def test_random_requests_are_answered_without_server_errors(kinds, caplog):
    rng, seen, reached = random.Random(0), set(), set()
    exports = {name: export for name, (export, _) in kinds.items()}
    with served(exports, max_batch=1, max_body_bytes=2**20) as client, caplog.at_level("WARNING"):
        valid = client.post(f"/models/{NAME}", json={"inputs": "fine"})
        for number in range(COUNT):
            method, path, kind, body = request(rng, kinds)
            headers = {"Content-Type": kind}
            response = client.request(method, path, content=body, headers=headers)
            sent = (number, method, path, kind, body[:200], response.text[:200])
            assert response.status_code < 500, sent
            if response.status_code >= 400 and method != "HEAD":
                assert set(response.json()) == {"error", "field"}, sent
                assert len(response.text) < 2000, sent
                assert "\n" not in response.json()["error"], sent
            seen.add(response.status_code)
            reached.add((path.split("/")[-1], response.status_code == 200))
        assert {200, 400, 404, 405, 415, 422} <= seen
        assert {(name, False) for name in KINDS} <= reached
        again = client.post(f"/models/{NAME}", json={"inputs": "fine"})
        assert again.json() == valid.json()
        assert again.status_code == 200
        for model in client.application.models.values():
            assert model._queue.taken == 0
        assert client.application._bodies._held == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "Traceback" not in caplog.text
