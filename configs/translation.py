"""Translation of sentences.

python -m launch.train --config=configs/translation.py:DATA,MODEL --workdir=runs/NAME

DATA is multi30k (if none is named) or bible_en_es; MODEL is transformer (if none is named), long
(the published recipe, for an accelerator), rnn, or rnn(ALIGNMENT) with an alignment of
`attention.registry`: "rnn(location_aware(width=5))"; "rnn(none)" is the control with one fixed
vector; --config.model.cell=lstm and --config.model.temporal_attention=4 (heads) change more. On
multi30k and 2 cores lower-case tokenised BLEU4 is 39.1 of the Transformer in under half an hour,
34.4 of rnn(additive) in a quarter, and 19.6 of rnn(none) in ten minutes; 41.02 is published for a
Transformer of this size. The other way round:

python -m launch.train --config=configs/translation.py --workdir=runs/german
    --config.data.source=de --config.data.target=en

One's own pairs of files, mine/train.en and mine/train.fr:

python -m launch.train --config=configs/translation.py --workdir=runs/mine
    --config.data.path=mine --config.data.source=en --config.data.target=fr
"""

import re

from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from tasks.common.decoding.generate import DecodingConfig
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import TextConfig
from tasks.translation.data import DataConfig
from tasks.translation.model import RecurrentConfig, TransformerConfig

LANGUAGES = {"multi30k": ("en", "de"), "bible_en_es": ("en", "es")}
_RECURRENT = re.compile(r"rnn(?:\((.*)\))?")


def get_config(argument: str = "multi30k"):
    """The config of 'DATA', 'DATA,MODEL' or 'MODEL'."""
    data, _, model = argument.partition(",")
    if data not in LANGUAGES:
        data, model = "multi30k", argument
    model = model or "transformer"
    recurrent = _RECURRENT.fullmatch(model)
    if recurrent is None and model not in ("transformer", "long"):
        raise UserError(
            f"config: no model {model!r}; there are transformer, long, rnn and rnn(ALIGNMENT), "
            f"after one of {', '.join(LANGUAGES)} and a comma, or alone"
        )
    try:
        fields = (
            rnn(recurrent[1] or "additive")
            if recurrent
            else {"transformer": transformer, "long": long}[model]()
        )
    except ValueError as error:
        raise UserError(f"config: {error}") from None
    # Half of a recurrent step's time is the words' logits.
    vocabulary = 5_000 if recurrent else 10_000
    return experiment(task="translation", data=_data(data, vocabulary), **fields)


def _data(name: str, vocabulary: int):
    source, target = LANGUAGES[name]
    longest = {"multi30k": 64, "bible_en_es": 96}[name]
    text = TextConfig(tokenizer="bpe", vocabulary_size=vocabulary, max_length=longest)
    return DataConfig(name=name, source=source, target=target, text=text)


def transformer():
    """Four layers each way, small enough for a CPU."""
    return {
        "name": "transformer",
        "model": TransformerConfig(dropout_rate=0.15),
        "optimizer": OptimizerConfig(
            learning_rate=3e-3,
            schedule="inverse_sqrt",
            warmup_steps=600,
            beta2=0.98,
            average_decay=0.995,
        ),
        "training": TrainingConfig(
            steps=3000,
            batch_size=128,
            evaluation_batch_size=128,
            evaluate_every=500,
            log_every=25,
        ),
    }


def long():
    """The recipe of Wu et al. 2021, whose Transformer of these sizes has 41.02; post-norm."""
    return {
        "name": "transformer_long",
        "model": TransformerConfig(
            norm="post",
            dropout_rate=0.3,
            decoding=DecodingConfig(method="beam", beam_size=5, length_penalty=0.8),
        ),
        "optimizer": OptimizerConfig(
            learning_rate=5e-3,
            schedule="inverse_sqrt",
            warmup_steps=2000,
            beta2=0.98,
            average_decay=0.999,
        ),
        "training": TrainingConfig(
            steps=12_000,
            batch_size=320,
            evaluation_batch_size=256,
            evaluate_every=500,
            log_every=50,
        ),
    }


def rnn(alignment: str):
    """A bidirectional GRU and a GRU that looks at its states."""
    words = re.findall(r"\w+(?:\.\w+)?", alignment)
    return {
        "name": "_".join(["rnn", *words]),
        "model": RecurrentConfig(alignment=alignment, dropout_rate=0.2),
        "optimizer": OptimizerConfig(
            learning_rate=2e-3,
            warmup_steps=200,
            final_fraction=0.05,
            average_decay=0.99,
        ),
        "training": TrainingConfig(
            steps=1800,
            batch_size=128,
            evaluation_batch_size=128,
            evaluate_every=300,
            log_every=25,
        ),
    }
