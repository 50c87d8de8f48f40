"""Multistep exponential integrators in lam = log(alpha / sigma)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..model import ScoreModel
from ..noise import Noise
from ..prediction import mix
from ..sde import Level
from .base import Solver

__all__ = ["DPMSolverPP"]


@dataclass(frozen=True)
class DPMSolverPP(Solver):
    """DPM-Solver++(2M) (Lu et al. 2022, 2211.01095): one evaluation a step, second order.

    x_s = sigma_s / sigma_t x - alpha_s (exp(-h) - 1) D with h = lam_s - lam_t and
    D = x0 + h / (2 h_before) (x0 - x0_before); first order on the first move and on the last one to
    sigma = 0.

    >>> DPMSolverPP().order
    2
    """

    moves: ClassVar[Literal["up"]] = "up"
    order = 2
    weak_order = 2

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        x0 = d = model(x, t).x0
        if s.sigma == 0:  # no slope to extrapolate into the clean end
            return x0, None
        if state is not None:
            before, x0_before = state
            slope = (s.lam - t.lam) / (2 * (t.lam - before.lam))
            d = mix(1 + slope, x0, -slope, x0_before)
        return mix(s.sigma / t.sigma, x, -s.alpha * math.expm1(t.lam - s.lam), d), (t, x0)
