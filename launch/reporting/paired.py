"""Paired comparisons of runs on the same examples: mean difference and confidence interval."""

from __future__ import annotations

import dataclasses
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tasks.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of the test examples of one run.

    Attributes:
      path: file that the scores were read from.
      values: float64 [n], whose mean is the primary metric.
      ids: example ids, uint64 [n], see `tasks.task.Task.example_ids`; None in files of earlier
        versions.
      overlap: number of successive examples whose targets overlap; see `mean_and_interval`.
    """

    path: Path
    values: np.ndarray
    ids: np.ndarray | None
    overlap: int

    def aligned_to(self, base: Scores, same_data: bool) -> np.ndarray:
        """Returns `values` in the order of the examples of `base`, matched by example id.

        Args:
          base: scores of another run.
          same_data: whether both runs have the same data config; without ids this is the only
            evidence that the examples are equal.

        Raises:
          UserError: the examples differ, or cannot be compared.
        """
        if len(self.values) != len(base.values):
            raise UserError(
                f"{self.path}: has {len(self.values)} test examples, expected the "
                f"{len(base.values)} examples of {base.path}"
            )
        if self.ids is None or base.ids is None:
            if not same_data:
                raise UserError(
                    f"{(self if self.ids is None else base).path}: has no example ids (written "
                    f"by an earlier version), and the data configs differ; repeat the run in "
                    f"another --workdir"
                )
            return self.values
        own, others = (np.argsort(ids, kind="stable") for ids in (self.ids, base.ids))
        if not np.array_equal(self.ids[own], base.ids[others]):
            raise UserError(
                f"{self.path}: the test examples differ from those of {base.path}; compare runs "
                f"on the same data"
            )
        found = np.empty_like(self.values)
        found[others] = self.values[own]
        return found


def read(folder: Path) -> Scores:
    """Reads the per-example test scores of a run directory.

    Raises:
      UserError: outputs-test.npz is missing or damaged.
    """
    path = folder / "outputs-test.npz"
    try:
        with np.load(path) as saved:
            # Earlier versions used the key "correctness".
            key = "correctness" if "correctness" in saved else "example_scores"
            return Scores(
                path,
                saved[key].astype(np.float64),
                saved.get("example_ids"),
                int(saved.get("overlap", 1)),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}); run python -m launch.evaluate "
            f"--workdir={folder} to write it again"
        ) from None


def mean_and_interval(difference: np.ndarray, overlap: int = 1) -> tuple[float, float]:
    """Computes the mean of paired differences and the half-width of its 95 % confidence interval.

    The interval is based on the normal distribution. Overlapping examples, such as windows of a
    series, have correlated errors. For an overlap of h, the variance of the mean is estimated as in
    Newey & West (1987) with 2 (h - 1) lags, as in the test of Diebold & Mariano (1995).

        Var = (γ_0 + 2 Σ_k (1 - k / (m + 1)) γ_k) / n,      k = 1 ... m = 2 (h - 1)

    Args:
      difference: differences [n] in the order of the examples.
      overlap: h, the number of successive examples whose targets overlap; 1 without overlap.

    Returns:
      Mean and half-width of the interval, which is 0 for a single example.
    """
    mean, n = float(difference.mean()), len(difference)
    if n < 2:
        return mean, 0.0
    centered = difference.astype(np.float64) - mean
    lags = min(2 * (overlap - 1), n - 1)
    variance = float(centered @ centered) / (n - 1)
    for lag in range(1, lags + 1):
        covariance = float(centered[lag:] @ centered[:-lag]) / (n - 1)
        variance += 2 * (1 - lag / (lags + 1)) * covariance
    return mean, 1.96 * math.sqrt(max(variance, 0.0) / n)


def format_interval(mean: float, half: float) -> str:
    """Formats a difference with the bounds of its interval: '+0.0120 [+0.0089, +0.0151]'."""
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def mean_and_t_interval(values: np.ndarray) -> tuple[float, float]:
    """Computes the mean of independent values and the half-width of its 95 % confidence interval.

    The interval is based on Student's t distribution, since there are few values.

    Args:
      values: values [n], such as differences of a metric by seed; n >= 2.
    """
    from scipy import stats

    n = len(values)
    quantile = float(stats.t.ppf(0.975, n - 1))
    return float(values.mean()), quantile * float(values.std(ddof=1)) / math.sqrt(n)


def format_difference(mean: float, half: float) -> str:
    """Formats a difference and the half-width of its interval, such as '+0.0120 ± 0.0031'."""
    return f"{mean:+.4f} ± {half:.4f}"
