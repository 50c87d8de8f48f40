"""Underdamped Langevin dynamics, dx = p dt, dp = score dt - gamma p dt + sqrt(2 gamma T) dw.

Split into B (kick), A (drift) and O (exact friction and noise); the letters name the order.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from .._checks import check_number
from ..models import Prediction, ScoreModel
from ..noise import Noise
from ..processes import Level
from .kernel import Kernel, StepSize, check_positive, check_step_size, step_at
from .metropolis import resumed

__all__ = ["BAOAB", "OBABO", "Kinetic", "KineticState"]


class KineticState(NamedTuple):
    """Momentum of an underdamped chain, and the prediction at its current x.

    >>> KineticState(None, None).momentum is None
    True
    """

    here: Prediction | None
    momentum: Tensor | None


@dataclass(frozen=True)
class Kinetic(Kernel):
    """What `BAOAB` and `OBABO` share: the momentum in the state, N(0, T) at the start.

    Args:
        step_size: h in time, or a rule that gives it from the level.
        friction: gamma, per unit time.
        temperature: T of the target p_t^(1 / T).

    >>> issubclass(BAOAB, Kinetic)
    True
    """

    step_size: StepSize
    friction: float = 1.0
    temperature: float = 1.0
    nfe = None

    def __post_init__(self) -> None:
        check_step_size(self.step_size)
        check_number("friction", self.friction, 0.0)
        check_positive("temperature", self.temperature)

    @abstractmethod
    def move(
        self, model: ScoreModel, here: Prediction, p: Tensor, t: Level, h: float, noise: Noise
    ) -> tuple[Prediction, Tensor]:
        """(prediction at the new x, new momentum) after one step of length h."""

    def thermostat(self, p: Tensor, h: float, like: Tensor, t: Level, noise: Noise) -> Tensor:
        """exp(-gamma h) p + sqrt(T (1 - exp(-2 gamma h))) z: friction and noise, exactly."""
        spread = math.sqrt(-self.temperature * math.expm1(-2 * self.friction * h))
        return math.exp(-self.friction * h) * p + spread * noise(like, t, t)

    def transition(
        self, model: ScoreModel, x: Tensor, t: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        state = state or KineticState(None, None)
        p = state.momentum
        if p is None:
            p = math.sqrt(self.temperature) * noise(x, t, t)
        here = resumed(model, x, t, state.here)
        here, p = self.move(model, here, p, t, step_at(self.step_size, t), noise)
        return here.x, KineticState(here, p)


@dataclass(frozen=True)
class BAOAB(Kinetic):
    """Kick h/2, drift h/2, friction and noise h, drift h/2, kick h/2; one evaluation per move.

    On a Gaussian the variance of x is exact at every stable step, and only that of the momentum is
    off, by the factor 1 - h^2 / 4v (Leimkuhler and Matthews 2013, 1203.5428).

    >>> BAOAB(0.1).friction
    1.0
    """

    def move(
        self, model: ScoreModel, here: Prediction, p: Tensor, t: Level, h: float, noise: Noise
    ) -> tuple[Prediction, Tensor]:
        p = p.add(here.score, alpha=h / 2)
        x = here.x.add(p, alpha=h / 2)
        p = self.thermostat(p, h, x, t, noise)
        here = model(x.add(p, alpha=h / 2), t)
        return here, p.add(here.score, alpha=h / 2)


@dataclass(frozen=True)
class OBABO(Kinetic):
    """Friction and noise h/2, a leapfrog step, friction and noise h/2; one evaluation per move.

    The variance of x has an error of order h^2, v / (1 - h^2 / 4v) on a Gaussian of variance v
    (Bussi and Parrinello 2007, 0803.4083).

    >>> OBABO(0.1).direction
    'fixed'
    """

    def move(
        self, model: ScoreModel, here: Prediction, p: Tensor, t: Level, h: float, noise: Noise
    ) -> tuple[Prediction, Tensor]:
        p = self.thermostat(p, h / 2, here.x, t, noise).add(here.score, alpha=h / 2)
        here = model(here.x.add(p, alpha=h), t)
        p = p.add(here.score, alpha=h / 2)
        return here, self.thermostat(p, h / 2, here.x, t, noise)
