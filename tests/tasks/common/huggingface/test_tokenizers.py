"""Tokenizer files of BERT folders: the pieces that the library tokenizers gives, or one line."""

import itertools
import json

import pytest
import tokenizers
from tokenizers import (
    BertWordPieceTokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from tasks.common.errors import UserError
from tasks.common.huggingface.pipelines import Normalization
from tasks.common.huggingface.tokenizers import read_tokenizer
from tasks.common.huggingface.weights import LanguageModelFolder
from tasks.common.text.tokenizer import Tokenizer

SIGNS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "a",
    "##b",
    "b",
    "café",
    "cafe",
    "Café",
    "##é",
    "##e",
    "CAFE",
    "x",
    "##x",
    "xxxx",
    "中",
    "国",
    "##国",
    "中国",
    "!",
    "'",
    "s",
]
VOCABULARY = [*SIGNS, *WORDS]
TEXTS = [
    "a ab café Café CAFE cafe\u0301",
    "中国 中 国a a中国b",
    "x\u0000x x\tb\u00a0a \u200bab \u2028 b",
    "xxxxxxxxx " + "x" * 101 + " a!'s' zzz",
    "[MASK] a",
    "",
]


def write(folder, config=None, vocabulary=VOCABULARY, tokenizer=None, **files):
    """Returns a folder of tokenizer files; `files` are further JSON files by name."""
    folder.mkdir(exist_ok=True)
    if vocabulary is not None:
        (folder / "vocab.txt").write_text("\n".join([*vocabulary, ""]), encoding="utf-8")
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for name, values in {"tokenizer_config": config, **files}.items():
        if values is not None:
            (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def whole(vocabulary=VOCABULARY, longest=100, **normalizer):
    """Returns tokenizer.json as the library writes it."""
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=longest)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(SIGNS)
    return json.loads(tokenizer.to_str())


def pieces_of(vocabulary, normalization, text, again=False):
    """Pieces as the model reads them, in a restored run too."""
    tokenizer = LanguageModelFolder("bert", {}, {}, vocabulary, normalization).text_tokenizer()
    if again:
        tokenizer = Tokenizer.from_json(tokenizer.to_json())
    spelled = tokenizer.pieces()
    return [spelled[number] for number in tokenizer.encode(text)]


def expect_as_library(folder, library):
    vocabulary, normalization, _ = read_tokenizer(folder)
    for text, again in itertools.product(TEXTS, (False, True)):
        expected = library.encode(text, add_special_tokens=False).tokens
        if text.startswith("[MASK]"):
            # A sign in a text is plain text here.
            expected = ["[UNK]", "[UNK]", "[UNK]", "a"]
        found = pieces_of(vocabulary, normalization, text, again)
        assert found == (expected or ["[UNK]"]), text


FLAGS = list(itertools.product((True, False), (True, False, None), (True, False)))


@pytest.mark.parametrize(("lower", "strip", "chinese"), FLAGS)
def test_options_of_vocab_txt_are_those_of_the_library(lower, strip, chinese, tmp_path):
    config = {
        "do_lower_case": lower,
        "strip_accents": strip,
        "tokenize_chinese_chars": chinese,
        "do_basic_tokenize": True,
        "never_split": None,
        "tokenizer_class": "BertTokenizer",
        "model_max_length": 512,
        "unk_token": "[UNK]",
        "mask_token": {"content": "[MASK]", "lstrip": True},
        "added_tokens_decoder": {str(i): {"content": sign} for i, sign in enumerate(SIGNS)},
    }
    folder = write(tmp_path / "bert", config, special_tokens_map={"sep_token": "[SEP]"})
    library = BertWordPieceTokenizer(
        str(folder / "vocab.txt"),
        lowercase=lower,
        strip_accents=strip,
        handle_chinese_chars=chinese,
    )
    expect_as_library(folder, library)


@pytest.mark.parametrize(("lower", "strip", "chinese"), FLAGS)
@pytest.mark.parametrize(("clean", "longest"), [(True, 100), (False, 8)])
def test_options_of_tokenizer_json_are_those_of_the_library(
    lower, strip, chinese, clean, longest, tmp_path
):
    values = whole(
        longest=longest,
        lowercase=lower,
        strip_accents=strip,
        handle_chinese_chars=chinese,
        clean_text=clean,
    )
    folder = write(tmp_path / "bert", vocabulary=None, tokenizer=values)
    expect_as_library(folder, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))


def test_the_options_make_a_difference():
    """Otherwise the comparisons with the library would be vacuous."""
    found = {
        tuple(
            tuple(pieces_of(VOCABULARY, Normalization(*flags, clean, longest), text))
            for text in TEXTS
        )
        for flags in FLAGS
        for clean, longest in ((True, 100), (False, 100), (True, 8))
    }
    # strip_accents=None is one of the others.
    assert len(found) == 2 * 2 * 2 * 3


def test_both_files_may_be_there_if_they_agree(tmp_path):
    values = whole(lowercase=False, strip_accents=None)
    folder = write(tmp_path / "bert", {"strip_accents": False}, tokenizer=values)
    vocabulary, normalization, notes = read_tokenizer(folder)
    assert (vocabulary, notes) == (VOCABULARY, [])
    # What the config leaves out is tokenizer.json's.
    assert normalization == Normalization(lower_case=False)
    values["truncation"] = {"max_length": 8, "direction": "Right", "stride": 0}
    write(folder, tokenizer=values)
    (note,) = read_tokenizer(folder)[2]
    assert "tokenizer.json: config.data.length replaces truncation" in note


def with_model(**changes):
    values = whole()
    values["model"] |= changes
    return values


def with_part(name, value):
    return whole() | {name: value}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_basic_tokenize": False}, "do_basic_tokenize is false, expected true"),
        ({"never_split": ["a"]}, r'never_split is \["a"\], expected \[\]'),
        ({"wordpieces_prefix": "@@"}, 'wordpieces_prefix is "@@", expected "##"'),
        ({"continuing_subword_prefix": ""}, 'continuing_subword_prefix is "", expected "##"'),
        ({"max_input_chars_per_word": 5}, "max_input_chars_per_word is 5, expected 100"),
        ({"unk_token": "<unk>"}, r'unk_token is "<unk>", expected "\[UNK\]"'),
        ({"mask_token": {"content": "<m>"}}, r'mask_token is "<m>", expected "\[MASK\]"'),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "tokenizer_class is .*, expected"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "which needs tokenizer.json"),
        ({"additional_special_tokens": ["<user>"]}, "has '<user>' as an added token"),
        ({"added_tokens_decoder": {"9": {"content": "<user>"}}}, "has '<user>' as an added token"),
        ({"added_tokens_decoder": {"7": {"content": "[SEP]"}}}, r"gives \[SEP\] the id 7, .* is 3"),
        ({"added_tokens_decoder": {"x": 3}}, "added_tokens_decoder has no token at"),
        ({"do_lower_case": "false"}, 'do_lower_case is "false", expected true or false'),
        ({"tokenize_chinese_chars": None}, "tokenize_chinese_chars is null, expected true or"),
        ({"do_lower_case": True, "lowercase": False}, "do_lower_case and lowercase contradict"),
        ({"word_tokenizer_type": "mecab"}, "word_tokenizer_type is .*an unknown option"),
        ({"truncation_side": "left"}, 'truncation_side is "left", expected "right"'),
    ],
)
def test_options_that_are_not_honoured_are_refused(config, message, tmp_path):
    with pytest.raises(UserError, match=f"tokenizer_config.json: .*{message}"):
        read_tokenizer(write(tmp_path / "bert", config))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (with_part("model", None), "model is null, expected an object"),
        (with_model(vocab=[1]), r"model.vocab is \[1\], expected an object"),
        (with_model(type="BPE"), 'model.type is "BPE", expected "WordPiece"'),
        (with_model(unk_token="<unk>"), r'model.unk_token is "<unk>", expected "\[UNK\]"'),
        (with_model(continuing_subword_prefix="@@"), "continuing_subword_prefix is .* expected"),
        (with_model(max_input_chars_per_word=0), "max_input_chars_per_word is 0, expected a whole"),
        (with_model(dropout=0.1), "model.dropout is an unknown option"),
        (with_model(vocab={"a": 0, "b": 2}), "the ids of model.vocab have gaps"),
        (with_model(vocab={"a": "0"}), 'model.vocab has "0" as the id of'),
        (with_part("normalizer", None), 'normalizer is null, expected "BertNormalizer"'),
        (with_part("normalizer", {"type": "NFKC"}), 'normalizer is "NFKC", expected'),
        (
            with_part("normalizer", {"type": "BertNormalizer", "lowercase": 1}),
            "normalizer.lowercase is 1, expected true or false",
        ),
        (
            with_part("normalizer", {"type": "BertNormalizer", "fold": True}),
            "normalizer.fold is an unknown option",
        ),
        (with_part("pre_tokenizer", None), 'pre_tokenizer is null, expected "BertPreTokenizer"'),
        (
            with_part("pre_tokenizer", {"type": "WhitespaceSplit"}),
            'pre_tokenizer is "WhitespaceSplit", expected "BertPreTokenizer"',
        ),
        (
            {name: part for name, part in whole().items() if name != "pre_tokenizer"},
            "pre_tokenizer is null, expected",
        ),
        (
            with_part(
                "post_processor",
                {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[PAD]", 0]},
            ),
            r'post_processor is \["\[PAD\]", "A", "\[SEP\]"\], expected',
        ),
        (
            with_part("post_processor", {"type": "RobertaProcessing"}),
            'post_processor is "RobertaProcessing", expected',
        ),
        (with_part("decoder", {"type": "ByteLevel"}), "decoder is .*expected"),
        (
            with_part("added_tokens", [{"id": 50, "content": "<user>"}]),
            "has '<user>' as an added token",
        ),
        (
            with_part("added_tokens", [{"id": 9, "content": "[SEP]"}]),
            r"id of \[SEP\] is 9 .*expected 3",
        ),
        (with_part("added_tokens", {"a": 1}), "added_tokens is .*, expected a list"),
        (with_part("sampler", {}), "sampler is an unknown part"),
        (
            with_part("truncation", {"direction": "Left"}),
            'truncation.direction is "Left", expected "Right"',
        ),
    ],
)
def test_parts_of_tokenizer_json_that_are_not_honoured_are_refused(values, message, tmp_path):
    folder = write(tmp_path / "bert", vocabulary=None, tokenizer=values)
    with pytest.raises(UserError, match=f"tokenizer.json: .*{message}"):
        read_tokenizer(folder)


def test_files_that_contradict_each_other_are_refused(tmp_path):
    for number, (config, vocabulary, values, message) in enumerate(
        (
            (
                {"do_lower_case": False},
                VOCABULARY,
                whole(lowercase=True),
                "tokenizer_config.json: do_lower_case is false, but lowercase is true in tokenizer",
            ),
            (
                {"strip_accents": False},
                VOCABULARY,
                whole(strip_accents=None),
                "strip_accents is false, but strip_accents is null in tokenizer.json",
            ),
            (
                {"tokenize_chinese_chars": False},
                None,
                whole(),
                "tokenize_chinese_chars is false, but handle_chinese_chars is true in tokenizer",
            ),
            (
                None,
                VOCABULARY[:-1],
                whole(),
                "has 24 pieces, expected the 23 pieces in vocab.txt; use",
            ),
            (
                None,
                [*VOCABULARY[:-2], "s", "'"],
                whole(),
                "has \"'\" as piece 22, expected 's' as in vocab.txt",
            ),
        )
    ):
        folder = write(tmp_path / str(number), config, vocabulary, values)
        with pytest.raises(UserError) as refused:
            read_tokenizer(folder)
        assert message in str(refused.value)
    folder = write(tmp_path / "map", special_tokens_map={"unk_token": "<unk>"})
    with pytest.raises(UserError, match=r"special_tokens_map.json: unk_token is"):
        read_tokenizer(folder)
    folder = write(tmp_path / "added", added_tokens={"<user>": 23})
    with pytest.raises(UserError, match=r"added_tokens.json: has '<user>' as an added token"):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("[PAD]\n[UNK]\ncafé\n".encode("latin-1"), r"line 3 is not UTF-8 \(byte 0xe9\)"),
        ("[PAD]\n[UNK]\n".encode("utf-16"), r"line 1 is not UTF-8 \(byte 0xff\)"),
        (b"", "the file is empty"),
        (b"\n", "line 1 is empty, expected a piece"),
        (b"[PAD]\na\nb\na\n", "line 4 repeats 'a' of line 2"),
    ],
)
def test_damaged_vocabularies_are_one_line(data, message, tmp_path):
    folder = write(tmp_path / "bert")
    (folder / "vocab.txt").write_bytes(data)
    with pytest.raises(UserError, match=f"vocab.txt: {message}") as refused:
        read_tokenizer(folder)
    assert "\n" not in str(refused.value)


def test_line_ends_and_byte_order_mark_are_no_part_of_pieces(tmp_path):
    folder = write(tmp_path / "bert")
    text = "\ufeff" + "\r\n".join(VOCABULARY)
    (folder / "vocab.txt").write_bytes(text.encode())
    assert read_tokenizer(folder)[0] == VOCABULARY


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json", "added_tokens.json"])
@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"null", b"[" * 100_000])
def test_damaged_json_is_one_line(name, data, tmp_path):
    folder = write(tmp_path / "bert")
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name}: not a JSON"):
        read_tokenizer(folder)
