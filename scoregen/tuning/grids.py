"""Grids that are optimised rather than chosen: for a Gaussian, or along reference trajectories."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from .._checks import check_count, check_data, check_kind, check_number, check_numbers
from ..analysis import output_law
from ..grids import Karras, Times, UniformLam
from ..models import ScoreModel, check_model
from ..noise import ReplayNoise
from ..processes import SDE, Level
from ..sampling import Sampler, Solver
from ..solvers import DPMSolverPP

__all__ = ["OptimalGaussian", "trajectory_grid"]

_CONTROLS = 8  # free step lengths; more moves than these interpolate between them
_REACH = 5.0  # bound on the logarithm of a step length relative to the others
_ENOUGH = 1e-10  # squared distance below which no further start is tried


@dataclass(frozen=True)
class OptimalGaussian:
    """The times that bring a solver closest to a Gaussian, in the exact Wasserstein-2 distance.

    The output law of the solver on N(mean, diag(variances)), begun at the prior as `sample` does,
    is known without Monte Carlo (`output_law`); its distance from the data is minimised over the
    steps in log(alpha / sigma) and over the last positive time by nonlinear least squares, from
    several starts (Sabour et al. 2024, 2404.14507, minimise a bound on the KL divergence instead).
    Up to 8 moves every step is free, beyond that the logarithms of the steps are interpolated
    between 8 of them. The result is never worse than `UniformLam` or `Karras`, is deterministic and
    remembered. With fewer variances than free steps the distance may vanish, which says little
    about other data: give a spectrum.

    Args:
        steps: number of moves.
        variances: eigenvalues of the data's covariance, for images a few of their spectrum.
        solver: one with an affine output law: no adaptive steps, no thresholds.
        mean: of the data in that basis, one for all or one each.
        start: first time; t_max unless given.
        stop: last time; 0 adds a last move to 0.

    >>> from scoregen import EDMSDE
    >>> grid = OptimalGaussian(5, (0.1, 1.0))
    >>> output_law(Sampler(DPMSolverPP(), grid), EDMSDE(), (0.1, 1.0), start="prior").w2 < 0.02
    True
    """

    steps: int
    variances: tuple[float, ...]
    solver: Solver = DPMSolverPP()  # noqa: RUF009 (frozen)
    mean: float | tuple[float, ...] = 0.0
    start: float | None = None
    stop: float = 0.0

    def __post_init__(self) -> None:
        check_count("steps", self.steps, 2)
        variances = check_numbers("variances", self.variances, 0.0, open_low=True)
        object.__setattr__(self, "variances", variances)
        if not variances:
            raise ValueError("variances must hold at least one eigenvalue of the data's covariance")
        check_kind("solver", self.solver, Solver, "DPMSolverPP()")
        if isinstance(self.mean, Real) or (isinstance(self.mean, Tensor) and not self.mean.dim()):
            check_number("mean", self.mean)
        else:
            mean = check_numbers("mean", self.mean)
            object.__setattr__(self, "mean", mean)
            if len(mean) != len(variances):
                raise ValueError(
                    f"mean must be one number or as many as the {len(variances)} variances, got "
                    f"{len(mean)}"
                )
        check_number("stop", self.stop, 0.0)
        if self.start is not None:
            check_number("start", self.start, self.stop, open_low=True)

    def __call__(self, sde: SDE) -> Tensor:
        return torch.tensor(_optimal(self, sde), dtype=torch.float64)


@lru_cache(maxsize=256)
def _optimal(grid: OptimalGaussian, sde: SDE) -> tuple[float, ...]:
    start, stop = sde.t_max if grid.start is None else float(grid.start), float(grid.stop)
    from scipy.optimize import least_squares  # slow to import

    to_zero = stop == 0
    lowest = stop if not to_zero else sde.t_min if sde.t_min > 0 else 1e-3 * sde.t_max
    first, last = sde.level(start).lam, sde.level(lowest).lam
    if not math.isfinite(first):
        raise ValueError(
            f"OptimalGaussian needs noise and signal where it starts, got log(alpha / sigma) = "
            f"{first} at t = {start:g}; give start = {0.999 * start:g}"
        )
    moves = grid.steps - to_zero
    free = min(moves, _CONTROLS)
    places = np.linspace(0, moves - 1, free) if free > 1 else np.zeros(1)
    mean = torch.as_tensor(grid.mean, dtype=torch.float64)

    def times(theta: np.ndarray) -> tuple[float, ...]:
        """Step lengths exp(theta) that share a span, with a part left out before a move to 0."""
        steps = np.exp(np.interp(np.arange(moves), places, theta[:free]))
        unused = steps.mean() * math.exp(theta[free]) if to_zero else 0.0
        lams = first + (last - first) * np.cumsum(steps) / (steps.sum() + unused)
        inner = sde.time(torch.from_numpy(lams)).tolist()
        if not to_zero:
            inner[-1] = lowest
        return (start, *inner, 0.0) if to_zero else (start, *inner)

    def residuals(points: tuple[float, ...]) -> np.ndarray:
        sampler = Sampler(grid.solver, Times(*points))
        law = output_law(sampler, sde, grid.variances, mean, start="prior")
        spread = law.variance.sqrt() - law.target_variance.sqrt()
        return torch.cat([law.mean_error, spread]).numpy()

    def error(theta: np.ndarray) -> np.ndarray:
        return residuals(times(theta))

    best, least = (), math.inf
    for known in (UniformLam, Karras):
        plain = known(grid.steps, start=start, stop=stop)(sde)
        found = [tuple(plain.tolist())]
        if not math.isfinite(float(torch.from_numpy(residuals(found[0])).square().sum())):
            raise ValueError(
                f"the distance of {grid.solver!r} from this Gaussian is not finite on "
                f"{known.__name__}({grid.steps}); give a smaller mean or another solver"
            )
        for guess in _guesses(sde.lam(plain).numpy(), places, to_zero):
            fit = least_squares(
                error, guess, bounds=(-_REACH, _REACH), ftol=1e-3, xtol=1e-3, max_nfev=15
            )
            found.append(times(fit.x))
        for candidate in found:
            cost = float(np.square(residuals(candidate)).sum())
            if cost < least:
                best, least = candidate, cost
        if least < _ENOUGH:
            break
    return best


def _guesses(lam: np.ndarray, places: np.ndarray, to_zero: bool) -> list[np.ndarray]:
    """Where the search begins: a known grid, whole and with one more step of it left out."""
    steps = np.log(np.diff(lam[:-1] if to_zero else lam))
    steps = np.interp(places, np.arange(len(steps)), steps - steps.mean())
    edge = _REACH - 0.01
    if not to_zero:
        return [steps.clip(-edge, edge)]
    return [np.append(steps, unused).clip(-edge, edge) for unused in (-edge, 0.0)]


@torch.no_grad()
def trajectory_grid(
    model: ScoreModel,
    x: Tensor,
    steps: int,
    *,
    reference: Sampler | None = None,
) -> Times:
    """The times on a fine grid between which straight moves stray least, by dynamic programming.

    Reference trajectories run on a fine grid t_0 > ... > t_m; the cost of a move i -> j is
    the distance of DDIM's single move from the reference point x_i to t_j from x_j, in x / alpha,
    root mean square over coordinates and averaged over trajectories. Of all ways from t_0 to t_m
    in `steps` moves, the one with the least sum is exact by dynamic programming in O(steps m^2)
    (Chen et al. 2024, 2405.11326).

    Args:
        model: any score model; it is evaluated at each reference point once more.
        x: states at the reference's first time, shape (batch, *event); a few tens are enough.
        steps: number of moves wanted, fewer than the reference's.
        reference: a deterministic sampler; DPMSolverPP() on UniformLam(64) unless given.

    Returns:
        Times, usable with every solver.

    >>> from scoregen import EDMSDE, Gaussian
    >>> model = Gaussian(EDMSDE(), torch.zeros(2), torch.tensor([0.1, 1.0]))
    >>> x = 80 * torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    >>> len(trajectory_grid(model, x, 6).times)
    7
    """
    check_model(model)
    if not len(check_data(x)):
        raise ValueError("x must hold at least one state, got none; a few tens are enough")
    check_count("steps", steps)
    if reference is not None:
        check_kind("reference", reference, Sampler, "Sampler(DPMSolverPP(), UniformLam(64))")
    fine = Sampler(DPMSolverPP(), UniformLam(64)) if reference is None else reference
    if fine.solver.order is None:
        raise ValueError(
            f"the reference must be noise-free, got {fine.solver!r}; take DPMSolverPP()"
        )
    fine_path = list(fine.iterate(model, x, noise=ReplayNoise([])))
    if not steps < len(fine_path):
        raise ValueError(
            f"steps must be less than the reference's {len(fine_path) - 1}, got {steps}"
        )
    cost = np.full((len(fine_path), len(fine_path)), math.inf)
    for i, (_, t, at, _) in enumerate(fine_path[:-1]):
        p = model(at, t)
        for j in range(i + 1, len(fine_path)):
            cost[i, j] = _stray(p.x0, p.eps, fine_path[j].x, fine_path[j].t)
    total, came = np.full(len(fine_path), math.inf), []
    total[0] = 0.0
    for _ in range(steps):
        through = total[:, None] + cost
        came.append(through.argmin(0))
        total = through.min(0)
    if not math.isfinite(total[-1]):
        raise ValueError("the reference trajectories are not finite; take a finer reference")
    path = [len(fine_path) - 1]
    for before in reversed(came):
        path.append(int(before[path[-1]]))
    return Times(*(float(fine_path[i].t.t) for i in reversed(path)))


def _stray(x0: Tensor, eps: Tensor, x: Tensor, s: Level) -> float:
    """How far DDIM's move to s lands from x, in x / alpha."""
    gap = (s.alpha * x0 + s.sigma * eps - x) / s.alpha
    return float(gap.reshape(len(x), -1).square().mean(1).sqrt().mean())
