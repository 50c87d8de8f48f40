"""Frechet distance between the Gaussians that fit two sets of features, and to a known one."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from .._checks import check_numbers, check_tensor
from ..densities._gaussians import optimal_roots
from .estimate import (
    Direction,
    Estimate,
    Measured,
    TwoSample,
    check_rows,
    checked_batch,
    checked_pair,
    flat,
)
from .features import check_features, featured, labelled

__all__ = ["DebiasedFrechet", "Frechet", "MomentError"]


def _fit(x: Tensor, which: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, unbiased covariance and centred rows."""
    if len(x) <= x.shape[1]:
        warnings.warn(
            f"{len(x)} {which} for {x.shape[1]} features give a singular covariance: the Frechet "
            "distance is finite but far too large; take more samples, fewer features, or MMD",
            stacklevel=6,
        )
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1), centred


def _influence(centred: Tensor, shift: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Kantorovich potential of the optimal plan at each row: how it moves the squared distance."""
    z = centred @ torch.linalg.pinv(own, rtol=1e-7).T
    return 2 * centred @ shift + (centred**2).sum(1) - ((z @ own.T) * (z @ other.T)).sum(1)


def _squared(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The squared distance of two Gaussians, and the roots that the optimal map is made of."""
    r1, r2 = optimal_roots(c1, c2)
    return ((m1 - m2) ** 2).sum() + ((r1 - r2) ** 2).sum(), r1, r2


@dataclass(frozen=True)
class Frechet(TwoSample):
    """Squared Frechet distance between Gaussians fitted to features, as FID reports it.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^.5 C2 C1^.5)^.5)``

    Covariances have the divisor n - 1 and everything after the features is float64. The square
    roots come from symmetric eigendecompositions, so nothing turns complex and singular
    covariances stay finite (with a warning, when there are no more samples than features). The
    standard error is the delta method's: the variance over samples of the Kantorovich potential
    ``2 (m1 - m2).x + x.(I - A) x`` with A the optimal map, over n, plus the same for the
    reference; some 1.4 times too large where the laws agree. The value has a positive bias of
    order 1/n, hence n in the title; :class:`DebiasedFrechet` removes it.

    Args:
        features: Maps a batch (n, *event) to features (n, ...); None takes the data themselves.
            Called without gradients on the samples' own dtype, networks in evaluation mode.

    Raises:
        ValueError: Samples or features that are not finite, fewer than two, or of differing
            shapes.
        TypeError: Integer samples.

    Source: Heusel et al. (2017), arXiv 1706.08500; Dowson and Landau (1982).

    >>> x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    >>> print(f"{Frechet()(x + 2, x).value:.6f}")
    4.000000
    """

    features: Callable[[Tensor], Tensor] | None = None
    direction: ClassVar[Direction] = "lower"
    biased: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_features(self.features)

    @property
    def name(self) -> str:
        """Name to print, with that of the features."""
        return labelled("frechet", self.features)

    def against(self, reference: Tensor) -> Callable[[Tensor], Measured]:
        """The squared distance from one reference (m, *event), whose features are found once."""
        checked_batch(reference, "reference")
        rows = featured(self.features, reference, "reference")
        fit = _fit(rows, "reference points")

        def measure(samples: Tensor) -> Measured:
            checked_pair(samples, reference)
            return self._measured(featured(self.features, samples, "samples"), rows, fit)

        return measure

    def _measured(
        self, x: Tensor, reference: Tensor, fit: tuple[Tensor, Tensor, Tensor]
    ) -> Measured:
        m1, c1, x = _fit(x, "samples")
        m2, c2, y = fit
        value, r1, r2 = _squared(m1, c1, m2, c2)
        at_x = _influence(x, m1 - m2, r1, r2)
        at_y = _influence(y, m2 - m1, r2, r1)
        variance = at_x.var() / len(x) + at_y.var() / len(y)
        return Measured(Estimate(float(value), math.sqrt(float(variance))), at_x)


@dataclass(frozen=True)
class DebiasedFrechet(Frechet):
    """Squared Frechet distance without its bias of order 1/n, which may therefore be negative.

    ``2 FD_n - mean of FD_{n/2} over the two halves``, samples and reference both halved, which
    leaves O(1/n^2): values at different n may be compared. Which rows form a half is drawn once,
    from a stream of fixed key, so that ordered labels do no harm. The standard error is that of
    :class:`Frechet`, whose first-order expansion is the same; where the laws agree it is of the
    right size only, and a negative value says no more than zero does. Needs n far beyond the
    number of features.

    Args:
        features: As in :class:`Frechet`.

    Raises:
        ValueError: As :class:`Frechet`, and for fewer than four samples or reference points.

    Source: extrapolation in 1/n as in Chong and Forsyth (2020), arXiv 1911.07023.

    >>> x = torch.linspace(-1, 1, 400, dtype=torch.float64)
    >>> print(f"{DebiasedFrechet()(x + 2, x).value:.2f}")
    4.00
    """

    biased: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Name to print, with that of the features."""
        return labelled("debiased-frechet", self.features)

    def _measured(
        self, x: Tensor, reference: Tensor, fit: tuple[Tensor, Tensor, Tensor]
    ) -> Measured:
        if min(len(x), len(reference)) < 4:
            raise ValueError(
                "halves need at least four samples and four reference points, got "
                f"{len(x)} and {len(reference)}"
            )
        whole, influence = super()._measured(x, reference, fit)
        halves = 0.0
        for one, other in zip(_halves(x), _halves(reference), strict=True):
            m1, c1, _ = _fit(one, "samples in a half")
            m2, c2, _ = _fit(other, "reference points in a half")
            halves += float(_squared(m1, c1, m2, c2)[0]) / 2
        return Measured(Estimate(2 * whole.value - halves, whole.stderr), influence)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two disjoint halves of the rows, equal in size, drawn from a stream of fixed key."""
    order = np.random.Generator(np.random.Philox(key=len(x))).permutation(len(x))
    rows = torch.from_numpy(order).to(x.device)
    half = len(x) // 2
    return x[rows[:half]], x[rows[half : 2 * half]]


@dataclass(frozen=True)
class MomentError(TwoSample):
    """Wasserstein-2 distance between the Gaussian fitted to samples and a known Gaussian.

    ``W2^2 = |m1 - m|^2 + tr(C1 + C - 2 (C1^.5 C C1^.5)^.5)``

    A distance, not squared, in the units of the data. The reference set is only checked for its
    shape: the truth is the given mean and covariance. Standard error and bias as in
    :class:`Frechet`, without the reference's share.

    Args:
        mean: The true mean, d numbers.
        covariance: The true covariance, d rows of d numbers.

    Raises:
        ValueError: Mean and covariance of differing sizes, a covariance with a negative
            eigenvalue, or samples of another size.
        TypeError: Integer samples.

    Source: Dowson and Landau (1982).

    >>> metric = MomentError.of(torch.zeros(1), torch.eye(1))
    >>> x = torch.tensor([-1.0, 1.0]) * 2**0.5 / 2
    >>> print(f"{metric(x + 3, x).value:.6f}")
    3.000000
    """

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    direction: ClassVar[Direction] = "lower"
    biased: ClassVar[bool] = True
    name: ClassVar[str] = "moment-w2"

    def __post_init__(self) -> None:
        d = len(check_numbers("mean", self.mean))
        check_rows("covariance", self.covariance)
        if d < 1 or len(self.covariance) != d or any(len(row) != d for row in self.covariance):
            raise ValueError(
                f"covariance must be {d} rows of {d} numbers beside a mean of {d}, got rows of "
                f"{[len(row) for row in self.covariance]}"
            )

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> Self:
        """Metric from tensors: mean (d,), covariance (d, d) or variances (d,)."""
        check_tensor("mean", mean)
        check_tensor("covariance", covariance)
        full = torch.diag(covariance) if covariance.ndim == 1 else covariance
        return cls(tuple(mean.tolist()), tuple(tuple(row) for row in full.tolist()))

    def against(self, reference: Tensor) -> Callable[[Tensor], Measured]:
        """Distance from the known Gaussian; the reference is only checked for its shape."""

        def measure(samples: Tensor) -> Measured:
            checked_pair(samples, reference)
            x = flat(samples)
            if x.shape[1] != len(self.mean):
                raise ValueError(
                    f"samples must have {len(self.mean)} numbers per event, as the mean has, got "
                    f"{x.shape[1]}"
                )
            m1, c1, centred = _fit(x, "samples")
            m2 = torch.tensor(self.mean, dtype=x.dtype, device=x.device)
            c2 = torch.tensor(self.covariance, dtype=x.dtype, device=x.device)
            squared, r1, r2 = _squared(m1, c1, m2, c2)
            value = math.sqrt(float(squared))
            slope = 1 / (2 * value) if value > 0 else 0.0
            influence = slope * _influence(centred, m1 - m2, r1, r2)
            return Measured(Estimate(value, math.sqrt(float(influence.var()) / len(x))), influence)

        return measure
