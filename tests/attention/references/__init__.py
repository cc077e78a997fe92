"""Reference implementations of the mechanisms in float64 NumPy, written from the equations.

Each file of this folder has a `REFERENCES`: (kind, name) -> function of a dict of inputs and a bool
array of what may be seen ([B, 1, T, S] for kernels and mixers, else [B, S]) that returns the output
and the weights (None where there are none). Optional is `VARIANTS`: name -> label -> options to
build it with and to pass on to the reference; without it a mechanism is built with none. Names that
several kinds use, those of alignments and pools, are (kind, name).
Variables that are no parameters reach the reference as `inputs["buffers"]`.
"""

import importlib
import pathlib

REFERENCES = {}
VARIANTS = {}
for _file in sorted(pathlib.Path(__file__).parent.glob("[a-z]*.py")):
    _module = importlib.import_module(f"{__name__}.{_file.stem}")
    REFERENCES |= getattr(_module, "REFERENCES", {})
    VARIANTS |= getattr(_module, "VARIANTS", {})
