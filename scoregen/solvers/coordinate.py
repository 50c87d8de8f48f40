"""The coordinate in which the probability flow is integrated: time, or the angle on a chain.

With y = x / scale the flow is dy / du = slope:

    time   u = t, scale = 1, slope = alpha' x0 + sigma' eps,
    angle  u = atan(sigma / alpha), scale = sqrt(alpha^2 + sigma^2), slope = cos(u) eps - sin(u) x0.

A chain is known at its knots and interpolated between them, so its rates alpha' and sigma' jump
there, and methods in time lose their order. In the angle no rate occurs: y is the same function of
u on every process.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..models import Prediction
from ..processes import SDE, DiscreteSDE, Level

__all__ = ["ANGLE", "TIME"]


class Coordinate(ABC):
    """u, scale and slope; carry, scale and slope also at levels of one tensor per sample."""

    @abstractmethod
    def place(self, t: Level) -> float:
        """u of a level."""

    @abstractmethod
    def level(self, sde: SDE, u: float) -> Level:
        """The level at u."""

    @abstractmethod
    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """Times at u, elementwise in float64."""

    @abstractmethod
    def at_lam(self, sde: SDE, lam: Tensor) -> Tensor:
        """u where log(alpha / sigma) is lam, elementwise in float64."""

    @abstractmethod
    def carry(self, t: Level, s: Level) -> Any:
        """scale_s / scale_t."""

    @abstractmethod
    def scale(self, s: Level) -> Any:
        """What y is multiplied by to give x."""

    @abstractmethod
    def slope(self, p: Prediction) -> Tensor:
        """dy / du from the prediction at a point."""


class _Time(Coordinate):
    def place(self, t: Level) -> float:
        return float(t.t)

    def level(self, sde: SDE, u: float) -> Level:
        return sde.level(u)

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        return u

    def at_lam(self, sde: SDE, lam: Tensor) -> Tensor:
        return sde.time(lam)

    def carry(self, t: Level, s: Level) -> Any:
        return 1.0

    def scale(self, s: Level) -> Any:
        return 1.0

    def slope(self, p: Prediction) -> Tensor:
        return p.velocity


class _Angle(Coordinate):
    def place(self, t: Level) -> float:
        return float(angle(t))

    def level(self, sde: SDE, u: float) -> Level:
        return sde.level_at(-math.log(math.tan(u)))

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        return sde.time(-u.double().tan().log())

    def at_lam(self, sde: SDE, lam: Tensor) -> Tensor:
        return lam.neg().exp().atan()

    def carry(self, t: Level, s: Level) -> Any:
        return self.scale(s) / self.scale(t)

    def scale(self, s: Level) -> Any:
        return s.alpha.hypot(s.sigma) if isinstance(s.alpha, Tensor) else size(s)

    def slope(self, p: Prediction) -> Tensor:
        alpha, sigma, scale = p.t.alpha, p.t.sigma, self.scale(p.t)
        return p.combine(-sigma / scale, alpha / scale)


TIME, ANGLE = _Time(), _Angle()


def coordinate(sde: SDE) -> Coordinate:
    """Time, or the angle on a chain."""
    return ANGLE if isinstance(sde, DiscreteSDE) else TIME


def angle(t: Level) -> Any:
    """atan(sigma / alpha) in [0, pi / 2], a float or a tensor like the level's.

    >>> angle(Level(0.5, 0.6, 0.8, -0.29)) == math.atan2(0.8, 0.6)
    True
    """
    if isinstance(t.sigma, Tensor):
        return torch.atan2(t.sigma, t.alpha)
    return math.atan2(t.sigma, t.alpha)


def size(t: Level) -> float:
    """sqrt(alpha^2 + sigma^2) of a level of floats."""
    return math.hypot(t.alpha, t.sigma)
