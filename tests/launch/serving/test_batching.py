"""Batching of rows, with a program that adds one."""

import threading
import time

import pytest

from launch.serving.batching import Batcher, Expired

LATER = 1e12
KEY = ("predict", 0)


class Program:
    """Adds one to rows, and keeps the batches that it ran; waits for `free`."""

    def __init__(self):
        self.batches, self.free, self.begun = [], threading.Event(), threading.Event()
        self.free.set()

    def __call__(self, key, rows):
        self.begun.set()
        assert self.free.wait(10)
        self.batches.append((key, [row["x"] for row in rows]))
        if any(row["x"] == "bad" for row in rows):
            raise ValueError("a bad row")
        return [{"y": row["x"] + 1} for row in rows]


@pytest.fixture
def program():
    return Program()


@pytest.fixture
def batcher(program):
    found = Batcher("test", program, max_batch=4, max_wait_s=0.02)
    found.start()
    yield found
    program.free.set()
    assert found.stop(10)


def rows(*values, key=KEY):
    return [(key, {"x": value}) for value in values]


def hold(batcher, program):
    """Makes the thread busy with a row of another key."""
    program.free.clear()
    future = batcher.submit(rows(0, key=("predict", 9)), LATER)
    assert program.begun.wait(10)
    return future


def test_outputs_are_in_the_order_of_the_rows(batcher):
    future = batcher.submit(rows(1, 2, 3), LATER)
    assert future.result(10) == [{"y": 2}, {"y": 3}, {"y": 4}]


def test_rows_of_requests_share_batches_up_to_the_largest(batcher, program):
    held = hold(batcher, program)
    futures = [batcher.submit(rows(n, n + 10), LATER) for n in range(3)]
    assert len(batcher) == 6
    program.free.set()
    assert [f.result(10) for f in futures] == [[{"y": n + 1}, {"y": n + 11}] for n in range(3)]
    assert held.result(10) == [{"y": 1}]
    assert program.batches[1:] == [(KEY, [0, 10, 1, 11]), (KEY, [2, 12])]
    assert len(batcher) == 0


def test_keys_do_not_mix_and_the_oldest_comes_first(batcher, program):
    hold(batcher, program)
    other = ("attention", 0)
    last = [batcher.submit(rows(1, key=other), LATER), batcher.submit(rows(2), LATER)]
    last.append(batcher.submit(rows(3, key=other), LATER))
    program.free.set()
    for future in last:
        future.result(10)
    assert program.batches[1:] == [(other, [1, 3]), (KEY, [2])]


@pytest.mark.parametrize(
    "options", [{"max_batch": 2}, {"max_batch": 4, "expected": lambda: 2}], ids=["full", "expected"]
)
def test_a_row_waits_until_the_batch_is_full_or_has_all_expected_rows(program, options):
    batcher = Batcher("slow", program, max_wait_s=60, **options)
    batcher.start()
    first = batcher.submit(rows(1), LATER)
    time.sleep(0.05)
    assert not first.done()
    batcher.submit(rows(2), LATER)
    assert first.result(10) == [{"y": 2}]
    assert program.batches == [(KEY, [1, 2])]
    assert batcher.stop(10)


def test_a_limit_holds_for_its_key(batcher, program):
    hold(batcher, program)
    other = ("attention", 0)
    batcher.limit(KEY, 2)
    futures = [
        batcher.submit(rows(1, 2, 3), LATER),
        batcher.submit(rows(4, 5, 6, key=other), LATER),
    ]
    program.free.set()
    for future in futures:
        future.result(10)
    assert program.batches[1:] == [(KEY, [1, 2]), (KEY, [3]), (other, [4, 5, 6])]


def test_canceled_and_expired_rows_are_not_run(batcher, program):
    hold(batcher, program)
    canceled = batcher.submit(rows(1), LATER)
    expired = batcher.submit(rows(2), time.monotonic() - 1)
    kept = batcher.submit(rows(3), LATER)
    assert canceled.cancel()
    program.free.set()
    with pytest.raises(Expired):
        expired.result(10)
    assert kept.result(10) == [{"y": 4}]
    assert program.batches[1:] == [(KEY, [3])]


def test_an_error_fails_its_batch_alone(batcher, program):
    with pytest.raises(ValueError, match="a bad row"):
        batcher.submit(rows("bad"), LATER).result(10)
    assert batcher.submit(rows(1), LATER).result(10) == [{"y": 2}]


def test_stop_runs_what_waits(program):
    batcher = Batcher("stopped", program, max_batch=4, max_wait_s=60)
    batcher.start()
    future = batcher.submit(rows(1), LATER)
    assert batcher.stop(10)
    assert future.result(0) == [{"y": 2}]
    with pytest.raises(RuntimeError):
        batcher.submit(rows(2), LATER)


def test_preparation_comes_first_and_its_error_is_reported(program):
    order, errors = [], []
    batcher = Batcher(
        "ok", lambda key, rows: order.append("run") or [{}] * len(rows),
        max_batch=1, max_wait_s=0, prepare=lambda: order.append("prepare"),
    )  # fmt: skip
    future = batcher.submit(rows(1), LATER)
    assert not batcher.ready
    batcher.start()
    future.result(10)
    assert batcher.ready
    assert order == ["prepare", "run"]
    assert batcher.stop(10)

    def broken():
        raise OSError("damaged")

    batcher = Batcher("bad", program, max_batch=1, max_wait_s=0, prepare=broken,
                      failed=errors.append)  # fmt: skip
    batcher.start()
    assert batcher.prepared.wait(10)
    assert not batcher.ready
    assert str(errors[0]) == "damaged"
    assert batcher.stop(10)
