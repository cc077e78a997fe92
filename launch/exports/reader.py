"""Predicts with an exported model. Needs only the packages in requirements.txt of the export.

python predict.py --input="a gripping, funny film"
python predict.py --input=photo.jpg --format=json
python predict.py --verify

The script reads the export in its own folder, or the one given by --export=FOLDER. It is
self-contained: it imports neither flax nor the code that trained the model. signature.json
describes the programs, their inputs and outputs, and the pre- and postprocessing operations, which
are the functions in `ENCODERS` and `DECODERS`. Programs are StableHLO, which JAX runs, or ONNX,
which onnxruntime runs. They run on batches of rows. Preprocessing converts an input to one or more
rows, such as the windows of a large image.

In shapes, B is the number of rows in a batch, T the number of tokens, and Y and X are the height
and width of an image.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import functools
import hashlib
import importlib.metadata
import io
import json
import math
import os
import re
import stat
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

FORMAT = 1
# Largest number of inputs in a portion, which is the list of inputs that are in memory at a time.
# The ids of rows, which seed random sampling, begin at 0 in each portion.
PORTION = 2048
# Bytes of arrays, such as images, after which a portion ends.
PORTION_BYTES = 1 << 28
# Largest number of padded positions in a batch; bounds memory.
POSITIONS = 1 << 21
# Largest number of characters of a word whose stem and n-grams are cached.
_CACHED_WORD = 64
PAD, UNKNOWN, CLS = 0, 1, 2
SPECIAL = ("[PAD]", "[UNK]", "[CLS]")
MASK = "[MASK]"
# Suffix that an ONNX program adds to the name of an output if an input has the same name.
OUTPUT_SUFFIX = "/output"

Raw = str | bytes
Row = dict[str, Any]


class InputError(ValueError):
    """Error for an input or an export folder that cannot be read; the message is one line."""


class Item:
    """An input with its encoded rows, the outputs of the model, and the prediction.

    Attributes:
      raw: text, path of a file, or content of a file.
      rows: for each row, the input arrays of the program by name, and other values by name that
        encoders keep for decoders.
      outputs: for each row, the output arrays of the program by name.
      answer: prediction as JSON values by name, filled by the decoders; "text" is printed.
    """

    def __init__(self, raw: Raw, rows: list[Row]):
        self.raw, self.rows = raw, rows
        self.outputs: list[dict[str, np.ndarray]] = []
        self.answer: dict[str, Any] = {"input": raw if isinstance(raw, str) else None}


# ---------------------------------------------------------------- files


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file as arrays that share its memory map.

    Raises:
      InputError: the file is missing or damaged.
    """
    try:
        data = np.memmap(path, np.uint8, "r")
        size = int(data[:8].view("<u8")[0])
        header = json.loads(bytes(data[8 : 8 + size]))
        body, found = data[8 + size :], {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, stop = entry["data_offsets"]
            part = body[start:stop].view(_dtype(entry["dtype"]))
            found[name] = part.reshape(entry["shape"])
        return found
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; export the model again") from None
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{path}: not a safetensors file ({error}); export again") from None


def _dtype(name: str) -> Any:
    if name == "BF16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return {
        "F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2",
        "I8": "i1", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?",
    }[name]  # fmt: skip


def shown(raw: Raw) -> str:
    """Returns an input, shortened and quoted, for messages."""
    if isinstance(raw, bytes):
        return "the content"
    return repr(raw if len(raw) <= 60 else raw[:57] + "...")


def read_content(raw: Raw) -> bytes:
    """Returns the content of a file, given as a path or as the content itself.

    Raises:
      InputError: the file cannot be read or is empty. The message does not name the input; the
        caller puts the name in front of it.
    """
    data = raw
    if isinstance(raw, str):
        try:
            path = Path(raw.strip()).expanduser()
            mode = os.stat(path).st_mode
            # Opening a pipe blocks, and a device may have no end.
            if not stat.S_ISREG(mode):
                kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
                raise InputError(f"is {kind}, expected a file")
            data = path.read_bytes()
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror}); give another path") from None
        except (ValueError, RuntimeError):
            # The path has a null byte, or "~" with the name of an unknown user.
            raise InputError("is not a path; give a path") from None
    if not data:
        raise InputError("the file is empty; give another file")
    return data


# ---------------------------------------------------------------- tokenizers

_WORD = r"[\w{marks}]+(?:['\u2019][\w{marks}]+)*|[^\w\s{marks}\x00-\x1f\x7f]"
_ASCII_WORD = re.compile(_WORD.format(marks=""))


@functools.cache
def _unicode_word() -> re.Pattern:
    points = [p for p in range(0x300, 0x20000) if unicodedata.category(chr(p)).startswith("M")]
    points += [*range(0xE0100, 0xE01F0), 0x200C, 0x200D]
    return re.compile(_WORD.format(marks="".join(map(chr, sorted(points)))))


@functools.cache
def _word_normalizer() -> Any:
    from tokenizers import normalizers

    chinese = normalizers.BertNormalizer(
        clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    return normalizers.Sequence([normalizers.NFKC(), chinese])


def split_words(text: str, lower_case: bool) -> list[str]:
    """Splits a text into words: runs of letters and digits, and single other characters."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower() if lower_case else text)
    text = _word_normalizer().normalize_str(text)
    return _unicode_word().findall(text.lower() if lower_case else text)


class Tokenizer:
    """Conversion of texts to ids and back, read from the JSON file of a trained tokenizer.

    Attributes:
      size: number of ids, V.
      config: options of the tokenizer.
    """

    def __init__(self, path: Path):
        values = json.loads(path.read_text(encoding="utf-8"))
        self.config = values["config"]
        self.kind = self.config["tokenizer"]
        if self.kind == "word":
            self._make_words(values)
        elif self.kind == "character":
            self._characters = values["characters"]
            self._ids = {c: n for n, c in enumerate(self._characters, len(SPECIAL))}
            self.size = len(SPECIAL) + len(self._characters)
        else:
            import tokenizers

            plain = json.dumps(values["tokenizer"] | {"added_tokens": []})
            self._subwords = tokenizers.Tokenizer.from_str(plain)
            self.size = self._subwords.get_vocab_size()

    def _make_words(self, values: Mapping[str, Any]) -> None:
        self._grams = values["grams"]
        self._ids = {gram: n for n, gram in enumerate(self._grams, len(SPECIAL))}
        first = len(SPECIAL) + len(self._grams)
        self._parts = {gram: n for n, gram in enumerate(values["characters"], first)}
        self.size = first + len(self._parts)
        self._stem = str
        if self.config["stem"] is not None:
            import snowballstemmer

            stemmer = snowballstemmer.stemmer(self.config["stem"])
            self._stem = _cached(stemmer.stemWord)
        self._word_parts = _cached(self._parts_of)

    def encode(self, texts: Sequence[str], limit: bool = True) -> list[np.ndarray]:
        """Encodes each text as ids, int32 [T] with T >= 1.

        If `limit` is True, only the first max_length ids are kept.
        """
        texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        if self.kind == "word":
            rows = [self._words(text) for text in texts]
        elif self.kind == "character":
            folded = [text.lower() if self.config["lower_case"] else text for text in texts]
            rows = [[self._ids.get(c, UNKNOWN) for c in text] for text in folded]
        else:
            rows = [encoding.ids for encoding in self._subwords.encode_batch_fast(texts)]
        if self.config["unique"]:
            rows = [list(dict.fromkeys(row)) for row in rows]
        most = self.config["max_length"] if limit else None
        return [np.array(row[:most] or [UNKNOWN], np.int32) for row in rows]

    def _words(self, text: str) -> list[int]:
        return [
            number for number, _, _ in self._spans(split_words(text, self.config["lower_case"]))
        ]

    def _spans(self, spelled: Sequence[str]) -> list[tuple[int, int, int]]:
        """Returns a tuple (id, start, end) for each id, which stands for the words [start, end)."""
        words, found = [self._stem(word) for word in spelled], []
        for start, word in enumerate(words):
            found.append((self._ids.get(word, UNKNOWN), start, start + 1))
            if self._parts:
                found += [(n, start, start + 1) for n in self._word_parts(spelled[start])]
            for order in range(2, self.config["ngrams"] + 1):
                gram = " ".join(words[start : start + order])
                if start + order > len(words) or gram not in self._ids:
                    break
                found.append((self._ids[gram], start, start + order))
        return found

    def spans(self, text: str, ids: Sequence[int]) -> tuple[list[str], list[list[int]]] | None:
        """Returns the words of a text, and for each id the range [first, end) of its words.

        If the tokenizer keeps only one of several equal ids, the range is that of the first
        occurrence. The result is None if tokens are not words, or if `ids` are not the ids of the
        text.
        """
        if self.kind != "word":
            return None
        spelled = split_words(text.encode("utf-8", "replace").decode(), self.config["lower_case"])
        found = self._spans(spelled)
        if self.config["unique"]:
            unique: dict[int, tuple[int, int, int]] = {}
            for span in found:
                unique.setdefault(span[0], span)
            found = list(unique.values())
        found = found[: self.config["max_length"]]
        if [number for number, _, _ in found] != [int(number) for number in ids]:
            return None
        return spelled, [[first, end] for _, first, end in found]

    def _parts_of(self, word: str) -> list[int]:
        """Returns the ids of the character n-grams of a word."""
        grams = _character_grams(word, *self.config["character_ngrams"])
        return [self._parts[gram] for gram in grams if gram in self._parts]

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids to a text; skips padding, CLS, and ids that are not below `size`."""
        ids = [int(n) for n in ids if n < self.size and n not in (PAD, CLS)]
        if self.kind == "character":
            return "".join([*SPECIAL, *self._characters][n] for n in ids)
        if self.kind == "word":
            words = [[*SPECIAL, *self._grams][n] for n in ids if n < self.size - len(self._parts)]
            return " ".join(word for word in words if " " not in word)
        from tokenizers import decoders

        pieces = [self._subwords.id_to_token(n) for n in ids]
        if self.kind == "bpe":
            return decoders.ByteLevel().decode(pieces).removeprefix(" ")
        if self.kind == "unigram":
            return decoders.Metaspace().decode(pieces)
        return decoders.WordPiece(prefix="##", cleanup=False).decode(pieces)

    def spell(self, number: int) -> str:
        """Returns the name of one id: a word, n-gram, character, piece or special token."""
        number = int(number)
        if number < len(SPECIAL):
            return SPECIAL[number]
        if self.kind == "word" and number < self.size:
            return [*self._grams, *self._parts][number - len(SPECIAL)]
        return self.decode([number])


def _cached(function: Callable[[str], Any]) -> Callable[[str], Any]:
    """Adds a cache to a function of a word; it holds 100,000 results, but none of long words."""
    cached = functools.lru_cache(100_000)(function)
    return lambda word: cached(word) if len(word) <= _CACHED_WORD else function(word)


def _character_grams(word: str, shortest: int, longest: int) -> list[str]:
    padded, grams = f"_{word}_", []
    for length in range(shortest, longest + 1):
        if length >= len(padded):
            return [*grams, padded]
        grams += [padded[i : i + length] for i in range(len(padded) - length + 1)]
    return grams


# ---------------------------------------------------------------- operations

# Functions by operation name that take (options, folder) and return the operation. An encoder maps
# a row to one or several rows; a decoder fills the answer of an item. The docstring of such a
# function describes its operation, with names of options in backquotes and names of arrays in
# quotes.
Encoder = Callable[[Row], Row | list[Row]]
Decoder = Callable[[Item], None]
ENCODERS: dict[str, Callable[[Mapping[str, Any], Path], Encoder]] = {}
DECODERS: dict[str, Callable[[Mapping[str, Any], Path], Decoder]] = {}


def encoder(make: Any) -> Any:
    """Registers a preprocessing operation under the name of its function."""
    ENCODERS[make.__name__] = make
    return make


def decoder(make: Any) -> Any:
    """Registers a postprocessing operation under the name of its function."""
    DECODERS[make.__name__] = make
    return make


@functools.cache
def _tokenizer(path: Path) -> Tokenizer:
    return Tokenizer(path)


@encoder
def tokenize(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Stores the ids of a text as `to`; if `limit` is given, rejects texts with more ids."""
    tokenizer, to, limit = _tokenizer(folder / options["file"]), options["to"], options.get("limit")

    def run(row: Row) -> Row:
        (ids,) = tokenizer.encode([row["raw"]])
        if limit is not None and len(ids) > limit:
            raise InputError(
                f"input {shown(row['raw'])}: got {len(ids)} tokens, expected at most {limit}; "
                "split it into sentences"
            )
        return {**row, to: ids}

    return run


@encoder
def append(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Appends the number `value` to the array named `to`."""
    to = options["to"]
    return lambda row: {**row, to: np.append(row[to], row[to].dtype.type(options["value"]))}


@encoder
def length(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Stores the length of the array named `of` as `to`."""
    return lambda row: {**row, options["to"]: np.int32(len(row[options["of"]]))}


@encoder
def digits(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Converts a text of at most `limit` digits to ids; the id of digit d is `first` + d."""

    def run(row: Row) -> Row:
        text = row["raw"].strip()
        if not (text.isascii() and text.isdigit()):
            raise InputError(f"input {shown(text)}: expected only digits 0 to 9, such as 31415")
        if len(text) > options["limit"]:
            raise InputError(
                f"input {shown(text)}: has {len(text)} digits, expected at most "
                f"{options['limit']} as in training"
            )
        ids = [int(digit) + options["first"] for digit in text]
        return {**row, options["to"]: np.array(ids, np.int32)}

    return run


@encoder
def prompt(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Encodes a prompt as its last `width` tokens, padded at the end to `width`.

    The token `begin`, unless it is null, precedes the prompt. A prompt without tokens is encoded as
    the token `empty`.
    """
    tokenizer, width, begin = (
        _tokenizer(folder / options["file"]),
        options["width"],
        options["begin"],
    )

    def run(row: Row) -> Row:
        ids = _text_ids(tokenizer, row["raw"])
        ids = ids if begin is None else np.concatenate([[np.int32(begin)], ids])
        kept = (ids if len(ids) else np.array([options["empty"]], np.int32))[-width:]
        return {**row, "tokens": _padded(kept, width), "length": np.int32(len(kept))}

    return run


@encoder
def blanks(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Encodes each [MASK] of a text as one row of `width` tokens that surround it.

    "blank" is the position of the [MASK] in its row.
    """
    tokenizer, width = _tokenizer(folder / options["file"]), options["width"]

    def run(row: Row) -> list[Row]:
        text = row["raw"]
        if MASK not in text:
            raise InputError(
                f"input {shown(text)}: has no {MASK}; write it where a word is missing"
            )
        between = text.split(MASK)
        if tokenizer.kind != "character":
            between = [*(part.rstrip() for part in between[:-1]), between[-1]]
        parts = [_text_ids(tokenizer, part) for part in between]
        joined = [parts[0]]
        for ids in parts[1:]:
            joined += [np.array([options["mask"]], np.int32), ids]
        ids = np.concatenate(joined)
        rows = []
        for position in np.cumsum([len(part) + 1 for part in parts[:-1]]) - 1:
            first = int(np.clip(position - (width - 2) // 2, 0, max(len(ids) - width + 2, 0)))
            kept = ids[first : first + width - 2]
            tokens = np.concatenate([[np.int32(CLS)], kept, [np.int32(options["end"])]])
            new = {"tokens": _padded(tokens, width), "length": np.int32(len(tokens))}
            if options["segments"]:
                new["segments"] = np.zeros(width, np.int32)
            rows.append({**row, **new, "blank": np.int32(position - first + 1)})
        return rows

    return run


def _text_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    (ids,) = tokenizer.encode([text], limit=False)
    return ids[:0] if len(ids) == 1 and ids[0] == UNKNOWN and not text.strip() else ids


def _padded(ids: np.ndarray, width: int) -> np.ndarray:
    return np.pad(ids, (0, width - len(ids)), constant_values=PAD).astype(np.int32)


@decoder
def rank_labels(options: Mapping[str, Any], folder: Path) -> Decoder:
    """Ranks the class names by descending probability; prints the first `shown` of them."""
    labels, most = options["labels"], options["shown"]

    def run(item: Item) -> None:
        row = item.outputs[0]["probabilities"]
        order = np.argsort(-row, kind="stable")
        ranked = {labels[index]: round(float(row[index]), 4) for index in order}
        label = labels[order[0]]
        line = "  ".join(f"{name} {value:.4f}" for name, value in list(ranked.items())[:most])
        item.answer |= {"label": label, "probabilities": ranked, "text": f"{label}  {line}"}

    return run


@decoder
def spell_digits(options: Mapping[str, Any], folder: Path) -> Decoder:
    """Converts ids `first` + d back to digits d; stops at the first id below `first`."""

    def run(item: Item) -> None:
        text = ""
        for number in item.outputs[0]["tokens"].tolist():
            if number < options["first"]:
                break
            text += str(number - options["first"])
        item.answer |= {"output": text, "text": text}

    return run


@decoder
def sentences(options: Mapping[str, Any], folder: Path) -> Decoder:
    """Decodes the best sequences of ids to sentences with scores.

    The sentence of an empty input is empty.
    """
    tokenizer = _tokenizer(folder / options["file"])

    def run(item: Item) -> None:
        out = item.outputs[0]
        texts = [tokenizer.decode(tokens) for tokens in out["tokens"]]
        scores = [round(float(score), 4) for score in out["scores"]]
        if not item.raw.strip():
            texts, scores = [""], [0.0]
        item.answer |= {"output": texts[0], "score": scores[0]}
        if len(texts) > 1:
            item.answer["n_best"] = [
                {"output": text, "score": score}
                for text, score in zip(texts, scores, strict=True)
                if np.isfinite(score)
            ]
        rows = item.answer.get("n_best", ())
        lines = [f"{row['score']:.4f}  {row['output']}" for row in rows]
        item.answer["text"] = "\n".join(lines) or texts[0]

    return run


@decoder
def transcript(options: Mapping[str, Any], folder: Path) -> Decoder:
    """Decodes unit ids to a transcript, and adds its score."""
    tokenizer = _tokenizer(folder / options["file"])

    def run(item: Item) -> None:
        out = item.outputs[0]
        text = tokenizer.decode([t for t in out["tokens"] if PAD < t < tokenizer.size])
        item.answer |= {"output": text, "score": round(float(out["score"]), 4), "text": text}

    return run


@decoder
def completion(options: Mapping[str, Any], folder: Path) -> Decoder:
    """Decodes generated tokens up to the `end` id, and appends the text to the prompt."""
    tokenizer, end = _tokenizer(folder / options["file"]), options["end"]

    def run(item: Item) -> None:
        item.raw = item.answer["input"] = item.raw.encode("utf-8", "replace").decode("utf-8")
        tokens = item.outputs[0]["completion"]
        ids = tokens[: int(np.argmax(tokens == end))] if end in tokens else tokens
        # Decoded together, since the first token may continue the last word of the prompt.
        before = _text_ids(tokenizer, item.raw)
        known = tokenizer.decode(before)
        whole = tokenizer.decode(np.concatenate([before, ids]))
        after = whole[len(known) :] if whole.startswith(known) else tokenizer.decode(ids)
        item.answer |= {"completion": after, "text": item.raw + after}

    return run


@decoder
def fill_blanks(options: Mapping[str, Any], folder: Path) -> Decoder:
    """Returns the most probable words of each [MASK], and the text with the best ones inserted."""
    tokenizer = _tokenizer(folder / options["file"])
    reserved = {CLS: SPECIAL[CLS], options["mask"]: MASK, options["end"]: "[END]"}

    def spell(number: int) -> str:
        if int(number) in reserved:
            return reserved[int(number)]
        word = tokenizer.decode([number])
        return word if word.isprintable() and word else repr(word)[1:-1] or " "

    def run(item: Item) -> None:
        full = item.answer["input"] = item.raw.encode("utf-8", "replace").decode("utf-8")
        ranked, lines = [], []
        for out in item.outputs:
            pairs = zip(out["words"], out["probabilities"], strict=True)
            found = [{"word": spell(w), "probability": round(float(p), 4)} for w, p in pairs]
            full = full.replace(MASK, found[0]["word"], 1)
            ranked.append(found)
            lines.append("  ".join(f"{w['word']} {w['probability']:.4f}" for w in found))
        item.answer |= {"blanks": ranked, "filled": full, "text": " | ".join(lines)}

    return run


# ---------------------------------------------------------------- images

# Image formats that are read. Decoders of others, such as PostScript, may start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
_MOST_PIXELS = 40_000_000
# Number of pixels that are converted at a time, and the maximum number of pixel updates by all
# scans of a JPEG file.
_BAND_PIXELS, _MOST_UPDATES = 1 << 22, 100 * _MOST_PIXELS
# Largest number of class probabilities that are in memory at a time.
_MOST_SUMS = 1 << 25
# Largest value of grayscale images with 16 bits per pixel.
_BRIGHTEST = 65535


def image_formats() -> list[str]:
    """Returns the image formats that this script reads, as named by Pillow."""
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def decode_image(raw: Raw, mode: str, remedy: str = "give the path of an image") -> np.ndarray:
    """Reads the first image of a file, in its EXIF orientation and without transparency.

    Args:
      raw: path or content of the file.
      mode: "RGB", or "L" for grayscale.
      remedy: advice at the end of error messages.

    Returns:
      uint8 [Y, X, 3], or [Y, X] for "L".

    Raises:
      InputError: the image cannot be read, is too large, or its values have more than 16 bits.
    """
    from PIL import Image, ImageOps

    formats = image_formats()
    try:
        content = io.BytesIO(read_content(raw))
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(content, formats=formats) as image,
        ):
            if image.width * image.height > _MOST_PIXELS:
                size = f"{image.width} x {image.height}"
                raise InputError(f"has {size} pixels, more than {_MOST_PIXELS:,}; make it smaller")
            if declared_pixels(image) > _MOST_PIXELS:
                raise InputError(
                    f"has tiles of more than {_MOST_PIXELS:,} pixels; save it with small tiles"
                )
            if image.format in ("JPEG", "MPO"):
                _check_scans(content.getvalue(), image.width * image.height)
            ImageOps.exif_transpose(image, in_place=True)
            return _pixels(image, mode)
    except InputError as error:
        reason = str(error)
    except Image.DecompressionBombError:
        reason = f"has more than {_MOST_PIXELS:,} pixels; make it smaller"
    except Image.UnidentifiedImageError:
        reason = f"not an image in one of the formats {', '.join(formats)}"
    except Exception as error:  # decoders raise any kind of error on damaged bytes
        found = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = f"not an image that can be read ({' '.join(found.split())[:80]})"
    raise InputError(f"input {shown(raw)}: {reason}; {remedy}")


def declared_pixels(image: Any) -> int:
    """Returns the number of pixels that are decoded at once.

    These are all pixels of the image, or those of a TIFF tile if the tile is larger.
    """
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    width, length = tags.get(322, 0), tags.get(323, 0)
    return max(image.width * image.height, int(width) * int(length))


# Markers of JPEG segments; excludes stuffed bytes and restart markers, which are within scans.
_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")


def _check_scans(content: bytes, pixels: int) -> None:
    """Rejects a JPEG file with too many scans, because each scan may update all pixels."""
    scans, at = 0, 2
    while found := _MARKER.search(content, at):
        at, kind = found.end(), content[found.end() - 1]
        if kind == 0xD9:
            break
        scans += kind == 0xDA
        if kind not in (0x01, 0xD8):
            at += int.from_bytes(content[at : at + 2], "big")
    if scans * pixels > _MOST_UPDATES:
        raise InputError(f"has {scans} scans of {pixels} pixels; save it with fewer scans")


def _pixels(image: Any, mode: str) -> np.ndarray:
    """Returns the pixels of an image as uint8; converts a few rows at a time to bound memory."""
    X, Y = image.size
    found = np.empty((Y, X, 3) if mode == "RGB" else (Y, X), np.uint8)
    rows = max(_BAND_PIXELS // X, 1)

    def band(start: int) -> Any:
        return image.crop((0, start, X, min(start + rows, Y)))

    if image.mode.startswith(("I", "F")):
        extrema = [(x.min(), x.max()) for x in map(np.asarray, map(band, range(0, Y, rows)))]
        low, high = min(low for low, _ in extrema), max(high for _, high in extrema)
        if image.mode == "F" or low < 0 or high > _BRIGHTEST:
            raise InputError(f"has values from {low:g} to {high:g}, expected those of 8 or 16 bits")
    for start in range(0, Y, rows):
        found[start : start + rows] = np.asarray(_to_8_bits(band(start)).convert(mode))
    return found


def _to_8_bits(image: Any) -> Any:
    """Converts an image to 8 bits per channel; transparent pixels are blended with white."""
    from PIL import Image

    if image.mode.startswith("I"):
        values = np.asarray(image)
        gray = (values.astype(np.uint32) * 255 + _BRIGHTEST // 2) // _BRIGHTEST
        if (clear := image.info.get("transparency")) is not None:
            gray[values == clear] = 255
        return Image.fromarray(gray.astype(np.uint8))
    if not image.has_transparency_data:
        return image
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image.convert("RGBA"))
    return background.convert("RGB")


def resized(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes uint8 [Y, X] or [Y, X, 3] bilinearly, with antialiasing if the size decreases."""
    from PIL import Image

    if image.shape[:2] == tuple(size):
        return image
    Y, X = size
    return np.asarray(Image.fromarray(image).resize((X, Y), Image.Resampling.BILINEAR))


@encoder
def read_image(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Reads an image file as `to`: uint8 [Y, X, 3] if `mode` is "RGB", or [Y, X] if it is "L"."""
    return lambda row: {**row, options["to"]: decode_image(row["raw"], options["mode"])}


@encoder
def crop_square(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Crops the image in the entry `to` of a row to its central square."""

    def run(row: Row) -> Row:
        image = row[options["to"]]
        Y, X = image.shape[:2]
        side = min(Y, X)
        top, left = (Y - side) // 2, (X - side) // 2
        return {**row, options["to"]: image[top : top + side, left : left + side]}

    return run


@encoder
def resize(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Resizes the image in the entry `to` of a row to `size` (Y, X)."""
    return lambda row: {**row, options["to"]: resized(row[options["to"]], options["size"])}


@encoder
def light_on_dark(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Stores a drawing as `to`, float32 [side, side, 1], with light ink on a dark background.

    The input is an image file, or the comma-separated pixels row by row, from 0 (paper) to `ink`.
    An image is padded to a square with the mean of its border, resized, and inverted if its border
    is light.
    """
    side, ink = options["side"], options["ink"]
    remedy = f"give the path of an image, or {side**2} comma-separated numbers 0..{ink}"

    def run(row: Row) -> Row:
        raw = row["raw"]
        numbers = _numbers(raw)
        if numbers is None:
            gray = decode_image(raw, "L", remedy)
            if max(gray.shape) ** 2 > _MOST_PIXELS:
                raise InputError(
                    f"input {shown(raw)}: is too long to be padded to a square; cut it"
                )
            return {**row, options["to"]: _squared(gray, side)}
        if len(numbers) != side**2:
            raise InputError(
                f"input {shown(raw)}: has {len(numbers)} numbers, expected {side**2}, "
                "one per pixel, row by row"
            )
        if not all(0 <= number <= ink for number in numbers):
            raise InputError(f"input {shown(raw)}: expected numbers from 0 (paper) to {ink} (ink)")
        pixels = (np.reshape(numbers, (side, side, 1)) / ink).astype(np.float32)
        return {**row, options["to"]: pixels}

    return run


def _numbers(raw: Raw) -> list[float] | None:
    try:
        return [float(part) for part in raw.split(",")] if isinstance(raw, str) else None
    except ValueError:
        return None


def _squared(gray: np.ndarray, side: int) -> np.ndarray:
    """Pads uint8 [Y, X] to a square, and resizes it to float32 [side, side, 1] by block means.

    An image with a light border is inverted.
    """
    from PIL import Image

    Y, X = gray.shape
    full = max(Y, X)
    square = np.full((full, full), round(_border(gray)), np.uint8)
    top, left = (full - Y) // 2, (full - X) // 2
    square[top : top + Y, left : left + X] = gray
    small = Image.fromarray(square).resize((side, side), Image.Resampling.BOX)
    light = np.asarray(small, np.float32) / 255
    return (1 - light if _border(light) > 0.5 else light)[..., None]


def _border(gray: np.ndarray) -> float:
    """Returns the mean of the outermost pixels."""
    ring = np.ones(gray.shape, bool)
    ring[1:-1, 1:-1] = False
    return float(gray[ring].mean())


@encoder
def line_columns(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Converts the image of a text line to columns, uint8 [X, rows], 255 for ink.

    The image is in the entry `to` of the row; the columns replace it.
    The grayscale image [Y, X] is resized to a height of `rows`. The new width X is at most `limit`.
    `dark` is true for dark ink on light paper.
    """
    rows, limit = options["rows"], options["limit"]

    def run(row: Row) -> Row:
        image = row[options["to"]]
        width = max(round(image.shape[1] * rows / image.shape[0]), 1)
        if width > limit:
            raise InputError(
                f"input {shown(row['raw'])}: got {width} columns at {rows} rows, expected at most "
                f"{limit}; cut the line"
            )
        gray = resized(image, (rows, width))
        columns = np.ascontiguousarray((255 - gray if options["dark"] else gray).T)
        return {**row, options["to"]: columns}

    return run


@encoder
def fit_square(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Fits an image into a square of `side` pixels, zero-padded on the right and below.

    The image is in the entry `to` of the row; the square replaces it.
    Smaller images are not enlarged. "size" is the height and width of the image in the square,
    "original" those of the original image.
    """
    side = options["side"]

    def run(row: Row) -> Row:
        size = row[options["to"]].shape[:2]
        height, width = _fitted_size(size, side)
        square = np.zeros((side, side, 3), np.uint8)
        square[:height, :width] = resized(row[options["to"]], (height, width))
        sizes = {"size": np.array([height, width], np.int32), "original": np.array(size, np.int32)}
        return {**row, options["to"]: square, **sizes}

    return run


def _fitted_size(size: Sequence[int], side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(size))
    height, width = (max(1, math.floor(length * scale + 0.5)) for length in size)
    return height, width


@encoder
def windows(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Cuts the image in the entry `to` of a row into windows of `size` (Y, X), each in its own row.

    Neighboring windows share at least the fraction `overlap` of their pixels. If `overlap` is null,
    the complete image is resized to `size` instead. "place" is (0, top of the window, left of the
    window, image height, image width).
    """
    size, overlap = options["size"], options["overlap"]

    def run(row: Row) -> list[Row]:
        image = row[options["to"]]
        Y, X = image.shape[:2]
        if overlap is None:
            place = np.array([0, 0, 0, Y, X], np.int32)
            return [{**row, options["to"]: resized(image, size), "place": place}]
        tops, lefts = (
            _window_starts(length, window, max(1, int(window * (1 - overlap))))
            for length, window in zip((Y, X), size, strict=True)
        )
        # A long and thin image has many windows, which contain mostly padding.
        if len(tops) * len(lefts) * math.prod(size) > max(4 * _MOST_PIXELS, math.prod(size)):
            raise InputError(
                f"input {shown(row['raw'])}: {Y} x {X} pixels need too many windows of "
                f"{size[0]} x {size[1]}; make it smaller"
            )
        rows = []
        for top in tops:
            for left in lefts:
                window = image[top : top + size[0], left : left + size[1]]
                missing = [(0, full - part) for full, part in zip(size, window.shape, strict=False)]
                if np.any(missing):
                    window = np.pad(window, [*missing, (0, 0)], mode="edge")
                place = np.array([0, top, left, Y, X], np.int32)
                rows.append({**row, options["to"]: window, "place": place})
        return rows

    return run


def _window_starts(length: int, size: int, step: int) -> list[int]:
    """Returns the starts of windows that cover an axis: evenly spaced, at most `step` apart."""
    if length <= size:
        return [0]
    count = math.ceil((length - size) / step) + 1
    return [round(number * (length - size) / (count - 1)) for number in range(count)]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Encodes a mask, bool [Y, X], in COCO's compressed run-length encoding.

    The mask is read column by column; its runs are alternately of zeros and ones. The first three
    run lengths are stored as they are, each later one as its difference from the run length two
    positions earlier. Every number is written in characters of five bits, lowest bits first.
    """
    flat = mask.T.ravel()
    ends = [[0] if flat[0] else [], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]]
    runs = np.diff(np.concatenate(ends).astype(np.int64), prepend=0)
    values = runs.copy()
    values[3:] -= runs[1:-2]
    characters, kept, more = [], [], np.ones(len(values), bool)
    while more.any():
        bits = values & 31
        values >>= 5
        # The fifth bit is the sign.
        rest = np.where(bits & 16, values != -1, values != 0)
        characters.append((bits | rest * 32) + 48)
        kept.append(more)
        more = more & rest
    counts = np.stack(characters, axis=1)[np.stack(kept, axis=1)].astype(np.uint8).tobytes()
    return {"size": [int(side) for side in mask.shape], "counts": counts.decode("ascii")}


@decoder
def class_masks(options: Mapping[str, Any], folder: Path) -> Decoder:
    """Returns the image size, and the pixel fraction and mask of each class.

    Classes are sorted by fraction, largest first; at most `shown` of them are printed. With
    `blend`, the model's outputs are "probabilities" of windows, otherwise "labels" of the resized
    image.
    """
    names, most = options["names"], options["shown"]

    def run(item: Item) -> None:
        places = [row["place"].tolist() for row in item.rows]
        Y, X = places[0][3:]
        if options["blend"]:
            found = [out["probabilities"] for out in item.outputs]
            labels = _blended(found, [place[1:3] for place in places], Y, X)
        else:
            labels = _nearest(item.outputs[0]["labels"], (Y, X))
        counts = np.bincount(labels.ravel(), minlength=len(names))
        order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
        shares = {names[k]: round(float(counts[k] / labels.size), 4) for k in order}
        words = [f"{name} {share:.4f}" for name, share in shares.items()]
        if len(words) > most:
            words[most:] = ["..."]
        masks = {names[k]: run_lengths(labels == k) for k in order}
        item.answer |= {"size": [Y, X], "shares": shares, "masks": masks, "text": "  ".join(words)}

    return run


def _nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes labels [Y, X]; a new pixel has the label at its center."""
    if labels.shape == size:
        return labels
    y, x = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[y[:, None], x]


def _blended(
    found: Sequence[np.ndarray], corners: Sequence[Sequence[int]], Y: int, X: int
) -> np.ndarray:
    """Returns the most probable class of each pixel, uint8 [Y, X], from overlapping windows.

    Probabilities [height, width, classes] of windows are averaged with weights that decrease
    linearly from the center of a window to its border.
    """
    height, width, classes = found[0].shape
    weight = (_ramp(height)[:, None] * _ramp(width))[..., None]
    labels = np.zeros((Y, X), np.uint8)
    rows = max(_MOST_SUMS // (X * classes), 1)
    for first in range(0, Y, rows):
        last = min(first + rows, Y)
        sums = np.zeros((last - first, X, classes), np.float32)
        for window, (top, left) in zip(found, corners, strict=True):
            begin, end = max(top, first), min(top + height, last)
            if begin < end:
                right = min(left + width, X)
                part = slice(begin - top, end - top), slice(0, right - left)
                sums[begin - first : end - first, left:right] += window[part] * weight[part]
        labels[first:last] = np.argmax(sums, axis=-1)
    return labels


def _ramp(size: int) -> np.ndarray:
    positions = np.arange(size) + 0.5
    return (np.minimum(positions, size - positions) / (size / 2)).astype(np.float32)


@decoder
def objects(options: Mapping[str, Any], folder: Path) -> Decoder:
    """Returns the image size, and the label, score and box of each object.

    With `masks`, each object also has a mask. Objects with a score of at least `shown` are printed.
    """
    names, side = options["names"], options["side"]

    def run(item: Item) -> None:
        out = {name: value[item.outputs[0]["valid"]] for name, value in detections(item)}
        size = tuple(item.rows[0]["original"].tolist())
        height, width = _fitted_size(size, side)
        factors = np.array([size[1] / width, size[0] / height] * 2, np.float32)
        boxes = np.clip(out["boxes"] * factors, 0, np.array([*size[::-1]] * 2))
        found = []
        for index, box in enumerate(boxes):
            row = {
                "label": names[out["labels"][index]],
                "score": round(float(out["scores"][index]), 4),
                "box": [round(float(corner), 2) for corner in box],
            }
            if options["masks"]:
                row["mask"] = run_lengths(_pasted(out["masks"][index], box, size))
            found.append(row)
        item.answer |= {"height": size[0], "width": size[1], "objects": found}
        item.answer["text"] = _listed(item.raw, found, options["shown"])

    def detections(item: Item) -> list[tuple[str, np.ndarray]]:
        names = ("boxes", "scores", "labels", *(["masks"] if options["masks"] else []))
        return [(name, item.outputs[0][name]) for name in names]

    return run


def _pasted(mask: np.ndarray, box: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes square mask probabilities to a box of an image; returns the mask, bool [Y, X].

    The probability at the center of a pixel is interpolated between the centers of mask cells, and
    is 0 outside the mask.
    """
    cells = len(mask)
    # By interpolation the mask may exceed the box by half a cell.
    around = (box[2:] - box[:2]) / cells + 1
    low = np.maximum(np.floor(box[:2] - around), 0).astype(int)
    high = np.minimum(np.ceil(box[2:] + around), size[::-1]).astype(int)
    moved = (box - np.tile(low, 2)).astype(np.float32)
    (x, columns), (y, rows) = (
        _along(moved[axis], moved[axis + 2], cells, high[axis] - low[axis]) for axis in (0, 1)
    )
    part = np.zeros((high[1] - low[1], high[0] - low[0]), np.float32)
    part[y, x] = rows @ mask.astype(np.float32) @ columns.T
    # The mask is stored by columns, because `run_lengths` reads it by columns.
    canvas = np.zeros(size[::-1], bool).T
    canvas[low[1] : high[1], low[0] : high[0]] = part >= 0.5
    return canvas


def _along(low: float, high: float, cells: int, length: int) -> tuple[slice, np.ndarray]:
    """Returns the pixels of an axis that a box touches, and their interpolation weights.

    The weights [pixels, cells] interpolate between the cells of a mask.

    Args:
      low, high: ends of the box on this axis, in pixels.
      cells: number of cells of the mask.
      length: number of pixels of the axis.
    """
    scale = cells / max(high - low, 1e-6)
    first, last = (int(np.clip(end, 0, length)) for end in (low - 1 / scale, high + 1 / scale + 1))
    at = (np.arange(first, last) + 0.5 - low) * scale - 0.5
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0).astype(np.float32)
    return slice(first, last), weights


def _listed(raw: Raw, found: Sequence[Mapping[str, Any]], least: float) -> str:
    """Formats objects with a score of at least `least`: counts by class, then a line for each."""
    best = [row for row in found if row["score"] >= least]
    counts: dict[str, int] = {}
    for row in best:
        counts[row["label"]] = counts.get(row["label"], 0) + 1
    summary = ", ".join(f"{count} {label}" for label, count in counts.items()) or "nothing"
    lines = [
        f"  {row['score']:.4f}  {row['label']}  at {' '.join(f'{c:g}' for c in row['box'])}"
        for row in best
    ]
    return "\n".join([f"{raw}: {summary}" if isinstance(raw, str) else summary, *lines])


# ---------------------------------------------------------------- tables and sound


def _chunks(data: bytes, order: Any, start: int = 12) -> Iterator[tuple[int, bytes, int]]:
    """Yields offset, name and size of each chunk of a WAV or AIFF file."""
    while start + 8 <= len(data):
        size = int.from_bytes(data[start + 4 : start + 8], order)
        yield start, data[start : start + 4], size
        start += 8 + size + size % 2


def _with_true_sizes(data: bytes) -> bytes:
    """Corrects the sizes in the header of a WAV file that was written to a pipe.

    Such sizes are 0 or placeholders, because the header is written before the samples.
    """
    order = _WAVES.get(data[:4])
    chunks = _chunks(data, order) if order and data[8:12] == b"WAVE" else ()
    start, size = next(((at + 8, size) for at, name, size in chunks if name == b"data"), (0, 1))
    rest = len(data) - start
    placeholder = size >= 0x7FFFF000 or (size == 0 and rest and not _are_chunks(data, start, order))
    if not placeholder:
        return data
    changed = bytearray(data)
    changed[4:8] = min(len(data) - 8, 0xFFFFFFFF).to_bytes(4, order)
    changed[start - 4 : start] = min(rest, 0xFFFFFFFF).to_bytes(4, order)
    return bytes(changed)


def _are_chunks(data: bytes, start: int, order: Any) -> bool:
    """Returns whether the bytes from `start` to the end are chunks of metadata, not samples."""
    end = start
    for at, name, size in _chunks(data, order, start):
        if not (name.isascii() and name.decode().isprintable()) or at + 8 + size > len(data):
            return False
        end = at + 8 + size + size % 2
    return end >= len(data)


def _missing_bytes(data: bytes) -> int:
    """Returns the number of bytes that a WAV, AIFF or Ogg file lacks according to its header.

    libsndfile reads truncated files without an error.
    """
    end = 0
    if data[:4] in _WAVES or data[:4] == b"FORM":
        found = _chunks(data, _WAVES.get(data[:4], "big"))
        end = next((at + 8 + size for at, name, size in found if name in (b"data", b"SSND")), 0)
    elif data[:4] == b"OggS":
        while data[end : end + 4] == b"OggS":
            segments = data[end + 26] if end + 26 < len(data) else 0
            table = data[end + 27 : end + 27 + segments]
            if len(table) < segments or end + 27 > len(data):
                return max(end + 27 + segments - len(data), 1)
            end += 27 + segments + sum(table)
        if data[end:] and b"OggS".startswith(data[end:]):
            return 1
    return max(end - len(data), 0)


_WAVES = {b"RIFF": "little", b"RIFX": "big"}
# Largest number of decoded samples of a sound; bounds memory for highly compressed files.
_MOST_SAMPLES = 1 << 25
_SOUNDS = ("WAV", "WAVEX", "AIFF", "FLAC", "OGG", "MP3")
_CONVERT = "convert it to WAV or FLAC, as by ffmpeg -i FILE out.wav"


def decode_sound(data: bytes, seconds: float) -> tuple[np.ndarray, int]:
    """Returns the samples of a sound file, averaged over channels, and the sample rate.

    Args:
      data: content of the file.
      seconds: maximum duration.

    Returns:
      float32 [samples], and samples per second.

    Raises:
      InputError: the file cannot be read or is too long. The message does not name the input.
    """
    import soundfile

    class Forward(soundfile.SoundFile):
        """A SoundFile that never seeks, since seeking fails in FLAC streams of unknown length."""

        def seekable(self) -> bool:
            return False

    data = _with_true_sizes(data)
    try:
        with Forward(io.BytesIO(data)) as sound:
            kind, rate, expected = sound.format, sound.samplerate, sound.frames
            if kind not in _SOUNDS:
                raise InputError(f"is {kind}, which is not supported; {_CONVERT}")
            if not 1000 <= rate <= 1_000_000:
                raise InputError(f"has {rate} samples per second, expected 1000 to 1000000")
            if missing := _missing_bytes(data):
                raise InputError(f"is truncated: {missing} bytes are missing; copy it again")
            block = np.empty((max((1 << 16) // sound.channels, 1), sound.channels), np.float32)
            parts, total = [block[:0, 0]], 0
            # Read in blocks, because the length in the header may exceed the memory.
            while count := sound.buffer_read_into(block, "float32"):
                parts.append(block[:count].mean(axis=1))
                total += count
                if total > (seconds + 1) * rate:
                    raise InputError(f"is longer than {seconds:g} s; cut it")
                if total > _MOST_SAMPLES:
                    raise InputError(
                        f"has {rate} samples per second, and more than {_MOST_SAMPLES:,} in all; "
                        "resample it"
                    )
    except InputError:
        raise
    except (soundfile.LibsndfileError, ValueError, MemoryError) as error:
        reason = getattr(error, "error_string", str(error)).strip(" .")
        raise InputError(f"not sound that can be read ({reason}); {_CONVERT}") from None
    if total < expected < 1 << 60:
        raise InputError(f"is truncated: {expected - total} samples are missing; copy it again")
    return np.concatenate(parts), rate


@encoder
def read_sound(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Reads a sound file as `to`: mono int16 samples at `rate` samples per second.

    Sounds longer than `seconds` are rejected. Both ends are trimmed as far as they are at least
    `trim` decibels quieter than the loudest frame. If `trim` is 0, nothing is trimmed.
    """
    wanted = options["rate"]

    def samples(data: bytes, seconds: float) -> np.ndarray:
        mono, rate = decode_sound(data, seconds)
        if not len(mono):
            raise InputError("has no samples; record it again")
        if not np.isfinite(mono).all():
            raise InputError("has samples that are not finite; record it again")
        peak = float(np.abs(mono).max())
        found = mono / np.float32(peak) if peak > 1 else mono
        if rate != wanted:
            import soxr

            found = soxr.resample(found, rate, wanted).astype(np.float32)
        if peak > 1:
            # The resampling filter may overshoot.
            found = found / max(np.abs(found).max(initial=0.0), 1)
        if not len(found):
            raise InputError("has no samples; record it again")
        if len(found) > wanted * seconds:
            got = f"{len(found) / wanted:.1f} s"
            raise InputError(f"got {got}, expected at most {seconds:g} s; cut it")
        found = np.round(found * 32768).clip(-32768, 32767).astype(np.int16)
        return _trimmed(found, options["trim"])

    def run(row: Row) -> Row:
        try:
            seconds = min(options["seconds"], row.get("seconds", math.inf))
            return {**row, options["to"]: samples(read_content(row["raw"]), seconds)}
        except InputError as error:
            raise InputError(f"input {shown(row['raw'])}: {error}") from None

    return run


def _trimmed(samples: np.ndarray, decibels: float) -> np.ndarray:
    """Trims quiet ends like `librosa.effects.trim` with a frame length of 256 and a hop of 64."""
    if not decibels:
        return samples
    padded = np.pad(samples.astype(np.float32), 128)
    frames = np.lib.stride_tricks.sliding_window_view(padded, 256)[::64].T
    loudness = np.sqrt(np.mean(np.square(frames), axis=0))
    power, least = np.square(loudness), 1e-10
    level = 10 * np.log10(np.maximum(least, power))
    level -= 10 * np.log10(np.maximum(least, loudness.max() ** 2))
    loud = np.flatnonzero(level > -decibels)
    return samples[64 * loud[0] : 64 * (loud[-1] + 1)] if len(loud) else samples[:0]


_MISSING = ("", "nan", "na", "n/a", "#n/a", "<na>", "null", "none", "nat", "-", "?")
_TIMES = ("date", "time", "timestamp", "datetime", "ds")
_ISO = re.compile(
    r"(\d{4}(?:-\d\d(?:-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?)?)?)?)"
    r"\s?(?:(Z)|([+-])(\d\d):?(\d\d))?",
    re.ASCII,
)
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+", re.ASCII)
# Maximum number of time steps per row of a table. A table with more time steps per row is rejected,
# because nearly all of its values would be missing.
_SPARSE = 100


class Cells:
    """Rows of a CSV or TSV table as texts, with their line numbers.

    Attributes:
      name: name of the table, for messages.
      header: names of the columns.
      rows: cells of each row.
      lines: line number of each row.
    """

    def __init__(self, raw: Raw, wanted: Sequence[str]):
        """Reads CSV or TSV in UTF-8.

        Args:
          raw: path or content of the file.
          wanted: names of columns. The delimiter with which most of them are found in the header is
            used.

        Raises:
          InputError: the table cannot be read.
        """
        self.name = f"input {shown(raw)}"
        try:
            text = read_content(raw).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InputError(f"{self.name}: is not UTF-8; save it as CSV in UTF-8") from None
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None
        if text.lstrip().startswith(("{", "[")):
            raise InputError(f"{self.name}: looks like JSON, expected CSV or TSV; save it as CSV")
        lines = list(io.StringIO(text, newline=""))
        records, reader = [], csv.reader(())
        try:
            counts = {mark: self._known(lines[:1], mark, wanted) for mark in ",;\t"}
            delimiter = max(counts, key=lambda mark: counts[mark])
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            for record in reader:
                if record and (len(record) == 1 or any(map(str.strip, record))):
                    records.append((reader.line_num, [cell.strip() for cell in record]))
        except csv.Error as error:
            line = max(reader.line_num, 1)
            raise InputError(f"{self.name}: line {line}: {error}; correct it") from None
        if len(records) < 2:
            raise InputError(f"{self.name}: has no rows below a header; expected a table")
        self.header = records.pop(0)[1]
        self.lines, self.rows = [n for n, _ in records], [record for _, record in records]
        for line, row in records:
            if len(row) != len(self.header):
                got = f"got {len(row)} fields, expected {len(self.header)} as in the header"
                raise InputError(f"{self.name}: line {line}: {got}; correct it")

    @staticmethod
    def _known(first: Sequence[str], delimiter: str, wanted: Sequence[str]) -> int:
        cells = next(csv.reader(first, delimiter=delimiter), [])
        return len({cell.strip() for cell in cells} & set(wanted))

    def column(self, name: str) -> list[str]:
        """Returns the cells of a column.

        Raises:
          InputError: no column, or more than one, has this name.
        """
        if self.header.count(name) != 1:
            some = "several columns" if name in self.header else "no column"
            known = ", ".join(name[:60] for name in self.header[:20])
            raise InputError(
                f"{self.name}: has {some} {name!r}, expected one; the columns are {known}"
            )
        index = self.header.index(name)
        return [row[index] for row in self.rows]

    def numbers(self, name: str, grouped: bool) -> np.ndarray:
        """Returns a column as float64 [rows], NaN where missing.

        If `grouped`, a column in which every point could separate thousands, as in 1.234, is
        rejected as ambiguous.

        Raises:
          InputError: a cell is not a number, or the column is ambiguous.
        """
        cells, found = self.column(name), np.full(len(self.rows), np.nan)
        for index, cell in enumerate(cells):
            if cell.lower() in _MISSING:
                continue
            try:
                value = float(cell)
            except ValueError:
                self.refuse(index, name, "a number such as 12.5, or an empty cell")
            found[index] = value if np.isfinite(value) else np.nan
        there = [cell for cell in cells if "." in cell]
        if grouped and there and all(map(_GROUPED.fullmatch, there)):
            self.refuse(
                cells.index(there[0]),
                name,
                "a number whose point is clearly a decimal point, such as 1234.0",
            )
        return found

    def refuse(self, index: int, name: str, expected: str) -> NoReturn:
        """Raises an `InputError` that names a cell by its line, its column and its content."""
        cell = self.rows[index][self.header.index(name)]
        raise InputError(
            f"{self.name}: line {self.lines[index]}: {name!r} is {shown(cell)}, expected "
            f"{expected}; correct it"
        )

    def times(self, wanted: str, clock: str) -> np.ndarray:
        """Returns the column of times, datetime64[us].

        Args:
          wanted: name of the column; if empty, the first column that is called date, time,
            timestamp, datetime or ds.
          clock: use of UTC offsets: "utc" converts times to UTC, "local" ignores the offsets, and
            "" rejects offsets other than 0. It is empty if the model was trained on times without
            UTC offsets.
        """
        usual = [name for name in self.header if name.lower() in _TIMES]
        name = wanted or (usual[0] if usual else "")
        if name not in self.header:
            raise InputError(
                f"{self.name}: has no time column, expected one called "
                f"{wanted or ' or '.join(_TIMES)}; rename the column that has the times"
            )
        cells = self.column(name)
        found = np.empty(len(cells), "datetime64[us]")
        zoned = 0
        for index, cell in enumerate(cells):
            try:
                text, utc, sign, hours, minutes = _ISO.fullmatch(cell).groups()
                found[index] = np.datetime64(text, "us")
            except (AttributeError, ValueError):
                self.refuse(index, name, "a time such as 2024-05-31 or 2024-05-31 13:00:00")
            zoned += bool(utc or sign)
            east = int(f"{sign}1") * (60 * int(hours) + int(minutes)) if sign else 0
            if east and not clock:
                self.refuse(index, name, "a time without a UTC offset")
            if (utc or sign) and zoned != index + 1:
                self.refuse(index, name, "a time without a UTC offset, as in the rows before")
            found[index] -= np.timedelta64(east if clock == "utc" else 0, "m")
        if 0 < zoned < len(cells):
            self.refuse(zoned, name, "a time with a UTC offset, as in the rows before")
        return found


def _months(times: np.ndarray) -> np.ndarray:
    return np.asarray(times).astype("datetime64[M]").astype(np.int64)


def _month_starts(months: Any) -> np.ndarray:
    return np.asarray(months, np.int64).astype("datetime64[M]").astype("datetime64[us]")


def _grid_index(times: np.ndarray, start: Any, step: Mapping[str, Any]) -> np.ndarray:
    """Returns the index of the nearest time step for each time; `start` has index 0."""
    if step["months"]:
        return np.rint((_months(times) - _months(start)) / step["months"]).astype(np.int64)
    return np.rint((times - start).astype(np.int64) / (step["seconds"] * 1e6)).astype(np.int64)


def _grid_times(start: Any, step: Mapping[str, Any], indices: np.ndarray) -> np.ndarray:
    """Returns the times, datetime64[us], of time steps with given indices; `start` has index 0."""
    if not step["months"]:
        return start + np.rint(indices * (step["seconds"] * 1e6)).astype("timedelta64[us]")
    months = _months(start) + indices * step["months"] + step["ends"]
    return _month_starts(months) + (start - _month_starts(_months(start) + step["ends"]))


def _spelled(times: np.ndarray) -> list[str]:
    """Formats times as dates, with the time of day in seconds or microseconds if necessary."""
    unit = next((u for u in "Ds" if np.all(times.astype(f"datetime64[{u}]") == times)), "us")
    return [str(text).replace("T", " ") for text in np.datetime_as_string(times, unit)]


def _calendar(times: np.ndarray, count: int) -> np.ndarray:
    """Computes calendar features, float32 [n, count] in [-0.5, 0.5] (Zhou et al. 2021).

    The features are the last `count` of: minute, hour, weekday, day of the month, day of the year.
    """
    day = times.astype("datetime64[D]")
    second = (times - day).astype(np.int64) / 1e6
    month, year = times.astype("datetime64[M]"), times.astype("datetime64[Y]")
    columns = [
        second // 60 % 60 / 59,
        second // 3600 / 23,
        # Day 0, 1 January 1970, was a Thursday; weeks begin on Monday.
        (day.astype(np.int64) + 3) % 7 / 6,
        (day - month.astype("datetime64[D]")).astype(np.int64) / 30,
        (day - year.astype("datetime64[D]")).astype(np.int64) / 365,
    ]
    return np.stack(columns[-count:], axis=-1).astype(np.float32) - np.float32(0.5)


@encoder
def read_series(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Reads the last `lookback` values of the time series in a table, standardized.

    The table has the columns `channels`. If `step` is not null, it also has a column of times, by
    which its rows are assigned to regular time steps, and "calendar" holds the calendar features of
    all past and forecast steps. The input is a file for a forecast of `horizon` steps, or
    "FILE,steps=N" for N steps, at most `steps`.
    """
    channels, step, horizon = options["channels"], options["step"], options["horizon"]
    lookback, mean, std = options["lookback"], np.array(options["mean"]), np.array(options["std"])

    def run(row: Row) -> Row:
        file, steps = _file_and_steps(row["raw"], horizon, options["steps"])
        table = Cells(file, [*channels, *_TIMES])
        grouped = options["grouped"]
        values = np.stack([table.numbers(name, name in grouped) for name in channels], axis=1)
        start = None
        if step is not None:
            times = table.times(options["time"], options["clock"])
            values, start = _on_grid(table, values, times, step)
        past = np.full((lookback, len(channels)), np.nan)
        kept = values[-lookback:]
        past[lookback - len(kept) :] = kept
        valid = ~np.isnan(past)
        if not valid.any():
            raise InputError(
                f"{table.name}: has no value within the last {lookback} time steps, which are the "
                "model's input; give a longer series"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.where(valid, (past - mean) / std, 0).astype(np.float32)
        if not np.isfinite(scaled).all():
            raise InputError(f"{table.name}: has values that are too large; correct them")
        blocks = -(-steps // horizon)
        ahead = np.arange(len(values) - lookback, len(values) + blocks * horizon)
        found = np.zeros((len(ahead), 0), np.float32)
        if step is not None:
            found = _calendar(_grid_times(start, step, ahead), options["calendar"])
        new = {"past": scaled, "past_valid": valid, "calendar": found}
        return {**row, **new, "steps": steps, "start": start, "count": len(values)}

    return run


def _file_and_steps(raw: Raw, horizon: int, most: int) -> tuple[Raw, int]:
    if isinstance(raw, bytes):
        return raw, horizon
    name, _, steps = re.fullmatch(r"(.*?)(,steps=(.*))?", raw, re.DOTALL).groups()
    if steps is None:
        return name, horizon
    if not (steps.isdecimal() and 1 <= int(steps) <= most):
        raise InputError(
            f"input {shown(raw)}: steps is {shown(steps)}, expected a number from 1 to {most}"
        )
    return name, int(steps)


def _on_grid(
    table: Cells, values: np.ndarray, times: np.ndarray, step: Mapping[str, Any]
) -> tuple[np.ndarray, Any]:
    """Assigns the rows of a table to regular time steps.

    Returns:
      Values [time steps, C], NaN where missing, and the time of the first step.

    Raises:
      InputError: two rows with different values have the same time, or the times do not have the
        step of the model.
    """
    order = np.argsort(times, kind="stable")
    values, times = values[order], times[order]
    again = np.flatnonzero(times[1:] == times[:-1]) + 1
    for row in again:
        if not np.array_equal(values[row], values[row - 1], equal_nan=True):
            text = _spelled(times[row : row + 1])[0]
            raise InputError(f"{table.name}: the time {text} has two rows; remove one")
    values, times = np.delete(values, again, axis=0), np.delete(times, again)
    # With three rows or fewer, the median difference may be the length of a gap.
    if len(times) > 3:
        months = step["months"]
        gaps = np.diff(_months(times) if months else times.astype(np.int64) / 1e6)
        own, expected = np.sort(gaps)[(len(gaps) - 1) // 2], months or step["seconds"]
        if not 0.97 < own / expected < 1.03:
            unit = "months" if months else "s"
            raise InputError(
                f"{table.name}: most rows are {own:g} {unit} apart, expected {expected:g} {unit} "
                "as in training; resample the table"
            )
    start = times[0]
    indices = _grid_index(times, start, step)
    if np.any(same := indices[1:] == indices[:-1]):
        first = int(np.argmax(same))
        one, other = _spelled(times[first : first + 2])
        raise InputError(f"{table.name}: {one} and {other} are nearer than half a step; remove one")
    if indices[-1] + 1 > _SPARSE * len(times):
        raise InputError(
            f"{table.name}: has {len(times)} rows for {indices[-1] + 1} time steps; give one row "
            "per step"
        )
    grid = np.full((int(indices[-1]) + 1, values.shape[1]), np.nan)
    grid[indices] = values
    return grid, start


@decoder
def forecast(options: Mapping[str, Any], folder: Path) -> Decoder:
    """Converts distribution parameters to forecasts in the units of the data, with their times.

    `point` is the index of the parameter that is the point forecast. Each entry of `levels`
    describes a quantile. Within the horizon, the quantile is the parameter with index `column`. If
    `column` is missing, the parameters are those of a Student's t distribution, from which the
    quantile is computed. Beyond the horizon, the quantile is the column `beyond` of the output
    "beyond".
    """
    channels, step, horizon = options["channels"], options["step"], options["horizon"]
    mean, std = np.array(options["mean"]), np.array(options["std"])

    def quantile(out: Mapping[str, np.ndarray], level: Mapping[str, Any]) -> np.ndarray:
        parameters = out["parameters"][:horizon]
        if "column" in level:
            found = parameters[..., level["column"]]
        else:
            from scipy import special

            location, scale, freedom = np.moveaxis(parameters.astype(np.float64), -1, 0)
            found = location + scale * special.stdtrit(freedom, level["level"])
        if "beyond" in out:
            found = np.concatenate([found, out["beyond"][..., level["beyond"]]])
        return found

    def run(item: Item) -> None:
        row, out = item.rows[0], item.outputs[0]
        steps = row["steps"]
        found = {"": out["parameters"][..., options["point"]]}
        found |= {f" {level['level']:g}": quantile(out, level) for level in options["levels"]}
        lines = {mark: value[:steps] * std + mean for mark, value in found.items()}
        ahead = np.arange(steps)
        times = [str(number + 1) for number in ahead]
        if step is not None:
            times = _spelled(_grid_times(row["start"], step, row["count"] + ahead))
        item.answer["times"] = times
        for mark, values in lines.items():
            key = f"level{mark.replace(' ', '_')}" if mark else "forecast"
            by_name = zip(channels, values.T, strict=True)
            item.answer[key] = {name: [float(f"{x:.7g}") for x in part] for name, part in by_name}
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        columns = [f"{name}{mark}" for mark in lines for name in channels]
        writer.writerow(["step" if step is None else "time", *columns])
        for time, values in zip(times, np.concatenate(list(lines.values()), axis=1), strict=True):
            writer.writerow([time, *(f"{x:.6g}" for x in values)])
        item.answer["text"] = buffer.getvalue().rstrip("\n")

    return run


class Catalog:
    """Users and items of a recommender, and the events of each user, which are items with a time.

    Attributes:
      users: names of the users.
      names: name of each item.
      titles: title of each item.
    """

    def __init__(self, path: Path, events: Path):
        values = json.loads(path.read_text(encoding="utf-8"))
        self.users, self.names = values["users"], values["names"]
        self.titles = self.names if values["titles"] is None else values["titles"]
        self._events = read_tensors(events)
        self._numbers = {name: number for number, name in enumerate(self.users)}
        # If several items have the same title, the title stands for the most popular of them.
        # Titles take precedence over names.
        counts = np.bincount(self._events["items"], minlength=len(self.names))
        order = np.argsort(counts, kind="stable").tolist()
        names = {self.names[item].casefold(): item for item in order}
        self._items = names | {self.titles[item].casefold(): item for item in order}

    def find_item(self, text: str) -> int | None:
        """Returns the index of the item with the given title or name; None if there is none."""
        return self._items.get(text.casefold())

    def find_user(self, name: str) -> int | None:
        """Returns the index of the user with the given name; None if there is none."""
        return self._numbers.get(name, self._numbers.get(_plain_name(name)))

    def events(self, user: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns a user's items, oldest first, and the days from each event to the last event."""
        chosen = slice(*self._events["starts"][user : user + 2].tolist())
        items = np.array(self._events["items"][chosen], np.int32)
        ages = self._events.get("ages")
        return items, np.zeros(len(items), np.float32) if ages is None else np.array(ages[chosen])

    def nearest(self, title: str) -> str | None:
        """Returns the most similar item title; None if no title is similar."""
        near = difflib.get_close_matches(_sorted_words(title), self._words, n=1, cutoff=0.6)
        return self._words[near[0]] if near else None

    @functools.cached_property
    def _words(self) -> dict[str, str]:
        return {_sorted_words(title): title for title in self.titles}


# Largest number of unknown titles for which a similar title is searched; a search takes long.
_MOST_SUGGESTIONS = 20


@functools.cache
def _catalog(path: Path, events: Path) -> Catalog:
    return Catalog(path, events)


def _plain_name(text: str) -> str:
    """Removes surrounding spaces from a name, and the fraction of a whole number such as 1.0."""
    found = re.fullmatch(r"([+-]?\d+)\.0+", text.strip())
    return found[1] if found else text.strip()


def _sorted_words(title: str) -> str:
    return " ".join(sorted(re.findall(r"\w+", title.casefold())))


@encoder
def history(options: Mapping[str, Any], folder: Path) -> Encoder:
    """Converts "user:NAME", or a list of item titles or names, to a history of events.

    The items of a list are separated by semicolons, oldest first; case is ignored. "items" and
    "ages" hold the latest `length` events, "seen" holds all items.
    """
    catalog = _catalog(folder / options["catalog"], folder / options["events"])
    size = options["length"]

    def run(row: Row) -> Row:
        items, ages, query = parse(row["raw"].strip())
        latest = items[-size:]
        padded = np.full(size, -1, np.int32), np.zeros(size, np.float32)
        padded[0][: len(latest)], padded[1][: len(latest)] = latest, ages[-size:]
        new = {"items": padded[0], "ages": padded[1], "user": np.int32(query["user"])}
        return {**row, **new, "seen": items, "query": query}

    def parse(text: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        nothing = np.zeros(0, np.int32), np.zeros(0, np.float32)
        if text.casefold().startswith("user:"):
            name = text[len("user:") :].strip()
            user = catalog.find_user(name)
            query = {"user": -1 if user is None else user, "name": name, "unknown": {}}
            return (*(nothing if user is None else catalog.events(user)), query)
        known = catalog.find_item(text) is not None
        parts = [text] if known else [part.strip() for part in text.split(";")]
        found: dict[int, None] = {}
        unknown: dict[str, str | None] = {}
        for part in filter(None, parts):
            item = catalog.find_item(part)
            item = catalog.find_item(_plain_name(part)) if item is None else item
            if item is None:
                few = len(unknown) < _MOST_SUGGESTIONS
                unknown[part] = catalog.nearest(part) if few else None
            else:
                found[item] = None
        items = np.array(list(found), np.int32)
        query = {"user": -1, "name": None, "unknown": unknown}
        return items, np.zeros(len(items), np.float32), query

    return run


@decoder
def recommend(options: Mapping[str, Any], folder: Path) -> Decoder:
    """Returns recommended items with at most `shown` attributions each.

    The outputs "top" and "top_scores" are the best items and their scores. Attributions are
    fractions of a score: "reason_items" over the latest `length` events, "reason_neighbours" over
    the similar users "reason_neighbour_ids". Outputs "part_<name>" are terms of a score. Without a
    history, the `popular` items are returned.
    """
    catalog = _catalog(folder / options["catalog"], folder / options["events"])

    def named(item: int) -> dict[str, str]:
        return {"item": catalog.names[item], "title": catalog.titles[item]}

    def reasons(out: Mapping[str, np.ndarray], rank: int, items: np.ndarray) -> list[dict]:
        if "reason_items" in out:
            latest = items[-options["length"] :]
            sources = [{"what": catalog.titles[n], "item": catalog.names[n]} for n in latest]
            weights = out["reason_items"][rank][: len(sources)]
        elif "reason_neighbours" in out:
            users = [catalog.users[n] for n in out["reason_neighbour_ids"].tolist()]
            sources = [{"what": f"user {user}", "user": user} for user in users]
            weights = out["reason_neighbours"][rank]
        else:
            return []
        order = np.argsort(-weights, kind="stable")[: options["shown"]]
        pairs = [(sources[i], round(float(weights[i]), 3)) for i in order if weights[i]]
        return [{**source, "share": share} for source, share in pairs]

    def parts(out: Mapping[str, np.ndarray], rank: int) -> dict[str, Any]:
        found = {
            name.removeprefix("part_"): round(float(values[rank]), 4)
            for name, values in out.items()
            if name.startswith("part_")
        }
        return {"parts": found} if found else {}

    def run(item: Item) -> None:
        row, out = item.rows[0], item.outputs[0]
        cold, query = not len(row["seen"]), row["query"]
        listed: list[dict[str, Any]] = []
        for rank, number in enumerate(out["top"].tolist()):
            if number >= 0:
                score = round(float(out["top_scores"][rank]), 4)
                because = reasons(out, rank, row["seen"])
                entry = {**named(number), "score": score, "because": because}
                listed.append({**entry, **parts(out, rank)})
        if cold:
            listed = [named(number) for number in options["popular"]]
        item.answer |= {"cold": cold, "unknown": query["unknown"], "recommendations": listed}
        item.answer["text"] = _recommended(query, listed, cold)

    return run


def _recommended(query: Mapping[str, Any], listed: Sequence[Mapping[str, Any]], cold: bool) -> str:
    notes = [
        f"{title!r} is not a known title" + (f", did you mean {near!r}?" if near else "")
        for title, near in query["unknown"].items()
    ]
    if cold and query["name"] is not None:
        notes.append(f"there is no user {query['name']!r}")
    if cold:
        notes.append("no history, so these are the most popular items")
    shown_items = []
    for entry in listed:
        sources = [f"{source['what']} {source['share']:.2f}" for source in entry.get("because", ())]
        shown_items.append(entry["title"] + (f" [{sources[0]}]" if sources else ""))
    line = "; ".join(shown_items) or "nothing is left to recommend"
    return f"({'; '.join(notes)}) {line}" if notes else line


# ---------------------------------------------------------------- programs

Program = Callable[[Mapping[str, Any]], dict[str, Any]]


def fetched(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the outputs of a program as arrays of the host."""
    return {name: np.asarray(value) for name, value in outputs.items()}


def onnx_program(
    source: str | bytes, batch_size: int | None, weights: Mapping[str, np.ndarray] = {}
) -> Program:
    """Loads an ONNX program; returns it as a function of arrays [B, ...] by name.

    Args:
      source: path of the file, or its content.
      batch_size: the only batch size of the program; None for any.
      weights: values of the inputs that are weights, if the program does not contain them.

    Raises:
      InputError: onnxruntime cannot load the program.
    """
    import onnxruntime

    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    present = onnxruntime.get_available_providers()
    options = onnxruntime.SessionOptions()
    # Only fatal messages are logged, because errors are raised as exceptions.
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            source, options, providers=[name for name in wanted if name in present]
        )
    except Exception as error:
        raise InputError(f"onnxruntime {onnxruntime.__version__}: {_line_of(error)}") from None
    names = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]

    def run(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        given = {**weights, **arrays}
        try:
            found = session.run(outputs, {name: np.asarray(given[name]) for name in names})
        except Exception as error:
            raise InputError(f"onnxruntime {onnxruntime.__version__}: {_line_of(error)}") from None
        return {n.removesuffix(OUTPUT_SUFFIX): x for n, x in zip(outputs, found, strict=True)}

    return run if batch_size is None else in_batches(run, batch_size)


def _line_of(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def in_batches(run: Program, size: int) -> Program:
    """Makes a program with a fixed batch size accept batches of any size: splits and pads them."""

    def run_all(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        count = len(next(iter(arrays.values())))
        found: dict[str, list[np.ndarray]] = {}
        for start in range(0, count, size):
            rows = np.arange(start, start + size)
            rows[rows >= count] = start
            outputs = run({name: np.asarray(x)[rows] for name, x in arrays.items()})
            for name, value in outputs.items():
                found.setdefault(name, []).append(np.asarray(value)[: count - start])
        return {name: np.concatenate(parts) for name, parts in found.items()}

    return run_all


def difference(found: Any, expected: Any) -> float:
    """Computes the largest difference of two arrays, relative to the largest finite value.

    For dtypes other than float32, such as integers and float16, the mean difference is computed
    instead, since rounding may change single values. The result is infinite if shapes differ, or if
    infinities or NaN are at different positions.
    """
    exact = np.asarray(found).dtype == np.float32
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        return math.inf
    finite = np.isfinite(expected)
    scale = max(1.0, float(np.max(np.abs(expected), initial=0, where=finite & (expected > -1e30))))
    with np.errstate(invalid="ignore"):
        same = (found == expected) | (np.isnan(found) & np.isnan(expected))
        parts = np.where(same, 0.0, np.abs(found - expected))
    parts = np.where(np.isnan(parts), math.inf, parts)
    if not parts.size:
        return 0.0
    return float(parts.max() if exact else parts.mean()) / scale


class Export:
    """An exported model, read from its folder.

    Attributes:
      folder: folder of the export.
      signature: content of signature.json.
    """

    def __init__(self, folder: str | Path):
        """Reads signature.json; programs and weights are read at their first use.

        Raises:
          InputError: the folder holds no export, or an export of another format version; a package
            that it needs is not installed.
        """
        self.folder = Path(folder)
        path = self.folder / "signature.json"
        try:
            self.signature = json.loads(path.read_text(encoding="utf-8"))
            found = self.signature["format"]
            self.kind: str = self.signature["input"]
        except FileNotFoundError:
            is_run = (self.folder / "config.json").exists()
            remedy = "; export this run directory with launch.export" if is_run else ""
            raise InputError(
                f"{self.folder}: holds no export (no signature.json){remedy}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not the signature of an export ({error})") from None
        if found != FORMAT:
            raise InputError(f"{path}: has format {found}, expected {FORMAT}; export again")
        self._check_packages()
        self._encode = self._operations("encode", ENCODERS)
        self._decode = self._operations("decode", DECODERS)

    def _check_packages(self) -> None:
        """Checks that the packages of requirements.txt are installed, in any version."""
        path = self.folder / "requirements.txt"
        lines = path.read_text(encoding="utf-8").split() if path.exists() else []
        for name in (line.partition("==")[0] for line in lines):
            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                raise InputError(
                    f"{name} is not installed, which this export needs; run pip install -r {path}"
                ) from None

    def _operations(self, part: str, known: Mapping[str, Any]) -> list[Any]:
        made = []
        for options in self.signature[part]:
            if options["op"] not in known:
                raise InputError(
                    f"{self.folder / 'signature.json'}: unknown operation {options['op']!r} in "
                    f"{part!r}; use the predict.py of the export"
                )
            try:
                made.append(known[options["op"]](options, self.folder))
            except (OSError, ValueError, KeyError, TypeError) as error:
                file = self.folder / options.get("file", "signature.json")
                raise InputError(f"{file}: missing or damaged ({error}); export again") from None
        return made

    @functools.cached_property
    def weights(self) -> dict[str, Any]:
        """Parameters of the model as arrays on the device, by name.

        Raises:
          InputError: the file is missing or damaged.
        """
        import jax

        path = self._checked("weights.safetensors")
        return jax.device_put({name: np.array(x) for name, x in read_tensors(path).items()})

    def _checked(self, name: str) -> Path:
        """Returns the path of a file, after comparing its hash with that in the signature.

        Raises:
          InputError: the hashes differ.
        """
        path, expected = self.folder / name, self.signature["sha256"].get(name)
        if expected is not None and path.exists():
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
            if actual != expected:
                raise InputError(f"{path}: differs from the exported file; copy it again")
        return path

    @functools.cached_property
    def _onnx_weights(self) -> Path:
        return self._checked(self.signature["onnx"]["weights"])

    @property
    def is_onnx(self) -> bool:
        """True if the programs are ONNX."""
        return "onnx" in self.signature

    @functools.cache  # noqa: B019 - an export lives as long as the process
    def program(self, kind: str, index: int) -> Program:
        """Returns a compiled program as a function from input arrays to output arrays, by name.

        Args:
          kind: kind of program, a key of "programs" in the signature, such as "predict".
          index: index of the program in the list of its kind.

        Raises:
          InputError: the file is missing or damaged, or was written by a later version of JAX.
        """
        entry = self.signature["programs"][kind][index]
        path = self.folder / entry["file"]
        if self.is_onnx:
            _ = self._onnx_weights
            try:
                return onnx_program(str(path), entry.get("batch_size"))
            except InputError as error:
                raise InputError(f"{path}: {error}; export again") from None
        import jax
        from jax import export

        try:
            loaded = export.deserialize(bytearray(path.read_bytes()))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); export again") from None
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{path}: cannot be loaded by JAX {jax.__version__} ({reason})"
            ) from None
        call = jax.jit(loaded.call)
        return lambda arrays: call(self.weights, dict(arrays))

    # ------------------------------------------------------------ inputs

    def encode(self, raw: Raw, seconds: float = math.inf) -> Item:
        """Converts an input to an item with one or more rows.

        Args:
          raw: text, path of a file, or content of a file.
          seconds: maximum duration of a sound, if the model allows longer ones.

        Raises:
          InputError: the input cannot be read.
        """
        rows = [{"raw": raw, "seconds": seconds}]
        for operation in self._encode:
            after: list[Row] = []
            for row in rows:
                found = operation(row)
                after += found if isinstance(found, list) else [found]
            rows = after
        return Item(raw, rows)

    def sizes(self, row: Row) -> dict[str, int]:
        """Returns the sizes of the variable dimensions of a row, by dimension name."""
        found: dict[str, int] = {}
        for name, spec in self.signature["inputs"].items():
            if name in row:
                pairs = zip(spec["shape"][1:], np.shape(row[name]), strict=True)
                for size, given in pairs:
                    if isinstance(size, str):
                        found[size] = max(found.get(size, 0), given)
        return found

    def bucket(self, row: Row, kind: str = "predict") -> int:
        """Returns the index of the program with the smallest input arrays that a row fits in.

        Raises:
          InputError: the row is too long for every program.
        """
        needed, programs = self.sizes(row), self.signature["programs"][kind]
        for index, program in enumerate(programs):
            if all(program["sizes"][name] >= size for name, size in needed.items()):
                return index
        limits = ", ".join(f"{name} {size}" for name, size in programs[-1]["sizes"].items())
        got = ", ".join(f"{name} {size}" for name, size in needed.items())
        raise InputError(f"input {shown(row['raw'])}: too long ({got}; at most {limits})")

    def batch(
        self, rows: Sequence[Row], ids: Sequence[int], bucket: int, size: int
    ) -> dict[str, np.ndarray]:
        """Stacks and pads rows to arrays [size, ...]; missing rows repeat the first one.

        Args:
          rows: at most `size` rows for the same program.
          ids: id of each row, which seeds random sampling.
          bucket: index of the program; see `bucket`.
          size: batch size B.
        """
        sizes = self.signature["programs"]["predict"][bucket]["sizes"]
        found = {}
        for name, spec in self.signature["inputs"].items():
            shape = [sizes.get(n, n) if isinstance(n, str) else n for n in spec["shape"][1:]]
            array = np.full((size, *shape), spec["padding"] or 0, spec["dtype"])
            if name == "id" and name not in rows[0]:
                array[:] = -1
                array[: len(ids)] = ids
            elif name == "weight" and name not in rows[0]:
                array[: len(rows)] = 1
            else:
                for index in range(size):
                    value = np.asarray(rows[index if index < len(rows) else 0][name])
                    array[(index, *(slice(n) for n in value.shape))] = value
            found[name] = array
        return found

    # ------------------------------------------------------------ predictions

    def run(self, rows: Sequence[Row], kind: str = "predict", first: int = 0) -> list[dict]:
        """Runs a program on rows, in batches; returns the output arrays by name for each row.

        Args:
          rows: any number of rows of items returned by `encode`.
          kind: kind of program; see `program`.
          first: id of the first row; the following rows have the next ids.
        """
        found: list[dict[str, np.ndarray]] = [{} for _ in rows]
        by_bucket: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            by_bucket.setdefault(self.bucket(row, kind), []).append(index)
        for bucket, members in by_bucket.items():
            longest = max(self.signature["programs"][kind][bucket]["sizes"].values(), default=1)
            most = max(min(self.signature["batch_size"], POSITIONS // longest), 1)
            for start in range(0, len(members), most):
                chosen = members[start : start + most]
                # Batch sizes are powers of two, or the largest size, so that few programs are
                # compiled.
                size = min(1 << (len(chosen) - 1).bit_length(), most)
                ids = [first + index for index in chosen]
                batch = self.batch([rows[index] for index in chosen], ids, bucket, size)
                outputs = fetched(self.program(kind, bucket)(batch))
                for position, index in enumerate(chosen):
                    found[index] = {name: value[position] for name, value in outputs.items()}
        return found

    def decode(self, item: Item) -> dict[str, Any]:
        """Converts the outputs of an item to its answer, see `Item.answer`."""
        for operation in self._decode:
            operation(item)
        return item.answer

    def __call__(self, raw: Sequence[Raw]) -> list[dict[str, Any]]:
        """Returns the answer of each input, see `Item.answer`.

        Raises:
          InputError: an input cannot be read.
        """
        return [answer for items in self._portions(raw) for answer in self._answers(items)]

    def _portions(self, raw: Sequence[Raw]) -> Iterator[list[Item]]:
        """Yields lists of encoded inputs, each small enough to bound memory."""
        items: list[Item] = []
        held = 0
        for one in raw:
            items.append(self.encode(one))
            arrays = [value for row in items[-1].rows for value in row.values()]
            held += sum(value.nbytes for value in arrays if isinstance(value, np.ndarray))
            if len(items) == PORTION or held >= PORTION_BYTES:
                yield items
                items, held = [], 0
        if items:
            yield items

    def _answers(self, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
        outputs = iter(self.run([row for item in items for row in item.rows]))
        for item in items:
            item.outputs = [next(outputs) for _ in item.rows]
            yield self.decode(item)

    def stream(self, raw: Raw) -> Iterator[dict[str, Any]]:
        """Decodes an input greedily; yields the answer after each token, the complete one last.

        Raises:
          InputError: the input cannot be read, or the model does not decode token by token.
        """
        if self.signature["decoding"] is None:
            raise InputError(f"{self.folder}: this model does not generate token by token")
        return self.stream_item(self.encode(raw))

    def stream_item(self, item: Item) -> Iterator[dict[str, Any]]:
        """Decodes an encoded input greedily; yields the answer after each token."""
        decoding, (row,) = self.signature["decoding"], item.rows
        bucket = self.bucket(row)
        state = self.program("prefill", bucket)(self.batch([row], [0], bucket, 1))
        step, end, tokens, total = self.program("step", bucket), decoding["end"], [], 0.0
        while len(tokens) < decoding["max_length"][bucket]:
            after = step(state)
            scores = np.asarray(after.pop("scores"))[0]
            tokens.append(int(np.argmax(scores)))
            total += float(scores[tokens[-1]])
            state = {**after, "token": np.array([tokens[-1]], np.int32)}
            yield self._partial(item, row, tokens, total / len(tokens))
            if tokens[-1] == end:
                break

    def _partial(self, item: Item, row: Row, tokens: list[int], score: float) -> dict[str, Any]:
        """Returns the answer for the tokens decoded so far, with their mean log-probability."""
        now, array = Item(item.raw, [row]), np.array(tokens, np.int32)
        found: dict[str, Any] = {}
        for name, spec in self.signature["outputs"].items():
            # A model with several hypotheses has sequences [n, T] and scores [n]. Other models have
            # sequences [T] and one score.
            several = len(spec["shape"]) > (2 if name in ("tokens", "completion") else 1)
            if name in ("tokens", "completion"):
                found[name] = array[None] if several else array
            elif name in ("score", "scores"):
                found[name] = np.array([score] if several else score, np.float32)
        now.outputs = [found]
        return self.decode(now)

    def verify(self) -> float:
        """Runs the golden inputs and compares their outputs with the exported golden outputs.

        Returns:
          The largest difference, relative to the largest absolute value of its output array. For
          arrays of integers or float16, the mean difference is used instead, since rounding may
          change single values.

        Raises:
          InputError: an output differs by more than the tolerance of the signature.
        """
        golden, worst = read_tensors(self.folder / "golden.safetensors"), 0.0
        for index in range(len(self.signature["programs"]["predict"])):
            prefix = f"{index}/inputs/"
            arrays = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
            if not arrays:
                continue
            for name, value in fetched(self.program("predict", index)(arrays)).items():
                found = difference(value, golden[f"{index}/outputs/{name}"])
                worst = max(worst, found)
                if not found <= self.signature["tolerance"]:
                    raise InputError(
                        f"{self.folder}: output {name!r} of the golden inputs differs by "
                        f"{found:.2g}, expected at most {self.signature['tolerance']:g}"
                    )
        return worst


# ---------------------------------------------------------------- command


def _inputs(arguments: argparse.Namespace) -> Iterator[str]:
    """Yields the inputs of --input, then those of --input_file.

    The value "-" of --input reads standard input.
    """
    for text in arguments.input:
        if text == "-":
            yield from _lines(sys.stdin.buffer, "standard input")
        else:
            yield text
    if arguments.input_file:
        name = f"--input_file={arguments.input_file}"
        try:
            with open(arguments.input_file, "rb") as file:
                yield from _lines(file, name)
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror})") from None


def _lines(stream: BinaryIO, name: str) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{name}: line {number} is not UTF-8; convert the file") from None
        yield text.rstrip("\r\n")


def main() -> None:
    """Runs the command; prints an `InputError` on standard error and exits with status 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--export", default=str(Path(__file__).parent), help="folder of the export")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        help="one input; - reads one input per line from standard input",
    )
    parser.add_argument("--input_file", help="a text file with one input per line")
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument("--verify", action="store_true", help="compare with the golden outputs")
    arguments = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Characters that the terminal lacks are written as escapes.
            stream.reconfigure(errors="backslashreplace")
    try:
        _run(arguments)
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # Otherwise the interpreter would flush the closed pipe again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("error: the reader of the output has closed the pipe", file=sys.stderr)
        sys.exit(2)


def _run(arguments: argparse.Namespace) -> None:
    model = Export(arguments.export)
    if arguments.verify:
        print(f"largest difference from the golden outputs: {model.verify():.2g}")
        return
    raw = list(_inputs(arguments))
    if not raw:
        raise InputError("--input is missing; give one, or - for standard input")
    for answer in model(raw):
        print(json.dumps(answer) if arguments.format == "json" else answer["text"])


if __name__ == "__main__":
    main()
