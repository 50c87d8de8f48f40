"""How data becomes noise: x_t = alpha(t) x_0 + sigma(t) eps, with data at t = 0, noise at t_max.

A linear Gaussian SDE dx = f x dt + g dw is the pair (alpha, sigma): f = alpha' / alpha and
g^2 = 2 sigma (sigma' - f sigma). Everything else here follows from the pair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Generic, NamedTuple

import torch
from torch import Tensor
from typing_extensions import TypeVar

from .._checks import (
    check_entries,
    check_number,
    check_same_shape,
    check_state,
    check_tensor,
    check_times,
)
from .._rows import moved

__all__ = ["SDE", "Level"]


_Number = TypeVar("_Number", default=Any)


class Level(NamedTuple, Generic[_Number]):
    """The noise level at one time.

    Fixed-grid solvers get Python floats, `Level[float]`; objectives, likelihoods and per-sample
    adaptive solvers get tensors that broadcast against x, `Level[Tensor]`. Plain `Level` is either.

    >>> Level(t=1.0, alpha=0.6, sigma=0.8, lam=-0.2877).sigma
    0.8
    """

    t: _Number
    alpha: _Number
    sigma: _Number
    lam: _Number


class SDE(ABC):
    """A linear Gaussian process x_t = alpha(t) x_0 + sigma(t) eps (Song et al. 2021, 2011.13456).

    Subclasses are frozen dataclasses that give `alpha` and `sigma`; they may also give `rates` and
    `time` in closed form, and declare another `prior_std`. `t_min` is the smallest positive time
    at which a network is evaluated; `t_max` is where sampling starts.

    >>> from scoregen import VPSDE
    >>> sde = VPSDE()
    >>> t = torch.tensor(0.3, dtype=torch.float64)
    >>> bool(torch.isclose(sde.time(sde.lam(t)), t))
    True
    """

    t_min: float
    t_max: float

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data at time t, elementwise."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at time t, elementwise."""

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives (alpha', sigma'), each shaped like t; automatic unless given."""
        # inference mode is left too: its tensors can have no gradient, but their copies can
        with torch.inference_mode(False), torch.enable_grad():
            s = t.detach().clone().requires_grad_()
            alpha, sigma = (_derivative(scale, s) for scale in (self.alpha(s), self.sigma(s)))
        return alpha, sigma

    def lam(self, t: Tensor) -> Tensor:
        """Half the log signal-to-noise ratio, log(alpha / sigma); +inf at the clean end."""
        return self.alpha(t).log() - self.sigma(t).log()

    def time(self, lam: Tensor) -> Tensor:
        """Inverse of `lam`; by bisection to float64 rounding unless given in closed form."""
        low = torch.zeros_like(lam)
        high = torch.full_like(lam, self.t_max)
        for _ in range(100):
            mid = (low + high) / 2
            later = self.lam(mid) > lam
            low, high = torch.where(later, mid, low), torch.where(later, high, mid)
        return (low + high) / 2

    def prior_std(self, t: float) -> float:
        """Standard deviation of the Gaussian that sampling from time t starts with.

        sigma(t) unless the process declares another: the noise alone, which is what is left of x_t
        where alpha times the data is small beside it. Processes that go from data of unit variance
        to noise of unit variance declare 1.
        """
        return float(self.level(t).sigma)

    def f(self, t: Tensor) -> Tensor:
        """Drift coefficient alpha' / alpha of dx = f x dt + g dw.

        Raises:
            ValueError: where alpha = 0, since the drift is infinite there.
        """
        alpha = self.alpha(t)
        if bool((alpha == 0).any()):
            raise ValueError(
                f"the drift of {type(self).__name__} is infinite where alpha = 0; "
                "evaluate it at a smaller time, or use the velocity, which is finite"
            )
        return self.rates(t)[0] / alpha

    def g2(self, t: Tensor) -> Tensor:
        """Squared diffusion coefficient g^2 = 2 sigma (sigma' - f sigma).

        Raises:
            ValueError: where alpha = 0 or sigma' is infinite.
        """
        f, sigma, rate = self.f(t), self.sigma(t), self.rates(t)[1]
        if not bool(torch.isfinite(rate).all()):
            raise ValueError(
                f"sigma' of {type(self).__name__} is infinite at sigma = 0; take t >= t_min"
            )
        return 2 * sigma * (rate - f * sigma)

    def level(self, t: float) -> Level[float]:
        """The level at one time, as Python floats, computed in float64 and remembered.

        Raises:
            ValueError: if t does not lie in [0, t_max].
        """
        return _level(self, t if type(t) is float else check_number("t", t))

    def level_at(self, lam: float) -> Level[float]:
        """The level whose half log-SNR is lam, as Python floats."""
        return _level_at(
            self, lam if type(lam) is float else check_number("lam", lam, infinite=True)
        )

    def levels(self, times: Tensor | Iterable[float]) -> list[Level[float]]:
        """Levels of a whole grid at once, as Python floats.

        Raises:
            ValueError: if a time does not lie in [0, t_max].
        """
        given: Tensor | list[float]
        if isinstance(times, Tensor):
            given = times
        else:
            every = check_entries("times", times, "real numbers")
            given = [t if type(t) is float else check_number("a time", t) for t in every]
        t = torch.as_tensor(given, dtype=torch.float64, device="cpu")
        check_times(t, self.t_max)
        columns = (t, self.alpha(t), self.sigma(t), self.lam(t))
        rows = torch.stack([c.expand_as(t) for c in columns], 1).tolist()
        return [Level(*row) for row in rows]

    def rates_at(self, t: float) -> tuple[float, float]:
        """(alpha', sigma') at one time, as Python floats, remembered."""
        return _rates(self, t if type(t) is float else check_number("t", t))

    def level_of(self, t: Tensor, x: Tensor) -> Level[Tensor]:
        """Level of one time, or of one time per sample, that broadcasts against x.

        Args:
            t: times of shape (), (1,), (batch,) or (batch, 1, ..., 1).
            x: state of shape (batch, *event).

        Returns:
            Level of tensors on x's device, computed in float64 on the host: alpha and sigma in x's
            dtype, t and lam in float32 at least, since clocks read them.
        """
        # a device may have no float64, so the mathematics stays on the host
        t = check_tensor("t", t).cpu()
        if t.dim() > 1:
            if t.numel() != len(t):
                raise ValueError(f"times must be one per sample, got shape {tuple(t.shape)}")
            t = t.reshape(len(t))
        if t.dim() == 1 and len(t) not in (1, len(x)):
            raise ValueError(f"need one time, or one per sample ({len(x)}), got {len(t)}")
        wide = t.double().reshape(t.shape + (1,) * (x.dim() - 1)) if t.dim() else t.double()
        fine = torch.promote_types(x.dtype, torch.float32)
        columns = (wide, self.alpha(wide), self.sigma(wide), self.lam(wide))
        return Level(
            *(
                moved(c.expand_as(wide).to(dtype), x.device)
                for c, dtype in zip(columns, (fine, x.dtype, x.dtype, fine), strict=True)
            )
        )

    def perturb(self, x0: Tensor, t: Tensor | float, eps: Tensor) -> Tensor:
        """Noised data alpha x0 + sigma eps.

        Args:
            x0: data of shape (batch, *event).
            t: one time or one per sample.
            eps: standard normal noise shaped like x0.
        """
        check_state(x0, "x0")
        check_same_shape("eps", check_tensor("eps", eps), x0)
        if not isinstance(t, Tensor):
            t = t if type(t) is float else check_number("t", t)
            t = torch.tensor(t, dtype=torch.float64)
        times = check_tensor("t", t)
        check_times(times, self.t_max)
        level = self.level_of(times, x0)
        return level.alpha * x0 + level.sigma * eps


@lru_cache(maxsize=65536)
def _level(sde: SDE, t: float) -> Level[float]:
    return sde.levels([t])[0]


@lru_cache(maxsize=65536)
def _level_at(sde: SDE, lam: float) -> Level[float]:
    t = float(sde.time(torch.tensor(lam, dtype=torch.float64)))
    return sde.level(t)


@lru_cache(maxsize=65536)
def _rates(sde: SDE, t: float) -> tuple[float, float]:
    alpha, sigma = sde.rates(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)


def _derivative(scale: Tensor, t: Tensor) -> Tensor:
    """d scale / dt, elementwise; zero where the scale does not depend on t."""
    if not scale.requires_grad:
        return torch.zeros_like(t)
    slope = torch.autograd.grad(scale.sum(), t, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(t) if slope is None else slope
