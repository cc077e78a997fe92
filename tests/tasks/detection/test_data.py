"""The form of examples; how the data sets are made; their counts, where they can be had."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from tasks.common.data.paths import Paths
from tasks.common.datasets import blue_marble
from tasks.detection import data as detection_data
from tasks.detection.data import (
    AnnotatedImage,
    DataConfig,
    DetectionExamples,
    fit,
    fitted_size,
    load,
    to_image_pixels,
)
from tasks.detection.datasets import DATA_SETS, clothes, nuclei, trees
from tasks.detection.metrics import Truth
from tasks.detection.ops.masks import masks_to_boxes, rle_to_instance_map, to_instance_map
from tasks.detection.ops.pasting import to_rle
from tests.tasks.public import needed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "nuclee"}, "did you mean 'nuclei'"),
        ({"image_size": 0}, "image_size: got 0, expected at least 1"),
        ({"max_objects": -1}, "max_objects: got -1"),
        ({"images": "folder"}, "images: got 'folder', expected None unless path"),
    ],
)
def test_wrong_configs_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def picture(Y, X, objects):
    rng = np.random.RandomState(0)
    masks = np.zeros((objects, Y, X), bool)
    for number, mask in enumerate(masks):
        mask[: Y - number, 6 * number : 7 * number + 2] = True
    return AnnotatedImage(
        rng.randint(0, 256, (Y, X, 3)).astype(np.uint8),
        masks_to_boxes(masks),
        np.arange(objects, dtype=np.int32),
        to_instance_map(masks),
    )


def test_small_pictures_stay_as_they_are():
    given = picture(6, 12, 2)
    example = fit(given, 16, 3)
    np.testing.assert_array_equal(example["image"][:6, :12], given.image)
    np.testing.assert_array_equal(example["instances"][:6, :12], given.instances)
    assert not example["image"][6:].any()
    assert not example["instances"][:, 12:].any()
    np.testing.assert_array_equal(example["boxes"], [[0, 0, 2, 6], [6, 0, 9, 5], [0, 0, 0, 0]])
    assert example["labels"].tolist() == [0, 1, -1]
    kinds = {name: str(array.dtype) for name, array in example.items()}
    assert kinds == {
        "image": "uint8",
        "size": "int32",
        "original": "int32",
        "boxes": "float32",
        "labels": "int32",
        "instances": "uint16",
    }


def test_large_pictures_are_scaled_and_boxes_come_back():
    """Images of 1 x 1 and very long images work; of too many objects the largest remain,
    renumbered."""
    given = picture(40, 80, 4)
    example = fit(given, 16, 2)
    assert example["size"].tolist() == [8, 16]
    assert example["labels"].tolist() == [2, 3]
    np.testing.assert_allclose(example["boxes"], given.boxes[2:] / 5)
    assert set(np.unique(example["instances"])) == {0, 1, 2}
    np.testing.assert_array_equal(example["instances"][:8] == 2, given.instances[2::5, 2::5] == 4)
    back = to_image_pixels(example["boxes"], (40, 80), 16)
    np.testing.assert_allclose(back, given.boxes[2:], rtol=1e-6)
    beyond = to_image_pixels(np.array([[-3, 2, 99, 99]]), (40, 80), 16)
    np.testing.assert_array_equal(beyond, [[0, 10, 80, 40]])
    assert fitted_size((5000, 4000), 256) == (256, 205)
    assert fitted_size((1, 3000), 256) == (1, 256)
    tiny = fit(AnnotatedImage(np.full((1, 1, 3), 9, np.uint8)), 4, 2)
    assert tiny["size"].tolist() == [1, 1]
    assert tiny["image"].sum() == 27
    assert "instances" not in tiny


def test_examples_stay_in_memory_as_far_as_they_may(monkeypatch):
    made = []

    def make(index):
        made.append(index)
        return picture(4, 4, 1)

    nothing = Truth((4, 4), np.zeros((0, 4)), np.zeros(0, int))
    examples = DetectionExamples(["a", "b"], make, lambda _: nothing, 4, 1)
    size = sum(array.nbytes for array in examples[0].values())
    monkeypatch.setattr(detection_data, "_KEPT_BYTES", size)
    for index in (0, 1, 0, 1):
        examples[index]["added"] = True  # the caller's own
        assert "added" not in examples[index]
    assert made == [0, 1, 1, 1, 1]


def test_masks_as_one_map():
    masks = np.zeros((3, 4, 5), bool)
    masks[0, 1, 2], masks[1, :, :3] = True, True
    np.testing.assert_array_equal(masks_to_boxes(masks), [[2, 1, 3, 2], [0, 0, 3, 4], [0, 0, 0, 0]])
    expected = np.zeros((4, 5), int)
    expected[:, :3], expected[1, 2] = 2, 1
    np.testing.assert_array_equal(to_instance_map(masks), expected)
    np.testing.assert_array_equal(rle_to_instance_map(to_rle(masks), 4, 5), expected)
    assert (
        to_instance_map(masks[:0]).tolist()
        == rle_to_instance_map([], 4, 5).tolist()
        == [[0] * 5] * 4
    )
    with pytest.raises(ValueError, match="got 65536"):
        to_instance_map(np.zeros((1 << 16, 1, 1), bool))


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def test_nuclei_out_of_the_repository_archive(tmp_path):
    """Images of another size are left out; every fifth is test, every fifth validation."""
    blank = np.zeros((256, 256), np.uint8)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for number in range(7):
            side = 100 if number == 3 else 256
            root = f"repository-1/stage1_train/id{number}"
            image = np.full((side, side, 4), number, np.uint8)
            archive.writestr(f"{root}/images/id{number}.png", png(image))
            for mask in range(2):
                drawn = blank[:side, :side].copy()
                drawn[10 : 20 + number, 10 + 20 * mask : 15 + 20 * mask] = 255
                archive.writestr(f"{root}/masks/m{mask}.png", png(drawn))
        archive.writestr("repository-1/stage1_test/x/images/x.png", png(blank))
    nuclei._select(tmp_path / "all.zip", tmp_path / "chosen.zip")
    splits = nuclei.generate({nuclei.SOURCE.name: tmp_path / "chosen.zip"})
    examples = {name: list(split) for name, split in splits.items()}
    assert {name: [int(e["image"][0, 0, 0]) for e in rows] for name, rows in examples.items()} == {
        "train": [2, 4, 5],
        "validation": [1],
        "test": [0, 6],
    }
    first = examples["test"][1]
    assert first["image"].shape == (256, 256, 3)
    np.testing.assert_array_equal(first["boxes"], [[10, 10, 15, 26], [30, 10, 35, 26]])
    assert first["instances"][12, 31] == 2
    # An archive with another file order has the same content.
    content = b"".join(nuclei.SOURCE.content(tmp_path / "chosen.zip"))
    with zipfile.ZipFile(tmp_path / "chosen.zip") as archive:
        names = archive.namelist()
        with zipfile.ZipFile(tmp_path / "again.zip", "w", zipfile.ZIP_DEFLATED) as again:
            for name in names[::-1]:
                again.writestr(name, archive.read(name))
    assert b"".join(nuclei.SOURCE.content(tmp_path / "again.zip")) == content


def test_tiles_of_trees():
    """Every pixel is in a tile; a tree is where half of it is."""
    assert trees._spans(600, 256) == [(0, 200), (200, 400), (400, 600)]
    assert trees._spans(600, 128) == [(0, 256), (114, 370), (229, 485), (344, 600)]
    assert trees._spans(200, 128) == [(0, 200)]
    text = """<annotation><object><name>Tree</name><bndbox><xmin>190</xmin><ymin>4</ymin>
        <xmax>220</xmax><ymax>14</ymax></bndbox></object></annotation>"""
    boxes = trees.read_boxes(text)
    np.testing.assert_array_equal(boxes, [[190, 4, 220, 14]])
    assert trees.read_boxes("<annotation/>").shape == (0, 4)
    image = np.zeros((30, 600, 3), np.uint8)
    image[:, 200:400] = 7
    found = list(trees.tiles((image, boxes), 256))
    assert [len(tile["boxes"]) for tile in found] == [0, 1, 0]
    np.testing.assert_array_equal(found[1]["boxes"], [[0, 4, 20, 14]])
    assert found[1]["size"].tolist() == [30, 200]
    assert found[1]["image"].sum() == 7 * 3 * 30 * 200
    assert [len(tile["boxes"]) for tile in trees.tiles((image, boxes), 128)] == [1, 1, 0, 0]


def test_composed_pictures():
    """Equal seeds give equal data; masks are those of the pasted items, which do not overlap."""
    Y, X = blue_marble.IMAGE_SIZE
    band = (np.arange(X) // clothes._BAND % 6).astype(np.uint8)
    ground = np.broadcast_to(band[:, None], (Y, X, 3))
    land = np.broadcast_to(True, (Y, X))
    items = np.zeros((2, 28, 28), np.uint8)
    items[0, 4:24, 6:20], items[1, 10:18, 2:26] = 200, 250
    items[0, 10:12, 10:12] = 0  # a hole, which counts as the item
    items[1, 0, 0] = 255  # a speck, which does not
    labels = np.array([3, 8], np.uint8)
    bands, scales, seen = set(), [], set()
    for seed in range(12):
        made = clothes.compose(ground, land, items, labels, (2, 5), seed)
        again = clothes.compose(ground, land, items, labels, (2, 5), seed)
        assert all((made[name] == again[name]).all() for name in made)
        instances, image = made["instances"], made["image"]
        count = len(made["labels"])
        assert 1 <= count <= clothes.MOST
        assert set(np.unique(instances)) == set(range(count + 1))
        background = set(np.unique(image[instances == 0]))
        assert background in ({2}, {5})
        bands |= background
        masks = instances == np.arange(1, count + 1)[:, None, None]
        np.testing.assert_array_equal(masks_to_boxes(masks), made["boxes"])
        for mask, (x1, y1, x2, y2), label in zip(masks, made["boxes"], made["labels"], strict=True):
            # Rectangles without the hole, their corners rounded.
            assert 0 <= (x2 - x1) * (y2 - y1) - mask.sum() <= 8
            assert image[mask].max() >= 100
            wide, high = (14, 20) if label == 3 else (24, 8)
            scales += [(x2 - x1) / wide, (y2 - y1) / high]
        seen |= set(made["labels"].tolist())
    assert bands == {2, 5}
    assert seen == {3, 8}
    assert 0.7 < min(scales) < 1.1 < 1.7 < max(scales) < 2.2
    # Too little is no shape: such a image is ground alone.
    nothing = clothes.compose(ground, land, items * 0, labels, (2,), 0)
    assert nothing["boxes"].shape == (0, 4)
    assert not nothing["instances"].any()


def test_bands_of_splits_are_disjoint_and_cover_the_map():
    bands = [band for split in clothes._BANDS.values() for band in split]
    assert sorted(bands) == list(range(6))
    assert blue_marble.IMAGE_SIZE[1] == clothes._BAND * 18
    assert clothes._BAND > clothes.SIDE


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DATA_SETS))
def test_public_data(name):
    """Counts, forms, the greatest number of objects; boxes within images and around masks."""
    with needed():
        data = load(DataConfig(name=name), Paths.default())
    most = 0
    for split, examples in data.splits.items():
        assert len(examples) == DATA_SETS[name].definition.counts[split]
        for index in range(0, len(examples), 1 if len(examples) < 400 else 10):
            example, truth = examples[index], examples.truth(index)
            there = example["labels"] >= 0
            most = max(most, there.sum())
            height, width = example["size"]
            boxes = example["boxes"][there]
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, 2:] <= [width, height]).all()
            assert len(truth.labels) == there.sum()
            if data.has_masks:
                numbers = np.arange(1, there.sum() + 1)[:, None, None]
                around = masks_to_boxes(example["instances"] == numbers)
                # Of nuclei five pixels are covered by another.
                np.testing.assert_allclose(around, boxes, atol=2 if name == "nuclei" else 0)
    assert most <= data.max_objects
    assert name == "clothes_on_satellite" or most == data.max_objects
