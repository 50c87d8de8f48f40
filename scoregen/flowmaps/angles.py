"""Levels at angles theta = atan(sigma / alpha), in which every process has the same flow.

With rho = hypot(alpha, sigma) and w = x / rho = cos(theta) x0 + sin(theta) eps, the probability
flow of any process is dw / dtheta = v, v = cos(theta) eps - sin(theta) x0 (Lu and Song 2024,
2410.11081): the slope of `scoregen.solvers.coordinate`, here at one angle per sample. Angles are
kept in float64 on the host, since not every device knows float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._rows import against
from ..models import ScoreModel
from ..processes import SDE, Level
from ..solvers.coordinate import ANGLE, angle

__all__ = ["angle"]


def level_at(sde: SDE, theta: Tensor, x: Tensor) -> Level:
    """The process's own levels at angles of shape (batch,), in x's dtype, shaped for x."""
    return sde.level_of(time_at(sde, theta), x)


def time_at(sde: SDE, theta: Tensor) -> Tensor:
    """Times of shape (batch,) at angles, float64 on the host; exactly 0 at the angle 0.

    The derivative is that of the inverse, dt / dtheta = rho^2 / (alpha sigma' - sigma alpha'),
    since the logarithm of the ratio has none at pi / 2.
    """
    exact = theta.cpu().double()
    fixed = exact.detach()
    time = sde.time(torch.log(torch.cos(fixed)) - torch.log(torch.sin(fixed)))
    time = torch.where(fixed <= 0, torch.zeros_like(time), time).clamp(0.0, sde.t_max)
    alpha, sigma = sde.alpha(time), sde.sigma(time)
    alpha_rate, sigma_rate = sde.rates(time)
    slope = (alpha**2 + sigma**2) / (alpha * sigma_rate - sigma * alpha_rate)
    return time + slope * (exact - fixed)


def turned(sde: SDE, theta: Tensor, x: Tensor) -> Level:
    """The levels at angles of shape (batch,), with alpha = cos and sigma = sin, shaped for x.

    Divided by rho, all processes have these; the time is the process's own.
    """
    exact = theta.cpu().double().reshape(-1, *(1,) * (x.dim() - 1))
    alpha, sigma = torch.cos(exact), torch.sin(exact)
    lam = torch.log(alpha) - torch.log(sigma)
    columns = (sde.time(lam), alpha, sigma, lam)
    return Level(*(c.to(x.dtype).to(x.device) for c in columns))


def lowest(sde: SDE) -> float:
    """The smallest angle at which a network is evaluated."""
    t = sde.t_min if sde.t_min > 0 else 1e-3 * sde.t_max
    return float(angle(sde.level(t)))


def noised(x0: Tensor, eps: Tensor, theta: Tensor) -> Tensor:
    """w = cos(theta) x0 + sin(theta) eps."""
    wide = against(theta.to(x0), x0)
    return torch.cos(wide) * x0 + torch.sin(wide) * eps


def flow_rate(model: ScoreModel, w: Tensor, theta: Tensor, **condition: Any) -> Tensor:
    """dw / dtheta of a model's probability flow at angles of shape (batch,)."""
    level = level_at(model.sde, theta, w)
    return ANGLE.slope(model.predict(ANGLE.scale(level) * w, level, **condition))


def midpoint(model: ScoreModel, w: Tensor, first: Tensor, last: Tensor, **condition: Any) -> Tensor:
    """One midpoint step of a model's flow in the angle, of order 2."""
    h = against((last - first).to(w), w)
    half = w + h / 2 * flow_rate(model, w, first, **condition)
    return w + h * flow_rate(model, half, (first + last) / 2, **condition)
