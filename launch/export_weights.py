"""Exports text models for Hugging Face transformers.

python -m launch.export_weights --workdir=runs/bert --to=exported

A masked language model is exported as a BERT, DistilBERT, RoBERTa or XLM-RoBERTa model. Its run
must be trained with configs/language_modeling.py:DATA,bert or created by launch.import_weights. An
imported run is exported as the kind of model that was imported, with bitwise equal tensors in their
original order. A trained model with segment embeddings is exported as BERT, a model without them as
DistilBERT. Tokenizers fitted by this project apply NFKC normalization first, which vocab.txt cannot
express.

A text classifier with config.model.pooling=bert, such as one of
configs/text_classification.py:DATA,from:runs/bert, is exported as a model of the class
BertForSequenceClassification, or of (XLM)RobertaForSequenceClassification if it was fine-tuned from
such a model, with its labels and its tokenizer. With `truncation=True`, transformers truncates
texts as this project does. Special tokens in a text, such as "[SEP]", are plain text in this
project and special in transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from launch import cli

if TYPE_CHECKING:
    from launch.engine.config import Experiment
    from tasks.common.huggingface.weights import LanguageModelFolder

cli.define_workdir()
flags.DEFINE_string("to", None, "New directory for config.json, model.safetensors and tokenizer.")


def export_weights() -> None:
    """Runs the command `launch.export_weights`."""
    from launch.runs import directory

    folder, target = cli.workdir(), Path(cli.required("to")).expanduser()
    config = directory.saved_config(folder)
    check_exportable(config, folder, target)
    cli.set_up_jax(config)
    export(config, folder, target)
    print(f"directory: {target}")


def check_exportable(config: Experiment, folder: Path, target: Path) -> None:
    """Raises if transformers does not support the model, or if the target exists.

    Raises:
      UserError: the run has another task or model, or the target exists.
    """
    from launch.engine.new_folder import check_new
    from tasks.common.errors import UserError

    masked = config.task == "language_modeling" and config.model.objective == "masked"
    classifier = _is_classifier(config)
    if classifier and getattr(config.model, "pooling", "") != "bert":
        raise UserError(
            f"--workdir={folder}: the classifier differs from that of BERT; train one with "
            "--config=configs/text_classification.py:DATA,from:RUN --config.model.pooling=bert"
        )
    if not masked and not classifier:
        raise UserError(
            f"--workdir={folder}: got a run of {config.task}, expected a masked language model or "
            "a text classifier"
        )
    check_new("to", target)


def export(config: Experiment, folder: Path, target: Path) -> None:
    """Writes the weights of a run to a directory, in the format of Hugging Face's transformers."""
    from launch.engine.new_folder import new_folder
    from launch.runs import directory
    from tasks.common.huggingface.files import write_classifier, write_folder

    check_exportable(config, folder, target)
    task = directory.restored_task(config, folder)
    saved = _saved(task, config, folder)
    with new_folder("to", target) as written:
        if _is_classifier(config):
            write_classifier(written, saved, task.labels, task.processor.tokenizer)
        else:
            write_folder(written, saved)


def _is_classifier(config: Experiment) -> bool:
    return config.task == "text_classification"


def _saved(task: Any, config: Experiment, folder: Path) -> LanguageModelFolder:
    import dataclasses

    from tasks.common.errors import UserError
    from tasks.common.huggingface.weights import of_classifier, of_model

    model = dataclasses.asdict(config.model)
    try:
        if _is_classifier(config):
            return of_classifier(model, _params(task, config, folder), task.processor.tokenizer)
        found = of_model(model, **_tokenizer(config, folder))
    except ValueError as error:
        raise UserError(f"--workdir={folder}: {error}") from None
    return dataclasses.replace(found, params=_params(task, config, folder))


def _params(task: Any, config: Experiment, folder: Path) -> dict[str, Any]:
    """Returns the parameters of the run by path."""
    import jax

    from launch.engine import state as states
    from launch.runs import directory
    from tasks.common.backbones.stacking import separated

    _, variables, _ = directory.load_variables(task, config, folder)
    params = separated(jax.device_get(variables["params"]))
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {states.path_name(path): leaf for path, leaf in leaves}


def _tokenizer(config: Experiment, folder: Path) -> dict[str, Any]:
    """Returns the tokenizer's pieces in the order of vocab.txt, and its text normalization."""
    from launch.runs import directory
    from tasks.common.errors import UserError
    from tasks.common.huggingface.weights import IMPORTED, fitted_tokenizer

    imported = folder / IMPORTED
    if imported.exists():
        try:
            values = json.loads(imported.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{imported}: not a JSON file ({error})") from None
        if not isinstance(values, dict) or "vocabulary" not in values:
            raise UserError(f"{imported}: has no vocabulary; restore the file")
        return values
    return fitted_tokenizer(directory.restored_task(config, folder).processor.tokenizer)


if __name__ == "__main__":
    cli.main(export_weights, __doc__)
