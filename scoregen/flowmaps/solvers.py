"""Samplers for flow maps: one evaluation a move, over the whole move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..models import ScoreModel
from ..models.prediction import mix
from ..noise import Noise
from ..processes import Level
from ..sampling import Direction, Solver
from .model import flow_map, jump

__all__ = ["Jump", "Renoise"]


@dataclass(frozen=True)
class Jump(Solver):
    """x_s = X(x, t, s): the flow map itself, in as many moves as the grid has.

    One move from t_max to 0 is a one-step sampler. Grids may run both ways; a map that was not
    trained from data to noise refuses (Boffi et al. 2025, 2505.18825; Frans et al. 2024,
    2410.12557).

    >>> from scoregen import Sampler, Times, VPSDE
    >>> from scoregen.flowmaps import GaussianFlowMap
    >>> import torch
    >>> exact = GaussianFlowMap(VPSDE(), torch.zeros(2), 0.25)
    >>> Sampler(Jump(), Times(1.0, 0.0)).sample(exact, (4, 2)).shape
    torch.Size([4, 2])
    """

    @property
    def direction(self) -> Direction:
        return "both"

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if state is None:
            flow_map(model)
        return jump(model, x, t, s), True


@dataclass(frozen=True)
class Renoise(Solver):
    """Jump to 0, then add noise to s: x_s = alpha_s X(x, t, 0) + sigma_s z.

    Multistep consistency sampling (Song et al. 2023, 2303.01469, Algorithm 1). With the exact map
    the law is exact at every number of moves; an error of the map is made anew at each.

    >>> Renoise().nfe
    1
    """

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if state is None:
            flow_map(model)
        x0 = jump(model, x, t, model.sde.level(0.0))
        if s.sigma == 0:
            return x0, True
        return mix(s.alpha, x0, s.sigma, noise(x, t, s)), True
