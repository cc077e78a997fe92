"""A server process with hostile inputs and clients: its memory, log and other answers."""

import base64
import concurrent.futures
import contextlib
import json
import re
import resource
import socket
import threading
import time

import pytest

from tests.launch.serving import hostile_files as files
from tests.launch.serving.conftest import NAME
from tests.launch.serving.processes import serving
from tests.launch.serving.test_server import head

pytestmark = pytest.mark.slow
MB = 1 << 20
# MB by which the resident memory may grow: by one input, and by several at once.
MOST_BY_ONE, MOST_BY_MANY = 250, 400
CLIENT_TIMEOUT_S = 4
PREDICT, INFER = f"/models/{NAME}", f"/v2/models/{NAME}/infer"


def tensor(data: bytes) -> bytes:
    """Returns the body of an inference with data of a tensor."""
    return b'{"inputs":[{"name":"tokens","shape":[1,2],"datatype":"INT32","data":[' + data + b"]}]}"


def bodies():
    """Yields name, address, body of JSON and status of requests that are refused."""
    yield "10 MB that are no JSON", PREDICT, b"x" * 10 * MB, 400
    yield "10 MB of one text", PREDICT, b'{"inputs":"' + b"x" * 10 * MB + b'"}', 422
    yield "17 MB", PREDICT, b"x" * 17 * MB, 413
    yield "16 MB of brackets", PREDICT, b"[" * 16 * MB, 413
    yield "deep nesting", PREDICT, b'{"inputs":' + b"[" * 400_000, 400
    yield "lists", PREDICT, b"[" + b"[]," * 5 * MB + b"[]]", 413
    yield "objects", PREDICT, b"[" + b'{"a":1},' * 499_000 + b"{}]", 422
    yield "many texts", PREDICT, b'{"inputs":[' + b'"a",' * 4_000_000 + b'"a"]}', 422
    yield "nested numbers", INFER, tensor(b"[1]," * 499_000 + b"[1]"), 422
    yield "flat numbers", INFER, tensor(b"1.5," * 4_000_000 + b"1"), 422
    yield "NaN", INFER, tensor(b"1,NaN"), 422
    yield "1e999", INFER, tensor(b"1,1e999"), 422
    yield "-1e999", INFER, tensor(b"-1e999,1"), 422
    yield "many digits", INFER, tensor(b"1," + b"9" * 5000), 400
    yield "huge shape", INFER, tensor(b"1,2").replace(b"[1,2]", b"[%d,2]" % 10**15), 422


def uploads():
    """Yields name, model, content and words of the error of files that are refused."""
    zeros = files.compressed_zeros(1 << 30)
    yield "image of 100 megapixels", "photos", files.blank_png(10_000, 10_000), "100000000 pixels"
    yield "image of 4 gigapixels", "photos", files.png(2**31 - 1, 2, zeros), "pixels"
    yield "tile of 1 GB in a TIFF", "photos", files.tiled_tiff(8, 1 << 15, zeros), "pixels"
    yield "texts of 180 MB in a PNG", "photos", files.text_png(), "too much memory"
    profile = files.png_chunk(b"iCCP", b"a\0\0" + zeros)
    pixels = files.compressed_zeros(72)
    yield "profile of 1 GB in a PNG", "photos", files.png(8, 8, pixels, profile), "too large"
    yield "JPEG of 2000 scans", "photos", files.scanned_jpeg(2000, 2000), "scans"
    yield "damaged PNG", "photos", files.blank_png(500, 500)[:-200], "truncated"
    hours = 2 * 3600
    flac = files.silence("FLAC", hours)
    unknown = files.piped_flac(flac)
    yield "FLAC of 2 h", "sounds", flac, "7200.0 seconds"
    yield "FLAC of 2 h from a pipe", "sounds", unknown, "longer than"
    rate = files.silence("FLAC", 100, 655_350)
    yield "FLAC of 65 million samples", "sounds", rate, "samples per second"
    yield "the same from a pipe", "sounds", files.piped_flac(rate), "samples per second"
    yield "Ogg of 2 h", "sounds", files.silence("OGG", hours), "7200.0 seconds"
    yield "MP3 of 2 h", "sounds", files.silence("MP3", hours), "7200.0 seconds"
    wav = files.silence("WAV", hours, 2000, "PCM_U8")
    yield "WAV of 2 h", "sounds", wav, "7200.0 seconds"
    for size, words in ((0, "longer than"), (0xFFFFFFFF, "7200"), (0x7FFFFFFF, "7200")):
        yield f"WAV of 2 h with size {size:#x}", "sounds", files.piped_wav(wav, size), words
    yield "table of lines", "tables", b"date,a\n" + b"ab\n" * 5_000_000, "cells"
    yield "table of short lines", "tables", b"date,a\n" + b"ab\n" * 490_000, "line 2"
    yield "table of commas", "tables", b"," * 15 * MB, "cells"
    yield "a long cell", "tables", b"a" * MB + b",b\n1,2\n", "field larger"
    for model in ("photos", "sounds", "tables"):
        yield f"noise for {model}", model, bytes(range(256)) * 40_000, ""


@pytest.fixture(scope="module")
def server(kinds, cache):
    """Runs the server with all kinds of models, and few open files allowed at first."""
    given = [f"--export={name}={export.folder}" for name, (export, _) in kinds.items()]
    given += ["--max_batch=2", f"--client_timeout_s={CLIENT_TIMEOUT_S}", f"--cache_dir={cache}"]
    # Other processes may take most of the time of this machine.
    given.append("--timeout_s=120")
    few_files = ["sh", "-c", 'ulimit -Sn 256 && exec "$@"', "sh"]
    with serving(*given, before=few_files) as found:
        yield found
        out, log = found.stop()
        assert out == "stopped\n"
        assert log == ""


@pytest.fixture(scope="module")
def valid(server, kinds):
    """Returns a function with the answers to a valid input of each model."""

    def answers():
        found = {}
        for name, (export, raw) in kinds.items():
            path = f"/models/{name}"
            if export.kind == "text":
                found[name] = server.post(path, {"inputs": raw})
            else:
                found[name] = server.upload(path, raw)
        return found

    expected = answers()
    assert {status for status, _ in expected.values()} == {200}, expected
    assert answers() == expected
    return answers


def check_refused(name, found, status, words=""):
    got, value = found
    assert got == status, (name, found)
    assert set(value) == {"error", "field"}, name
    assert "\n" not in value["error"], name
    assert len(value["error"]) < 300, name
    assert words.lower() in value["error"].lower(), (name, value)


def test_refused_inputs_have_bounded_memory_and_change_no_answer(server, valid, capsys):
    expected, lines = valid(), []

    def measured(name, size, send):
        server.reset_peak()
        before, start = server.memory(), time.monotonic()
        found = send()
        seconds, grown = time.monotonic() - start, server.memory("VmHWM") - before
        lines.append(f"{name:32}{size / MB:8.3f} MB {found[0]} +{grown:4.0f} MB {seconds:5.1f} s")
        assert grown < MOST_BY_ONE, lines[-1]
        return found

    start = server.memory()
    for name, path, body, status in bodies():
        found = measured(name, len(body), lambda path=path, body=body: server.post(path, body))
        check_refused(name, found, status)
    for name, model, content, words in uploads():
        path = f"/models/{model}"
        found = measured(name, len(content), lambda p=path, c=content: server.upload(p, c))
        check_refused(name, found, 422, words)
    assert valid() == expected
    grown = server.memory() - start
    lines.append(f"in all {grown:.0f} MB beyond the {start:.0f} MB before")
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert grown < MOST_BY_ONE


def test_the_largest_images_are_decoded_one_at_a_time(server, valid):
    """One image takes about 300 MB, mostly for 39 million pixels with transparency."""
    expected = valid()
    content = files.blank_png(6244, 6244, kind=6)
    server.reset_peak()
    before = server.memory()
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: server.upload("/models/photos", content)[0], range(6)))
    assert found == [200] * 6
    coded = base64.b64encode(content).decode()
    assert server.post("/models/photos", {"inputs": [coded] * 4})[0] == 200
    assert server.memory("VmHWM") - before < MOST_BY_MANY
    assert valid() == expected


def test_hostile_requests_at_once_leave_others_their_answers(server, valid):
    expected, stop, slowest = valid(), threading.Event(), 0.0

    def others():
        nonlocal slowest
        while not stop.is_set():
            start = time.monotonic()
            assert valid() == expected
            slowest = max(slowest, time.monotonic() - start)

    text = {"inputs": ["a b c d e f g h " * 6000] * 20}
    sends = [lambda: server.post(PREDICT, text)]
    sends += [lambda p=p, b=b: server.post(p, b) for _, p, b, _ in bodies()]
    sends += [lambda p=f"/models/{m}", c=c: server.upload(p, c) for _, m, c, _ in uploads()]
    server.reset_peak()
    before = server.memory()
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        watching = pool.submit(others)
        statuses = [one.result()[0] for one in [pool.submit(send) for send in sends]]
        stop.set()
        watching.result()
    assert set(statuses) <= {200, 400, 413, 422, 429, 504}
    assert server.memory("VmHWM") - before < MOST_BY_MANY
    assert slowest < 30
    assert valid() == expected


def test_wrong_content_types_and_encodings(server, valid):
    zeros = files.compressed_zeros(1 << 30)
    for headers in (
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "application/json", "Content-Encoding": "deflate, br"},
        {"Content-Type": "application/zip"},
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "text/plain; charset=utf-16"},
        {},
    ):
        check_refused(headers, server.request("POST", PREDICT, zeros, headers), 415)
    check_refused("no form", server.upload(PREDICT, b"abc"), 415)
    for kind in ("multipart/form-data", "multipart/form-data; boundary=" + "x" * 300):
        found = server.request("POST", "/models/photos", zeros, {"Content-Type": kind})
        check_refused(kind, found, 400)


@contextlib.contextmanager
def connections(port, count, *parts):
    """Opens connections, and sends something on each."""
    opened = []
    try:
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", port), timeout=20)
            opened.append(client)
            for part in parts:
                with contextlib.suppress(OSError):
                    client.sendall(part)
        yield opened
    finally:
        for client in opened:
            client.close()


def still_open(clients):
    """Returns how many connections the server has not closed."""
    count = 0
    for client in clients:
        client.setblocking(False)
        try:
            count += bool(client.recv(1000))
        except BlockingIOError:
            count += 1
        except OSError:
            continue
    return count


def test_thousands_of_idle_connections_and_slow_clients(server, valid):
    expected, before = valid(), server.memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 4000 if hard == resource.RLIM_INFINITY else min(hard, 4000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    count = min(3000, most - 500)
    server.reset_peak()
    start = time.monotonic()
    with connections(server.port, count) as idle:
        assert valid() == expected, "a client without a request takes the place of none with one"
        assert still_open(idle) <= 1000
    headers = b"GET /v2 HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 10_000
    with connections(server.port, 900, headers) as slow:
        for _ in range(2 * CLIENT_TIMEOUT_S + 2):
            time.sleep(0.5)
            for client in slow[::100]:
                with contextlib.suppress(OSError):
                    client.sendall(b"x")
        assert valid() == expected
        assert still_open(slow) == 0, "headers that come by single bytes have a deadline"
    with connections(server.port, 300, head(MB), b'{"inputs": "' + b"x" * 60_000) as slow:
        assert valid() == expected
        time.sleep(CLIENT_TIMEOUT_S + 1)
        statuses = {client.recv(12) for client in slow}
        assert statuses == {b"HTTP/1.1 408"}
        assert valid() == expected
    large = 10 * MB
    with connections(server.port, 40, head(large), b"x" * (large // 2)) as slow:
        # Small bodies have a place even if large ones fill the memory for bodies.
        assert server.post(PREDICT, {"inputs": "fine lovely film"}) == expected[NAME]
        time.sleep(CLIENT_TIMEOUT_S + 1)
        statuses = {client.recv(12) for client in slow}
        assert statuses <= {b"HTTP/1.1 408", b"HTTP/1.1 429", b""}
    assert valid() == expected
    assert server.memory("VmHWM") - before < MOST_BY_MANY
    assert time.monotonic() - start < 120


def test_clients_that_do_not_read_their_answers(server, valid):
    expected, before = valid(), server.memory()
    request = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
    server.reset_peak()
    with connections(server.port, 100, request * 50):
        assert valid() == expected
        time.sleep(1)
        assert server.memory("VmHWM") - before < MOST_BY_MANY
    assert valid() == expected


def test_metrics_count_what_was_refused(server, valid):
    text = server.request("GET", "/metrics")[1].decode()
    counts = re.findall(r'attention_responses_total\{route="([^"]*)",status="(\d+)"\}', text)
    assert all(int(status) < 500 or status in ("503", "504") for _, status in counts), counts
    assert re.findall(r"attention_queue_length\{.*\} (\S+)", text) == ["0.0"] * 4
    assert json.dumps(valid())
