"""Solvers that bring a measurement, or a classifier, in at each move."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import (
    check_callable,
    check_choice,
    check_kind,
    check_number,
)
from ..guidance.gradients import check_measured, denoised, gradient_of, misfit
from ..models import ScoreModel
from ..models.prediction import mix
from ..noise import Noise
from ..processes import Level
from ..sampling import Solver
from ..solvers.ancestral import posterior
from .measurement import LinearMeasurement

__all__ = ["DPS", "DiffPIR", "GuidedAncestral"]


@dataclass(frozen=True, eq=False)
class DPS(Solver):
    """An ancestral move, then -scale grad_x |y - A(x0_hat(x))| (Chung et al. 2022, 2209.14687).

    Algorithm 1 of the paper subtracts zeta_i grad |y - A(x0_hat)|^2 with zeta_i =
    zeta' / |y - A(x0_hat)|, and the gradient of a square is twice the norm times the gradient of
    the norm: scale = 2 zeta'. The published code's `scale` is this scale. It is a heuristic: on
    Gaussian data it is not the posterior at any scale. A may be any differentiable map.

    Args:
        measure: A, (batch, *event) -> (batch, *measurement).
        y: the measurement, shape measurement or (batch, *measurement).
        scale: 2 zeta' of the paper, at least 0.
        variance: of the ancestral move, "small" or "large".

    >>> from scoregen import VPSDE, Gaussian, Sampler, UniformTime
    >>> model = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> dps = DPS(lambda x: x[:, :1], torch.tensor([2.0]))
    >>> Sampler(dps, UniformTime(20)).sample(model, (4, 2), seed=0).shape
    torch.Size([4, 2])
    """

    measure: Callable[[Tensor], Tensor]
    y: Tensor
    scale: float = 1.0
    variance: Literal["small", "large"] = "small"
    nfe = 2  # the evaluation, and one product with its Jacobian

    def __post_init__(self) -> None:
        check_callable("measure", self.measure, "(batch, *event) -> (batch, *measurement)")
        check_measured(self.y)
        check_number("scale", self.scale, 0.0)
        check_choice("variance", self.variance, ("small", "large"))

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        p, pull = denoised(model, x, t, {})
        slope = pull(gradient_of(lambda x0: misfit(self.measure, self.y, x0), p.x0))
        norm = misfit(self.measure, self.y, p.x0).sqrt().reshape(-1, *(1,) * (x.dim() - 1))
        # where the data agree exactly the gradient is 0 / 0, and nothing is to be corrected
        step = torch.where(norm > 0, slope / (2 * norm), 0.0)
        if s.sigma == 0:
            return p.x0 - self.scale * step, None
        c0, c1, small, large = posterior(t, s)
        std = math.sqrt(small if self.variance == "small" else large)
        moved = mix(c1, x, c0, p.x0).add(noise(x, t, s), alpha=std)
        return moved - self.scale * step, None


@dataclass(frozen=True, eq=False)
class DiffPIR(Solver):
    """Denoise, move to the data by a proximal step, noise again (Zhu et al. 2023, 2305.08995).

    x0' = argmin |y - A x|^2 + rho |x - x0_hat|^2 with rho = strength noise^2 alpha^2 / sigma^2, and
    x_s = alpha_s x0' + sigma_s (sqrt(1 - zeta) eps' + sqrt(zeta) z), eps' = (x - alpha x0') /
    sigma.

    Args:
        measurement: y = A x + noise.
        strength: the paper's lambda, weight of the prior.
        zeta: share of fresh noise, in [0, 1].

    >>> from scoregen import VPSDE, Gaussian, Sampler, UniformTime
    >>> seen = LinearMeasurement(torch.eye(2)[:1], torch.tensor([1.0]), 0.1)
    >>> model = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> Sampler(DiffPIR(seen), UniformTime(20)).sample(model, (4, 2), seed=0).shape
    torch.Size([4, 2])
    """

    measurement: LinearMeasurement
    strength: float = 1.0
    zeta: float = 1.0

    def __post_init__(self) -> None:
        check_kind(
            "measurement", self.measurement, LinearMeasurement, "LinearMeasurement(a, y, 0.1)"
        )
        check_number("strength", self.strength, 0.0, open_low=True)
        check_number("zeta", self.zeta, 0.0, 1.0)

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        ridge = self.strength * (self.measurement.noise * t.alpha / t.sigma) ** 2
        x0 = self.measurement.proximal(model(x, t).x0, ridge)
        if s.sigma == 0:
            return x0, None
        eps = mix(1 / t.sigma, x, -t.alpha / t.sigma, x0)
        x = mix(s.alpha, x0, s.sigma * math.sqrt(1 - self.zeta), eps)
        if self.zeta:
            x = x.add(noise(x, t, s), alpha=s.sigma * math.sqrt(self.zeta))
        return x, None


@dataclass(frozen=True, eq=False)
class GuidedAncestral(Solver):
    """x_s ~ N(mean + scale variance g, variance), g = grad log p(y | x) at the mean of the move.

    The first-order expansion of p(x_s | x_t) p(y | x_s) around the mean, Algorithm 1 of Dhariwal
    and Nichol (2021, 2105.05233), with the classifier at the level of s; at="x_t" takes the
    gradient at the state before the move and its level, as their published code does. With the
    exact reverse variance and a classifier whose log-probability is linear in x, it is exact. A
    last move to sigma = 0 returns x0, unguided, since its variance is 0.

    Args:
        log_prob: (x, level) -> log p(y | x) of the wanted y, shape (batch,); noise-aware.
        scale: factor on the gradient, at least 0.
        at: "mean" or "x_t".
        variance: of the ancestral move, "small" or "large".

    >>> from scoregen import VPSDE, Gaussian, Sampler, UniformTime
    >>> model = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> guided = GuidedAncestral(lambda x, t: t.alpha * x[:, 0])
    >>> Sampler(guided, UniformTime(20)).sample(model, (4, 2), seed=0).shape
    torch.Size([4, 2])
    """

    log_prob: Callable[[Tensor, Level], Tensor]
    scale: float = 1.0
    at: Literal["mean", "x_t"] = "mean"
    variance: Literal["small", "large"] = "large"

    def __post_init__(self) -> None:
        check_number("scale", self.scale, 0.0)
        check_callable("log_prob", self.log_prob, "(x, level) -> (batch,)")
        check_choice("at", self.at, ("mean", "x_t"))
        check_choice("variance", self.variance, ("small", "large"))

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        p = model(x, t)
        if s.sigma == 0:
            return p.x0, None
        c0, c1, small, large = posterior(t, s)
        variance = small if self.variance == "small" else large
        mean = mix(c1, x, c0, p.x0)
        where, level = (mean, s) if self.at == "mean" else (x, t)
        slope = gradient_of(lambda at: self.log_prob(at, level), where)
        mean = mean.add(slope, alpha=self.scale * variance)
        return mean.add(noise(x, t, s), alpha=math.sqrt(variance)), None
