"""The processes of the literature, each a pair (alpha, sigma) in closed form."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .._checks import check_number
from .base import SDE

__all__ = [
    "CosineVPSDE",
    "EDMSDE",
    "RectifiedSDE",
    "StaticSDE",
    "SubVPSDE",
    "VESDE",
    "VPSDE",
]


def _check_span(sde: SDE) -> None:
    check_number("t_max", sde.t_max, 0.0, open_low=True)
    check_number("t_min", sde.t_min, 0.0, sde.t_max, open_high=True)


@dataclass(frozen=True)
class _LinearRate(SDE):
    """What VP and sub-VP share: alpha = exp(-B / 2) with a rate beta that is linear in t."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_span(self)
        check_number("beta_min", self.beta_min, 0.0, open_low=True)
        check_number("beta_max", self.beta_max, self.beta_min)

    def integral(self, t: Tensor) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        return t * (self.beta_min + (self.beta_max - self.beta_min) / 2 * t)

    def beta(self, t: Tensor) -> Tensor:
        """beta(t), the rate of forgetting per unit time."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.integral(t) / 2)

    def prior_std(self, t: float) -> float:
        return 1.0

    def _time_of(self, integral: Tensor) -> Tensor:
        """The time at which B has a value."""
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))


@dataclass(frozen=True)
class VPSDE(_LinearRate):
    """Variance preserving, beta(t) = beta_min + t (beta_max - beta_min); (Song 2021, 2011.13456).

    alpha = exp(-B / 2), sigma^2 = 1 - exp(-B), B(t) = beta_min t + (beta_max - beta_min) t^2 / 2.

    >>> level = VPSDE().level(0.5)
    >>> abs(level.alpha**2 + level.sigma**2 - 1) < 1e-15
    True
    """

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self.integral(t)))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alpha(t)
        return -self.beta(t) / 2 * alpha, self.beta(t) / 2 * alpha**2 / self.sigma(t)

    def time(self, lam: Tensor) -> Tensor:
        return self._time_of(softplus(-2 * lam, threshold=700))


@dataclass(frozen=True)
class SubVPSDE(_LinearRate):
    """sub-VP: alpha as in VP, sigma = 1 - exp(-B) (Song et al. 2021, 2011.13456).

    >>> level = SubVPSDE().level(0.5)
    >>> level.sigma < VPSDE().level(0.5).sigma
    True
    """

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.integral(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alpha(t)
        return -self.beta(t) / 2 * alpha, self.beta(t) * alpha**2

    def time(self, lam: Tensor) -> Tensor:
        return self._time_of(2 * torch.asinh(torch.exp(-lam) / 2))


@dataclass(frozen=True)
class CosineVPSDE(SDE):
    """Cosine: alpha = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s)), sigma^2 = 1 - alpha^2.

    (Nichol and Dhariwal 2021, 2102.09672), in continuous time. alpha reaches 0 at t = 1, so t_max
    stops a little before it; with s = 0 this is the trigonometric interpolant.

    >>> level = CosineVPSDE().level(0.5)
    >>> abs(level.alpha**2 + level.sigma**2 - 1) < 1e-12
    True
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.995

    def __post_init__(self) -> None:
        _check_span(self)
        check_number("s", self.s, 0.0)
        check_number("t_max", self.t_max, 0.0, 1.0)

    def _angles(self, t: Tensor) -> tuple[float, Tensor]:
        quarter = math.pi / 2 / (1 + self.s)
        return quarter * self.s, quarter * t

    def alpha(self, t: Tensor) -> Tensor:
        first, _ = self._angles(t)
        # cos(first + turned) as a sine of the angle left to pi / 2, so that alpha(1) is exactly 0
        left = math.pi / 2 / (1 + self.s) * (1 - t)
        return torch.sin(left) / math.cos(first)

    def sigma(self, t: Tensor) -> Tensor:
        first, turned = self._angles(t)
        # cos^2 a - cos^2 b = sin(b - a) sin(b + a): no cancellation near t = 0
        return torch.sqrt(torch.sin(turned) * torch.sin(turned + 2 * first)) / math.cos(first)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        first, turned = self._angles(t)
        alpha = self.alpha(t)
        rate = -math.pi / 2 / (1 + self.s) * torch.sin(first + turned) / math.cos(first)
        return rate, -alpha * rate / self.sigma(t)

    def prior_std(self, t: float) -> float:
        return 1.0

    def time(self, lam: Tensor) -> Tensor:
        first = math.pi / 2 / (1 + self.s) * self.s
        alpha2, sigma2 = torch.sigmoid(2 * lam), torch.sigmoid(-2 * lam)
        sine = torch.sqrt(sigma2 + alpha2 * math.sin(first) ** 2)
        angle = torch.atan2(sine, torch.sqrt(alpha2) * math.cos(first))
        return (angle - first) * 2 / math.pi * (1 + self.s)


@dataclass(frozen=True)
class VESDE(SDE):
    """Variance exploding: alpha = 1, sigma = sigma_min sqrt((sigma_max/sigma_min)^(2t) - 1).

    (Song et al. 2021, 2011.13456). The -1 makes sigma(0) = 0, as the SDE itself demands.

    Args:
        sigma_min: the least noise a network of this process knows.
        sigma_max: about the noise at t = 1.
        t_min: the first time of training and the last positive one of sampling; the time at which
            sigma is sigma_min, log 2 / (2 log(sigma_max/sigma_min)), unless given.
        t_max: the last time.

    >>> VESDE().level(0.0).sigma
    0.0
    >>> round(VESDE(0.01, 50.0).level(VESDE(0.01, 50.0).t_min).sigma, 6)
    0.01
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = cast(float, None)
    t_max: float = 1.0

    def __post_init__(self) -> None:
        check_number("sigma_min", self.sigma_min, 0.0, open_low=True)
        check_number("sigma_max", self.sigma_max, self.sigma_min, open_low=True)
        if self.t_min is None:
            object.__setattr__(self, "t_min", math.log(2) / (2 * self._log_ratio))
        _check_span(self)
        if 2 * self._log_ratio * self.t_max > math.log(sys.float_info.max):
            raise ValueError(
                f"sigma_min = {self.sigma_min:g} and sigma_max = {self.sigma_max:g} give noise at "
                f"t_max = {self.t_max:g} that no float holds; take a smaller sigma_max or t_max"
            )

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.sqrt(torch.expm1(2 * self._log_ratio * t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        grown = self.sigma_min**2 * torch.exp(2 * self._log_ratio * t)
        return torch.zeros_like(t), self._log_ratio * grown / self.sigma(t)

    def time(self, lam: Tensor) -> Tensor:
        return torch.log1p(torch.exp(-2 * lam) / self.sigma_min**2) / (2 * self._log_ratio)


@dataclass(frozen=True)
class EDMSDE(SDE):
    """alpha = 1, sigma = t: time is the noise level itself (Karras et al. 2022, 2206.00364).

    >>> EDMSDE().level(80.0)
    Level(t=80.0, alpha=1.0, sigma=80.0, lam=-4.382026634673881)
    """

    t_min: float = 0.002
    t_max: float = 80.0

    def __post_init__(self) -> None:
        _check_span(self)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t * 1.0

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def time(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)


@dataclass(frozen=True)
class RectifiedSDE(SDE):
    """Straight paths: alpha = 1 - t, sigma = t (Liu et al. 2022, 2209.03003; Lipman 2210.02747).

    The velocity is finite on all of [0, 1], so networks are evaluated at t = 0 too (t_min = 0).

    >>> RectifiedSDE().level(1.0).alpha
    0.0
    """

    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_span(self)
        check_number("t_max", self.t_max, 0.0, 1.0)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t * 1.0

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def prior_std(self, t: float) -> float:
        return 1.0

    def time(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


@dataclass(frozen=True)
class StaticSDE(SDE):
    """No noise at all, alpha = 1 and sigma = 0: the home of a time-free energy E(x).

    Only the score and the energy exist on it; time is a label in [0, 1] for MCMC schedules.

    >>> StaticSDE().level(0.0).sigma
    0.0
    """

    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_span(self)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.zeros_like(t)

    def prior_std(self, t: float) -> float:
        return 1.0

    def time(self, lam: Tensor) -> Tensor:
        raise ValueError("StaticSDE has no noise, so no time belongs to a signal-to-noise ratio")
