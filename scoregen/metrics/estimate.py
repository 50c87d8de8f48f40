"""What a metric is, what it gives, and the checks that every metric shares."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .._checks import check_callable, check_count, check_entries, check_numbers, check_tensor

__all__ = ["Direction", "Estimate", "Measured", "Metric", "TwoSample", "title"]

Direction: TypeAlias = Literal["lower", "higher"]


class Estimate(NamedTuple):
    """A measured value and its standard error, one standard deviation of sampling.

    The standard error speaks of the finite numbers of samples and of reference points, not of
    the bias that some metrics have at small numbers: those say the number in their title.

    Args:
        value: The measured value.
        stderr: Its standard error, in the same units.

    >>> Estimate(0.5, 0.01).value
    0.5
    """

    value: float
    stderr: float


Metric: TypeAlias = Callable[[Tensor, Tensor], Estimate | float]
"""(samples (n, *event), reference (m, *event)) -> Estimate, or a number whose standard error is not
known. A metric may also carry ``name``, ``direction`` ("lower" or "higher" is better; lower where
it says nothing) and ``biased`` (its value moves with n)."""


class Measured(NamedTuple):
    """An estimate, and what each sample contributed to it.

    Args:
        estimate: value and standard error.
        influence: (n,), the first-order effect of each sample: the value moves with the samples as
            ``mean(influence)`` does, so two measurements on common noise differ with the standard
            error ``sd(influence_a - influence_b) / sqrt(n)``, in which a shared reference drops
            out. None where there is no such expansion.

    >>> Measured(Estimate(0.5, 0.1), None).estimate.value
    0.5
    """

    estimate: Estimate
    influence: Tensor | None


class TwoSample(ABC):
    """A metric that prepares its reference once and measures many sets of samples against it.

    >>> from scoregen.metrics import MMD
    >>> measure = MMD(lengthscale=1.0).against(torch.zeros(3, 1) + torch.tensor([[0.0], [1], [2]]))
    >>> len(measure(torch.ones(4, 1)).influence)
    4
    """

    @abstractmethod
    def against(self, reference: Tensor) -> Callable[[Tensor], Measured]:
        """The measurement against one reference (m, *event), as a function of the samples."""

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """The metric of samples (n, *event) and reference (m, *event)."""
        checked_pair(samples, reference)
        return self.against(reference)(samples).estimate


def title(metric: Metric, n: int) -> str:
    """Name of a metric as it should be printed beside a value from n samples.

    A metric whose expectation depends on n carries n in its title, so that values at different
    n are not compared by mistake.

    Args:
        metric: Any metric; a plain function is called by its own name.
        n: The number of samples it was given.

    >>> from scoregen.metrics import MMD, Frechet
    >>> title(Frechet(), 2000), title(Frechet(), 297), title(MMD(), 2000)
    ('frechet-2k', 'frechet-297', 'mmd2')
    """
    check_callable("metric", metric, "(samples, reference) -> Estimate or number")
    check_count("n", n, 0)
    name = getattr(metric, "name", None) or getattr(metric, "__name__", type(metric).__name__)
    if not getattr(metric, "biased", False):
        return str(name)
    return f"{name}-{n / 1000:g}k" if n >= 1000 and n % 100 == 0 else f"{name}-{n}"


def check_finites(name: str, values: object) -> tuple[float, ...]:
    """Finite numbers in a sequence."""
    return check_numbers(name, values, -math.inf, math.inf, open_low=True, open_high=True)


def check_rows(name: str, table: object) -> None:
    """Rows of finite numbers."""
    for i, row in enumerate(check_entries(name, table, "rows of numbers")):
        check_finites(f"{name}[{i}]", row)


def checked_batch(x: Tensor, which: str, least: int = 2) -> Tensor:
    """One batch (n, *event) of finite floating-point data with n >= least, or a clear error."""
    check_tensor(which, x)
    if not x.is_floating_point():
        raise TypeError(
            f"{which} must be floating point on the data's own scale, got {x.dtype}: for images "
            "0..255 compared on [-1, 1] pass x.float() / 127.5 - 1"
        )
    if x.ndim < 1 or x.shape[0] < least:
        raise ValueError(
            f"{which} must have shape (n, *event) with n >= {least}, got {tuple(x.shape)}: a "
            "distribution cannot be measured from fewer"
        )
    finite = torch.isfinite(x.reshape(x.shape[0], -1)).all(1)
    if not bool(finite.all()):
        rows = torch.nonzero(~finite).flatten().tolist()
        raise ValueError(
            f"{which} must be finite, got NaN or infinity in {len(rows)} of {len(x)} rows, the "
            f"first at row {rows[0]}"
        )
    return x


def checked_pair(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Samples and reference, both sound and with the same event shape and device."""
    checked_batch(samples, "samples")
    checked_batch(reference, "reference")
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"samples and reference must have one event shape, got {tuple(samples.shape[1:])} "
            f"and {tuple(reference.shape[1:])}"
        )
    if samples.device != reference.device:
        raise ValueError(
            f"samples and reference must be on one device, got {samples.device} and "
            f"{reference.device}: move one with .to"
        )
    return samples, reference


def flat(x: Tensor) -> Tensor:
    """Rows as float64 vectors: moments and distances lose digits in less."""
    return x.detach().reshape(x.shape[0], -1).to(torch.float64)
