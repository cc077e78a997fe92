"""Digits: their splits, and pictures and numbers that a person gives."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tasks.common.errors import UserError
from tasks.image_classification import data
from tasks.image_classification.data import DataConfig


@pytest.fixture(scope="module")
def splits():
    return data.load(DataConfig())


def test_every_picture_is_in_one_split_by_the_rule(splits):
    # The rule, written a second time.
    source = load_digits()
    parts = [
        int.from_bytes(hashlib.sha256(bytes(image.astype(int).ravel().tolist())).digest(), "big")
        % 10
        for image in source.images
    ]
    for split, wanted in (("test", {0, 1}), ("validation", {2}), ("train", set(range(3, 10)))):
        rows = [row for row, part in enumerate(parts) if part in wanted]
        np.testing.assert_allclose(splits[split].images[..., 0] * 16, source.images[rows])
        np.testing.assert_array_equal(splits[split].labels, source.target[rows])
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [1295, 160, 342]


def test_every_class_is_in_every_split(splits):
    for examples in splits.values():
        assert set(examples.labels.tolist()) == set(range(10))


def test_the_fingerprint_tells_of_a_changed_label(splits):
    before = data.fingerprint(splits)
    labels = splits["test"].labels.copy()
    labels[0] = (labels[0] + 1) % 10
    changed = {**splits, "test": data.Images(splits["test"].images, labels)}
    assert data.fingerprint(changed) != before
    assert data.fingerprint(data.load(DataConfig())) == before


def test_sixty_four_numbers(splits):
    example = splits["test"][0]
    typed = ",".join(f"{value:g}" for value in (example["image"] * 16).ravel())
    np.testing.assert_array_equal(data.read_image(typed), example["image"])
    unlabelled = data.read_images([typed, typed])
    assert len(unlabelled) == 2
    assert unlabelled[1].keys() == {"image"}


# A bar of ink in the two middle columns, 32 x 32 as the digits were scanned.
BAR = np.zeros((32, 32), np.uint8)
BAR[:, 12:20] = 255
EXPECTED = np.zeros((8, 8), np.float32)
EXPECTED[:, 3:5] = 1


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
@pytest.mark.parametrize("dark_on_light", [False, True])
def test_a_picture_file_of_any_mode(tmp_path, mode, dark_on_light):
    pixels = 255 - BAR if dark_on_light else BAR
    path = tmp_path / "bar, 1.png"
    if mode == "I;16":
        Image.fromarray(pixels.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(pixels).convert(mode).save(path)
    np.testing.assert_allclose(data.read_image(str(path))[..., 0], EXPECTED, atol=0.01)


def test_what_is_transparent_is_paper(tmp_path):
    path = tmp_path / "bar.png"
    black = np.zeros_like(BAR)
    Image.fromarray(np.stack([black, black, black, BAR], axis=-1), "RGBA").save(path)
    np.testing.assert_allclose(data.read_image(str(path))[..., 0], EXPECTED, atol=0.01)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("1,2,3", "has 3 numbers; give 64, row by row"),
        (",".join(["17"] * 64), "each number must be from 0"),
        (",".join(["nan"] * 64), "each number must be from 0"),
        (",".join(["-0.1"] * 64), "each number must be from 0"),
        ("nowhere.png", "'nowhere.png': no such file; give the path of a picture, or 64 numbers"),
        ("", "give the path of a picture"),
        ("a\0b", "not a picture"),
        ("x," * 400, "give the path of a picture"),
    ],
)
def test_other_input_is_refused_in_one_line(typed, message):
    with pytest.raises(UserError, match=message) as caught:
        data.read_image(typed)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


def test_a_file_that_is_no_picture_is_refused(tmp_path):
    whole = tmp_path / "whole.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(whole)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "words.png").write_text("not a picture")
    for name in ("half.png", "words.png", "."):
        with pytest.raises(UserError, match="not a picture; give the path"):
            data.read_image(str(tmp_path / name))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "mnist", "name must be one of digits, got 'mnist'"),
        ("shift", -0.5, r"shift must be in \[0, 8\], got -0.5"),
    ],
)
def test_impossible_configs_begin_with_the_field(field, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        DataConfig(**{field: value})
