"""Runs of a sweep on a local Ray cluster of two nodes that loses one of them. Needs Ray."""

import re

import pytest

from launch.runs import on_ray
from tasks.common.errors import UserError
from tests.launch import many_runs

pytest.importorskip("ray", reason="requirements-ray.txt is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch):
    for name, value in on_ray.SETTINGS.items():
        monkeypatch.setenv(name, value)
    # Settings of JAX of a node do not reach the workers.
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    from ray.cluster_utils import Cluster

    started = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    monkeypatch.delenv("JAX_ENABLE_X64")
    yield started
    started.shutdown()


def test_a_cluster_that_loses_a_node_gives_the_table_of_one_process(
    cluster, csv_file, cache, tmp_path
):
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    flags, on = many_runs.flags_of(csv_file, "ray:HOST")
    whole, folder = tmp_path / "whole", tmp_path / "placed"
    alone = many_runs.begun(cache, flags, whole, cores=1)
    _, err = many_runs.ended(alone, whole)
    assert alone.returncode == 0, err

    process = many_runs.begun(cache, flags, folder, on.replace("HOST:6379", cluster.address))
    many_runs.wait(lambda: len(many_runs.saved(folder)) == 2, process)
    cluster.remove_node(node, allow_graceful=False)
    _, err = many_runs.ended(process, folder)
    assert process.returncode == 0, err
    assert re.search(r"the Ray worker or its node was lost \(\w+\); retry 1 of 1", err), err
    # Ray itself prints nothing.
    words = ("started: ", "finished: ", "warning: ", "pooling=", "waiting ")
    assert not [line for line in err.splitlines() if not line.startswith(words)], err
    logs = [path.read_text() for path in folder.glob("logs/*.log")]
    assert len(logs) == 4
    assert any("resuming from step" in log for log in logs)
    assert many_runs.outcome(folder) == many_runs.outcome(whole)
    assert not list(folder.glob(".nodes-*"))


def test_a_missing_cluster_and_missing_resources_are_one_line(cluster, command, csv_file, tmp_path):
    flags = [*many_runs.flags_of(csv_file, "ray:HOST")[0], f"--workdir={tmp_path / 'x'}"]
    done = command("sweep", *flags, f"--on=ray:{cluster.address}", "--cpus_per_run=9")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "a run needs 9 CPUs and 0 GPUs, but the largest node has 1 and 0" in done.stderr
    with pytest.raises(UserError, match=r"--on=ray:127\.0\.0\.1:1: no Ray cluster \("):
        on_ray._connected("127.0.0.1:1").__enter__()
