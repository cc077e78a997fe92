"""Built-in data sets of labeled texts, by name.

Movie reviews and SST-2 are snippets of one corpus (Pang & Lee 2005). Do not train or pre-train on
one and test on the other without removing the texts that they share (`shared_with`).
"""

from __future__ import annotations

from tasks.common.data.builders import DatasetDefinition
from tasks.common.datasets.labelled_texts.movie_reviews import MOVIE_REVIEWS
from tasks.common.datasets.labelled_texts.spam_assassin import SPAM_ASSASSIN
from tasks.common.datasets.labelled_texts.sst2 import SST2
from tasks.common.datasets.labelled_texts.topics import NEWSGROUPS20, REUTERS_R8

DEFINITIONS: dict[str, DatasetDefinition] = {
    definition.name: definition
    for definition in (MOVIE_REVIEWS, SST2, NEWSGROUPS20, REUTERS_R8, SPAM_ASSASSIN)
}

_ONE_CORPUS = (frozenset({"movie_reviews", "sst2"}),)


def shared_with(name: str) -> frozenset[str]:
    """Returns the names of the data sets that share texts with a data set."""
    for corpus in _ONE_CORPUS:
        if name in corpus:
            return corpus - {name}
    return frozenset()
