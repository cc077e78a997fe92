"""The command `launch.serve` with programs that take 50 ms longer."""

import time

from launch import cli, serve
from launch.serving.models import Model

_run = Model._run


def _slow_run(*arguments, **options):
    time.sleep(0.05)
    return _run(*arguments, **options)


if __name__ == "__main__":
    Model._run = _slow_run
    cli.main(serve.serve, serve.__doc__)
