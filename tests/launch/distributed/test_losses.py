"""Two processes with two virtual devices each have the results of one process with four.

The processes find each other by the variables of Slurm. No batch size is a multiple of the devices,
and no validation split one of the batch size.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from launch.engine import config as configs
from launch.engine.supervision import SUPERVISED
from tasks.common.data.paths import Paths
from tests.launch.conftest import ROOT
from tests.small_data import prepare_small

STEPS = 30
TRAINING = {
    "training.batch_size": 6,
    "training.evaluation_batch_size": 5,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 10,
}
SMALL = {
    "transformer": (
        "text_classification.py:sst2,transformer",
        {
            "data.text.max_length": 16,
            "model.model_size": 16,
            "model.num_layers": 1,
            "model.feedforward_size": 32,
            "model.dropout_rate": 0.1,
        },
    ),
    "unet": (
        "segmentation.py:camvid",
        {"data.image_size": (36, 48), "model.channels": (6, 8)},
    ),
    "attention_rnn": (
        "translation.py:multi30k,rnn(additive)",
        {
            "data.text.vocabulary_size": 300,
            "model.embedding_size": 16,
            "model.state_size": 16,
            "model.decoding.beam_size": 1,
        },
    ),
}


def environments(count):
    """Returns the variables of the processes of a Slurm step on this machine."""
    shared = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "JAX_NUM_CPU_DEVICES": "2",
        SUPERVISED: str(os.getpid()),
    }
    return [
        {**shared, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}
        for index in range(count)
    ]


def started(words, environment):
    command = [sys.executable, "-m", "tests.launch.distributed.losses", *words]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def results(processes):
    """Returns the JSON that the first process prints, after all have ended."""
    try:
        texts = [process.communicate(timeout=560) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, texts, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return json.loads(texts[0][0].splitlines()[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    paths = Paths(folder / "data", folder / "cache")
    for name in ("sst2", "camvid", "multi30k"):
        prepare_small(name, paths)
    experiments = {
        name: configs.to_dict(
            configs.override(configs.load_file(f"configs/{file}"), {**TRAINING, **changes})
        )
        for name, (file, changes) in SMALL.items()
    }
    file = folder / "experiments.json"
    file.write_text(json.dumps(experiments))
    words = [str(file), str(folder), str(STEPS)]
    one = results([started(words, {"JAX_NUM_CPU_DEVICES": "4"})])
    two = results([started([*words, "auto"], each) for each in environments(2)])
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_losses_and_metrics_are_those_of_one_process(found, name):
    one, two = (each[name] for each in found)
    assert len(one["losses"]) == STEPS
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=0, atol=1e-4)
    assert np.ptp(one["losses"]) > 1e-3
    # Every example of the split counts once.
    assert two["examples"] == one["examples"]
    assert two["metrics"].keys() == one["metrics"].keys()
    for key, value in one["metrics"].items():
        assert two["metrics"][key] == pytest.approx(value, abs=1e-3), key


@pytest.mark.slow
def test_processes_agree(found):
    one, two = found
    assert [one["processes"], two["processes"]] == [1, 2]
    # 3 on the first process and 7 on the other.
    assert [one["largest"], two["largest"]] == [3, 7]
    assert two["first"] is True
