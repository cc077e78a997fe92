"""Train steps of models compared with other libraries, one file per model.

Each file has `setup(batch_size, ...)`, which returns the experiment and its batches. `jax_step` and
`torch_step` return functions that take train steps on these batches, with the training engine of
this project (`launch.engine`) and with PyTorch.
"""

from typing import NamedTuple


class Model(NamedTuple):
    """Settings of a model in `python -m benchmarks.steps`.

    Attributes:
      task: module with the task, loaded before memory is measured.
      library: module of the other implementation, loaded before memory is measured.
      steps: train steps per round.
      rounds: number of rounds.
      memory: whether peak memory is compared too.
      what: description in the report of `benchmarks.train_step`, empty to leave the model out.
      target: largest wanted ratio of the time in JAX to the time with `torch.compile`, for this
        report.
    """

    task: str
    library: str = "torch"
    steps: int = 4
    rounds: int = 5
    memory: bool = True
    what: str = ""
    target: float = 0.0


MODELS = {
    "language_model": Model("tasks.language_modeling.task", steps=2000, rounds=2, memory=False),
    "mask_rcnn": Model("tasks.detection.task"),
    "patchtst": Model("tasks.forecasting.task", "transformers"),
    "recurrent": Model(
        *("tasks.translation.task", "torch", 3, 5, False),
        what="translation: rnn, 24 tokens, additive attention",
        target=1.3,
    ),
    "sasrec": Model("launch.engine.steps"),
    "speech": Model("tasks.speech_recognition.task", "transformers"),
    "transformer": Model(
        *("tasks.text_classification.task", "torch", 100, 5, False),
        what="text classifier: sst2, 32 tokens",
        target=1.2,
    ),
    "unet": Model("tasks.segmentation.task", what="segmentation: camvid", target=1.3),
}
