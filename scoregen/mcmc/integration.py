"""log Z along the noise levels by thermodynamic integration."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._checks import check_callable, check_count, check_number
from ..energies import energy_of
from ..grids import Grid
from ..models import ScoreModel
from ..models.base import evaluating
from ..noise import Noise
from ..sampling import Solver
from .evidence import Evidence, levels_of
from .langevin import Langevin

__all__ = ["thermodynamic_integration"]


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
        ValueError: for a kernel that is not invariant.

    >>> from scoregen import MALA, Gaussian, Potential, StaticSDE, UniformTime
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
    check_callable("noise", noise, "(like, t, s) -> Tensor, such as SampleNoise(0)")
    check_count("repeats", repeats)
    check_number("log_z", log_z)
    check_number("confidence", confidence, 0.0, 1.0, open_low=True, open_high=True)
    levels = levels_of(kernel, grid, model, x)
    if isinstance(kernel, Langevin):
        raise ValueError(
            "Langevin is biased at every level, which an integral over levels cannot weigh: use "
            "MALA or HMC, or annealed_importance"
        )
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
