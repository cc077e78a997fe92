"""Descriptions of metrics: what they measure, unit and direction."""

import json
import pathlib

import pytest

from launch.engine.config import task_class, task_names
from tasks.common.metrics.descriptions import Metric, describe, fraction, lower

RESULTS = pathlib.Path(__file__).parents[4] / "results"


def test_patterns_and_directions():
    table = {
        "ap_(.+)": fraction("average precision of {0}"),
        "error": lower("mean absolute error", "units of the column"),
        "ratio": Metric("length ratio", "ratio", None),
    }
    assert str(describe(table, "ap_cat {x}")) == (
        "average precision of cat {x}; fraction from 0 to 1; higher is better"
    )
    assert str(describe(table, "error")).endswith("; units of the column; lower is better")
    assert describe(table, "ratio").direction == "neither direction is better"
    assert describe(table, "other") is None
    assert describe(table, "ap_") is None
    assert describe(table, "learning_rate").higher_is_better is None


@pytest.mark.parametrize("name", task_names())
def test_every_recorded_metric_has_a_description(name):
    task = task_class(name)
    for metric in task.table_metrics:
        assert task.describe_metric(metric), metric
    for path in (RESULTS / name).rglob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        for metrics in (record["metrics"], *record["baselines"].values()):
            for metric in metrics:
                assert task.describe_metric(metric), (metric, path)


@pytest.mark.parametrize(
    ("task", "metric", "words"),
    [
        ("forecasting", "mse", "squares of standardized values; lower"),
        ("forecasting", "mse_noise_0.1", "with noise of 0.1 standard deviations"),
        ("text_classification", "f1_alt.atheism", "F1 of the class alt.atheism"),
        ("detection", "mask_ap_Bag", "average precision of mask matches of the class Bag"),
        ("detection", "box_ap75", "at an IoU of 0.75"),
        ("speech_recognition", "wer_snr_5", "extra words, condition snr_5; per reference word"),
        ("segmentation", "mean_iou_seq05vd", "of the subset seq05vd"),
        ("sequence_copy", "exact_match_13_16", "strings of 13 to 16 digits"),
        ("sequence_copy", "exact_match_20", "strings of 20 digits"),
        ("translation", "length_ratio", "neither direction is better"),
    ],
)
def test_descriptions_of_tasks(task, metric, words):
    assert words in str(task_class(task).describe_metric(metric))
