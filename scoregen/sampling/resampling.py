"""Resampling: weighted particles become equally weighted ones of the same law."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_state
from ..noise import Noise
from ..processes import Level

__all__ = ["Population", "effective", "fresh", "selected", "systematic"]


def systematic(log_weights: Tensor, u: Tensor) -> Tensor:
    """Indices of one systematic resampling of every population, shape (populations, particles).

    Particle j is copied as often as one of the points (i + u) / n falls into its share of the
    cumulated weights, n w_j times on average and at most one more or less (Kitagawa 1996; Douc and
    Cappe 2005, cs/0507025). A population without a finite weight keeps every particle.

    Args:
        log_weights: shape (populations, particles).
        u: one uniform number in [0, 1) per population, shape (populations,).

    >>> systematic(torch.tensor([[0.0, 0.0], [0.0, -50.0]]), torch.tensor([0.3, 0.3]))
    tensor([[0, 1],
            [0, 0]])
    """
    check_state(log_weights, "log_weights")
    check_state(u, "u")
    if log_weights.dim() != 2 or u.shape != log_weights.shape[:1]:
        raise ValueError(
            "log_weights must have shape (populations, particles) and u (populations,), got "
            f"{tuple(log_weights.shape)} and {tuple(u.shape)}"
        )
    count = log_weights.shape[1]
    keep = torch.arange(count, device=log_weights.device).expand_as(log_weights)
    shares = log_weights.double().softmax(1)
    cumulated = shares.cumsum(1).contiguous()
    points = (keep + u.double().unsqueeze(1)) / count
    chosen = torch.searchsorted(cumulated, points.contiguous()).clamp(max=count - 1)
    return torch.where(shares.isfinite().all(1, keepdim=True), chosen, keep)


def effective(log_weights: Tensor) -> Tensor:
    """Effective number of particles (sum w)^2 / sum w^2 along the last axis, nan where a weight is.

    >>> round(effective(torch.tensor([0.0, 0.0, -100.0])).item(), 6)
    2.0
    """
    check_state(log_weights, "log_weights")
    return (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp()


class Population(NamedTuple):
    """What a population carries from move to move.

    Attributes:
        log_weights: of the particles since the last resampling, shape (batch,), float64.
        log_z: log of the mean weight, as estimated up to the last resampling, a scalar tensor.
        effective: effective number of particles before the last decision to resample.
        before: state of the inner solver or reward, None where there is none.

    >>> Population(torch.zeros(4), torch.tensor(0.0), torch.tensor(4.0), None).effective
    tensor(4.)
    """

    log_weights: Tensor
    log_z: Tensor
    effective: Tensor
    before: Any


def fresh(x: Tensor) -> Population:
    """A population of equal weights, one particle per row of x.

    >>> fresh(torch.zeros(4, 2)).effective
    tensor(4., dtype=torch.float64)
    """
    logs = x.new_zeros(len(x), dtype=torch.float64)
    return Population(logs, logs.new_zeros(()), logs.new_tensor(float(len(x))), None)


def selected(
    state: Population, share: float, last: bool, noise: Noise, t: Level, x: Tensor
) -> tuple[Tensor, Population]:
    """(indices of the survivors, the population after it was resampled or left as it is).

    Args:
        state: the population.
        share: of effective particles below which it is resampled.
        last: whether it is resampled in any case.
        noise: gives the one uniform number of systematic resampling, by way of a normal.
        t: the level at which it is drawn.
        x: the particles.

    >>> source = lambda like, t, s: torch.zeros_like(like)
    >>> state = fresh(torch.zeros(2, 1))._replace(log_weights=torch.tensor([0.0, -50.0]).double())
    >>> selected(state, 0.6, False, source, Level(0.5, 1.0, 1.0, 0.0), torch.zeros(2, 1))[0]
    tensor([0, 0])
    """
    logs, count = state.log_weights, len(state.log_weights)
    keep = torch.arange(count, device=x.device)
    if count == 0:
        return keep, state
    found = effective(logs)
    again = (found < share * count) | last
    u = torch.special.ndtr(noise(x.new_zeros(count), t, t)[:1].double())
    chosen = torch.where(again, systematic(logs.unsqueeze(0), u)[0], keep)
    log_z = state.log_z + torch.where(again, logs.logsumexp(0) - math.log(count), 0.0)
    return chosen, Population(torch.where(again, 0.0, logs), log_z, found, state.before)
