"""Cases of `benchmarks.attention`: sizes, dtypes, options and target ratios.

In shapes, B is the batch size, N and K are the numbers of query heads and of key/value heads, T and
S the numbers of queries and of keys, and H is the head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

PASSES = {"forward": "forward", "both": "forward + backward"}


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of attention.

    Attributes:
      name: name in tables.
      batch, heads, queries, size: B, N, T, H.
      keys, key_value_heads: S and K; T and N if None.
      dtype: "float32" or "bfloat16".
      causal: whether the mask is causal.
      lengths: whether examples have random lengths, from half of the keys to all.
      window: number of visible keys before a query; None for all.
      big_bird: whether a query attends to local, global and random blocks of 64.
      scattered: whether a random nine tenths of the keys are visible, by an array mask.
      bias: "constant", "learned" (with its gradient) or None.
      cached: whether keys and values have the layout of `attention.cache`, [B, K, S, H].
      passes: keys of `PASSES`.
      targets: for each pass, the target: the largest acceptable ratio of the time of "auto" to that
        of PyTorch.
      growth: whether the case is a point of the curves over T; see `benchmarks.report.points`.
    """

    name: str
    batch: int
    heads: int
    queries: int
    size: int = 64
    keys: int | None = None
    key_value_heads: int | None = None
    dtype: str = "float32"
    causal: bool = False
    lengths: bool = False
    window: int | None = None
    big_bird: bool = False
    scattered: bool = False
    bias: str | None = None
    cached: bool = False
    passes: tuple[str, ...] = ("forward", "both")
    targets: dict[str, float] = dataclasses.field(default_factory=dict)
    growth: bool = False

    def __post_init__(self):
        for name, default in (("keys", self.queries), ("key_value_heads", self.heads)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)

    @property
    def label(self) -> str:
        """Name, sizes and dtype; `--cases` is matched against this text."""
        heads = f"{self.heads}"
        if self.key_value_heads != self.heads:
            heads += f"/{self.key_value_heads}"
        length = f"{self.queries}" if self.keys == self.queries else f"{self.queries}x{self.keys}"
        return f"{self.name} ({self.batch}, {heads}, {length}, {self.size}) {self.dtype}"

    @property
    def entries(self) -> int:
        """Number of attention weights, B·N·T·S."""
        return self.batch * self.heads * self.queries * self.keys


def _in_both(ratio: float) -> dict[str, float]:
    """Returns the targets of a case whose passes have the same one."""
    return {"forward": ratio, "both": ratio}


def cases() -> Iterator[Case]:
    """Yields all cases, short ones first."""
    for dtype in ("float32", "bfloat16"):
        half = dtype == "bfloat16"
        for batch, heads, length in ((8, 8, 128), (4, 8, 512), (1, 8, 2048), (1, 8, 8192)):
            for causal in (False, True):
                yield Case(
                    "causal" if causal else "all",
                    *(batch, heads, length),
                    dtype=dtype,
                    causal=causal,
                    targets=_in_both(0.8 if causal else 1.0),
                    growth=causal and not half and batch == 1,
                )
        yield Case("lengths", 4, 8, 512, dtype=dtype, lengths=True, targets=_in_both(1.0))
        yield Case("bias", 4, 8, 512, dtype=dtype, bias="constant", targets=_in_both(1.0))
        for batch in (1, 8):
            yield Case(
                *("decode", batch, 8, 1),
                keys=4096,
                dtype=dtype,
                lengths=True,
                cached=True,
                passes=("forward",),
                targets={"forward": 1.0},
            )
    for causal in (False, True):
        name, wanted = ("grouped causal", 0.8) if causal else ("grouped", 1.0)
        targets = _in_both(wanted)
        yield Case(name, 4, 8, 512, key_value_heads=2, causal=causal, targets=targets)
    yield Case("learned bias", 4, 8, 512, bias="learned", targets=_in_both(1.0))
    yield Case("bias", 1, 8, 2048, bias="constant", targets=_in_both(1.0))
    yield Case("window", 1, 8, 8192, window=256, causal=True, targets=_in_both(0.1))
    yield Case("BigBird", 1, 8, 8192, big_bird=True, targets=_in_both(0.25))
    for length in (512, 1024, 4096):
        yield Case(
            *("causal", 1, 8, length),
            causal=True,
            passes=("both",),
            targets={"both": 0.8},
            growth=True,
        )


def arrays(case: Case) -> dict[str, Any]:
    """Draws the arrays of a case as float32 NumPy arrays, from a fixed seed.

    Returns:
      A dict of the arrays. query, key, value and the cotangent of the result are [B, T or S,
      N or K, H]. mask is bool [B or 1, 1, T, S], bias [1, N, T, S], and lengths int32 [B]; each of
      them may be None.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    B, N, K, T, S, H = (
        *(case.batch, case.heads, case.key_value_heads),
        *(case.queries, case.keys, case.size),
    )

    def normal(*shape: int):
        return rng.standard_normal(shape, np.float32)

    drawn = {
        "query": normal(B, T, N, H),
        "key": normal(B, S, K, H),
        "value": normal(B, S, K, H),
        "cotangent": normal(B, T, N, H),
        "bias": normal(1, N, T, S) if case.bias else None,
        "lengths": None,
        "mask": None,
    }
    if case.lengths:
        drawn["lengths"] = np.linspace(S, S // 2, B + 1, dtype=np.int32)[1:]
    visible = rng.random((1, 1, T, S)) < 0.9 if case.scattered else None
    mask = structured_mask(case, drawn["lengths"], visible)
    if mask is not None:
        drawn["mask"] = np.asarray(mask.materialize(B, N, T, S))
    return drawn


def structured_mask(case: Case, lengths: Any, array: Any = None) -> Any:
    """Returns the `Mask` of a case, or None.

    Args:
      case: case of a benchmark.
      lengths: lengths of the keys, int [B], or None.
      array: mask of scattered cases, bool [B or 1, 1, T, S].
    """
    from attention import masks
    from attention.masks import patterns

    parts = []
    if case.window is not None:
        parts.append(masks.window(case.window, 0))
    elif case.causal:
        parts.append(masks.causal())
    if case.big_bird:
        parts.append(patterns.big_bird(64, window=1, global_blocks=1, random_blocks=2))
    if case.scattered:
        parts.append(masks.dense(array))
    if lengths is not None:
        parts.append(masks.lengths(key=lengths))
    mask = None
    for part in parts:
        mask = part if mask is None else mask & part
    return mask
