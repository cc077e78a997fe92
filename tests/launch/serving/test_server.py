"""The server on a port of this machine: slow clients, bytes that are no HTTP, and its end."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from launch.serving import server as servers
from launch.serving.app import Application
from launch.serving.options import Options, read_exports
from tasks.common.errors import UserError
from tests.launch.serving.conftest import NAME

ROOT = pathlib.Path(__file__).parents[3]
PREDICT = f"/models/{NAME}"


@contextlib.contextmanager
def running(export, **options):
    """Serves an export on a free port from a thread; gives port, server and application."""
    options = Options(**{"max_batch": 4, **options})
    application = Application({NAME: export}, options)
    with listening(application, options) as (port, server):
        yield port, server, application


@contextlib.contextmanager
def listening(application, options):
    """Serves an application on a free port from a thread; gives port and server."""
    server = servers.make_server(application.asgi(), options)
    opened = servers.listen("127.0.0.1", 0)
    port = opened.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        for model in application.models.values():
            model.wait_ready()
        yield port, server
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(export):
    with running(export, client_timeout_s=0.5, max_body_bytes=100_000) as (port, *_):
        yield port


def exchange(port, *parts, pause=0.0, seconds=20):
    """Sends bytes and returns all that comes until the server closes the connection."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as client:
        try:
            for part in parts:
                client.sendall(part)
                time.sleep(pause)
            while piece := client.recv(65536):
                found += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
    return found


def head(length=None, path=PREDICT, more=""):
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"{size}\r\n{more}\r\n"
    ).encode()


def ask(port, body, path=PREDICT):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        client.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = client.getresponse()
        return response.status, json.loads(response.read())
    finally:
        client.close()


def body_of(answer):
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def test_answers_over_a_socket(port, export):
    status, ((best, *_),) = ask(port, {"inputs": "fine film"})
    assert status == 200
    assert best["label"] == export(["fine film"])[0]["label"]


def test_bytes_that_are_no_http(port):
    for junk in (b"junk\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
                 b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 200_000,
                 b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
                 head("-1"), head("abc"), head(5, more="Content-Length: 6\r\n")):  # fmt: skip
        answer = exchange(port, junk)
        assert answer.startswith(b"HTTP/1.1 400 "), answer[:80]
        assert set(body_of(answer)) == {"error", "field"}


def test_headers_that_come_too_slowly_end_the_connection(port):
    start = time.monotonic()
    assert exchange(port) == b""
    assert exchange(port, b"GET /v2 HT", b"TP/1.1\r\n", b"A: b\r\n", pause=0.3) == b""
    assert time.monotonic() - start < 15
    # The second request of a connection too.
    answer = exchange(port, b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /", pause=0.2)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_body_that_comes_too_slowly(port):
    answer = exchange(port, head(100), b'{"inputs"')
    assert answer.startswith(b"HTTP/1.1 408 "), answer[:80]
    assert b"connection: close" in answer.lower()


def test_a_body_that_is_too_large(port):
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    answer = exchange(port, head(more="Connection: close\r\n"), *[chunk] * 8, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 "), answer[:80]
    # A client that waits for "100 Continue" is answered before it sends.
    answer = exchange(port, head(10**9, more="Expect: 100-continue\r\n"))
    assert answer.startswith(b"HTTP/1.1 413 "), answer[:80]
    # The answer comes after a body that is sent at once.
    body = b"x" * 300_000
    answer = exchange(port, head(len(body), more="Connection: close\r\n") + body)
    assert answer.startswith(b"HTTP/1.1 413 "), answer[:80]


def test_a_chunked_body_that_ends_early(port):
    assert exchange(port, head(), b"5\r\nab", pause=0.1).startswith(b"HTTP/1.1 408 ")
    answer = exchange(port, head(), b"zz\r\n\r\n", pause=0.1)
    assert not answer or answer.startswith(b"HTTP/1.1 4")


def test_a_client_that_goes_frees_its_place(export, blocked):
    with running(export, max_batch=1, max_queue=1) as (port, _, application):
        event = blocked(application)
        (model,) = application.models.values()
        body = b'{"inputs": "a"}'
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(head(len(body)) + body)
            wait_for(lambda: model._queue.taken == 1)
            assert ask(port, {"inputs": "b"})[0] == 429
        wait_for(lambda: model._queue.taken == 0)
        event.set()
        assert ask(port, {"inputs": "b"})[0] == 200


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_end_finishes_accepted_requests(export, blocked):
    with running(export, max_batch=1) as (port, server, application):
        event = blocked(application)
        (model,) = application.models.values()
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(ask(port, {"inputs": "a"})))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: model._queue.taken == 3)
        server.should_exit = True
        time.sleep(0.3)
        with pytest.raises(OSError):
            ask(port, {"inputs": "b"})
        event.set()
        for thread in threads:
            thread.join(20)
    assert [status for status, _ in answers] == [200] * 3


# ---------------------------------------------------------------- the command


def test_wrong_folders_and_names(export, tmp_path):
    folder = str(export.folder)
    (tmp_path / "empty").mkdir()
    copy = tmp_path / NAME
    copy.symlink_to(export.folder)
    assert list(read_exports([folder, f"other={folder}"])) == [NAME, "other"]
    for given, words in (
        ([], "--export is missing"),
        ([str(tmp_path / "none")], "holds no export"),
        ([str(tmp_path / "empty")], "holds no export"),
        ([folder, folder], f"a model is already called {NAME}"),
        ([folder, f"{NAME}={folder}"], f"a model is already called {NAME}"),
        ([f"a b={folder}"], "got the name"),
        ([f"={folder}"], "got the name"),
    ):
        with pytest.raises(UserError, match=re.escape(words)) as error:
            read_exports(given)
        assert str(error.value).startswith("--export")
        assert "\n" not in str(error.value)


def test_a_program_that_is_missing(export, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in export.folder.iterdir():
        if path.name != "programs":
            (broken / path.name).symlink_to(path)
    with pytest.raises(UserError, match=r"programs/.* is missing"):
        read_exports([str(broken)])


def test_wrong_options():
    for options, words in (
        ({"max_batch": 3}, "--max_batch=3"),
        ({"max_batch": 16, "max_queue": 4}, "--max_queue=4"),
        ({"cors_origin": "*"}, "--cors_origin=*"),
        ({"cors_origin": "https://a.example/path"}, "--cors_origin"),
        ({"token": "a b"}, "--token"),
        ({"token": "a\n"}, "--token"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            Options(**options)


def test_an_address_that_cannot_be_listened_on():
    with servers.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port}.*in use"):
            servers.listen("127.0.0.1", port)
    with pytest.raises(UserError, match="--host=no host"):
        servers.listen("no host", 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--export is missing"),
        (("--export=no/such/folder",), "no/such/folder: holds no export"),
        (("--export=EXPORT", "--max_batch=3"), "--max_batch=3"),
        (("--export=EXPORT", "--port=70000"), "--port"),
        (("--export=EXPORT", "--port=TAKEN"), "in use"),
    ],
)
def test_wrong_flags_are_one_line_and_status_2(command, export, flags, words):
    with servers.listen("127.0.0.1", 0) as taken:
        values = {"EXPORT": str(export.folder), "TAKEN": str(taken.getsockname()[1])}
        flags = [re.sub("EXPORT|TAKEN", lambda match: values[match[0]], flag) for flag in flags]
        done = command("serve", *flags)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


@pytest.mark.slow
def test_sigterm_ends_the_command_after_its_requests(export, cache):
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.serve", f"--cache_dir={cache}", "--max_batch=2",
         f"--export={export.folder}", "--port=0", "--max_wait_ms=2000"],
        cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        first = process.stdout.readline()
        port = int(first.rpartition(":")[2])
        assert f"serving {NAME} on http://127.0.0.1:" in first
        assert process.stdout.readline().startswith("ready after")
        answers = []
        thread = threading.Thread(target=lambda: answers.append(ask(port, {"inputs": "fine"})))
        thread.start()
        # The row waits two seconds for another one.
        time.sleep(0.7)
        process.send_signal(signal.SIGTERM)
        thread.join(60)
        out, errors = process.communicate(timeout=60)
        assert answers[0][0] == 200
        assert process.returncode == 0, errors
        assert out.splitlines()[-1] == "stopped"
        assert not errors
    finally:
        process.kill()
