"""What a metric is, what it gives, and the checks that every metric shares."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from .._checks import (
    check_callable,
    check_choice,
    check_count,
    check_entries,
    check_kind,
    check_numbers,
    check_tensor,
)

__all__ = ["Direction", "Estimate", "FunctionMetric", "Measured", "Metric", "TwoSample", "title"]

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


class Metric(Protocol):
    """What a comparison measures: a callable that declares which way it is better.

    A function declares it as attributes, or through :class:`FunctionMetric`. An optional ``name``
    is printed; otherwise that of the function or class is.

    >>> from scoregen.metrics import MMD
    >>> metric: Metric = MMD()
    >>> metric.direction, metric.biased
    ('lower', False)
    """

    @property
    def direction(self) -> Direction:
        """Whether "lower" or "higher" values are better."""

    @property
    def biased(self) -> bool:
        """Whether the expected value moves with the number of samples."""

    def __call__(self, samples: Tensor, reference: Tensor, /) -> Estimate | float:
        """From samples (n, *event) and reference (m, *event); a number has an unknown error."""


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

    direction: ClassVar[Direction]
    biased: ClassVar[bool]

    @abstractmethod
    def against(self, reference: Tensor) -> Callable[[Tensor], Measured]:
        """The measurement against one reference (m, *event), as a function of the samples."""

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """The metric of samples (n, *event) and reference (m, *event)."""
        checked_pair(samples, reference)
        return self.against(reference)(samples).estimate


@dataclass(frozen=True)
class FunctionMetric:
    """A function as a metric, with what a comparison has to know of it.

    Args:
        function: (samples, reference) -> Estimate or number.
        direction: "lower" or "higher", whichever is better.
        biased: Whether its expected value moves with n, so that values at different n must not be
            compared; it then carries n in its title.
        name: Name to print; that of the function if empty.

    Raises:
        TypeError: For what is not callable.
        ValueError: For another direction.

    >>> def width(samples, reference):
    ...     return float(samples.std())
    >>> metric = FunctionMetric(width, direction="higher", biased=False)
    >>> metric(torch.tensor([0.0, 2.0]), torch.zeros(2)), metric.name
    (1.4142135381698608, 'width')
    """

    function: Callable[[Tensor, Tensor], Estimate | float]
    direction: Direction
    biased: bool
    name: str = ""

    def __post_init__(self) -> None:
        check_callable("function", self.function, "(samples, reference) -> Estimate or number")
        check_kind("name", self.name, str, '"width", or "" for that of the function')
        declared(self)
        if not self.name:
            object.__setattr__(self, "name", _name_of(self.function))

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate | float:
        """What the function gives."""
        return self.function(samples, reference)


def declared(metric: Metric) -> tuple[Direction, bool]:
    """The direction and the bias that a metric declares; nothing is assumed.

    Raises:
        TypeError: for what is no metric, or declares not both.
        ValueError: for a direction other than "lower" and "higher".
    """
    check_callable("metric", metric, "(samples, reference) -> Estimate or number")
    name = _name_of(metric)
    if not (hasattr(metric, "direction") and hasattr(metric, "biased")):
        raise TypeError(
            f'the metric {name} must declare `direction`, "lower" or "higher", and `biased`, '
            "whether its value moves with the number of samples: as attributes, or by "
            f"scoregen.metrics.FunctionMetric({name}, direction=..., biased=...)"
        )
    check_choice(f"the direction of {name}", metric.direction, ("lower", "higher"))
    if not isinstance(metric.biased, bool):
        raise TypeError(f"`biased` of the metric {name} must be True or False: {metric.biased!r}")
    return metric.direction, metric.biased


def _name_of(metric: object) -> str:
    """The name it gives itself, or that of its function or class."""
    for name in ("name", "__name__"):
        stated = getattr(metric, name, None)
        if isinstance(stated, str) and stated:
            return stated
    return type(metric).__name__


def title(metric: Metric, n: int) -> str:
    """Name of a metric as it should be printed beside a value from n samples.

    A metric whose expectation depends on n carries n in its title, so that values at different
    n are not compared by mistake.

    Args:
        metric: Any metric; a function is called by its own name.
        n: The number of samples it was given.

    Raises:
        TypeError: For a metric that does not declare its direction and its bias.

    >>> from scoregen.metrics import MMD, Frechet
    >>> title(Frechet(), 2000), title(Frechet(), 297), title(MMD(), 2000)
    ('frechet-2k', 'frechet-297', 'mmd2')
    """
    _, biased = declared(metric)
    check_count("n", n, 0)
    name = _name_of(metric)
    if not biased:
        return name
    return f"{name}-{n / 1000:g}k" if n >= 1000 and n % 100 == 0 else f"{name}-{n}"


def check_rows(name: str, table: object) -> None:
    """Rows of finite numbers."""
    for i, row in enumerate(check_entries(name, table, "rows of numbers")):
        check_numbers(f"{name}[{i}]", row)


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
