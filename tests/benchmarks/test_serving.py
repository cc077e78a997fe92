"""Load test of the server: comparison of answers, statistics, the client, and the page."""

import json
import math
import socket
import threading

import numpy as np
import pytest

from benchmarks import load, report, serving
from launch.exports.reader import run_lengths
from tests.benchmarks.test_report import MACHINE


def test_scores_may_differ_by_rounding_alone():
    def answer(a, b):
        rows = [{"label": "a", "score": a}, {"label": "b", "score": b}]
        return [sorted(rows, key=lambda row: -row["score"])]

    assert serving.are_equal_scores(answer(0.7, 0.3), answer(0.7001, 0.2999))
    # The order of nearly equal scores.
    assert serving.are_equal_scores(answer(0.5, 0.5), answer(0.4999, 0.5001))
    assert not serving.are_equal_scores(answer(0.7, 0.3), answer(0.701, 0.299))
    assert not serving.are_equal_scores(answer(0.7, 0.3)[0], answer(0.7, 0.3))
    assert not serving.are_equal_scores([answer(0.7, 0.3)[0][:1]], answer(0.7, 0.3))
    assert not serving.are_equal_scores([answer(0.7, 0.3)[0][::-1]], answer(0.7, 0.3))
    assert not serving.are_equal_scores({"error": "no"}, answer(0.7, 0.3))


def test_masks_may_differ_in_single_pixels():
    def answer(labels):
        masks = {name: run_lengths(labels == n) for n, name in enumerate(("road", "sky"))}
        return {"size": list(labels.shape), "masks": json.loads(json.dumps(masks))}

    labels = np.random.default_rng(0).integers(0, 2, (50, 60))
    assert (serving.label_maps(answer(labels)) == np.array(["road", "sky"], object)[labels]).all()
    other = labels.copy()
    other[:1, :3] = 1 - other[:1, :3]
    assert serving.are_equal_masks(answer(other), answer(labels))
    other[:1, :10] = 1 - labels[:1, :10]
    assert not serving.are_equal_masks(answer(other), answer(labels))
    assert not serving.are_equal_masks(answer(labels.T), answer(labels))
    assert not serving.are_equal_masks([], answer(labels))


def rounds(*seconds):
    bodies = [b'{"x": 1}', b'{"x": 2}']
    return [
        serving.Round(2.0, [load.Answer(n, one, 200, bodies[n % 2]) for n in range(4)])
        for one in seconds
    ]


def test_ratios_are_of_the_rounds():
    found = serving.summarize(rounds(0.1, 0.3), rounds(0.2, 0.2))
    assert math.isclose(found["p50_ms"], 200.0)
    assert found["requests_per_second"] == 2.0
    assert found["p50_ratio"] == 1.0
    assert found["p50_ratio_range"] == [0.5, 1.5]
    assert found["requests_ratio_range"] == [1.0, 1.0]
    same = rounds(0.1)
    assert "p50_ratio" not in serving.summarize(same, same)


def test_wrong_answers_are_counted(capsys):
    def equal(answer, expected):
        return answer == expected

    given = rounds(0.1)
    assert serving.check(given, [{"x": 1}, {"x": 2}], equal) == {"answers": 4, "wrong": 0}
    assert serving.check(given, [{"x": 1}, {"x": 1}], equal) == {"answers": 4, "wrong": 2}
    assert capsys.readouterr().err.count("wrong: 200") == 1


@pytest.fixture
def echo():
    """Starts a server that returns the body of each request in two parts; yields its port."""
    opened = socket.create_server(("127.0.0.1", 0))

    def serve(client):
        with client:
            data = b""
            while part := client.recv(1 << 16):
                data += part
                head, separator, body = data.partition(b"\r\n\r\n")
                size = int(head.rpartition(b"Content-Length: ")[2]) if separator else math.inf
                if len(body) >= size:
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                    client.sendall(body)
                    data = b""

    def accept():
        while True:
            try:
                client, _ = opened.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield opened.getsockname()[1]
    opened.close()


@pytest.mark.parametrize("clients", [1, 3, 20])
def test_the_client_gets_the_answer_of_each_request(echo, clients):
    requests = [load.json_request("/x", n) for n in range(4)]
    requests.append(load.form_request("/x", bytes(300_000)))
    answers = load.send(echo, requests, 12, clients)
    assert sorted(answer.number for answer in answers) == list(range(12))
    for answer in answers:
        kind = answer.number % 5
        assert answer.status == 200
        assert answer.seconds > 0
        if kind < 4:
            assert json.loads(answer.body) == kind
        else:
            assert bytes(300_000) in answer.body


def test_page():
    def way(**more):
        times = {"p50_ms": 20.5, "p99_ms": 60.0, "requests_per_second": 1500.0}
        return times | {"answers": 2000, "wrong": 0} | more

    ratios = {"p50_ratio": 0.8, "p50_ratio_range": [0.7, 0.9]}
    ratios |= {"requests_ratio": 1.2, "requests_ratio_range": [1.1, 1.3]}
    row = {
        "model": "movie_reviews",
        "base": "PyTorch and Starlette",
        "target": 1.0,
        "ways": {"batches": way(**ratios), "PyTorch and Starlette": way(wrong=1)},
    }
    section = {
        "machine": MACHINE,
        "command": "python -m benchmarks.serving",
        "rows": [row],
        "requests": 2000,
        "clients": 32,
    }
    page = report.markdown({"cpu": {"serving": json.loads(json.dumps(section))}})
    assert (
        "| movie_reviews | batches | 20.5 | 60 | 1,500 | 0.80 (0.70 to 0.90) | "
        "1.20 (1.10 to 1.30) | 1: met | 0 of 2,000 |" in page
    )
    assert "| 1 | 1 |  | 1 of 2,000 |" in page
    assert "1 of 2000 answers wrong" in serving.show(row)
