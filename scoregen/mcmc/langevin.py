"""Langevin dynamics and the step sizes of annealed Langevin dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level
from .kernel import Kernel, StepSize, check_positive, check_step_size, step_at

__all__ = ["Langevin", "NCSNStep", "NCSNv2Step"]


@dataclass(frozen=True)
class NCSNStep:
    """Step sizes h = eps sigma^2 / (2 sigma_min^2) of annealed Langevin (Song and Ermon 2019).

    The paper writes alpha_i = eps sigma_i^2 / sigma_L^2 and moves by alpha_i / 2 (1907.05600); h is
    that half.

    Args:
        eps: the paper's epsilon.
        sigma_min: the paper's sigma_L, its smallest noise level.

    >>> NCSNStep(2e-5, 0.01)(Level(1.0, 1.0, 1.0, 0.0))
    0.1
    """

    eps: float
    sigma_min: float

    def __post_init__(self) -> None:
        check_positive("eps", self.eps)
        check_positive("sigma_min", self.sigma_min)

    def __call__(self, t: Level) -> float:
        return float(self.eps * (t.sigma / self.sigma_min) ** 2 / 2)


@dataclass(frozen=True)
class NCSNv2Step:
    """Step sizes h = eps (sigma / sigma_min)^2 (Song and Ermon 2020, 2006.09011, algorithm 3).

    Unlike `NCSNStep` without the half: their alpha_i multiplies the score itself.

    Args:
        eps: the paper's epsilon.
        sigma_min: the paper's sigma_L, its smallest noise level.

    >>> NCSNv2Step(2e-5, 0.01)(Level(1.0, 1.0, 1.0, 0.0))
    0.2
    """

    eps: float
    sigma_min: float

    def __post_init__(self) -> None:
        check_positive("eps", self.eps)
        check_positive("sigma_min", self.sigma_min)

    def __call__(self, t: Level) -> float:
        return float(self.eps * (t.sigma / self.sigma_min) ** 2)

    def variance_ratio(self, ratio: float, repeats: int) -> float:
        """Variance after `repeats` steps at a level, over sigma^2 of that level.

        For data at a point and a start with `ratio` times its standard deviation; the paper
        chooses eps so that this is 1 (technique 4).
        """
        h = self.eps / self.sigma_min**2
        kept = (1 - h) ** (2 * repeats)
        return kept * ratio**2 + (1 - kept) / (1 - h / 2)


@dataclass(frozen=True)
class Langevin(Kernel):
    """Unadjusted Langevin dynamics x + h score + sqrt(2 h T) z at time t, relabelled as s.

    On a `Constant` grid it samples p_t^(1 / T) with a bias that vanishes with h (on N(0, v) the
    stationary variance is T v / (1 - h / 2v)); on a `Staircase` it is annealed Langevin dynamics
    (Song and Ermon 2019, 1907.05600). A last move to sigma = 0 returns x0.

    Args:
        step_size: the step h, or a rule that gives it from the level, such as `NCSNStep`.
        temperature: T.

    >>> Langevin(0.01).direction
    'fixed'
    """

    step_size: StepSize
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_step_size(self.step_size)
        check_positive("temperature", self.temperature)

    def transition(
        self, model: ScoreModel, x: Tensor, t: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        h = step_at(self.step_size, t)
        x = x.add(model(x, t).score, alpha=h)
        return x.add(noise(x, t, t), alpha=math.sqrt(2 * h * self.temperature)), None
