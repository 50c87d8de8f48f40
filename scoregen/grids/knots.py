"""Grids on the knots of a chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._checks import check_choice, check_count
from ..processes import SDE, DiscreteSDE

__all__ = ["Knots", "Strided"]


def _chain(grid: object, sde: SDE) -> DiscreteSDE:
    if not isinstance(sde, DiscreteSDE):
        raise TypeError(
            f"{type(grid).__name__} needs a process with knots, got {type(sde).__name__}; "
            "take UniformTime(steps) on a continuous process"
        )
    return sde


@dataclass(frozen=True)
class Knots:
    """Every knot of a chain, from the noisiest to the first, then 0 (Ho 2020, Algorithm 2).

    >>> from scoregen import DiscreteVPSDE
    >>> Knots()(DiscreteVPSDE.linear(4)).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """

    def __call__(self, sde: SDE) -> Tensor:
        knots = torch.tensor((0.0, *_chain(self, sde).knots), dtype=torch.float64)
        return knots.flip(0)


@dataclass(frozen=True)
class Strided:
    """`steps` of a chain's knots, then 0 (Nichol and Dhariwal 2021; Lin et al. 2023, 2305.08891).

    Args:
        steps: number of moves, at most the number of knots.
        spacing: "trailing" (N, N - N/n, ...: starts at the last knot), "leading" (..., 2N/n, N/n
            behind the first knot: does not start at pure noise), "linspace" (first to last knot).

    >>> from scoregen import DiscreteVPSDE
    >>> Strided(2)(DiscreteVPSDE.linear(10)).tolist()
    [1.0, 0.5, 0.0]
    """

    steps: int = 50
    spacing: Literal["trailing", "leading", "linspace"] = "trailing"

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_choice("spacing", self.spacing, ("trailing", "leading", "linspace"))

    def __call__(self, sde: SDE) -> Tensor:
        knots, n = _chain(self, sde).knots, self.steps
        if n > len(knots):
            raise ValueError(f"steps must be at most the number of knots, {len(knots)}, got {n}")
        if self.spacing == "trailing":
            index = [round(len(knots) * (n - i) / n) - 1 for i in range(n)]
        elif self.spacing == "leading":
            index = [(len(knots) // n) * (n - 1 - i) for i in range(n)]
        else:
            last = len(knots) - 1
            index = [round(last * (n - 1 - i) / max(n - 1, 1)) for i in range(n)]
            index[0] = last
        return torch.tensor([*(knots[i] for i in index), 0.0], dtype=torch.float64)
