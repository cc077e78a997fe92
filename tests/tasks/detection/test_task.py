"""Detection by the contract, on a toy COCO file: bright squares and dim bars on dark ground."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from launch.engine import config as configs
from launch.engine.config import TrainingConfig, experiment, load_file, resolve
from launch.engine.evaluation import evaluate
from launch.engine.optimizers import OptimizerConfig
from launch.engine.steps import make_steps
from launch.reporting.figures import draw
from tasks.common.backbones.resnet import ResNetConfig
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.errors import UserError
from tasks.detection.augmentation import AugmentationConfig
from tasks.detection.data import DataConfig
from tasks.detection.models.detr import DETRConfig
from tasks.detection.models.heads import HeadsConfig
from tasks.detection.models.mask_rcnn import MaskRCNNConfig
from tasks.detection.models.rpn import RPNConfig
from tasks.detection.ops.pasting import paste
from tasks.detection.task import TASK
from tasks.figures import AttendedImage, DetectedImage, Shown, SplitResults
from tests.tasks.detection.rle import from_rle

SIDE = 32
BACKBONE = ResNetConfig(
    channels=(8, 12), depths=(1, 1), norm="group", stem_stride=2, attention="cbam"
)
MODEL = MaskRCNNConfig(
    backbone=BACKBONE,
    pyramid_channels=8,
    rpn=RPNConfig(sizes=(8, 16), ratios=(1.0,), samples=32, pre_nms_top_k=20, post_nms_top_k=12),
    heads=HeadsConfig(
        samples=12,
        positive_fraction=0.5,
        box_resolution=3,
        hidden_size=16,
        mask_resolution=4,
        mask_channels=8,
        mask_convolutions=1,
        canonical_scale=8.0,
        pre_nms_top_k=20,
        detections=6,
    ),
)
DETR = DETRConfig(
    backbone=dataclasses.replace(BACKBONE, attention="none"),
    model_size=16,
    num_heads=2,
    feedforward_size=16,
    encoder_layers=1,
    decoder_layers=2,
    queries=6,
)
# Height and width, and objects: label, x, y, width, height.
PICTURES = {
    "train": [
        ((32, 32), [(0, 4, 4, 10, 10), (1, 18, 6, 6, 18)]),
        ((32, 32), [(0, 16, 14, 12, 12)]),
        ((24, 28), [(1, 3, 2, 6, 20), (0, 14, 8, 10, 10)]),
        ((32, 32), []),
    ],
    "validation": [((32, 32), [(0, 8, 8, 10, 10)])],
    "test": [
        ((32, 32), [(0, 6, 6, 10, 10), (1, 20, 4, 6, 20)]),
        ((48, 64), [(0, 20, 12, 20, 20)]),
        ((32, 32), []),
    ],
}


def write(folder):
    for split, pictures in PICTURES.items():
        images, annotations = [], []
        for number, ((height, width), objects) in enumerate(pictures):
            random = np.random.default_rng(number)
            image = random.integers(0, 20, (height, width, 3)).astype(np.uint8)
            name = f"{split}-{number}.png"
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for label, x, y, w, h in objects:
                image[y : y + h, x : x + w] = 230 if label == 0 else 110
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append(
                    {"image_id": number, "category_id": label, "bbox": [x, y, w, h]}
                    | {"segmentation": [corners]}
                )
            Image.fromarray(image).save(folder / name)
        categories = [{"id": 0, "name": "square"}, {"id": 1, "name": "bar"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    write(folder)
    return DataConfig(path=str(folder), image_size=SIDE)


@pytest.fixture(scope="module")
def task(data):
    return TASK.prepare(data, MODEL, None)


def engine(task, data, model, devices=1):
    config = experiment(
        task="detection",
        name="toy",
        data=data,
        model=model,
        optimizer=OptimizerConfig(learning_rate=0.01, schedule="constant", clip_norm=5.0),
        training=TrainingConfig(batch_size=4, evaluation_batch_size=4),
    )
    config["mesh"]["cpu_devices"] = devices
    return make_steps(task, resolve(config))


@pytest.fixture(scope="module")
def compiled(task, data):
    """Steps, and a batch of the training split."""
    (batch,) = evaluation_batches(task.examples("train"), batch_size=4)
    return engine(task, data, MODEL), batch


@pytest.fixture(scope="module")
def learned(compiled):
    """Steps, and the state and losses after 60 of them on one batch."""
    steps, batch = compiled
    return steps, *train(steps, batch, 60)


def train(steps, batch, count):
    state, losses = steps.init(), []
    for _ in range(count):
        state, metrics = steps.train(state, steps.place(batch))
        losses.append(jax.device_get(metrics))
    return state, losses


def perfect(task, split, masks=True):
    """Returns the outputs of a perfect model."""
    rows = []
    examples = task.examples(split)
    for index in range(len(examples)):
        example = examples[index]
        there = example["labels"] >= 0
        row = {
            "boxes": np.zeros((3, 4), np.float32),
            "scores": np.zeros(3, np.float32),
            "labels": np.zeros(3, np.int32),
            "valid": np.arange(3) < there.sum(),
        }
        row["boxes"][: there.sum()] = example["boxes"][there]
        row["labels"][: there.sum()] = example["labels"][there]
        row["scores"][: there.sum()] = 0.9
        if masks:
            row["masks"] = np.ones((3, 8, 8), np.float16)
        rows.append(row)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


STATISTICS = {"class": {"total": 3.0, "count": 2.0}, "mask": {"total": 0.0, "count": 0.0}}


# ---------------------------------------------------------------- Mask R-CNN


@pytest.mark.slow
def test_steps_lower_every_loss(learned):
    _, _, losses = learned
    names = ["objectness_loss", "proposal_box_loss", "class_loss", "box_loss", "mask_loss"]
    assert set(names) <= losses[0].keys()
    for row in losses:
        assert row["loss"] == pytest.approx(sum(row[name] for name in names), rel=1e-5)
    first, last = (
        {name: np.mean([row[name] for row in part]) for name in [*names, "loss"]}
        for part in (losses[:5], losses[-5:])
    )
    assert last["loss"] < 0.5 * first["loss"]
    for name in ("objectness_loss", "class_loss", "mask_loss"):
        assert last[name] < first[name], name


def test_rows_without_weight_count_for_nothing(compiled):
    steps, batch = compiled
    weighed = {**batch, "weight": np.array([1, 1, 1, 0], np.float32)}
    other = {name: value.copy() for name, value in weighed.items()}
    other["image"][3], other["boxes"][3], other["labels"][3] = 255, [3, 3, 9, 9], 1
    other["instances"][3] = 1
    found = [train(steps, each, 1) for each in (weighed, other)]
    assert found[0][1][0]["loss"] == found[1][1][0]["loss"]
    for left, right in zip(*(jax.tree.leaves(state["params"]) for state, _ in found), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


@pytest.mark.slow
def test_the_trained_model_finds_what_is_there(task, learned):
    steps, state, _ = learned
    variables = {"params": state["params"], "statistics": state["statistics"]}
    result = evaluate(task, steps, variables, "train", 4)
    assert set(TASK.table_metrics) - {"dsb2018_score"} <= result.metrics.keys()
    assert np.isfinite(list(result.metrics.values())).all()
    assert result.metrics["box_ap50"] > 0.5
    assert result.outputs["masks"].shape == (4, 6, 8, 8)
    # Padding rows change nothing.
    first = evaluate(task, steps, variables, "test", 4)
    assert first.outputs["valid"].shape == (3, 6)
    assert first.outputs["scores"].max() <= 1
    again = task.metrics(first.statistics, first.outputs, "test")
    assert again == first.metrics
    assert np.mean(task.example_scores(first.outputs, "test")) == pytest.approx(
        first.metrics["box_ap50"], abs=1e-6
    )


# ---------------------------------------------------------------- on the host


def test_what_is_right_about_everything_has_an_ap_of_1(task):
    metrics = task.metrics(STATISTICS, perfect(task, "test"), "test")
    for name in ("box_ap", "box_ap50", "mask_ap50", "mask_ap75"):
        assert metrics[name] == pytest.approx(1, abs=1e-6), name
    # The second image is scaled: boxes come back in its own pixels.
    assert metrics["class_loss"] == 1.5
    assert metrics["mask_loss"] == 0
    assert metrics["loss"] == 1.5


def test_nothing_found_is_0_and_no_nan(task):
    outputs = perfect(task, "test")
    outputs["valid"][:] = False
    metrics = task.metrics(STATISTICS, outputs, "test")
    assert metrics["box_ap50"] == metrics["mask_ap"] == 0
    assert np.isfinite(list(metrics.values())).all()
    assert not task.example_scores(outputs, "test").any()


def test_figures(task):
    outputs = perfect(task, "test")
    attention = {"stage_1": np.ones((3, 16, 16, 8)), "stage_2": np.ones((3, 1, 1, 12))}
    shown = list(map(Shown, range(3)))
    drawn = task.figures(SplitResults(STATISTICS, outputs, "test", shown, attention))
    found = [figure for figure in drawn if isinstance(figure, DetectedImage)]
    assert [len(figure.boxes) for figure in found] == [2, 1, 0]
    assert found[0].caption == "test-0.png: 2 found, 2 true"
    assert found[0].labels == ["square", "bar"]
    assert found[1].image.shape == (24, 32, 3)
    assert found[1].masks.shape == (1, 24, 32)
    np.testing.assert_allclose(found[1].truth_boxes, [[10, 6, 20, 16]])
    maps = [figure for figure in drawn if isinstance(figure, AttendedImage)]
    # A channel gate has no spatial weights.
    assert [figure.weights.shape for figure in maps] == [(16, 16), (12, 16), (16, 16)]
    assert "img" in draw(found[2])


# ---------------------------------------------------------------- predict


def test_predictions_are_in_the_pixels_of_the_file(task, tmp_path):
    restored = TASK.restore(
        DataConfig(image_size=SIDE), MODEL, json.loads(json.dumps(task.assets()))
    )
    paths = [str(tmp_path / f"{name}.png") for name in ("large", "dot")]
    Image.new("RGB", (100, 60)).save(paths[0])
    Image.new("RGB", (1, 1)).save(paths[1])
    inputs = restored.processor.encode(paths)
    assert inputs[0]["size"].tolist() == [19, 32]
    assert inputs[1]["image"].shape == (SIDE, SIDE, 3)
    outputs = {
        "boxes": np.array([[[0, 0, 16, 19], [1, 1, 2, 2]], [[0, 0, 1, 1]] * 2], np.float32),
        "scores": np.array([[0.75, 0.25], [0, 0]], np.float32),
        "labels": np.array([[1, 0], [0, 0]]),
        "valid": np.array([[True, True], [False, False]]),
        "masks": np.ones((2, 2, 8, 8), np.float16),
        "original": np.stack([inputs[index]["original"] for index in range(2)]),
    }
    attention = {"stage_1": np.ones((2, 16, 16, 8))}
    found, nothing = restored.processor.decode(paths, outputs)
    assert (found["height"], found["width"]) == (60, 100)
    first, second = found["objects"]
    assert (first["label"], first["score"], first["box"]) == ("bar", 0.75, [0, 0, 50, 60])
    masks = from_rle([row["mask"] for row in found["objects"]], 60, 100)
    boxes = np.array([row["box"] for row in found["objects"]])
    whole = paste(outputs["masks"][0], boxes, 60, 100) >= 0.5
    np.testing.assert_array_equal(masks, whole)
    assert masks[0, :, :50].mean() > 0.95
    assert second["label"] == "square"
    assert found["text"].splitlines() == [f"{paths[0]}: 1 bar", "  0.7500  bar  at 0 0 50 60"]
    assert nothing["objects"] == []
    assert nothing["text"] == f"{paths[1]}: nothing"
    json.dumps([found, nothing])
    (picture, stage), (empty, _) = restored.input_figures(paths, outputs, attention)
    assert picture.caption == f"{paths[0]}: 1 found"
    assert picture.truth_boxes is None
    np.testing.assert_array_equal(picture.boxes, [[0, 0, 16, 19]])
    assert stage.weights.shape == (10, 16)
    assert empty.image.shape == (1, 1, 3)
    assert not len(empty.boxes)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png: not an image"):
        restored.processor.encode([str(tmp_path / "text.png")])[0]


# ---------------------------------------------------------------- DETR


@pytest.mark.slow
def test_detr_learns_the_boxes(data):
    task = TASK.prepare(data, DETR, None)
    assert not task.processor.predicts_masks
    steps = engine(task, data, DETR)
    (batch,) = evaluation_batches(task.examples("train"), batch_size=4)
    state, losses = train(steps, batch, 60)
    assert losses[-1]["loss"] < 0.5 * losses[0]["loss"]
    assert {"class_loss", "class_1_loss", "overlap_loss"} <= losses[0].keys()
    variables = {"params": state["params"], "statistics": state["statistics"]}
    outputs = jax.device_get(steps.evaluate(variables, batch)[1])
    assert outputs["boxes"].shape == (4, 6, 4)
    assert (np.diff(outputs["scores"], axis=1) <= 0).all()
    metrics = task.metrics(STATISTICS, outputs, "train")
    assert "mask_ap" not in metrics
    assert metrics["box_ap50"] > 0.2


def test_detr_needs_a_query_for_each_object(data):
    few = dataclasses.replace(DETR, queries=1)
    with pytest.raises(UserError, match=r"config\.model\.queries: got 1, .* 2 objects"):
        TASK.prepare(data, few, None)


def test_attention_of_detr_is_of_its_detections(data):
    task = TASK.prepare(data, DETR, None)
    model = task.build_model(nnx.Rngs(0))
    (batch,) = evaluation_batches(task.examples("train"), batch_size=4)
    weights = np.asarray(nnx.jit(task.attention)(model, batch)["objects"])
    assert weights.shape == (4, 6, 64)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    # The third image has 24 x 28 pixels: 6 x 7 positions of 8 x 8.
    inside = weights[2].reshape(6, 8, 8)
    assert not inside[:, 6:].any()
    assert not inside[:, :, 7:].any()
    outputs = perfect(task, "train", masks=False)
    shown = list(map(Shown, range(4)))
    drawn = task.figures(SplitResults(STATISTICS, outputs, "train", shown, {"objects": weights}))
    assert drawn[5].caption == "train-2.png (most confident object)"
    np.testing.assert_array_equal(drawn[5].weights, inside[0, :6, :7])


# ---------------------------------------------------------------- data, configs


def test_augmented_pictures_are_those_of_training_alone(data, task):
    changed = dataclasses.replace(
        data, augmentation=AugmentationConfig(flip=True, scale_min=0.8, scale_max=1.2)
    )
    assert TASK.prepare(changed, MODEL, None).fingerprint == task.fingerprint


@pytest.mark.parametrize("data", ["nuclei", "clothes_on_satellite", "trees", "path:mine.json"])
@pytest.mark.parametrize("model", ["", ",long", ",detr", ",cbam(reduction=4)"])
def test_configs(data, model):
    config = load_file(f"configs/detection.py:{data}{model}")
    expected = {"": "mask_rcnn", ",long": "mask_rcnn_long", ",detr": "detr"}
    assert config.name == expected.get(model, "mask_rcnn_cbam_reduction_4")
    assert config.data.name == {"path:mine.json": "own_mine"}.get(data, data)
    attention = "cbam(reduction=4)" if "cbam" in model else "none"
    assert config.model.backbone.attention == attention


def test_config_mistakes():
    with pytest.raises(UserError, match=r"did you mean 'cbam'.*mask_rcnn, long, detr"):
        load_file("configs/detection.py:nuclei,cbm")
    config = load_file("configs/detection.py")
    with pytest.raises(UserError, match=r"config\.model\.heads\.samples: got 0"):
        configs.override(config, {"model.heads.samples": 0})
