"""The variational bound of a chain, term by term: -log p(x_0) <= L_T + sum L_{t-1} + L_0, in nats.

With the knots t_1 < .. < t_T, q(x_t | x_0) = N(alpha x_0, sigma^2 I) and the reverse kernels
p(x_s | x_t) = N(c0 x0_hat + c1 x_t, variance) (Ho et al. 2020, 2006.11239, eq. 5):

L_T = KL(q(x_T | x_0), p(x_T)), L_{t-1} = KL(q(x_s | x_t, x_0), p(x_s | x_t)),
L_0 = -log p(x_0 | x_1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._checks import (
    check_callable,
    check_choice,
    check_count,
    check_data,
    check_grid,
    check_kind,
    check_numbers,
)
from ..models import Prediction, ScoreModel
from ..models.base import check_model, evaluating
from ..noise import Noise, SampleNoise
from ..processes import SDE, DiscreteSDE, Level
from ..solvers.ancestral import posterior
from .decoders import Decoder, DiscretisedGaussian, GaussianDecoder
from .terms import Variance, half_sum, log_variance, prior_kl, transition, transition_kl

__all__ = ["Bound", "bound", "continuous_bound", "importance_bound"]


class Bound(NamedTuple):
    """The terms of the variational bound, per sample, in nats.

    Attributes:
        prior: L_T, shape (batch,).
        steps: L_{t-1} for each move between knots, shape (batch, T - 1), noisiest first.
        data: L_0, shape (batch,).
        times: the knots that the moves in `steps` start from, T - 1 floats.
        discrete: whether L_0 is a probability (of a level) rather than a density.

    >>> Bound(torch.ones(2), torch.ones(2, 3), torch.ones(2), (1.0, 0.75, 0.5), False).total
    tensor([5., 5.])
    """

    prior: Tensor
    steps: Tensor
    data: Tensor
    times: tuple[float, ...]
    discrete: bool

    @property
    def total(self) -> Tensor:
        """L_T + sum L_{t-1} + L_0, shape (batch,)."""
        return self.prior + self.steps.sum(1) + self.data

    def bits_per_dim(self, dims: int) -> Tensor:
        """The bound in bits per dimension; only where the decoder speaks of levels."""
        if not self.discrete:
            raise ValueError(
                "bits per dimension need the probability of levels: ask for the bound with "
                "decoder=DiscretisedGaussian(bins, data_range)"
            )
        return self.total / (check_count("dims", dims) * math.log(2))


def bound(
    model: ScoreModel,
    x: Tensor,
    *,
    variance: Variance = "small",
    decoder: Decoder | None = None,
    times: Sequence[float] | None = None,
    noise: Noise | None = None,
) -> Bound:
    """The variational bound of the model as a chain on the given knots, one draw of x_t per knot.

    Unbiased for each term: E over the noise of the total is at least -log p(x) of the chain.

    Args:
        model: a score model; bind its condition by `model.given(...)`.
        x: data of shape (batch, *event).
        variance: of the reverse kernels: "small" (beta-tilde), "large" (beta), "learned", or a rule
            (prediction, t, s) -> log variance per element, which broadcasts against x.
        decoder: of L_0; `GaussianDecoder()` for real values unless given,
            `DiscretisedGaussian(bins, data_range)` for levels. Its variance is the transition's
            sigma_1^2 (beta_1) unless learned or given, since beta-tilde_1 is 0.
        times: the knots, falling from t_max to the last positive one; a chain's own unless given.
        noise: where the draws come from; `SampleNoise(0)` unless given.

    Raises:
        ValueError: for bad data, knots or variance, and where a process is no chain and no knots
            are given.

    >>> from scoregen import DiscreteVPSDE, Gaussian
    >>> model = Gaussian(DiscreteVPSDE.linear(100, 1e-3, 0.2), torch.zeros(2), torch.ones(2))
    >>> bound(model, torch.zeros(3, 2, dtype=torch.float64), variance="large").steps.shape
    torch.Size([3, 99])
    """
    decoder = GaussianDecoder() if decoder is None else decoder
    noise = SampleNoise(0) if noise is None else noise
    _check(model, x, decoder, noise)
    levels = _knots(model, times, variance)
    steps = []
    with torch.no_grad(), evaluating(model):
        for t, s, low, high, c0 in _moves(levels):
            p = model(t.alpha * x + t.sigma * noise(x, t, s), t)
            if s.sigma == 0:
                data = -decoder.log_prob(x, p.x0, _decoded(variance, decoder, p, t, s, low, high))
            else:
                log_var = _logs(variance, p, t, s, low, high)
                steps.append(transition_kl(x, p.x0, c0, low, log_var))
        top = prior_kl(x, levels[0], model.sde.prior_std(levels[0].t))
    between = torch.stack(steps, 1) if steps else x.new_zeros(len(x), 0)
    starts = tuple(level.t for level in levels[:-2])
    return Bound(top, between, data, starts, isinstance(decoder, DiscretisedGaussian))


def importance_bound(
    model: ScoreModel,
    x: Tensor,
    *,
    samples: int = 8,
    variance: Variance = "small",
    decoder: Decoder | None = None,
    times: Sequence[float] | None = None,
    noise: Noise | None = None,
) -> Tensor:
    """-log (1/K) sum_k p(x_{0:T}^k) / q(x_{1:T}^k | x_0), shape (batch,), in nats.

    In the mean at least -log p(x_0) of the chain, at most the variational bound, and falling with K
    (Burda et al. 2016, 1509.00519).

    Args:
        model: a score model.
        x: data of shape (batch, *event).
        samples: K, whole paths drawn per sample.
        variance, decoder, times, noise: as in `bound`.

    >>> from scoregen import DiscreteVPSDE, Gaussian
    >>> model = Gaussian(DiscreteVPSDE.linear(20, 1e-2, 0.5), torch.zeros(2), torch.ones(2))
    >>> importance_bound(model, torch.zeros(3, 2, dtype=torch.float64), samples=2).shape
    torch.Size([3])
    """
    check_count("samples", samples)
    decoder = GaussianDecoder() if decoder is None else decoder
    noise = SampleNoise(0) if noise is None else noise
    _check(model, x, decoder, noise)
    levels = _knots(model, times, variance)
    std = model.sde.prior_std(levels[0].t)
    weights = []
    with torch.no_grad(), evaluating(model):
        for _ in range(samples):
            top = levels[0]
            z = noise(x, top, top)
            y = top.alpha * x + top.sigma * z
            log_ratio = 2 * math.log(top.sigma / std)
            weight = half_sum(z.square() - (y / std).square() + log_ratio)
            for t, s, low, high, c0 in _moves(levels):
                p = model(y, t)
                if s.sigma == 0:
                    log_var = _decoded(variance, decoder, p, t, s, low, high)
                    weight = weight + decoder.log_prob(x, p.x0, log_var)
                    continue
                log_var = _logs(variance, p, t, s, low, high)
                z = noise(x, t, s)
                c1 = posterior(t, s)[1]
                gap = c0 * (x - p.x0) + math.exp(low / 2) * z
                log_var = torch.as_tensor(log_var, dtype=x.dtype, device=x.device)
                logs = z.square() - gap.square() * (-log_var).exp() + (low - log_var)
                weight = weight + half_sum(logs)
                y = c0 * x + c1 * y + math.exp(low / 2) * z
            weights.append(weight)
    return math.log(samples) - torch.stack(weights).logsumexp(0)


def continuous_bound(
    model: ScoreModel,
    x: Tensor,
    *,
    nodes: int = 64,
    decoder: Decoder | None = None,
    noise: Noise | None = None,
) -> Bound:
    """The limit of the bound for infinitely many knots between t_min and t_max.

    sum L_{t-1} -> int |eps - eps_hat|^2 d lam over lam = log(alpha / sigma), which is
    1/2 int (-d SNR/dt) |x_0 - x0_hat|^2 dt (Kingma et al. 2021, 2107.00630) and the
    likelihood-weighted score matching of Song et al. (2021, 2101.09258). By Gauss-Legendre nodes in
    lam, with one draw of x_t at each.

    Args:
        model: a score model.
        x: data of shape (batch, *event).
        nodes: of the quadrature; `steps` has one column for each.
        decoder: of L_0 at t_min; `GaussianDecoder()` unless given.
        noise: where the draws come from; `SampleNoise(0)` unless given.

    >>> from scoregen import VPSDE, Gaussian
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> continuous_bound(model, torch.zeros(3, 2, dtype=torch.float64), nodes=16).steps.shape
    torch.Size([3, 16])
    """
    decoder = GaussianDecoder() if decoder is None else decoder
    noise = SampleNoise(0) if noise is None else noise
    _check(model, x, decoder, noise)
    sde = model.sde
    top, last = _noisy(sde, sde.t_max), _noisy(sde, sde.t_min)
    points, weights = np.polynomial.legendre.leggauss(check_count("nodes", nodes))
    half = (last.lam - top.lam) / 2
    steps, times = [], []
    with torch.no_grad(), evaluating(model):
        for point, weight in zip(points, weights, strict=True):
            t = sde.level_at(top.lam + half * (float(point) + 1))
            eps = noise(x, t, t)
            gap = eps - model(t.alpha * x + t.sigma * eps, t).eps
            steps.append(2 * half * float(weight) * half_sum(gap.square()))
            times.append(t.t)
        p = model(last.alpha * x + last.sigma * noise(x, last, last), last)
        high = 2 * math.log(last.sigma)
        data = -decoder.log_prob(x, p.x0, decoder.log_variance(high))
        prior = prior_kl(x, top, sde.prior_std(top.t))
    between = torch.stack(steps, 1)
    return Bound(prior, between, data, tuple(times), isinstance(decoder, DiscretisedGaussian))


def _check(model: ScoreModel, x: Tensor, decoder: Decoder, noise: Noise) -> None:
    check_model(model)
    check_data(x)
    check_kind("decoder", decoder, Decoder, "GaussianDecoder()")
    check_callable("noise", noise, "(like, t, s) -> Tensor, such as SampleNoise(0)")


def _noisy(sde: SDE, t: float) -> Level:
    level = sde.level(t)
    if level.sigma == 0 or level.alpha == 0:
        raise ValueError(
            f"log(alpha / sigma) is infinite at t = {t:g}; build {type(sde).__name__} with t_min > "
            "0 and a t_max where some signal is left"
        )
    return level


def _logs(variance: Variance, p: Prediction, t: Level, s: Level, low: float, high: float) -> Any:
    return variance(p, t, s) if callable(variance) else log_variance(variance, p, low, high)


def _decoded(
    variance: Variance, decoder: Decoder, p: Prediction, t: Level, s: Level, low: float, high: float
) -> Any:
    if callable(variance) or variance == "learned":
        return decoder.log_variance(_logs(variance, p, t, s, low, high))
    return decoder.log_variance(high)


def _moves(levels: list[Level]) -> Iterator[tuple[Level, Level, float, float, float]]:
    before: Level | None = None
    for t, s in pairwise(levels):
        c0, low, high = transition(t, s, before)
        yield t, s, low, high, c0
        before = t


def _knots(model: ScoreModel, times: Sequence[float] | None, variance: Variance) -> list[Level]:
    """Levels of the knots, noisiest first, and the clean end."""
    if not callable(variance):
        check_choice("variance", variance, ("small", "large", "learned"))
    sde = model.sde
    if times is None:
        if not isinstance(sde, DiscreteSDE):
            raise ValueError(
                f"{type(sde).__name__} is no chain: say at which knots it is one, times=(t_max, "
                "..., t_1), or ask for continuous_bound"
            )
        times = sde.knots[::-1]
    falling = torch.tensor(check_numbers("times", times), dtype=torch.float64)
    if len(falling) and float(falling[-1]) > 0:
        falling = torch.cat([falling, falling.new_zeros(1)])
    return sde.levels(check_grid(falling, sde.t_max, sde.t_min, "down"))
