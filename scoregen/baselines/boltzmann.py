"""The Boltzmann machine with Gaussian visible and binary hidden units: an energy in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import (
    check_count,
    check_counts,
    check_data,
    check_finite,
    check_number,
    check_tensor,
)
from .._rows import flat
from ..densities import GaussianMixture
from ..densities.algebra import Moments, mixture_of
from ..energies import EnergyModel
from ..mcmc import Kernel
from ..models import ScoreModel
from ..noise import Noise
from ..processes import SDE, Level, StaticSDE

__all__ = ["BlockGibbs", "BoltzmannMachine"]

_MOST_HIDDEN = 20  # 2^20 states, some thousands at a time
_STATES = 1 << 14


class BoltzmannMachine(EnergyModel):
    """E(v, h) = |v - b|^2 / (2 s^2) - c.h - v.W h / s^2, with h in {0, 1}^H summed out.

    F(v) = |v - b|^2 / (2 s^2) - sum_j softplus(c_j + (W^T v)_j / s^2)

    (Hinton and Salakhutdinov 2006, doi:10.1126/science.1127647, with one s.) It is a mixture of 2^H
    Gaussians with means b + W h, covariance s^2 I and log weights
    c.h + (|b + W h|^2 - |b|^2) / (2 s^2), so that with few hidden units log Z, the density and the
    score at every noise level are exact. `BlockGibbs` samples it; `fit` trains it with
    `PersistentContrastiveDivergence`, for which that is the kernel.

    Args:
        event: shape of v.
        hidden: H.
        std: s at the start; trained with the rest.
        mean: b at the start, shape event; zeros unless given. That of the data is a good one.

    >>> with torch.random.fork_rng():
    ...     model = BoltzmannMachine((2,), 3)
    >>> model(torch.zeros(4, 2), 0.0).score.shape, round(model.log_z(), 1)
    (torch.Size([4, 2]), 3.9)
    """

    event: tuple[int, ...]

    def __init__(
        self, event: tuple[int, ...], hidden: int, *, std: float = 1.0, mean: Tensor | None = None
    ):
        super().__init__()
        self.sde, self.event = StaticSDE(), check_counts("event", event)
        d, h = math.prod(self.event), check_count("hidden", hidden)
        check_number("std", std, 0.0, open_low=True)
        if mean is not None:
            check_finite("mean", check_tensor("mean", mean))
            if not mean.is_floating_point():
                raise TypeError(f"mean must be of floating-point numbers, got {mean.dtype}")
            if tuple(mean.shape) != self.event:
                raise ValueError(f"mean must have shape {self.event}, got {tuple(mean.shape)}")
        start = torch.zeros(d) if mean is None else mean.detach().reshape(d).clone()
        self.b = nn.Parameter(start)
        self.c = nn.Parameter(torch.zeros(h))
        self.W = nn.Parameter(0.1 * nn.Linear(h, d).weight.detach())
        self.log_std = nn.Parameter(torch.tensor(math.log(std)))

    def activation(self, v: Tensor) -> Tensor:
        """c + W^T v / s^2, the logits of p(h_j = 1 | v), shape (batch, H).

        Args:
            v: visible units, shape (batch, *event).
        """
        return self.c + flat(v).to(self.W.dtype) @ self.W * (-2 * self.log_std).exp()

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        square = (flat(x).to(self.W.dtype) - self.b).square().sum(1)
        hidden = nn.functional.softplus(self.activation(x)).sum(1)
        return (square / 2 * (-2 * self.log_std).exp() - hidden).to(x.dtype)

    def _states(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(means b + W h, log weights) of all h, float64, some thousands at a time."""
        hidden = len(self.c)
        if hidden > _MOST_HIDDEN:
            raise ValueError(
                f"2^{hidden} hidden states are too many to sum (at most 2^{_MOST_HIDDEN}): "
                "estimate log Z by mcmc.annealed_importance along a GeometricPath"
            )
        b, c, w = (p.detach().double() for p in (self.b, self.c, self.W))
        s2 = self._variance()
        for part in torch.arange(2**hidden, device=b.device).split(_STATES):
            h = (part.unsqueeze(1) >> torch.arange(hidden, device=b.device) & 1).double()
            means = b + h @ w.mT
            rise = (means.square().sum(1) - b.square().sum()) / (2 * s2)
            yield means, h @ c + rise

    def _variance(self) -> Tensor:
        return (2 * self.log_std.detach().double()).exp()

    def log_z(self) -> float:
        """log int exp(-F) by the sum over all 2^H hidden states, H at most 20.

        d / 2 log(2 pi s^2) + logsumexp over h of the log weights.
        """
        logs = torch.stack([weights.logsumexp(0) for _, weights in self._states()])
        volume = len(self.b) / 2 * torch.log(2 * math.pi * self._variance())
        return float(volume + logs.logsumexp(0))

    def log_prob(self, x: Tensor) -> Tensor:
        """-F(x) - log Z in nats, shape (batch,), for H at most 20.

        Args:
            x: data, shape (batch, *event).
        """
        check_data(x)
        return -self.energy(x, self.sde.level(0.0)) - self.log_z()

    def density(self, sde: SDE) -> GaussianMixture:
        """The same law as a mixture of 2^H Gaussians on a process: exact at every noise level.

        Diffused to x = alpha v + sigma eps the weights stay, the means are alpha (b + W h), and
        the covariance is (alpha^2 s^2 + sigma^2) I. Weights below the smallest double are 0 and
        left out.

        Args:
            sde: the process.
        """
        states = list(self._states())
        means, logs = (torch.cat([s[i] for s in states]) for i in (0, 1))
        variances = self._variance().expand(len(means)).clone()
        return mixture_of(sde, Moments(logs, means, variances), self.event)


@dataclass(frozen=True)
class BlockGibbs(Kernel):
    """All hidden units given the visible ones, then the reverse: leaves a machine's law invariant.

    h_j ~ Bernoulli(sigmoid(c_j + (W^T v)_j / s^2)),   v ~ N(b + W h, s^2 I)

    (Hinton 2002.) Two products with W, and no score, in a move.

    >>> from scoregen import Constant, Sampler
    >>> with torch.random.fork_rng():
    ...     model = BoltzmannMachine((2,), 3)
    >>> Sampler(BlockGibbs(), Constant(0.0, 10)).sample(model, (5, 2)).shape
    torch.Size([5, 2])
    """

    nfe = None
    invariant = True

    def transition(
        self, model: ScoreModel, x: Tensor, t: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if not isinstance(model, BoltzmannMachine):
            raise TypeError(
                f"BlockGibbs needs a BoltzmannMachine, whose hidden units it draws, got "
                f"{type(model).__name__}: use MALA or HMC"
            )
        p = torch.sigmoid(model.activation(x))
        # a uniform by way of the normal, so that one source of draws serves everything
        h = (torch.special.ndtr(noise(torch.empty_like(p), t, t)) < p).to(p.dtype)
        mean = (model.b + h @ model.W.mT).to(x.dtype).reshape(x.shape)
        return mean + model.log_std.exp().to(x.dtype) * noise(x, t, t), None
