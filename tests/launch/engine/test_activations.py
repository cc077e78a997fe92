"""Collectives of the train step of every task on eight virtual devices, and its results.

Activations are sharded by examples. So parameters are gathered, gradients are summed, and of
activations only tensor parallelism moves any: between the devices of its axis.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.launch.conftest import ROOT
from tests.tasks.contract import TASKS

# No other dimension of a program is a multiple of 11.
PRIME = 11
ROWS = 8 * PRIME

SCRIPT = """
import dataclasses, json, pathlib, sys
import jax, numpy as np
from launch.engine import compilation, config as configs, state as states
from launch.engine.collectives import collectives
from launch.engine.sharding import MeshConfig, request_devices
from launch.engine.steps import make_steps
from tests.tasks import contract

name, argument, folder, rows, *sizes = sys.argv[1:]
sizes = dict(zip(("data", "fsdp", "tensor"), map(int, sizes), strict=True))
request_devices(MeshConfig(cpu_devices=8))
argument, *fields = argument.split(";")
fields = {key: int(value) for key, value in (field.split("=") for field in fields)}
subject = contract.make_subject(name, pathlib.Path(folder), argument or None, **fields)
two = not argument and hasattr(subject.config.model, "num_layers")
changes = {"model.num_layers": 2} if two else {}
mesh = {"mesh.cpu_devices": 8} | {f"mesh.{axis}": size for axis, size in sizes.items()}
def shifted(leaf, random):
    shift = 0.02 * random.standard_normal(leaf.shape)
    return jax.device_put(leaf + shift.astype(leaf.dtype), leaf.sharding)

found = {}
for number, where in (("one", {"mesh.cpu_devices": 1}), ("eight", mesh)):
    config = configs.override(subject.config, changes | where)
    kind = type(subject.task)
    task = kind(config.data, config.model, subject.task.processor, subject.task.dataset)
    steps = make_steps(task, config)
    state, random = steps.init(), np.random.default_rng(0)
    # With biases of 0, frames that are masked out of the input are vectors of zeros, where layer
    # norm multiplies the rounding of gradients by 1 / sqrt(epsilon).
    state["params"] = jax.tree.map(lambda leaf: shifted(leaf, random), state["params"])
    batch = steps.place(next(iter(subject.batches(4, multiple=steps.batch_shards))))
    state, metrics = steps.train(state, batch)
    _, again = steps.train(state, batch)
    found[number] = {
        "first": {key: float(value) for key, value in metrics.items()},
        "second": {key: float(value) for key, value in again.items()},
    }
large = configs.override(config, {"training.batch_size": int(rows)})
batch = compilation._largest_batch(task, large, steps, "train")
program = steps.train.trace(steps.abstract_state, batch).lower().compile()
abstract = jax.tree_util.tree_leaves_with_path(steps.abstract_state)
found["collectives"] = [dataclasses.asdict(each) for each in collectives(program.as_text())]
found["state"] = {
    states.path_name(path): [leaf.shape, str(leaf.sharding.spec)] for path, leaf in abstract
}
found["batch"] = {key: leaf.shape for key, leaf in batch.items()}
print(json.dumps(found))
"""


def compiled(name, folder, *sizes, argument=""):
    """Returns the collectives of a train step on a mesh, and its results there and on one device.

    The model is the small one of the task, or that of a config's argument, with changed fields.
    """
    place = str(folder / "data")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, argument, place, str(ROWS), *map(str, sizes)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def dimensions(text):
    return [int(size) for size in re.findall(r"\d+", re.sub(r"[a-z]+\d*\[", "[", text))]


def of_activations(found):
    """Returns the collectives of arrays with a dimension of examples."""
    sizes = [shape for shape, _ in found["state"].values()]
    sizes += [shape[1:] for shape in found["batch"].values()]
    assert not any(size and size % PRIME == 0 for shape in sizes for size in shape)
    return [
        each
        for each in found["collectives"]
        if any(size and size % PRIME == 0 for size in dimensions(each["shape"]))
    ]


def check_results(found):
    """Checks that a batch of 4 on 8 devices gives the results of one device."""
    for step, tolerance in (("first", 1e-4), ("second", 2e-2)):
        one, eight = found["one"][step], found["eight"][step]
        assert one == pytest.approx(eight, rel=tolerance, abs=1e-5), step


def check_state(found):
    """Checks that the optimizer's and the EMA's leaves are sharded like their parameters."""
    params = {
        path.removeprefix("params/"): leaf
        for path, leaf in found["state"].items()
        if path.startswith("params/")
    }
    for path, leaf in found["state"].items():
        if path.startswith(("optimizer/", "average/")):
            of = [name for name in params if path.endswith(f"/{name}")]
            assert leaf == max((len(name), params[name]) for name in of)[1] if of else not leaf[0]


QUICK = ("text_classification",)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TASKS],
)
def test_no_collective_has_activations(tmp_path, name):
    found = compiled(name, tmp_path, 4, 2, 1)
    assert not of_activations(found)
    assert {each["kind"] for each in found["collectives"]} <= {
        "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    }  # fmt: skip
    check_results(found)
    check_state(found)
    # Lag attention has fewer parameters than a row of other models, and replicates them.
    split = any("fsdp" in spec for _, spec in found["state"].values())
    assert split == (name != "forecasting")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("text_classification", "movie_reviews,transformer"),
        ("text_classification", "movie_reviews,bigru"),
        ("translation", "multi30k,transformer"),
        ("translation", "multi30k,r_drop"),
        ("image_classification", "digits,vit"),
        ("detection", "nuclei,mask_rcnn"),
        ("forecasting", "etth1,patchtst"),
        ("forecasting", "etth1,itransformer"),
        ("forecasting", "etth1,informer;label_length=8"),
        ("recommendation", "movielens_100k,bert4rec"),
        ("recommendation", "movielens_100k,hybrid"),
        ("recommendation", "movielens_100k,acf"),
        ("recommendation", "movielens_100k,nais"),
        ("speech_recognition", "spoken_digits,pyramid,additive"),
        ("speech_recognition", "spoken_digit_strings"),
        ("speech_recognition", "spoken_digits,transformer,transformer_decoder"),
    ],
)
def test_no_collective_of_other_models_has_activations(tmp_path, name, argument):
    found = compiled(name, tmp_path, 4, 2, 1, argument=argument)
    assert not of_activations(found)
    check_results(found)
    check_state(found)


@pytest.mark.slow
def test_tensor_parallelism_sums_two_activations_per_layer_and_pass(tmp_path):
    """Counts in two layers the sums after attention and feed-forward, and those of gradients."""
    found = compiled("language_modeling", tmp_path, 2, 2, 2)
    check_results(found)
    moved = of_activations(found)
    assert {each["group_size"] for each in moved} == {2}
    layers = [each for each in moved if "attention/projection.py:" in each["source"]]
    forward = [each for each in layers if "transpose" not in each["op_name"]]
    assert [each["kind"] for each in forward] == ["all-reduce"] * 4
