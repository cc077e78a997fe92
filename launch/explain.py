"""Explains predictions of a run, and measures faithfulness.

python -m launch.explain --workdir=runs/sst2 --input="a fine film" --output=page.html
python -m launch.explain --workdir=runs/sst2 --select=wrong --count=8 --output=page.html

Writes one page that needs no other file. It shows the attention weights of every layer and head,
the contribution of each position of the input to the prediction, as estimated by several methods,
and how the prediction changes while positions are deleted or inserted. --select chooses examples of
--split: wrong, correct, uncertain or random ones, or numbers such as 3,17. All other examples of
the split are listed with prediction, confidence and score, unless --nolist is given.
--against=runs/other shows the same examples for another run of the same task. --json writes the
explanations as JSON, and --bertviz writes the attention weights in the format of BertViz.

python -m launch.explain --workdir=runs/sst2 --evaluate --examples=200

prints for each method the areas under the deletion and insertion curves, compared with those of
random orders and of gradients, with 95 % confidence intervals; the similarity of the attributions
to those of a model with random parameters and, with --against, to those of another run; and the
time of one explanation. The table is also written to explanation-<split>.json in the run directory.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from launch import cli
from launch.engine import output

cli.define_workdir()
flags.DEFINE_multi_string("input", [], "Input to explain, as for launch.predict; repeatable.")
flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Split of the examples.")
flags.DEFINE_string(
    "select",
    None,
    "Examples of --split: wrong, correct, uncertain or random, or numbers such as 3,17 (from 0). "
    "By default correct, wrong and uncertain ones, as in reports.",
)
flags.DEFINE_integer("count", 8, "Number of examples that --select chooses.", lower_bound=1)
flags.DEFINE_bool("list", True, "List all examples of --split, in addition to the explanations.")
flags.DEFINE_list("methods", None, "Methods of attribution, separated by commas; all by default.")
flags.DEFINE_string("output", None, "Page to write, such as page.html.")
flags.DEFINE_string("json", None, "JSON file to write.")
flags.DEFINE_string("bertviz", None, "JSON file to write, with the attention weights for BertViz.")
flags.DEFINE_string("against", None, "Run directory of another run to compare with.")
flags.DEFINE_bool(
    "evaluate", False, "Print the faithfulness of the methods instead of writing a page."
)
flags.DEFINE_integer("examples", 100, "Number of examples of --evaluate.", lower_bound=2)
cli.define_record()
flags.DEFINE_integer("seed", 0, "Seed of random choices and random orders.", lower_bound=0)


def explain() -> None:
    """Runs the command `launch.explain`."""
    from launch.runs import directory

    targets = _targets()
    cli.check_recordable()
    folder = cli.workdir()
    config = directory.saved_config(folder)
    cli.set_up_jax(config)
    if cli.FLAGS.evaluate:
        _evaluate(folder, config)
    else:
        _explain(folder, config, targets)


def _targets() -> dict[str, str]:
    """Checks the flags; returns the files to write, by the flag that names them.

    Raises:
      UserError: a flag is missing, or flags cannot be combined.
    """
    from launch.engine import targets
    from tasks.common.errors import UserError

    found = {name: cli.FLAGS[name].value for name in ("output", "json", "bertviz")}
    given = {name: value for name, value in found.items() if value is not None}
    if cli.FLAGS.evaluate:
        for name in ("input", "select", *given):
            if cli.FLAGS[name].present:
                raise UserError(f"--{name}: cannot be combined with --evaluate; leave one out")
        return {}
    targets.check(found)
    if not given:
        raise UserError("--output is missing; name a page, such as --output=page.html")
    if cli.FLAGS.input and cli.FLAGS.select:
        raise UserError("--input: cannot be combined with --select; leave one of them out")
    for name in ("examples", "record", "results"):
        if cli.FLAGS[name].present:
            raise UserError(f"--{name}: is only used with --evaluate; leave it out")
    return given


def _explain(folder: Path, config: Any, targets: Mapping[str, str]) -> None:
    from launch.engine.progress import PredictionProgress
    from launch.engine.targets import write
    from launch.reporting import explanation_page, explanation_tables
    from launch.runs import directory, selecting
    from launch.runs.explaining import Explaining

    raw, split = cli.FLAGS.input, cli.FLAGS.split
    other = _other(config) if cli.FLAGS.against else None
    task = directory.restored_task(config, folder) if raw else _prepared(config, folder)
    loaded = _loaded(task, config, folder)
    own = Explaining(*loaded, seed=cli.FLAGS.seed)
    chosen, rows = list(range(len(raw))), []
    if not raw:
        chosen, rows = selecting.select(
            *loaded, split, cli.FLAGS.select, cli.FLAGS.count, cli.FLAGS.seed
        )

    def explained(model: Explaining) -> list[Any]:
        subjects = model.of_inputs(raw) if raw else model.of_split(split, chosen)
        progress = PredictionProgress(len(chosen), "examples", "explained")
        return model.explain_all(subjects, cli.FLAGS.methods, progress.add)

    found, compared = explained(own), [] if other is None else explained(other)
    if rows:
        found, compared = (selecting.identified(part, rows, chosen) for part in (found, compared))
    title = f"{config.name}: {config.task.replace('_', ' ')} of {config.data.name}"
    made = {
        "output": lambda: explanation_page.page(
            found,
            title,
            rows=rows if cli.FLAGS.list else [],
            summary=explanation_tables.summarize(rows),
            against=compared,
            names=(folder.name, Path(cli.FLAGS.against or "").name),
            metric=selecting.score_name(task, rows),
        ),
        "json": lambda: output.as_json(explanation_page.as_json(found)) + "\n",
        "bertviz": lambda: json.dumps([_viewed(each) for each in found]) + "\n",
    }
    for name, target in targets.items():
        write(target, made[name]())


def _viewed(explanation: Any) -> dict[str, Any]:
    """Returns the BertViz data of an explanation.

    Maps whose numbers of layers or heads differ from those of the first map are left out.
    """
    from launch.reporting import explanation_page
    from tasks.common.errors import UserError

    maps = explanation.maps
    if not maps:
        raise UserError("--bertviz: this model has no attention weights; leave out the flag")
    same = [each for each in maps if each.weights.shape[:2] == maps[0].weights.shape[:2]]
    return explanation_page.bertviz(dataclasses.replace(explanation, maps=same))


def _prepared(config: Any, folder: Path) -> Any:
    from launch.runs.evaluation import prepared_for_evaluation

    return prepared_for_evaluation(config, folder, cli.paths())


def _loaded(task: Any, config: Any, folder: Path) -> tuple[Any, Any, Any, Any]:
    from launch.runs import directory

    steps, variables, _ = directory.load_variables(task, config, folder)
    return task, config, steps, variables


def _other(config: Any) -> Any:
    """Returns the `Explaining` of the run given by --against.

    Raises:
      UserError: the run has another task or other data.
    """
    from launch.runs import directory
    from launch.runs.explaining import Explaining
    from tasks.common.errors import UserError

    folder = Path(cli.FLAGS.against).expanduser()
    saved = directory.saved_config(folder)
    assert saved is not None
    if (saved.task, saved.data.name) != (config.task, config.data.name):
        raise UserError(
            f"--against={folder}: is a run of {saved.task} of {saved.data.name}, expected one of "
            f"{config.task} of {config.data.name}"
        )
    task = directory.restored_task(saved, folder) if cli.FLAGS.input else _prepared(saved, folder)
    return Explaining(*_loaded(task, saved, folder), seed=cli.FLAGS.seed)


def _evaluate(folder: Path, config: Any) -> None:
    import numpy as np

    from launch.engine.progress import PredictionProgress
    from launch.engine.writers import write_json
    from launch.reporting import results
    from launch.reporting.faithfulness_table import table
    from launch.runs import faithfulness
    from launch.runs.explaining import Explaining

    task = _prepared(config, folder)
    task, config, steps, variables = _loaded(task, config, folder)
    own, split = Explaining(task, config, steps, variables, cli.FLAGS.seed), cli.FLAGS.split
    indices = task.scored_examples(split)
    if cli.FLAGS.examples < len(indices):
        rng = np.random.default_rng(cli.FLAGS.seed)
        indices = np.sort(rng.choice(indices, cli.FLAGS.examples, replace=False))
    progress = PredictionProgress(len(indices), "examples", "explained")
    randomized = faithfulness.random_variables(task, config, variables)
    found = faithfulness.evaluate(
        own,
        split,
        indices.tolist(),
        methods=cli.FLAGS.methods,
        randomized=own.with_variables(randomized),
        other=_other(config) if cli.FLAGS.against else None,
        progress=progress.add,
    )
    record = {
        "kind": results.FAITHFULNESS,
        "task": config.task,
        "data": config.data.name,
        "experiment": config.name,
        "seed": cli.FLAGS.seed,
        **found,
        "device": results.device(),
        "command": cli.command(),
        "commit": results.commit(),
        "versions": results.versions(),
    }
    write_json(folder / f"explanation-{split}.json", record)
    if cli.FLAGS.record:
        path = results.faithfulness_path(record, Path(cli.FLAGS.results))
        write_json(path, record)
        print(f"recorded: {path}", file=sys.stderr)
    print("\n".join(table(record)))


if __name__ == "__main__":
    cli.main(explain, __doc__)
