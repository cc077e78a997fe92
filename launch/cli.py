"""Command-line entry point shared by all commands: flags, data paths, one-line error messages."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from launch import command_line
from launch.engine import output
from launch.engine.errors import Interrupted, keep_interrupts, signal_of, system_error
from tasks.common.data.own import COLUMNS
from tasks.common.errors import UserError

FLAGS = flags.FLAGS
# Thresholds of the garbage collector during a command; see `gc.set_threshold`.
_COLLECTIONS = (50_000, 20, 20)

flags.DEFINE_string(
    "data_dir",
    None,
    "Directory of prepared data sets (default: ATTENTION_DATA_DIR, else data/ in cache_dir).",
)
flags.DEFINE_string(
    "cache_dir",
    None,
    "Directory for downloads, tokenizers and baselines (default: ATTENTION_CACHE_DIR, else "
    "~/.cache/attention).",
)
flags.DEFINE_string(
    "data_mirror",
    None,
    "Directory with copies of downloads, searched before the network (default: "
    "ATTENTION_DATA_MIRROR).",
)


def paths():
    """Returns the directories of data sets and caches from the flags and the environment."""
    from tasks.common.data.paths import Paths

    return Paths.default(
        data_dir=FLAGS.data_dir, cache_dir=FLAGS.cache_dir, mirror=FLAGS.data_mirror
    )


def define_config() -> None:
    """Defines --config, and `--config.key=value`, which overrides a key of the config file."""
    flags.DEFINE_string(
        "config",
        None,
        "Config file, for example configs/text_classification.py:sst2; "
        "--config.model.num_layers=2 overrides a key, and --help lists all keys of the config.",
    )
    define_own_data()
    command_line.overrides.allowed = True


def define_own_data() -> None:
    """Defines --data and the flags of its columns."""
    flags.DEFINE_string(
        "data",
        None,
        "Your own data, for configs/TASK.py:own. Either one file, folder or pattern such as "
        "'clips/*.csv', which is divided into training, validation and test splits; or one for "
        "each split, as TRAIN,VALIDATION,TEST.",
    )
    for name, content in COLUMNS.items():
        flags.DEFINE_string(name, None, f"Column of --data with the {content}.")


def own_columns() -> dict[str, str]:
    """Returns the names of columns of --data, by the flag that gives them."""
    return {name: FLAGS[name].value for name in COLUMNS if FLAGS[name].value is not None}


def define_workdir() -> None:
    """Defines --workdir."""
    # Two commands in one process may both define this flag.
    if "workdir" not in FLAGS:
        flags.DEFINE_string("workdir", None, "Run directory, for example runs/first.")


def define_answers() -> None:
    """Defines the flags for the options of predictions; see `tasks.answers.AnswerOptions`."""
    flags.DEFINE_integer(
        "top_k", None, "Number of classes, recommended items or words of a prediction."
    )
    flags.DEFINE_float(
        "threshold",
        None,
        "Minimum probability of a label, or minimum score of an object. A text or image gets no "
        "label if the probability of its best class is below this value. With --positive: minimum "
        "probability at which that class is predicted (default 0.5).",
    )
    flags.DEFINE_string(
        "positive", None, "Class that is predicted if its probability is at least --threshold."
    )


def answer_options():
    """Returns the options of predictions from the flags."""
    from tasks.answers import AnswerOptions

    return AnswerOptions(FLAGS.top_k, FLAGS.threshold, FLAGS.positive)


def define_track() -> None:
    """Defines --track."""
    flags.DEFINE_multi_string(
        "track",
        [],
        "Also send metrics, test results and figures to this tracker, mlflow or wandb; repeatable. "
        "TensorBoard files are always written.",
    )


def tracked() -> list[str]:
    """Returns the trackers given by --track, after checking that they are installed."""
    from launch.engine import trackers

    names = [name for word in FLAGS.track for name in word.split(",")]
    trackers.check(names)
    return list(dict.fromkeys(names))


def define_distributed() -> None:
    """Defines --distributed and --distributed_timeout."""
    # Two commands in one process may both define these flags.
    if "distributed" in FLAGS:
        return
    flags.DEFINE_string(
        "distributed",
        None,
        "Run as one of several processes: auto, if JAX detects them (Slurm, Open MPI, Kubernetes, "
        "TPU pods), or HOST:PORT,N,I with the address of the first process, the number of "
        "processes and the index of this one.",
    )
    flags.DEFINE_integer(
        "distributed_timeout",
        300,
        "Seconds to wait until all processes of --distributed are connected.",
    )


def distributed():
    """Returns the connection that --distributed describes; None without the flag.

    In the process that the user starts, this function runs the same command line in a supervised
    process, and exits with the status of that process; see `launch.engine.supervision`.
    """
    from launch.engine import processes, supervision

    if FLAGS.distributed is None:
        return None
    connection = processes.parse(FLAGS.distributed, FLAGS.distributed_timeout)
    if not os.environ.get(supervision.SUPERVISED):
        words = [sys.executable, "-m", f"launch.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
        sys.exit(supervision.supervise(words, str(connection)))
    return connection


def define_arguments() -> None:
    """Makes the command accept words that are not flags; `arguments` returns them."""
    command_line.overrides.arguments = True
    FLAGS.set_gnu_getopt(True)


def arguments() -> Sequence[str]:
    """Returns the words of the command line that are not flags."""
    return command_line.overrides.rest


def define_match() -> None:
    """Defines --match and --match_key."""
    flags.DEFINE_enum(
        "match",
        None,
        ["parameters"],
        "Adjust one dimension of each compared model so that each has the parameter count of the "
        "first model, within 2 %.",
    )
    flags.DEFINE_multi_string(
        "match_key",
        [],
        "Config key that --match may adjust, such as model.model_size; by default the first of "
        "feedforward_size, hidden_size, state_size, pyramid_channels, channels, embedding_size and "
        "model_size that gives the parameter count.",
    )


def define_stack() -> None:
    """Defines --stack_seeds."""
    flags.DEFINE_bool(
        "stack_seeds",
        False,
        "Train the seeds of an experiment in one program that is batched over them, with the same "
        "losses.",
    )


def define_placement() -> None:
    """Defines the flags that let several processes execute runs at the same time."""
    flags.DEFINE_string(
        "on",
        None,
        "Execute several runs at once: local:4 in 4 processes of this machine, each on its own "
        "cores; ray on a Ray cluster, which is started on this machine if there is none; "
        "ray:HOST:PORT or ray:auto on a running cluster. By default runs follow each other in this "
        "process.",
    )
    flags.DEFINE_integer(
        "retries",
        1,
        "Number of further attempts of a run whose worker or machine failed.",
        lower_bound=0,
    )
    flags.DEFINE_float(
        "cpus_per_run", None, "CPUs of each run on Ray (default: 1).", lower_bound=1e-3
    )
    flags.DEFINE_float(
        "gpus_per_run",
        None,
        "GPUs of each run on Ray (default: 1 if the cluster has GPUs, otherwise 0).",
        lower_bound=0,
    )


def define_record() -> None:
    """Defines --record and --results."""
    flags.DEFINE_bool(
        "record", False, "Also write a run file under --results; requires a clean git tree."
    )
    flags.DEFINE_string("results", "results", "Directory in which --record writes run files.")


def check_recordable() -> None:
    """Raises if --record is set and files differ from the git commit, or there is no commit."""
    if FLAGS.record:
        from launch.reporting import results

        results.check_recordable()


def record(records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a run file for each record if --record is set."""
    if FLAGS.record:
        from launch.reporting import results

        for one in records:
            print(f"recorded: {results.save_record(one, Path(FLAGS.results))}")


def status(line: str) -> None:
    """Prints a line about the progress of a command on standard error."""
    print(line, file=sys.stderr, flush=True)


def required(name: str) -> str:
    """Returns the value of a required flag.

    Raises:
      UserError: the flag was not given.
    """
    if not FLAGS[name].value:
        # The help text of a flag describes its value.
        about = " ".join((FLAGS[name].help or "").split()).rstrip(".")
        raise UserError(f"--{name} is missing; write --{name}=VALUE ({about}), see --help")
    return FLAGS[name].value


def workdir() -> Path:
    """Returns the run directory given by --workdir."""
    return Path(required("workdir")).expanduser()


def experiment():
    """Returns the experiment described by --config and its overrides."""
    from launch.engine.config import resolve

    if command_line.overrides.values is None:
        raise UserError("--config is missing, for example --config=configs/text_classification.py")
    return resolve(command_line.overrides.values)


def command() -> str:
    """Returns the command line for run records, without the flags in `command_line.PLACEMENT`."""
    name = Path(sys.argv[0]).stem
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        flag, equals, _ = word.lstrip("-").partition("=")
        if not word.startswith("-") or flag not in command_line.PLACEMENT or flag not in FLAGS:
            kept.append(word)
        elif not equals:
            next(words, None)
    return shlex.join(["python", "-m", f"launch.{name}", *kept])


def set_up_jax(config=None, connection=None) -> None:
    """Sets up devices and the compilation cache; call this before anything is compiled.

    Args:
      config: experiment, whose mesh config gives the number of virtual CPU devices; None to use the
        devices as they are.
      connection: connection to the other processes of the run, see `distributed`.
    """
    from launch.engine import devices, processes

    devices.set_up_jax(paths().cache_dir, config, connection)
    if not processes.is_first():
        # The first process writes the output of the command.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def set_up_process() -> None:
    """Sets up logging, encodings and the handling of errors in threads, callbacks and tasks."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    output.tolerate_narrow_encodings()
    threading.excepthook = _failed_thread
    sys.unraisablehook = _failed_callback
    logging.getLogger("asyncio").addFilter(_is_no_system_error)
    keep_interrupts()


def main(command: Callable[[], None], usage: str) -> None:
    """Runs a command; user errors are printed as one line on stderr, with exit status 2."""
    if output.reopen_closed():
        fail("standard output is closed; send it to a file, a pipe or /dev/null")
    set_up_process()
    sys.modules["__main__"].__doc__ = usage
    for flag in FLAGS.flags_by_module_dict().get(__name__, ()):
        # --help shows only the key flags of the main module, so the flags of this module must be
        # registered as such.
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    # The objects that imports create stay until the end of the process, so the garbage collector
    # would visit them again and again, for no use.
    gc.disable()
    try:
        app.run(
            lambda _: _guarded(lambda: _run(command)),
            flags_parser=lambda argv: _guarded(lambda: command_line.parse(argv)),
        )
    except SystemExit as ended:
        if ended.code:
            _leave(ended.code if isinstance(ended.code, int) else 1)
        raise
    except Exception:
        if _processes() is not None:
            traceback.print_exc()
            _leave(1)
        raise
    finally:
        gc.enable()


def _run(command: Callable[[], None]) -> None:
    """Runs a command with a garbage collector that ignores the objects of the imports so far."""
    gc.freeze()
    gc.set_threshold(*_COLLECTIONS)
    gc.enable()
    command()


def _processes() -> Any:
    """Returns the module `launch.engine.processes` if it has been imported, else None."""
    return sys.modules.get("launch.engine.processes")


def _leave(status: int) -> None:
    """Ends this process with a status; does nothing if the run has no other process."""
    if (processes := _processes()) is not None:
        processes.leave(status)


def _guarded(function: Callable[[], Any]) -> Any:
    try:
        result = function()
        # A closed pipe or a full disk may raise only when the output is flushed.
        sys.stdout.flush()
        return result
    except UserError as error:
        fail(str(error))
    except Interrupted as stopped:
        if (processes := _processes()) is None or processes.is_first():
            print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    except KeyboardInterrupt as stopped:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(128 + signal_of(stopped))
    except BrokenPipeError:
        output.discard_closed()
        fail("the output pipe was closed by its reader")
    except Exception as error:
        if (processes := _processes()) is not None:
            processes.end_if_lost(error)
        # Exceptions that are not errors of the operating system are raised: absl reports the errors
        # of flags, and all other exceptions are bugs.
        reason = system_error(error)
        if reason is None:
            raise
        if ": " not in reason:
            # An error that names no path may come from a standard stream.
            folder = f"--workdir={FLAGS.workdir} or " if FLAGS.get_flag_value("workdir", "") else ""
            reason = f"{folder}standard output: {reason}"
        fail(reason)


def _failed_thread(failure: Any) -> None:
    """Reports an exception in a thread, but not a system error, which the main thread reports."""
    if failure.exc_value is None or system_error(failure.exc_value) is None:
        threading.__excepthook__(failure)


def _failed_callback(failure: Any) -> None:
    """Ignores TensorStore callbacks on an event loop that an earlier error has closed.

    The save operation raises that earlier error itself.
    """
    if "Event loop is closed" not in str(failure.exc_value):
        sys.__unraisablehook__(failure)


def _is_no_system_error(record: logging.LogRecord) -> bool:
    """Filters log records: returns False, which drops the record, for a system error in a task.

    Each array of a checkpoint is written by its own task. If several tasks fail, the save operation
    raises one of the errors, and asyncio logs the others.
    """
    failure = record.exc_info[1] if record.exc_info else None
    return failure is None or system_error(failure) is None


def fail(message: str) -> None:
    """Prints one line on standard error and exits with status 2."""
    with contextlib.suppress(OSError):
        print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(2)
