"""At which times a training loss is measured: laws of t, each drawn through its quantile function.

A law gives times in float64, inside the interval the process knows. Where it has a density in t, it
states it, so that a loss that must be an integral over t stays unbiased under any law.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._checks import (
    check_count,
    check_kind,
    check_number,
)
from ..processes import SDE, DiscreteSDE

__all__ = [
    "AtKnots",
    "Stratified",
    "TimeLaw",
    "UniformLamLaw",
    "UniformLaw",
]

TimeLaw = Callable[[SDE, int, torch.Generator], Tensor]


class Law(ABC):
    """A law by its quantile function, so that it can be drawn at random or in strata."""

    @abstractmethod
    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        """The time below which a share u of the law lies (or above; the order does not matter).

        Args:
            sde: the process.
            u: shares in (0, 1), float64.
        """

    @abstractmethod
    def log_density(self, sde: SDE, t: Tensor) -> Tensor:
        """Log of the density with respect to t, shaped like t, float64; -inf outside."""

    def __call__(self, sde: SDE, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` times, shape (count,), float64, on the generator's device or the CPU."""
        return self.quantile(sde, _uniform(check_count("count", count, 0), generator))


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    place = generator.device
    if place.type == "mps":  # which has no float64
        u = torch.rand(count, generator=generator, device=place).cpu().double()
    else:
        u = torch.rand(count, generator=generator, dtype=torch.float64, device=place)
    # 0 itself, once in 2^53 draws, would be the infinite end of a normal law
    return u.clamp_(min=2.0**-53)


def lam_rate(sde: SDE, t: Tensor) -> Tensor:
    """-d lam / dt = sigma'/sigma - alpha'/alpha = g^2 / (2 sigma^2), shaped like t, float64.

    >>> from scoregen import EDMSDE
    >>> lam_rate(EDMSDE(), torch.tensor([0.5, 2.0]))
    tensor([2.0000, 0.5000], dtype=torch.float64)
    """
    t = t.double()
    alpha_rate, sigma_rate = sde.rates(t)
    return sigma_rate / sde.sigma(t) - alpha_rate / sde.alpha(t)


@dataclass(frozen=True)
class UniformLaw(Law):
    """t uniform on [start, stop], by default [t_min, t_max] (Ho et al. 2020, 2006.11239).

        p(t) = 1 / (stop - start)

    Args:
        start: the smallest time; t_min of the process unless given.
        stop: the largest time; t_max of the process unless given.

    Raises:
        ValueError: if the interval is empty or leaves [0, t_max].

    >>> from scoregen import VPSDE
    >>> UniformLaw()(VPSDE(), 3, torch.Generator().manual_seed(0)).shape
    torch.Size([3])
    """

    start: float | None = None
    stop: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("stop", self.stop)):
            if value is not None:
                check_number(name, value, 0.0)

    def _ends(self, sde: SDE) -> tuple[float, float]:
        stop = check_number("stop", sde.t_max if self.stop is None else self.stop, 0.0, sde.t_max)
        start = sde.t_min if self.start is None else self.start
        return check_number("start", start, 0.0, stop, open_high=True), stop

    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        start, stop = self._ends(sde)
        return start + (stop - start) * u

    def log_density(self, sde: SDE, t: Tensor) -> Tensor:
        start, stop = self._ends(sde)
        inside = torch.full_like(t, -math.log(stop - start), dtype=torch.float64)
        return inside.masked_fill((t < start) | (t > stop), -math.inf)


@dataclass(frozen=True)
class UniformLamLaw(Law):
    """lam = log(alpha / sigma) uniform: every octave of noise counts alike.

        p(lam) = 1 / (high - low),    p(t) = p(lam) |d lam / dt|

    Kingma et al. (2021, 2107.00630) show that the likelihood bound is an integral over lam.

    Args:
        low: the smallest lam, at the noisy end; that of t_max unless given.
        high: the largest lam, at the clean end; that of t_min unless given.

    Raises:
        ValueError: if an end is infinite, as on straight paths, and must be given.

    >>> from scoregen import VPSDE
    >>> t = UniformLamLaw()(VPSDE(), 3, torch.Generator().manual_seed(0))
    >>> bool((t >= VPSDE().t_min).all())
    True
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("low", self.low), ("high", self.high)):
            if value is not None:
                check_number(name, value)

    def _ends(self, sde: SDE) -> tuple[float, float]:
        first, last = sde.levels([sde.t_max, sde.t_min])
        low = first.lam if self.low is None else check_number("low", self.low, first.lam)
        high = last.lam if self.high is None else check_number("high", self.high, low, last.lam)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"lam must run over a finite interval, and {type(sde).__name__} gives "
                f"[{low:g}, {high:g}]; pass low and high, for instance UniformLamLaw(-6.0, 6.0)"
            )
        return low, high

    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        low, high = self._ends(sde)
        return sde.time(high - (high - low) * u).clamp(sde.t_min, sde.t_max)

    def log_density(self, sde: SDE, t: Tensor) -> Tensor:
        low, high = self._ends(sde)
        lam = sde.lam(t.double())
        # beyond the process lam is NaN, which is outside too
        outside = ~((lam >= low - 1e-9) & (lam <= high + 1e-9))
        density = lam_rate(sde, t).log() - math.log(high - low)
        return density.masked_fill(outside, -math.inf)


@dataclass(frozen=True)
class AtKnots(Law):
    """One of the N knots of a chain, all alike: Algorithm 1 of Ho et al. (2020, 2006.11239).

    >>> from scoregen import DiscreteVPSDE
    >>> t = AtKnots()(DiscreteVPSDE.linear(4), 3, torch.Generator().manual_seed(0))
    >>> bool(((t * 4) % 1 == 0).all())
    True
    """

    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        if not isinstance(sde, DiscreteSDE):
            raise TypeError(
                f"AtKnots needs a process with knots such as DiscreteVPSDE, got "
                f"{type(sde).__name__}; use UniformLaw()"
            )
        knots = torch.tensor(sde.knots, dtype=torch.float64, device=u.device)
        return knots[(u * sde.steps).long().clamp_(max=sde.steps - 1)]

    def log_density(self, sde: SDE, t: Tensor) -> Tensor:
        raise ValueError(
            "AtKnots has no density in t, so no integral over t follows from it; take "
            "UniformLaw() for the likelihood weight, or the variational bound of the chain"
        )


@dataclass(frozen=True)
class Stratified(Law):
    """Another law, one draw from each of `count` equal shares of it, in random order.

    Each time alone follows the law; together they cover it evenly, which lowers the variance of
    the batch loss (low-discrepancy times: Kingma et al. 2021, 2107.00630).

    Args:
        law: the law to be spread out.

    >>> from scoregen import RectifiedSDE
    >>> t = Stratified()(RectifiedSDE(), 4, torch.Generator().manual_seed(0))
    >>> (t * 4).long().sort().values
    tensor([0, 1, 2, 3])
    """

    law: Law = field(default_factory=UniformLaw)

    def __post_init__(self) -> None:
        check_kind("law", self.law, Law, "UniformLaw()")

    def __call__(self, sde: SDE, count: int, generator: torch.Generator) -> Tensor:
        u = _uniform(check_count("count", count, 0), generator)
        strata = torch.randperm(count, generator=generator, device=generator.device)
        return self.quantile(sde, (strata + u) / max(count, 1))

    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        return self.law.quantile(sde, u)

    def log_density(self, sde: SDE, t: Tensor) -> Tensor:
        return self.law.log_density(sde, t)
