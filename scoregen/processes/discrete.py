"""Processes known at knots t_i = (i + 1)/N, i = 0 .. N - 1: DDPM's chain and NCSN's levels."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from .._checks import check_count, check_kind, check_number, check_numbers
from .base import SDE
from .continuous import VPSDE

__all__ = ["DiscreteSDE", "DiscreteVESDE", "DiscreteVPSDE"]


class DiscreteSDE(SDE):
    """A process known at N knots t_i = (i + 1)/N; between them it is interpolated.

    >>> DiscreteVPSDE.linear(10).knots[-1]
    1.0
    """

    @property
    def steps(self) -> int:
        """N, the number of knots."""
        raise TypeError(f"{type(self).__name__} must define `steps`, the number of its knots")

    @property
    def knots(self) -> tuple[float, ...]:
        """The N times t_i = (i + 1)/N at which a network was trained."""
        return tuple((i + 1) / self.steps for i in range(self.steps))

    def index(self, t: Tensor) -> Tensor:
        """Position of t among the knots, t N - 1, in float64; whole at a knot, -1 at t = 0.

        On the host, as the tables are: a device may have no float64.
        """
        position = t.cpu().double() * self.steps - 1
        near = position.round()
        # (i + 1) / N * N is off by an ulp: snap, so that a knot is a knot
        return torch.where((position - near).abs() < 1e-7, near, position)


def _interpolate(table: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope per knot of a piecewise linear table with entry -1 in front."""
    left = (position.ceil() - 1).clamp(-1, len(table) - 2).long() + 1
    low, high = table[left], table[(left + 1).clamp(max=len(table) - 1)]
    weight = position - (left - 1)
    return low + weight * (high - low), high - low


@dataclass(frozen=True)
class DiscreteVPSDE(DiscreteSDE):
    """DDPM's chain q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i I) as a process in t.

    alpha(t_i)^2 = prod_{j <= i} (1 - beta_j) and sigma^2 = 1 - alpha^2 at the knots; log alpha is
    linear in t between them, which is the VP-SDE with a piecewise constant rate. The betas and the
    continuous process match exactly: beta_i = 1 - exp(-integral of beta over the i-th interval).
    (Ho et al. 2020, 2006.11239; Nichol and Dhariwal 2021, 2102.09672.)

    The last beta may be 1, which leaves no signal at the end (Lin et al. 2023, 2305.08891): there
    alpha itself is linear in t over the last interval, and networks that predict eps or the score
    are refused at t = 1, where eps holds nothing of x0.

    Args:
        betas: N noise variances, each in (0, 1), the last in (0, 1].

    >>> sde = DiscreteVPSDE.linear(1000)
    >>> round(sde.level(1.0).alpha ** 2, 6)
    4e-05
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", check_numbers("betas", self.betas))
        check_count("the number of betas", len(self.betas))
        for i, beta in enumerate(self.betas):
            last = i == len(self.betas) - 1
            check_number(f"betas[{i}]", beta, 0.0, 1.0, open_low=True, open_high=not last)
        object.__setattr__(self, "_hash", hash((type(self), self.betas)))

    def __repr__(self) -> str:
        return _vp_name(self)

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined]

    @classmethod
    def linear(
        cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> DiscreteVPSDE:
        """Betas linear in i (Ho et al. 2020); stated for N = 1000 and not rescaled for others."""
        return cls(_linspace(beta_start, beta_end, steps))

    @classmethod
    def scaled_linear(
        cls, steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> DiscreteVPSDE:
        """Square roots of the betas linear in i (Rombach et al. 2022, 2112.10752)."""
        check_number("beta_start", beta_start, 0.0, 1.0)
        check_number("beta_end", beta_end, 0.0, 1.0)
        roots = _linspace(math.sqrt(beta_start), math.sqrt(beta_end), steps)
        return cls(tuple(r * r for r in roots))

    @classmethod
    def cosine(cls, steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> DiscreteVPSDE:
        """Cosine table with the betas capped (Nichol and Dhariwal 2021, 2102.09672)."""

        def alpha_bar(u: float) -> float:
            return math.cos((u + s) / (1 + s) * math.pi / 2) ** 2

        count = check_count("steps", steps)
        check_number("s", s, 0.0)
        check_number("max_beta", max_beta, 0.0, 1.0, open_low=True)
        return cls(
            tuple(
                min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), max_beta)
                for i in range(count)
            )
        )

    @classmethod
    def from_alpha_bar(cls, alpha_bar: Iterable[float]) -> DiscreteVPSDE:
        """From a falling table of alpha-bar_i = alpha(t_i)^2 < 1; only the last may be 0."""
        table = [1.0, *check_numbers("alpha_bar", alpha_bar)]
        for i, (before, after) in enumerate(pairwise(table)):
            if not 0 <= after < before:
                raise ValueError(
                    f"alpha_bar must fall strictly from below 1, and may reach 0 at its last entry "
                    f"only, got {after:g} after {before:g} at index {i}"
                )
        return cls(tuple(1 - after / before for before, after in pairwise(table)))

    @classmethod
    def exact(cls, sde: SDE, steps: int = 1000) -> DiscreteVPSDE:
        """The chain that agrees with a VP process at every knot: beta_i = 1 - exp(-integral).

        Raises:
            ValueError: if alpha^2 + sigma^2 is not 1, since no chain of betas is that process.
        """
        check_kind("sde", sde, SDE, "VPSDE()")
        t = torch.arange(check_count("steps", steps) + 1, dtype=torch.float64) / steps * sde.t_max
        if bool(((sde.alpha(t) ** 2 + sde.sigma(t) ** 2 - 1).abs() > 1e-9).any()):
            raise ValueError(
                f"{type(sde).__name__} does not preserve variance (alpha^2 + sigma^2 is not 1), so "
                "no table of betas agrees with it; give a process such as VPSDE or CosineVPSDE"
            )
        log_alpha2 = 2 * sde.alpha(t).log()
        return cls(tuple((-torch.expm1(log_alpha2.diff())).tolist()))

    @classmethod
    def first_order(cls, sde: VPSDE, steps: int = 1000) -> DiscreteVPSDE:
        """The popular table beta_i = beta(t_i)/N, linear from beta_min/N to beta_max/N.

        Its alpha-bar differs from the process' by O(1/N): log alpha-bar_N = -integral of beta
        - 1/2 sum beta_i^2 - ...

        Raises:
            TypeError: for another process than VPSDE, since the table does not hold its sigma.
        """
        if not isinstance(sde, VPSDE):
            raise TypeError(
                f"the first-order table is a VPSDE's, got {type(sde).__name__}; for another "
                "process that preserves variance use DiscreteVPSDE.exact"
            )
        check_count("steps", steps)
        return cls(_linspace(sde.beta_min / steps, sde.beta_max / steps, steps))

    @property
    def steps(self) -> int:
        return len(self.betas)

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 1 / self.steps

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return 1.0

    def prior_std(self, t: float) -> float:
        return 1.0

    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha(t) and alpha'(t) / alpha(t) (from below at a knot), in float64 on the host."""
        position, table = self.index(t), _log_alphas(self)
        if self.betas[-1] < 1.0:
            value, slope = _interpolate(table, position)
            return value, slope * self.steps
        left = self.steps - position - 1  # of the last interval, where alpha = left alpha_{N-1}
        value, slope = _interpolate(table, position.clamp(max=self.steps - 2))
        last = left < 1
        value = torch.where(last, table[-1] + left.log(), value)
        return value, torch.where(last, -1 / left, slope) * self.steps

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t)[0].exp().to(t)

    def sigma(self, t: Tensor) -> Tensor:
        return _root(self.log_alpha(t)[0]).to(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha, slope = self.log_alpha(t)
        alpha, sigma = log_alpha.exp(), _root(log_alpha)
        rate = slope * alpha
        if self.betas[-1] == 1.0:  # at the very end the slope is infinite and alpha' is not
            end = -self.steps * _log_alphas(self)[-1].exp()
            rate = torch.where(alpha == 0, end, rate)
        return rate.to(t), (-rate * alpha / sigma).to(t)

    def time(self, lam: Tensor) -> Tensor:
        log_alpha = torch.nn.functional.logsigmoid(2 * lam.cpu().double()) / 2
        table = _log_alphas(self)
        if self.betas[-1] < 1.0:
            return _invert(table, log_alpha, self.steps).to(lam)
        last = log_alpha < table[-1]
        ended = 1 - (log_alpha - table[-1]).exp() / self.steps
        if self.steps == 1:
            return ended.to(lam)
        return torch.where(last, ended, _invert(table, log_alpha, self.steps)).to(lam)


@dataclass(frozen=True)
class DiscreteVESDE(DiscreteSDE):
    """NCSN's noise levels: alpha = 1 and sigma(t_i) = sigmas[i], rising with i.

    log sigma is linear in t between knots, sigma itself below the first one.
    (Song and Ermon 2019, 1907.05600.)

    >>> DiscreteVESDE.geometric(10, 0.01, 1.0).level(1.0).sigma
    1.0
    """

    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", check_numbers("sigmas", self.sigmas))
        check_count("the number of sigmas", len(self.sigmas))
        for i, (low, high) in enumerate(zip((0.0, *self.sigmas), self.sigmas, strict=False)):
            check_number(f"sigmas[{i}]", high, low, open_low=True)
        object.__setattr__(self, "_hash", hash((type(self), self.sigmas)))

    def __repr__(self) -> str:
        return _ve_name(self)

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined]

    @classmethod
    def geometric(
        cls, steps: int = 232, sigma_min: float = 0.01, sigma_max: float = 50.0
    ) -> DiscreteVESDE:
        """Geometric levels (defaults: Song and Ermon 2020, 2006.09011, for CIFAR-10)."""
        check_number("sigma_min", sigma_min, 0.0, open_low=True)
        check_number("sigma_max", sigma_max, 0.0, open_low=True)
        logs = _linspace(math.log(sigma_min), math.log(sigma_max), steps)
        return cls((sigma_min, *(math.exp(v) for v in logs[1:-1]), sigma_max)[-steps:])

    @property
    def steps(self) -> int:
        return len(self.sigmas)

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 1 / self.steps

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return 1.0

    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        position = self.index(t)
        value, slope = _interpolate(_log_sigmas(self), position.clamp(min=0))
        below = position < 0
        sigma = torch.where(below, (position + 1) * self.sigmas[0], value.exp())
        rate = torch.where(position <= 0, self.sigmas[0], sigma * slope) * self.steps
        return sigma.to(t), rate.to(t)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self._sigma(t)[0]

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), self._sigma(t)[1]

    def time(self, lam: Tensor) -> Tensor:
        sigma = torch.exp(-lam.cpu().double())
        inner = _invert(_log_sigmas(self), sigma.log(), self.steps)
        first = sigma / self.sigmas[0] / self.steps
        return torch.where(sigma <= self.sigmas[0], first, inner).to(lam)


def _root(log_alpha: Tensor) -> Tensor:
    # abs: the negative of expm1(0) would be -0, and its reciprocal of the wrong sign
    return torch.sqrt(torch.expm1(2 * log_alpha).abs())


@lru_cache(maxsize=64)
def _log_alphas(sde: DiscreteVPSDE) -> Tensor:
    """log alpha at t = 0 and at the knots, without a last knot at which alpha is 0."""
    betas = sde.betas if sde.betas[-1] < 1.0 else sde.betas[:-1]
    logs = torch.log1p(-torch.tensor(betas, dtype=torch.float64)) / 2
    return torch.cat([torch.zeros(1, dtype=torch.float64), logs.cumsum(0)])


@lru_cache(maxsize=64)
def _log_sigmas(sde: DiscreteVESDE) -> Tensor:
    logs = torch.tensor(sde.sigmas, dtype=torch.float64).log()
    return torch.cat([logs[:1], logs])


_SHOWN = 8  # a table of so few numbers is printed whole


def _arguments(steps: int, ends: tuple[float, float], usual: tuple[float, float]) -> str:
    return f"{steps}" if ends == usual else f"{steps}, {ends[0]!r}, {ends[1]!r}"


@lru_cache(maxsize=64)
def _vp_name(sde: DiscreteVPSDE) -> str:
    """The constructor that gives these betas, where there is one; a short text otherwise."""
    betas, steps, name = sde.betas, sde.steps, type(sde).__name__
    if steps <= _SHOWN:
        return f"{name}(betas={betas!r})"
    first, last = betas[0], betas[-1]
    if betas == _linspace(first, last, steps):
        return f"{name}.linear({_arguments(steps, (first, last), (1e-4, 0.02))})"
    if betas == DiscreteVPSDE.scaled_linear(steps).betas:
        return f"{name}.scaled_linear({steps})"
    if betas == DiscreteVPSDE.cosine(steps).betas:
        return f"{name}.cosine({steps})"
    return _short(name, "betas", betas)


@lru_cache(maxsize=64)
def _ve_name(sde: DiscreteVESDE) -> str:
    """The constructor that gives these levels, where there is one; a short text otherwise."""
    sigmas, steps, name = sde.sigmas, sde.steps, type(sde).__name__
    if steps <= _SHOWN:
        return f"{name}(sigmas={sigmas!r})"
    ends = (sigmas[0], sigmas[-1])
    if sigmas == DiscreteVESDE.geometric(steps, *ends).sigmas:
        return f"{name}.geometric({_arguments(steps, ends, (0.01, 50.0))})"
    return _short(name, "sigmas", sigmas)


def _short(name: str, field: str, values: tuple[float, ...]) -> str:
    # the digest, because runs are distinguished by what their parts print
    digest = hashlib.sha256(struct.pack(f"<{len(values)}d", *values)).hexdigest()[:12]
    return f"<{name}: {len(values)} {field}, {values[0]:g} to {values[-1]:g}, sha256 {digest}>"


def _invert(table: Tensor, value: Tensor, steps: int) -> Tensor:
    """Time at which the piecewise linear table (entry -1 in front) takes a value."""
    falling = table if table[-1] > table[0] else -table
    wanted = value if table[-1] > table[0] else -value
    # right=True: at the first of two equal entries the answer is the later knot
    right = torch.searchsorted(falling, wanted.contiguous(), right=True).clamp(1, len(table) - 1)
    low, high = falling[right - 1], falling[right]
    inside = (wanted - low) / torch.where(high > low, high - low, torch.ones_like(low))
    return ((right - 1) + inside) / steps


def _linspace(first: float, last: float, steps: int) -> tuple[float, ...]:
    count = check_count("steps", steps)
    first, last = check_number("the first value", first), check_number("the last value", last)
    return tuple(torch.linspace(first, last, count, dtype=torch.float64).tolist())
