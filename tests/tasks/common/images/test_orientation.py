"""EXIF orientation against Pillow's, and the rule for annotations."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tasks.common.images.files import read_image, read_oriented
from tasks.common.images.orientation import AnnotationTurns, turned, turned_boxes, turned_size

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tiff", "jpg", "webp"])
def test_an_image_is_turned_as_pillow_turns_it(tmp_path, orientation, ending):
    # Large blocks, which JPEG keeps.
    pixels = RNG.integers(0, 256, (2, 3, 3), np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{ending}", exif=exif)
    image.info["exif"] = exif.tobytes()
    expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(turned(pixels, orientation), expected)
    assert turned_size((32, 48), orientation) == expected.shape[:2]
    found, noted = read_oriented(tmp_path / f"a.{ending}")
    assert noted == orientation
    assert np.abs(found.astype(int) - expected).mean() < 12 * (ending in ("jpg", "webp")) + 1e-9
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{ending}"), found)
    # The box of a block of pixels goes where the block goes.
    box = np.array([[16, 0, 48, 16]], np.float32)
    marked = np.zeros((32, 48), bool)
    marked[0:16, 16:48] = True
    ys, xs = np.nonzero(turned(marked, orientation))
    where = [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]
    np.testing.assert_array_equal(turned_boxes(box, (32, 48), orientation), where)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_grey_tiff_without_compression_is_turned(tmp_path, orientation):
    """Pillow maps such a file into memory, and then takes its rows for columns."""
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    exif = Image.fromarray(pixels).getexif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.tif", exif=exif)
    found, noted = read_oriented(tmp_path / "a.tif", mode="L")
    assert noted == orientation
    np.testing.assert_array_equal(found, turned(pixels, orientation))


def decided(files):
    turns, fits = AnnotationTurns(), []
    for number, (orientation, annotated, displayed) in enumerate(files):
        fits.append(turns.fits(Path(f"{number}.jpg"), orientation, annotated, displayed))
    return [path.stem for path in turns.decide("data")], fits


def test_annotations_are_those_of_the_stored_image_unless_sizes_tell(capsys):
    half, mirror, square = (3, (4, 6), (4, 6)), (2, (4, 6), (4, 6)), (6, (5, 5), (5, 5))
    as_stored, as_displayed = (6, (4, 6), (6, 4)), (8, (6, 4), (6, 4))
    upright, other = (1, (4, 6), (4, 6)), (6, (4, 7), (6, 4))
    assert decided([upright]) == ([], [True])
    assert capsys.readouterr().err == ""
    assert decided([half, mirror, upright, square])[0] == ["0", "1", "3"]
    assert capsys.readouterr().err == (
        "data: EXIF orientation 3 in 0.jpg (and in 2 more): annotations are assumed to be in "
        "pixels of the image as stored, and are transformed with it; if this is wrong, save the "
        "images as "
        "displayed, without an EXIF orientation\n"
    )
    assert decided([half, as_displayed, square]) == ([], [True] * 3)
    assert "as displayed; if this is wrong" in capsys.readouterr().err
    assert decided([half, as_displayed, as_stored])[0] == ["0", "2"]
    assert decided([as_stored, other]) == (["0"], [True, False])
    assert decided([(1, (6, 4), (4, 6))]) == ([], [False])
