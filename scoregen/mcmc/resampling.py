"""Resampling: weighted particles become equally weighted ones of the same law."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_state

__all__ = ["effective", "systematic"]


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
    """Effective number of particles (sum w)^2 / sum w^2 along the last axis.

    It is nan where a weight is.

    >>> round(effective(torch.tensor([0.0, 0.0, -100.0])).item(), 6)
    2.0
    """
    check_state(log_weights, "log_weights")
    return (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp()
