"""Choice of the thread and the size of batches, and answers of both threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from launch.serving.metrics import Metrics
from launch.serving.models import Model
from launch.serving.options import Options
from tests.launch.serving.conftest import NAME, served

KEY = ("predict", 0)
TEXTS = [f"a {'very ' * n}good film" for n in range(12)] + ["", "x" * 2000]


@pytest.mark.parametrize(
    ("seconds", "is_short", "limit"),
    [
        # A short row in a short batch, and in a long one, whose size still pays.
        ({1: 0.0001, 8: 0.0004}, True, None),
        ({1: 0.001, 8: 0.006}, False, None),
        # Rows take as long in larger batches, longer, or less.
        ({1: 0.01, 2: 0.02, 4: 0.04, 8: 0.08}, False, 1),
        ({1: 0.01, 2: 0.015, 4: 0.06, 8: 0.001}, False, 2),
        ({1: 0.01, 2: 0.011, 4: 0.013, 8: 0.018}, False, 8),
    ],
)
def test_choice(export, monkeypatch, seconds, is_short, limit):
    model = Model(NAME, export, Options(max_batch=8), Metrics(8))
    monkeypatch.setattr(model, "_seconds_of", lambda key, row, size: seconds[size])
    model._choose(KEY, {})
    assert model._short == ({KEY} if is_short else set())
    assert model._batcher._limits.get(KEY) == limit


@pytest.mark.parametrize("is_short", [True, False])
def test_answers_of_requests_at_once(export, is_short):
    expected = [answer["probabilities"] for answer in export(TEXTS)]
    with served({NAME: export}) as client:
        model = client.application.models[NAME]
        keys = {("predict", n) for n in range(len(export.signature["programs"]["predict"]))}
        model._short, model._all_short = (keys if is_short else set()), is_short

        def ask(inputs):
            return client.post(f"/models/{NAME}", json={"inputs": inputs}).json()

        with ThreadPoolExecutor(8) as pool:
            single, together = pool.map(ask, TEXTS), ask(TEXTS)
        for found in ([one for (one,) in single], together):
            for rows, wanted in zip(found, expected, strict=True):
                scores = {row["label"]: row["score"] for row in rows}
                assert scores == pytest.approx(wanted, abs=2e-4)
        assert model._queue.taken == 0


@pytest.mark.parametrize("is_short", [True, False])
def test_an_error_fails_the_requests_of_its_batch(export, monkeypatch, is_short):
    def broken(*_):
        raise RuntimeError("out of memory")

    with served({NAME: export}) as client:
        model = client.application.models[NAME]
        keys = {("predict", n) for n in range(len(export.signature["programs"]["predict"]))}
        model._short, model._all_short = (keys if is_short else set()), is_short
        monkeypatch.setattr(model._batcher, "_run", broken)
        monkeypatch.setattr(model, "_run", broken)
        response = client.post(f"/models/{NAME}", json={"inputs": ["a", "b"]})
        assert response.status_code == 500
        monkeypatch.undo()
        assert client.post(f"/models/{NAME}", json={"inputs": "a"}).status_code == 200
