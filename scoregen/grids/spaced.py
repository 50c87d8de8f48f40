"""Grids of n moves by a rule: equally spaced in time, its root, log-SNR, or Karras' power.

They are `(steps, start=None, stop=0.0)`: from `start` (t_max unless given) to the smallest time a
network is evaluated at, t_min, and, when `stop` is 0, one last move to 0 that counts as a step.
`steps` is the number of moves in all.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_count, check_number
from ..processes import SDE

__all__ = ["Grid", "Karras", "Quadratic", "UniformLam", "UniformTime"]

Grid = Callable[[SDE], Tensor]


@dataclass(frozen=True)
class _Spaced:
    """A grid of `steps` moves whose interior points follow a rule."""

    steps: int
    start: float | None = None
    stop: float = 0.0

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        if self.start is not None:
            check_number("start", self.start, 0.0, open_low=True)
        check_number("stop", self.stop, 0.0)

    def __call__(self, sde: SDE) -> Tensor:
        start = sde.t_max if self.start is None else self.start
        check_number("start", start, self.stop, sde.t_max * (1 + 1e-12), open_low=True)
        lowest = self._lowest(sde) if self.stop == 0 else 0.0
        jumps = lowest > 0
        stop = lowest if jumps else self.stop
        if jumps and self.steps == 1:
            return torch.tensor([start, 0.0], dtype=torch.float64)
        if start <= stop:
            raise ValueError(
                f"start = {start:g} must lie above {stop:g}, where the last move begins; take "
                "steps = 1 to move to the data at once"
            )
        times = self.spaced(sde, start, stop, self.steps - jumps)
        times[0], times[-1] = start, stop
        return torch.cat([times, times.new_zeros(1)]) if jumps else times

    def _lowest(self, sde: SDE) -> float:
        """Where the last move, to 0, begins; 0 when none is needed."""
        return sde.t_min

    @abstractmethod
    def spaced(self, sde: SDE, start: float, stop: float, moves: int) -> Tensor:
        """moves + 1 times from start to stop, float64."""


@dataclass(frozen=True)
class UniformTime(_Spaced):
    """Times equally far apart.

    >>> from scoregen import RectifiedSDE
    >>> UniformTime(4)(RectifiedSDE()).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """

    def spaced(self, sde: SDE, start: float, stop: float, moves: int) -> Tensor:
        return torch.linspace(start, stop, moves + 1, dtype=torch.float64)


@dataclass(frozen=True)
class Quadratic(_Spaced):
    """Square roots of the times equally far apart (Song et al. 2020, 2010.02502).

    >>> from scoregen import RectifiedSDE
    >>> Quadratic(2)(RectifiedSDE()).tolist()
    [1.0, 0.25, 0.0]
    """

    def spaced(self, sde: SDE, start: float, stop: float, moves: int) -> Tensor:
        roots = torch.linspace(math.sqrt(start), math.sqrt(stop), moves + 1, dtype=torch.float64)
        return roots**2


@dataclass(frozen=True)
class _Log(_Spaced):
    """Grids spaced by the noise-to-signal ratio, which must be finite and positive at both ends.

    Where it is not (rectified flow: pure noise at t_max, clean data at t_min = 0), the spacing runs
    over [margin, t_max (1 - margin)] and the ends are reached by one extra move each.
    """

    margin: float = 1e-3

    def __call__(self, sde: SDE) -> Tensor:
        start = sde.t_max if self.start is None else self.start
        if sde.level(start).lam != -math.inf:
            return super().__call__(sde)
        inner = start * (1 - self.margin)
        if self.steps == 1:
            return torch.tensor([start, self.stop], dtype=torch.float64)
        rest = type(self)(**{**self.__dict__, "steps": self.steps - 1, "start": inner}).__call__(
            sde
        )
        return torch.cat([rest.new_tensor([start]), rest])

    def _lowest(self, sde: SDE) -> float:
        if sde.t_min > 0:
            return sde.t_min
        if sde.level(sde.t_max).lam == -math.inf:
            return self.margin * sde.t_max
        raise ValueError(
            f"{type(self).__name__} cannot reach t_min = 0, where log(alpha / sigma) is infinite; "
            f"build the process with t_min > 0, or give the grid a stop > 0"
        )

    def spaced(self, sde: SDE, start: float, stop: float, moves: int) -> Tensor:
        ends = sde.lam(torch.tensor([start, stop], dtype=torch.float64))
        if not bool(torch.isfinite(ends).all()):
            raise ValueError(
                f"{type(self).__name__} needs noise and signal at both ends, got "
                f"log(alpha / sigma) = {ends.tolist()} at t = {start:g} and {stop:g}"
            )
        return sde.time(self.lams(float(ends[0]), float(ends[1]), moves))

    @abstractmethod
    def lams(self, first: float, last: float, moves: int) -> Tensor:
        """moves + 1 values of log(alpha / sigma) from first to last, float64."""


@dataclass(frozen=True)
class UniformLam(_Log):
    """log(alpha / sigma) equally far apart (Lu et al. 2022, 2206.00927).

    >>> from scoregen import EDMSDE
    >>> UniformLam(3, start=4.0)(EDMSDE(t_min=1.0)).tolist()
    [4.0, 2.0, 1.0, 0.0]
    """

    def lams(self, first: float, last: float, moves: int) -> Tensor:
        return torch.linspace(first, last, moves + 1, dtype=torch.float64)


@dataclass(frozen=True)
class Karras(_Log):
    """sigma / alpha to the power 1/rho equally far apart (Karras et al. 2022, 2206.00364).

    >>> from scoregen import EDMSDE
    >>> [round(t, 3) for t in Karras(4)(EDMSDE()).tolist()]
    [80.0, 9.723, 0.47, 0.002, 0.0]
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rho", self.rho, 0.0, open_low=True)

    def lams(self, first: float, last: float, moves: int) -> Tensor:
        ends = math.exp(-first / self.rho), math.exp(-last / self.rho)
        return -self.rho * torch.linspace(*ends, moves + 1, dtype=torch.float64).log()
