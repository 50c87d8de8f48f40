"""The reverse SDE dx = (f x - g^2 score) dt + g dw by Euler-Maruyama."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..models import ScoreModel
from ..models.prediction import mix
from ..noise import Noise
from ..processes import Level
from ..sampling import Solver

__all__ = ["EulerMaruyama"]


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """x + (f x - g^2 score) (s - t) + g sqrt(t - s) z (Song et al. 2021, 2011.13456, eq. 6).

    >>> EulerMaruyama().weak_order
    1
    """

    weak_order = 1

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        p = model(x, t)
        if s.sigma == 0:
            return p.x0, None
        if t.alpha == 0:
            raise ValueError(
                f"the reverse SDE's drift is infinite at t = {t.t:g}, where no signal is left; "
                "start the grid a little below t_max, or use DDIM, Ancestral or ProbabilityFlow"
            )
        alpha_rate, sigma_rate = model.sde.rates_at(t.t)
        f = alpha_rate / t.alpha
        g2 = 2 * t.sigma * (sigma_rate - f * t.sigma)
        h = t.t - s.t
        x = mix(1 - f * h, x, g2 * h, p.score)
        return x.add(noise(x, t, s), alpha=math.sqrt(g2 * h)), None
