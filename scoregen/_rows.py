"""Sums over each sample of a batch, and one number per sample against a batch.

Every function takes x of shape (batch, *event), also with an empty event or no samples, where
`x.reshape(len(x), -1)` would not do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["against", "flat", "moved", "row_finite", "row_mean", "row_norm", "row_rms", "row_sum"]


def flat(x: Tensor) -> Tensor:
    """x as (batch, d), with d = 1 for an empty event.

    >>> flat(torch.zeros(2, 3, 4)).shape, flat(torch.zeros(2)).shape, flat(torch.zeros(0, 3)).shape
    (torch.Size([2, 12]), torch.Size([2, 1]), torch.Size([0, 3]))
    """
    return x.reshape(len(x), math.prod(x.shape[1:]))


def row_sum(x: Tensor) -> Tensor:
    """Sum over each sample, shape (batch,).

    >>> row_sum(torch.ones(2, 3, 4))
    tensor([12., 12.])
    """
    return flat(x).sum(1)


def row_mean(x: Tensor) -> Tensor:
    """Mean over each sample, shape (batch,); NaN where a sample has no coordinates.

    >>> row_mean(torch.ones(2, 3, 4))
    tensor([1., 1.])
    """
    return flat(x).mean(1)


def row_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each sample, shape (batch,).

    >>> row_norm(torch.tensor([[3.0, 4.0]]))
    tensor([5.])
    """
    return flat(x).norm(dim=1)


def row_rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, shape (batch,).

    >>> row_rms(torch.tensor([[1.0, 7.0]]))
    tensor([5.])
    """
    return flat(x).square().mean(1).sqrt()


def row_finite(x: Tensor) -> Tensor:
    """Whether all of a sample is finite, shape (batch,).

    >>> row_finite(torch.tensor([[1.0, math.inf], [0.0, 2.0]]))
    tensor([False,  True])
    """
    return torch.isfinite(flat(x)).all(1)


def against(value: Tensor, x: Tensor) -> Tensor:
    """One number per sample, shape (batch,), shaped (batch, 1, ..., 1) to broadcast against x.

    >>> against(torch.ones(2), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    """
    return value.reshape(-1, *(1,) * (x.dim() - 1))


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; the host waits for what comes back from one alone.

    A plain `.to` also waits, for all that was begun on the GPU, when it copies to one.

    >>> moved(torch.ones(2), "cpu")
    tensor([1., 1.])
    """
    device = torch.device(device)
    # elsewhere than on CUDA, memory that is freed before the copy is made could be read
    away = device.type == "cuda" and tensor.device.type == "cpu"
    return tensor.to(device, non_blocking=away)
