"""Means and standard deviations per channel, taken off the data and put back on the samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_tensor

__all__ = ["Units"]


class Units(NamedTuple):
    """What data were standardised by: one mean and one standard deviation per channel.

        x = mean + std x_standardised

    Args:
        mean: One value per entry of the first axis of a sample, or one for samples of shape ().
        std: As many, positive.

    Example:
        >>> Units((1.0, 2.0), (0.5, 4.0)).restore(torch.ones(1, 2))
        tensor([[1.5000, 6.0000]])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_tensor("x", x)
        shape = (1, len(self.mean), *(1,) * (x.dim() - 2)) if x.dim() > 1 else (1,)
        if x.dim() > 1 and x.shape[1] != len(self.mean):
            raise ValueError(f"x must have {len(self.mean)} channels, got {tuple(x.shape)}")
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device) for v in self)
        return mean.reshape(shape), std.reshape(shape)

    def apply(self, x: Tensor) -> Tensor:
        """(x - mean) / std, shaped like x, (N, *event)."""
        mean, std = self._like(x)
        return (x - mean) / std

    def restore(self, x: Tensor) -> Tensor:
        """mean + std x, shaped like x, (N, *event): samples in the units of the data."""
        mean, std = self._like(x)
        return mean + std * x
