"""Latency and throughput of `launch.serve` over loopback, with batches and without.

python -m benchmarks.serving --export=exported --input="a gripping, funny film"

A server is started for each largest batch size; concurrent clients with keep-alive connections send
the inputs in turn. The clients run on the same machine, so the results include the time that they
take.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from absl import app, flags

flags.DEFINE_string("export", None, "Folder of launch.export, of a model that reads texts.")
flags.DEFINE_multi_string("input", ["a gripping, funny film"], "Texts.")
flags.DEFINE_integer("requests", 2000, "Requests for each batch size.", lower_bound=1)
flags.DEFINE_integer("clients", 32, "Clients at once.", lower_bound=1)
flags.DEFINE_multi_integer("batch", [1, 32], "Largest batch sizes, powers of two.", lower_bound=1)
flags.DEFINE_float("max_wait_ms", 2.0, "Milliseconds that a row waits for others.")
flags.mark_flag_as_required("export")
FLAGS = flags.FLAGS


@contextmanager
def server(batch: int) -> Iterator[int]:
    """Starts a server, yields its port when it is ready, and stops it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.serve", f"--export=model={FLAGS.export}", "--port=0",
         f"--max_batch={batch}", f"--max_wait_ms={FLAGS.max_wait_ms}"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().strip().rpartition(":")[2])
        assert process.stdout.readline().startswith("ready"), "the server did not start"
        yield port
    finally:
        process.terminate()
        process.wait(60)


def measure(port: int, requests: int, clients: int, inputs: Sequence[str]) -> list[float]:
    """Sends requests from threads and returns the seconds of each.

    Args:
      port: port of the server.
      requests: number of requests.
      clients: number of threads, each with its connection.
      inputs: texts, which are sent in turn.
    """
    bodies = [json.dumps({"inputs": text}) for text in inputs]
    numbers, lock, seconds = iter(range(requests)), threading.Lock(), []

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"Content-Type": "application/json"}
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            start = time.perf_counter()
            connection.request("POST", "/models/model", bodies[number % len(bodies)], headers)
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status
            seconds.append(time.perf_counter() - start)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seconds) == requests
    return seconds


def main(_: list[str]) -> None:
    """Prints latency and throughput for each largest batch size."""
    print(f"{FLAGS.requests} requests, {FLAGS.clients} clients")
    for batch in FLAGS.batch:
        with server(batch) as port:
            measure(port, 10 * FLAGS.clients, FLAGS.clients, FLAGS.input)
            start = time.perf_counter()
            seconds = measure(port, FLAGS.requests, FLAGS.clients, FLAGS.input)
            rate = FLAGS.requests / (time.perf_counter() - start)
        cuts = statistics.quantiles(seconds, n=100)
        print(
            f"max_batch {batch:4d}: {rate:7.0f} requests/s, p50 {1e3 * cuts[49]:6.1f} ms, "
            f"p99 {1e3 * cuts[98]:6.1f} ms",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
