"""Pairs of angles theta_t >= theta_s at which a flow map is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_number
from ..processes import SDE
from .angles import angle

__all__ = ["Pairs"]


@dataclass(frozen=True)
class Pairs:
    """theta_t uniform, with a share at the noisy end; theta_s uniform below it, with a share at 0.

    Args:
        top: share of pairs that start at t_max, where one-step samples start.
        zero: share of pairs that end at t = 0.
        longest: longest jump theta_t - theta_s, in radians; jumps that grow from short to long
            train more stably than all at once (Frans et al. 2024, 2410.12557).

    Raises:
        ValueError: for shares outside [0, 1], or a length outside (0, pi / 2].

    >>> from scoregen import VPSDE
    >>> theta_t, theta_s = Pairs()(VPSDE(), 100, torch.Generator().manual_seed(0))
    >>> bool((theta_s <= theta_t).all())
    True
    """

    top: float = 0.25
    zero: float = 0.5
    longest: float = math.pi / 2

    def __post_init__(self) -> None:
        check_number("top", self.top, 0.0, 1.0)
        check_number("zero", self.zero, 0.0, 1.0)
        check_number("longest", self.longest, 0.0, math.pi / 2, open_low=True)

    def __call__(self, sde: SDE, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(theta_t, theta_s), each of shape (count,), float64 on the CPU."""
        low, high = lowest(sde), angle(sde.level(sde.t_max))
        u = torch.rand(4, count, generator=generator, device=generator.device).cpu().double()
        first = low + (high - low) * u[0]
        first = torch.where(u[1] < self.top, torch.full_like(first, high), first)
        reach = first.clamp(max=self.longest)
        last = first - reach * u[2]
        # a jump to 0 that is longer than `longest` stays what it is: the end of the range
        clean = (u[3] < self.zero) & (first <= self.longest)
        return first, torch.where(clean, torch.zeros_like(last), last)


def lowest(sde: SDE) -> float:
    """The smallest angle at which a network is evaluated."""
    t = sde.t_min if sde.t_min > 0 else 1e-3 * sde.t_max
    return float(angle(sde.level(t)))
