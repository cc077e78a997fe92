"""Color overlays on images, and the figures that show them."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from launch.predict import write_figures
from launch.reporting import figures, overlays
from tasks.common.errors import UserError
from tasks.figures import (
    AttendedImage,
    AttendedText,
    DetectedImage,
    Recommendations,
    SegmentedImage,
)

GREY = np.full((4, 6), 100, np.uint8)


def svg(figure):
    drawn = figures.draw(figure)
    return base64.b64decode(drawn.split("base64,")[1].split('"')[0]).decode("utf-8")


def test_colours_are_apart_and_keep_their_numbers():
    many = overlays.palette(60)
    assert len(np.unique(many, axis=0)) == 60
    np.testing.assert_array_equal(overlays.palette(5), many[:5])
    assert overlays.palette(0).shape == (0, 3)


def test_images_of_any_kind_become_rgb():
    expected = np.full((4, 6, 3), 100, np.uint8)
    for image in (GREY, GREY[..., None], np.full((4, 6, 3), 100 / 255)):
        np.testing.assert_array_equal(overlays.to_rgb(image), expected)
    with pytest.raises(ValueError, match=r"image: got shape \(4, 6, 2\)"):
        overlays.to_rgb(np.zeros((4, 6, 2)))


def test_classes_are_mixed_into_the_image():
    labels = np.array([[0, 1, -1, 255, 1, 0]] * 4)
    drawn = overlays.overlay_classes(GREY, labels, 2, opacity=0.5)
    first, second = overlays.palette(2).astype(float)
    np.testing.assert_array_equal(drawn[0, 0], np.round(50 + first / 2))
    np.testing.assert_array_equal(drawn[0, 1], np.round(50 + second / 2))
    # Pixels without a class are darkened.
    np.testing.assert_array_equal(drawn[0, 2:4], np.full((2, 3), 50))
    with pytest.raises(ValueError, match=r"labels: got shape \(2, 2\), expected \(4, 6\)"):
        overlays.overlay_classes(GREY, np.zeros((2, 2), int), 2)


def test_masks_are_mixed_in_their_order():
    masks = np.zeros((2, 4, 6), bool)
    masks[0, :2], masks[1, 1] = True, True
    drawn = overlays.overlay_masks(GREY, masks, [np.array([200, 0, 0]), np.array([0, 0, 200])], 0.5)
    np.testing.assert_array_equal(drawn[0, 0], [150, 50, 50])
    np.testing.assert_array_equal(drawn[1, 0], [75, 25, 125])
    np.testing.assert_array_equal(drawn[3], np.full((6, 3), 100))
    with pytest.raises(ValueError, match="masks: got shape"):
        overlays.overlay_masks(GREY, masks[:, :2], [np.zeros(3)] * 2)


@pytest.mark.parametrize("known", [True, False])
def test_segmentation_names_the_classes_that_occur(known):
    labels = np.array([[0, 0, 2, 2, 255, 255]] * 4)
    truth = np.full((4, 6), 1) if known else None
    picture = svg(SegmentedImage("cost $5 & $6", GREY, labels, ["sky", "road", "tree"], truth))
    assert "cost $5 &amp; $6" in picture
    assert picture.count("data:image/png;base64,") == 2 + known
    assert "sky" in picture
    assert "tree" in picture
    assert ("road" in picture) == known


def test_detection_shows_boxes_names_and_scores():
    boxes = np.array([[0, 0, 3, 2], [2, 1, 6, 4]], np.float32)
    masks = np.zeros((2, 4, 6), bool)
    figure = DetectedImage(
        "found", GREY, boxes, ["cat", "dog"], np.array([0.91, 0.5]), masks, boxes[:1]
    )
    picture = svg(figure)
    for text in ("cat 0.91", "dog 0.50", "image, true boxes"):
        assert text in picture


def test_nothing_detected_is_a_picture_too():
    figure = DetectedImage("nothing", GREY, np.zeros((0, 4)), [], np.zeros(0), np.zeros((0, 4, 6)))
    assert "nothing" in svg(figure)


def test_predictions_are_written_as_png_files(tmp_path):
    found = SegmentedImage("found", GREY, np.zeros((4, 6), int), ["sky"])
    looked = AttendedImage("looked", GREY, np.eye(4))
    raw = ["a/my street.jpg", "other.png"]
    names = write_figures(tmp_path / "new", raw, [[found, looked], [found]], first=7)
    stems = [["0007-my_street", "0007-my_street-2"], ["0008-other"]]
    assert names == [[str(tmp_path / "new" / f"{stem}.png") for stem in row] for row in stems]
    for name in [*names[0], *names[1]]:
        with Image.open(name) as picture:
            assert min(picture.size) > 100
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--figures=.*cannot be written"):
        write_figures(tmp_path / "file", raw[:1], [[found]])
    with pytest.raises(TypeError, match="no drawing for Recommendations"):
        figures.png(Recommendations("t", ["a"], ["b"], [[]]))


def test_attention_over_words_is_drawn_in_lines():
    short, long = (AttendedText("t", ["word"] * n, np.linspace(0, 1, n)) for n in (1, 200))
    heights = []
    for figure in (short, long, AttendedText("t", [], np.ones(0))):
        with Image.open(io.BytesIO(figures.png(figure))) as image:
            heights.append(image.height)
    assert heights[1] > 2 * heights[0]
