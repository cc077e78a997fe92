"""Tokenizer files of RoBERTa folders: the pieces that the library tokenizers gives, or one line."""

import itertools
import json

import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers, processors

from tasks.common.errors import UserError
from tasks.common.huggingface.byte_pairs import read_byte_pairs as read
from tasks.common.huggingface.weights import LanguageModelFolder
from tasks.common.text.tokenizer import Tokenizer

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MERGES = ["t h", "\u0120 th", "\u0120th e", "th e", "g o", "go o", "\u0120 goo", "\u0120goo d"]
PIECES = [merge.replace(" ", "") for merge in MERGES]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = [*SPECIAL[:4], *BYTES, *PIECES, "<mask>"]
IDS = {piece: number for number, piece in enumerate(VOCABULARY)}
TEXTS = [
    "the  good\tthe",
    " the th\u00e9\n",
    "\U0001f600 \u4e2d\u56fd it's 12",
    "<s>the</s>",
    "\u0000\u00a0 ",
]


def whole(prefix=False, **changes):
    """Returns tokenizer.json as the library writes it, with other parts by name."""
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    tokenizer = tokenizers.Tokenizer(models.BPE(IDS, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.add_special_tokens([AddedToken(token, lstrip=token == "<mask>") for token in SPECIAL])
    return json.loads(tokenizer.to_str()) | changes


def write(folder, tokenizer=None, vocabulary=None, merges=None, **files):
    """Returns a folder of tokenizer files; `files` are further JSON files by name."""
    folder.mkdir()
    for name, values in {"tokenizer": tokenizer, "vocab": vocabulary, **files}.items():
        if values is not None:
            (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    if merges is not None:
        text = "".join(f"{merge}\n" for merge in merges)
        (folder / "merges.txt").write_text(text, encoding="utf-8")
    return folder


def expect_as_library(read, library):
    """Compares pieces, also in a restored run."""
    vocabulary, encoding, _ = read
    tokenizer = LanguageModelFolder("roberta", {}, {}, vocabulary, encoding).text_tokenizer()
    for text, again in itertools.product(TEXTS, (False, True)):
        mine = Tokenizer.from_json(tokenizer.to_json()) if again else tokenizer
        pieces = mine.pieces()
        found = [pieces[number] for number in mine.encode(text)]
        assert found == library.encode(text, add_special_tokens=False).tokens, text


def plain(prefix):
    """Returns the library's tokenizer without special tokens, which are text here."""
    values = whole(prefix, added_tokens=[], post_processor=None)
    return tokenizers.Tokenizer.from_str(json.dumps(values))


@pytest.mark.parametrize("prefix", [False, True])
def test_pieces_are_those_of_the_library(prefix, tmp_path):
    found = read(write(tmp_path / "one", whole(prefix)))
    assert found[1].add_prefix_space is prefix
    assert found[0] == VOCABULARY
    expect_as_library(found, plain(prefix))
    config = {
        "add_prefix_space": prefix,
        "tokenizer_class": "RobertaTokenizer",
        "errors": "replace",
    }
    folder = write(tmp_path / "two", None, IDS, ["#version: 0.2", *MERGES], tokenizer_config=config)
    assert read(folder) == found
    assert plain(True).encode("the").tokens != plain(False).encode("the").tokens


def test_pieces_begin_words_and_are_decoded(tmp_path):
    vocabulary, encoding, _ = read(write(tmp_path / "roberta", whole()))
    tokenizer = LanguageModelFolder("roberta", {}, {}, vocabulary, encoding).text_tokenizer()
    assert tokenizer.pieces()[:3] == ["<pad>", "<unk>", "<s>"]
    assert tokenizer.size == len(VOCABULARY) - 2
    ids = tokenizer.encode("the good \u00e9")
    assert tokenizer.decode(ids) == "the good \u00e9"
    assert tokenizer.word_starts()[ids].tolist() == [False, True, True, False, False]


def test_recent_merges_and_added_tokens(tmp_path):
    values = whole()
    values["model"]["merges"] = [merge.split(" ") for merge in MERGES]
    files = {"merges": MERGES, "vocabulary": dict(list(IDS.items())[:-1])}
    folder = write(tmp_path / "both", values, **files, added_tokens={"<mask>": IDS["<mask>"]})
    assert read(folder)[0] == VOCABULARY
    (folder / "tokenizer.json").unlink()
    vocabulary, encoding, notes = read(folder)
    assert (vocabulary, list(encoding.merges), notes) == (VOCABULARY, MERGES, [])


def test_options_of_the_mask_token_are_noted(tmp_path):
    values = whole()
    for token in values["added_tokens"]:
        token["lstrip"] = False
    (note,) = read(write(tmp_path / "roberta", values))[2]
    assert "lstrip of <mask> is false" in note
    del values["added_tokens"]
    assert read(write(tmp_path / "none", values))[2] == []


def model(**changes):
    return whole()["model"] | changes


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": model(type="WordPiece")}, 'model.type is "WordPiece", expected "BPE"'),
        ({"model": model(vocab=None)}, "model.vocab is null, .* or vocab.json and merges.txt inst"),
        ({"model": model(merges=None)}, "model.merges is null, expected a list"),
        ({"model": model(dropout=0.1)}, "model.dropout is 0.1, expected null"),
        ({"model": model(byte_fallback=True)}, "model.byte_fallback is true, expected false"),
        ({"model": model(ignore_merges=True)}, "model.ignore_merges is true, expected false"),
        ({"model": model(end_of_word_suffix="</w>")}, "model.end_of_word_suffix is .*, expected"),
        ({"model": model(sampling=1)}, "model.sampling is an unknown option"),
        ({"normalizer": {"type": "NFC"}}, 'normalizer is "NFC", expected null'),
        ({"pre_tokenizer": None}, 'pre_tokenizer is null, expected "ByteLevel"'),
        ({"pre_tokenizer": {"type": "Metaspace"}}, 'pre_tokenizer is "Metaspace", expected "Byte'),
        ({"pre_tokenizer": BYTE_LEVEL | {"use_regex": False}}, "use_regex is false, expected true"),
        ({"post_processor": {"type": "BertProcessing"}}, 'post_processor is "BertProcessing"'),
        (
            {
                "post_processor": {
                    "type": "RobertaProcessing",
                    "sep": ["</s>", 2],
                    "cls": ["<pad>", 1],
                }
            },
            r'post_processor is \["<pad>", "A", "</s>"\], expected \["<s>", "A", "</s>"\]',
        ),
        (
            {"added_tokens": [{"id": 999, "content": "<user>"}]},
            "has '<user>' as an added token, expected only <pad>, .*; add it to vocab.json",
        ),
    ],
)
def test_other_tokenizers_are_one_line(changes, message, tmp_path):
    with pytest.raises(UserError, match=f"tokenizer.json: .*{message}") as refused:
        read(write(tmp_path / "roberta", whole(**changes)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has neither tokenizer.json nor vocab.json and merges.txt"),
        ({"vocabulary": IDS}, "has vocab.json but no merges.txt; provide merges.txt of the same"),
        ({"merges": MERGES}, "has merges.txt but no vocab.json; provide vocab.json of the same"),
        (
            {"vocabulary": IDS, "merges": ["x y"]},
            "merge 0 is 'x y', expected 'xy' in the vocabulary",
        ),
        ({"vocabulary": IDS, "merges": ["t h e"]}, "merge 0 is 't h e', expected two pieces"),
        (
            {"vocabulary": {p: n for n, p in enumerate([*SPECIAL, *BYTES[1:]])}, "merges": []},
            "has no '!', expected the 256 characters of byte-level encoding",
        ),
        ({"vocabulary": {"a": 0, "b": 2}, "merges": []}, "ids of the vocabulary have gaps"),
        (
            {"tokenizer": whole(), "vocabulary": IDS | {"!": IDS["a"], "a": IDS["!"]}},
            "has '!' as piece 4, expected 'a' as in vocab.json",
        ),
        ({"tokenizer": whole(), "merges": MERGES[:-1]}, "model.merges differs from merges.txt"),
        (
            {"tokenizer": whole(), "tokenizer_config": {"add_prefix_space": True}},
            "add_prefix_space is true, but add_prefix_space is false in tokenizer.json",
        ),
        (
            {"vocabulary": IDS, "merges": [], "tokenizer_config": {"mask_token": "[MASK]"}},
            r'mask_token is "\[MASK\]", expected "<mask>"',
        ),
        (
            {"vocabulary": IDS, "merges": [], "tokenizer_config": {"do_lower_case": True}},
            "do_lower_case is true, an unknown option",
        ),
        (
            {"vocabulary": IDS, "merges": [], "tokenizer_config": {"tokenizer_class": "Bartpho"}},
            'tokenizer_class is "Bartpho", expected "RobertaTokenizer"',
        ),
        (
            {"tokenizer_config": {"tokenizer_class": "TokenizersBackend"}},
            'tokenizer_class is "TokenizersBackend", which needs tokenizer.json',
        ),
        (
            {"vocabulary": IDS, "merges": [], "added_tokens": {"<user>": 999}},
            "has '<user>' as an added token",
        ),
        (
            {"vocabulary": IDS, "merges": [], "added_tokens": {"<mask>": 999}},
            "the id of <mask> is 999 in added_tokens",
        ),
    ],
)
def test_incomplete_or_contradicting_files_are_one_line(files, message, tmp_path):
    with pytest.raises(UserError, match=message) as refused:
        read(write(tmp_path / "roberta", **files))
    assert "\n" not in str(refused.value)


def test_files_in_another_encoding_are_one_line(tmp_path):
    folder = write(tmp_path / "roberta", vocabulary=IDS)
    (folder / "merges.txt").write_bytes("\u00e9 a\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"merges.txt: not UTF-8"):
        read(folder)
