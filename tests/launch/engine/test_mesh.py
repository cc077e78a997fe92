"""Eight virtual devices in four meshes give the results of one device; three are slow tests.

The batch size is 18, so that two of the meshes need padding rows.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.launch.conftest import ROOT

SCRIPT = """
import json, pathlib, sys
from attention.kernels.blockwise.ring import Ring
from launch.engine import config as configs, evaluation, state as states, steps as engine
from launch.engine.devices import set_up_determinism
from launch.engine.sharding import MeshConfig, request_devices
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import train_iterator

base = configs.resolve(json.loads(sys.stdin.read()))
set_up_determinism()
request_devices(MeshConfig(cpu_devices=8))
folder = pathlib.Path(sys.argv[1])
paths = Paths.default(data_dir=folder, cache_dir=folder)
task = configs.task_class(base.task).prepare(base.data, base.model, paths)
meshes = {
    "single": {"cpu_devices": 1},
    "8": {"cpu_devices": 8},
    "2x4": {"cpu_devices": 8, "data": 2, "tensor": 4},
    "2x2x2": {"cpu_devices": 8, "data": 2, "fsdp": 2, "tensor": 2},
    "sequence": {"cpu_devices": 8, "data": 2, "tensor": 2, "sequence": 2},
}
rings = []
backward = Ring.backward
Ring.backward = lambda *given: rings.append(1) or backward(*given)
found = {}
for name in sys.argv[2:]:
    sizes = meshes[name]
    config = configs.override(base, {f"mesh.{key}": value for key, value in sizes.items()})
    compiled = engine.make_steps(task, config)
    state = compiled.init()
    batches = train_iterator(task.examples("train"), batch_size=config.training.batch_size,
                             seed=config.seed, buckets=task.buckets,
                             multiple=compiled.batch_shards)
    losses = []
    for _ in range(20):
        state, metrics = compiled.train(state, compiled.place(next(batches)))
        losses.append(float(metrics["loss"]))
    found[name] = {"losses": losses, "rings": len(rings)}
    size = config.training.evaluation_batch_size
    variables = states.evaluation_variables(state)
    evaluated = evaluation.evaluate(task, compiled, variables, "validation", size)
    outputs = {key: value.tolist() for key, value in evaluated.outputs.items()}
    found[name] |= {"metrics": evaluated.metrics, "outputs": outputs}
    query = state["params"]["encoder"]["layers"]["0"]["attention"]["query"]["kernel"]
    shards = {str(shard.index) for shard in query.addressable_shards}
    found[name]["shards"] = len(shards)
print(json.dumps(found))
"""


QUICK, SLOW = ("sequence",), ("8", "2x4", "2x2x2")
# Shards of a query kernel [D, N, H]: fsdp splits D, tensor splits N.
SHARDS = {"single": 1, "8": 1, "2x4": 4, "2x2x2": 4, "sequence": 2}


def losses_of(names, csv_file, folder):
    """Returns losses, shards and rings of one device and of the named meshes."""
    from launch.engine import config as configs

    base = configs.override(
        configs.load_file("configs/text_classification.py:movie_reviews,transformer"),
        {
            "data.train_file": str(csv_file),
            "data.text_column": "review",
            "data.label_column": "stars",
            "data.text.max_length": 16,
            "model.model_size": 32,
            "model.num_layers": 1,
            "model.num_heads": 4,
            "model.feedforward_size": 64,
            "model.prior": "none",
            "optimizer.learning_rate": 3e-3,
            "optimizer.warmup_steps": 0,
            "training.batch_size": 18,
            "training.evaluation_batch_size": 18,
            "training.steps": 20,
        },
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), "single", *names],
        cwd=ROOT,
        input=json.dumps(configs.to_dict(base)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(found, names):
    """Checks that the results of the meshes are those of one device, and their shards."""
    single = found["single"]
    for name in names:
        np.testing.assert_allclose(found[name]["losses"], single["losses"], rtol=0, atol=1e-4)
        for kind in ("metrics", "outputs"):
            assert found[name][kind].keys() == single[kind].keys()
            for key, value in single[kind].items():
                actual = found[name][kind][key]
                np.testing.assert_allclose(actual, value, rtol=0, atol=1e-3, err_msg=key)
    assert {name: found[name]["shards"] for name in found} == {
        name: SHARDS[name] for name in ("single", *names)
    }


@pytest.fixture(scope="module")
def found(csv_file, tmp_path_factory):
    return losses_of(QUICK, csv_file, tmp_path_factory.mktemp("mesh"))


def test_losses_are_those_of_one_device_and_weights_are_really_split(found):
    check(found, QUICK)
    assert found["single"]["rings"] == 0
    assert found["sequence"]["rings"] > 0


@pytest.mark.slow
def test_losses_of_other_meshes(csv_file, tmp_path):
    found = losses_of(SLOW, csv_file, tmp_path)
    check(found, SLOW)
    assert all(found[name]["rings"] == 0 for name in SLOW)


def test_the_model_learns(found):
    losses = found["single"]["losses"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
