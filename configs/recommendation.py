"""Recommendation: what a person takes next, by what the person and others had.

python -m launch.train --config=configs/recommendation.py:DATA,MODEL --workdir=runs/NAME

DATA is movielens_100k (if none is named) or beauty; MODEL is hybrid (if none is named),
user_neighbours, nais, acf, sasrec or bert4rec. The step that is best on validation is found first;
then the model is trained anew up to it on train and validation together, and tested.

User files of events hold user,item,timestamp[,title] or user,item,rating,timestamp in each line, or
have a header; they are CSV, TSV or JSON lines:

python -m launch.train --config=configs/recommendation.py:hybrid --workdir=runs/mine
    --config.data.path=mine.csv

Columns with other names are named, those without a header by their numbers; the time column is none
if lines are in order. With ratings, only events from min_rating on count, if it is given:

python -m launch.train --config=configs/recommendation.py:hybrid --workdir=runs/mine
    --config.data.path=mine.csv --config.data.user_column=buyer --config.data.item_column=article
    --config.data.time_column=bought --config.data.min_rating=4

With many items, tens of thousands, take the settings of beauty:

python -m launch.train --config=configs/recommendation.py:beauty,hybrid --workdir=runs/mine
    --config.data.path=mine.csv

Asked what a user of the data would take next, or whoever had these:

python -m launch.predict --workdir=runs/mine --input=user:196
python -m launch.predict --workdir=runs/mine --input="Toy Story (1995); Fargo (1996)"
"""

from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from tasks.common.errors import UserError
from tasks.recommendation.data import DataConfig
from tasks.recommendation.datasets import DATA_SETS
from tasks.recommendation.models import MODEL_CONFIGS
from tasks.recommendation.models.losses import LossConfig

# Models of counts with few weights learn in few steps, those of profiles are slow to begin.
_COUNTED = ("hybrid", "user_neighbours")
_QUICK = (*_COUNTED, "nais", "acf")


def get_config(argument: str = "movielens_100k"):
    """The config of 'DATA', 'MODEL' or 'DATA,MODEL'."""
    words = [word.strip() for word in argument.split(",")]
    data = words.pop(0) if words[0] in DATA_SETS else "movielens_100k"
    model = words.pop(0) if words else "hybrid"
    if words or model not in MODEL_CONFIGS:
        raise UserError(
            f"config: got {argument!r}, expected one of {', '.join(DATA_SETS)}, and after a comma "
            f"or alone one of {', '.join(MODEL_CONFIGS)}"
        )
    fields = {"movielens_100k": movielens_100k, "beauty": beauty}[data](model)
    return experiment(task="recommendation", name=model, **fields)


def movielens_100k(model: str):
    """943 people with 106 films each; all films are scored in each step."""
    counted = model in _COUNTED
    options = {
        "sasrec": {"dropout_rate": 0.3, "attention_dropout_rate": 0.3},
        "bert4rec": {"dropout_rate": 0.2, "attention_dropout_rate": 0.2},
    }.get(model, {})
    steps = 300 if counted else 1800 if model == "bert4rec" else 1200
    return {
        "data": DataConfig(max_length=128),
        "model": MODEL_CONFIGS[model](**options),
        "optimizer": OptimizerConfig(
            learning_rate=3e-3 if model in _QUICK else 1e-3,
            warmup_steps=30,
            final_fraction=0.05,
            weight_decay=0.01,
        ),
        "training": TrainingConfig(
            steps=steps,
            batch_size=16 if counted else 32,
            evaluation_batch_size=64,
            evaluate_every=steps // 6,
            log_every=steps // 12,
            refit=True,
        ),
    }


def beauty(model: str):
    """40,226 people with 9 articles each of 54,542; what is learned is told from a few of them."""
    counted = model in _COUNTED
    sampled = {"objective": LossConfig("gbce")}
    options = {
        "sasrec": sampled,
        "bert4rec": sampled,
        "acf": sampled,
        "user_neighbours": {"neighbours": 50},
        # The ridge's matrix takes 400 MB; neighbours, the slowest part, are left out.
        "hybrid": {"ridge_items": 10_000, "cooccurrence_window": 20, "neighbours": 0},
    }.get(model, {})
    steps = 300 if counted else 1500
    return {
        "data": DataConfig(name="beauty", max_length=20 if counted else 50),
        "model": MODEL_CONFIGS[model](**options),
        "optimizer": OptimizerConfig(
            learning_rate=3e-3 if counted else 1e-3, warmup_steps=50, final_fraction=0.05
        ),
        # All articles are scored for everybody: an evaluation takes as long as many steps.
        "training": TrainingConfig(
            steps=steps,
            batch_size=64 if counted else 256,
            evaluation_batch_size=128,
            evaluate_every=steps // 3,
            log_every=steps // 30,
            refit=True,
        ),
    }
