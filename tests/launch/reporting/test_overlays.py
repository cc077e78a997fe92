"""Color overlays on images, and the figures that show them."""

import base64
import io
import re

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


def svgs(figure):
    """Returns the SVG drawings of a figure."""
    found = re.findall(r"data:image/svg\+xml;base64,([^\"]*)", figures.draw(figure))
    return [base64.b64decode(each).decode("utf-8") for each in found]


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
    names = ["sky", "road", "tree"]
    drawn = figures.draw(SegmentedImage("cost $5 & $6", GREY, labels, names, truth))
    assert "cost $5 &amp; $6" in drawn
    assert drawn.count("data:image/png;base64,") == 2 + known
    legend = drawn.partition('<ul class="legend">')[2]
    assert [name in legend for name in names] == [True, known, True]
    assert "no class (dark)" in legend
    # Readers who do not see the colors have the fractions.
    assert "sky 33%, tree 33%" in drawn


def test_pixels_of_the_background_are_not_tinted():
    labels = np.array([[0, 0, 0, 1, 1, 1]] * 4)
    names = ["Background", "cell"]
    plain = overlays.background(names)
    drawn = overlays.overlay_classes(GREY, labels, 2, plain=plain)
    np.testing.assert_array_equal(drawn[:, :3], np.full((4, 3, 3), 100))
    assert (drawn[:, 3:] != 100).any(axis=-1).all()
    assert "Background (not colored)" in figures.draw(SegmentedImage("", GREY, labels, names))


def test_attention_tints_images_by_weight_alone():
    weights = np.zeros((2, 3))
    weights[1, 2] = 0.3
    large = np.full((64, 96, 3), 100, np.uint8)
    drawn = overlays.overlay_weights(large, weights)
    untinted = np.ones((64, 96), bool)
    untinted[32:, 64:] = False
    np.testing.assert_array_equal(drawn[untinted], 100)
    assert (np.abs(drawn[~untinted].astype(int) - 100).max(axis=-1) > 50).all()
    np.testing.assert_array_equal(overlays.overlay_weights(large, np.full((4, 4), 0.1)), large)
    assert overlays.overlay_weights(GREY, weights).shape == (4, 6, 3)


def test_detection_shows_boxes_names_and_scores():
    boxes = np.array([[0, 0, 3, 2], [2, 1, 6, 4]], np.float32)
    masks = np.zeros((2, 4, 6), bool)
    figure = DetectedImage(
        "found", GREY, boxes, ["cat", "dog"], np.array([0.91, 0.5]), masks, boxes[:1]
    )
    _, found = svgs(figure)
    drawn = figures.draw(figure)
    for text in ("cat 0.91", "dog 0.50"):
        assert text in found
        assert text in drawn
    assert "image, true boxes" in drawn


def test_many_objects_are_numbered_and_listed():
    boxes = np.array([[n, 0, n + 1, 4] for n in range(20)], np.float32)
    names = ["cat", "dog"] * 10
    image = np.full((4, 20), 100, np.uint8)
    figure = DetectedImage("found", image, boxes, names, np.linspace(0.9, 0.5, 20))
    _, found = svgs(figure)
    assert "cat 0.90" not in found
    assert ">20<" in found
    listed = figures.draw(figure).partition("20 detected objects</summary>")[2]
    assert listed.count("<tr>") == 21
    assert "<td>20</td>" in listed
    assert "0, 0, 1, 4" in listed


def test_nothing_detected_is_a_picture_too():
    figure = DetectedImage("nothing", GREY, np.zeros((0, 4)), [], np.zeros(0), np.zeros((0, 4, 6)))
    assert "nothing" in figures.draw(figure)
    assert len(svgs(figure)) == 2


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
