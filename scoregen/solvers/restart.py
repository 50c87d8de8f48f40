"""Restart sampling: now and then back up to more noise, exactly, and down again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..models import ScoreModel
from ..models.prediction import mix
from ..noise import Noise
from ..processes import Level
from ..sampling import Direction, Solver, Wrapped
from .edm import KarrasHeun

__all__ = ["Restart"]


@dataclass(frozen=True)
class Restart(Wrapped):
    """Moves down by another solver, moves up by adding noise (Xu et al. 2023, 2306.14878).

    An upward move is the forward process itself, x_s = (alpha_s / alpha_t) x +
    sqrt(sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2) z, exact and without an evaluation; it forgets
    what a multistep method remembered. A grid that turns, such as `RestartGrid`, decides when. The
    noise of an upward move is a draw of its own also from a `BrownianNoise`, which would repeat
    itself on an interval that is visited again; so give a stochastic solver another source.

    Args:
        solver: moves downwards; the paper's is Heun's.

    >>> Restart().direction
    'any'
    """

    solver: Solver = KarrasHeun()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver) or self.solver.direction not in ("down", "both"):
            raise TypeError(
                f"solver must move from noise to data, such as KarrasHeun(), got {self.solver}"
            )

    @property
    def direction(self) -> Direction:
        return "any"

    @property
    def order(self) -> int | None:
        return None  # an upward move draws noise

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if s.lam < t.lam:
            kept = s.alpha / t.alpha
            fresh = s.sigma * math.sqrt(-math.expm1(2 * (s.lam - t.lam)))
            return mix(kept, x, fresh, noise(x, t, t)), None
        return self.solver.step(model, x, t, s, state, noise)
