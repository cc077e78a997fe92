"""Segmentation: a U-Net that learns, exact metrics, figures, and answers for any image."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from launch.engine import config as configs
from launch.engine.evaluation import evaluate, gather, prediction_inputs
from launch.engine.state import evaluation_variables
from launch.engine.steps import make_steps
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.errors import UserError
from tasks.figures import AttendedImage, ConfusionMatrix, SegmentedImage, Shown, SplitResults
from tasks.segmentation.data import DataConfig, SegmentationData, SegmentationExamples
from tasks.segmentation.losses import LossConfig
from tasks.segmentation.metrics import VOID, boundary_f1
from tasks.segmentation.task import TASK, SegmentationProcessor

SIZE = (8, 12)
NAMES = ("dark", "light")


def examples(count, seed):
    """Returns a light rectangle on a dark ground, both noisy; a frame of one pixel is void."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((count, *SIZE), np.uint8)
    for mask in labels:
        (top, low), (left, right) = (np.sort(rng.choice(side, 2, False)) for side in SIZE)
        mask[top : low + 1, left : right + 1] = 1
    images = np.where(labels[..., None] == 1, 170, 90) + rng.integers(-60, 60, (count, *SIZE, 3))
    labels[:, 0] = VOID
    return SegmentationExamples(images.astype(np.uint8), labels)


def experiment():
    return configs.override(
        configs.load_file("configs/segmentation.py"),
        {
            "data.image_size": SIZE,
            # What is slow to compile is tested where it is made.
            "data.augmentation.scale_min": 1.0,
            "data.augmentation.scale_max": 1.0,
            "data.augmentation.brightness": 0.0,
            "data.augmentation.contrast": 0.0,
            "data.augmentation.saturation": 0.0,
            "model.channels": (4, 6),
            "model.patch_size": 1,
            "model.attention": "gates",
            "model.dropout_rate": 0.0,
            "model.loss.dice": 1.0,
            "mesh.data": 1,
            "optimizer.learning_rate": 0.03,
            "optimizer.warmup_steps": 0,
            "optimizer.schedule": "constant",
            "optimizer.average_decay": 0.0,
            "training.batch_size": 8,
        },
    )


@pytest.fixture(scope="module")
def trained():
    """Returns a task, its steps, the variables after some of them, and the losses."""
    config = experiment()
    splits = {
        name: examples(count, count)
        for name, count in {"train": 24, "validation": 5, "test": 6}.items()
    }
    splits["test"].subsets["first"] = np.arange(6) < 2
    data = SegmentationData(splits, NAMES)
    processor = SegmentationProcessor(config.data, config.model, list(NAMES))
    task = TASK(config.data, config.model, processor, data)
    steps = make_steps(task, config)
    state, losses = steps.init(), []
    for _ in range(6):
        for batch in evaluation_batches(task.examples("train"), batch_size=8):
            state, metrics = steps.train(state, steps.place(batch))
            losses.append(float(metrics["loss"]))
    return task, steps, evaluation_variables(state), losses


@pytest.fixture(scope="module")
def evaluated(trained):
    task, steps, variables, _ = trained
    # 6 images in batches of 4: the last is filled up.
    return evaluate(task, steps, variables, "test", 4)


def test_it_learns(trained, evaluated):
    losses = trained[3]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    assert evaluated.metrics["pixel_accuracy"] > 0.8


def test_crops_of_the_training_images_only(trained):
    task = copy.copy(trained[0])
    task.data = dataclasses.replace(task.data, crop_size=(4, 5))
    seen = []

    def model(images, **options):
        seen.append(images.shape)
        return jnp.zeros((*images.shape[:3], len(NAMES)))

    task.model = dataclasses.replace(task.model, loss=LossConfig())
    (batch,) = evaluation_batches(task.examples("validation"), batch_size=5)
    loss, _ = task.loss(model, batch, jax.random.key(0))
    task.evaluate(model, batch)
    assert seen == [(5, 4, 5, 3), (5, *SIZE, 3)]
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)


def test_figures_of_a_split_are_exact(trained, evaluated):
    task, metrics, found = trained[0], evaluated.metrics, evaluated.outputs["labels"]
    truth = task.examples("test").labels
    real = truth != VOID
    assert evaluated.statistics["confusion"].sum() == evaluated.statistics["pixels"] == real.sum()
    np.testing.assert_allclose(metrics["pixel_accuracy"], np.mean(found[real] == truth[real]))
    iou = [
        np.sum(real & (found == k) & (truth == k)) / np.sum(real & ((found == k) | (truth == k)))
        for k in range(2)
    ]
    np.testing.assert_allclose([metrics["iou_dark"], metrics["iou_light"]], iou)
    np.testing.assert_allclose(metrics["mean_iou"], np.mean(iou))
    told = np.mean(found[:2][real[:2]] == truth[:2][real[:2]])
    np.testing.assert_allclose(metrics["pixel_accuracy_first"], told)
    assert 0 < metrics["mean_iou_first"] <= 1
    np.testing.assert_allclose(metrics["boundary_f1"], boundary_f1(truth, found, 2))
    assert 0 < metrics["loss"] < 1
    by_image = task.example_scores(evaluated.outputs, "test")
    assert by_image.shape == (6,)
    np.testing.assert_allclose(by_image.mean(), metrics["mean_iou"], rtol=1e-5)


def test_report_shows_truth_prediction_and_gates(trained, evaluated):
    task, steps, variables, _ = trained
    batch = next(iter(evaluation_batches(task.examples("test"), batch_size=4)))
    attention = jax.device_get(
        steps.attention(variables, prediction_inputs(task, steps.place(batch)))
    )
    assert attention["gate_1"].shape == (4, *SIZE, 1)
    shown = list(map(Shown, range(6)))
    arguments = (evaluated.statistics, evaluated.outputs, "test", shown)
    drawn = task.figures(SplitResults(*arguments, attention))
    kinds = [type(figure) for figure in drawn]
    assert kinds == [ConfusionMatrix, *[SegmentedImage] * 6, *[AttendedImage] * 2]
    assert drawn[-1].weights.shape == SIZE
    assert "gate 1" in drawn[-1].caption
    others = task.figures(SplitResults(*arguments))
    assert not any(isinstance(figure, AttendedImage) for figure in others)


@pytest.mark.parametrize("fit", ["resize", "tiles"])
def test_any_image_has_an_answer(trained, tmp_path, fit):
    task, steps, variables, _ = trained
    rng = np.random.default_rng(0)
    light = np.zeros((21, 30), bool)
    light[4:15, 8:22] = True
    big = np.where(light[..., None], 170, 90) + rng.integers(-20, 20, (21, 30, 3))
    Image.fromarray(big.astype(np.uint8)).save(tmp_path / "big.png")
    Image.fromarray(np.full((1, 1), 65535, np.uint16)).save(tmp_path / "dot.png")
    clear = np.zeros((9, 5, 4), np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    raw = [str(tmp_path / f"{name}.png") for name in ("big", "dot", "clear")]

    data = dataclasses.replace(task.data, fit=fit, image_size=SIZE)
    restored = TASK.restore(data, task.model, json.loads(json.dumps(task.assets())))
    steps = make_steps(restored, experiment())
    batches = evaluation_batches(restored.processor.encode(raw), batch_size=4)
    outputs = gather(
        (batch["id"], steps.predict(variables, prediction_inputs(restored, steps.place(batch))))
        for batch in batches
    )
    answers = json.loads(json.dumps(restored.processor.decode(raw, outputs)))
    gates = {"gate_1": np.full((3, *SIZE, 1), 0.5)}
    drawn = restored.input_figures(raw, outputs, gates)
    where = [AttendedImage] if fit == "resize" else []
    assert [[type(f) for f in row] for row in drawn] == [[SegmentedImage, *where]] * 3
    assert drawn[0][0].labels.shape == (21, 30)
    assert [answer["size"] for answer in answers] == [[21, 30], [1, 1], [9, 5]]
    for answer in answers:
        assert sum(answer["shares"].values()) == pytest.approx(1, abs=1e-3)
        masks = [coco.decode(mask) for mask in answer["masks"].values()]
        np.testing.assert_array_equal(np.sum(masks, axis=0), np.ones(answer["size"]))
    assert np.mean(coco.decode(answers[0]["masks"]["light"]) == light) > 0.8
    # Transparent pixels are blended with white.
    assert answers[2]["shares"]["light"] > 0.9
    assert answers[1]["text"] == "light 1.0000"


def test_what_does_not_fit_is_said_before_training(trained):
    task = trained[0]
    model = dataclasses.replace(task.model, loss=LossConfig(class_weights="1,2,3"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TASK, "load", lambda *_: task.dataset)
        with pytest.raises(UserError, match=r"config.model.loss.class_weights: got 3 numbers"):
            TASK.prepare(DataConfig(), model, None)
        ready = TASK.prepare(DataConfig(), task.model, None)
    assert ready.fingerprint == task.fingerprint
    np.testing.assert_array_equal(ready.class_weights, [1, 1])


def test_baselines_know_color_and_position(trained):
    found = {name: fit() for name, fit in trained[0].baselines().items()}
    assert set(found) == {"location_prior", "random_forest"}
    for metrics in found.values():
        assert 0 < metrics["mean_iou"] < metrics["pixel_accuracy"] < 1
    forest, prior = found["random_forest"], found["location_prior"]
    assert forest["pixel_accuracy"] > prior["pixel_accuracy"] + 0.1


@pytest.mark.parametrize(
    ("argument", "name", "data"),
    [
        ("camvid", "unet", "camvid"),
        ("gates(hidden_size=4, stride=1)", "unet_gates_hidden_size_4_stride_1", "camvid"),
        ("land_water", "unet", "land_water"),
        ("none,long", "unet_long", "camvid"),
        ("camvid_480x360", "unet", "camvid_480x360"),
    ],
)
def test_configs(argument, name, data):
    config = configs.load_file(f"configs/segmentation.py:{argument}")
    assert (config.name, config.data.name) == (name, data)


@pytest.mark.parametrize("argument", ["camvid,gate", "kamvid", "land_water,cbam(width=2)"])
def test_unknown_configs_are_refused(argument):
    with pytest.raises(UserError, match=r"config: .*expected one of"):
        configs.load_file(f"configs/segmentation.py:{argument}")
