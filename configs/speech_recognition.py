"""Speech recognition.

python -m launch.train --config=configs/speech_recognition.py:DATA,ENCODER,DECODER
    --workdir=runs/NAME

DATA is spoken_digit_strings (the default: three to seven digits, joined from recordings of single
digits, tested on a held-out speaker), spoken_digits, prompts_en, prompts_es, prompts_fr or own.
ENCODER is conformer (the default), transformer or pyramid (GRUs, as in Listen, Attend and Spell).
DECODER is joint (the default), which combines CTC and location-aware attention; ctc;
transformer_decoder; or an alignment of `attention.registry` with its options: "additive",
"location_aware", "multi_head(num_heads=4)", or "none", the control with one fixed context vector.
For digit strings "location_aware" has wider filters than by default. RESULTS.md has the results.

The test speaker is --config.data.held_out. "official", for spoken_digits, is the split of the
authors of the data set, whose test speakers are all in the training split.

Your own recordings: a manifest with columns of paths and texts, or a folder of recordings with a
text file beside each. With --speaker, no speaker is in two splits:

python -m launch.train --config=configs/speech_recognition.py:own,conformer,ctc --data=clips.csv
    --audio=path --text=sentence --speaker=client --workdir=runs/mine

If there are few distinct texts, such as commands, and no speakers, split by file with
--config.data.split_by=file.
"""

import re

from launch.engine.arguments import check_argument, wrong_argument
from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from tasks.common.audio.augmentation import SoundAugmentation
from tasks.common.backbones.transcriber import TranscriberConfig
from tasks.common.data.user_files import OWN, UNSET
from tasks.common.text.tokenizer import TextConfig
from tasks.speech_recognition.data import DataConfig
from tasks.speech_recognition.datasets import NAMES
from tasks.speech_recognition.model import ENCODERS, SpeechConfig

DECODERS = ("joint", "ctc", "transformer_decoder")


def get_config(argument: str = "spoken_digit_strings"):
    """Returns the config of 'DATA,ENCODER,DECODER', each of them optional."""
    known = (*NAMES, OWN)
    names = {"DATA": known, "ENCODER": ENCODERS, "DECODER": DECODERS}
    check_argument(argument, names)
    words = [word.strip() for word in argument.split(",", 2)]
    data = words.pop(0) if words and words[0] in known else NAMES[1]
    encoder = words.pop(0) if words and words[0] in ENCODERS else "conformer"
    # Options of an alignment may contain commas.
    decoder = ",".join(words) or "joint"
    try:
        fields = _strings() if data == NAMES[1] else _single() if data == NAMES[0] else _prompts()
        aligned = fields.pop("location_aware", "location_aware")
        transcriber = _transcriber(decoder, fields.pop("units"), aligned)
        model = SpeechConfig(encoder=encoder, transcriber=transcriber, **fields.pop("model"))
    except ValueError as error:
        decoders = f"{', '.join(DECODERS)} or an alignment"
        raise wrong_argument(error, argument, names | {"DECODER": decoders}) from None
    name = "_".join([encoder, *re.findall(r"\w+(?:\.\w+)?", decoder)])
    return experiment(
        task="speech_recognition",
        name=name,
        data=DataConfig(**_source(data), **fields.pop("data")),
        model=model,
        **fields,
    )


def _source(data: str) -> dict:
    return {"name": data, "path": UNSET if data == OWN else None}


def _transcriber(name: str, units: int, aligned: str) -> TranscriberConfig:
    """Returns the config of a decoder of at most `units` units.

    The alignment `aligned` replaces "location_aware".
    """
    common = {"max_length": units}
    if name == "ctc":
        return TranscriberConfig(decoder="none", ctc_weight=1.0, decoding_ctc_weight=0, **common)
    if name == "joint":
        return TranscriberConfig(alignment=aligned, **common)
    attention_only = {"ctc_weight": 0.0, "decoding_ctc_weight": 0.0, **common}
    if name == "transformer_decoder":
        return TranscriberConfig(
            decoder="transformer", num_layers=2, state_size=96, **attention_only
        )
    return TranscriberConfig(
        alignment=aligned if name == "location_aware" else name, **attention_only
    )


def _optimizer(**changed):
    common = {"learning_rate": 2e-3, "warmup_steps": 200, "weight_decay": 0.01, "clip_norm": 5.0}
    return OptimizerConfig(**common | {"average_decay": 0.995} | changed)


def _augmentation(**changed):
    """Returns an augmentation of speed, vocal-tract length, channel response and noise."""
    common = {"speed": 0.2, "warp": 0.15, "equalizer": 6.0, "gain": 6.0, "noise": (0.0, 30.0)}
    masks = {"time_masks": 2, "time_width": 8, "band_masks": 2, "band_width": 8}
    return SoundAugmentation(**common | masks | changed)


# The digit data sets are small and have few speakers.
_SMALL = {"model_size": 64, "num_layers": 2, "feedforward_size": 128, "conv_kernel_size": 7}


def _strings():
    """Returns the settings for digit strings of four training speakers."""
    return {
        # Of the six speakers, "theo" is one with a median test error of the SVM on single digits.
        "data": {"held_out": "theo", "dynamic_range": 35.0, "augmentation": _augmentation()},
        "units": 24,
        # A word spans about ten encoder frames: the filters cover the previous and the next word.
        "location_aware": "location_aware(width=31, num_filters=16, cumulative=True)",
        "model": _SMALL,
        "optimizer": _optimizer(),
        "training": TrainingConfig(
            steps=2400, batch_size=32, evaluation_batch_size=50, evaluate_every=400, log_every=25
        ),
    }


def _single():
    """Returns the settings for single digits: 3,000 clips of half a second."""
    augmentation = _augmentation(time_masks=1)
    return {
        "data": {"trim": 25.0, "dynamic_range": 35.0, "augmentation": augmentation},
        "units": 4,
        "model": _SMALL,
        "optimizer": _optimizer(learning_rate=3e-3, average_decay=0.99),
        "training": TrainingConfig(
            steps=6000, batch_size=32, evaluation_batch_size=50, evaluate_every=1000, log_every=50
        ),
    }


def _prompts():
    """Returns the settings for a data set of one speaker, 15 minutes long, with character units."""
    return {
        "data": {
            "augmentation": _augmentation(speed=0.1, noise=(10.0, 40.0), warp=0.1),
            "silence": 0.05,
            "text": TextConfig(tokenizer="character", min_count=1),
        },
        "units": 500,
        "model": {"dropout_rate": 0.2},
        "optimizer": _optimizer(),
        "training": TrainingConfig(
            steps=1200, batch_size=16, evaluation_batch_size=20, evaluate_every=200, log_every=25
        ),
    }
