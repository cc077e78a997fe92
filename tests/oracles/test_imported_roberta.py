"""RoBERTa and XLM-RoBERTa of transformers, imported and exported: the same ids and logits."""

import json

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.common.huggingface.files import read_folder, write_folder
from tasks.language_modeling.model import LanguageModel, LanguageModelConfig
from tasks.language_modeling.processor import mask_inputs

pytestmark = pytest.mark.oracle

# Accents, emoji, non-Latin scripts, several spaces, other white space, contractions, no text.
TEXTS = [
    "a good film",
    "Tr\u00e8s  bon   film, d\u00e9j\u00e0 vu\u0301!",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 good",
    "\u4e00\u4e8c \u043f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627 \u0e2a",
    " \t leading\nand trailing \u00a0 ",
    "it's we'll DON'T 123,456.78 -- <b>",
    " ".join(map(str, range(40))),
    "",
]
HIDDEN = 32
# Layouts of the files: as transformers writes them, and as in the first checkpoints.
LAYOUTS = ("tokenizer.json", "vocab.json", "add_prefix_space", "unigram")
TRAINING = [*TEXTS[:4], "the film was good and the actors were bad", "films acting goodness"]


def tokenizer_of(folder, layout):
    """Returns a tokenizer trained on a small text, and writes its files to a folder."""
    import tokenizers
    import transformers

    mask = transformers.AddedToken("<mask>", lstrip=True, special=True, normalized=False)
    if layout == "unigram":
        tokenizer = transformers.XLMRobertaTokenizer(vocab=unigrams(), mask_token=mask)
        # Instead of the map of characters of SentencePiece.
        tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.NFKC()
        tokenizer.save_pretrained(folder)
        return tokenizer
    trained = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    options = {"vocab_size": 330, "min_frequency": 2, "special_tokens": special}
    trained.train_from_iterator(TRAINING * 3, **options)
    trained.save_model(str(folder))
    path = folder / "vocab.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))
    vocabulary["<mask>"] = len(vocabulary)
    path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    merges = [tuple(line.split(" ")) for line in lines_of(folder / "merges.txt")]
    tokenizer = transformers.RobertaTokenizer(
        vocab=vocabulary,
        merges=merges,
        mask_token=mask,
        add_prefix_space=layout == "add_prefix_space",
    )
    if layout != "vocab.json":
        for path in folder.iterdir():
            path.unlink()
        tokenizer.save_pretrained(folder)
    return tokenizer


def unigrams():
    """Returns pieces and scores: characters, and the beginnings of words."""
    words = [f"\u2581{word}" for text in TRAINING for word in text.split()]
    pieces = {word[:length] for word in words for length in (1, 2, 3, 5, 8)}
    pieces |= {character for word in words for character in word} | {"<", "s", ">"}
    rng = np.random.default_rng(0)
    # Few digits, which the library reads exactly.
    scores = [round(float(score), 3) for score in -rng.uniform(2, 9, len(pieces))]
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    return [*special, *zip(sorted(pieces), scores, strict=True)]


def lines_of(path):
    """Returns the merges of merges.txt."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line for line in lines if line and not line.startswith("#version")]


def model_folder(folder, layout):
    """Writes a random model for masked tokens to a folder; returns its tokenizer and the model."""
    import torch
    import transformers

    tokenizer = tokenizer_of(folder, layout)
    torch.manual_seed(0)
    name = "XLMRoberta" if layout == "unigram" else "Roberta"
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=66,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.3,
    )
    model = getattr(transformers, f"{name}ForMaskedLM")(config).eval()
    for parameter in model.parameters():
        # Biases are initialized by 0, scales by 1.
        parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return tokenizer, model


@pytest.fixture(scope="module", params=LAYOUTS)
def imported(request, tmp_path_factory):
    """Returns transformers' tokenizer and model, and what is read from their folder."""
    folder = tmp_path_factory.mktemp("roberta")
    tokenizer, model = model_folder(folder, request.param)
    return tokenizer, model, read_folder(folder)


def model_of(saved):
    """Returns the language model with the parameters of a folder."""
    config = LanguageModelConfig(**saved.model)
    model = LanguageModel(config, len(saved.vocabulary), rngs=nnx.Rngs(0))
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        leaf[...] = saved.params["/".join(map(str, path))]
    return model


def expect_equal_ids(tokenizer, saved, text):
    """Compares ids without special tokens; a text without ids is an unknown token here."""
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    ours = saved.text_tokenizer().with_max_length(10**6).encode(text)
    unknown = saved.vocabulary.index(saved.special_tokens[1])
    assert saved.order[ours].tolist() == (expected or [unknown]), text


def test_ids_are_equal(imported):
    tokenizer, _, saved = imported
    for text in TEXTS:
        expect_equal_ids(tokenizer, saved, text)


def test_ids_of_any_text_are_equal(imported):
    tokenizer, _, saved = imported
    characters = st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \t\n'sdtfilm\u00e9")

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(st.text(characters, min_size=1, max_size=40))
    def check(text):
        # Special tokens in a text are plain text here.
        if not any(token in text for token in saved.special_tokens):
            expect_equal_ids(tokenizer, saved, text)

    check()


def test_ids_around_masks_are_equal(imported):
    tokenizer, _, saved = imported
    _, _, begin, mask, end = (saved.vocabulary.index(token) for token in saved.special_tokens)
    ours = saved.text_tokenizer()
    for text in ("the [MASK] was good", "[MASK] [MASK]  [MASK]!", "a[MASK]b", "x [MASK]"):
        parts = [saved.order[ids].tolist() for ids in mask_inputs(ours, text)]
        joined = [begin, *parts[0]]
        for part in parts[1:]:
            joined += [mask, *part]
        assert tokenizer(text.replace("[MASK]", "<mask>"))["input_ids"] == [*joined, end], text


def test_logits_are_equal(imported):
    import torch

    tokenizer, model, saved = imported
    encoded = tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**encoded).logits.numpy()
    tokens = np.argsort(saved.order)[encoded["input_ids"].numpy()].astype(np.int32)
    lengths = encoded["attention_mask"].sum(1).numpy()
    assert lengths.max() == 64
    ours = model_of(saved)
    logits = np.asarray(ours.logits(ours(tokens, lengths)))[..., np.argsort(saved.order)]
    for row, expected, length in zip(logits, theirs, lengths, strict=True):
        np.testing.assert_allclose(row[:length], expected[:length], rtol=1e-5, atol=1e-5)


def test_written_folder_is_the_same_model(imported, tmp_path):
    import torch
    import transformers

    tokenizer, model, saved = imported
    write_folder(tmp_path / "to", saved)
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "to")
    assert type(again) is type(model)
    state = model.state_dict()
    assert again.state_dict().keys() == state.keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "to")
    if saved.kind == "roberta":
        assert type(loaded) is type(tokenizer)
    for text in (*TEXTS, "the <mask> was good", "a  <mask>."):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"], text
        pair = loaded(text, "a film")["input_ids"]
        assert pair == tokenizer(text, "a film")["input_ids"], text
    read = read_folder(tmp_path / "to")
    assert (read.vocabulary, read.normalization) == (saved.vocabulary, saved.normalization)
    if saved.kind == "xlm-roberta":
        return
    # Without tokenizer.json, from vocab.json and merges.txt.
    (tmp_path / "to" / "tokenizer.json").unlink()
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "to")
    for text in (*TEXTS, "the <mask> was good"):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"], text
