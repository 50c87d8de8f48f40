"""A grid that is densest at one noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_number
from .spaced import _Log

__all__ = ["SinhLam"]


@dataclass(frozen=True)
class SinhLam(_Log):
    """Densest at sigma / alpha = centre, sparser on both sides in proportion to the distance.

    log(sigma / alpha) = log(centre) + width sinh(u) with u equally far apart: near the centre
    steps in log(sigma / alpha) are equal, further than `width` from it they grow geometrically.
    The flow turns where the noise is of the size of the data's finer structure and is almost
    straight elsewhere; 0.3 suits data of unit scale.

    Args:
        steps: number of moves.
        start: first time; t_max unless given.
        stop: last time.
        centre: sigma / alpha of the smallest steps.
        width: in log(sigma / alpha), how far around it steps are equal.

    >>> from scoregen import EDMSDE
    >>> [round(t, 3) for t in SinhLam(6)(EDMSDE()).tolist()]
    [80.0, 1.86, 0.468, 0.21, 0.059, 0.002, 0.0]
    """

    centre: float = 0.3
    width: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("centre", self.centre, 0.0, open_low=True)
        check_number("width", self.width, 0.0, open_low=True)

    def lams(self, first: float, last: float, moves: int) -> Tensor:
        middle = -math.log(self.centre)
        ends = [math.asinh((lam - middle) / self.width) for lam in (first, last)]
        ramp = torch.linspace(ends[0], ends[1], moves + 1, dtype=torch.float64)
        return middle + self.width * torch.sinh(ramp)
