"""Scanned layers in the engine: meshes, checkpoints, optimizers, other runs, exported weights."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from launch.engine import config as configs
from launch.engine.checkpoints import Checkpoints
from launch.engine.optimizers import OptimizerConfig, make_optimizer
from launch.engine.sharding import leaf_spec
from launch.engine.steps import make_steps
from tasks.common.backbones.stacking import layer_paths, with_layout
from tasks.common.backbones.transformer import SHARDING_RULES
from tasks.common.data.pipeline import train_iterator
from tasks.common.errors import UserError
from tasks.language_modeling.model import LanguageModel
from tests.launch.engine.scanned_model import CASES, LOOP, make_task
from tests.virtual_devices import on_eight_devices, on_eight_devices_once

MODULE = "tests.launch.engine.scanned_model"
SIZES = {"data": 2, "fsdp": 2, "tensor": 4, "sequence": 1}
SCAN = {"model.scan_layers": True, "model.dtype": "float32"}


@pytest.fixture(scope="module")
def found(tmp_path_factory, worker_id):
    cases = [case for case in CASES if not case.startswith("bfloat16")]
    lines = on_eight_devices_once(tmp_path_factory, worker_id, MODULE, *cases)
    return {line["case"]: line for line in lines}


def test_losses_are_those_of_one_device_and_of_a_loop(found):
    expected = found["loop"]["losses"]
    assert expected[-1] < expected[0] - 0.5
    for case in ("scan", "scan on a mesh"):
        np.testing.assert_allclose(found[case]["losses"], expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_losses_in_bfloat16_are_those_of_a_loop():
    loop, scan = on_eight_devices(MODULE, "bfloat16 loop", "bfloat16 scan on a mesh")
    np.testing.assert_allclose(scan["losses"], loop["losses"], rtol=0, atol=2e-2)


def test_stacked_weights_are_really_split(found):
    line = found["scan on a mesh"]
    assert line["shape"] == [3, 32, 4, 8]
    # fsdp splits D, tensor splits the heads.
    assert line["shards"] == 4
    assert found["scan"]["shards"] == 1


def test_every_stacked_array_is_split_as_its_layers(tmp_path):
    shapes = {}
    for scan in (False, True):
        task, config = make_task(tmp_path, {"model.scan_layers": scan})
        shapes[scan] = make_steps(task, config).abstract_state["params"]
    paths = jax.tree_util.tree_leaves_with_path(shapes[False])
    names = lambda path: "/".join(key.key for key in path)  # noqa: E731
    alone = {names(path): leaf.shape for path, leaf in paths}
    stacked = jax.tree_util.tree_leaves_with_path(shapes[True])
    counted = 0
    for path, leaf in stacked:
        spec = leaf_spec(names(path), leaf.shape, SHARDING_RULES, SIZES)
        for single in layer_paths(names(path), leaf.shape):
            counted += 1
            depth = len(leaf.shape) - len(alone[single])
            expected = leaf_spec(single, alone[single], SHARDING_RULES, SIZES)
            given = (*spec, *[None] * len(leaf.shape))[: len(leaf.shape)]
            wanted = (*[None] * depth, *expected, *[None] * len(leaf.shape))[: len(leaf.shape)]
            assert given == wanted
    assert counted == len(alone)
    path = "optimizer/1/mu/encoder/layers/stacked/attention/out/kernel"
    spec = leaf_spec(path, (3, 4, 16, 64), SHARDING_RULES, SIZES)
    assert spec == P(None, "tensor", None, "fsdp")


def stacked_params():
    return {"layers": {"stacked": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones((2, 3))}}}


@pytest.mark.parametrize(
    ("pattern", "decayed"),
    [("kernel$", {"kernel"}), (r"layers/\d+/", {"kernel", "bias"}), (r"^layers/[01]/b", {"bias"})],
)
def test_weight_decay_reads_the_paths_of_separate_layers(pattern, decayed):
    config = OptimizerConfig(
        name="sgd", learning_rate=1.0, beta1=0.0, clip_norm=0.0, weight_decay=0.5,
        weight_decay_on=pattern, schedule="constant",
    )  # fmt: skip
    optimizer, params = make_optimizer(config, 2), stacked_params()
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates = optimizer.update(nothing, optimizer.init(params), params)[0]["layers"]["stacked"]
    for name, update in updates.items():
        np.testing.assert_array_equal(update, -0.5 if name in decayed else 0.0)


def test_weight_decay_of_some_layers_is_refused():
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.1, weight_decay_on="layers/1/"), 2)
    with pytest.raises(
        UserError, match=r"weight_decay_on: .*matches layers/1/.* not layers/0/"
    ) as e:
        optimizer.init(stacked_params())
    assert "\n" not in str(e.value)


def test_identity_is_that_of_a_loop():
    config = configs.load_file("configs/language_modeling.py")
    changes = {"model.scan_layers": True, "model.loss_chunk_size": 7}
    assert configs.identity(configs.override(config, changes)) == configs.identity(config)
    more = configs.override(config, {"model.min_rows": 70})
    assert configs.identity(more) != configs.identity(config)


@pytest.mark.parametrize("scan_first", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_training_goes_on_in_the_other_layout(scan_first, tmp_path):
    average = {"optimizer.average_decay": 0.9}
    settings = [LOOP | {"model.dtype": "float32"} | average, SCAN | average]
    if scan_first:
        settings.reverse()
    (task, config), (_, other) = (make_task(tmp_path, given) for given in settings)
    first, second = make_steps(task, config), None
    state = first.init()
    batches = train_iterator(task.examples("train"), batch_size=8, seed=0, buckets=task.buckets)
    for _ in range(2):
        state, _ = first.train(state, first.place(next(batches)))
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(2, state, batches, 0.0)
        checkpoints.wait()
    task, _ = make_task(tmp_path, settings[1])
    second = make_steps(task, other)
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        restored = checkpoints.restore(2, second.abstract_state)
    for part in ("params", "average"):
        back = with_layout(restored[part], state[part])
        jax.tree.map(np.testing.assert_array_equal, back, state[part])
        assert jax.tree.structure(back) == jax.tree.structure(state[part])
    batch = next(batches)
    state, expected = first.train(state, first.place(batch))
    restored, metrics = second.train(restored, second.place(batch))
    np.testing.assert_allclose(metrics["loss"], expected["loss"], atol=1e-5)
    back = with_layout(restored["params"], state["params"])
    # Adam divides small gradients by their own size, so the second step tells moments apart.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), back, state["params"])


@pytest.mark.parametrize("data", ["tiny_shakespeare", "sst2", "path:my.txt"])
def test_the_large_config_has_its_size_for_any_data(data):
    config = configs.load_file(f"configs/language_modeling.py:{data},gpt_1b")
    # Two tokens of the task follow those of the tokenizer.
    vocabulary = config.data.text.vocabulary_size + 2
    model = nnx.eval_shape(lambda: LanguageModel(config.model, vocabulary, rngs=nnx.Rngs(0)))
    D, L, T, R = 2048, 24, 2048, 50_304
    attention, feedforward, norms = 4 * D * D + 4 * D, 8 * D * D + 5 * D, 4 * D
    expected = L * (attention + feedforward + norms) + (R + T) * D + 2 * D
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == expected
    assert expected == 1_315_819_520
