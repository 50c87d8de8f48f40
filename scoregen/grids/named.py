"""More grids of the literature: powers of time, quantiles, interpolated lists, restarts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .._checks import check_callable, check_count, check_number, check_numbers
from ..processes import SDE
from .spaced import Grid, _Log, _Spaced

__all__ = ["BetaQuantiles", "Interpolated", "PolyExponential", "Polynomial", "RestartGrid"]


@dataclass(frozen=True)
class Polynomial(_Spaced):
    """t^(1/rho) equally far apart: 1 is uniform, 2 quadratic (Zhang and Chen 2022, 2204.13902).

    In time; `Karras` does the same in sigma / alpha.

    Args:
        steps: number of moves.
        start: first time; t_max unless given.
        stop: last time.
        rho: the power; larger puts more times near the data.

    >>> from scoregen import RectifiedSDE
    >>> Polynomial(2, rho=3.0)(RectifiedSDE()).tolist()
    [1.0, 0.125, 0.0]
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rho", self.rho, 0.0, open_low=True)

    def spaced(self, sde: SDE, start: float, stop: float, moves: int) -> Tensor:
        ends = start ** (1 / self.rho), stop ** (1 / self.rho)
        return torch.linspace(*ends, moves + 1, dtype=torch.float64) ** self.rho


@dataclass(frozen=True)
class BetaQuantiles(_Spaced):
    """Quantiles of a Beta(a, b) law on time: dense at both ends (Lee et al. 2024, 2407.12173).

    t_i = stop + (start - stop) F^{-1}(1 - i / n) with F the distribution function of Beta(a, b).

    Args:
        steps: number of moves.
        start: first time; t_max unless given.
        stop: last time.
        a: below 1, dense near the data.
        b: below 1, dense near the noise.

    >>> from scoregen import RectifiedSDE
    >>> [round(t, 3) for t in BetaQuantiles(4)(RectifiedSDE()).tolist()]
    [1.0, 0.824, 0.5, 0.176, 0.0]
    """

    a: float = 0.6
    b: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("a", self.a, 0.0, open_low=True)
        check_number("b", self.b, 0.0, open_low=True)

    def spaced(self, sde: SDE, start: float, stop: float, moves: int) -> Tensor:
        levels = [1 - i / moves for i in range(moves + 1)]
        from scipy.stats import beta  # slow to import

        quantiles = torch.tensor(beta.ppf(levels, self.a, self.b), dtype=torch.float64)
        return stop + (start - stop) * quantiles


@dataclass(frozen=True)
class PolyExponential(_Log):
    """log(alpha / sigma) as a power of the index: 1 is UniformLam, known as "exponential".

    lam_i = lam_last + (lam_first - lam_last) (1 - i / n)^rho, as k-diffusion's polyexponential
    (Crowson et al., software, 2022).

    Args:
        steps: number of moves.
        start: first time; t_max unless given.
        stop: last time.
        rho: the power; above 1, more times near the data.

    >>> from scoregen import EDMSDE
    >>> PolyExponential(3, start=16.0, rho=2.0)(EDMSDE(t_min=1.0)).tolist()
    [16.0, 2.0, 1.0, 0.0]
    """

    rho: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rho", self.rho, 0.0, open_low=True)

    def lams(self, first: float, last: float, moves: int) -> Tensor:
        ramp = torch.linspace(1.0, 0.0, moves + 1, dtype=torch.float64) ** self.rho
        return last + (first - last) * ramp


@dataclass(frozen=True)
class Interpolated:
    """A list of times stretched to any number of moves, log(alpha / sigma) linear in the index.

    How tables such as Align Your Steps are meant to be used (Sabour et al. 2024, 2404.14507). A
    last time of 0 is a move of its own and not interpolated.

    Args:
        times: falling, at least two of them positive.
        steps: number of moves, the last one to 0 included.

    >>> from scoregen import EDMSDE
    >>> [round(t, 6) for t in Interpolated((16.0, 4.0, 1.0, 0.0), 5)(EDMSDE()).tolist()]
    [16.0, 8.0, 4.0, 2.0, 1.0, 0.0]
    """

    times: tuple[float, ...]
    steps: int

    def __post_init__(self) -> None:
        times = check_numbers("times", self.times, 0.0)
        object.__setattr__(self, "times", times)
        check_count("steps", self.steps)
        jumps = times[-1:] == (0.0,)
        if len(times) - jumps < 2 or any(s >= t for t, s in pairwise(times)):
            raise ValueError(f"times must fall, at least two of them positive; got {times}")
        if self.steps <= jumps:
            raise ValueError(
                f"steps must be at least 2 where the last one is to 0, got {self.steps}"
            )

    def __call__(self, sde: SDE) -> Tensor:
        jumps = self.times[-1] == 0
        knots = torch.tensor(self.times[: len(self.times) - jumps], dtype=torch.float64)
        lam = sde.lam(knots)
        if not bool(torch.isfinite(lam).all()):
            raise ValueError(
                "Interpolated needs noise and signal at every positive time, got log(alpha / "
                f"sigma) = {lam.tolist()}; start a little below t_max"
            )
        place = torch.linspace(0, len(knots) - 1, self.steps - jumps + 1, dtype=torch.float64)
        left = place.floor().long().clamp(max=len(knots) - 2)
        share = place - left
        times = sde.time(lam[left] * (1 - share) + lam[left + 1] * share)
        whole = share * (1 - share) == 0
        times[whole] = knots[place[whole].long()]  # the given times themselves, to the last bit
        return torch.cat([times, times.new_zeros(1)]) if jumps else times


@dataclass(frozen=True)
class RestartGrid:
    """A grid that goes back up from `low` to `high` and down again, `repeats` times (2306.14878).

    Xu et al. (2023): where another grid first comes as close to `low` as it will, `repeats` rounds
    are put in, each a jump up to `high` and `inner` moves down, spaced as `Karras` does. For
    solvers whose moves turn: `Restart`.

    Args:
        grid: the grid that is interrupted.
        low: time from which to restart; its nearest neighbour in log(alpha / sigma) on the grid.
        high: time to restart to.
        repeats: rounds; 0 leaves the grid as it is.
        inner: moves down in each round.
        rho: Karras' power in each round.

    >>> from scoregen import EDMSDE
    >>> from scoregen import UniformTime
    >>> grid = RestartGrid(UniformTime(4, start=4.0, stop=0.0), low=1.0, high=3.0, inner=1)
    >>> grid(EDMSDE(t_min=1.0)).tolist()
    [4.0, 3.0, 2.0, 1.0, 3.0, 1.0, 0.0]
    """

    grid: Grid
    low: float
    high: float
    repeats: int = 1
    inner: int = 4
    rho: float = 7.0

    def __post_init__(self) -> None:
        check_callable("grid", self.grid, "(sde) -> times, such as UniformTime(20)")
        check_number("low", self.low, 0.0, open_low=True)
        check_number("high", self.high, self.low, open_low=True)
        check_count("repeats", self.repeats, 0)
        check_count("inner", self.inner)
        check_number("rho", self.rho, 0.0, open_low=True)

    def __call__(self, sde: SDE) -> Tensor:
        times = self.grid(sde)
        inside = times[(times > 0) & (times < self.high)]
        if not len(inside):
            raise ValueError(f"the grid has no time between 0 and high = {self.high:g}")
        aim = sde.level(self.low).lam
        gap = (sde.lam(inside) - aim).abs()
        low = float(inside[int(gap.argmin())])
        first, last = (math.exp(-sde.level(t).lam / self.rho) for t in (self.high, low))
        ramp = torch.linspace(first, last, self.inner + 1, dtype=torch.float64)
        down = sde.time(-self.rho * ramp.log())
        down[0], down[-1] = self.high, low
        at = int((times == low).nonzero()[0]) + 1
        return torch.cat([times[:at], *[down] * self.repeats, times[at:]])
