"""Exports a masked language model for Hugging Face transformers.

python -m launch.export_weights --workdir=runs/bert --to=exported

The result is a BERT or DistilBERT directory. The run was trained with
configs/language_modeling.py:DATA,bert or made by launch.import_weights. Tensors of an imported run
are exported bit for bit and in their original order. A model with segment embeddings is exported as
BERT, a model without them as DistilBERT. Tokenizers fitted by this project apply NFKC normalization
first, which vocab.txt cannot express.
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
flags.DEFINE_string("to", None, "New directory for config.json, model.safetensors and vocab.txt.")


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
    """Raises unless the run is a masked language model and the target does not exist.

    Raises:
      UserError: the run has another task or model, or the target exists.
    """
    from tasks.common.errors import UserError

    if config.task != "language_modeling" or config.model.objective != "masked":
        raise UserError(
            f"--workdir={folder}: got a run of {config.task}, expected a masked language model"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--to={target}: already exists; name a new directory")


def export(config: Experiment, folder: Path, target: Path) -> None:
    """Writes the exported directory from a run directory; needs no data set."""
    from tasks.common.huggingface.files import write_folder

    check_exportable(config, folder, target)
    write_folder(target, _saved(config, folder))


def _saved(config: Experiment, folder: Path) -> LanguageModelFolder:
    import dataclasses

    import jax

    from launch.engine import state as states
    from launch.runs import directory
    from tasks.common.backbones.stacking import separated
    from tasks.common.errors import UserError
    from tasks.common.huggingface.weights import of_model

    try:
        found = of_model(dataclasses.asdict(config.model), **_tokenizer(config, folder))
    except ValueError as error:
        raise UserError(f"--workdir={folder}: {error}") from None
    _, variables, _ = directory.load_variables(
        directory.restored_task(config, folder), config, folder
    )
    params = separated(jax.device_get(variables["params"]))
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return dataclasses.replace(
        found, params={states.path_name(path): leaf for path, leaf in leaves}
    )


def _tokenizer(config: Experiment, folder: Path) -> dict[str, Any]:
    """Returns the pieces in the order of vocab.txt, and the text normalization."""
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
