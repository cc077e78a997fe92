"""Requests that schemathesis generates from the description of the server's addresses."""

import time

import hypothesis
import pytest

from launch.exports.reader import Export
from launch.serving.app import Application
from launch.serving.options import Options
from tests.launch.serving.test_server import listening

schemathesis = pytest.importorskip("schemathesis", reason="requirements-dev.txt is not installed")
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

pytestmark = pytest.mark.slow
# Seconds for requests of one kind to one address; a few are always sent.
SECONDS, EXAMPLES, FEW = 7.0, 60, 5
# Statuses of overload, which are in the document, and which this one client must not see.
UNEXPECTED = {429, 503, 504}


@pytest.fixture(scope="module")
def port(kinds):
    exports: dict[str, Export] = {name: export for name, (export, _) in kinds.items()}
    options = Options(max_batch=1, timeout_s=20, client_timeout_s=5, max_body_bytes=2**20)
    with listening(Application(exports, options), options) as (port, _):
        yield port


def test_responses_to_generated_requests_follow_the_document(port, caplog):
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 12
    start, statuses = time.monotonic(), {}
    for operation in operations:
        seen = statuses.setdefault(operation.label, set())
        for mode in schemathesis.GenerationMode:
            check(operation, mode, seen)
        assert seen, operation.label
    assert {200, 422} & statuses["POST /models/{name}"]
    assert {400, 422} & statuses["POST /v2/models/{name}/infer"]
    assert not UNEXPECTED & set.union(*statuses.values())
    assert "Traceback" not in caplog.text
    assert time.monotonic() - start < 300


def check(operation, mode, seen):
    """Sends generated requests to an address for a while, and validates the responses."""
    deadline, count = time.monotonic() + SECONDS, 0

    @hypothesis.seed(0)
    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def send(case):
        nonlocal count
        count += 1
        if count > FEW and time.monotonic() > deadline:
            return
        response = case.call(timeout=30)
        seen.add(response.status_code)
        # No schema of JSON tells whether a string is base64 of an image.
        case.validate_response(response, excluded_checks=[positive_data_acceptance])

    try:
        send()
    except hypothesis.errors.Unsatisfiable:
        # A request without parameters and body cannot be invalid.
        assert mode == schemathesis.GenerationMode.NEGATIVE
