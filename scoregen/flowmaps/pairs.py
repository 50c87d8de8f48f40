"""Pairs of angles (theta_t, theta_s) at which a flow map is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, is_dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from .._checks import check_count, check_number, shown
from ..processes import SDE
from .angles import angle, lowest

__all__ = ["GrowingPairs", "Pairs"]


class PairLaw(Protocol):
    """(sde, count, generator) -> (theta_t, theta_s), each of shape (count,), float64, host."""

    def __call__(
        self, sde: SDE, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Pairs:
    """theta_t uniform, with a share at the noisy end; theta_s uniform below it, with a share at 0.

    Args:
        top: share of pairs that start at t_max, where one-step samples start.
        zero: share of pairs that end at t = 0.
        longest: longest jump theta_t - theta_s, in radians.
        inverts: share of pairs that are turned round, jumps towards noise, for a map with
            `AngleSpan(inverts=True)`; those that would start at 0 start at the lowest angle.

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
    inverts: float = 0.0

    def __post_init__(self) -> None:
        for name in ("top", "zero", "inverts"):
            share = check_number(name, getattr(self, name), 0.0, 1.0)
            object.__setattr__(self, name, share)
        check_number("longest", self.longest, 0.0, math.pi / 2, open_low=True)

    def __call__(self, sde: SDE, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(theta_t, theta_s), each of shape (count,), float64 on the host."""
        low, high = lowest(sde), angle(sde.level(sde.t_max))
        u = torch.rand(4, count, generator=generator, device=generator.device).cpu().double()
        first = low + (high - low) * u[0]
        first = torch.where(u[1] < self.top, torch.full_like(first, high), first)
        reach = first.clamp(max=self.longest)
        last = first - reach * u[2]
        # a jump to 0 that is longer than `longest` stays what it is: the end of the range
        clean = (u[3] < self.zero) & (first <= self.longest)
        last = torch.where(clean, torch.zeros_like(last), last)
        if self.inverts:
            # the rows are independent draws, so the first ones are as good as any
            turned = torch.arange(count) < round(self.inverts * count)
            up = last.clamp(min=low)
            first, last = torch.where(turned, up, first), torch.where(turned, first, last)
        return first, last


class GrowingPairs(nn.Module):
    """Pairs whose longest jump grows linearly from short to all, over a number of calls.

    Targets of short jumps rest on the diagonal, those of long ones on shorter ones, so jumps that
    grow train more stably than all at once (Frans et al. 2024, 2410.12557). The count of calls is
    a buffer, which `fit` saves and restores with the training.

    Args:
        calls: calls, one per training step, until the longest jump is that of `pairs`.
        shortest: longest jump at the start, in radians.
        pairs: the law of the pairs.

    >>> from scoregen import VPSDE
    >>> theta_t, theta_s = GrowingPairs(100)(VPSDE(), 50, torch.Generator().manual_seed(0))
    >>> bool((theta_t - theta_s <= 0.1 + 1e-12).all())
    True
    """

    def __init__(self, calls: int, shortest: float = 0.1, pairs: Pairs | None = None):
        super().__init__()
        self.pairs = Pairs() if pairs is None else pairs
        law = is_dataclass(self.pairs) and not isinstance(self.pairs, type)
        if not (law and callable(self.pairs) and hasattr(self.pairs, "longest")):
            raise TypeError(
                "pairs must be Pairs(), or another dataclass of a law with a field longest to be "
                f"replaced, got {shown(pairs)}"
            )
        self.calls = check_count("calls", calls)
        self.shortest = check_number("shortest", shortest, 0.0, self.pairs.longest, open_low=True)
        self.done: Tensor
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def forward(self, sde: SDE, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        grown = min(1.0, int(self.done) / self.calls)
        self.done += 1
        longest = self.shortest + grown * (self.pairs.longest - self.shortest)
        return replace(self.pairs, longest=longest)(sde, count, generator)
