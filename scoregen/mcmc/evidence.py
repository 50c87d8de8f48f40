"""log Z along the noise levels: annealed importance sampling, thermodynamic integration."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_count, check_grid, check_number, check_state
from ..energies import energy_of
from ..grids import Grid
from ..models import ScoreModel
from ..models.base import evaluating
from ..noise import Noise
from ..processes import Level
from ..sampling import Solver
from .langevin import Langevin
from .metropolis import MALA

__all__ = ["Evidence", "annealed_importance", "thermodynamic_integration"]


class Evidence(NamedTuple):
    """An estimate of log Z at the last level, with its interval.

    Attributes:
        log_z: the estimate.
        low: lower end of the interval.
        high: upper end.
        ess: effective number of chains: (sum w)^2 / sum w^2 for importance weights.
        log_weights: log weight (or contribution) of every chain, shape (batch,).
        x: where the chains ended, shape (batch, *event); weighted samples of the last level.

    >>> Evidence(0.0, -0.1, 0.1, 10.0, torch.zeros(10), torch.zeros(10, 1)).ess
    10.0
    """

    log_z: float
    low: float
    high: float
    ess: float
    log_weights: Tensor
    x: Tensor


def _levels(kernel: Solver, grid: Grid, model: ScoreModel, x: Tensor) -> list[Level]:
    check_state(x)
    if kernel.direction != "fixed":
        raise TypeError(f"the kernel must act at a fixed level, like MALA or HMC, got {kernel!r}")
    if getattr(kernel, "temperature", 1.0) != 1.0:
        raise ValueError("the kernel must leave each level invariant: set its temperature to 1")
    if len(x) < 2:
        raise ValueError(f"an interval needs at least two chains, got {len(x)}")
    sde = model.sde
    return sde.levels(check_grid(grid(sde), sde.t_max, sde.t_min, "fixed"))


@torch.no_grad()
def annealed_importance(
    kernel: Solver,
    grid: Grid,
    model: ScoreModel,
    x: Tensor,
    *,
    noise: Noise,
    repeats: int = 1,
    log_z: float = 0.0,
    confidence: float = 0.999,
) -> Evidence:
    """log Z at the end of the grid by annealed importance sampling (Neal 2001, physics/9803008).

    log w = sum_k E(x_k, t_k) - E(x_k, t_{k+1}), with moves of the kernel at each level in between;
    E[w] = Z_K / Z_0 exactly, for every grid and number of moves. With `Langevin` as kernel each
    move adds the log ratio of its backward to its forward density, so that it stays exact (Crooks
    1998; Thin et al. 2021, 2102.05407).

    Args:
        kernel: a solver that leaves each level invariant (MALA, HMC), or Langevin.
        grid: falling times; `UniformTime(n)` on the StaticSDE of a `GeometricPath`.
        model: a model with energies.
        x: exact samples at the grid's first time, shape (chains, *event).
        noise: where z comes from.
        repeats: moves at each level between the ends.
        log_z: log Z at the first level.
        confidence: of the interval, by the delta method.

    Raises:
        TypeError: for a model that has only a score.

    >>> from scoregen import Gaussian, Potential, StaticSDE, UniformTime
    >>> from scoregen.energies import GeometricPath
    >>> from scoregen.noise import SampleNoise
    >>> start = Gaussian(StaticSDE(), torch.zeros(1), 1.0)
    >>> path = GeometricPath(start, Potential(lambda x: 2 * x.square().sum(1)))
    >>> found = annealed_importance(
    ...     MALA(0.2), UniformTime(10), path, start.sample(2000), noise=SampleNoise(0)
    ... )
    >>> found.low < 0.5 * math.log(math.pi / 2) < found.high
    True
    """
    check_count("repeats", repeats)
    check_number("confidence", confidence, 0.0, 1.0, open_low=True, open_high=True)
    levels = _levels(kernel, grid, model, x)
    weights = x.new_zeros(len(x), dtype=torch.float64)
    unadjusted = None
    if isinstance(kernel, Langevin):
        unadjusted = MALA(kernel.step_size)
    with evaluating(model):
        for k in range(1, len(levels)):
            t, s = levels[k - 1], levels[k]
            weights = weights + (energy_of(model, x, t) - energy_of(model, x, s)).double()
            if k == len(levels) - 1:
                break
            state: Any = None
            for _ in range(repeats):
                if unadjusted is None:
                    x, state = kernel.step(model, x, s, s, state, noise)
                else:
                    x, ratio = _unadjusted(unadjusted, model, x, s, noise)
                    weights = weights + ratio.double()
    top = weights.max()
    w = (weights - top).exp()
    mean = w.mean()
    estimate = log_z + float(top + mean.log())
    error = float(w.std() / mean) / math.sqrt(len(w))
    half = _normal_quantile((1 + confidence) / 2) * error
    ess = float(w.sum() ** 2 / w.square().sum())
    return Evidence(estimate, estimate - half, estimate + half, ess, weights, x)


def _unadjusted(
    proposal: MALA, model: ScoreModel, x: Tensor, s: Level, noise: Noise
) -> tuple[Tensor, Tensor]:
    """A Langevin move that is always taken, and the log ratio that would have judged it."""
    h = proposal.step_size(s) if callable(proposal.step_size) else proposal.step_size
    there, ratio = proposal.propose(model, model(x, s), s, s, h, noise)
    return there.x, ratio


@torch.no_grad()
def thermodynamic_integration(
    kernel: Solver,
    grid: Grid,
    model: ScoreModel,
    x: Tensor,
    *,
    noise: Noise,
    repeats: int = 4,
    log_z: float = 0.0,
    confidence: float = 0.999,
) -> Evidence:
    """log Z at the end of the grid by integrating its derivative from level to level.

    Between neighbours with D = E_{k+1} - E_k, log Z_{k+1} / Z_k = -(E_k[D] + E_{k+1}[D]) / 2
    - (Var_{k+1}[D] - Var_k[D]) / 12, the trapezium rule with its end correction (Kirkwood 1935;
    Gelman and Meng 1998). The interval is widened by the whole correction, since the rule has a
    bias that more levels remove; the first half of the moves at a level is not used. What the
    interval cannot see is a kernel too slow to follow the levels: compare with twice the repeats,
    or with `annealed_importance`, which is unbiased at any speed.

    Args:
        kernel: a solver that leaves each level invariant, such as MALA or HMC.
        grid: falling times.
        model: a model with energies at every time of the grid.
        x: exact samples at the grid's first time, shape (chains, *event).
        noise: where z comes from.
        repeats: moves at each level.
        log_z: log Z at the first level.
        confidence: of the interval; chains are independent of each other.

    Raises:
        TypeError: for a model that has only a score.

    >>> from scoregen import Gaussian, Potential, StaticSDE, UniformTime
    >>> from scoregen.energies import GeometricPath
    >>> from scoregen.noise import SampleNoise
    >>> start = Gaussian(StaticSDE(), torch.zeros(1), 1.0)
    >>> path = GeometricPath(start, Potential(lambda x: 2 * x.square().sum(1)))
    >>> found = thermodynamic_integration(
    ...     MALA(0.2), UniformTime(10), path, start.sample(2000), noise=SampleNoise(0)
    ... )
    >>> found.low < 0.5 * math.log(math.pi / 2) < found.high
    True
    """
    check_count("repeats", repeats)
    check_number("confidence", confidence, 0.0, 1.0, open_low=True, open_high=True)
    levels = _levels(kernel, grid, model, x)
    total = x.new_zeros(len(x), dtype=torch.float64)
    correction = 0.0
    with evaluating(model):
        for k, t in enumerate(levels):
            state: Any = None
            # (sign of the end correction, D = E_{k+1} - E_k or E_k - E_{k-1} at this level's draws)
            found: list[tuple[float, Tensor]] = []
            moves = repeats if k else 1  # the start is exact
            for move in range(moves):
                if k:
                    x, state = kernel.step(model, x, t, t, state, noise)
                if move < moves // 2:
                    continue
                here = energy_of(model, x, t).double()
                if k + 1 < len(levels):
                    found.append((-1.0, energy_of(model, x, levels[k + 1]).double() - here))
                if k:
                    found.append((1.0, here - energy_of(model, x, levels[k - 1]).double()))
            for sign in (-1.0, 1.0):
                drawn = [difference for mine, difference in found if mine == sign]
                if drawn:
                    d = torch.stack(drawn)
                    bend = sign * (d - d.mean()).square().mean(0) / 12
                    total = total - d.mean(0) / 2 - bend
                    correction += float(bend.mean())
    estimate = log_z + float(total.mean())
    half = _normal_quantile((1 + confidence) / 2) * float(total.std()) / math.sqrt(len(total))
    half = half + abs(correction)
    return Evidence(estimate, estimate - half, estimate + half, float(len(x)), total, x)


def _normal_quantile(p: float) -> float:
    return float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))
