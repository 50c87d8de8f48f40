"""A grid for few evaluations: it begins and ends where the network is worth evaluating."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .._checks import check_callable, check_count, check_number
from ..processes import SDE, VPSDE

__all__ = ["Interior", "SinhSpacing", "VPTimeSpacing"]


class Spacing(Protocol):
    """moves + 1 values of log(alpha / sigma) from first to last, float64."""

    def __call__(self, first: float, last: float, moves: int) -> Tensor: ...


@dataclass(frozen=True)
class SinhSpacing:
    """log(sigma / alpha) = log(centre) + width sinh(u), u equally far apart: as `SinhLam`.

    Args:
        centre: sigma / alpha of the smallest steps.
        width: in log(sigma / alpha), how far around it steps are equal.

    >>> SinhSpacing(1.0, 1.0)(-1.0, 1.0, 2).tolist()
    [-1.0, 0.0, 1.0]
    """

    centre: float = 0.6
    width: float = 1.2

    def __post_init__(self) -> None:
        check_number("centre", self.centre, 0.0, open_low=True)
        check_number("width", self.width, 0.0, open_low=True)

    def __call__(self, first: float, last: float, moves: int) -> Tensor:
        middle = -math.log(self.centre)
        ends = [math.asinh((lam - middle) / self.width) for lam in (first, last)]
        ramp = torch.linspace(ends[0], ends[1], moves + 1, dtype=torch.float64)
        return middle + self.width * ramp.sinh()


@dataclass(frozen=True)
class VPTimeSpacing:
    """t^(1/rho) of `VPSDE()` equally far apart, carried to the process at hand by sigma / alpha.

    Args:
        rho: 1 is `UniformTime` on VP, 2 is `Quadratic` on VP.

    >>> VPTimeSpacing(2.0)(-3.0, 3.0, 3).shape
    torch.Size([4])
    """

    rho: float = 2.0

    def __post_init__(self) -> None:
        check_number("rho", self.rho, 0.0, open_low=True)

    def __call__(self, first: float, last: float, moves: int) -> Tensor:
        vp = VPSDE()
        ends = vp.time(torch.tensor([first, last], dtype=torch.float64)) ** (1 / self.rho)
        roots = torch.linspace(float(ends[0]), float(ends[1]), moves + 1, dtype=torch.float64)
        lam = vp.lam(roots**self.rho)
        lam[0], lam[-1] = first, last
        return lam


@dataclass(frozen=True)
class Interior:
    """steps - 1 moves from sigma / alpha = high to sigma / alpha = low, and a last one to 0.

    At sigma / alpha = 157, where VP begins, a network returns the mean of its data and its own
    error times 157; an evaluation there is better spent elsewhere, and a state of that level may be
    taken for one of level 20: its law differs by alpha^2 / sigma^2 = 1/400 in the variance. The
    same holds at the other end, where little is left to remove.

    Args:
        steps: number of moves, the last one to 0 included; 1 is that move alone.
        high: sigma / alpha of the first time; t_max on a process that does not reach it, or if
            None. Where alpha = 0 at t_max, one move leads from there to 0.999 t_max first.
        low: sigma / alpha of the last positive time; t_min on a process that does not go so far,
            or if None.
        spacing: of the moves between them.

    >>> from scoregen import EDMSDE
    >>> [round(t, 3) for t in Interior(4, high=20.0, low=0.05)(EDMSDE()).tolist()]
    [20.0, 1.5, 0.374, 0.05, 0.0]
    """

    steps: int
    high: float | None = 20.0
    low: float | None = 0.05
    spacing: Spacing = SinhSpacing()

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        high = math.inf if self.high is None else self.high
        check_number("high", high, 0.0, open_low=True, infinite=True)
        check_callable(
            "spacing", self.spacing, "(first, last, moves) -> times, such as SinhSpacing()"
        )
        if self.low is not None:
            check_number("low", self.low, 0.0, high, open_low=True, open_high=True)

    def __call__(self, sde: SDE) -> Tensor:
        first, last = sde.level(sde.t_max).lam, sde.level(sde.t_min).lam
        if self.high is None and first == -math.inf:
            inside = 0.999 * sde.t_max
            if self.steps == 1:
                return torch.tensor([sde.t_max, 0.0], dtype=torch.float64)
            rest = replace(self, steps=self.steps - 1, high=math.exp(-sde.level(inside).lam))(sde)
            return torch.cat([rest.new_tensor([sde.t_max]), rest])
        begin = first if self.high is None else max(-math.log(self.high), first)
        end = last if self.low is None else min(-math.log(self.low), last)
        if not math.isfinite(end) or not begin < end:
            raise ValueError(
                f"Interior needs log(alpha / sigma) to rise between its ends, got {begin:g} and "
                f"{end:g} on {sde!r}; give another high or low"
            )
        if self.steps == 1:
            times = sde.time(torch.tensor([begin], dtype=torch.float64))
        else:
            times = sde.time(self.spacing(begin, end, self.steps - 1))
            if end == last:
                times[-1] = sde.t_min
        if begin == first:
            times[0] = sde.t_max
        return torch.cat([times, times.new_zeros(1)])
