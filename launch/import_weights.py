"""Creates a run directory from weights of BERT or RoBERTa.

python -m launch.import_weights --from=bert-base-uncased --workdir=runs/bert
python -m launch.predict --workdir=runs/bert --input="The film was [MASK]."

The source is a directory of Hugging Face transformers, or the name of a model on the Hugging Face
Hub, which is downloaded into the cache of huggingface_hub. The directory contains config.json,
model.safetensors, and the tokenizer, which is tokenizer.json, vocab.txt (BERT), or vocab.json and
merges.txt (RoBERTa). The model_type of config.json is bert, distilbert, roberta (roberta-base,
distilroberta-base) or xlm-roberta (xlm-roberta-base). Unsupported options of the model or the
tokenizer raise an error, and so do contradictory files. The result is a run of language_modeling
with the imported parameters: launch.predict reads it, with [MASK] in place of a missing word for
every kind of model, and configs/text_classification.py:DATA,from:runs/bert fine-tunes it.
launch.export_weights is the inverse.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from launch import cli

if TYPE_CHECKING:
    from launch.engine.config import Experiment
    from tasks.common.huggingface.weights import LanguageModelFolder

cli.define_workdir()
flags.DEFINE_string(
    "from",
    None,
    "Directory with config.json, model.safetensors and tokenizer, or the name of a model on the "
    "Hugging Face Hub, such as bert-base-uncased or roberta-base.",
)

# Input length for predictions: the usual pre-training length, and fast on a CPU.
_LENGTH = 128


def import_weights() -> None:
    """Runs the command `launch.import_weights`."""
    from launch.engine.new_folder import check_new, new_folder

    given, folder = cli.required("from"), cli.workdir()
    check_new("workdir", folder)
    source = _source(given)
    from tasks.common.huggingface.files import read_folder

    saved = read_folder(source)
    config = _experiment(saved, source)
    cli.set_up_jax(config)
    with new_folder("workdir", folder) as written:
        initialized = _write_run(saved, config, written)
    if initialized:
        print(f"not in {source}, initialized at random: {', '.join(initialized)}")
    for note in saved.notes:
        print(note)
    if "embedding" in saved.padding:
        count = len(saved.padding["embedding"])
        print(f"embedding rows that pad the vocabulary and are never predicted: {count}")
    if saved.left_out:
        print(f"not imported: {', '.join(saved.left_out)}")
    print(f"run directory: {folder}")


def _source(given: str) -> Path:
    """Returns the directory of a model; downloads the model if its name on the Hub is given."""
    from tasks.common.errors import UserError
    from tasks.common.huggingface import hub

    source = Path(given).expanduser()
    if source.is_dir():
        return source
    if source.exists():
        raise UserError(f"--from={given}: is a file; give its directory, --from={source.parent}")
    if not hub.is_name(given):
        raise UserError(f"--from={given}: no such directory")
    found = hub.download(given)
    print(f"Hugging Face {given}: {found}")
    return found


def _experiment(saved: LanguageModelFolder, source: Path) -> Experiment:
    import dataclasses

    from launch.engine import config as configs

    length = min(_LENGTH, saved.model["max_length"])
    text = dataclasses.asdict(saved.text_tokenizer().config)
    return configs.resolve(
        {
            "task": "language_modeling",
            "name": f"imported_{saved.kind}",
            # There is no data set. A command that needs one reports that this path is a directory.
            "data": {"train_file": str(source.absolute()), "length": length, "text": text},
            "model": dict(saved.model),
            # This optimizer keeps no state, so the checkpoint needs none.
            "optimizer": {"name": "sgd", "beta1": 0.0},
            "training": {"evaluation_batch_size": 8},
        }
    )


def _write_run(saved: LanguageModelFolder, config: Experiment, folder: Path) -> list[str]:
    """Writes config, assets and one checkpoint; returns the randomly initialized parameters."""
    import jax

    from launch.engine import config as configs
    from launch.engine import state as states
    from launch.engine.checkpoints import Checkpoints
    from launch.engine.environment import environment
    from launch.engine.steps import make_steps
    from launch.engine.writers import write_json, write_text
    from tasks.common.errors import UserError
    from tasks.common.huggingface.weights import IMPORTED

    assets = {
        "tokenizer": saved.text_tokenizer().to_json(),
        "buckets": [config.data.length],
        "begin": None,
    }
    task = configs.task_class(config.task).restore(config.data, config.model, assets)
    steps = make_steps(task, config)
    state = steps.init()
    initialized = []

    def imported(path, leaf):
        name = states.path_name(path)
        if name not in saved.params:
            initialized.append(name)
            return leaf
        array = saved.params[name]
        if array.shape != leaf.shape:
            got, expected = list(array.shape), list(leaf.shape)
            raise UserError(
                f"--from: {name} has the shape {got} in model.safetensors, expected {expected} "
                f"according to config.json"
            )
        return jax.device_put(array, leaf.sharding)

    state["params"] = jax.tree_util.tree_map_with_path(imported, state["params"])
    write_json(folder / "config.json", configs.to_dict(config))
    write_json(folder / "environment.json", environment())
    write_json(folder / "assets.json", assets)
    write_json(folder / IMPORTED, saved.tokenizer())
    with contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        checkpoints.save(0, state, None, 0.0)
        checkpoints.wait()
    # The only checkpoint counts as the best one; its metric is unknown.
    line = {"step": 0, "split": "validation", task.primary_metric: float("nan")}
    write_text(folder / "metrics.jsonl", json.dumps(line) + "\n")
    return initialized


if __name__ == "__main__":
    cli.main(import_weights, __doc__)
