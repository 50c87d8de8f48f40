"""The grid of flow maps: knots equally far apart in the angle atan(sigma / alpha)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..processes import SDE
from .spaced import _Spaced

__all__ = ["UniformAngle"]


@dataclass(frozen=True)
class UniformAngle(_Spaced):
    """Angles atan(sigma / alpha) equally far apart, the last move straight from the last knot to 0.

    For flow maps, whose jumps reach 0 from any level: no knot is spent on t_min.

    >>> from scoregen import RectifiedSDE, VPSDE
    >>> UniformAngle(2)(RectifiedSDE()).tolist()
    [1.0, 0.5, 0.0]
    >>> [round(t, 3) for t in UniformAngle(2)(VPSDE()).tolist()]
    [1.0, 0.258, 0.0]
    """

    def _lowest(self, sde: SDE) -> float:
        return 0.0

    def spaced(self, sde: SDE, start: float, stop: float, moves: int) -> Tensor:
        first, last = (math.atan2(at.sigma, at.alpha) for at in map(sde.level, (start, stop)))
        theta = torch.linspace(first, last, moves + 1, dtype=torch.float64)
        return sde.time(-theta.tan().log())
