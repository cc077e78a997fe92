"""Metrics of the server for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters, gauges and histograms of one server.

    Attributes:
      responses: number of responses by route and status.
      seconds: seconds from a request to its response, by model.
      program_seconds: seconds that each batch ran, by model.
      batch_rows: number of rows of each batch without padding, by model.
      queue: number of inputs that are accepted and not yet answered, by model.
      waiting: number of queued rows that are not yet in a batch, by model.
      ready: 1 if the programs of a model are compiled, else 0.
    """

    def __init__(self, max_batch: int):
        """Creates the metrics; `max_batch` is the maximum number of rows in a batch."""
        self._registry = registry = CollectorRegistry()
        sizes = [1 << power for power in range(max_batch.bit_length())]
        self.responses = Counter(
            "attention_responses", "Responses by route and status.",
            ["route", "status"], registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "attention_request_seconds", "Seconds from a request to its response.",
            ["model"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.program_seconds = Histogram(
            "attention_program_seconds", "Seconds that a batch ran.",
            ["model"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.batch_rows = Histogram(
            "attention_batch_rows", "Rows of a batch, without padding.",
            ["model"], buckets=sizes, registry=registry,
        )  # fmt: skip
        self.queue = Gauge(
            "attention_queue_length", "Inputs that are accepted and not yet answered.",
            ["model"], registry=registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "attention_waiting_rows", "Rows that wait for a batch.", ["model"], registry=registry
        )
        self.ready = Gauge(
            "attention_model_ready", "1 if the programs of a model are compiled.",
            ["model"], registry=registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """Returns all metrics in the exposition format of Prometheus."""
        return generate_latest(self._registry)
