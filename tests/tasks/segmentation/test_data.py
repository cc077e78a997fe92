"""User folders of images and masks, errors in them, and rules of the built-in data sets."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageOps

from tasks.common import errors
from tasks.common.datasets import blue_marble
from tasks.common.errors import UserError
from tasks.segmentation import datasets, user_files
from tasks.segmentation.data import DataConfig, InferenceWindows, load, merge_windows, nearest
from tasks.segmentation.metrics import VOID

RNG = np.random.default_rng(0)


def picture(Y=6, X=8, rng=RNG):
    return rng.integers(0, 255, (Y, X, 3)).astype(np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def folder(root, count=30, classes=3, **sizes):
    rng = np.random.default_rng(0)  # images go into splits by their content
    for number in range(count):
        save(root / "images" / f"{number:02d}.png", image := picture(**sizes, rng=rng))
        labels = rng.integers(0, classes, image.shape[:2]).astype(np.uint8)
        labels[0, 0] = VOID
        labels[-1, -1] = classes - 1
        save(root / "masks" / f"{number:02d}.png", labels)
    return root


def config(path, **fields):
    return DataConfig(**{"path": str(path), "image_size": (6, 8), **fields})


def prepared(path, **fields):
    return load(config(path, **fields), None)


def test_own_folder_is_read_and_split_by_content(tmp_path):
    root = folder(tmp_path / "mine", count=40)
    data = prepared(root)
    assert data.names == ("class_0", "class_1", "class_2")
    sizes = {split: len(examples) for split, examples in data.splits.items()}
    assert sum(sizes.values()) == 40
    assert min(sizes.values()) >= 1
    train = data.splits["train"]
    example = train[0]
    assert example["image"].dtype == example["labels"].dtype == np.uint8
    assert example["labels"][0, 0] == VOID
    # The images are those of the files, and a image stays in its split when others go.
    first = np.asarray(Image.open(root / "images" / "39.png"))
    where = [s for s, p in data.splits.items() if (p.images == first).all(axis=(1, 2, 3)).any()]
    for number in range(5):
        (root / "images" / f"{number:02d}.png").unlink()
        (root / "masks" / f"{number:02d}.png").unlink()
    fewer = prepared(root).splits[where[0]]
    assert (fewer.images == first).all(axis=(1, 2, 3)).any()
    assert prepared(root).fingerprint != data.fingerprint


def test_folders_of_splits_names_and_sizes(tmp_path):
    folder(tmp_path / "train", count=12)
    folder(tmp_path / "val", count=2)
    folder(tmp_path / "test", count=3)
    (tmp_path / "classes.txt").write_text("sky\nroad\nbig tree\n")
    data = prepared(tmp_path, image_size=(3, 4))
    assert data.names == ("sky", "road", "big tree")
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [12, 2, 3]
    assert data.splits["test"].images.shape == (3, 3, 4, 3)
    tiled = prepared(tmp_path, image_size=(5, 5), fit="tiles")
    assert tiled.splits["test"].images.shape == (3 * 4, 5, 5, 3)
    # Of a image's 48 pixels one is void.
    assert np.sum(tiled.splits["test"].labels != VOID) == 3 * 47


def test_masks_of_all_kinds(tmp_path):
    labels = np.array([[0, 1], [2, 200]], np.uint8)
    save(tmp_path / "gray.png", labels)
    save(tmp_path / "wide.png", labels.astype(np.uint16))
    palette = Image.fromarray(labels).convert("P")
    palette.putdata(labels.ravel())
    palette.putpalette([255, 0, 0, 0, 255, 0, 7, 7, 7] + [9] * 759)
    palette.save(tmp_path / "palette.png")
    for name in ("gray", "wide", "palette"):
        np.testing.assert_array_equal(user_files.read_mask(tmp_path / f"{name}.png"), labels)
    Image.fromarray(labels > 1).save(tmp_path / "two.png")
    np.testing.assert_array_equal(user_files.read_mask(tmp_path / "two.png"), labels > 1)
    save(tmp_path / "colors.png", picture())
    with pytest.raises(UserError, match=r"colors.png: has colors \(RGB\)"):
        user_files.read_mask(tmp_path / "colors.png")
    save(tmp_path / "lossy.jpg", labels)
    with pytest.raises(UserError, match=r"lossy.jpg: is JPEG, which does not keep class numbers"):
        user_files.read_mask(tmp_path / "lossy.jpg")


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    root = folder(tmp_path / "mine", count=40)
    masks = root / "masks"

    def refused(message, **fields):
        with pytest.raises(UserError, match=message):
            prepared(root, **fields)

    refused(r"masks/\d\d.png: has class 255, expected 0 to 254, or 254 for void", void=254)
    (root / "classes.txt").write_text("sky\nroad\n")
    refused(r"masks/00.png: has class 2, expected 0 to 1, or 255 for void")
    (root / "classes.txt").write_text("sky\nsky\n")
    refused("classes.txt: names the class 'sky' twice")
    (root / "classes.txt").write_text("sky\n")
    refused("classes.txt: names 1 classes, expected 2 to 255")
    (root / "classes.txt").unlink()

    save(masks / "03.png", np.zeros((6, 7), np.uint8))
    refused("masks/03.png: is 7 x 6 pixels, but its image is 8 x 6; .*skip_broken")
    save(masks / "03.png", np.zeros((6, 8), np.uint8))
    whole = (root / "images" / "04.png").read_bytes()
    (root / "images" / "04.png").write_bytes(whole[:60])
    refused("images/04.png: not an image that can be read")
    assert sum(len(split) for split in prepared(root, skip_broken=True).splits.values()) == 39
    (root / "images" / "04.png").write_bytes(whole)

    (masks / "05.png").rename(masks / "else.png")
    refused(r"images/05.png: has no mask; add .*masks/05.png")
    (masks / "else.png").rename(masks / "05.png")
    (root / "images" / "06.png").unlink()
    refused("masks/06.png: has no image; add an image named 06 to")
    (root / "images" / "06.jpg").write_bytes(whole)
    (root / "images" / "06.png").write_bytes(whole)
    refused("06.png: differs from 06.jpg only in the suffix")
    (root / "images" / "06.jpg").unlink()

    folder(root / "train", count=3, classes=2)
    folder(root / "validation", count=1)
    for name in ("images", "masks"):
        (root / name).rename(root / f"old_{name}")
    refused(r"validation/masks/00.png: has class 2, but the train split has only classes 0 to 1; ")
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match="--data: "):
            prepared(path)


def test_few_or_void_pictures_are_refused(tmp_path):
    with pytest.raises(UserError, match="2 examples are too few to split"):
        prepared(folder(tmp_path / "few", count=2))
    root = folder(tmp_path / "train", count=1).parent
    folder(root / "test", count=1)
    folder(root / "validation", count=1)
    save(root / "test" / "masks" / "00.png", np.full((6, 8), VOID, np.uint8))
    with pytest.raises(UserError, match="no pixel of the test split has a class"):
        prepared(root)


def binary(root, value, mode=None, count=40):
    """Images whose right half is the foreground; it has this value in the masks."""
    rng = np.random.default_rng(0)
    for number in range(count):
        save(root / "images" / f"{number}.png", picture(rng=rng))
        mask = np.zeros((6, 8), np.uint8)
        mask[:, 4:] = value
        image = Image.fromarray(mask)
        (root / "masks").mkdir(exist_ok=True)
        (image if mode is None else image.convert(mode)).save(root / "masks" / f"{number}.png")
    return root


def test_black_and_white_masks(tmp_path):
    """255 is void by default: one class is left, which is refused with a remedy that works."""
    root = binary(tmp_path, 255)
    message = (
        r"masks of the train split hold 0 and 255, but 255 is void \(config\.data\.void\), "
        r".*50\.0% of the pixels\); .* set config\.data\.mask_values to \(0, 255\)"
    )
    with pytest.raises(UserError, match=message):
        prepared(root)
    with pytest.raises(UserError, match=r"has class 255, .*config\.data\.mask_values"):
        prepared(root, void=254)
    data = prepared(root, mask_values=(0, 255))
    assert data.names == ("class_0", "class_1")
    for split, summary in data.summary().items():
        pixels = 24 * len(data.splits[split])
        assert summary.classes == {"class_0": pixels, "class_1": pixels}
        assert summary.ignored == 0
    assert data.splits["train"].labels[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    exchanged = prepared(root, mask_values=(255, 0)).splits["train"]
    assert exchanged.labels[0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    with pytest.raises(
        UserError, match=r"has the number 255, expected one of config\.data\.mask_va"
    ):
        prepared(root, mask_values=(0, 1), void=7)
    (root / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match="got 2 numbers, expected one for each of the 3 classes"):
        prepared(root, mask_values=(0, 255))
    with pytest.raises(UserError, match="hold 0 and 255"):
        prepared(root)


@pytest.mark.parametrize("mode", ["1", "RGB", "RGBA", "LA"])
def test_foreground_however_masks_are_stored(tmp_path, mode):
    """One bit per pixel means 0 and 1; gray may be stored as colors."""
    root = binary(tmp_path, 255, mode)
    values = () if mode == "1" else (0, 255)
    labels = prepared(root, mask_values=values).splits["train"].labels
    np.testing.assert_array_equal(labels[0], [[0] * 4 + [1] * 4] * 6)


def test_void_is_counted_and_classes_that_are_left_are_enough(tmp_path):
    root = binary(tmp_path, 1)
    for number in range(40):
        mask = np.zeros((6, 8), np.uint8)
        mask[:, 4:], mask[0] = 1, 255
        save(root / "masks" / f"{number}.png", mask)
    for fields in ({}, {"fit": "tiles", "image_size": (4, 5)}):
        summary = prepared(root, **fields).summary()
        assert sum(s.ignored for s in summary.values()) == 40 * 8
        for name in ("class_0", "class_1"):
            assert sum(s.classes[name] for s in summary.values()) == 40 * 20
    assert "void: " in str(summary["train"])
    assert "(16.7% of pixels)" in str(summary["train"])
    with pytest.raises(UserError, match="all labeled pixels of the train split have the class 'cl"):
        prepared(binary(tmp_path / "zero", 0))


def test_numbers_that_are_no_classes_are_refused(tmp_path, capsys):
    root = binary(tmp_path, 128)
    with pytest.raises(
        UserError, match=r"hold only the numbers 0, 128, .*mask_values to \(0, 128\)"
    ):
        prepared(root)
    assert prepared(root, mask_values=(0, 128)).names == ("class_0", "class_1")
    assert len(prepared(binary(tmp_path / "two", 2)).names) == 3
    said = capsys.readouterr().err
    assert "have no pixel of 1 of 3 classes; the first missing class is 1" in said


def test_masks_that_cannot_be_told_are_refused(tmp_path):
    labels = np.zeros((6, 8), np.uint8)
    clear = np.dstack([labels, labels, labels, labels])
    save(tmp_path / "clear.png", clear)
    with pytest.raises(UserError, match=r"clear\.png: is transparent in parts"):
        user_files.read_mask(tmp_path / "clear.png")


def test_folders_that_are_not_as_they_should_be(tmp_path, capsys):
    root = folder(tmp_path / "mine", count=40)
    (root / "images" / "notes.txt").write_text("x")
    (root / "images" / "later.HEIC").write_text("x")
    prepared(root)
    said = capsys.readouterr().err
    assert "images: 2 files are left out, the first is later.HEIC" in said
    (root / "classes.txt").write_text("sky\n\nroad\n")
    with pytest.raises(
        UserError, match=r"classes\.txt: line 2 is empty, expected the name of a cl"
    ):
        prepared(root)
    (root / "classes.txt").unlink()
    (root / "Train").mkdir()
    with pytest.raises(UserError, match=r"mine has both images/ and Train/; remove one of them"):
        prepared(root)
    parts = tmp_path / "parts"
    folder(parts / "TRAIN", count=12)
    folder(parts / "Dev", count=2)
    folder(parts / "testing", count=3)
    data = prepared(parts)
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [12, 2, 3]
    assert "3 images of test are also in another split" in capsys.readouterr().err


def test_a_class_that_resizing_removes_is_named(tmp_path, capsys):
    root = binary(tmp_path, 1)
    for number in range(40):
        mask = np.zeros((6, 8), np.uint8)
        mask[:, 4:] = 1
        mask[0, 0] = 2
        save(root / "masks" / f"{number}.png", mask)
    prepared(root, image_size=(3, 4))
    assert (
        "no pixel of class_2 is left in the train split at config.data.image_size=(3, 4)"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["stored", "displayed", "own"])
def test_masks_of_turned_pictures(tmp_path, capsys, orientation, kind):
    """The mask of a image with an EXIF orientation, in pixels of the stored or the displayed
    image, or with the orientation of the image. It is where the image is bright.
    """
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for number, turn in enumerate([orientation] * 30 + [6] * 10):
        pixels = rng.integers(0, 40, (6, 8, 3), np.uint8)
        pixels[1:3, 1:7] = 255
        stored = Image.fromarray(pixels)
        exif = stored.getexif()
        exif[0x0112] = turn
        ending = ("png", "tif")[number % 2]
        stored.save(tmp_path / "images" / f"{number}.{ending}", exif=exif)
        mask = (pixels[..., 0] == 255).astype(np.uint8)
        if kind == "displayed":
            shown = np.asarray(ImageOps.exif_transpose(stored_again(stored, exif)))
            mask = (shown[..., 0] == 255).astype(np.uint8)
        options = {"exif": exif} if kind == "own" else {}
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.{ending}", **options)
    data = prepared(tmp_path, fit="tiles", image_size=(8, 8))
    for split in data.splits.values():
        np.testing.assert_array_equal(split.images[split.labels == 1], 255)
        assert (split.images[split.labels == 0] < 255).all()
        assert (split.labels == 1).sum() == 12 * len(split)
    said = capsys.readouterr().err
    assert ("EXIF" in said) == (kind != "own")
    assert ("as stored, and are transformed" in said) == (kind == "stored")


def test_predictions_of_a_turned_picture_are_as_displayed(tmp_path, capsys):
    image = Image.fromarray(picture())
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    errors._warned.discard("EXIF orientation")
    scenes = InferenceWindows([str(tmp_path / "a.png")] * 2, config(tmp_path))
    assert scenes.place[:, 3:].tolist() == [[8, 6]] * 2
    said = capsys.readouterr().err
    assert said.count("EXIF orientation 6 in ") == 1
    assert "predictions are in pixels of the image as displayed" in said


def stored_again(image, exif):
    image = image.copy()
    image.info["exif"] = exif.tobytes()
    return image


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "x", "mask_values": (0,)}, "mask_values: got .0., expected 2 to 255 different"),
        ({"path": "x", "mask_values": (0, 0)}, "mask_values: got .0, 0."),
        ({"path": "x", "mask_values": (0, -1)}, "mask_values: got .0, -1."),
        ({"mask_values": (0, 255)}, "got .0, 255., expected no values, because path is not set"),
        ({"name": "camvit"}, r"name: got 'camvit' \(did you mean 'camvid'\?\)"),
        ({"image_size": (180,)}, r"image_size: got \[180\], expected a height and a width"),
        ({"crop_size": (90,)}, r"crop_size: got \[90\], expected a height and a width"),
        ({"crop_size": (90, 241)}, r"crop_size: got \[90, 241\], .* of at most image_size"),
        ({"fit": "crop"}, "fit: got 'crop', expected one of 'resize', 'tiles'"),
        ({"void": -1}, "void: got -1"),
    ],
)
def test_wrong_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)
    assert DataConfig(path="a/streets").name == "own_streets"


def test_labels_at_another_size():
    labels = np.arange(24).reshape(4, 6)
    np.testing.assert_array_equal(nearest(labels, (2, 3)), labels[1::2, 1::2])
    np.testing.assert_array_equal(
        nearest(labels, (8, 12)), labels.repeat(2, axis=0).repeat(2, axis=1)
    )


@pytest.mark.parametrize("fit", ["resize", "tiles"])
def test_predictions_come_back_in_the_pictures_own_pixels(tmp_path, fit):
    sizes = [(6, 8), (1, 1), (13, 9)]
    maps = [RNG.integers(0, 3, size).astype(np.uint8) for size in sizes]
    for number, labels in enumerate(maps):
        save(tmp_path / f"{number}.png", np.repeat(80 * labels[..., None], 3, axis=2))
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    chosen = DataConfig(image_size=(6, 8), fit=fit)
    scenes = InferenceWindows(paths, chosen)
    examples = [scenes[index] for index in range(len(scenes))]
    assert {example["image"].shape for example in examples} == {(6, 8, 3)}
    # A model that reads the class off the color.
    seen = np.stack([example["image"][..., 0] for example in examples])
    outputs = {"place": np.stack([example["place"] for example in examples])}
    outputs |= {"labels": np.round(seen / 80).astype(np.uint8)}
    outputs |= {"probabilities": 255 * np.eye(3, dtype=np.uint8)[outputs["labels"]]}
    found = merge_windows(chosen, outputs)
    assert [labels.shape for labels in found] == sizes
    for number in (0, 1) if fit == "resize" else (0, 1, 2):
        np.testing.assert_array_equal(found[number], maps[number])
    with pytest.raises(UserError, match=r"input '.*3.png': no such file"):
        InferenceWindows([str(tmp_path / "3.png")], chosen)
    assert len(InferenceWindows([], chosen)) == 0


# ---------------------------------------------------------------- the project's data sets


def test_camvid_is_halved_and_its_content_compared(tmp_path):
    def png(array):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "png")
        return buffer.getvalue()

    image, labels = picture(8, 12), RNG.integers(0, 12, (8, 12)).astype(np.uint8)
    with zipfile.ZipFile(tmp_path / "repository.zip", "w") as archive:
        archive.writestr("SegNet-1/CamVid/test/Seq05VD_f1.png", png(image))
        archive.writestr("SegNet-1/CamVid/testannot/Seq05VD_f1.png", png(labels))
        archive.writestr("SegNet-1/CamVid/test.txt", "no image")
        archive.writestr("SegNet-1/Scripts/plot.png", png(image))
    datasets.halve_camvid(tmp_path / "repository.zip", tmp_path / "half.zip")
    blocks = list(datasets.camvid_pixels(tmp_path / "half.zip"))
    names = [b"CamVid/test/Seq05VD_f1.png", b"CamVid/testannot/Seq05VD_f1.png"]
    assert blocks[::2] == names
    with zipfile.ZipFile(tmp_path / "half.zip") as archive:
        (example,) = datasets._camvid_split(archive, "test")
    assert example["id"] == "Seq05VD_f1"
    mean = image.reshape(4, 2, 6, 2, 3).mean(axis=(1, 3))
    # Pillow rounds after each side.
    np.testing.assert_allclose(example["image"], mean, atol=1)
    np.testing.assert_array_equal(example["labels"], labels[1::2, 1::2])
    assert blocks[3] == example["labels"].tobytes()


def test_an_archive_of_full_camvid_has_the_content_of_the_repository(tmp_path):
    image, labels = picture(8, 12), RNG.integers(0, 12, (8, 12)).astype(np.uint8)
    for name, prefix, lossless in (("a", "SegNet-1/CamVid/", "png"), ("b", "", "webp")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for folder, array, kind in (("val", image, lossless), ("valannot", labels, "png")):
                buffer = io.BytesIO()
                Image.fromarray(array).save(buffer, kind, lossless=True)
                archive.writestr(f"{prefix}{folder}/f1.{kind}", buffer.getvalue())
    datasets.copy_camvid(tmp_path / "a", tmp_path / "copy")
    expected = [b"CamVid/val/f1.png", image.tobytes(), b"CamVid/valannot/f1.png", labels.tobytes()]
    for name in ("a", "b", "copy"):
        assert list(datasets.camvid_pixels(tmp_path / name)) == expected
        with zipfile.ZipFile(tmp_path / name) as archive:
            (example,) = datasets._camvid_split(archive, "val")
        np.testing.assert_array_equal(example["image"], image)
        np.testing.assert_array_equal(example["labels"], labels)


def test_land_and_water_of_one_band_are_in_one_split(monkeypatch):
    side, columns = 4, 50
    land = np.zeros((2 * side, columns * side), np.uint8)
    land[:, ::3] = blue_marble.LAND
    land[:, 1::3] = blue_marble.LAKE
    land[:side, : 5 * side] = blue_marble.OCEAN
    monkeypatch.setattr(datasets, "LAND_SIDE", side)
    monkeypatch.setattr(blue_marble, "read_land", lambda path, size: land)
    monkeypatch.setattr(
        blue_marble, "read_image", lambda path: np.repeat(land[..., None], 3, axis=2)
    )
    sources = {source.name: None for source in datasets.LAND_WATER.definition.sources}
    splits = datasets._land_water(sources)
    found = {}
    for split, examples in splits.items():
        for example in examples:
            row, column = map(int, example["id"].split("-"))
            found[row, column] = split
            land_here = example["image"][..., 0] == blue_marble.LAND
            np.testing.assert_array_equal(example["labels"], land_here)
    # Where all is water, there is nothing to find.
    assert len(found) == 2 * columns - 5
    bands = {column // 5: split for (_, column), split in found.items()}
    assert all(found[row, column] == bands[column // 5] for row, column in found)
    expected = ["train", "validation", "train", "test", "train"] * 2
    assert [bands[band] for band in range(10)] == expected


def test_what_a_folder_has_besides_is_named(tmp_path, capsys):
    root = folder(tmp_path / "mine", count=40)
    (root / "Classes.txt").write_text("sky\nroad\ntree\n")
    (root / "labels").mkdir()
    (root / ".DS_Store").write_text("x")
    prepared(root)
    assert capsys.readouterr().err == (
        f"{root}: 2 entries are left out, such as Classes.txt; expected only classes.txt, "
        "images, masks\n"
    )
    (root / "classes.txt").mkdir()
    with pytest.raises(UserError, match=r"classes.txt: is a folder, expected a file with one"):
        prepared(root)
    divided = tmp_path / "divided"
    folder(divided / "train", count=30)
    (divided / "train" / "classes.txt").write_text("sky\nroad\ntree\n")
    assert prepared(divided).names == ("class_0", "class_1", "class_2")
    assert capsys.readouterr().err == (
        f"{divided / 'train'}: 1 entries are left out, such as classes.txt; expected only "
        "images, masks\n"
    )
