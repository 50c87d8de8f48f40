"""Errors mode by mode, where the truth is a known Gaussian mixture."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from .._checks import check_choice, check_entries, check_number, check_numbers, check_tensor
from .estimate import (
    Direction,
    Estimate,
    Measured,
    TwoSample,
    check_rows,
    checked_pair,
    flat,
)

__all__ = ["MissingModes", "ModeCovariances", "ModeMeans", "ModeWeights"]


@dataclass(frozen=True)
class _Modes(TwoSample):
    """The true mixture as tables of numbers, and whose sample is whose.

    Samples are shared among modes by their posterior probabilities under the true mixture. For
    well separated modes this is the nearest mode; where modes overlap, a hard choice would cut
    their tails and find errors in perfect samples, and sharing does not: under the truth
    ``E r_k = w_k`` and ``E r_k x = w_k m_k`` exactly.
    """

    weights: tuple[float, ...]
    means: tuple[tuple[float, ...], ...]
    covariances: tuple[tuple[tuple[float, ...], ...], ...]
    direction: ClassVar[Direction] = "lower"
    biased: ClassVar[bool] = True

    def __post_init__(self) -> None:
        k = len(check_numbers("weights", self.weights))
        check_rows("means", self.means)
        check_entries("covariances", self.covariances, "tables of numbers")
        for i, covariance in enumerate(self.covariances):
            check_rows(f"covariances[{i}]", covariance)
        if k < 1 or len(self.means) != k or len(self.covariances) != k:
            raise ValueError(
                f"there must be one weight, mean and covariance per mode, got {k}, "
                f"{len(self.means)} and {len(self.covariances)}"
            )
        if min(self.weights) <= 0 or not math.isclose(sum(self.weights), 1, rel_tol=1e-5):
            raise ValueError(
                f"weights must be positive and sum to 1, got {self.weights}: divide by their sum "
                "and leave empty modes out"
            )
        d = len(self.means[0])
        for mean, covariance in zip(self.means, self.covariances, strict=True):
            if len(mean) != d or len(covariance) != d or any(len(row) != d for row in covariance):
                raise ValueError(f"every mode must have {d} means and {d} rows of {d} covariances")
        _, failed = torch.linalg.cholesky_ex(torch.tensor(self.covariances, dtype=torch.float64))
        if bool((failed != 0).any()):
            raise ValueError(
                f"covariances must be positive definite, got {self.covariances}: a mode without "
                "width has no unit to measure errors in"
            )

    @classmethod
    def of(cls, weights: Tensor, means: Tensor, covariances: Tensor) -> Self:
        """Metric from tensors.

        Args:
            weights: (k,), positive, normalised here to sum to 1.
            means: (k, *event).
            covariances: (k, d, d), or variances shaped like the means, or one per mode, (k,).
        """
        for name, given in (("weights", weights), ("means", means), ("covariances", covariances)):
            check_tensor(name, given)
        means = means.reshape(len(means), -1)
        if covariances.ndim == 1:
            covariances = covariances[:, None].expand(means.shape)
        if covariances.ndim != 3 or covariances.shape[1:] != 2 * means.shape[1:]:
            covariances = torch.diag_embed(covariances.reshape(means.shape))
        shares = weights.to(torch.float64) / weights.to(torch.float64).sum()
        return cls(
            tuple(shares.tolist()),
            tuple(tuple(row) for row in means.tolist()),
            tuple(tuple(tuple(row) for row in c) for c in covariances.tolist()),
        )

    @property
    def tables(self) -> tuple[tuple, tuple, tuple]:
        """Weights, means and covariances, to build another metric of the same mixture."""
        return self.weights, self.means, self.covariances

    def against(self, reference: Tensor) -> Callable[[Tensor], Measured]:
        """The errors of samples; the reference is only checked for its shape."""

        def measure(samples: Tensor) -> Measured:
            return self._errors(*self._share(samples, reference))

        return measure

    def _errors(self, r: Tensor, z: Tensor) -> Measured:
        """From responsibilities (n, k) and whitened samples (n, k, d)."""
        raise NotImplementedError

    def _share(self, samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Responsibilities (n, k), and each sample in each mode's own whitened units, (n, k, d)."""
        checked_pair(samples, reference)
        logs, z = self._logs(flat(samples))
        return logs.softmax(1), z

    def _logs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log weight times density of each mode, up to a constant, and the whitened samples."""
        if x.shape[1] != len(self.means[0]):
            raise ValueError(
                f"samples must have {len(self.means[0])} numbers per event, as the modes have, "
                f"got {x.shape[1]}"
            )
        weights, means, covariances = (
            torch.tensor(table, dtype=x.dtype, device=x.device)
            for table in (self.weights, self.means, self.covariances)
        )
        lower = torch.linalg.cholesky(covariances)
        z = torch.linalg.solve_triangular(
            lower, (x[:, None] - means).movedim(0, -1), upper=False
        ).movedim(-1, 0)
        logs = weights.log() - lower.diagonal(dim1=1, dim2=2).log().sum(1) - (z**2).sum(2) / 2
        return logs, z


def folded(squared: Tensor, spread: Tensor) -> Tensor:
    """How much less the size of an error moves than the error does along its own direction.

    The size |e| of an estimated error e with true value d and total variance v has the variance of
    e along d where |d| is large, and half of v / (dimensions of e) where d is 0:
    ``(v + 2 d^2) / (2 (v + d^2))``, with d^2 estimated by ``max(0, |e|^2 - v)``.
    """
    true = (squared - spread).clamp_min(0)
    return ((spread + 2 * true) / (2 * (spread + true)).clamp_min(1e-300)).sqrt()


def _combine(errors: Tensor, influences: Tensor, reduction: str) -> Measured:
    """Mean or worst of the modes' errors (k,), with the sampling error from influences (n, k)."""
    if reduction == "worst":
        k = int(errors.argmax())
        value, influence = errors[k], influences[:, k]
    else:
        value, influence = errors.mean(), influences.mean(1)
    if not math.isfinite(float(value)):
        return Measured(Estimate(math.inf, math.inf), None)
    stderr = math.sqrt(float((influence**2).sum()))
    return Measured(Estimate(float(value), stderr), len(influence) * influence)


def _check_reduction(reduction: str) -> None:
    check_choice("reduction", reduction, ("mean", "worst"))


@dataclass(frozen=True)
class ModeWeights(_Modes):
    """Total variation distance between the modes' true and observed weights.

    ``TV = 1/2 sum_k |mean_i r_k(x_i) - w_k|`` with r_k the posterior probability of mode k under
    the truth.

    Between 0 and 1. The standard error is the delta method's, less what folding at zero takes away
    where a weight agrees (some 1.3 times too large there). The reference is only checked for its
    shape. Like every absolute error it is positive for perfect samples,
    of order sqrt(k / n), hence n in the title.

    Args:
        weights: One positive number per mode, summing to 1.
        means: One row of d numbers per mode.
        covariances: One d x d table per mode, positive definite. :meth:`of` takes tensors.

    Raises:
        ValueError: Tables that disagree, or samples unfit for them.
        TypeError: Integer samples.

    Source: the definition of total variation.

    >>> metric = ModeWeights.of(torch.ones(2), torch.tensor([[-9.0], [9.0]]), torch.ones(2, 1))
    >>> x = torch.tensor([[-9.0], [9.0], [9.0], [9.0]])
    >>> print(metric(x, x).value)
    0.25
    """

    name: ClassVar[str] = "mode-weights-tv"

    def _errors(self, r: Tensor, z: Tensor) -> Measured:
        gap = r.mean(0) - torch.tensor(self.weights, dtype=r.dtype, device=r.device)
        scale = gap.sign() * folded(gap**2, r.var(0) / len(r))
        influence = r @ scale / 2
        stderr = math.sqrt(float(influence.var()) / len(r))
        return Measured(Estimate(float(gap.abs().sum()) / 2, stderr), influence)


@dataclass(frozen=True)
class MissingModes(_Modes):
    """Number of modes with less than a fraction of their true weight.

    ``#{k : mean_i r_k(x_i) < fraction w_k}``

    The standard error treats modes as independent: ``sqrt(sum_k p_k (1 - p_k))`` with p_k the
    normal probability, given the observed weight and its error, that mode k is missing.

    Args:
        weights, means, covariances: As in :class:`ModeWeights`.
        fraction: Below this share of its weight a mode counts as missing, in (0, 1).

    Raises:
        ValueError: Tables that disagree, or samples unfit for them.
        TypeError: Integer samples.

    Source: the definition.

    >>> metric = MissingModes.of(torch.ones(2), torch.tensor([[-9.0], [9.0]]), torch.ones(2, 1))
    >>> x = torch.tensor([[9.0], [9.5], [8.5]])
    >>> metric(x, x).value
    1.0
    """

    fraction: float = 0.1
    name: ClassVar[str] = "missing-modes"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("fraction", self.fraction, 0.0, 1.0, open_low=True, open_high=True)

    def _errors(self, r: Tensor, z: Tensor) -> Measured:
        bar = self.fraction * torch.tensor(self.weights, dtype=r.dtype, device=r.device)
        margin = r.mean(0) - bar
        # A mode never seen has no spread; one sample's worth of mass stands in for it.
        error = (r.var(0) / len(r)).sqrt().clamp_min(1 / len(r))
        p = torch.special.ndtr(-margin / error)
        stderr = math.sqrt(float((p * (1 - p)).sum()))
        return Measured(Estimate(float((margin < 0).sum()), stderr), None)


@dataclass(frozen=True)
class ModeMeans(_Modes):
    """Error of the modes' means, in units of the modes' standard deviations.

    ``e_k = |C_k^-1/2 (mean of mode k - m_k)| / sqrt(d)``, averaged over modes or the worst.

    A mode without samples has no mean: the error is then infinite (see :class:`MissingModes`).
    Standard error by the delta method, less what folding at zero takes away where a mean agrees.

    Args:
        weights, means, covariances: As in :class:`ModeWeights`.
        reduction: "mean" over modes or the "worst".

    Raises:
        ValueError: Tables that disagree, or samples unfit for them.
        TypeError: Integer samples.

    Source: the definition.

    >>> metric = ModeMeans.of(torch.ones(1), torch.zeros(1, 1), torch.full((1, 1), 4.0))
    >>> x = torch.tensor([[2.0], [4.0]])
    >>> metric(x, x).value
    1.5
    """

    reduction: Literal["mean", "worst"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_reduction(self.reduction)

    @property
    def name(self) -> str:
        """Name to print."""
        return f"mode-means-{self.reduction}"

    def _errors(self, r: Tensor, z: Tensor) -> Measured:
        mass, d = r.sum(0), z.shape[2]
        mean = torch.einsum("nk,nkd->kd", r, z) / mass[:, None]
        size = mean.norm(dim=1)
        errors = torch.where(mass < 0.5, math.inf, size / math.sqrt(d))
        share = r / mass
        spread = (share**2 * ((z - mean) ** 2).sum(2)).sum(0)
        axis = torch.nn.functional.normalize(mean, dim=1) / math.sqrt(d)
        influence = share * torch.einsum("nkd,kd->nk", z - mean, axis)
        return _combine(errors, influence * folded(size**2, spread), self.reduction)


@dataclass(frozen=True)
class ModeCovariances(_Modes):
    """Relative error of the modes' covariances.

    ``e_k = |C_k^-1/2 S_k C_k^-1/2 - I|_F / sqrt(d)``, S_k the covariance seen in mode k about its
    own mean, averaged over modes or the worst.

    A variance that is everywhere a factor c too large gives c - 1. A mode with fewer than two
    samples' worth of mass has an infinite error. Standard error as in :class:`ModeMeans`.

    Args:
        weights, means, covariances: As in :class:`ModeWeights`.
        reduction: "mean" over modes or the "worst".

    Raises:
        ValueError: Tables that disagree, or samples unfit for them.
        TypeError: Integer samples.

    Source: the definition.

    >>> metric = ModeCovariances.of(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1))
    >>> x = torch.tensor([[-1.0], [0.0], [1.0], [0.0], [2.0], [-2.0]])
    >>> print(f"{metric(x, x).value:.3f}")
    1.000
    """

    reduction: Literal["mean", "worst"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_reduction(self.reduction)

    @property
    def name(self) -> str:
        """Name to print."""
        return f"mode-covariances-{self.reduction}"

    def _errors(self, r: Tensor, z: Tensor) -> Measured:
        mass, d = r.sum(0), z.shape[2]
        centred = z - torch.einsum("nk,nkd->kd", r, z)[None] / mass[:, None]
        # n - 1 for whole samples, its analogue for shared ones.
        divisor = mass - (r**2).sum(0) / mass
        seen = torch.einsum("nk,nkd,nke->kde", r, centred, centred) / divisor[:, None, None]
        gap = seen - torch.eye(d, dtype=z.dtype, device=z.device)
        size = gap.flatten(1).norm(dim=1)
        errors = torch.where(mass < 1.5, math.inf, size / math.sqrt(d))
        axis = gap / size.clamp_min(1e-300)[:, None, None] / math.sqrt(d)
        share = r / mass
        moved = torch.einsum("nkd,kde,nke->nk", centred, axis, centred)
        influence = share * (moved - (axis * seen).sum((1, 2)))
        # |c c' - S|^2 = |c|^4 - 2 c' S c + |S|^2
        apart = (centred**2).sum(2) ** 2 - 2 * torch.einsum(
            "nkd,kde,nke->nk", centred, seen, centred
        )
        spread = (share**2 * (apart + (seen**2).sum((1, 2)))).sum(0)
        return _combine(errors, influence * folded(size**2, spread), self.reduction)
