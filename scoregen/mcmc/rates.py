"""How fast the log-weights of a composed or tilted law change along a path.

tau runs towards the data, so d/dtau = -d/dt; q_i is a factor's noised law, s_i its score,
L = sum b_i log q_i and S = sum b_i s_i. Particles move by dx = u dtau + z dW.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._checks import check_callable, check_data, check_flag, check_number
from ..energies import Negated, Product, Tempered
from ..guidance import AutoGuidance, ClassifierFree
from ..models import Given, ScoreModel
from ..models.base import check_model
from ..processes import Level, StaticSDE
from .metropolis import total

__all__ = ["factors", "tilt_rate", "weight_rate"]

Factors = list[tuple[float, ScoreModel]]


def factors(model: ScoreModel, t: Level | None = None, **condition: Any) -> Factors:
    """(exponent, model) of every factor of a composed model, p = prod_i p_i^b_i.

    Products, tempered and negated models are taken apart; anything else is a factor of its own,
    and its score must be that of a noised law.

    Args:
        model: a composed model, or any score model.
        t: the level at which exponents are read, where they depend on it.
        **condition: bound to every factor.

    Raises:
        TypeError: for a time-free factor, or guidance, which are no marginals of the process.
        ValueError: for exponents that depend on the level, where no level is given.

    >>> from scoregen import VPSDE, Gaussian
    >>> a, b = (Gaussian(VPSDE(), torch.zeros(1), v) for v in (0.3, 1.0))
    >>> [exponent for exponent, _ in factors(Product(a, Tempered(b, 2.0), weights=(2.0, -1.0)))]
    [2.0, -0.5]
    """
    check_model(model)
    if isinstance(model, Given):
        return factors(model.model, t, **{**model.condition, **condition})
    if isinstance(model, Product) and model.scheduled and t is None:
        raise ValueError(
            "exponents that depend on the level add (d b / d tau) log q to the weights, which "
            'scores do not know: use FeynmanKac(weights="densities") with models of known energy'
        )
    if isinstance(model, Product | Tempered | Negated):
        level = model.sde.level(model.sde.t_max) if t is None else t
        return [
            (float(weight) * exponent, factor)
            for weight, part, _ in model.parts(level)
            for exponent, factor in factors(part, t, **condition)
        ]
    if isinstance(model, ClassifierFree | AutoGuidance):
        raise TypeError(
            f"{type(model).__name__} is no noised law but a product of two: write it as "
            "Product(conditional, unconditional, weights=(scale, 1 - scale))"
        )
    if isinstance(model.sde, StaticSDE):
        raise TypeError(
            f"{type(model).__name__} is time-free, so it is no marginal of the process, and its "
            "weights need its Laplacian: steer by a reward instead, RewardSteering(solver, reward)"
        )
    return [(1.0, model.given(**condition))]


def summed_scores(parts: Factors, x: Tensor, t: Level) -> tuple[Tensor, list[tuple[float, Tensor]]]:
    """(S = sum b_i s_i, the pairs (b_i, s_i))."""
    scores = [(b, part(x, t).score) for b, part in parts]
    return torch.stack([b * s for b, s in scores]).sum(0), scores


def _divergence(field: Tensor, x: Tensor) -> Tensor:
    """sum_i d field_i / d x_i, one backward pass per coordinate, shape (batch,)."""
    flat = field.reshape(len(x), x.shape[1:].numel())
    if not field.requires_grad:
        return flat.new_zeros(len(x))
    found = flat.new_zeros(len(x))
    for i in range(flat.shape[1]):
        (row,) = torch.autograd.grad(
            flat[:, i].sum(), x, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        found = found + row.reshape(flat.shape)[:, i]
    return found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return total(a * b)


def weight_rate(
    model: ScoreModel,
    x: Tensor,
    t: float,
    *,
    drift: Callable[[Tensor], Tensor] | None = None,
    noise: float = 0.0,
) -> Tensor:
    """Rate of the log-weight per unit of time towards the data, shape (batch,).

    w = (sum b_i - 1) d f + (g^2 / 2) (|S|^2 - sum b_i |s_i|^2) for particles that move by
    -f x + (1 + l^2) / 2 g^2 S with noise l g, any l (Skreta et al. 2025, 2503.02819). Another drift
    u with noise z needs divergences, of which each costs a backward pass per coordinate:
    w = d_tau L + div u + u.S - (z^2 / 2) (div S + |S|^2), with
    d_tau L = sum b_i [d f + f x.s_i - (g^2 / 2) (div s_i + |s_i|^2)].

    Args:
        model: a composed model.
        x: shape (batch, *event).
        t: time.
        drift: u, (batch, *event) -> the same shape, differentiable; the process's own unless given.
        noise: z, beside a drift.

    >>> from scoregen import VPSDE, Gaussian
    >>> one = Gaussian(VPSDE(), torch.zeros(1), 1.0)
    >>> weight_rate(Product(one, one, weights=(2.0, -1.0)), torch.ones(2, 1), 0.5)
    tensor([0., 0.])
    """
    check_model(model)
    t = check_number("t", t)
    z = check_number("noise", noise, 0.0)
    check_data(x)
    parts, level = factors(model), model.level(t, x)
    sde, time = model.sde, torch.tensor(t, dtype=torch.float64)
    f, g2, d = float(sde.f(time)), float(sde.g2(time)), x.shape[1:].numel()
    if drift is None:
        if z:
            raise ValueError("give the drift that goes with this noise; without one any noise fits")
        summed, scores = summed_scores(parts, x, level)
        spread = _dot(summed, summed) - torch.stack([b * _dot(s, s) for b, s in scores]).sum(0)
        return (sum(b for b, _ in parts) - 1) * d * f + g2 / 2 * spread
    check_callable("drift", drift, "(batch, *event) -> the same shape")
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        summed, scores = summed_scores(parts, leaf, level)
        u = drift(leaf)
        rate = _divergence(u, leaf) + _dot(u, summed)
        rate = rate - z**2 / 2 * (_divergence(summed, leaf) + _dot(summed, summed))
        for b, s in scores:
            rate = rate + b * (d * f + f * _dot(leaf, s))
            rate = rate - b * g2 / 2 * (_divergence(s, leaf) + _dot(s, s))
    return rate.detach()


def tilt_rate(
    model: ScoreModel,
    reward: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    t: float,
    *,
    guided: bool = True,
) -> Tensor:
    """Rate of the log-weight of p_t(x) exp(r(x, t)) per unit of time towards the data, (batch,).

    With S = s + grad r and noise g, for particles that move by -f x + g^2 S (guided):
    w = d_tau r - f x.grad r + (g^2 / 2) (lap r + |S|^2 - |s|^2); by the model's own -f x + g^2 s:
    w = d_tau r - f x.grad r - (g^2 / 2) (lap r + |grad r|^2). The Laplacian costs a backward pass
    per coordinate; `RewardSteering` and `inverse.TwistedSMC` do without.

    Args:
        model: a score model.
        reward: r, (x, t) -> (batch,), differentiable in both; t has one time per sample, (batch,).
        x: shape (batch, *event).
        t: time.
        guided: whether particles follow the gradient of the reward.

    >>> from scoregen import VPSDE, Gaussian
    >>> one = Gaussian(VPSDE(), torch.zeros(1), 1.0)
    >>> tilt_rate(one, lambda x, t: 0 * t * x.sum(1), torch.ones(2, 1), 0.5)
    tensor([0., 0.])
    """
    check_model(model)
    check_callable("reward", reward, "(x, t) -> (batch,), differentiable in both")
    check_flag("guided", guided)
    t = check_number("t", t)
    check_data(x)
    level = model.level(t, x)
    sde, time = model.sde, torch.tensor(t, dtype=torch.float64)
    f, g2 = float(sde.f(time)), float(sde.g2(time))
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        later = time.expand(len(x)).clone().requires_grad_()
        r = check_reward(reward(leaf, later), len(x))
        (slope,) = torch.autograd.grad(r.sum(), leaf, create_graph=True, materialize_grads=True)
        laplacian = _divergence(slope, leaf)
        (by_time,) = torch.autograd.grad(r.sum(), later, allow_unused=True, materialize_grads=True)
    slope, s = slope.detach(), model(x, level).score
    rate = -by_time.to(x) - f * _dot(x, slope)
    if not guided:
        return rate - g2 / 2 * (laplacian + _dot(slope, slope))
    summed = s + slope
    return rate + g2 / 2 * (laplacian + _dot(summed, summed) - _dot(s, s))


def check_reward(r: object, count: int) -> Tensor:
    """What a reward returned, one number per sample."""
    if not isinstance(r, Tensor) or r.shape != (count,):
        got = tuple(r.shape) if isinstance(r, Tensor) else type(r).__name__
        raise ValueError(f"reward must return shape ({count},), one per sample, got {got}")
    return r


def check_signal(t: Level) -> None:
    """Refuse to leave a level in y = x / alpha where alpha = 0."""
    if t.alpha == 0:
        raise ValueError(
            f"at t = {t.t:g} no signal is left (alpha = 0), and x / alpha does not exist: start "
            "the grid a little below t_max, such as UniformLam(steps, start=0.999)"
        )


def kernel_scale(t: Level, s: Level, variance: str) -> tuple[float, float]:
    """(D, v) of a move in y = x / alpha: D = (sigma / alpha)^2 lost, v of the reverse kernel."""
    gap = (t.sigma / t.alpha) ** 2 - (s.sigma / s.alpha) ** 2
    if variance == "large":
        return gap, gap * (t.alpha / s.alpha) ** 2
    return gap, gap * math.exp(2 * (t.lam - s.lam))
