"""Grids that are given, repeated or turned round."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_callable, check_count, check_flag, check_number
from ..processes import SDE, DiscreteSDE
from .spaced import Grid

__all__ = ["Constant", "Reversed", "Staircase", "Times"]


@dataclass(frozen=True)
class Constant:
    """One time, repeated: `steps` moves of a solver that stays, such as MALA.

    >>> from scoregen import VPSDE
    >>> Constant(0.1, 2)(VPSDE()).tolist()
    [0.1, 0.1, 0.1]
    """

    t: float
    steps: int

    def __post_init__(self) -> None:
        check_number("t", self.t, 0.0)
        check_count("steps", self.steps)

    def __call__(self, sde: SDE) -> Tensor:
        return torch.full((self.steps + 1,), self.t, dtype=torch.float64)


@dataclass(frozen=True)
class Staircase:
    """Noise levels equally far apart in log(alpha / sigma), each visited `repeats` times.

    Annealed Langevin dynamics (Song and Ermon 2019, 1907.05600). On a chain with `levels` knots
    the levels are its knots.

    Args:
        levels: number of noise levels, from t_max to t_min.
        repeats: Langevin steps at each.
        denoise: end with a move to 0 that returns x0 (Jolicoeur-Martineau et al. 2020, 2009.05475).

    >>> from scoregen import EDMSDE
    >>> Staircase(2, 2)(EDMSDE(t_min=1.0, t_max=4.0)).tolist()
    [4.0, 4.0, 1.0, 1.0, 1.0]
    """

    levels: int
    repeats: int
    denoise: bool = False

    def __post_init__(self) -> None:
        check_count("levels", self.levels)
        check_count("repeats", self.repeats)
        check_flag("denoise", self.denoise)

    def __call__(self, sde: SDE) -> Tensor:
        if isinstance(sde, DiscreteSDE) and self.levels == sde.steps:
            stairs = torch.tensor(sde.knots, dtype=torch.float64).flip(0)
        elif self.levels == 1:
            stairs = torch.tensor([sde.t_max], dtype=torch.float64)
        else:
            ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
            lam = sde.lam(ends)
            if not bool(torch.isfinite(lam).all()):
                raise ValueError("Staircase needs noise and signal at t_max and at t_min")
            first, last = lam.tolist()
            stairs = sde.time(torch.linspace(first, last, self.levels, dtype=torch.float64))
            stairs[0], stairs[-1] = ends
        times = stairs.repeat_interleave(self.repeats)
        tail = [stairs[-1:], stairs.new_zeros(1)] if self.denoise else [stairs[-1:]]
        return torch.cat([times, *tail])


class Times:
    """The times themselves.

    >>> Times(80.0, 0.8, 0.0)(None).tolist()
    [80.0, 0.8, 0.0]
    """

    def __init__(self, *times: float):
        if len(times) < 2:
            raise ValueError(f"a grid needs at least two times, got {times!r}")
        self.times = tuple(check_number("a time", t, 0.0) for t in times)

    def __call__(self, sde: SDE) -> Tensor:
        return torch.tensor(self.times, dtype=torch.float64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Times) and self.times == other.times

    def __hash__(self) -> int:
        return hash((Times, self.times))

    def __repr__(self) -> str:
        return f"Times{self.times}"


@dataclass(frozen=True)
class Reversed:
    """Another grid from its last positive time up to its first: encoding, inversion.

    Args:
        grid: the grid that is turned round.
        clean: begin at 0, for data without noise: the first move, 0 -> t_1, is then made with the
            noise predicted at t_1 (Song et al. 2020, 2010.02502). Without it the grid takes its
            input for a state at t_1.

    >>> from scoregen import EDMSDE
    >>> Reversed(Times(80.0, 0.8, 0.002, 0.0))(EDMSDE()).tolist()
    [0.002, 0.8, 80.0]
    >>> Reversed(Times(80.0, 0.8, 0.002, 0.0), clean=True)(EDMSDE()).tolist()
    [0.0, 0.002, 0.8, 80.0]
    """

    grid: Grid
    clean: bool = False

    def __post_init__(self) -> None:
        check_callable("grid", self.grid, "(sde) -> times, such as UniformTime(20)")
        check_flag("clean", self.clean)

    def __call__(self, sde: SDE) -> Tensor:
        times = self.grid(sde)
        rising = times[times > 0].flip(0)
        return torch.cat([rising.new_zeros(1), rising]) if self.clean else rising
