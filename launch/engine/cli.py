"""What every verb does around its work: flags, paths, and mistakes told in one line."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from tasks.common.errors import UserError

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "data_dir", None, "Folder of prepared data sets (default: ATTENTION_DATA_DIR, or in cache_dir)."
)
flags.DEFINE_string(
    "cache_dir",
    None,
    "Folder for downloads, tokenizers and baselines (default: ATTENTION_CACHE_DIR, or "
    "~/.cache/attention).",
)
flags.DEFINE_string(
    "data_mirror",
    None,
    "Folder where sources are looked for first (default: ATTENTION_DATA_MIRROR).",
)


def paths():
    """Where data is kept, from flags and environment."""
    from tasks.common.paths import Paths

    return Paths.default(
        data_dir=FLAGS.data_dir, cache_dir=FLAGS.cache_dir, mirror=FLAGS.data_mirror
    )


def define_config() -> None:
    """Defines --config, a file whose keys `--config.key=value` overrides."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, for example configs/text_classification.py:sst2; "
        "--config.model.num_layers=2 overrides a key.",
    )


def define_workdir() -> None:
    """Defines --workdir."""
    flags.DEFINE_string("workdir", None, "Run folder, for example runs/first.")


def define_record() -> None:
    """Defines --record and --results."""
    flags.DEFINE_bool(
        "record",
        False,
        "Also write a run file under --results; refuses a tree that is not committed.",
    )
    flags.DEFINE_string("results", "results", "Folder of the run files that --record writes.")


def check_recordable() -> None:
    """With --record: refuses a tree whose commit would not tell what ran."""
    if FLAGS.record:
        from launch.engine import results

        results.check_recordable()


def record(records: Iterable[Mapping[str, Any]]) -> None:
    """With --record: writes the run files."""
    if FLAGS.record:
        from launch.engine import results

        for one in records:
            print(f"recorded: {results.save_record(one, Path(FLAGS.results))}")


def required(name: str) -> str:
    """Value of a flag that has to be given.

    Raises:
      UserError: it was not.
    """
    if not FLAGS[name].value:
        raise UserError(f"--{name} is missing; see --help")
    return FLAGS[name].value


def workdir() -> Path:
    """The run folder that --workdir names."""
    return Path(required("workdir")).expanduser()


def experiment():
    """The experiment that --config and its overrides describe."""
    from launch.engine.config import resolve

    if not FLAGS["config"].present:
        raise UserError("--config is missing, for example --config=configs/text_classification.py")
    config = FLAGS["config"].value
    if not hasattr(config, "to_dict"):
        raise UserError(f"--config: get_config must return experiment(...), got {config!r}")
    return resolve(config)


def command() -> str:
    """The command as typed, for records."""
    verb = Path(sys.argv[0]).stem
    return shlex.join(["python", "-m", f"launch.{verb}", *sys.argv[1:]])


def set_up_determinism() -> None:
    """Random numbers that do not depend on the mesh."""
    import jax

    jax.config.update("jax_default_prng_impl", "threefry2x32")
    jax.config.update("jax_threefry_partitionable", True)


def set_up_jax(config=None) -> None:
    """Devices and compilation cache; before anything is compiled."""
    import jax

    from launch.engine.memory import keep_large_buffers
    from launch.engine.sharding import request_devices

    keep_large_buffers()
    set_up_determinism()
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(paths().cache_dir / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # A cache that cannot be written is slower, no more.
    warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")
    if config is not None:
        request_devices(config.mesh)


def main(verb: Callable[[], None], usage: str) -> None:
    """Runs a verb: a person's mistake is one line on standard error and exit status 2."""
    logging.set_verbosity(logging.WARNING)
    sys.modules["__main__"].__doc__ = usage
    for name in ("config", "workdir", "data_dir", "cache_dir", "data_mirror"):
        if name in FLAGS:
            # So that --help shows it, though it is defined here.
            FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])
    app.run(lambda _: _guarded(verb), flags_parser=_parse)


def _guarded(verb: Callable[[], None]) -> None:
    from launch.engine.errors import Interrupted

    try:
        verb()
    except UserError as error:
        fail(str(error))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`): nothing more to say, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: str) -> None:
    """One line on standard error, exit status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        from launch.engine.config import load_module

        if "config" in FLAGS and (given := _given_config(argv)):
            load_module(given.partition(":")[0])
        rest = FLAGS(list(argv))
    except UserError as error:
        fail(str(error))
    except Exception as error:
        with contextlib.suppress(UserError):
            _explain(argv)
            fail(f"{error}")
        raise AssertionError from error
    if rest[1:]:
        fail(f"{rest[1]!r} is not a flag; flags begin with --, see --help")
    return rest


def _given_config(argv: Sequence[str]) -> str | None:
    for place, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in ("--config", "-config"):
            return value if equals else next(iter(argv[place + 1 : place + 2]), None)
    return None


def _explain(argv: Sequence[str]) -> None:
    """Says better than the flags library what is wrong with --config or its overrides."""
    from launch.engine import config as configs

    given = _given_config(argv)
    overrides = [
        word.lstrip("-").partition("=")[0].removeprefix("config.")
        for word in argv
        if word.startswith(("--config.", "-config."))
    ]
    if "config" in FLAGS and overrides and not given:
        fail("--config is missing: --config.key=value overrides a key of --config=FILE")
    if "config" not in FLAGS or not given:
        return
    try:
        known = configs.flatten(configs.to_dict(configs.load_file(given)))
    except UserError as error:
        fail(str(error))
    for key in overrides:
        if key not in known:
            inner = [name for name in known if name.startswith(f"{key}.")]
            if inner:
                fail(f"config.{key}: is a group of keys; set one of them, such as {inner[0]}")
            fail(f"config.{key}: no such key{configs.nearest(key, known)}")
