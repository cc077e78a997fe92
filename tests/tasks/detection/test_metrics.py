"""Average precision and the contest's score on cases that are worked out by hand."""

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks.detection.metrics import (
    Prediction,
    Truth,
    ap50_contributions,
    detection_metrics,
    dsb2018_scores,
)
from tasks.detection.ops.pasting import to_rle

SIZE = (20, 20)


def masks_of(boxes):
    masks = np.zeros((len(boxes), *SIZE), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return to_rle(masks)


def truth(boxes, labels=None, masks=True, crowd=None):
    boxes = np.array(boxes, np.int64).reshape(-1, 4)
    labels = np.zeros(len(boxes), int) if labels is None else np.array(labels)
    crowd = None if crowd is None else np.array(crowd)
    return Truth(SIZE, boxes.astype(np.float32), labels, masks_of(boxes) if masks else None, crowd)


def prediction(boxes, scores, labels=None, masks=True):
    boxes = np.array(boxes, np.int64).reshape(-1, 4)
    labels = np.zeros(len(boxes), int) if labels is None else np.array(labels)
    return Prediction(
        boxes.astype(np.float32), labels, np.array(scores), masks_of(boxes) if masks else None
    )


A, B = [0, 0, 10, 10], [10, 10, 20, 20]
# IoU with A: 0.8.
NEAR_A = [0, 0, 10, 8]


def test_perfect_is_one_and_nothing_is_silent(capfd):
    figures = detection_metrics([truth([A, B])], [prediction([B, A], [0.5, 0.9])], ["thing"])
    kinds = [f"{kind}_{name}" for kind in ("box", "mask") for name in ("ap", "ap50", "ap75")]
    assert figures == pytest.approx(dict.fromkeys(kinds, 1.0))
    assert capfd.readouterr() == ("", "")


def test_iou_of_0_8_counts_up_to_0_8():
    """Right at 0.50 to 0.80: seven of ten thresholds."""
    figures = detection_metrics([truth([A])], [prediction([NEAR_A], [0.9])], ["thing"])
    for kind in ("box", "mask"):
        assert figures[f"{kind}_ap50"] == figures[f"{kind}_ap75"] == pytest.approx(1)
        assert figures[f"{kind}_ap"] == pytest.approx(0.7)


def test_a_false_one_ahead_halves_precision():
    """One object, found second: precision 1/2 at every recall."""
    figures = detection_metrics([truth([A])], [prediction([B, A], [0.9, 0.8])], ["thing"])
    assert figures["box_ap"] == figures["mask_ap"] == pytest.approx(0.5)
    # Found first, the false one behind it costs nothing.
    figures = detection_metrics([truth([A])], [prediction([B, A], [0.1, 0.8])], ["thing"])
    assert figures["box_ap"] == pytest.approx(1)


def test_half_of_the_objects_found():
    """Recall ends at 1/2: of the 101 recalls 0, 0.01 ... the first 51 have precision 1."""
    figures = detection_metrics([truth([A, B])], [prediction([A], [0.9])], ["thing"])
    assert figures["mask_ap50"] == pytest.approx(51 / 101)


def test_classes_are_meaned_over_those_that_occur():
    """Class 0 is found, class 1 is taken for class 2, which has no objects."""
    figures = detection_metrics(
        [truth([A, B], [0, 1], masks=False)],
        [prediction([A, B], [0.9, 0.9], [0, 2], masks=False)],
        ["a", "b", "c"],
    )
    expected = {"box_ap": 0.5, "box_ap50": 0.5, "box_ap75": 0.5, "box_ap_a": 1, "box_ap_b": 0}
    assert figures == pytest.approx(expected)


def test_pictures_without_objects_and_without_predictions():
    nothing, none = truth([]), prediction([], [])
    figures = detection_metrics([nothing, truth([A])], [none, prediction([A], [0.9])], ["thing"])
    assert list(figures.values()) == pytest.approx([1] * 6)
    # A false one in the empty image counts.
    figures = detection_metrics(
        [nothing, truth([A])], [prediction([B], [0.95]), prediction([A], [0.9])], ["thing"]
    )
    assert figures["mask_ap"] == pytest.approx(0.5)
    for pair in ((truth([A]), none), (nothing, prediction([A], [0.9])), (nothing, none)):
        figures = detection_metrics([pair[0]], [pair[1]], ["thing", "other"])
        assert all(figure == 0 for figure in figures.values())
        assert len(figures) >= 6


def test_a_crowd_excuses_what_lies_in_it():
    """Two predictions in a crowd region do not count; the object is found."""
    crowded = truth([A, B], crowd=[False, True])
    found = prediction([B, [11, 11, 19, 19], A], [0.9, 0.9, 0.8])
    figures = detection_metrics([crowded], [found], ["thing"])
    assert figures["mask_ap"] == figures["box_ap"] == pytest.approx(1)


def test_figures_are_those_that_pycocotools_prints(capsys):
    """Random objects of two classes, found more or less, with false ones between."""
    rng = np.random.RandomState(0)
    truths, found, rows, results = [], [], [], []
    for image in range(6):
        corner = rng.randint(0, 12, (4, 2))
        real = np.concatenate([corner, corner + rng.randint(2, 8, (4, 2))], axis=1)
        guessed = np.concatenate([np.clip(real + rng.randint(-1, 2, (4, 4)), 0, 20), real[:1]])
        guessed[:, 2:] = np.maximum(guessed[:, 2:], guessed[:, :2] + 1)
        labels, scores = rng.randint(0, 2, 4), rng.uniform(size=5)
        truths.append(truth(real, labels))
        found.append(prediction(guessed, scores, [*labels, 1]))
        for kind, boxes, classes in ((rows, real, labels), (results, guessed, [*labels, 1])):
            for number, ((x1, y1, x2, y2), label) in enumerate(zip(boxes, classes, strict=True)):
                box = [int(x1), int(y1), int(x2 - x1), int(y2 - y1)]
                row = {"image_id": image, "category_id": int(label), "bbox": box}
                if kind is rows:
                    row |= {"id": len(rows) + 1, "area": box[2] * box[3], "iscrowd": 0}
                else:
                    row["score"] = float(scores[number])
                kind.append(row)
    known = COCO()
    known.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(6)],
        "categories": [{"id": 0}, {"id": 1}],
        "annotations": rows,
    }
    known.createIndex()
    evaluation = COCOeval(known, known.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    figures = detection_metrics(truths, found, ["a", "b"])
    ours = [figures[f"box_{name}"] for name in ("ap", "ap50", "ap75")]
    np.testing.assert_allclose(ours, evaluation.stats[:3])
    assert 0.1 < ours[0] < ours[1] < 1
    # Boxes with integer corners equal their masks.
    np.testing.assert_allclose([figures[f"mask_{name}"] for name in ("ap", "ap50")], ours[:2])


def test_contributions_have_the_figure_as_their_mean():
    truths = [truth([A]), truth([A, B]), truth([B]), truth([])]
    found = [
        prediction([A], [0.9]),
        prediction([A, B], [0.3, 0.8]),
        prediction([A], [0.7]),
        prediction([], []),
    ]
    whole = detection_metrics(truths, found, ["thing"])["mask_ap50"]
    values = ap50_contributions(truths, found, ["thing"], "mask")
    assert values.mean() == pytest.approx(whole)
    assert 0 < whole < 1
    # The third misses one and finds a false one; the fourth does nothing.
    assert values.argmin() == 2
    assert (values[:2] > values[3]).all()
    none = [prediction([], [])] * 4
    np.testing.assert_array_equal(ap50_contributions(truths, none, ["thing"], "box"), 0)
    with pytest.raises(ValueError, match="kind"):
        ap50_contributions([truth([A], masks=False)], found[:1], ["thing"], "mask")


def test_the_contest():
    cases = [
        (truth([A, B]), prediction([A, B], [0.9, 0.8]), 1.0),
        # IoU 0.8 is greater than 0.50 to 0.75: six of ten; then TP = 0.
        (truth([A]), prediction([NEAR_A], [0.9]), 0.6),
        # One right, one missed: 1 / 2. One right, one false: 1 / 2.
        (truth([A, B]), prediction([A], [0.9]), 0.5),
        (truth([A]), prediction([A, B], [0.9, 0.9]), 0.5),
        # The false one is not sure enough.
        (truth([A]), prediction([A, B], [0.9, 0.2]), 1.0),
        # The same twice: of the second nothing is left.
        (truth([A]), prediction([A, A], [0.9, 0.8]), 1.0),
        # The better score has the pixels: the rest of the second is 2 of A's 10 rows.
        (truth([A]), prediction([NEAR_A, A], [0.9, 0.8]), 0.6 * 0.5),
        (truth([]), prediction([], []), 1.0),
        (truth([]), prediction([A], [0.9]), 0.0),
        (truth([A]), prediction([], []), 0.0),
    ]
    truths, found, expected = zip(*cases, strict=True)
    np.testing.assert_allclose(dsb2018_scores(truths, found), expected)
    with pytest.raises(ValueError, match="got an image without masks"):
        dsb2018_scores([truth([A], masks=False)], found[:1])


def test_the_contest_leaves_crowd_regions_out():
    crowded, alone = truth([A, B], crowd=[False, True]), truth([B], crowd=[True])
    in_b, mostly_in_b = [11, 11, 15, 15], [8, 10, 18, 20]
    cases = [
        (crowded, prediction([A], [0.9]), 1.0),
        (crowded, prediction([A, in_b], [0.9, 0.9]), 1.0),
        (crowded, prediction([in_b], [0.9]), 0.0),
        # 0.8 of it is in the crowd: it counts as false at 0.80 to 0.95, and 1 / 2 of 1 is left.
        (crowded, prediction([A, mostly_in_b], [0.9, 0.9]), 0.6 + 0.4 * 0.5),
        (alone, prediction([], []), 1.0),
        (alone, prediction([in_b], [0.9]), 1.0),
        (alone, prediction([A], [0.9]), 0.0),
    ]
    truths, found, expected = zip(*cases, strict=True)
    np.testing.assert_allclose(dsb2018_scores(truths, found), expected)


def test_a_class_of_crowds_alone_has_no_figure():
    crowded = truth([A, B], [0, 1], crowd=[False, True])
    figures = detection_metrics([crowded], [prediction([A], [0.9])], ["a", "b"])
    assert figures["box_ap"] == figures["box_ap_a"] == pytest.approx(1)
    assert "box_ap_b" not in figures


def test_wrong_calls():
    for truths, found, message in (
        ([truth([A])], [], "predictions: got 0, expected 1"),
        ([], [], "truths: got none"),
        ([truth([A], [3])], [prediction([A], [0.9])], "labels: got 3 to 3, expected 0 to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            detection_metrics(truths, found, ["thing"])
