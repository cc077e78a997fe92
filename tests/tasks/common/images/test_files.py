"""Image files of many formats, and files that are not images."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from tasks.common.data.user_files import read_each
from tasks.common.errors import UserError
from tasks.common.images.files import (
    center_crop_square,
    image_folder,
    image_paths,
    read_image,
    resize,
)

# 24 x 40: smooth, so that JPEG keeps it, and no symmetry.
_Y, _X = np.mgrid[0:24, 0:40]
COLOURS = np.stack([5 * _X, 10 * _Y, 255 - 5 * _X], axis=-1).astype(np.uint8)
GREY = (5 * _X + 2 * _Y).astype(np.uint8)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp", "tif", "ppm"])
def test_formats(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(COLOURS).save(path, **({"quality": 95} if kind in ("jpg", "webp") else {}))
    found = read_image(path)
    assert (found.dtype, found.shape) == (np.uint8, (24, 40, 3))
    tolerance = 12 if kind in ("jpg", "webp") else 0
    assert np.abs(found.astype(int) - COLOURS).max() <= tolerance


def test_grey_by_the_weights_of_itu_r_601(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    found = read_image(path, mode="L")
    assert found.shape == (24, 40)
    np.testing.assert_allclose(found, COLOURS @ [0.299, 0.587, 0.114], atol=1)


def test_transparency_shows_white_paper(tmp_path):
    alpha = np.full((24, 40), 255, np.uint8)
    alpha[:12], alpha[0] = 51, 0
    pixels = np.dstack([COLOURS, alpha])
    Image.fromarray(pixels, "RGBA").save(tmp_path / "rgba.png")
    share = alpha[..., None] / 255
    expected = COLOURS * share + 255 * (1 - share)
    np.testing.assert_allclose(read_image(tmp_path / "rgba.png"), expected, atol=1)
    Image.fromarray(np.dstack([GREY, alpha]), "LA").save(tmp_path / "la.png")
    found = read_image(tmp_path / "la.png", mode="L")
    np.testing.assert_allclose(found, GREY * share[..., 0] + 255 * (1 - share[..., 0]), atol=1)


def test_a_palette_with_a_transparent_entry(tmp_path):
    numbers = np.tile(np.arange(4, dtype=np.uint8), (3, 2))
    picture = Image.fromarray(numbers, "P")
    palette = np.array([[10, 20, 30], [200, 100, 0], [7, 7, 7], [0, 0, 255]])
    picture.putpalette(palette.ravel().tolist())
    for name, clear in (("a.png", 2), ("b.gif", 2), ("c.png", None)):
        picture.save(tmp_path / name, **({} if clear is None else {"transparency": clear}))
        colours = palette.copy()
        if clear is not None:
            colours[clear] = 255
        np.testing.assert_array_equal(read_image(tmp_path / name), colours[numbers])


def test_sixteen_bits_are_scaled_by_their_full_range(tmp_path):
    values = np.array([[0, 128, 129, 257, 65535], [65534, 32767, 32768, 1000, 256]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    expected = np.round(values.astype(float) * 255 / 65535)
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name, mode="L"), expected)
    assert read_image(tmp_path / "a.png").shape == (2, 5, 3)


def test_values_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)).save(tmp_path / "f.tif")
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "i.tif")
    for name in ("f.tif", "i.tif"):
        with pytest.raises(UserError, match=f"{name}: has values from .*, expected values of 8 or"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_s_orientation(tmp_path, orientation):
    # Stored images that a viewer displays as the expected colors, according to the EXIF standard.
    stored = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.swapaxes(0, 1),
        6: np.rot90(COLOURS, 1),
        7: COLOURS[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(COLOURS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), COLOURS)


def test_one_pixel_and_twenty_millions(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read_image(tmp_path / "one.png"), [[[1, 2, 3]]])
    assert read_image(tmp_path / "one.png", size=(5, 7)).shape == (5, 7, 3)
    Image.new("L", (5000, 4000), 9).save(tmp_path / "large.jpg")
    found = read_image(tmp_path / "large.jpg", mode="L", size=(40, 50))
    assert found.shape == (40, 50)
    assert (found == 9).all()


def test_one_too_large_is_refused(tmp_path, monkeypatch):
    Image.new("L", (30, 40)).save(tmp_path / "a.png")
    for most in (1199, 500):  # the second is less than half: an error of Pillow's own
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(UserError, match=r"a\.png: has .* pixels.*; make it smaller first"):
            read_image(tmp_path / "a.png")


def test_what_is_no_picture_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for kind in ("png", "jpg", "webp", "bmp", "tif", "gif"):
        whole = tmp_path / f"whole.{kind}"
        Image.fromarray(noise).save(whole)
        for share in (0.5, 0.95):
            part = tmp_path / f"part.{kind}"
            part.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
            with pytest.raises(UserError, match=rf"part\.{kind}: not an image"):
                read_image(part)
    (tmp_path / "words.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("words.png", "empty.png"):
        with pytest.raises(UserError, match=f"{name}: not an image$"):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="is a folder, expected an image"):
        read_image(tmp_path)
    with pytest.raises(UserError, match=r"^it: not an image that can be read"):
        read_image("a\0b", called="it")
    with pytest.raises(ValueError, match="mode: got 'CMYK'"):
        read_image(tmp_path / "whole.png", mode="CMYK")


def test_resizing_by_a_triangle_as_wide_as_two_new_pixels():
    values = np.random.default_rng(0).integers(0, 256, (12, 18), np.uint8)

    def weights(old, new):
        """Computes weights [new, old] by the definition: 1 - |distance| / step, inside the
        image."""
        step = old / new
        middles = (np.arange(new) + 0.5) * step
        distance = np.abs(np.arange(old) + 0.5 - middles[:, None]) / step
        triangle = np.maximum(1 - distance, 0)
        return triangle / triangle.sum(axis=1, keepdims=True)

    expected = weights(12, 3) @ values @ weights(18, 6).T
    np.testing.assert_allclose(resize(values, (3, 6)), expected, atol=1)
    assert resize(values, (12, 18)) is values
    assert resize(values, (30, 9)).shape == (30, 9)


def test_the_central_square():
    np.testing.assert_array_equal(center_crop_square(COLOURS), COLOURS[:, 8:32])
    np.testing.assert_array_equal(center_crop_square(GREY.T), GREY.T[8:32])
    assert center_crop_square(GREY[:1, :4]).shape == (1, 1)


# ---------------------------------------------------------------- folders


def folders(root, **classes):
    for name, files in classes.items():
        (root / name).mkdir(parents=True)
        for index, file in enumerate(files):
            Image.new("L", (3, 2), 10 * index).save(root / name / file)


def test_folders_by_class_and_what_is_left_out_by_its_name(tmp_path):
    folders(tmp_path, cat=["b.png", "a.JPG"], dog=["c.jpeg"], **{".hidden": ["d.png"]})
    folders(tmp_path / "dog", deeper=["e.webp"])
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "._a.jpg").write_bytes(b"of another system")
    (tmp_path / "readme.png").write_text("beside the classes")
    (tmp_path / "dog" / "moved.png").symlink_to(tmp_path / "nowhere.png")
    found = image_folder(tmp_path)
    names = {name: [path.name for path in paths] for name, paths in found.items()}
    assert names == {"cat": ["a.JPG", "b.png"], "dog": ["c.jpeg", "e.webp", "moved.png"]}
    # What leads nowhere is no other kind of file: it has to be named.
    with pytest.raises(UserError, match=r"moved\.png: no such file"):
        read_image(found["dog"][-1])
    # A hidden folder above does not count.
    assert len(image_paths(tmp_path / ".hidden")) == 1


def test_folders_without_what_is_needed(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no folders; put the images of each class"):
        image_folder(tmp_path)
    folders(tmp_path, cat=["a.png"], dog=[])
    with pytest.raises(UserError, match="dog: has no image; a class needs files that end in"):
        image_folder(tmp_path)


def test_what_is_broken_is_named_and_skipped_if_asked_for(tmp_path, capsys):
    folders(tmp_path, cat=["a.png", "b.png", "c.png"])
    paths = image_paths(tmp_path)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"b\.png: not an image.*--config\.data\.skip_broken"):
        read_each(paths, read_image)
    images, numbers = read_each(paths, read_image, skip_broken=True)
    assert numbers == [0, 2]
    assert [image[0, 0, 0] for image in images] == [0, 20]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"skipped {paths[1]}: not an image")


def test_many_broken_files_give_one_line(tmp_path, capsys):
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    images, numbers = read_each(paths, read_image, skip_broken=True)
    assert (images, numbers) == ([], [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"skipped 40 of 40 files, such as {paths[0]}: no such file; {paths[1]}:")
    assert "3.png" not in line


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Otherwise its images would be lost without a message."""
    for name in ("a.png", "closed/b.png", "open/c.PNG", "open/.hidden/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "open")
    found = [str(path.relative_to(tmp_path)) for path in image_paths(tmp_path)]
    assert found == ["a.png", "closed/b.png", "open/c.PNG"]
    scan = os.scandir

    def refusing(path):
        if os.path.basename(path) in ("closed", ".hidden"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"/closed: cannot be read \(Permission denied\)$"):
        image_paths(tmp_path)
