"""User files in COCO's format, and errors in them."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from tasks.common.errors import UserError
from tasks.detection.data import DataConfig, load
from tasks.detection.ops.pasting import to_rle
from tasks.detection.user_files import run_lengths
from tests.tasks.detection.rle import from_rle

X, Y = 12, 10


def image(number, **fields):
    return {"id": number, "file_name": f"{number}.png", "height": Y, "width": X} | fields


def annotation(number, image=1, **fields):
    row = {"id": number, "image_id": image, "category_id": 5, "bbox": [1, 2, 4, 3]}
    return row | fields


def coco(images=1, annotations=(), categories=((5, "cat"), (9, "dog"))):
    if isinstance(images, int):
        images = [image(number + 1) for number in range(images)]
    return {
        "images": images,
        "annotations": list(annotations),
        "categories": [{"id": number, "name": name} for number, name in categories],
    }


@pytest.fixture
def folder(tmp_path):
    """Writes annotations, as train.json unless named, and images 1.png ... that all differ."""

    def write(content, pictures=None, name="train"):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / f"{name}.json").write_text(text)
        pictures = len(content["images"]) if pictures is None else pictures
        for number in range(1, pictures + 1):
            pixels = np.full((Y, X, 3), number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        return tmp_path

    return write


def own(path, **fields):
    return load(DataConfig(path=str(path), **fields), None)


def square(x1, y1, x2, y2):
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def test_a_file_becomes_three_splits_with_masks(folder):
    """Polygons and both run-length codes say the same; the smaller object is on top."""
    whole = np.zeros((1, Y, X), bool)
    whole[0, 2:8, 2:9] = True
    (code,) = to_rle(whole)
    plain = run_lengths(code["counts"])
    rows = [
        annotation(1, 1, bbox=[2, 2, 7, 6], segmentation=square(2, 2, 9, 8), category_id=9),
        annotation(2, 1, bbox=[4, 4, 2, 2], segmentation=square(4, 4, 6, 6)),
        annotation(3, 2, bbox=[2, 2, 7, 6], segmentation=code),
        annotation(4, 3, bbox=[2, 2, 7, 6], segmentation=code | {"counts": plain}),
        annotation(5, 3, segmentation=code, iscrowd=1),
        # Tools round differently: half a pixel outside is cut.
        annotation(6, 4, bbox=[-0.5, 0, 13, 10], segmentation=square(0, 0, 12, 10)),
    ]
    # Each split needs an object.
    rows += [annotation(10 + n, n, segmentation=square(1, 2, 5, 5)) for n in range(10, 61)]
    where = folder(coco(60, rows))
    data = own(where / "train.json", images=str(where))
    assert data.name == "own_train"
    assert data.names == ("cat", "dog")
    assert data.has_masks
    assert (data.image_size, data.max_objects) == (256, 2)
    splits = {name: set(split.ids) for name, split in data.splits.items()}
    assert sum(map(len, splits.values())) == 60 == len(set.union(*splits.values()))
    by_name = {
        split.ids[i]: (split[i], split.truth(i))
        for split in data.splits.values()
        for i in range(len(split))
    }
    first, truth = by_name["1.png"]
    np.testing.assert_array_equal(first["image"][:Y, :X], 1)
    assert not first["image"][Y:].any()
    assert first["size"].tolist() == [Y, X]
    np.testing.assert_array_equal(first["boxes"], [[2, 2, 9, 8], [4, 4, 6, 6]])
    assert first["labels"].tolist() == [1, 0]
    expected = np.zeros((Y, X), int)
    expected[2:8, 2:9], expected[4:6, 4:6] = 1, 2
    np.testing.assert_array_equal(first["instances"][:Y, :X], expected)
    np.testing.assert_array_equal(from_rle(truth.masks, Y, X)[0], whole[0])
    for name in ("2.png", "3.png"):
        example, truth = by_name[name]
        np.testing.assert_array_equal(example["instances"][:Y, :X], whole[0])
        assert example["labels"].tolist() == [0, -1]
        assert truth.masks[0] == code
    assert by_name["3.png"][1].crowd.tolist() == [False, True]
    np.testing.assert_array_equal(by_name["4.png"][0]["boxes"][0], [0, 0, 12, 10])
    empty, truth = by_name["9.png"]
    assert (empty["labels"] == -1).all()
    assert not empty["instances"].any()
    assert truth.masks == []
    # Splits depend on the pixels and not on file names; the same data have the same hash.
    assert own(where / "train.json").fingerprint == data.fingerprint
    assert own(where / "train.json", image_size=16).fingerprint != data.fingerprint


def test_a_folder_with_splits_of_its_own_and_boxes_alone(folder):
    folder(coco(30, [annotation(1)]))
    folder(coco(2, [annotation(1, 2)]), 0, "val")
    where = folder(coco(3, [annotation(1, 3)]), 0, "test")
    data = own(where, name="mine", image_size=8)
    assert data.name == "mine"
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 30,
        "validation": 2,
        "test": 3,
    }
    assert not data.has_masks
    example = data.splits["validation"][1]
    assert "instances" not in example
    # 12 x 10 into 8: two thirds, 6.67 rows.
    assert example["size"].tolist() == [7, 8]
    scaled = np.array([1, 2, 5, 5]) * [8 / 12, 0.7, 8 / 12, 0.7]
    np.testing.assert_allclose(example["boxes"][0], scaled, rtol=1e-6)
    folder(coco(2, categories=((5, "cat"),)), 0, "val")
    with pytest.raises(
        UserError,
        match=r"val\.json: its categories are \['cat'\], expected .* "
        r"as in",
    ):
        own(where)
    (where / "train.json").unlink()
    with pytest.raises(UserError, match=r"has no train\.json"):
        own(where)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"train\.json: line 1 is not JSON"),
        (
            "[]",
            r"has no list 'images'; files in COCO's format have images, annotations, "
            r"categories",
        ),
        ({"images": [], "annotations": []}, "has no list 'categories'"),
        (coco(0), r"train\.json: has no images"),
        (coco(categories=()), "has no categories"),
        (coco(categories=((5, "a"), (5, "b"))), "two categories have the id 5"),
        (coco(images=[image(1), image(1)]), "two images have the id 1"),
        (
            coco(images=[image(1, height="10")]),
            "image 0 has height '10', expected an integer",
        ),
        (coco(images=[image(1, height=0)]), r"image '1\.png' has the size 12 x 0"),
        (
            coco(1, [annotation(7, 3)]),
            "annotation 7 has image_id 3, but no entry of images has this id",
        ),
        (
            coco(1, [annotation(7, category_id=6)]),
            r"annotation 7 of '1\.png' has category_id 6, expected one of the 2 ids from 5 to 9",
        ),
        (coco(1, [annotation(7, bbox=[1, 2, 3])]), r"has the bbox \[1, 2, 3\]; give x, y"),
        (coco(1, [annotation(7, bbox=[1, 2, 0, 3])]), "which has no area"),
        (
            coco(1, [annotation(7, bbox=[8, 2, 9, 3])]),
            r"annotation 7 of '1\.png' has the bbox \[8, 2, 9, 3\], which exceeds the "
            "image of 12 x 10",
        ),
        (
            coco(1, [annotation(7, segmentation={"size": [12, 10], "counts": [120]})]),
            r"has a mask of size \[12, 10\], expected \[10, 12\]",
        ),
        (
            coco(1, [annotation(7, segmentation={"size": [10, 12], "counts": [60, 50]})]),
            "an invalid run-length encoding; give counts with the sum 120",
        ),
        (
            coco(1, [annotation(7, segmentation={"size": [10, 12], "counts": "23"})]),
            "an invalid run-length encoding",
        ),
        (coco(1, [annotation(7, segmentation=[[1, 2, 3, 4]])]), "a malformed segmentation"),
        (coco(1, [annotation(7, segmentation=square(2, 2, 14, 4))]), "a polygon that exceeds"),
        (
            coco(1, [annotation(7), annotation(8, segmentation=square(1, 1, 3, 3))]),
            r"annotation 8 of '1\.png' has a segmentation, but earlier annotations have none",
        ),
    ],
)
def test_mistakes_are_named(folder, content, message):
    with pytest.raises(UserError, match=message) as raised:
        own(folder(content, 1) / "train.json")
    assert "\n" not in str(raised.value)


def test_pictures_that_are_not_as_they_should_be_are_named_or_skipped(folder, capsys):
    where = folder(coco(60, [annotation(n, n) for n in range(1, 61)]))
    path = where / "train.json"
    (where / "1.png").unlink()
    (where / "2.png").write_bytes((where / "2.png").read_bytes()[:48])
    Image.new("RGB", (X, Y + 1)).save(where / "3.png")
    for name, message in (
        ("1.png", r"1\.png: no such file.*skip_broken"),
        ("2.png", r"2\.png: not an image"),
        ("3.png", r"3\.png: is 12 x 11 pixels, but its annotations are for 12 x 10"),
    ):
        with pytest.raises(UserError, match=message):
            own(path)
        Image.fromarray(np.full((Y, X, 3), 100 + int(name[0]), np.uint8)).save(where / name)
    own(path)
    (where / "1.png").unlink()
    data = own(path, skip_broken=True)
    assert "1.png: no such file" in capsys.readouterr().err
    assert sum(map(len, data.splits.values())) == 59
    with pytest.raises(UserError, match="3 examples are too few to split"):
        own(folder(coco(3)) / "train.json")


def test_a_wrong_folder_of_images_is_named_once(folder, tmp_path, capsys):
    where = folder(coco(60, [annotation(n, n) for n in range(1, 61)]))
    for skip_broken in (False, True):
        with pytest.raises(UserError, match=r"none of its 60 files .*\.data\.images") as e:
            own(where / "train.json", images=str(tmp_path / "x"), skip_broken=skip_broken)
        assert str(e.value).count(".png") == 3
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("crowd", "expected"),
    [(0, 0), ("0", 0), (0.0, 0), (False, 0), (None, 0), (1, 1), ("1", 1), (True, 1)],
)
def test_crowds_however_they_are_spelled(folder, crowd, expected):
    """The fifth object of each image is spelled so; each of the others is none."""
    rows = [annotation(n, n) for n in range(1, 41)]
    rows += [annotation(100 + n, n, iscrowd=crowd) for n in range(1, 41)]
    data = own(folder(coco(40, rows)) / "train.json")
    for split, summary in data.summary().items():
        n = len(data.splits[split])
        assert summary.examples == n
        assert summary.classes == {"cat": n + n * (1 - expected), "dog": 0}
        assert summary.ignored == n * expected
        assert (data.splits[split][0]["labels"] >= 0).sum() == 2 - expected


@pytest.mark.parametrize("crowd", ["yes", 2, -1, 0.5, [1], {}, ""])
def test_other_crowds_are_refused(folder, crowd):
    with pytest.raises(UserError, match=r"annotation 7 of '1\.png' has iscrowd .*expected 0 or 1"):
        own(folder(coco(1, [annotation(7, iscrowd=crowd)])) / "train.json")


def test_splits_without_an_object_are_refused(folder):
    crowds = [annotation(n, n, iscrowd=1) for n in range(1, 41)]
    message = r"train\.json: none of \d+ examples of the train split has a label"
    with pytest.raises(
        UserError, match=rf"{message} \(\d+ objects are crowd regions\); there is no"
    ):
        own(folder(coco(40, crowds)) / "train.json")
    with pytest.raises(UserError, match=rf"{message}; there is nothing to learn"):
        own(folder(coco(40)) / "train.json")
    folder(coco(30, [annotation(1)]))
    folder(coco(2), 0, "val")
    where = folder(coco(2, [annotation(1)]), 0, "test")
    with pytest.raises(UserError, match=r"none of 2 examples of the validation split has a label"):
        own(where)


def test_what_other_tools_write_is_read(folder):
    """Sizes and ids as floats or texts, empty segmentations, and other spellings of paths."""
    where = folder(coco(40))
    (where / "a b").mkdir()
    files = ["a b\\1.png", "a%20b/2.png", "u\u0308.png"]
    for number, name in enumerate(("a b/1.png", "a b/2.png", "\u00fc.png"), 1):
        (where / f"{number}.png").rename(where / name)
    images = [image(f"i{n}", height=float(Y), width=float(X)) for n in range(1, 41)]
    for number, name in enumerate(files):
        images[number]["file_name"] = name
    for number in range(3, 40):
        images[number]["file_name"] = f"{number + 1}.png"
    rows = [
        annotation(str(n), f"i{n}", category_id=0.0, segmentation=[[]] if n % 2 else [])
        for n in range(1, 41)
    ]
    data = own(folder(coco(images, rows, ((0, "cat"), (1, "dog"))), 0) / "train.json")
    assert data.names == ("cat", "dog")
    assert not data.has_masks
    found = {
        split.ids[i]: split[i]["image"][0, 0, 0]
        for split in data.splits.values()
        for i in range(len(split))
    }
    assert [found[name] for name in files] == [1, 2, 3]
    assert sum(sum(s.classes.values()) for s in data.summary().values()) == 40
    content = json.dumps(coco(40, [annotation(n, n) for n in range(4, 41)]))
    (where / "train.json").write_bytes(content.encode("utf-16"))
    with pytest.raises(UserError, match=r"1\.png: no such file"):
        own(where / "train.json")
    (where / "train.json").write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert sum(map(len, own(where / "train.json", skip_broken=True).splits.values())) == 37


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"images": [], "images": []}',
            r"train\.json: is not JSON \(key 'images' occurs tw",
        ),
        ("[" * 100_000, r"train\.json: is not JSON"),
        (
            coco(images=[image(1, height=10.5)]),
            "image 0 has height 10.5, expected an integer",
        ),
        (coco(images=[image(1, width=float("nan"))]), "image 0 has width nan, expected an int"),
        (coco(images=[image(1, width=10**9)]), "expected at most 178,956,970 pixels"),
        (coco(images=[image(1), image(2, file_name="1.png")]), "two images have the file_name '1"),
        (coco(images=[image(True)]), "image 0 has id True, expected an integer"),
        (coco(categories=((5, "a"), (6, "a"))), "two categories have the name 'a'"),
        (coco(categories=((5, ["a"]),)), r"category 0 has the name \['a'\], expected a text"),
        (
            coco(1, [annotation(7, "1")]),
            "annotation 7 has image_id '1', but no entry of images has this id",
        ),
        (
            coco(1, [annotation(7, category_id="5")]),
            "has category_id '5', expected one of the 2 ids from 5 to 9",
        ),
        (coco(1, [annotation(7, bbox=[1, 2, float("nan"), 3])]), r"has the bbox \[1, 2, nan, 3\]"),
        (coco(1, [annotation(7, bbox=[-0.9, 2, 0.5, 3])]), "which exceeds the image"),
        (coco(1, [annotation(7, segmentation=5)]), "has a malformed segmentation"),
        (coco(1, [annotation(7, segmentation=[1, 2, 3, 4, 5, 6])]), "a malformed segmentation"),
        (coco(1, [["x"]]), "annotation 0 has no image_id"),
    ],
)
def test_more_mistakes_are_named(folder, content, message):
    with pytest.raises(UserError, match=message) as raised:
        own(folder(content, 1) / "train.json")
    assert "\n" not in str(raised.value)


def test_files_of_splits_in_a_folder(folder, capsys):
    row = annotation(1)
    folder(coco(30, [row]), 30, "Train")
    folder(coco(2, [row]), 0, "val")
    where = folder(coco(3, [row]), 0, "old")
    (where / "test.json").write_text((where / "old.json").read_text())
    data = own(where)
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [30, 2, 3]
    said = capsys.readouterr().err
    assert "1 files belong to no split and are left out, such as old.json" in said
    # The images 1 to 3 of test are in train, and in validation.
    assert (
        "2 images of validation are also in another split, such as 1.png, which equals 1.png of"
        in said
    )
    assert "3 images of test are also in another split" in said
    folder(coco(1, [row]), 0, "dev")
    with pytest.raises(
        UserError, match=r"'dev' and 'val' both denote the validation split; keep on"
    ):
        own(where)


def test_objects_that_an_example_cannot_show_are_named(folder, capsys):
    rows = [annotation(n, n) for n in range(1, 41)]
    rows += [annotation(100, 3, bbox=[1, 1, 0.5, 4]), annotation(101, 4, bbox=[1, 1, 5, 5])]
    where = folder(coco(40, rows))
    own(where / "train.json")
    said = capsys.readouterr().err
    assert "1 objects are less than one pixel wide or high at config.data.image_size=256" in said
    assert "in 3.png" in said
    own(where / "train.json", max_objects=1, image_size=32)
    said = capsys.readouterr().err
    assert "2 objects exceed config.data.max_objects=1 and are left out of training" in said


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("displayed", [False, True])
def test_annotations_of_turned_pictures(tmp_path, capsys, orientation, displayed):
    """A bright object; its box and its mask are given in pixels of the stored or displayed image.

    Half turns and mirror images are taken for stored unless a quarter turn of the data tells.
    """
    rng = np.random.default_rng(0)
    images, rows = [], []
    for n, turn in enumerate([orientation] * 30 + [6] * 10):
        pixels = np.zeros((Y, X, 3), np.uint8)
        pixels[2:5, 1:8] = 255
        pixels[-1, -1] = rng.integers(0, 255, 3)
        stored = Image.fromarray(pixels)
        exif = stored.getexif()
        exif[0x0112] = turn
        stored.save(tmp_path / f"{n}.png", exif=exif)
        mask = pixels[..., 0] == 255
        mask[-1, -1] = False
        if displayed:
            mask = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / f"{n}.png")))[..., 0]
            mask = mask == 255
        ys, xs = np.nonzero(mask)
        box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
        height, width = mask.shape
        images.append(image(n, file_name=f"{n}.png", height=height, width=width))
        rows.append(annotation(n, n, bbox=box, segmentation=to_rle(mask[None])[0]))
    (tmp_path / "a.json").write_text(json.dumps(coco(images, rows)))
    data = own(tmp_path / "a.json")
    for split in data.splits.values():
        for index in range(len(split)):
            example, truth = split[index], split.truth(index)
            assert tuple(example["size"]) == truth.size
            x1, y1, x2, y2 = example["boxes"][0].astype(int)
            assert (x2 - x1) * (y2 - y1) == 21
            assert example["image"][y1:y2, x1:x2].mean() == 255
            assert example["image"][example["instances"] == 1].mean() == 255
            np.testing.assert_array_equal(
                from_rle(truth.masks, *truth.size)[0],
                example["instances"][: truth.size[0], : truth.size[1]] == 1,
            )
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "EXIF" in line]
    assert ("as displayed;" if displayed else "as stored, and are transformed with it") in said
    assert f"(and in {9 if orientation == 1 else 39} more)" in said


def test_run_lengths_of_the_compressed_code():
    rng = np.random.RandomState(0)
    for _ in range(20):
        mask = rng.rand(1, *rng.randint(1, 40, 2)) > rng.rand()
        pixels = mask[0].T.ravel()
        ends = np.flatnonzero(np.diff(np.concatenate([[False], pixels])))
        expected = np.diff([0, *ends, len(pixels)])
        assert run_lengths(to_rle(mask)[0]["counts"]) == expected.tolist()
    assert run_lengths("") == []
    assert run_lengths("P") is None  # more was to come
    assert run_lengths("\n") is None


def test_boxes_that_are_not_where_the_masks_are_are_named(folder, capsys):
    """Such as x1, y1, x2, y2 in the place of x, y, width and height."""
    content = coco(40, [annotation(n, n, bbox=[1, 1, 3, 3], segmentation=square(1, 1, 4, 4))
                        for n in range(1, 41)])  # fmt: skip
    for number, box in ((3, [4, 4, 6, 5]), (7, [4, 4, 8, 6]), (9, [3.5, 4, 2, 2.6])):
        # The mask is from 4 to 6 of both; 7 is x1, y1, x2, y2 of a box of 4 x 2.
        mask = square(4, 4, 8, 6) if number == 7 else square(4, 4, 6, 6)
        content["annotations"][number - 1] |= {"bbox": box, "segmentation": mask}
    own(folder(content) / "train.json")
    assert capsys.readouterr().err == (
        f"{folder(content) / 'train.json'}: boxes of 2 objects do not match their masks, the "
        "first is annotation 3 of '3.png'; give bbox as x, y, width and height\n"
    )
