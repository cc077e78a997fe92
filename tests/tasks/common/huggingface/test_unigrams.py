"""Tokenizer files of XLM-RoBERTa folders: the pieces that the library gives, or one line."""

import itertools
import json

import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors

from tasks.common.errors import UserError
from tasks.common.huggingface.unigrams import read_unigrams
from tasks.common.huggingface.weights import LanguageModelFolder
from tasks.common.text.tokenizer import TextConfig, Tokenizer

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
PIECES = [
    "\u2581",
    "\u2581the",
    "\u2581go",
    "od",
    "o",
    "\u2581t",
    "h",
    "e",
    "s",
    "<",
    ">",
    "\u4e2d",
]
SCORES = [[token, 0.0] for token in SPECIAL[:4]] + [
    [piece, -1.0 - number / 4] for number, piece in enumerate(PIECES)
]
VOCABULARY = [*SPECIAL[:4], *PIECES, "<mask>"]
TEXTS = ["the good", "  the\tgood  the ", "\uff54\uff48e \u4e2d\u56fd", "<s>the</s>", "x"]


def whole(split=True, **changes):
    """Returns tokenizer.json as the library writes it, with other parts by name."""
    tokenizer = tokenizers.Tokenizer(models.Unigram([tuple(pair) for pair in SCORES], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    spaces = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces]) if split else spaces
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([AddedToken(token, lstrip=token == "<mask>") for token in SPECIAL])
    return json.loads(tokenizer.to_str()) | changes


def write(folder, tokenizer=None, **files):
    """Returns a folder of tokenizer files; `files` are further JSON files by name."""
    folder.mkdir()
    for name, values in {"tokenizer": tokenizer, **files}.items():
        if values is not None:
            (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def tokenizer_of(folder):
    vocabulary, unigram, notes = read_unigrams(folder)
    assert (vocabulary, notes) == (VOCABULARY, [])
    return LanguageModelFolder("xlm-roberta", {}, {}, vocabulary, unigram).text_tokenizer()


@pytest.mark.parametrize("split", [True, False])
def test_pieces_are_those_of_the_library(split, tmp_path):
    values = whole(split)
    tokenizer = tokenizer_of(write(tmp_path / "xlm", values))
    # Under other names, special tokens are no pieces of a text.
    model = values["model"]
    model["vocab"] = [[f"{p}{p}" if p in SPECIAL else p, score] for p, score in model["vocab"]]
    plain = values | {"added_tokens": [], "post_processor": None}
    library = tokenizers.Tokenizer.from_str(json.dumps(plain))
    for text, again in itertools.product(TEXTS, (False, True)):
        mine = Tokenizer.from_json(tokenizer.to_json()) if again else tokenizer
        pieces = [piece.rstrip(" ") for piece in mine.pieces()]
        found = [pieces[number] for number in mine.encode(text)]
        # The library names unknown pieces by their text.
        expected = [p if p in pieces else "<unk>" for p in library.encode(text).tokens]
        assert found == expected, text


def test_special_tokens_of_a_text_are_plain_text(tmp_path):
    tokenizer = tokenizer_of(write(tmp_path / "xlm", whole()))
    pieces = tokenizer.pieces()
    found = [pieces[number] for number in tokenizer.encode("<s>")]
    assert found == ["\u2581", "<", "s", ">"]
    assert tokenizer.encode("<pad> <unk>").min() >= 1


def test_pieces_begin_words_and_are_decoded(tmp_path):
    tokenizer = tokenizer_of(write(tmp_path / "xlm", whole()))
    ids = tokenizer.encode("the good  the")
    assert tokenizer.decode(ids) == "the good the"
    assert tokenizer.word_starts()[ids].tolist() == [True, True, False, True]


def test_unigram_models_are_not_fitted():
    with pytest.raises(UserError, match=r"config.data.text.tokenizer: got 'unigram', which is for"):
        Tokenizer.fit(["a"], TextConfig(tokenizer="unigram"))


def model(**changes):
    return whole()["model"] | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": model(type="BPE")}, 'model.type is "BPE", expected "Unigram"'),
        (
            {"model": model(vocab={"a": 0})},
            "model.vocab is .*, expected a list; provide a complete",
        ),
        ({"model": None}, "model is null, expected an object; provide a complete file"),
        ({"model": model(unk_id=0)}, "model.unk_id is 0, expected 3"),
        ({"model": model(byte_fallback=True)}, "model.byte_fallback is true, expected false"),
        (
            {"model": model(vocab=[*SCORES, ["a"]])},
            r'model.vocab has \["a"\] as piece 16, expected',
        ),
        (
            {"model": model(vocab=[*SCORES, ["a", "1"]])},
            "as piece 16, expected a piece and its scor",
        ),
        ({"model": model(vocab=[*SCORES, ["od", 0.0]])}, "model.vocab has 'od' twice"),
        ({"pre_tokenizer": None}, 'pre_tokenizer is null, expected "Metaspace"'),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, 'pre_tokenizer is "ByteLevel", expected "Meta'),
        (
            {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}},
            'prepend_scheme is "first", expected "always"',
        ),
        ({"normalizer": {"type": "Unknown"}}, "cannot be read"),
        ({"post_processor": {"type": "BertProcessing"}}, 'post_processor is "BertProcessing"'),
        ({"added_tokens": [{"id": 99, "content": "<user>"}]}, "has '<user>' as an added token"),
    ],
)
def test_other_tokenizers_are_one_line(changes, message, tmp_path):
    with pytest.raises(UserError, match=f"tokenizer.json: .*{message}") as refused:
        read_unigrams(write(tmp_path / "xlm", whole(**changes)))
    assert "\n" not in str(refused.value)


def test_missing_and_contradicting_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"has no tokenizer.json; save the tokenizer with transf"):
        read_unigrams(write(tmp_path / "none"))
    folder = write(tmp_path / "prefix", whole(), tokenizer_config={"add_prefix_space": False})
    with pytest.raises(UserError, match="add_prefix_space is false, expected true"):
        read_unigrams(folder)
