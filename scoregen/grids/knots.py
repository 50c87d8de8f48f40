"""Grids on the knots of a chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._checks import check_choice, check_count, check_number
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
        offset: knots by which all of "leading" is moved towards the noise (diffusers'
            `steps_offset`, 1 for Stable Diffusion).
        start: the knot, as a time, that stands in for the last one; t_max unless given.

    >>> from scoregen import DiscreteVPSDE
    >>> Strided(2)(DiscreteVPSDE.linear(10)).tolist()
    [1.0, 0.5, 0.0]
    >>> Strided(2, "leading", offset=1)(DiscreteVPSDE.linear(10)).tolist()
    [0.7, 0.2, 0.0]
    """

    steps: int = 50
    spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    offset: int = 0
    start: float | None = None

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_choice("spacing", self.spacing, ("trailing", "leading", "linspace"))
        check_count("offset", self.offset, 0)
        if self.offset and self.spacing != "leading":
            raise ValueError(
                f'offset belongs to spacing="leading", got offset={self.offset} with '
                f'"{self.spacing}", which starts at the last knot already'
            )
        if self.start is not None:
            check_number("start", self.start, 0.0, open_low=True)

    def __call__(self, sde: SDE) -> Tensor:
        knots, n = self._below_start(_chain(self, sde)), self.steps
        if n > len(knots):
            raise ValueError(f"steps must be at most the number of knots, {len(knots)}, got {n}")
        if self.spacing == "trailing":
            index = [round(len(knots) * (n - i) / n) - 1 for i in range(n)]
        elif self.spacing == "leading":
            index = [(len(knots) // n) * (n - 1 - i) + self.offset for i in range(n)]
            if index[0] >= len(knots):
                raise ValueError(
                    f"offset = {self.offset} moves the first of {n} steps to knot {index[0]}, but "
                    f"the last one is {len(knots) - 1}; take fewer steps or a smaller offset"
                )
        else:
            last = len(knots) - 1
            index = [round(last * (n - 1 - i) / max(n - 1, 1)) for i in range(n)]
            index[0] = last
        return torch.tensor([*(knots[i] for i in index), 0.0], dtype=torch.float64)

    def _below_start(self, chain: DiscreteSDE) -> tuple[float, ...]:
        """The knots up to the first time of the grid."""
        if self.start is None:
            return chain.knots
        position = self.start * chain.steps
        count = round(position)
        if abs(position - count) > 1e-6 or not 1 <= count <= chain.steps:
            raise ValueError(
                f"start must be a knot of the chain, a multiple of 1/{chain.steps} in (0, 1], got "
                f"{self.start:g}"
            )
        return chain.knots[:count]
