"""Losses of a small GPT with a loop and with scanned layers, on one and on eight devices.

`python -m tests.launch.engine.scanned_model` prints a line of JSON for each case.
"""

import json
import pathlib
import sys
import tempfile

import jax

from launch.engine import config as configs
from launch.engine.steps import make_steps
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import train_iterator

CHANGES = {
    "data.length": 16,
    "data.text.vocabulary_size": 300,
    "model.max_length": 16,
    "model.model_size": 32,
    "model.num_heads": 4,
    "model.num_layers": 3,
    "model.feedforward_size": 64,
    "model.dropout_rate": 0.1,
    "model.min_rows": 320,
    "model.loss_chunk_size": 128,
    "optimizer.learning_rate": 3e-3,
    "optimizer.warmup_steps": 2,
    "training.batch_size": 8,
    "training.evaluation_batch_size": 8,
    "training.steps": 10,
    "mesh.fsdp": 1,
    "mesh.cpu_devices": 1,
}
LOOP = {"model.scan_layers": False, "model.rematerialize": False, "model.loss_chunk_size": 0}
MESH = {"mesh.cpu_devices": 8, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
EXACT = {"model.dtype": "float32"}
CASES = {
    "loop": LOOP | EXACT,
    "scan": EXACT,
    "scan on a mesh": EXACT | MESH,
    "bfloat16 loop": LOOP,
    "bfloat16 scan on a mesh": MESH,
}


def make_task(folder: pathlib.Path, changes: dict | None = None):
    """Returns the task and the experiment of a small `gpt_1b` on a made-up text."""
    text = "".join(f"{n} times {n % 7} is {n * (n % 7)}; " for n in range(400))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    base = configs.load_file(f"configs/language_modeling.py:path:{folder / 'text.txt'},gpt_1b")
    config = configs.override(base, CHANGES | (changes or {}))
    paths = Paths.default(data_dir=folder, cache_dir=folder)
    task = configs.task_class(config.task)
    return task.prepare(config.data, config.model, paths), config


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for case in sys.argv[1:]:
            task, config = make_task(pathlib.Path(name), CASES[case])
            steps = make_steps(task, config)
            state = steps.init()
            batches = train_iterator(
                task.examples("train"), batch_size=8, seed=0, buckets=task.buckets
            )
            losses = []
            for _ in range(config.training.steps):
                state, metrics = steps.train(state, steps.place(next(batches)))
                losses.append(float(metrics["loss"]))
            layers = state["params"]["encoder"]["layers"]
            kernel = layers.get("stacked", layers.get("0"))["attention"]["query"]["kernel"]
            moment = jax.tree.leaves(state["optimizer"])
            shards = {str(shard.index) for shard in kernel.addressable_shards}
            split = sum(len(leaf.sharding.device_set) == 8 for leaf in moment)
            print(json.dumps({"case": case, "losses": losses, "shards": len(shards),
                              "shape": kernel.shape, "on_all": split > 0}))  # fmt: skip


if __name__ == "__main__":
    main()
