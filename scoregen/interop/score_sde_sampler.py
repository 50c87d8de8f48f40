"""score_sde's own samplers, with the lengths of steps that its code has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._rows import row_norm
from ..grids import Times
from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level
from ..sampling import Sampler, Solver

__all__ = ["PCSteps", "SongSampling", "UniformSteps"]


@dataclass(frozen=True)
class UniformSteps(Solver):
    """Euler-Maruyama with steps of 1 / N wherever the next time stands; the last without noise.

    Its N times run from 1 to eps and are (1 - eps) / (N - 1) apart.

    Args:
        steps: N.

    >>> UniformSteps(10).nfe
    1
    """

    steps: int

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        alpha_rate, sigma_rate = model.sde.rates_at(t.t)
        f = alpha_rate / t.alpha
        g2 = 2 * t.sigma * (sigma_rate - f * t.sigma)
        h = 1 / self.steps
        x = (1 - f * h) * x + g2 * h * model(x, t).score
        return (x.add(noise(x, t, s), alpha=math.sqrt(g2 * h)) if s.sigma > 0 else x), None


@dataclass(frozen=True)
class PCSteps(Solver):
    """A Langevin step, then x + (sigma_k^2 - sigma_(k-1)^2) score + noise; the last without noise.

    The Langevin step's size comes from norms that are averaged over the batch, so that the rows
    belong together. sigma_k are N geometric levels, sigma_(-1) = 0.

    Args:
        steps: N.
        sigma: least and greatest of the levels.
        snr: of the Langevin step.

    >>> PCSteps(10, (0.01, 50.0)).population
    True
    """

    steps: int
    sigma: tuple[float, float]
    snr: float = 0.16
    nfe = 2
    population = True

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        k = self.steps - 1 if state is None else state
        score, z = model(x, t).score, noise(x, t, t)
        h = 2 * (self.snr * row_norm(z).mean() / row_norm(score).mean()) ** 2
        x = x + h * score + (2 * h).sqrt() * z
        below = self._level(k - 1) if k else 0.0
        g2 = self._level(k) ** 2 - below**2
        x = x + g2 * model(x, t).score
        return (x.add(noise(x, t, s), alpha=math.sqrt(g2)) if s.sigma > 0 else x), k - 1

    def _level(self, k: int) -> float:
        low, high = self.sigma
        return low * (high / low) ** (k / (self.steps - 1))


@dataclass(frozen=True)
class SongSampling:
    """(model, steps) -> (model, sampler): what score_sde's configs for continuous training choose.

    Args:
        kind: of the process.
        sigma: least and greatest noise level of "ve".

    >>> SongSampling("vp", (0.01, 50.0)).kind
    'vp'
    """

    kind: Literal["vp", "subvp", "ve"]
    sigma: tuple[float, float]

    def __call__(self, model: ScoreModel, steps: int) -> tuple[ScoreModel, Sampler]:
        if steps < 2:
            raise ValueError("score_sde's samplers need 2 steps at least")
        eps = 1e-5 if self.kind == "ve" else 1e-3
        times = torch.linspace(1.0, eps, steps, dtype=torch.float64)
        if self.kind != "ve":
            return model, Sampler(UniformSteps(steps), Times(*times.tolist(), 0.0))
        low, high = self.sigma
        sigmas = low * (high / low) ** times
        return model, Sampler(PCSteps(steps, self.sigma), Times(*sigmas.tolist(), 0.0))
