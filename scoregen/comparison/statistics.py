"""Means over seeds, differences on common noise, and what is a tie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from .._checks import shown
from .table import Row

__all__ = ["Interval", "Study", "Summary", "Verdict", "pooled"]

_LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, its standard error and a 95 % interval.

    >>> Interval(1.0, 0.5, 0.0, 2.0).low
    0.0
    """

    value: float
    stderr: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """A sampler at a budget over all seeds.

    Args:
        name: the sampler, with its model where there are several.
        model, sampler, budget, metric: as in `Row`.
        count: samples per seed.
        seeds: number of seeds that are done.
        nfe, depth: mean evaluations per sample, and one after the other.
        seconds: median over seeds.
        value, stderr, low, high: mean over seeds, its standard error and 95 % interval, given the
            reference.
        status: "done", or why there is no value.

    >>> Summary("a", "m", "a", 5, "mmd2", 9, 1, 5.0, 5, 0.1, 0.2, 0.01, 0.18, 0.22).status
    'done'
    """

    name: str
    model: str
    sampler: str
    budget: int | None
    metric: str
    count: int
    seeds: int
    nfe: float
    depth: float
    seconds: float
    value: float
    stderr: float
    low: float
    high: float
    status: str = "done"


@dataclass(frozen=True)
class Verdict:
    """How one sampler compares with another at a budget, on common noise.

    Args:
        name: of the sampler.
        baseline: of the one it is compared with.
        metric: title.
        budget: evaluations allowed.
        difference: its value minus the baseline's, the mean over seeds.
        stderr: of that, paired.
        low, high: 95 % interval.
        seeds: number of seeds.
        verdict: "better", "worse" or "tie".

    >>> print(Verdict("Heun", "DDIM", "mmd2", 10, -0.02, 0.003, -0.026, -0.014, 5, "better"))
    Heun is better than DDIM: mmd2 differs by -0.02 ± 0.003 at 10 evaluations, 5 seeds
    """

    name: str
    baseline: str
    metric: str
    budget: int
    difference: float
    stderr: float
    low: float
    high: float
    seeds: int
    verdict: str

    def __str__(self) -> str:
        what = f"{self.name} is {self.verdict} than {self.baseline}"
        if self.verdict == "tie":
            what = f"{self.name} and {self.baseline} tie"
        return (
            f"{what}: {self.metric} differs by {self.difference:.3g} ± {self.stderr:.1g} at "
            f"{self.budget} evaluations, {self.seeds} seed{'s' * (self.seeds != 1)}"
        )


@runtime_checkable
class Study(Protocol):
    """What tables, figures and the report read of a `Comparison`.

    >>> from scoregen.comparison import Comparison
    >>> study: Study = Comparison([], {})
    """

    @property
    def rows(self) -> list[Row]:
        """All rows."""

    @property
    def manifest(self) -> dict[str, Any]:
        """What made them."""

    @property
    def summaries(self) -> list[Summary]:
        """The rows over their seeds."""

    @property
    def metrics(self) -> list[str]:
        """Titles of the metrics."""

    @property
    def data_range(self) -> tuple[float, float]:
        """Values shown as black and white."""

    def name(self, row: Row) -> str:
        """The sampler, with its model where there are several."""

    def direction(self, metric: str) -> str:
        """Which way is better."""

    def at(self, budget: int, metric: str) -> list[Summary]:
        """The runs within a budget."""

    def ties(self, summaries: Sequence[Summary]) -> list[Summary]:
        """The best and what ties with it."""

    def pictured(self, most: int = 25) -> dict[tuple[str, float], Tensor]:
        """Samples to look at."""


def check_study(study: object) -> None:
    """Refuse what has no rows and summaries."""
    if isinstance(study, type) or not isinstance(study, Study):
        raise TypeError(
            "study must be a Comparison, as compare(...) and comparison.load(folder) return; got "
            f"{shown(study)}"
        )


def pooled(
    values: Sequence[float], errors: Sequence[float | None], own: Sequence[float] = ()
) -> Interval:
    """The mean over seeds with its standard error and 95 % interval.

    Within a seed the influences of the samples give a standard error with many degrees of freedom,
    ``sqrt(sum_k e_k^2) / S``. Where the seeds vary more than those explain (chi-squared at 0.1 %),
    or there are none, the spread over seeds takes its place, with Student's t. For one seed
    without influences the metric's own standard error is all there is.

    Args:
        values: one per seed.
        errors: standard errors within the seeds by influence, None where there is no such.
        own: what the metric says, for a single seed.

    >>> round(pooled([1.0, 3.0], [None, None]).stderr, 9)
    1.0
    """
    count = len(values)
    if not count:
        return Interval(math.nan, math.nan, math.nan, math.nan)
    from scipy import special  # slow to import

    mean = float(np.mean(values))
    spread = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    within = [e for e in errors if e is not None]
    if len(within) == count:
        stderr = math.sqrt(sum(e**2 for e in within)) / count
        explained = count == 1 or (count - 1) * spread**2 <= stderr**2 * float(
            special.chdtri(count - 1, 0.001)
        )
        if explained:
            return _interval(mean, stderr, math.inf)
    if count > 1:
        return _interval(mean, spread, count - 1)
    return _interval(mean, own[0] if own else math.nan, math.inf)


def _interval(mean: float, stderr: float, freedom: float) -> Interval:
    from scipy import special  # slow to import

    tail = 0.5 + _LEVEL / 2
    reach = float(special.ndtri(tail) if math.isinf(freedom) else special.stdtrit(freedom, tail))
    return Interval(mean, stderr, mean - reach * stderr, mean + reach * stderr)


def error_of(influence: np.ndarray | None) -> float | None:
    """Standard error of a mean of influences, or of the means of their blocks."""
    if influence is None or len(influence) < 2:
        return None
    return float(influence.std(ddof=1)) / math.sqrt(len(influence))


def verdict(interval: Interval, direction: str) -> str:
    """What an interval of a difference says."""
    if not (interval.low > 0 or interval.high < 0):
        return "tie"
    return "better" if (interval.value < 0) == (direction == "lower") else "worse"
