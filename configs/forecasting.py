"""Forecasting of series with several channels.

python -m launch.train --config=configs/forecasting.py:DATA,MODEL,HORIZON,HEAD --workdir=runs/NAME

DATA is etth1 (if none is named), exchange_rate, appliance_energy or trend; MODEL is one of
`tasks.forecasting.models`; HORIZON is a number of steps ahead (96 if none is named); HEAD is point
(if none is named), median, quantile or student_t. Words may be left out: `:etth1,patchtst`, `:192`.

One's own CSV with a column of times and columns of numbers:

python -m launch.train --config=configs/forecasting.py:lag,24 --workdir=runs/mine
    --config.data.path=mine.csv --config.data.lookback=168

Forecasts from the end of a file, the horizon or more steps ahead, as CSV or JSON, and drawn:

python -m launch.predict --workdir=runs/mine --input=new.csv,steps=100 --pictures=drawn

The error under Gaussian noise on what is looked back at, of the model and of the baselines:
--config.data.noise="(0.1, 0.2, 0.3, 0.4, 0.5)".
"""

from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from tasks.common.errors import UserError
from tasks.forecasting.data import DataConfig
from tasks.forecasting.datasets import DATA_SETS
from tasks.forecasting.heads import HEADS
from tasks.forecasting.models import MODEL_CONFIGS

# Two weeks of hours, about a year of working days, five days of ten minutes, four days of hours.
LOOKBACKS = {"etth1": 336, "exchange_rate": 336, "appliance_energy": 720, "trend": 96}


def get_config(argument: str = "etth1,ridge_residual"):
    """The config of 'DATA,MODEL,HORIZON,HEAD', words of which may be left out."""
    chosen = {"data": "etth1", "model": "lag", "horizon": 96, "head": "point"}
    kinds = {"data": DATA_SETS, "model": MODEL_CONFIGS, "head": HEADS}
    for word in filter(None, (word.strip() for word in argument.split(","))):
        kind = next((kind for kind, known in kinds.items() if word in known), None)
        if kind is None and not word.isdecimal():
            known = ", ".join(name for names in kinds.values() for name in names)
            raise UserError(f"config: {word!r} is none of {known}, or a horizon")
        chosen[kind or "horizon"] = int(word) if kind is None else word
    try:
        data = DataConfig(
            name=chosen["data"],
            lookback=LOOKBACKS[chosen["data"]],
            horizon=chosen["horizon"],
        )
        model = MODEL_CONFIGS[chosen["model"]](head=chosen["head"])
    except ValueError as error:
        raise UserError(f"config: {error}") from None
    name = "_".join([model.name, *[model.head] * (model.head != "point")])
    return experiment(
        task="forecasting", name=name, data=data, model=model, **training(model, data)
    )


def training(model, data):
    """How long, and with which steps."""
    return {
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=20),
        "training": TrainingConfig(
            steps=600,
            batch_size=128,
            evaluation_batch_size=256,
            evaluate_every=100,
            log_every=25,
        ),
    }
