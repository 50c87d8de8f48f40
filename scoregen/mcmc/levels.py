"""Which levels to visit: equal conditional effective sample sizes, found by a pilot run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import check_callable, check_count, check_data, check_number
from ..energies import energy_of
from ..grids import Times
from ..models import ScoreModel
from ..models.base import check_model, evaluating
from ..noise import Noise
from ..sampling import Solver
from ..sampling.resampling import effective, systematic
from .evidence import check_kernel

__all__ = ["adaptive_levels"]


@torch.no_grad()
def adaptive_levels(
    kernel: Solver,
    model: ScoreModel,
    x: Tensor,
    *,
    noise: Noise,
    ess: float = 0.9,
    start: float | None = None,
    stop: float | None = None,
    repeats: int = 1,
    most: int = 1000,
) -> Times:
    """Levels with equal conditional effective sample sizes between neighbours, by a pilot run.

    The next time is where (mean v)^2 / mean v^2 = ess for v = exp(E(x, t) - E(x, s)) over the
    particles, which are then resampled and moved (Zhou et al. 2016, 1303.3123). Levels chosen from
    the particles that they weigh bias the estimate: run `annealed_importance` on the grid returned
    with fresh draws, and it is unbiased.

    Args:
        kernel: a solver that leaves each level invariant.
        model: a model with energies.
        x: exact samples at the first time, shape (particles, *event).
        noise: where z comes from.
        ess: conditional effective share between neighbours, in (0, 1).
        start: first time, t_max unless given.
        stop: last time, t_min (0 on StaticSDE) unless given.
        repeats: moves at each level.
        most: levels at most.

    >>> from scoregen import MALA, Gaussian, Potential, StaticSDE
    >>> from scoregen.energies import GeometricPath
    >>> from scoregen.noise import SampleNoise
    >>> first = Gaussian(StaticSDE(), torch.zeros(1), 1.0)
    >>> path = GeometricPath(first, Potential(lambda x: 20 * x.square().sum(1)))
    >>> grid = adaptive_levels(MALA(0.01), path, first.sample(500), noise=SampleNoise(0))
    >>> grid.times[0], grid.times[-1]
    (1.0, 0.0)
    """
    check_kernel(kernel)
    check_model(model)
    check_data(x)
    check_callable("noise", noise, "(like, t, s) -> Tensor, such as SampleNoise(0)")
    check_count("most", most)
    check_number("ess", ess, 0.0, 1.0, open_low=True, open_high=True)
    check_count("repeats", repeats)
    sde = model.sde
    here = sde.t_max if start is None else check_number("start", start, 0.0, sde.t_max)
    end = sde.t_min if stop is None else check_number("stop", stop, 0.0, here)
    times = [here]

    def share(s: float) -> float:
        level = model.level(s, x)
        v = (before - energy_of(model, x, level)).double()
        return float(effective(v)) / len(x)

    with evaluating(model):
        while here > end:
            if len(times) > most:
                raise ValueError(f"{most} levels do not suffice; take a smaller ess, or raise most")
            before = energy_of(model, x, model.level(here, x))
            if share(end) >= ess:
                times.append(end)
                break
            low, high = end, here
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (low, middle) if share(middle) >= ess else (middle, high)
            here = high
            times.append(here)
            level = model.level(here, x)
            u = torch.special.ndtr(noise(x.new_zeros(len(x)), level, level)[:1].double())
            logs = (before - energy_of(model, x, level)).unsqueeze(0)
            x = x[systematic(logs, u)[0]]
            state: Any = None
            for _ in range(repeats):
                x, state = kernel.step(model, x, level, level, state, noise)
    return Times(*times)
