"""Recommendation of the next item from the events of all users.

python -m launch.train --config=configs/recommendation.py:DATA,MODEL --workdir=runs/NAME

DATA is movielens_100k (the default), beauty, beauty_5core or own. MODEL is hybrid (the default),
user_neighbours, nais, acf, sasrec or bert4rec. The best step is selected on the validation split.
The model is then trained again up to this step on the training and validation splits, and tested.
The baselines are fitted on both splits, too. Published results on beauty_5core are of models that
were trained on the training split alone. To compare with them set --config.training.refit=False,
which also excludes the validation split from the fit of the baselines.

Your own events (CSV, TSV or JSON lines) have a header, or lines of user,item,timestamp[,title] or
user,item,rating,timestamp:

python -m launch.train --config=configs/recommendation.py:own,hybrid --data=mine.csv
    --workdir=runs/mine

Set the columns by name, or by number if there is no header. Set the time column to none if the
lines are in order. With min_rating, events with lower ratings are dropped:

python -m launch.train --config=configs/recommendation.py:own,hybrid --data=mine.csv --user=buyer
    --item=article --time=bought --config.data.min_rating=4 --workdir=runs/mine

For tens of thousands of items use the settings of beauty:

python -m launch.train --config=configs/recommendation.py:beauty,hybrid --data=mine.csv
    --workdir=runs/mine

Predictions for a user of the data, and for a list of items:

python -m launch.predict --workdir=runs/mine --input=user:196
python -m launch.predict --workdir=runs/mine --input="Toy Story (1995); Fargo (1996)"
"""

import dataclasses

from launch.engine.arguments import check_argument
from launch.engine.config import TrainingConfig, did_you_mean, experiment
from launch.engine.optimizers import OptimizerConfig
from tasks.common.data.user_files import OWN, UNSET
from tasks.common.errors import UserError
from tasks.recommendation.data import DataConfig
from tasks.recommendation.datasets import DATA_SETS
from tasks.recommendation.models import MODEL_CONFIGS
from tasks.recommendation.models.losses import LossConfig

# Models that score by co-occurrence counts have few parameters and train in few steps.
_COUNTED = ("hybrid", "user_neighbours")
_QUICK = (*_COUNTED, "nais", "acf")


def get_config(argument: str = "movielens_100k"):
    """Returns the config of 'DATA', 'MODEL' or 'DATA,MODEL'."""
    known = (*DATA_SETS, OWN)
    check_argument(argument, {"DATA": known, "MODEL": MODEL_CONFIGS})
    words = [word.strip() for word in argument.split(",")]
    data = words.pop(0) if words[0] in known else "movielens_100k"
    model = words.pop(0) if words else "hybrid"
    if words or model not in MODEL_CONFIGS:
        raise UserError(
            f"config: got {argument!r}, expected [DATA,]MODEL with DATA one of "
            f"{', '.join(known)} and MODEL one of {', '.join(MODEL_CONFIGS)}"
            f"{did_you_mean(words[0] if words else model, [*known, *MODEL_CONFIGS])}"
        )
    settings = {
        "movielens_100k": movielens_100k,
        "beauty": beauty,
        "beauty_5core": beauty_5core,
        OWN: own,
    }
    fields = settings[data](model)
    return experiment(task="recommendation", name=model, **fields)


def _training(steps: int, batch_size: int, evaluated: int, *, evaluations: int, lines: int):
    return TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        evaluation_batch_size=evaluated,
        evaluate_every=steps // evaluations,
        log_every=steps // lines,
        refit=True,
    )


def movielens_100k(model: str):
    """Returns the settings for 943 users with 106 films on average. Each step scores all films."""
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
        "training": _training(steps, 16 if counted else 32, 64, evaluations=6, lines=12),
    }


def beauty(model: str):
    """Returns the settings for 40,226 users with, on average, 9 of 54,542 articles."""
    counted = model in _COUNTED
    sampled = {"objective": LossConfig("gbce")}
    options = {
        "sasrec": sampled,
        "bert4rec": sampled,
        "acf": sampled,
        "user_neighbours": {"neighbours": 50},
        # The ridge matrix takes 400 MB. The term of similar users is the slowest and is left out.
        "hybrid": {"ridge_items": 10_000, "cooccurrence_window": 20, "neighbours": 0},
    }.get(model, {})
    steps = 300 if counted else 1500
    return {
        "data": DataConfig(name="beauty", max_length=20 if counted else 50),
        "model": MODEL_CONFIGS[model](**options),
        "optimizer": OptimizerConfig(
            learning_rate=3e-3 if counted else 1e-3, warmup_steps=50, final_fraction=0.05
        ),
        # An evaluation scores all articles for all users and takes as long as many steps.
        "training": _training(steps, 64 if counted else 256, 128, evaluations=3, lines=30),
    }


def beauty_5core(model: str):
    """Returns the settings for 22,363 users with, on average, 9 of 12,101 articles.

    Transformers score all articles in each step, which is most of the gain over binary
    cross-entropy with sampled articles (Klenitskiy & Vasilev 2023).
    """
    fields = beauty(model)
    changed = {"data": dataclasses.replace(fields["data"], name="beauty_5core")}
    if model in ("sasrec", "bert4rec"):
        changed |= {
            "data": DataConfig(name="beauty_5core", max_length=50, bucketed=True),
            "model": MODEL_CONFIGS[model](
                model_size=128, dropout_rate=0.5, attention_dropout_rate=0.5
            ),
            "optimizer": OptimizerConfig(
                learning_rate=1e-3, warmup_steps=100, final_fraction=0.05, weight_decay=0.01
            ),
            "training": _training(5000, 128, 128, evaluations=10, lines=100),
        }
    return fields | changed


def own(model: str):
    """Returns the settings of `movielens_100k` for user data."""
    fields = movielens_100k(model)
    return {**fields, "data": dataclasses.replace(fields["data"], name=OWN, path=UNSET)}
