"""Train steps of models, here and in other libraries; each model has its own file.

Each file has `setup(batch_size, ...)`, which returns the experiment and its batches. `jax_step` and
`torch_step` return functions that take train steps on these batches, with the training engine of
this project (`launch.engine`) and with PyTorch.
"""

from typing import NamedTuple

WAYS = ("here", "torch", "torch compiled")
"""Implementations that are compared; "here" is this project."""


class Model(NamedTuple):
    """Settings of a model in `python -m benchmarks.steps` and `python -m benchmarks.train_step`.

    Attributes:
      what: task, config and size of the inputs, as a text for the report.
      task: name of the task's module, which is imported before memory is measured.
      library: name of the other implementation's module, which is imported before memory is
        measured.
      steps: train steps per round of `benchmarks.steps`.
      rounds: number of rounds of `benchmarks.steps`.
    """

    what: str
    task: str
    library: str = "torch"
    steps: int = 4
    rounds: int = 5


MODELS = {
    "transformer": Model(
        "text classification: sst2, 32 tokens", "tasks.text_classification.task", steps=100
    ),
    "translator": Model("translation: multi30k, 24 tokens", "tasks.translation.task"),
    "recurrent": Model(
        "translation: rnn, 24 tokens, additive attention", "tasks.translation.task", steps=3
    ),
    "language_model": Model(
        "language modeling: tiny_shakespeare, 64 characters",
        "tasks.language_modeling.task",
        steps=2000,
        rounds=2,
    ),
    "vit": Model(
        "image classification: fashion_mnist, 49 patches", "tasks.image_classification.task"
    ),
    "unet": Model("segmentation: camvid", "tasks.segmentation.task"),
    "mask_rcnn": Model("detection: nuclei", "tasks.detection.task", "torchvision"),
    "speech": Model(
        "speech recognition: conformer,ctc, 2 s", "tasks.speech_recognition.task", "transformers"
    ),
    "patchtst": Model("forecasting: etth1", "tasks.forecasting.task", "transformers"),
    "sasrec": Model(
        "recommendation: events as in movielens_100k, RecBole",
        "tasks.recommendation.task",
        "recbole",
    ),
}
