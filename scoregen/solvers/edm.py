"""EDM's stochastic second-order sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._checks import check_number
from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level
from ..sampling import Solver

__all__ = ["KarrasHeun"]


@dataclass(frozen=True)
class KarrasHeun(Solver):
    """Algorithm 2 of Karras et al. (2022, 2206.00364): noise is added, then a Heun step removes it.

    Written for x / alpha against r = sigma / alpha, so on any process: r is raised to r (1 + churn)
    where it lies in [r_min, r_max] and the raised level is inside the process' domain, then
    d x / d r = eps is integrated by Heun's method. A last move to sigma = 0 is an Euler step.

    Args:
        churn: the paper's gamma = S_churn / N, the fraction by which r is raised at each move, in
            [0, sqrt(2) - 1]. Lowered in proportion to 1 / N it keeps weak order 2; a fixed one is a
            bias of order churn^2 that more steps do not remove, and no order is claimed.
        r_min: the paper's S_min.
        r_max: the paper's S_max.
        inflate: the paper's S_noise, standard deviation of the added noise; any value but 1 is a
            bias that more steps do not remove.

    >>> KarrasHeun().weak_order, KarrasHeun(churn=0.1).weak_order
    (2, None)
    """

    churn: float = 0.0
    r_min: float = 0.0
    r_max: float = math.inf
    inflate: float = 1.0
    nfe = 2

    def __post_init__(self) -> None:
        check_number("churn", self.churn, 0.0, math.sqrt(2) - 1)
        check_number("r_min", self.r_min, 0.0)
        check_number("r_max", self.r_max, self.r_min, infinite=True)
        check_number("inflate", self.inflate, 0.0, open_low=True)

    @property
    def order(self) -> int | None:
        return None if self.churn else 2

    @property
    def weak_order(self) -> int | None:
        return None if self.churn else 2

    def _raised(self, model: ScoreModel, t: Level) -> Level:
        ratio = t.sigma / t.alpha if t.alpha > 0 else math.inf
        if not self.churn or math.isinf(ratio) or not self.r_min <= ratio <= self.r_max:
            return t
        lam = t.lam - math.log1p(self.churn)
        inside = lam >= model.sde.level(model.sde.t_max).lam
        return model.sde.level_at(lam) if inside else t

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        high = self._raised(model, t)
        if high is not t:
            ratio = high.alpha / t.alpha
            added = self.inflate * math.sqrt(high.sigma**2 - (ratio * t.sigma) ** 2)
            x, t = (x if ratio == 1 else ratio * x).add(noise(x, t, s), alpha=added), high
        p = model(x, t)
        if s.sigma == 0:
            return p.x0, None
        if t.alpha == 0:  # r is infinite here: the Euler step is all there is
            return p.combine(s.alpha, s.sigma), None
        step = s.alpha * (s.sigma / s.alpha - t.sigma / t.alpha)
        x = x if s.alpha == t.alpha else s.alpha / t.alpha * x
        slope = p.eps
        ahead = model(x.add(slope, alpha=step), s).eps
        return x.add(slope + ahead, alpha=step / 2), None
