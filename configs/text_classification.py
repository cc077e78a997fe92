"""Text classification by attention.

python -m launch.train --config=configs/text_classification.py:DATA,MODEL --workdir=runs/NAME

DATA is movie_reviews, sst2, newsgroups20, reuters_r8, spam_assassin or tfds:NAME; MODEL is
transformer (if none is named), attention_pooling or bigru. See RESULTS.md for what to expect.
One's own file, with its columns:

python -m launch.train --config=configs/text_classification.py --workdir=runs/mine
    --config.data.train_file=my.csv --config.data.text_column=review --config.data.label_column=stars
"""

from tasks.text_classification.data import DataConfig

from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from tasks.common.errors import UserError
from tasks.common.text import TextConfig
from tasks.text_classification.model import (
    MODEL_CONFIGS,
    AttentionPoolingConfig,
    BiGRUConfig,
    TransformerConfig,
)

LONG = ("newsgroups20", "reuters_r8", "spam_assassin")


def get_config(argument: str = "movie_reviews"):
    """The config of 'DATA' or 'DATA,MODEL'."""
    data, _, model = argument.partition(",")
    model = model or "transformer"
    if model not in MODEL_CONFIGS:
        raise UserError(f"config: no model {model!r}; there are {', '.join(MODEL_CONFIGS)}")
    recipe = {
        "attention_pooling": attention_pooling,
        "transformer": transformer,
        "bigru": bigru,
    }[model]
    return experiment(task="text_classification", name=model, **recipe(data, data in LONG))


def attention_pooling(data: str, long: bool):
    """Attention pooling over embeddings of words, word pairs and character n-grams."""
    return {
        "data": DataConfig(
            name=data,
            text=TextConfig(
                ngrams=2,
                character_ngrams=() if long else (3, 5),
                unique=True,
                vocabulary_size=200_000,
                character_vocabulary_size=100_000,
                min_count=2,
                max_length=1024,
            ),
        ),
        "model": AttentionPoolingConfig(),
        "optimizer": OptimizerConfig(learning_rate=1e-3, beta2=0.99),
        "training": TrainingConfig(steps=800, batch_size=64, evaluate_every=100, log_every=25),
    }


def transformer(data: str, long: bool):
    """A small pre-norm Transformer encoder over words."""
    return {
        "data": DataConfig(
            name=data,
            text=TextConfig(vocabulary_size=20_000, max_length=256 if long else 64),
        ),
        "model": TransformerConfig(model_size=64, num_layers=1, feedforward_size=256),
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=50, weight_decay=0.05),
        "training": TrainingConfig(steps=800, evaluate_every=100, log_every=25),
    }


def bigru(data: str, long: bool):
    """A bidirectional GRU over words, and attention over its states."""
    return {
        "data": DataConfig(
            name=data,
            text=TextConfig(vocabulary_size=20_000, max_length=256 if long else 64),
        ),
        "model": BiGRUConfig(),
        "optimizer": OptimizerConfig(learning_rate=2e-3, warmup_steps=50),
        "training": TrainingConfig(steps=800, evaluate_every=100, log_every=25),
    }
