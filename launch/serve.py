"""Serves exported models over HTTP.

python -m launch.serve --export=exported --port=8000
python -m launch.serve --export=reviews=exported/one --export=exported/two --token=SECRET

The server listens on the local host unless --host is given. The name of a model is the name of its
folder, or NAME in --export=NAME=FOLDER. The path / has a web page to try the models. The path
/openapi.json describes all endpoints. Two example requests:

curl localhost:8000/models/exported -H "Content-Type: application/json"
    -d '{"inputs": "a gripping, funny film"}'
curl localhost:8000/models/photos -F file=@photo.jpg

Paths below /v2 implement the Open Inference Protocol, and /metrics has metrics for Prometheus.
/v2/health/ready returns status 503 until the programs of all batch sizes are compiled. After
SIGTERM the server finishes the accepted requests and exits.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from absl import flags

from launch import cli

if TYPE_CHECKING:
    from launch.serving.app import Application
    from launch.serving.options import Options

flags.DEFINE_multi_string(
    "export", [], "Folder written by launch.export, or NAME=FOLDER; may be repeated."
)
flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all addresses.")
flags.DEFINE_integer("port", 8000, "Port to listen on; 0 for a free one.", 0, 65535)
flags.DEFINE_integer("max_batch", 16, "Largest number of rows of a batch; a power of two.", 1, 4096)
flags.DEFINE_float(
    "max_wait_ms", 2.0, "Milliseconds that a row waits for a batch to fill.", 0, 10_000
)
flags.DEFINE_integer(
    "max_queue",
    256,
    "Largest number of inputs of a model that are accepted and not yet answered.",
    1,
)
flags.DEFINE_integer(
    "threads",
    0,
    "Threads of a program on a CPU, 0 for one per core; 1 is fastest for small models.",
    0,
)
flags.DEFINE_float(
    "timeout_s", 30.0, "Seconds after which an unanswered request fails.", 0.001, 3600
)
flags.DEFINE_float(
    "client_timeout_s", 30.0, "Seconds in which a client must send headers, and then the body.",
    0.001, 3600,
)  # fmt: skip
flags.DEFINE_integer("max_body_bytes", 16 * 2**20, "Maximum size of a request body in bytes.", 1)
flags.DEFINE_integer("max_text", 100_000, "Maximum number of characters of a text.", 1)
flags.DEFINE_integer(
    "max_pixels", 40_000_000, "Maximum number of pixels of an image.", 1, 40_000_000
)
flags.DEFINE_float("max_sound_s", 120.0, "Maximum duration of a sound in seconds.", 0.001)
flags.DEFINE_integer("max_cells", 500_000, "Maximum number of cells of a table.", 1)
flags.DEFINE_string(
    "token", None, "Bearer token that requests must send (default: ATTENTION_TOKEN, or none)."
)
flags.DEFINE_string(
    "cors_origin", "", "Origin whose pages may send requests, such as https://example.org."
)

# Seconds to wait, after the server has stopped, for the threads that run or compile programs.
_STOP_S = 1.0


def serve() -> None:
    """Runs the command `launch.serve`."""
    from launch.serving import server as servers
    from launch.serving.app import Application
    from launch.serving.options import read_exports

    options = _options()
    exports = read_exports(cli.FLAGS.export)
    opened = servers.listen(cli.FLAGS.host, cli.FLAGS.port)
    _limit_threads()
    cli.set_up_jax()
    _cache_all_programs()
    failures: list[str] = []

    def failed(name: str, error: BaseException) -> None:
        failures.append(f"--export: model {name} cannot be compiled ({error})")
        server.should_exit = True

    application = Application(exports, options, failed)
    server = servers.make_server(application.asgi(), options)
    host, port = opened.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"serving {', '.join(exports)} on http://{host}:{port}", flush=True)
    _announce(application)
    servers.serve(server, opened)
    if failures:
        cli.fail(failures[0])
    print("stopped", flush=True)
    if not all([model.stop(_STOP_S) for model in application.models.values()]):
        # A thread that is compiling cannot be stopped, and would crash the interpreter at its exit.
        sys.stderr.flush()
        os._exit(0)


def _limit_threads() -> None:
    """Lets JAX use the number of threads of --threads on a CPU."""
    if cli.FLAGS.threads:
        # XLA reads this variable when it creates the devices.
        os.environ["NPROC"] = str(cli.FLAGS.threads)


def _cache_all_programs() -> None:
    """Stores programs that compile quickly too, so that a restarted server compiles nothing."""
    import jax

    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _announce(application: Application) -> None:
    """Prints a line when all models are ready."""
    import gc
    import threading

    start = time.monotonic()

    def wait() -> None:
        for model in application.models.values():
            model.wait_ready()
        if application.ready:
            # Otherwise each full garbage collection would pause the server, to traverse objects
            # that live as long as the server.
            gc.collect()
            gc.freeze()
            print(f"ready after {time.monotonic() - start:.1f} s", flush=True)

    threading.Thread(target=wait, daemon=True, name="announcement").start()


def _options() -> Options:
    """Returns the server options given by the flags.

    Raises:
      UserError: a flag has a wrong value.
    """
    from launch.serving.options import Options
    from tasks.common.errors import UserError

    given = cli.FLAGS
    if given.token == "":
        raise UserError("--token is empty, expected a token; leave it out to require none")
    token = os.environ.get("ATTENTION_TOKEN", "") if given.token is None else given.token
    names = [name for name in Options.__dataclass_fields__ if name != "token"]
    return Options(token=token, **{name: given[name].value for name in names})


if __name__ == "__main__":
    cli.main(serve, __doc__)
