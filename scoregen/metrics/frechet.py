"""Frechet distance between the Gaussians that fit two sets of features, and to a known one."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..densities._gaussians import optimal_roots
from .estimate import Direction, Estimate, checked_batch, checked_pair, flat

__all__ = ["Frechet", "MomentError"]


def _fit(x: Tensor, which: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, unbiased covariance and centred rows."""
    if len(x) <= x.shape[1]:
        warnings.warn(
            f"{len(x)} {which} for {x.shape[1]} features give a singular covariance: the Frechet "
            "distance is finite but far too large; take more samples, fewer features, or MMD",
            stacklevel=4,
        )
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1), centred


def _influence(centred: Tensor, shift: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Kantorovich potential of the optimal plan at each row: how it moves the squared distance."""
    z = centred @ torch.linalg.pinv(own, rtol=1e-7).T
    return 2 * centred @ shift + (centred**2).sum(1) - ((z @ own.T) * (z @ other.T)).sum(1)


@dataclass(frozen=True)
class Frechet:
    """Squared Frechet distance between Gaussians fitted to features, as FID reports it.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^.5 C2 C1^.5)^.5)``

    Covariances have the divisor n - 1 and everything after the features is float64. The square
    roots come from symmetric eigendecompositions, so nothing turns complex and singular
    covariances stay finite (with a warning, when there are no more samples than features). The
    standard error is the delta method's: the variance over samples of the Kantorovich potential
    ``2 (m1 - m2).x + x.(I - A) x`` with A the optimal map, over n, plus the same for the
    reference; some 1.4 times too large where the laws agree. The value has a positive bias of
    order 1/n, hence n in the title.

    Args:
        features: Maps a batch (n, *event) to features (n, ...); None takes the data themselves.
            Called without gradients on the samples' own dtype.

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

    @property
    def name(self) -> str:
        """Name to print, with that of the features."""
        if self.features is None:
            return "frechet"
        label = getattr(self.features, "__name__", type(self.features).__name__)
        return f"frechet({label})"

    def _featured(self, x: Tensor, which: str) -> Tensor:
        if self.features is None:
            return flat(x)
        with torch.no_grad():
            out = self.features(x)
        if out.ndim < 1 or len(out) != len(x):
            raise ValueError(
                f"features must map ({len(x)}, *event) to ({len(x)}, ...), got {tuple(out.shape)}"
            )
        return flat(checked_batch(out, f"features of the {which}"))

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Squared distance of samples (n, *event) from reference (m, *event)."""
        checked_pair(samples, reference)
        m1, c1, x = _fit(self._featured(samples, "samples"), "samples")
        m2, c2, y = _fit(self._featured(reference, "reference"), "reference points")
        r1, r2 = optimal_roots(c1, c2)
        value = ((m1 - m2) ** 2).sum() + ((r1 - r2) ** 2).sum()
        variance = _influence(x, m1 - m2, r1, r2).var() / len(x)
        variance = variance + _influence(y, m2 - m1, r2, r1).var() / len(y)
        return Estimate(float(value), math.sqrt(float(variance)))


@dataclass(frozen=True)
class MomentError:
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
        d = len(self.mean)
        if d < 1 or len(self.covariance) != d or any(len(row) != d for row in self.covariance):
            raise ValueError(
                f"covariance must be {d} rows of {d} numbers beside a mean of {d}, got rows of "
                f"{[len(row) for row in self.covariance]}"
            )

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> Self:
        """Metric from tensors: mean (d,), covariance (d, d) or variances (d,)."""
        full = torch.diag(covariance) if covariance.ndim == 1 else covariance
        return cls(tuple(mean.tolist()), tuple(tuple(row) for row in full.tolist()))

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Distance of the fit to samples (n, *event) from the known Gaussian."""
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
        r1, r2 = optimal_roots(c1, c2)
        value = math.sqrt(float(((m1 - m2) ** 2).sum() + ((r1 - r2) ** 2).sum()))
        stderr = math.sqrt(float(_influence(centred, m1 - m2, r1, r2).var()) / len(x))
        return Estimate(value, stderr / (2 * value) if value > 0 else 0.0)
