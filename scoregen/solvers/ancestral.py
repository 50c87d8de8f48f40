"""Samplers built on the Gaussian posterior q(x_s | x_t, x_0): DDPM, DDIM and relatives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .._checks import check_choice, check_number
from ..models import ScoreModel
from ..models.prediction import mix
from ..noise import Noise
from ..processes import Level
from ..sampling import EtaSolver, Solver

__all__ = ["DDIM", "Ancestral", "ReverseDiffusion", "posterior"]


def posterior(t: Level, s: Level) -> tuple[float, float, float, float]:
    """q(x_s | x_t, x_0) = N(c0 x_0 + c1 x_t, small), and the variance `large` of q(x_t | x_s).

    c0 = alpha_s v / sigma_t^2, c1 = (alpha_t / alpha_s) sigma_s^2 / sigma_t^2,
    small = sigma_s^2 v / sigma_t^2, large = v = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2. On a
    DDPM chain these are mu-tilde, beta-tilde and beta (Ho et al. 2020, 2006.11239, eqs. 6 and 7).

    Returns:
        (c0, c1, small, large).

    >>> from scoregen import DiscreteVPSDE
    >>> sde = DiscreteVPSDE.linear(10, 0.1, 0.2)
    >>> c0, c1, small, large = posterior(sde.level(0.2), sde.level(0.1))
    >>> abs(large - sde.betas[1]) < 1e-12
    True
    """
    kept = math.exp(2 * (t.lam - s.lam)) if s.sigma > 0 else 0.0  # SNR_t / SNR_s
    fresh = -math.expm1(2 * (t.lam - s.lam)) if s.sigma > 0 else 1.0
    ratio = t.alpha / s.alpha
    c1 = kept / ratio if ratio > 0 else 0.0
    return s.alpha * fresh, c1, s.sigma**2 * fresh, t.sigma**2 * fresh


@dataclass(frozen=True)
class Ancestral(Solver):
    """x_s ~ N(c0 x0 + c1 x_t, variance): DDPM's Algorithm 2 (Ho et al. 2020, 2006.11239).

    On any process and any grid. "small" is the posterior variance beta-tilde, exact for data that
    are a point; "large" is the transition's beta, exact for unit Gaussian data; "learned"
    interpolates their logarithms by the model's `spread` (Nichol and Dhariwal 2021, 2102.09672).

    >>> from scoregen import DiscreteVPSDE, Gaussian, Knots, Sampler
    >>> import torch
    >>> model = Gaussian(DiscreteVPSDE.cosine(100), torch.zeros(2), torch.ones(2))
    >>> Sampler(Ancestral("large"), Knots()).sample(model, (3, 2), seed=0).shape
    torch.Size([3, 2])
    """

    variance: Literal["small", "large", "learned"] = "small"
    order = None
    weak_order = 1

    def __post_init__(self) -> None:
        check_choice("variance", self.variance, ("small", "large", "learned"))

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        p = model(x, t)
        c0, c1, small, large = posterior(t, s)
        if s.sigma == 0:
            return p.x0, None
        mean = mix(c1, x, c0, p.x0)
        if self.variance != "learned":
            std = math.sqrt(small if self.variance == "small" else large)
            return mean.add(noise(x, t, s), alpha=std), None
        if p.spread is None:
            raise ValueError(
                'Ancestral("learned") needs a model whose predictions have a spread: use '
                'LearnedVariance(...), or variance="small" or "large"'
            )
        low, high = math.log(small), math.log(large)
        return mean + ((low + (high - low) * p.spread) / 2).exp() * noise(x, t, s), None


@dataclass(frozen=True)
class DDIM(EtaSolver):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - tau^2) eps + tau z (Song et al. 2020, 2010.02502).

    tau = eta sigma_s sqrt(1 - SNR_t / SNR_s); eta = 0 is Euler's method on the probability-flow ODE
    in x / alpha against sigma / alpha, eta = 1 is `Ancestral("small")`.

    Args:
        eta: noise kept, in [0, 1].

    >>> DDIM(eta=0.5)
    DDIM(eta=0.5)
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 0.0, 1.0)

    weak_order = 1

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        p = model(x, t)
        if s.sigma == 0:
            return p.x0, None
        if self.eta == 0:
            return p.combine(s.alpha, s.sigma), None
        tau = self.eta * s.sigma * math.sqrt(-math.expm1(2 * (t.lam - s.lam)))
        x = p.combine(s.alpha, math.sqrt(s.sigma**2 - tau**2))
        return x.add(noise(x, t, s), alpha=tau), None


@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    """The reverse SDE discretised as the forward chain is (Song et al. 2021, 2011.13456, app. E).

    With r = alpha_t / alpha_s and G^2 = sigma_t^2 - r^2 sigma_s^2:
    x_s = (2 - r) x + G^2 score + G z.

    >>> ReverseDiffusion().weak_order
    1
    """

    weak_order = 1

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        p = model(x, t)
        if s.sigma == 0:
            return p.x0, None
        spread2 = t.sigma**2 * -math.expm1(2 * (t.lam - s.lam))
        x = mix(2 - t.alpha / s.alpha, x, spread2, p.score)
        return x.add(noise(x, t, s), alpha=math.sqrt(spread2)), None
