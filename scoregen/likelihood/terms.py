"""The closed-form divergences that the bound is made of, and the coefficients of its moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from .._rows import row_sum
from ..models import Prediction
from ..processes import Level
from ..solvers.ancestral import posterior

__all__ = ["Variance"]

Variance = Literal["small", "large", "learned"] | Callable[[Prediction, Level, Level], Tensor]


def half_sum(x: Tensor) -> Tensor:
    """Half the sum over a sample, shape (batch,)."""
    return row_sum(x) / 2


def transition(t: Level, s: Level, following: Level | None = None) -> tuple[float, float, float]:
    """(c0, log small, log large) of the move from t to s in float64.

    A move to sigma_s = 0 has no small variance (log 0): the smallest that a chain has, that of the
    move before it from `following`, stands in (Nichol and Dhariwal 2021, 2102.09672).
    """
    c0, _, small, large = posterior(t, s)
    if small == 0:
        small = large if following is None else posterior(following, t)[2]
    return c0, math.log(small), math.log(large)


def log_variance(variance: Variance, p: Prediction, low: Any, high: Any) -> Any:
    """log of the reverse variance between its logarithms `low` (small) and `high` (large)."""
    if variance == "learned":
        if p.spread is None:
            raise ValueError(
                'variance="learned" needs a model whose predictions have a spread: use '
                'LearnedVariance(...), or variance="small" or "large"'
            )
        return low + (high - low) * p.spread
    return low if variance == "small" else high


def transition_kl(x0: Tensor, mean: Tensor, c0: Any, small: Any, log_var: Any) -> Tensor:
    """KL(q(x_s | x_t, x_0), p(x_s | x_t)), shape (batch,), from log variances of both.

    1/2 sum [r - 1 - log r + c0^2 (x_0 - x0_hat)^2 / variance], r = small / variance.
    """
    log_ratio = torch.as_tensor(small - log_var, dtype=x0.dtype, device=x0.device)
    scale = torch.as_tensor(c0 * c0, dtype=x0.dtype, device=x0.device)
    inverse = torch.exp(torch.as_tensor(-log_var, dtype=x0.dtype, device=x0.device))
    terms = torch.expm1(log_ratio) - log_ratio + scale * (x0 - mean).square() * inverse
    return half_sum(terms)


def prior_kl(x0: Tensor, top: Level, std: float) -> Tensor:
    """L_T = KL(N(alpha x_0, sigma^2 I), N(0, std^2 I)), shape (batch,)."""
    log_ratio = 2 * math.log(top.sigma / std)
    excess = math.expm1(log_ratio) - log_ratio
    return half_sum((top.alpha * x0 / std).square() + excess)
