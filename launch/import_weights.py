"""Makes a run folder of a BERT or DistilBERT folder as the library transformers saves it.

python -m launch.import_weights --from=bert-base-uncased --workdir=runs/bert
python -m launch.predict --workdir=runs/bert --input="The film was [MASK]."

The folder holds config.json, model.safetensors, and vocab.txt or tokenizer.json. Options that would
change what the model computes or how text is cut are honoured or refused, and files that contradict
each other are refused. The run is one of language_modeling that no training has made: predict reads
it, and a text classifier starts from it with configs/text_classification.py:DATA,from:runs/bert.
launch.export_weights is the way back.
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
flags.DEFINE_string("from", None, "Folder with config.json, model.safetensors and vocab.txt.")

# Ids that a prediction looks at: what was mostly trained on, and quick without an accelerator.
_LENGTH = 128


def import_weights() -> None:
    """The verb."""
    from tasks.common.errors import UserError

    source, folder = Path(cli.required("from")).expanduser(), cli.workdir()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--workdir={folder}: is there already; name a new folder")
    from tasks.common.huggingface.files import read_folder

    saved = read_folder(source)
    config = _experiment(saved, source)
    cli.set_up_jax(config)
    drawn = _write_run(saved, config, folder)
    if drawn:
        print(f"not in {source}, at random: {', '.join(drawn)}")
    for note in saved.notes:
        print(note)
    if saved.padding:
        count = len(saved.padding["embedding"])
        print(f"rows of the embeddings that pad the vocabulary, never predicted: {count}")
    if saved.left_out:
        print(f"left out: {', '.join(saved.left_out)}")
    print(f"run folder: {folder}")


def _experiment(saved: LanguageModelFolder, source: Path) -> Experiment:
    import dataclasses

    from launch.engine import config as configs

    length = min(_LENGTH, saved.model["max_length"])
    text = dataclasses.asdict(saved.text_tokenizer().config)
    return configs.resolve(
        {
            "task": "language_modeling",
            "name": f"imported_{saved.kind}",
            # There are no texts: whoever asks for them is told that this is a folder.
            "data": {"train_file": str(source.absolute()), "length": length, "text": text},
            "model": dict(saved.model),
            # It keeps nothing beside the weights.
            "optimizer": {"name": "sgd", "beta1": 0.0},
            "training": {"evaluation_batch_size": 8},
        }
    )


def _write_run(saved: LanguageModelFolder, config: Experiment, folder: Path) -> list[str]:
    """Writes config, assets and one checkpoint; gives the names of weights that had to be drawn."""
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
    drawn = []

    def chosen(path, leaf):
        name = states.path_name(path)
        if name not in saved.params:
            drawn.append(name)
            return leaf
        array = saved.params[name]
        if array.shape != leaf.shape:
            got, expected = list(array.shape), list(leaf.shape)
            raise UserError(
                f"--from: model.safetensors has {got} as {name}, config.json says {expected}"
            )
        return jax.device_put(array, leaf.sharding)

    state["params"] = jax.tree_util.tree_map_with_path(chosen, state["params"])
    write_json(folder / "config.json", configs.to_dict(config))
    write_json(folder / "environment.json", environment())
    write_json(folder / "assets.json", assets)
    write_json(folder / IMPORTED, saved.tokenizer())
    with contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        checkpoints.save(0, state, None, 0.0)
        checkpoints.wait()
    # Nothing was measured; the checkpoint is the best because it is the only one.
    line = {"step": 0, "split": "validation", task.primary_metric: float("nan")}
    write_text(folder / "metrics.jsonl", json.dumps(line) + "\n")
    return drawn


if __name__ == "__main__":
    cli.main(import_weights, __doc__)
