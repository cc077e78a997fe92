"""Built-in data sets for detection."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tasks.common.data.builders import DatasetDefinition, features_of
from tasks.common.datasets import blue_marble, fashion_mnist
from tasks.detection.datasets import clothes, nuclei, trees


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """A data set of images with objects.

    Attributes:
      definition: definition of the data set, with the features of `image_features`.
      names: names of the classes.
      side: side in pixels of the square that contains each image.
      max_objects: greatest number of objects in an image.
      has_masks: whether objects have masks.
    """

    definition: DatasetDefinition
    names: tuple[str, ...]
    side: int
    max_objects: int
    has_masks: bool


def image_features(side: int, has_masks: bool) -> Callable[[], Mapping[str, Any]]:
    """Returns the features of an example: image, size, boxes, labels and, with masks, instances.

    The image fills the upper left part of a square; `size` is its height and width. Boxes and
    instances are as in `tasks.detection.data`, without padding.
    """

    kinds = {
        "image": ((side, side, 3), np.uint8),
        "size": ((2,), np.int32),
        "boxes": ((None, 4), np.float32),
        "labels": ((None,), np.int32),
    }
    if has_masks:
        kinds["instances"] = ((side, side), np.uint16)
    return features_of(**kinds)


NUCLEI = ImageDataset(
    DatasetDefinition(
        name="nuclei",
        version="1.0.0",
        features=image_features(nuclei.SIDE, True),
        sources=(nuclei.SOURCE,),
        generate=nuclei.generate,
        counts={"train": 200, "validation": 67, "test": 67},
        description="Nuclei of cells in fluorescence microscopy, with a mask of each nucleus: the "
        "334 images of 256 x 256 pixels in the training set of the 2018 Data Science Bowl (Caicedo "
        "et al. 2019), with annotations corrected by K. Lopuhin and others. In the order of their "
        "ids, of every five images the first is test and the second validation. Where two masks "
        "overlap (5 pixels in all), the smaller is on top. No two images are equal: at an eighth "
        "of their size, the correlation of any two is at most 0.46.",
        license="CC0",
    ),
    ("nucleus",),
    nuclei.SIDE,
    101,
    True,
)

TREES = ImageDataset(
    DatasetDefinition(
        name="trees",
        version="1.0.0",
        features=image_features(trees.SIDE, False),
        sources=trees.SOURCES,
        generate=trees.generate,
        counts={"train": 265, "validation": 20, "test": 25},
        description="Crowns of trees, as boxes, in four aerial images of the package "
        "deepforest (Weinstein et al. 2019; imagery of NEON), in tiles of up to 256 x 256. "
        "Test is the second image of Yellowstone; validation is the eastern part of the first; "
        "train is its western part and two images of other forests. Tiles of train overlap by "
        "half. A tree on the border of a tile belongs to it if half of its box is inside.",
        license="MIT (the package)",
    ),
    ("tree",),
    trees.SIDE,
    28,
    False,
)

CLOTHES_ON_SATELLITE = ImageDataset(
    DatasetDefinition(
        name="clothes_on_satellite",
        version="1.0.0",
        features=image_features(clothes.SIDE, True),
        sources=(blue_marble.IMAGE_SOURCE, blue_marble.LAND_SOURCE, *fashion_mnist.SOURCES),
        generate=clothes.generate,
        counts=clothes.COUNTS,
        description="Composed images of 128 x 128: up to six items of Fashion-MNIST, tinted and "
        "0.8 to 2 times as large, on crops of the Blue Marble that are at least half land. "
        "No item covers another, so masks and boxes are exact. Splits share neither items (each "
        "has those of its own split of Fashion-MNIST) nor ground: of every six bands of 20 degrees "
        "of longitude, the first is test and the second validation.",
        license=f"clothes: {fashion_mnist.LICENSE}; {blue_marble.LICENSE}",
    ),
    fashion_mnist.NAMES,
    clothes.SIDE,
    clothes.MOST,
    True,
)

DATA_SETS: dict[str, ImageDataset] = {
    images.definition.name: images for images in (NUCLEI, TREES, CLOTHES_ON_SATELLITE)
}
