"""Edits of the denoised data: keep it inside a range."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._checks import check_number
from ..models import Prediction, ScoreModel, Wrapped
from ..processes import Level

__all__ = ["Clamped", "DynamicThreshold"]


class _Edited(Wrapped):
    """A model whose x0 is edited; eps follows, so that x = alpha x0 + sigma eps still holds."""

    def edit(self, x0: Tensor) -> Tensor:
        """The edited x0, where x0 is finite."""
        return x0

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        p = self.model.predict(x, t, **condition)
        # an infinite x0 must reach the sampler's check, not be hidden by the edit
        return p.with_x0(torch.where(p.x0.isfinite(), self.edit(p.x0), math.nan))


class Clamped(_Edited):
    """x0 clamped to [low, high], as DDPM does with images (Ho et al. 2020, 2006.11239).

    A value that is not finite becomes NaN, not an end of the range, so the sampler sees it.

    Args:
        model: any score model.
        low: least value of x0.
        high: greatest value of x0.

    >>> from scoregen import VPSDE, Gaussian
    >>> model = Clamped(Gaussian(VPSDE(), torch.zeros(2), 1.0), -1.0, 1.0)
    >>> float(model(torch.full((1, 2), 9.0), 0.1).x0.max())
    1.0
    """

    def __init__(self, model: ScoreModel, low: float = -1.0, high: float = 1.0):
        super().__init__(model)
        self.low = check_number("low", low)
        self.high = check_number("high", high, low, open_low=True)

    def edit(self, x0: Tensor) -> Tensor:
        largest = torch.finfo(x0.dtype).max  # a wider range clamps nothing
        return x0.clamp(max(self.low, -largest), min(self.high, largest))


class DynamicThreshold(_Edited):
    """x0 clamped to [-s, s] and divided by s, s = max(1, quantile of |x0|) in units of `ceiling`.

    Per sample, and only where a sample leaves [-ceiling, ceiling] (Saharia et al. 2022,
    2205.11487). The quantile is found in float32 or float64.

    Args:
        model: any score model.
        quantile: of |x0| over a sample's coordinates, in (0, 1].
        ceiling: the data's own greatest absolute value.

    >>> from scoregen import VPSDE, Gaussian
    >>> model = DynamicThreshold(Gaussian(VPSDE(), torch.zeros(2), 1.0), 1.0)
    >>> model(torch.tensor([[8.0, 4.0]]), 0.1).x0
    tensor([[1.0000, 0.5000]])
    """

    def __init__(self, model: ScoreModel, quantile: float = 0.995, ceiling: float = 1.0):
        super().__init__(model)
        self.quantile = check_number("quantile", quantile, 0.0, 1.0, open_low=True)
        self.ceiling = check_number("ceiling", ceiling, 0.0, open_low=True)

    def edit(self, x0: Tensor) -> Tensor:
        if x0.numel() == 0:
            return x0
        size = x0.reshape(len(x0), math.prod(x0.shape[1:])).abs()
        wide = size.to(torch.promote_types(x0.dtype, torch.float32))
        ceiling = min(self.ceiling, torch.finfo(x0.dtype).max)
        limit = torch.quantile(wide, self.quantile, dim=1).clamp(min=ceiling)
        limit = limit.to(x0.dtype).reshape(-1, *(1,) * (x0.dim() - 1))
        return torch.maximum(torch.minimum(x0, limit), -limit) * (ceiling / limit)
