"""Language modeling, causal or masked.

python -m launch.train --config=configs/language_modeling.py --workdir=runs/shakespeare
python -m launch.predict --workdir=runs/shakespeare --input="ROMEO:"

A causal character model of Shakespeare with the CPU budget of nanoGPT: 4 layers, width 128, 4
heads, context 64, 2,000 steps of 12 windows. Validation loss is 1.79 with seed 0 in a few minutes
on 2 cores (published for this budget: 1.88; Kneser-Ney 6-grams: 1.56). `:tiny_shakespeare,modern`
has the same size with RMSNorm, SwiGLU, rotary positions and normalized queries and keys.
`:tiny_shakespeare,wide` reads 256 characters with 6 layers of width 192 for an hour on 2 cores. Its
best validation loss is 1.495, at step 2,000 of 3,500, after which it overfits.
`:tiny_shakespeare,long` has the GPU budget of nanoGPT (published: 1.47). `:janeausten` is six
novels, split by book.

python -m launch.train --config=configs/language_modeling.py:sst2 --workdir=runs/sst2_masked
python -m launch.predict --workdir=runs/sst2_masked --input="the acting is [MASK] ."

A masked model of the training texts of a labeled data set (movie_reviews, sst2, newsgroups20,
reuters_r8, spam_assassin), which configs/text_classification.py:sst2,pretrained fine-tunes. Near
duplicates of held-out texts are excluded, also if the held-out text is of another data set of the
same origin. Training takes a quarter of an hour on 2 cores. The test loss per masked token is 5.28
on sst2 and 4.91 on movie_reviews (unigrams: 6.97 and 6.83). `:sst2,bert` is a BERT of the same
size.

Your own texts, as running text, as a file with one text per line, or as a table with a column of
texts:

python -m launch.train --config=configs/language_modeling.py:own --data=my.txt --workdir=runs/mine
python -m launch.train --config=configs/language_modeling.py:own,masked --data=my.txt
    --config.data.lines=True --workdir=runs/mine
python -m launch.train --config=configs/language_modeling.py:own,masked --data=my.csv --text=review
    --workdir=runs/mine

A GPT of 1.3 billion parameters, for 64 H100s or 256 TPU v5e. Groups of 8 devices share parameters
and optimizer state (`--config.mesh.fsdp`), which then take 2 GB per device:

python -m launch.train --config=configs/language_modeling.py:own,gpt_1b --data=my.txt
    --workdir=runs/gpt
"""

import dataclasses

from launch.engine.arguments import check_argument
from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from launch.engine.sharding import MeshConfig
from tasks.common.data.user_files import OWN, UNSET, cut_path
from tasks.common.datasets.labelled_texts import DEFINITIONS
from tasks.common.decoding.generate import DecodingConfig
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import TextConfig
from tasks.language_modeling.corpora import CORPORA
from tasks.language_modeling.data import DataConfig
from tasks.language_modeling.model import LanguageModelConfig

PATH = "path:"
MODERN = {
    "norm": "pre",
    "normalization": "rms",
    "activation": "swiglu",
    "positions": "rope",
    "use_bias": False,
    "mixer": "dot_product(qk_norm=True, use_bias=False)",
}
BERT = {
    "norm": "post",
    "normalization": "layer",
    "activation": "gelu",
    "positions": "learned",
    "input_norm": True,
    "norm_epsilon": 1e-12,
    "segments": 2,
    "next_sentence": True,
    "mask_rate": 0.15,
}


def get_config(argument: str = "tiny_shakespeare"):
    """Returns the config of 'DATA', 'DATA,MODEL' or 'path:FILE,MODEL'; DATA may be "own"."""
    data, model = cut_path(argument, PATH)
    recipes = {
        "causal": causal,
        "modern": modern,
        "wide": wide,
        "long": long,
        "gpt_1b": gpt_1b,
        "masked": masked,
        "bert": bert,
    }
    names = {"DATA": (*CORPORA, *DEFINITIONS, OWN), "MODEL": recipes}
    if not data.startswith(PATH):
        check_argument(argument, names, required=True)
    model = model or ("masked" if data in DEFINITIONS else "causal")
    if model not in recipes:
        raise UserError(f"config: model: got {model!r}, expected one of {', '.join(recipes)}")
    source = {"train_file": data.removeprefix(PATH)} if data.startswith(PATH) else {"name": data}
    if data == OWN:
        source["train_file"] = UNSET
    return experiment(task="language_modeling", name=model, **recipes[model](source))


def causal(source: dict):
    """Returns the settings of a causal character model."""
    return {
        "data": DataConfig(**source, length=64),
        "model": LanguageModelConfig(
            model_size=128,
            num_layers=4,
            num_heads=4,
            feedforward_size=512,
            dropout_rate=0.0,
            attention_dropout_rate=0.0,
            positions="learned",
            max_length=64,
            decoding=DecodingConfig(method="sample", temperature=0.8, top_p=0.95),
        ),
        "optimizer": OptimizerConfig(
            learning_rate=1e-3,
            warmup_steps=100,
            final_fraction=0.1,
            beta2=0.99,
            weight_decay=0.1,
            weight_decay_on="kernel$",
        ),
        "training": TrainingConfig(
            steps=2000, batch_size=12, evaluation_batch_size=128, evaluate_every=500, log_every=50
        ),
    }


def modern(source: dict):
    """Returns the settings of `causal` with the changes of `MODERN`.

    feedforward_size is about two thirds of that of `causal`, because a gated layer has three
    kernels instead of two.
    """
    fields = causal(source)
    changed = {**vars(fields["model"]), **MODERN, "feedforward_size": 344}
    return {**fields, "model": LanguageModelConfig(**changed)}


def wide(source: dict):
    """Returns the settings of a causal character model for an hour on 2 cores."""
    sizes = {"model_size": 192, "num_layers": 6, "num_heads": 6, "feedforward_size": 512}
    return _with_context(source, 256, steps=3500, batch_size=24, dropout_rate=0.1, **sizes)


def long(source: dict):
    """Returns the settings of a causal character model with the GPU budget of nanoGPT.

    6 layers of width 384, context 256, dropout rate 0.2, and 5,000 steps of 64 windows.
    """
    sizes = {"model_size": 384, "num_layers": 6, "num_heads": 6, "feedforward_size": 1024}
    return _with_context(source, 256, steps=5000, batch_size=64, dropout_rate=0.2, **sizes)


def _with_context(source: dict, length: int, *, steps: int, batch_size: int, **changes):
    """Returns the settings of `modern` for windows of `length` characters."""
    fields = modern(source)
    return {
        "data": dataclasses.replace(fields["data"], length=length),
        "model": dataclasses.replace(fields["model"], max_length=length, **changes),
        "optimizer": dataclasses.replace(
            fields["optimizer"], learning_rate=2e-3, final_fraction=0.02
        ),
        "training": dataclasses.replace(
            fields["training"], steps=steps, batch_size=batch_size, evaluation_batch_size=64
        ),
    }


def gpt_1b(source: dict):
    """Returns the settings of a GPT with the sizes of GPT-3 XL (Brown et al. 2020, table 2.1).

    24 layers, width 2,048, 16 heads of size 128, context 2,048. As in Brown et al., a step has 1
    million tokens, the learning rate is 2e-4 after a warm-up of 375 million tokens, and beta2 is
    0.95. 25,000 steps are 20 tokens per parameter (Hoffmann et al. 2022). For any data set, the
    embedding table has 50,304 rows: the vocabulary of GPT-2, rounded up to a multiple of 128. The
    loss computes the logits of a third of them at a time. Activations are bfloat16, and those
    inside a layer are recomputed in the backward pass.
    """
    return {
        "data": DataConfig(
            **source,
            length=2048,
            text=TextConfig(tokenizer="bpe", lower_case=False, vocabulary_size=50_257),
        ),
        "model": LanguageModelConfig(
            model_size=2048,
            num_layers=24,
            num_heads=16,
            feedforward_size=8192,
            dropout_rate=0.0,
            attention_dropout_rate=0.0,
            activation="gelu_tanh",
            positions="learned",
            max_length=2048,
            dtype="bfloat16",
            rematerialize=True,
            scan_layers=True,
            min_rows=50_304,
            loss_chunk_size=16_768,
            decoding=DecodingConfig(method="sample", temperature=0.8, top_p=0.95),
        ),
        "optimizer": OptimizerConfig(
            learning_rate=2e-4,
            warmup_steps=375,
            final_fraction=0.1,
            beta2=0.95,
            weight_decay=0.1,
        ),
        "training": TrainingConfig(
            steps=25_000,
            batch_size=512,
            evaluation_batch_size=512,
            evaluate_every=1000,
            log_every=10,
        ),
        "mesh": MeshConfig(fsdp=8),
    }


def masked(source: dict, **changes):
    """Returns the settings of a masked language model with a pre-norm encoder."""
    shape = {
        "objective": "masked",
        "model_size": 128,
        "num_layers": 2,
        "num_heads": 4,
        "feedforward_size": 512,
        "positions": "learned",
        "max_length": 66,
        # A higher rate gives more targets per step (Wettig et al. 2023).
        "mask_rate": 0.3,
    }
    return {
        "data": DataConfig(
            **source, length=66, text=TextConfig(tokenizer="wordpiece", vocabulary_size=8000)
        ),
        "model": LanguageModelConfig(**{**shape, **changes}),
        "optimizer": OptimizerConfig(
            learning_rate=2e-3, warmup_steps=200, beta2=0.98, weight_decay=0.01
        ),
        "training": TrainingConfig(
            steps=3000, batch_size=128, evaluation_batch_size=128, evaluate_every=500, log_every=50
        ),
    }


def bert(source: dict):
    """Returns the settings of a small BERT with next-sentence prediction (Devlin et al. 2019)."""
    return masked(source, **BERT)
