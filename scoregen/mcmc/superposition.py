"""Sums of densities whose models know only scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import check_choice
from ..energies import Mixture
from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level, StaticSDE
from ..sampling import Solver
from .metropolis import total
from .rates import check_signal, kernel_scale

__all__ = ["Superposition"]


@dataclass(frozen=True)
class Superposition(Solver):
    """The reverse process of a `Mixture` of models that need no energies: sum_k w_k p_k.

    The score of a noised mixture is sum_k r_k s_k with shares r_k ~ w_k q_k(x), and along its own
    path each particle learns them: in y = x / alpha,
    log q_k(y') - log q_k(y) = log N(y'; y + D s_k, v) - log N(y; y', D), the Ito density estimator
    d log q = [d f + (f x + u).s - (g^2 / 2) |s|^2] dtau + g s.dW in the limit (Skreta et al. 2024,
    2412.17762). So particles need no weights and are independent of one another. Exact at any step
    where the reverse kernels are (variance "large" for unit Gaussian components). Where the models
    know their densities the shares are known without it: sample the `Mixture` by any solver. A
    model that is no `Mixture` is a sum of one.

    Args:
        variance: v, of the chain "large" (exact for unit Gaussian data) or "small" (for a point).

    >>> from scoregen import VPSDE, Gaussian, Sampler, UniformLam
    >>> a, b = (Gaussian(VPSDE(), torch.full((1,), m), 1.0) for m in (-3.0, 3.0))
    >>> mixture = Mixture(a, b, weights=(0.2, 0.8))
    >>> x = Sampler(Superposition(), UniformLam(40)).sample(mixture, (1000, 1), seed=0)
    >>> 0.75 < float((x > 0).float().mean()) < 0.85
    True
    """

    variance: Literal["small", "large"] = "large"
    order = None
    weak_order = 1
    nfe = 1

    def __post_init__(self) -> None:
        check_choice("variance", self.variance, ("small", "large"))

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        parts: list[Any] = list(model.models) if isinstance(model, Mixture) else [model]
        check_signal(t)
        if any(isinstance(part.sde, StaticSDE) for part in parts):
            raise TypeError("a time-free part of a mixture is no marginal of the process")
        if state is None:  # far out in the noise the models agree
            state = x.new_zeros(len(x), len(parts))
            if isinstance(model, Mixture):
                state = state + model.shares.log().to(x.dtype).to(x.device)
        scores = torch.stack([part(x, t).score for part in parts], 1)
        shares = state.softmax(1).reshape(state.shape + (1,) * (x.dim() - 1))
        summed = (shares * scores).sum(1)
        if s.sigma == 0:
            return (x + t.sigma**2 * summed) / t.alpha, state
        gap, v = kernel_scale(t, s, self.variance)
        ahead = gap * t.alpha * summed + math.sqrt(v) * noise(x, t, s)  # y' - y
        gains = [
            -total((ahead - gap * t.alpha * score).square()) / (2 * v) for score in scores.unbind(1)
        ]
        state = (state + torch.stack(gains, 1)).log_softmax(1)
        return s.alpha * (x / t.alpha + ahead), state
