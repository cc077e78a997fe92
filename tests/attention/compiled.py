"""Compiled calls for tests: op by op, most of their time would go into compiling each operation."""

import functools

import jax


def compiled(function):
    """Returns a function or module that is compiled; numbers and words as keywords are static."""

    @functools.cache
    def program(static):
        return jax.jit(functools.partial(function, **dict(static)))

    def call(*arrays, **options):
        static = {n: x for n, x in options.items() if isinstance(x, bool | int | float | str)}
        rest = {name: x for name, x in options.items() if name not in static}
        return program(tuple(sorted(static.items())))(*arrays, **rest)

    return call
