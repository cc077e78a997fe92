"""The convolutional network, every map attention in it, and its batch statistics in training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import nnx

from attention import inspect, registry
from launch.engine import config as configs
from launch.engine import state as states
from launch.engine.evaluation import evaluate
from launch.engine.sharding import MeshConfig, leaf_spec
from launch.engine.steps import make_steps
from launch.runs import directory
from launch.runs import run as runs
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.errors import UserError
from tasks.figures import AttendedImage, Shown, SplitResults
from tasks.image_classification.convnet import ConvNet, ConvNetConfig
from tasks.image_classification.data import DataConfig
from tasks.image_classification.task import TASK
from tests.attention.compiled import compiled
from tests.attention.subjects import normal

NAMES = registry.names("map_attention")
# One stage is enough to train, two where stages matter.
ONE = ConvNetConfig(channels=(8,), dropout_rate=0.0)
TWO = dataclasses.replace(ONE, channels=(4, 8), attention="cbam")
DATA = DataConfig(shift=0.0)


def experiment(model, **training):
    return configs.override(
        configs.load_file("configs/image_classification.py:convnet"),
        {
            "data.shift": 0.0,
            "model.channels": model.channels,
            "model.attention": model.attention,
            "model.dropout_rate": model.dropout_rate,
            "mesh.data": 1,
            # Steps that show: few are taken.
            "optimizer.learning_rate": 0.02,
            "optimizer.warmup_steps": 0,
            "optimizer.schedule": "constant",
            **{f"training.{name}": value for name, value in training.items()},
        },
    )


def prepared(model):
    return TASK.prepare(DATA, model, None)


def first_batch(task, size=16):
    return next(iter(evaluation_batches(task.examples("train"), batch_size=size)))


def trained(model, count=3):
    """Returns a task, a batch, and the states before and after some steps on it."""
    task = prepared(model)
    steps = make_steps(task, experiment(model, batch_size=16))
    batch = first_batch(task)
    state = steps.init()
    before = jax.device_get(state)
    for _ in range(count):
        state, metrics = steps.train(state, steps.place(batch))
    assert np.isfinite(metrics["loss"])
    return task, batch, before, state


@functools.partial(nnx.jit, static_argnums=0)
def evaluated(task, model, batch):
    return task.predict(model, batch)["probabilities"], task.attention(model, batch)


def merged(task, state):
    graphdef = states.graph_definition(task, 0)
    return states.merge_model(graphdef, state["params"], state["statistics"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_every_map_attention_trains_and_has_a_say(name):
    model = dataclasses.replace(ONE, attention=name)
    task, batch, before, state = trained(model)
    learned = state["params"]["stages"]["0"]["attention"]
    start = before["params"]["stages"]["0"]["attention"]
    moved = jax.tree.map(lambda old, new: float(np.abs(new - old).max()), start, learned)
    assert any(change > 1e-5 for change in jax.tree.leaves(moved))
    trained_model = merged(task, state)
    outputs, attention = evaluated(task, trained_model, batch)
    trained_model.stages[0].attention = None
    assert np.abs(outputs - evaluated(task, trained_model, batch)[0]).max() > 1e-3
    (weights,) = attention.values()
    assert len(weights) == len(batch["label"])
    assert np.isfinite(weights).all()


def test_a_step_moves_the_statistics_by_the_moments_of_the_batch():
    """Mean and variance of the first convolution, by SciPy."""
    _, batch, before, state = trained(ONE, count=1)
    kernel = before["params"]["stages"]["0"]["first"]["kernel"]
    maps = np.stack(
        [
            [
                scipy.ndimage.correlate(image[..., 0], kernel[:, :, 0, c], mode="constant")
                for c in range(8)
            ]
            for image in batch["image"].astype(np.float64)
        ]
    )
    found = state["statistics"]["stages"]["0"]["first"]["norm"]
    np.testing.assert_allclose(found["mean"], 0.1 * maps.mean(axis=(0, 2, 3)), atol=1e-6)
    variance = maps.transpose(1, 0, 2, 3).reshape(8, -1).var(axis=1, ddof=1)
    np.testing.assert_allclose(found["variance"], 0.9 + 0.1 * variance, rtol=1e-5)


@pytest.mark.slow
def test_statistics_are_saved_with_the_checkpoint(tmp_path):
    config = experiment(TWO, steps=30, evaluate_every=30, log_every=30, batch_size=32)
    record = runs.run(config, tmp_path / "run", None, "", with_baselines=False)
    task = prepared(TWO)
    steps, variables, _ = directory.load_variables(task, config, tmp_path / "run")
    initial = steps.init()["statistics"]
    pairs = zip(jax.tree.leaves(initial), jax.tree.leaves(variables["statistics"]), strict=True)
    assert all((np.abs(new - old) > 1e-4).any() for old, new in pairs)
    again = evaluate(task, steps, variables, "test", 64)
    assert again.metrics == pytest.approx(record["metrics"])
    # They matter: with those of the start the figures are others.
    other = evaluate(task, steps, variables | {"statistics": initial}, "test", 64)
    assert other.metrics["loss"] != pytest.approx(record["metrics"]["loss"], rel=1e-3)


def test_training_normalises_by_the_batch_and_evaluation_does_not():
    task, batch, _, state = trained(TWO)
    model, images = merged(task, state), jnp.asarray(batch["image"])
    call = nnx.jit(ConvNet.__call__, static_argnames="training")
    evaluated, in_training = call(model, images), call(model, images, training=True)
    assert np.abs(evaluated - in_training).max() > 1e-2
    # In evaluation a image's logits are its own.
    np.testing.assert_allclose(call(model, images[:1]), call(model, images)[:1], atol=1e-5)
    assert np.abs(call(model, images[:4], training=True) - in_training[:4]).max() > 1e-3


def test_rows_of_weight_zero_count_for_nothing():
    task = prepared(TWO)
    batch = first_batch(task, 6)
    real = {name: value[:4] for name, value in batch.items()}
    padded = batch | {"weight": np.array([1, 1, 1, 1, 0, 0], np.float32)}

    @nnx.jit
    def step(model, batch):
        loss, slopes = nnx.value_and_grad(
            lambda model: task.loss(model, batch, jax.random.key(0))[0]
        )(model)
        return loss, slopes, nnx.state(model, nnx.BatchStat)

    results = [step(task.build_model(nnx.Rngs(0)), rows) for rows in (real, padded)]
    leaves = [jax.tree.leaves(result) for result in results]
    for expected, found in zip(*leaves, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_any_size_of_picture():
    model = ConvNet(TWO, 3, 5, rngs=nnx.Rngs(0))
    for sides in ((1, 1), (7, 12)):
        logits, weights = compiled(model)(jnp.ones((2, *sides, 3)), return_weights=True)
        assert logits.shape == (2, 5)
        grids = TWO.sides(*sides)
        assert [weights[name].shape[1:3] for name in ("stage_1", "stage_2")] == grids
    assert TWO.sides(7, 12) == [(7, 12), (4, 6)]
    with pytest.raises(ValueError, match=r"images: got shape \[2, 8, 8, 1\], expected .* C=3"):
        model(jnp.ones((2, 8, 8, 1)))


def test_weights_of_the_default_config():
    model = jax.eval_shape(lambda: nnx.state(ConvNet(ConvNetConfig(), 1, 10, rngs=nnx.Rngs(0))))
    sizes = [(1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    kernels = sum(9 * a * b + 2 * b for a, b in sizes)
    statistics = sum(2 * b for _, b in sizes)
    found = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert found == kernels + statistics + 128 * 10 + 10


def test_dropout_follows_its_key():
    model = ConvNet(dataclasses.replace(ONE, dropout_rate=0.5), 1, 10, rngs=nnx.Rngs(0))
    images = jnp.asarray(normal(0, 2, 8, 8, 1))
    run = compiled(model)
    first, again, other = (run(images, dropout_key=jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_capture_finds_the_attention_of_each_stage():
    model = ConvNet(TWO, 1, 10, rngs=nnx.Rngs(0))
    images = jnp.asarray(normal(0, 2, 8, 8, 1))
    _, returned = model(images, return_weights=True)
    captured = inspect.capture(model, images)
    assert list(captured) == ["stages/0/attention", "stages/1/attention"]
    for found, expected in zip(captured.values(), returned.values(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize(("attention", "shown"), [("cbam", 2), ("se", 0), ("none", 0)])
def test_figures(attention, shown):
    model = dataclasses.replace(TWO, attention=attention)
    task = prepared(model)
    batch = first_batch(task, 3)
    weights = jax.device_get(nnx.jit(task.attention)(task.build_model(nnx.Rngs(0)), batch))
    statistics = {"confusion": np.eye(10)}
    outputs = {"probabilities": np.eye(10)[task.examples("train").labels]}
    examples = list(map(Shown, range(3)))
    _, *drawn = task.figures(SplitResults(statistics, outputs, "train", examples, weights))
    # Without spatial weights the images are drawn alone.
    assert len(drawn) == 3 * max(shown, 1)
    assert [figure.weights is not None for figure in drawn] == [shown > 0] * len(drawn)
    if shown:
        label = task.examples("train").labels[0]
        assert drawn[1].caption == (
            f"train example 0: predicted {label} (1.00), true {label} (stage 2)"
        )
        assert isinstance(drawn[0], AttendedImage)
        assert [figure.weights.shape for figure in drawn[:2]] == [(8, 8), (4, 4)]
        expected = weights["stage_1"][0].mean(axis=-1)
        np.testing.assert_allclose(drawn[0].weights, expected, rtol=1e-6)


# ---------------------------------------------------------------- configs


def test_kernels_are_split_by_their_outputs():
    path, shape = "stages/1/first/kernel", (3, 3, 4, 8)
    sizes = {"fsdp": 2, "tensor": 2}
    spec = leaf_spec(path, shape, TASK.sharding_rules, sizes)
    assert tuple(spec) == (None, None, None, ("fsdp", "tensor"))
    assert MeshConfig().tensor == 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("channels", (), r"channels: got \[\], expected at least one"),
        ("channels", (8, 0), r"channels: got \[8, 0\], expected .* at least 1"),
        ("dropout_rate", 1.0, "dropout_rate: got 1.0"),
        ("momentum", 0.0, "momentum: got 0.0"),
        ("dtype", "float64", "dtype: got 'float64'"),
        ("attention", "cbm", "attention: got 'cbm', expected one of .*; did you mean 'cbam'"),
        ("attention", "none(reduction=2)", "attention: got 'none.*', expected 'none' without"),
        ("attention", "se(reducton=2)", "attention: .*got option 'reducton' .*'reduction'"),
        ("attention", "se(reduction=0)", r"attention: 'se\(reduction=0\)': reduction: got 0"),
        ("attention", "axial(num_heads=3)", "attention: .*num_heads: got 3, expected a positive"),
    ],
)
def test_impossible_configs_begin_with_the_field(field, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ConvNetConfig(**{field: value})


def test_configs():
    load = configs.load_file
    plain, spec = (load(f"configs/image_classification.py:convnet{more}") for more in ("", ",cbam"))
    assert (plain.name, plain.model) == ("convnet", ConvNetConfig())
    assert (spec.name, spec.model.attention) == ("convnet_cbam", "cbam")
    spec = load("configs/image_classification.py:convnet,se(reduction=4)")
    assert (spec.name, spec.model.attention) == ("convnet_se_reduction_4", "se(reduction=4)")
    with pytest.raises(UserError, match="attention: got 'cbm'"):
        load("configs/image_classification.py:convnet,cbm")
