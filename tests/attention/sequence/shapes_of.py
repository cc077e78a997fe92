"""Sizes of intermediate arrays of a function."""

import math

import jax
from jax.extend import core


def largest(function, *arguments):
    """Entries of the largest array that the function or its gradient forms anywhere."""

    def total(*arguments):
        return jax.numpy.sum(function(*arguments))

    jaxpr = jax.make_jaxpr(jax.value_and_grad(total))(*arguments)
    return max(math.prod(shape) for shape in _shapes(jaxpr.jaxpr))


def _shapes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
        ):
            if isinstance(inner, core.ClosedJaxpr):
                yield from _shapes(inner.jaxpr)
            elif isinstance(inner, core.Jaxpr):
                yield from _shapes(inner)
