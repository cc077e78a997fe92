"""Messages if processes do not find each other, from real processes."""

import os
import socket
import subprocess

import pytest

from launch.engine.supervision import LOST, SUPERVISED, UNREACHABLE, free_port
from tests.launch.conftest import ROOT, command_line


@pytest.mark.slow
def test_one_line_and_status_2(tiny, cache, tmp_path):
    variables = [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_"))]
    environment = {key: value for key, value in os.environ.items() if key not in variables}
    with socket.create_server(("", 0)) as taken:
        cases = {
            "auto": "found no Slurm, Open MPI, Kubernetes or TPU pod in the environment; write "
            "HOST:PORT,N,I",
            # The first process never comes.
            f"127.0.0.1:{free_port()},2,1": UNREACHABLE,
            # The second process never comes.
            f"127.0.0.1:{free_port()},2,0": UNREACHABLE,
            f"127.0.0.1:{taken.getsockname()[1]},2,0": "cannot listen on port",
        }
        started = {}
        for value in cases:
            flags = [f"--workdir={tmp_path / 'run'}", f"--distributed={value}",
                     "--distributed_timeout=5"]  # fmt: skip
            started[value] = subprocess.Popen(
                command_line("train", cache, *tiny, *flags), cwd=ROOT, env=environment,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        for value, message in cases.items():
            out, err = started[value].communicate(timeout=300)
            assert started[value].returncode == 2, (value, err[-2000:])
            assert out == ""
            (line,) = err.splitlines()
            assert line.startswith(f"error: --distributed={value}: ")
            assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_whose_supervisor_was_killed_before_it_connected_ends(tiny, cache, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    flags = [f"--workdir={tmp_path / 'run'}", f"--distributed=127.0.0.1:{free_port()},2,0"]
    done = subprocess.run(
        command_line("train", cache, *tiny, *flags), cwd=ROOT, capture_output=True,
        env={**os.environ, SUPERVISED: str(ended.pid)}, timeout=120,
    )  # fmt: skip
    assert done.returncode == LOST
    assert not (tmp_path / "run").exists()
