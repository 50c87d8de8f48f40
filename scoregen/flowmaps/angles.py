"""The angle theta = atan(sigma / alpha): the coordinate in which every process turns alike.

With rho = hypot(alpha, sigma) and w = x / rho = cos(theta) x0 + sin(theta) eps, the probability
flow of any process is dw / dtheta = cos(theta) eps - sin(theta) x0 (Lu and Song 2024, 2410.11081).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..models import Prediction, ScoreModel
from ..processes import SDE, Level

__all__ = ["angle"]


def angle(level: Level) -> Any:
    """theta in [0, pi / 2], a float or a tensor like the level's.

    >>> angle(Level(0.5, 0.6, 0.8, -0.29)) == math.atan2(0.8, 0.6)
    True
    """
    if isinstance(level.sigma, Tensor):
        return torch.atan2(level.sigma, level.alpha)
    return math.atan2(level.sigma, level.alpha)


def turned(sde: SDE, theta: Tensor, x: Tensor) -> Level:
    """The levels at angles of shape (batch,), with alpha = cos and sigma = sin, shaped for x.

    Divided by rho, all processes have these; the time is the process's own.
    """
    wide = theta.reshape(-1, *(1,) * (x.dim() - 1))
    alpha, sigma = torch.cos(wide), torch.sin(wide)
    lam = torch.log(alpha) - torch.log(sigma)
    return Level(sde.time(lam), alpha, sigma, lam)


def rate(p: Prediction, theta: Tensor) -> Tensor:
    """dw / dtheta = cos(theta) eps - sin(theta) x0 of a prediction, shaped like x."""
    wide = theta.reshape(-1, *(1,) * (p.x.dim() - 1))
    return p.combine(-torch.sin(wide), torch.cos(wide), "the rate of the flow")


def flow_rate(model: ScoreModel, w: Tensor, theta: Tensor, **condition: Any) -> Tensor:
    """dw / dtheta of a model's probability flow at angles of shape (batch,)."""
    level = level_at(model.sde, theta, w)
    rho = torch.hypot(level.alpha, level.sigma)
    return rate(model.predict(rho * w, level, **condition), theta)


def level_at(sde: SDE, theta: Tensor, x: Tensor) -> Level:
    """The process's own levels at angles of shape (batch,), in x's dtype, shaped for x."""
    return sde.level_of(time_at(sde, theta), x)


def time_at(sde: SDE, theta: Tensor) -> Tensor:
    """Times of shape (batch,) at angles, float64; exactly 0 at the angle 0.

    The derivative is that of the inverse, dt / dtheta = rho^2 / (alpha sigma' - sigma alpha'),
    since the logarithm of the ratio has none at pi / 2.
    """
    exact = theta.double()
    fixed = exact.detach()
    time = sde.time(torch.log(torch.cos(fixed)) - torch.log(torch.sin(fixed)))
    time = torch.where(fixed <= 0, torch.zeros_like(time), time).clamp(0.0, sde.t_max)
    alpha, sigma = sde.alpha(time), sde.sigma(time)
    alpha_rate, sigma_rate = sde.rates(time)
    slope = (alpha**2 + sigma**2) / (alpha * sigma_rate - sigma * alpha_rate)
    return time + slope * (exact - fixed)
