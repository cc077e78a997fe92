"""`launch.compile` for virtual devices of this CPU."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.engine import compilation
from launch.engine.compilation import Compilation, CompiledStep, advice
from launch.engine.topologies import Topology

CONFIG = ["--config=configs/sequence_copy.py"]


@pytest.fixture(scope="module")
def compiled(command, tiny, tmp_path_factory):
    target = tmp_path_factory.mktemp("compiled") / "steps.json"
    flags = ["--topology=cpu:8", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    done = command("compile", *tiny, *flags, f"--json={target}", XLA_FLAGS="")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(target.read_text(encoding="utf-8"))


def test_options_that_the_compiler_lacks_are_left_out(monkeypatch):
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(3))
    with pytest.raises(jax.errors.JaxRuntimeError):
        lowered.compile({"xla_no_such_option": 1})
    options = {"cpu": {"xla_no_such_option": 1}}
    monkeypatch.setattr(compilation, "_COMPILER_OPTIONS", options)
    np.testing.assert_array_equal(compilation.compile_program(lowered, "cpu")(jnp.ones(3)), 2)


def test_mesh_and_parameters(compiled):
    printed, written = compiled
    assert "topology: cpu:8: 8 x cpu" in printed
    assert "mesh: data 2 x fsdp 2 x tensor 2 x sequence 1" in printed
    assert written["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    rows = {row["path"]: row for row in written["parameters"]}
    query = next(row for path, row in rows.items() if path.endswith("query/kernel"))
    size, heads, width = query["shape"]
    assert query["sharding"] == "fsdp, tensor, -"
    assert query["bytes_per_device"] == size * heads * width * 4 / 4


def test_both_steps_have_bytes_operations_and_kernels(compiled):
    printed, written = compiled
    train, evaluate = written["steps"]
    assert (train["step"], evaluate["step"]) == ("train", "evaluate")
    parameters = sum(row["bytes_per_device"] for row in written["parameters"])
    for step in written["steps"]:
        size = step["bytes_per_device"]
        assert size["parameters"] == parameters
        assert step["peak"] >= size["arguments"] + size["temporaries"] > parameters
        assert step["flops"] > 0
        assert not step["failure"]
        assert step["advice"] == []
        assert {each["kernel"] for each in step["kernels"]} <= {"native", "blockwise", "reference"}
        assert all(each["reason"] and each["calls"] for each in step["kernels"])
        assert step["seconds"].keys() == {"trace", "lower", "compile"}
    # The backward pass has twice the products of the forward pass.
    assert 2.5 < train["flops"] / evaluate["flops"] < 3.5
    assert train["bytes_per_device"]["optimizer"] >= 2 * parameters
    assert re.search(r"peak per device: \S+ [KM]B", printed)


def test_gradients_are_summed_over_the_devices_and_named_by_source(compiled):
    train = compiled[1]["steps"][0]
    kinds = {each["kind"] for each in train["collectives"]}
    assert kinds & {"all-reduce", "reduce-scatter"}
    assert any(re.match(r"(attention|tasks|launch)/\S+\.py:\d+", each["source"])
               for each in train["collectives"])  # fmt: skip


def step(**changed):
    size = {"parameters": 4, "optimizer": 8, "arguments": 12, "outputs": 0, "temporaries": 2}
    size |= changed.pop("bytes_per_device", {})
    return CompiledStep("train", {}, size, 0, [], [], {}, 0.0, **changed)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (step(), []),
        (step(bytes_per_device={"temporaries": 9, "optimizer": 0}), ["batch_size.*rematerialize"]),
        (step(bytes_per_device={"arguments": 40, "optimizer": 36}), ["mesh.fsdp=4.*mesh.data=2"]),
        (step(failure="Used 20 of 16"), ["mesh.fsdp=4 ", "temporaries take 2 .*batch_size"]),
        (
            step(failure="Used 20 of 16", bytes_per_device={"temporaries": 0}),
            ["mesh.fsdp=4 ", "temporaries do not fit into the memory: .*batch_size"],
        ),
    ],
)
def test_step_that_does_not_fit_gets_advice(one, expected):
    machine = Topology("v5e:2x4", "tpu", "TPU v5 lite", (), 16)
    compilation = Compilation(machine, {"data": 4, "fsdp": 2, "tensor": 1}, [], [one])
    found = advice(compilation, one)
    assert len(found) == len(expected)
    assert all(re.search(*pair) for pair in zip(expected, found, strict=True))
    unknown = dataclasses.replace(compilation, topology=dataclasses.replace(machine, memory=None))
    assert advice(unknown, one) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([*CONFIG], ["--topology is missing"]),
        ([*CONFIG, "--topology=h100"], ["--topology=h100: expected"]),
        ([*CONFIG, "--topology=cpu:8", "--steps=trains"], ["--steps=trains", "evaluate"]),
        ([*CONFIG, "--topology=cpu:8", "--steps="], ["--steps="]),
        ([*CONFIG, "--topology=cpu:8", "--json=/nowhere/x.json"], ["--json=/nowhere/x.json"]),
        ([*CONFIG, "--topology=cpu:8", "--json=/tmp"], ["--json=/tmp: is a directory"]),
        ([*CONFIG, "--topology=cpu:8", "--config.mesh.tensor=3"], ["tensor 3", "there are 8"]),
        (["--topology=cpu:8"], ["--config is missing"]),
    ],
)
def test_mistake_is_one_line(command, flags, words):
    done = command("compile", *flags, XLA_FLAGS="")
    assert done.returncode == 2, done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr
