"""--distributed, launch.local and their messages, without JAX processes."""

import os
import signal
import sys
import threading

import pytest

from launch.engine import processes, supervision
from launch.engine.supervision import ENDED, LOST, UNREACHABLE, Child, supervise_all
from tasks.common.errors import UserError


def test_values():
    assert processes.parse("auto") == processes.Connection()
    found = processes.parse("node-1.cluster:1234,4,3", 20)
    assert found == processes.Connection("node-1.cluster:1234", 4, 3, 20)
    assert processes.parse("[fe80::1]:80,1,0").coordinator == "[fe80::1]:80"
    assert str(found) == "--distributed=node-1.cluster:1234,4,3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host:1234,2,2", "got index 2, expected 0 to 1 for 2 processes"),
        ("host:1234,0,0", "got 0 processes, expected at least 1"),
        ("host:0,2,0", "got port 0, expected 1 to 65535"),
        ("host:65536,2,0", "got port 65536, expected 1 to 65535"),
        *(
            (text, r"expected auto, or HOST:PORT,N,I with N processes and index I from 0 to N-1")
            for text in ("", "Auto", "host", "host:80", "host,2,0", ":80,2,0", "host:80,2",
                         "host:80,2,-1", "host:http,2,0", "http://host:80,2,0", "fe80::1:80,2,0")
        ),
    ],
)  # fmt: skip
def test_wrong_values(text, message):
    with pytest.raises(UserError) as raised:
        processes.parse(text)
    assert str(raised.value).startswith(f"--distributed={text}: ")
    assert message in str(raised.value)


def test_a_wrong_time():
    with pytest.raises(UserError, match="--distributed_timeout=0: expected at least 1 second"):
        processes.parse("auto", 0)


def test_wrong_values_end_the_command_before_jax_is_used(command, tiny, tmp_path):
    for name, flags, message in (
        ("train", [*tiny, f"--workdir={tmp_path}/x", "--distributed=a:1,2,2"], "got index 2"),
        ("local", ["--processes=2"], "the command is missing; write python -m launch.local"),
        ("local", ["--", "python", "-m", "launch.sweep"], "python -m launch.sweep: expected"),
        ("local", ["--", "python", "-m", "launch.train", "--distributed=auto"], "leave it out"),
    ):  # fmt: skip
        done = command(name, *flags)
        assert done.returncode == 2, (flags, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert message in done.stderr
    assert not (tmp_path / "x").exists()


def shell(script):
    return ["sh", "-c", script], {}


FATAL = "F1201 08:49:27.008256   16734 client.h:80] Terminating process because the JAX "


@pytest.mark.parametrize(
    ("script", "status", "line"),
    [
        ("exit 0", 0, ""),
        ("echo error: no such file >&2; exit 2", 2, ""),
        (f"echo '{FATAL}distributed service detected fatal errors.\nRPC: /xla.coordination"
         ".CoordinationService/RegisterTask' >&2; kill -ABRT $$", 2, UNREACHABLE),
        (f"echo '{FATAL}distributed service detected fatal errors.\nstack' >&2; kill -ABRT $$",
         LOST, ENDED),
        (f"printf '\\036lost: Gloo all-reduce failed\\n' >&2; exit {LOST}",
         LOST, f"{ENDED} (Gloo all-reduce failed)"),
        ("kill -KILL $$", 137, "killed by SIGKILL; the same command continues from the last "
         "checkpoint"),
        ("kill -ABRT $$", 134, "killed by SIGABRT; the same command continues from the last "
         "checkpoint"),
    ],
)  # fmt: skip
def test_ends_of_a_process(script, status, line):
    found = Child(*shell(script)).ended()
    assert found == (status, line)


def shown(jobs, capfd, monkeypatch, grace=0.3):
    """Returns status, standard output and standard error of processes on this machine."""
    monkeypatch.setattr(supervision, "_GRACE_S", grace)
    # The streams of pytest have no descriptor.
    monkeypatch.setattr(sys, "stdout", open(1, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", open(2, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    status = supervise_all([shell(script) for script in jobs])
    sys.stdout.flush()
    sys.stderr.flush()
    out, err = capfd.readouterr()
    return status, out.splitlines(), err.splitlines()


def test_output_of_the_first_process_and_errors_of_the_others(capfd, monkeypatch):
    first = "echo '[Gloo] Rank 0 is connected'; echo table; echo step 1 >&2; sleep 0.1"
    found = shown([first, "echo warning >&2"], capfd, monkeypatch)
    assert found == (0, ["table"], found[2])
    assert sorted(found[2]) == ["[process 1] warning", "step 1"]


def test_a_mistake_of_all_is_shown_once(capfd, monkeypatch):
    wrong = "echo 'error: --workdir=x: is a file' >&2; exit 2"
    status, _, printed = shown([wrong, wrong, wrong], capfd, monkeypatch)
    assert status == 2
    assert len(printed) == 1
    assert printed[0].endswith("error: --workdir=x: is a file")


def test_the_others_end_with_a_failed_process(capfd, monkeypatch):
    jobs = ["sleep 60; true", "kill -KILL $$", f"sleep 0.1; exit {LOST}"]
    status, _, printed = shown(jobs, capfd, monkeypatch)
    assert status == 137
    assert printed == [
        "error: process 1: killed by SIGKILL; the same command continues from the last checkpoint"
    ]


def test_a_lost_connection_is_reported_if_no_process_failed(capfd, monkeypatch):
    status, _, printed = shown([f"exit {LOST}", f"exit {LOST}"], capfd, monkeypatch)
    assert status == LOST
    assert printed == [f"error: process 0: {ENDED}"]


def test_signals_reach_all_processes(capfd, monkeypatch):
    waits = "trap 'echo stopped >&2; exit 143' TERM; for i in $(seq 100); do sleep 0.1; done"
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    status, _, printed = shown([waits, waits], capfd, monkeypatch, grace=5)
    assert status == 143
    assert sorted(printed) == ["[process 1] stopped", "stopped"]
