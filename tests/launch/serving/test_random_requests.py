"""Random invalid requests: no answer of the server's own errors, and none that does not come."""

import base64
import json
import random

import pytest

from tests.launch.serving.conftest import NAME

COUNT = 400
VALUES = [None, True, False, 0, -1, 1.5, 2**63, 10**400, float("nan"), float("inf"), "", "a",
          "\ud800", "\x00", "x" * 200_000, [], {}, [[]], [None], ["a", None], {"a": {}},
          [[1, 2], [3]], "/etc/passwd", "../../signature.json",
          base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()]  # fmt: skip
KEYS = ["inputs", "parameters", "outputs", "id", "name", "shape", "datatype", "data", "top_k", ""]
PATHS = [f"/models/{NAME}", f"/models/{NAME}/attention", f"/models/{NAME}/stream",
         f"/v2/models/{NAME}/infer", f"/v2/models/{NAME}", "/v2", "/", "/metrics",
         "/models/%2e%2e/%2e%2e", "/models/" + "a" * 5000, "/openapi.json?x=%ff"]  # fmt: skip
TYPES = ["application/json", "application/json; charset=utf-16", "multipart/form-data",
         "multipart/form-data; boundary=x", "multipart/form-data; boundary=" + "y" * 300,
         "text/plain", "", "a/b/c;;;", "application/x-www-form-urlencoded"]  # fmt: skip
FORM = (b'--x\r\nContent-Disposition: form-data; name="file"; filename="../a"\r\n\r\n'
        b"abc\r\n--x--\r\n")  # fmt: skip


def value(rng, depth=0):
    """Returns a random JSON value."""
    choice = rng.random()
    if depth < 3 and choice < 0.3:
        return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randint(0, 4))}
    if depth < 3 and choice < 0.5:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return rng.choice(VALUES)


def nearly_valid(rng):
    """Returns a request of tensors or texts with one random change."""
    tensors = [
        {"name": "tokens", "shape": [2, 2], "datatype": "INT32", "data": [[1, 2], [3, 4]]},
        {"name": "length", "shape": [2], "datatype": "INT32", "data": [2, 2]},
    ]
    given = rng.choice([{"inputs": tensors}, {"inputs": ["a", "b"]}])
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


@pytest.mark.slow
def test_random_requests_are_answered_without_server_errors(client):
    rng = random.Random(0)
    seen = set()
    for number in range(COUNT):
        body = json.dumps(nearly_valid(rng) if rng.random() < 0.6 else value(rng)).encode()
        if rng.random() < 0.3:
            body = damaged(rng, rng.choice([body, FORM]))
        kind = "application/json" if rng.random() < 0.7 else rng.choice(TYPES)
        method = "POST" if rng.random() < 0.9 else rng.choice(["GET", "PUT", "HEAD", "PATCH"])
        path = rng.choice(PATHS[:4]) if rng.random() < 0.8 else rng.choice(PATHS)
        response = client.request(method, path, content=body, headers={"Content-Type": kind})
        assert response.status_code < 500, (number, method, path, kind, body[:200], response.text)
        if response.status_code >= 400 and method != "HEAD":
            assert set(response.json()) == {"error", "field"}
            assert len(response.text) < 2000
        seen.add(response.status_code)
    assert {200, 400, 404, 405, 415, 422} <= seen
    assert client.post(PATHS[0], json={"inputs": "fine"}).status_code == 200
    assert client.application.models[NAME]._accepted == 0
