"""Exported text classifiers in transformers: the same logits for the same texts."""

import numpy as np
import pytest

import launch
from launch.export_weights import export
from launch.import_weights import _experiment, _write_run
from launch.runs import directory
from tasks.common.huggingface.files import read_folder
from tests.oracles.test_imported_roberta import LAYOUTS, model_folder

pytestmark = pytest.mark.oracle

LABELS = ("bad", "good")
# Accents, an unknown character, white space, and a text that is truncated.
TEXTS = [
    "a good film",
    "Ein schlechter FILM, très mauvais!",
    "\u4e00 \tgood\n",
    "a bad film " * 9,
]
SIZES = {
    "model_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "feedforward_size": 24,
}
TRAINING = {"steps": 3, "batch_size": 4, "evaluate_every": 3, "log_every": 3}


CLASSES = {
    "wordpiece": "BertForSequenceClassification",
    "bpe": "BertForSequenceClassification",
    "tokenizer.json": "RobertaForSequenceClassification",
    "unigram": "XLMRobertaForSequenceClassification",
}


@pytest.fixture(scope="module", params=CLASSES)
def trained(request, tmp_path_factory):
    """Returns a classifier that was fine-tuned from a masked language model, and its directory."""
    folder = tmp_path_factory.mktemp(request.param)
    rows = [f"a {word} Film tr\u00e8s {n}" for n in range(40) for word in LABELS]
    (folder / "texts.txt").write_text("\n".join(rows), encoding="utf-8")
    lines = ["text,label", *(f"{row},{row.split()[1]}" for row in rows)]
    (folder / "texts.csv").write_text("\n".join(lines), encoding="utf-8")
    paths = {"cache_dir": folder / "cache", "data_dir": folder / "data"}
    if request.param in LAYOUTS:
        (folder / "files").mkdir()
        model_folder(folder / "files", request.param)
        saved = read_folder(folder / "files")
        _write_run(saved, _experiment(saved, folder / "files"), folder / "masked")
    else:
        text = {"tokenizer": request.param, "vocabulary_size": 300, "min_count": 1}
        config = launch.config(
            f"language_modeling:path:{folder / 'texts.txt'},bert",
            {"data": {"text": text, "length": 20}, "model": SIZES, "training": TRAINING},
        )
        launch.train(config, folder / "masked", baselines=False, **paths)
    config = launch.config(
        f"text_classification:movie_reviews,from:{folder / 'masked'}",
        {
            "data": {"name": "", "train_file": str(folder / "texts.csv"), "text.max_length": 12},
            "training": TRAINING,
        },
    )
    assert config.model.pooling == "bert"
    run = launch.train(config, folder / "run", baselines=False, **paths)
    return run, folder / "run", CLASSES[request.param]


def test_logits_are_equal(trained, tmp_path):
    import torch
    import transformers

    run, folder, name = trained
    export(run.config, folder, tmp_path / "exported")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert type(model).__name__ == name
    assert model.config.id2label == dict(enumerate(LABELS))
    encoded = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model.eval()(**encoded).logits.numpy()
    examples = directory.restored_task(run.config, folder).processor.encode(TEXTS)
    for index, row in enumerate(theirs):
        example = examples[index]
        ours = run.model(example["tokens"][None], example["length"][None])[0]
        np.testing.assert_allclose(ours, row, rtol=1e-5, atol=1e-5)
