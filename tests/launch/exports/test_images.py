"""Exports of the tasks that read images: equal arrays and answers, and errors of one line."""

import dataclasses
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from launch.engine import config as configs
from launch.exports import reader, writer
from tasks.common.errors import UserError
from tasks.common.images.files import read_image
from tasks.detection.data import DataConfig
from tasks.detection.task import TASK as DETECTION
from tasks.segmentation import tiles
from tests.launch.exports.test_text import assert_same
from tests.launch.serving import hostile_files
from tests.tasks import contract
from tests.tasks.detection.test_task import MODEL

# Name -> task, and changes of its config.
CASES = {
    "classes": ("image_classification", {}),
    "digits": ("image_classification", {"data.path": None, "data.image_size": None}),
    "resized": ("segmentation", {}),
    "tiles": ("segmentation", {"data.fit": "tiles"}),
    "boxes": ("detection", {}),
    "lines": ("handwriting_recognition", {"data.max_columns": 320}),
    "masks": ("detection", {}),
}
# Mask R-CNN takes long to compile.
EXPORTED = [pytest.param(name, marks=[pytest.mark.slow] * (name == "masks")) for name in CASES]


def make_subject(name, folder):
    """Returns a subject of `contract`, with another config if the case has changes."""
    task, changes = CASES[name]
    if name == "masks":
        return mask_subject(folder)
    subject = contract.make_subject(task, folder)
    if not changes:
        return subject
    if name == "digits":
        changes = {**changes, "data.name": "digits"}
    config = configs.override(subject.config, changes)
    assets = subject.task.assets()
    if name == "digits":
        assets["labels"] = list("0123456789")
    task = type(subject.task).restore(config.data, config.model, assets)
    return dataclasses.replace(subject, config=config, task=task)


def mask_subject(folder):
    """Returns a small Mask R-CNN as a subject, without data."""
    data = DataConfig(path=str(folder / "toy.json"), image_size=32)
    assets = {"names": ["round", "square"], "has_masks": True, "image_size": 32}
    task = DETECTION.restore(data, MODEL, assets)
    config = configs.experiment(
        task="detection",
        name="toy",
        data=data,
        model=MODEL,
        training=configs.TrainingConfig(batch_size=4, evaluation_batch_size=4),
    )
    return contract.Subject("detection", configs.resolve(config), None, [], task)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Returns subjects by the names of their cases, made once each."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = make_subject(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(scope="module")
def exported(subjects, tmp_path_factory):
    """Returns subjects and their exports by the names of their cases, made once each."""
    made = {}

    def get(name):
        if name not in made:
            subject, folder = subjects(name), tmp_path_factory.mktemp("export") / "e"
            writer.write_export(subject.task, subject.config, subject.variables, folder)
            made[name] = subject, reader.Export(folder)
        return made[name]

    return get


# ---------------------------------------------------------------------- images


def random_image(mode, size, seed=0):
    """Returns smooth noise of a mode and size (X, Y)."""
    rng = np.random.default_rng(seed)
    X, Y = size
    small = rng.integers(0, 256, (max(Y // 4, 1), max(X // 4, 1), 4), np.uint8)
    image = Image.fromarray(small, "RGBA").resize(size, Image.Resampling.BICUBIC)
    return image.convert(mode)


def sixteen_bits(size, seed=0):
    """Returns a grayscale image of 16 bits."""
    values = np.random.default_rng(seed).integers(0, 65536, size[::-1])
    return Image.fromarray(values.astype(np.uint16))


def oriented(image, orientation):
    """Returns options of `save` with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"image": image, "exif": exif}


def write_images(folder):
    """Writes images of odd sizes, modes, orientations and formats.

    Returns:
      Their paths.
    """
    palette = random_image("RGB", (31, 17), 2).quantize(16)
    clear = random_image("RGB", (40, 23), 3).quantize(8)
    clear.info["transparency"] = 2
    files = {
        "rgb.png": {"image": random_image("RGB", (8, 8))},
        "alpha.png": {"image": random_image("RGBA", (33, 47), 1)},
        "gray.png": {"image": random_image("L", (64, 31), 4)},
        "gray alpha.png": {"image": random_image("LA", (19, 25), 5)},
        "palette.png": {"image": palette},
        "clear.png": {"image": clear, "transparency": 2},
        "clear gray.png": {"image": random_image("L", (20, 20), 6), "transparency": 7},
        "bits.png": {"image": random_image("1", (37, 29), 7)},
        "16.png": {"image": sixteen_bits((30, 21))},
        "16.tif": {"image": sixteen_bits((21, 30), 1)},
        "one.png": {"image": random_image("RGB", (1, 1), 8)},
        "flat.png": {"image": random_image("RGB", (19, 2), 9)},
        "empty rows.png": {"image": Image.new("L", (9, 21), 255)},
        "two.png": {"image": random_image("RGB", (2, 2), 31)},
        "high.png": {"image": random_image("L", (3, 57), 10)},
        "photo.jpg": {"image": random_image("RGB", (64, 48), 11), "quality": 60},
        "gray.JPG": {"image": random_image("L", (45, 33), 12)},
        "cmyk.jpeg": {"image": random_image("CMYK", (22, 34), 13)},
        "alpha.webp": {"image": random_image("RGBA", (50, 41), 14), "quality": 70},
        "lossless.webp": {"image": random_image("RGB", (17, 16), 15), "lossless": True},
        "frames.gif": {
            "image": palette, "save_all": True, "append_images": [palette.rotate(90)],
        },
        "views.jpg": {
            "image": palette.convert("RGB"), "format": "MPO", "save_all": True,
            "append_images": [palette.convert("RGB")],
        },
        "small.avif": {"image": random_image("RGB", (28, 30), 30)},
        "rgb.bmp": {"image": random_image("RGB", (27, 15), 16)},
        "rgb.tiff": {"image": random_image("RGB", (26, 44), 17), "compression": "tiff_lzw"},
        "turned.tiff": oriented(random_image("RGB", (24, 14), 18), 6),
        "portable.ppm": {"image": random_image("RGB", (16, 9), 19)},
        "ä 写真.png": {"image": random_image("RGB", (100, 32), 20)},
    }  # fmt: skip
    files |= {
        f"turned {n}.jpg": oriented(random_image("RGB", (36, 20), 20 + n), n) for n in range(1, 9)
    }
    for name, options in files.items():
        options.pop("image").save(folder / name, **options)
    return [str(folder / name) for name in files]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Writes images once; returns their paths."""
    return write_images(tmp_path_factory.mktemp("images"))


def numbers(side, ink):
    """Returns pixel values as text."""
    values = np.random.default_rng(0).uniform(0, ink, side * side)
    return ",".join(f"{value:.2f}" for value in values)


def inputs_of(name, images):
    """Returns the valid inputs of a case, as many as images."""
    if name == "digits":
        return [*images[2:], numbers(8, 16), " 0, 16,\t3.5 ," + ",".join(["1e0"] * 61)]
    return [*images[1:], f" {images[0]} "] if name == "lines" else images


# ---------------------------------------------------------------------- arrays and answers


@pytest.mark.parametrize("name", CASES)
def test_arrays_are_those_of_the_processor(subjects, images, name):
    processor = subjects(name).task.processor
    steps = processor.steps()
    for raw in inputs_of(name, images):
        examples, rows = processor.encode([raw]), encoded(steps, raw)
        assert len(rows) == len(examples)
        for index, row in enumerate(rows):
            for key in processor.signature():
                expected = np.asarray(examples[index][key])
                found = np.asarray(row[key])
                assert found.dtype == expected.dtype, (raw, key)
                np.testing.assert_array_equal(found, expected, err_msg=f"{raw} {key}")


def encoded(steps, raw):
    """Returns the rows of an input by the operations of `steps`, without an export."""
    rows = [{"raw": raw}]
    for options in steps.encode:
        operation, after = reader.ENCODERS[options["op"]](options, None), []
        for row in rows:
            found = operation(row)
            after += found if isinstance(found, list) else [found]
        rows = after
    return rows


def made_up_outputs(processor, rows, name, seed=0):
    """Returns random outputs of a model for rows, by example."""
    rng, found = np.random.default_rng(seed), []
    for row in rows:
        if name in ("resized", "tiles"):
            Y, X = processor.data.image_size
            classes = len(processor.names)
            made = {"place": row["place"], "labels": rng.integers(0, classes, (Y, X), np.uint8)}
            if name == "tiles":
                levels = rng.integers(0, 256, (Y, X, classes), np.uint8)
                made = {"place": row["place"], "probabilities": levels}
        else:
            count, side = 12, processor.image_size
            corners = rng.uniform(-3, side + 3, (count, 2, 2)).astype(np.float32)
            made = {
                "boxes": np.concatenate([corners.min(1), corners.max(1)], axis=1),
                "scores": rng.random(count, np.float32),
                "labels": rng.integers(0, len(processor.names), count, np.int32),
                "valid": rng.random(count) < 0.8,
                "masks": rng.random((count, 7, 7)).astype(np.float16),
                "original": row["original"],
            }
            made["boxes"][0, 2:] = made["boxes"][0, :2]
        found.append(made)
    return found


@pytest.mark.parametrize("name", ["resized", "tiles", "boxes", "masks"])
def test_answers_to_outputs_are_those_of_the_processor(subjects, images, name):
    processor = subjects(name).task.processor
    steps = processor.steps()
    for seed, raw in enumerate(images):
        rows = encoded(steps, raw)
        outputs = made_up_outputs(processor, rows, name, seed)
        item = reader.Item(raw, rows)
        item.outputs = outputs
        for options in steps.decode:
            reader.DECODERS[options["op"]](options, None)(item)
        stacked = {key: np.stack([out[key] for out in outputs]) for key in outputs[0]}
        (expected,) = processor.decode([raw], stacked)
        assert json.dumps(item.answer) == json.dumps(expected)


def counting(function):
    """Returns a function that counts its calls."""

    def called(*arguments):
        called.calls += 1
        return function(*arguments)

    called.calls = 0
    return called


@pytest.mark.parametrize("name", EXPORTED)
def test_answers_are_those_of_the_predictor(exported, images, name, monkeypatch):
    subject, export = exported(name)
    raw = inputs_of(name, images)
    expected = subject.predictor(raw)
    if name in ("boxes", "masks"):
        found = [set(row) for answer in expected for row in answer["objects"]]
        assert {"box", *(["mask"] if name == "masks" else [])} <= set.union(*found)
    assert_same(export(raw), expected)
    monkeypatch.setitem(export.signature, "batch_size", 2)
    assert_same(export(raw[-2:]), expected[-2:])
    # Each input is a portion.
    monkeypatch.setattr(reader, "PORTION_BYTES", 1)
    monkeypatch.setattr(reader.Export, "run", counted := counting(reader.Export.run))
    assert_same(export(raw[:3]), expected[:3])
    assert counted.calls == 3


@pytest.mark.parametrize("name", EXPORTED)
def test_contents_have_the_answers_of_their_files(exported, images, name):
    _, export = exported(name)
    paths = images[3::9]
    contents = []
    for path in paths:
        with open(path, "rb") as file:
            contents.append(file.read())
    for path, answer, expected in zip(paths, export(contents), export(paths), strict=True):
        assert answer["input"] is None
        text = expected["text"].removeprefix(f"{path}: ")
        assert answer == {**expected, "input": None, "text": text}


@pytest.mark.parametrize("name", EXPORTED)
def test_golden_outputs_verify(exported, name):
    _, export = exported(name)
    assert export.verify() <= export.signature["tolerance"]


def test_lines_are_read_by_the_shortest_program(exported, tmp_path):
    subject, export = exported("lines")
    assert [program["sizes"] for program in export.signature["programs"]["predict"]] == [
        {"length": 256}, {"length": 320},
    ]  # fmt: skip
    for width, bucket in ((1, 0), (256, 0), (257, 1), (320, 1)):
        random_image("L", (width, 32)).save(tmp_path / "line.png")
        (row,) = export.encode(str(tmp_path / "line.png")).rows
        assert row["length"] == width
        assert export.bucket(row) == bucket
    random_image("L", (321, 32)).save(tmp_path / "line.png")
    with pytest.raises(reader.InputError, match="got 321 columns at 32 rows, expected at most 320"):
        export([str(tmp_path / "line.png")])
    with pytest.raises(UserError, match="got 321 columns"):
        subject.predictor([str(tmp_path / "line.png")])


@pytest.mark.parametrize(
    ("limit", "widths"),
    [(2000, [256, 512, 1024, 2000]), (256, [256]), (257, [256, 272]), (40, [48])],
)
def test_widths_of_lines_double_up_to_the_limit(subjects, limit, widths):
    processor = subjects("lines").task.processor
    data = dataclasses.replace(processor.data, max_columns=limit)
    sizes = dataclasses.replace(processor, data=data).export_sizes()
    assert sizes == [{"length": width} for width in widths]


# ---------------------------------------------------------------------- run lengths


def random_masks():
    """Yields masks: empty, full, noise, a disc, and few pixels in a large one."""
    rng = np.random.default_rng(0)
    for number in range(60):
        Y, X = rng.integers(1, 70, 2)
        y, x = np.mgrid[:Y, :X]
        yield np.full((Y, X), number % 2 == 0)
        yield rng.random((Y, X)) < number / 60
        yield (y - Y / 2) ** 2 + (x - X / 2) ** 2 < (min(Y, X) / 2.5) ** 2
    large = np.zeros((1500, 2100), bool)
    yield large
    large[rng.integers(0, 1500, 9), rng.integers(0, 2100, 9)] = True
    yield large
    yield ~large


def test_run_lengths_are_those_of_pycocotools():
    for mask in random_masks():
        expected = coco.encode(np.asfortranarray(mask, np.uint8))
        found = reader.run_lengths(mask)
        assert found == {"size": list(expected["size"]), "counts": expected["counts"].decode()}
        np.testing.assert_array_equal(coco.decode(found), mask)


# ---------------------------------------------------------------------- errors


def large_png(width, height):
    """Returns a PNG of a few bytes with a header of a large size."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(image, **options):
    """Returns the content of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


FLOAT = saved(Image.fromarray(np.array([[0, np.nan]], np.float32)), format="TIFF")
WIDE = saved(Image.fromarray(np.array([[0, 70_000]], np.int32)), format="TIFF")
WHOLE = saved(random_image("RGB", (40, 40)), format="PNG")
BROKEN = {
    "empty": (b"", "empty"),
    "text": (b"GIF87 or text", "not an image"),
    "truncated": (WHOLE[:-40], "not an image that can be read"),
    "changed": (WHOLE[:60] + b"\xff" * 60 + WHOLE[120:], "not an image that can be read"),
    "large": (large_png(10_000, 4_001), "10000 x 4001 pixels, more than 40,000,000"),
    "bomb": (large_png(60_000, 60_000), "more than 40,000,000 pixels"),
    "postscript": (saved(random_image("RGB", (9, 9)), format="EPS"), "not an image in one of"),
    "floats": (FLOAT, "expected those of 8 or 16 bits"),
    "wide integers": (WIDE, "from 0 to 70000"),
    "tile": (hostile_files.tiled_tiff(8, 1 << 13, zlib.compress(bytes(64))), "tiles of more than"),
    "scans": (hostile_files.scanned_jpeg(2000, 1001), "scans of 4000000 pixels"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_images_are_refused_in_one_line(subjects, tmp_path, case):
    content, expected = BROKEN[case]
    path = tmp_path / "broken image.png"
    path.write_bytes(content)
    for name in CASES:
        steps = subjects(name).task.processor.steps()
        for raw, shown in ((content, "input the content: "), (str(path), f"input '{path}'"[:30])):
            with pytest.raises(reader.InputError, match=r"^[^\n]+$") as error:
                encoded(steps, raw)
            assert str(error.value).startswith(shown)
            assert expected in str(error.value)


def test_long_thin_images_that_would_need_much_memory_are_refused(subjects, tmp_path, monkeypatch):
    path = tmp_path / "narrow.png"
    Image.new("L", (6400, 1)).save(path)
    with pytest.raises(reader.InputError, match="too long to be padded to a square"):
        encoded(subjects("digits").task.processor.steps(), str(path))
    steps = subjects("tiles").task.processor.steps()
    assert len(encoded(steps, str(path))) == 533
    monkeypatch.setattr(reader, "_MOST_PIXELS", 6400)
    with pytest.raises(reader.InputError, match="1 x 6400 pixels need too many windows of 16 x 16"):
        encoded(steps, str(path))
    Image.new("L", (80, 80)).save(path)
    assert len(encoded(steps, str(path))) == 49


def test_images_are_converted_in_bands_of_any_size(images, tmp_path, monkeypatch):
    big_endian = tmp_path / "16 big.tif"
    values = np.arange(600, dtype=">u2").reshape(20, 30) * 100
    # Mode I;16B, which Pillow reads and does not write.
    head = b"MM\0*" + struct.pack(">IH", 8, 8)
    tags = [(256, 30), (257, 20), (258, 16), (259, 1), (262, 1), (273, 110), (278, 20), (279, 1200)]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    big_endian.write_bytes(head + entries + bytes(4) + values.tobytes())
    for pixels in (1, 100, 1 << 22):
        monkeypatch.setattr(reader, "_BAND_PIXELS", pixels)
        for path in [*images, str(big_endian)]:
            for mode in ("RGB", "L"):
                expected = read_image(path, mode=mode)
                np.testing.assert_array_equal(reader.decode_image(path, mode), expected, path)


def test_progressive_images_are_read():
    content = hostile_files.scanned_jpeg(100, 3)
    assert reader.decode_image(content, "L").tolist() == [[128] * 100] * 100


def test_windows_are_blended_in_bands_of_any_size(monkeypatch):
    rng = np.random.default_rng(0)
    corners = tiles.window_corners(37, 29, (16, 12), 0.25)
    windows = list(rng.integers(0, 256, (len(corners), 16, 12, 3), np.uint8))
    expected = tiles.blend_windows(windows, corners, 37, 29)
    for most in (1, 29 * 3 * 5, 1 << 20):
        monkeypatch.setattr(reader, "_MOST_SUMS", most)
        np.testing.assert_array_equal(reader._blended(windows, corners, 37, 29), expected)


def test_paths_that_are_no_files_are_refused(subjects, tmp_path):
    steps = subjects("classes").task.processor.steps()
    for raw in (str(tmp_path), str(tmp_path / "missing.png"), "/dev/null", "\0", ""):
        with pytest.raises(reader.InputError, match=r"^input [^\n]+; give the path of an image$"):
            encoded(steps, raw)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("1,2", "has 2 numbers, expected 64"),
        (",".join(["17"] * 64), "from 0"),
        (",".join(["nan"] * 64), "from 0"),
        ("1,2,x", "64 comma-separated numbers 0..16"),
    ],
)
def test_pixel_values_that_do_not_fit_are_refused(subjects, raw, expected):
    steps = subjects("digits").task.processor.steps()
    with pytest.raises(reader.InputError, match=expected):
        encoded(steps, raw)


@pytest.mark.parametrize("name", CASES)
def test_odd_inputs_give_an_answer_or_one_line(subjects, name):
    processor = subjects(name).task.processor
    for raw in contract.ODD:
        with pytest.raises(UserError):
            list(map(processor.encode([raw]).__getitem__, [0]))
        with pytest.raises(reader.InputError, match=r"^[^\n]+$"):
            encoded(processor.steps(), raw)
