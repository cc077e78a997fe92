"""The end of a server process under load, and its start after it was killed."""

import http.client
import json
import pathlib
import signal
import threading
import time

import pytest

from tests.launch.serving.conftest import NAME
from tests.launch.serving.processes import serving

pytestmark = pytest.mark.slow
CLIENTS = 32
PREDICT = f"/models/{NAME}"
# As for users: the tests set a cache of their own.
UNSET = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
         "ATTENTION_CACHE_DIR")  # fmt: skip


class Client(threading.Thread):
    """Sends requests until the server accepts no connection.

    Attributes:
      answers: answers so far.
      lost: errors of requests on connections that had been accepted.
    """

    def __init__(self, port, text, keep):
        super().__init__(daemon=True)
        self.port, self.text, self.keep = port, text, keep
        self.answers, self.lost = [], []

    def run(self):
        connection, used = None, False
        while True:
            if connection is None:
                connection, used = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60), 0
                try:
                    connection.connect()
                except OSError:
                    return
            try:
                body = json.dumps({"inputs": self.text})
                connection.request("POST", PREDICT, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                self.answers.append((response.status, json.loads(response.read())))
                closed = response.will_close
            except (OSError, http.client.HTTPException) as error:
                # A connection that waited for its next request may be closed, as in all of HTTP.
                if not used or not isinstance(error, ConnectionError):
                    self.lost.append(repr(error))
                closed = True
            used = True
            if closed or not self.keep:
                connection.close()
                connection = None


def test_sigterm_loses_no_request_of_32_clients(exported, cache):
    texts = ["fine lovely film", "dull awful film", "a film"]
    flags = (f"--export={exported}", f"--cache_dir={cache}", "--max_batch=4", "--max_wait_ms=5")
    with serving(*flags, module="tests.launch.serving.slow_serve") as server:
        expected = {text: server.post(PREDICT, {"inputs": text}) for text in texts}
        assert {status for status, _ in expected.values()} == {200}
        clients = [Client(server.port, texts[n % 3], n % 2 == 0) for n in range(CLIENTS)]
        for client in clients:
            client.start()
        deadline = time.monotonic() + 60
        while sum(len(client.answers) for client in clients) < 2 * CLIENTS:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        start = time.monotonic()
        out, log = server.stop()
        seconds = time.monotonic() - start
        for client in clients:
            client.join(60)
    count = sum(len(client.answers) for client in clients)
    print(f"{count} answers, stopped after {seconds:.1f} s")
    assert [error for client in clients for error in client.lost] == []
    for client in clients:
        assert client.answers
        for status, value in client.answers:
            assert (status, value) == expected[client.text]
    assert server.popen.returncode == 0
    assert out == "stopped\n"
    assert log == ""


def test_a_killed_server_is_ready_again_from_the_cache(exported, tmp_path):
    """Also if it was killed while it wrote the cache."""
    cache, text = tmp_path / "cache", {"inputs": "fine lovely film"}
    flags = (f"--export={exported}", f"--cache_dir={cache}", "--max_batch=4")

    def start():
        with serving(*flags, unset=UNSET) as server:
            found = server.post(PREDICT, text)
            client = Client(server.port, text["inputs"], False)
            client.start()
            time.sleep(0.2)
            server.popen.send_signal(signal.SIGKILL)
            server.popen.wait(20)
            _, log = server.popen.communicate()
            assert log == ""
        print(f"ready after {server.ready_s:.1f} s, {server.cpu_s:.1f} s of CPU")
        return found

    first = start()
    entries = programs(cache)
    assert entries, "programs that compile within half a second are in the cache too"
    second = start()
    assert programs(cache) == entries, "the restarted server compiled nothing"
    for path in list(entries)[::2]:
        path.write_bytes(path.read_bytes()[:100])
    third = start()
    assert first == second == third
    assert first[0] == 200


def programs(cache):
    """Returns the sizes of compiled programs in a cache folder, by path."""
    found = pathlib.Path(cache, "jax").glob("*-cache")
    return {path: path.stat().st_size for path in found}
