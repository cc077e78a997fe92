"""Data sets, their splits, user folders, and inputs of predictions."""

import gzip
import hashlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tasks.common.data import builders
from tasks.common.data.paths import Paths
from tasks.common.data.user_files import split_by_hash
from tasks.common.errors import UserError
from tasks.common.images.augmentation import AugmentationConfig
from tasks.common.images.tables import ImageTableConfig
from tasks.image_classification.data import DataConfig, ImageData, load
from tasks.image_classification.datasets import DATA_SETS, FASHION_MNIST, Images
from tasks.image_classification.user_files import read_gray, read_images, read_inputs

DIGITS, FASHION = DATA_SETS["digits"], DATA_SETS["fashion_mnist"]


def read_folder(path, side, skip_broken):
    return read_images(path, side, skip_broken, ImageTableConfig())


@pytest.fixture(scope="module")
def splits():
    return load(DataConfig(), None).splits


def test_every_digit_is_in_one_split_by_the_rule(splits):
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
    before = ImageData(DIGITS.labels, splits).fingerprint
    labels = splits["test"].labels.copy()
    labels[0] = (labels[0] + 1) % 10
    changed = {**splits, "test": Images(splits["test"].images, labels)}
    assert ImageData(DIGITS.labels, changed).fingerprint != before
    assert load(DataConfig(), None).fingerprint == before


# ---------------------------------------------------------------- Fashion-MNIST


def test_fashion_mnist_is_built_of_its_files(tmp_path):
    """From files of the same form with few images, the validation ones last in train."""

    def idx(array):
        return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()

    rng = np.random.default_rng(0)
    files, made = {}, {}
    for stem, count in (("train", 10_003), ("t10k", 2)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count).astype(np.uint8)
        made[stem] = images, labels
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"fashion_mnist/{stem}-{kind}-ubyte.gz"
            files[name] = tmp_path / name.split("/")[1]
            files[name].write_bytes(gzip.compress(idx(array) + array.tobytes(), 0))
    assert set(files) == {source.name for source in FASHION_MNIST.sources}
    found = {split: list(rows) for split, rows in FASHION_MNIST.generate(files).items()}
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 3,
        "validation": 10_000,
        "test": 2,
    }
    images, labels = made["train"]
    np.testing.assert_array_equal(found["train"][2]["image"], images[2])
    assert found["validation"][0]["label"] == labels[3]
    np.testing.assert_array_equal(found["validation"][9_999]["image"], images[10_002])
    np.testing.assert_array_equal(found["test"][1]["image"], made["t10k"][0][1])


def test_fashion_mnist_is_read_as_it_was_prepared(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = [
        {"image": rng.integers(0, 256, (28, 28), np.uint8), "label": label} for label in (9, 0, 3)
    ]
    small = builders.DatasetDefinition(
        name="fashion_mnist",
        version="1.0.0",
        features=FASHION_MNIST.features,
        sources=(),
        generate=lambda files: {split: rows for split in ("train", "validation", "test")},
    )
    monkeypatch.setattr("tasks.image_classification.datasets.FASHION_MNIST", small)
    data = load(DataConfig(name="fashion_mnist"), Paths(tmp_path, tmp_path))
    assert data.labels[9] == "Ankle boot"
    train = data.splits["train"]
    assert (train.images.shape, train.images.dtype) == ((3, 28, 28, 1), np.uint8)
    np.testing.assert_array_equal(train.labels, [9, 0, 3])
    np.testing.assert_array_equal(train[1]["image"][..., 0], rows[1]["image"])


# ---------------------------------------------------------------- folders


def folder(root, classes, count=30, seed=0):
    """Returns noise with a hue for each class, 12 x 10, in files that sort as their numbers."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 100, (12, 10, 3), np.uint8)
            pixels[..., number % 3] += 100
            Image.fromarray(pixels).save(root / name / f"{index:03d}.png")
    return root


def test_a_folder_of_classes_is_split_by_the_hash_of_the_pictures(tmp_path):
    folder(tmp_path, ["dog", "cat"])
    labels, splits = read_folder(str(tmp_path), 10, False)
    assert labels == ("cat", "dog")
    assert sum(len(part) for part in splits.values()) == 60
    assert all(len(part) for part in splits.values())
    assert splits["train"].images.dtype == np.uint8
    # The middle of the image; the class is the majority.
    first = np.asarray(Image.open(tmp_path / "cat" / "000.png"))[1:11]
    everything = np.concatenate([part.images for part in splits.values()])
    assert any((image == first).all() for image in everything)
    for part in splits.values():
        channel = part.images.mean(axis=(1, 2)).argmax(axis=1)
        np.testing.assert_array_equal(channel, 1 - part.labels)
    # Equal images stand together, and one more changes nothing for the others.
    files = [path for name in ("cat", "dog") for path in sorted((tmp_path / name).iterdir())]
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    rows = split_by_hash(hashes, [], "", "")
    for split, part in splits.items():
        expected = [np.asarray(Image.open(files[row]))[1:11] for row in rows[split]]
        np.testing.assert_array_equal(part.images, expected)
    for number, row in enumerate(rows["test"]):
        (tmp_path / "cat" / f"copy {number}.png").write_bytes(files[row].read_bytes())
    again = read_folder(str(tmp_path), 10, False)[1]
    assert len(again["test"]) == 2 * len(splits["test"])
    np.testing.assert_array_equal(again["train"].images, splits["train"].images)


def test_splits_do_not_depend_on_the_size(tmp_path):
    """Each image has a different shade, by which it is recognized at any size."""
    for name, hue in (("cat", 0), ("dog", 200)):
        (tmp_path / name).mkdir()
        for number in range(60):
            pixels = np.full((12, 10, 3), hue, np.uint8)
            pixels[-1, -1] = number
            pixels[:, :, 1] = number
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    found = {}
    for side in (1, 3, 10):
        splits = read_folder(str(tmp_path), side, False)[1]
        found[side] = {
            split: sorted(zip(part.labels.tolist(), part.images[:, 0, 0, 1].tolist(), strict=True))
            for split, part in splits.items()
        }
    assert found[1] == found[3] == found[10]
    assert sum(map(len, found[1].values())) == 120


def test_what_is_left_out_or_equal_is_named(tmp_path, capsys):
    folder(tmp_path / "Train", ["caf\u00e9", "b"], seed=1)
    folder(tmp_path / "Val", ["cafe\u0301", "b"], count=2, seed=2)
    for name in ("b/notes.txt", "b/c.heic", "b/Thumbs.db", "b/.DS_Store"):
        (tmp_path / "Train" / name).write_text("x")
    (tmp_path / "Train" / "__MACOSX" / "b").mkdir(parents=True)
    (tmp_path / "Train" / "__MACOSX" / "b" / "a.png").write_text("x")
    (tmp_path / "Train" / "loose.PNG").write_text("x")
    (tmp_path / "extra" / "b").mkdir(parents=True)
    (tmp_path / "extra" / "b" / "a.png").write_text("x")
    first = tmp_path / "Train" / "b" / "000.png"
    first.rename(first.with_suffix(".PNG"))
    (tmp_path / "Train" / "b" / "more").mkdir()
    (tmp_path / "Train" / "b" / "001.png").rename(tmp_path / "Train" / "b" / "more" / "001.png")
    content = first.with_suffix(".PNG").read_bytes()
    (tmp_path / "Train" / "caf\u00e9" / "same.png").write_bytes(content)
    (tmp_path / "Val" / "b" / "same.png").write_bytes(content)
    labels, splits = read_folder(str(tmp_path), 4, False)
    assert labels == ("b", "caf\u00e9")
    assert len(splits["train"]) + len(splits["test"]) == 61
    assert splits["validation"].labels.tolist() == [0, 0, 0, 1, 1]
    said = capsys.readouterr().err
    # .DS_Store, Thumbs.db, c.heic, notes.txt, loose.PNG and the image of another system's folder.
    assert f"{tmp_path / 'Train'}: 6 files are left out, the first is __MACOSX/b/a.png;" in said
    assert f"{tmp_path}: 1 files are left out, the first is extra/b/a.png;" in said
    deeper = "1 images are in subfolders, such as more/001.png; they count as examples of 'b'"
    assert deeper in said
    assert "Train: 1 images are in two classes, such as" in said
    assert "1 images of validation are also in another split, such as" in said
    folder(tmp_path / "dev", ["b"], count=1)
    with pytest.raises(UserError, match="'Val' and 'dev' both denote the validation split"):
        read_folder(str(tmp_path), 4, False)
    folder(tmp_path / "Train", ["cafe\u0301"], count=1)
    (tmp_path / "dev").rename(tmp_path / "other")
    with pytest.raises(
        UserError, match="two folders are called 'caf\u00e9', in different Unicode forms"
    ):
        read_folder(str(tmp_path), 4, False)


def test_counts_by_class_and_a_class_that_is_skipped(tmp_path):
    folder(tmp_path / "train", ["a", "b"])
    folder(tmp_path / "test", ["b"], count=2, seed=3)
    summary = load(DataConfig(path=str(tmp_path)), None).summary()
    assert summary["test"].classes == {"a": 0, "b": 2}
    assert sum(sum(summary[split].classes.values()) for split in ("train", "validation")) == 60
    for file in (tmp_path / "train" / "a").iterdir():
        file.write_bytes(b"x")
    with pytest.raises(UserError, match="all labeled images of the train split have the class 'b'"):
        load(DataConfig(path=str(tmp_path), skip_broken=True), None)


def test_folders_of_splits(tmp_path):
    folder(tmp_path / "train", ["a", "b"], seed=1)
    folder(tmp_path / "val", ["b"], count=2, seed=2)
    _, splits = read_folder(str(tmp_path), 4, False)
    assert len(splits["validation"]) == 2
    np.testing.assert_array_equal(splits["validation"].labels, [1, 1])
    assert splits["train"].images.shape[1:] == (4, 4, 3)
    assert len(splits["train"]) + len(splits["test"]) == 60
    folder(tmp_path / "test", ["c"], count=2, seed=3)
    with pytest.raises(
        UserError,
        match=r"test/c: got the class .c., expected a class of the train split: a, b",
    ):
        read_folder(str(tmp_path), 4, False)


def test_a_class_may_be_called_train(tmp_path):
    labels, _ = read_folder(str(folder(tmp_path, ["train", "plane"])), 4, False)
    assert labels == ("plane", "train")


def test_a_broken_picture_is_named_or_skipped(tmp_path, capsys):
    folder(tmp_path, ["a", "b"])
    broken = tmp_path / "b" / "007.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(UserError, match=r"b/007\.png: not an image .*config\.data\.skip_broken"):
        read_folder(str(tmp_path), 4, False)
    _, splits = read_folder(str(tmp_path), 4, True)
    assert sum(len(part) for part in splits.values()) == 59
    assert "skipped" in (said := capsys.readouterr().err)
    assert "007.png" in said


def test_folders_that_cannot_be_learned_from(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder; set --data"):
        read_folder(str(tmp_path / "nowhere"), 4, False)
    folder(tmp_path / "one", ["a"])
    with pytest.raises(UserError, match="got the single class 'a', expected at least two"):
        read_folder(str(tmp_path / "one"), 4, False)
    folder(tmp_path / "few", ["a", "b"], count=1)
    with pytest.raises(UserError, match="2 examples are too few to split"):
        read_folder(str(tmp_path / "few"), 4, False)


# ---------------------------------------------------------------- predictions


@pytest.mark.parametrize("data_set", [DIGITS, FASHION])
def test_numbers(data_set):
    pixels = np.arange(data_set.side**2) % (data_set.ink + 1)
    typed = ",".join(map(str, pixels))
    found = read_gray(typed, data_set)
    np.testing.assert_allclose(found.ravel() * data_set.ink, pixels, rtol=1e-6)
    unlabelled = read_inputs([typed, typed], data_set, data_set.side)
    assert len(unlabelled) == 2
    assert unlabelled[1].keys() == {"image"}
    assert read_inputs([], data_set, data_set.side).images.shape == (0, *found.shape)


def test_colours_of_own_pictures_stay(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = read_inputs([str(tmp_path / "a.png")], None, 6).images
    np.testing.assert_array_equal(found[0], pixels[:, 1:7])
    with pytest.raises(UserError, match=r"^input '1,2,3': no such file; give the path of an imag"):
        read_inputs(["1,2,3"], None, 6)


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
    np.testing.assert_allclose(read_gray(str(path), DIGITS)[..., 0], EXPECTED, atol=0.01)


def test_a_picture_that_is_no_square_is_put_into_one(tmp_path):
    """Dark on light, narrow: paper left and right of it."""
    path = tmp_path / "bar.png"
    Image.fromarray(np.pad(np.zeros((16, 8), np.uint8), 8, constant_values=255)).save(path)
    found = read_gray(str(path), DIGITS)[..., 0]
    np.testing.assert_allclose(found.sum(), 8, atol=0.01)
    np.testing.assert_allclose(found[2:6, 3:5], 1, atol=0.01)


def test_what_is_transparent_is_paper(tmp_path):
    path = tmp_path / "bar.png"
    black = np.zeros_like(BAR)
    Image.fromarray(np.stack([black, black, black, BAR], axis=-1), "RGBA").save(path)
    np.testing.assert_allclose(read_gray(str(path), DIGITS)[..., 0], EXPECTED, atol=0.01)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("1,2,3", "has 3 numbers, expected 64, one per pixel, row by row"),
        (",".join(["17"] * 64), "got the number 17, expected 0"),
        (",".join(["nan"] * 64), "got the number nan, expected 0"),
        (",".join(["-0.1"] * 64), "got the number -0.1, expected 0"),
        ("nowhere.png", "'nowhere.png': no such file; give the path of an image, or 64 comma"),
        ("", "give the path of an image"),
        ("a\0b", "not an image"),
        ("x," * 400, "give the path of an image"),
    ],
)
def test_other_input_is_refused_in_one_line(typed, message):
    with pytest.raises(UserError, match=message) as caught:
        read_gray(typed, DIGITS)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


def test_a_file_that_is_no_picture_is_refused(tmp_path):
    whole = tmp_path / "whole.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(whole)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "words.png").write_text("not an image")
    for name in ("half.png", "words.png", "."):
        with pytest.raises(UserError, match=r"(not|expected) an image.*; give the path"):
            read_gray(str(tmp_path / name), DIGITS)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "fashion", "name: got 'fashion' .did you mean 'fashion_mnist'"),
        ("shift", -0.5, r"shift: got -0.5, expected a number in \[0, 8\]"),
        ("image_size", 32, "image_size: got a value, but built-in"),
        ("skip_broken", True, "skip_broken: got a value, but built-in"),
        ("mixup", -1.0, "mixup: got -1.0, expected at least 0"),
        (
            "augmentation",
            AugmentationConfig(hue=0.1),
            "augmentation: got a saturation or hue above 0, expected 0 because the images of "
            "digits are gray",
        ),
    ],
)
def test_impossible_configs_begin_with_the_field(field, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        DataConfig(**{field: value})


def test_results_of_own_pictures_have_a_name_of_their_own(tmp_path):
    config = DataConfig(path=str(tmp_path / "leaves"), augmentation=AugmentationConfig(hue=0.1))
    assert (config.name, config.image_shape) == ("own_leaves", (64, 64, 3))
    assert DataConfig(name="mine", path="leaves", image_size=8).image_shape == (8, 8, 3)
    assert DataConfig(name="mine", path="leaves").name == "mine"
    assert DataConfig(name="fashion_mnist").image_shape == (28, 28, 1)
    with pytest.raises(ValueError, match="image_size: got 0"):
        DataConfig(path="leaves", image_size=0)


def test_links_to_folders_are_named(tmp_path, capsys):
    folder(tmp_path / "x", ["a", "b"])
    folder(tmp_path / "other", ["more"], count=3)
    (tmp_path / "x" / "a" / "link").symlink_to(tmp_path / "other" / "more")
    (tmp_path / "x" / "b" / "loop").symlink_to(tmp_path / "x")
    _, splits = read_folder(str(tmp_path / "x"), 4, False)
    assert sum(map(len, splits.values())) == sum(1 for _ in (tmp_path / "x").glob("?/*.png"))
    assert (
        f"{tmp_path / 'x'}: 2 files are left out, the first is a/link;" in capsys.readouterr().err
    )
