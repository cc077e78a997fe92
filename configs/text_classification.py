"""Text classification.

python -m launch.train --config=configs/text_classification.py:DATA,MODEL --workdir=runs/NAME

DATA is movie_reviews, sst2, newsgroups20, reuters_r8, spam_assassin, tfds:NAME or own. MODEL is
transformer (the default), attention_pooling, bigru, pretrained or from:RUN. RESULTS.md has the
results. `pretrained` starts from runs/DATA_masked, a masked language model of the training texts
only. `from:RUN` starts from any run of language_modeling and has the sizes of that run:

python -m launch.train --config=configs/language_modeling.py:DATA --workdir=runs/DATA_masked
python -m launch.train --config=configs/text_classification.py:DATA,pretrained --workdir=runs/NAME

On movie_reviews, pre-training gives .775 ± .003 test accuracy, against .749 ± .006 from scratch; on
sst2 .785 ± .009 against .767 ± .012. NB-SVM on n-grams is better (.807 and .826).

python -m launch.import_weights --from=bert-base-uncased --workdir=runs/bert
python -m launch.train --config=configs/text_classification.py:DATA,from:runs/bert
    --workdir=runs/NAME

Your own texts: a table, or three tables for train, validation and test, and the names of their
columns:

python -m launch.train --config=configs/text_classification.py:own,attention_pooling
    --data=my.csv --text=review --label=stars --workdir=runs/mine

Each class has the same fraction of examples in validation and test as in the file. --group=COLUMN
keeps all rows of a group, such as a document, in one split. For rare classes:
--config.model.class_weights=balanced.
"""

import dataclasses
from pathlib import Path

from launch.engine.arguments import check_argument
from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from launch.runs.directory import saved_config
from tasks.common.data.user_files import OWN, UNSET
from tasks.common.datasets.labelled_texts import DEFINITIONS
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import TextConfig
from tasks.text_classification.data import DataConfig
from tasks.text_classification.model import AttentionPoolingConfig, BiGRUConfig, TransformerConfig

FROM = "from:"
# Data sets of long texts. Settings that differ by data set were chosen on the validation split.
LONG = ("newsgroups20", "reuters_r8", "spam_assassin")
_TFIDF = {"prior": "tfidf", "prior_scale": 2.0}


def get_config(argument: str = "movie_reviews"):
    """Returns the config of 'DATA' or 'DATA,MODEL'."""
    data, _, model = argument.partition(",")
    recipes = {
        "transformer": transformer,
        "attention_pooling": attention_pooling,
        "bigru": bigru,
        "pretrained": pretrained,
    }
    names = {"DATA": (*DEFINITIONS, OWN), "MODEL": recipes}
    check_argument(argument, names, required=True)
    model = model or "transformer"
    if model.startswith(FROM):
        fields = fine_tuned(data, model.removeprefix(FROM))
        return experiment(task="text_classification", name="fine_tuned", **fields)
    if model not in recipes:
        known = ", ".join([*recipes, f"{FROM}RUN"])
        raise UserError(f"config: model: got {model!r}, expected one of {known}")
    return experiment(task="text_classification", name=model, **recipes[model](data))


def _source(data: str) -> dict:
    if data == OWN:
        return {"name": OWN, "train_file": UNSET, "stratify": True}
    return {"name": data}


def attention_pooling(data: str):
    """Returns the settings of attention pooling over word n-grams.

    For data sets of short texts, there are also character n-grams.
    """
    if data not in LONG:
        return {
            "data": DataConfig(
                **_source(data),
                text=TextConfig(
                    ngrams=2,
                    character_ngrams=(3, 5),
                    unique=True,
                    vocabulary_size=100_000,
                    character_vocabulary_size=100_000,
                    max_length=512,
                ),
            ),
            "model": AttentionPoolingConfig(
                **(_TFIDF if data == "sst2" else {"prior": "naive_bayes"})
            ),
            "optimizer": OptimizerConfig(
                learning_rate=1e-3, beta2=0.99, final_fraction=0.02, average_decay=0.99
            ),
            "training": TrainingConfig(steps=1000, batch_size=32, evaluate_every=125, log_every=25),
        }
    sizes = {
        "newsgroups20": {"vocabulary_size": 400_000, "max_length": 1024, "unique": True},
        "reuters_r8": {"vocabulary_size": 100_000, "max_length": 2048},
        "spam_assassin": {"vocabulary_size": 200_000, "max_length": 1024, "unique": True},
    }[data]
    reuters, newsgroups = data == "reuters_r8", data == "newsgroups20"
    return {
        "data": DataConfig(**_source(data), text=TextConfig(ngrams=2, **sizes)),
        "model": AttentionPoolingConfig(
            embedding_size=32 if reuters else 64,
            token_dropout_rate=0.3 if reuters else 0.5,
            dropout_rate=0.5 if data == "spam_assassin" else 0.3,
            **(_TFIDF if newsgroups else {}),
        ),
        "optimizer": OptimizerConfig(
            learning_rate=4e-3 if reuters else 2e-3,
            beta2=0.99,
            final_fraction=0.02,
            average_decay=0.99,
        ),
        "training": TrainingConfig(
            steps=900 if reuters else 400,
            batch_size=32 if reuters else 64,
            evaluate_every=50 if newsgroups else 100,
            log_every=25,
        ),
    }


def _longest(data: str) -> int:
    return 256 if data in (*LONG, OWN) else 64


def _words(data: str) -> TextConfig:
    return TextConfig(vocabulary_size=20_000, max_length=_longest(data))


def transformer(data: str):
    """Returns the settings of a small pre-norm Transformer encoder over words."""
    return {
        "data": DataConfig(**_source(data), text=_words(data)),
        "model": TransformerConfig(
            model_size=64,
            num_layers=1,
            feedforward_size=128,
            dropout_rate=0.2,
            token_dropout_rate=0.2,
            head_dropout_rate=0.3,
            prior="naive_bayes",
            prior_scale=1.0,
        ),
        "optimizer": OptimizerConfig(
            learning_rate=5e-4, warmup_steps=50, weight_decay=0.05, average_decay=0.99
        ),
        "training": TrainingConfig(steps=800, evaluate_every=100, log_every=25),
    }


def bigru(data: str):
    """Returns the settings of a bidirectional GRU over words with attention over its states."""
    return {
        "data": DataConfig(**_source(data), text=_words(data)),
        "model": BiGRUConfig(prior="naive_bayes"),
        "optimizer": OptimizerConfig(learning_rate=2e-3, warmup_steps=50, average_decay=0.99),
        "training": TrainingConfig(steps=800, evaluate_every=100, log_every=25),
    }


def pretrained(data: str):
    """Returns the settings for fine-tuning runs/DATA_masked.

    init_from="" trains the same model from scratch.
    """
    return {
        "data": DataConfig(
            **_source(data),
            text=TextConfig(tokenizer="wordpiece", vocabulary_size=8000, max_length=64),
        ),
        "model": TransformerConfig(
            model_size=128,
            num_layers=2,
            num_heads=4,
            feedforward_size=512,
            positions="learned",
            max_length=64,
            token_dropout_rate=0.1,
            head_dropout_rate=0.3,
            init_from=f"runs/{data}_masked",
        ),
        "optimizer": OptimizerConfig(
            learning_rate=3e-4, warmup_steps=50, weight_decay=0.05, average_decay=0.99
        ),
        "training": TrainingConfig(steps=800, evaluate_every=100, log_every=25),
    }


def fine_tuned(data: str, folder: str):
    """Returns the settings for fine-tuning the encoder of a language modeling run."""
    try:
        saved = saved_config(Path(folder).expanduser())
    except UserError as error:
        raise UserError(f"config: {FROM}{str(error).removeprefix('--workdir=')}") from None
    if saved.task != "language_modeling":
        raise UserError(
            f"config: {FROM}{folder}: got a run of {saved.task}, expected a run of "
            f"language_modeling"
        )
    # A BERT reads texts between [CLS] and [SEP]. Other language models may have [CLS] at the first
    # position, which the classifier skips.
    is_bert = (saved.model.objective, saved.model.norm, saved.model.input_norm) == (
        "masked", "post", True,
    )  # fmt: skip
    around = 2 if is_bert else 1
    longest = min(_longest(data), saved.model.max_length - around)
    fields = pretrained(data)
    return {
        **fields,
        "data": DataConfig(
            **_source(data), text=dataclasses.replace(saved.data.text, max_length=longest)
        ),
        "model": TransformerConfig.of(
            saved.model,
            max_length=longest + (around if is_bert else 0),
            head_dropout_rate=0.3,
            init_from=folder,
            **({"pooling": "bert"} if is_bert else {}),
        ),
        # The learning rate of Devlin et al. 2019 is too small for a small encoder.
        "optimizer": dataclasses.replace(
            fields["optimizer"], learning_rate=3e-4 if saved.model.model_size < 512 else 5e-5
        ),
    }
