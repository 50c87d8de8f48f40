"""A cloud of equally likely points."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..models import Prediction
from ..processes import SDE, Level
from .base import Analytic, column, row

__all__ = ["Empirical"]


class Empirical(Analytic):
    """Data that are equally likely points: the score a network would learn with no generalisation.

    Args:
        sde: the process.
        data: points of shape (N, *event).
        chunk: values compared at once, to bound the memory.

    >>> from scoregen import EDMSDE
    >>> model = Empirical(EDMSDE(), torch.tensor([[-1.0], [1.0]]))
    >>> model(torch.zeros(1, 1), 1.0).x0
    tensor([[0.]])
    """

    def __init__(self, sde: SDE, data: Tensor, chunk: int = 1 << 24):
        super().__init__()
        if data.dim() < 1 or len(data) == 0 or not data.is_floating_point():
            raise ValueError(
                f"need floating-point points (N, *event), got {tuple(data.shape)} {data.dtype}"
            )
        self.sde, self.event, self.chunk = sde, tuple(data.shape[1:]), chunk
        self.register_buffer("data", data.detach().clone())
        self.data: Tensor

    def _shares(self, x: Tensor, t: Level) -> tuple[Tensor, Tensor]:
        """(mean of the points under the posterior, log sum of the kernels), by streaming."""
        alpha, sigma = column(t.alpha), column(t.sigma)
        if not isinstance(sigma, Tensor) and sigma == 0:
            raise ValueError("a point cloud has no density at sigma = 0; ask at t >= t_min")
        flat = x.reshape(x.shape[0], math.prod(self.event)).double()
        top = flat.new_full((len(flat), 1), -math.inf)
        weight, mean = torch.zeros_like(top), torch.zeros_like(flat)
        rows = max(1, self.chunk // max(1, flat.numel()))
        for points in self.data.reshape(len(self.data), flat.shape[1]).split(rows):
            y = points.double()
            # the differences, not the expanded square: no cancellation at small sigma
            distance2 = (flat.unsqueeze(1) - row(alpha) * y).square().sum(-1)
            log = -distance2 / (2 * sigma**2)
            new = torch.maximum(top, log.amax(1, keepdim=True))
            kernel, old = (log - new).exp(), (top - new).exp()
            weight = weight * old + kernel.sum(1, keepdim=True)
            mean = mean * old + kernel @ y
            top = new
        return mean / weight, (top + weight.log()).squeeze(1)

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        x0 = self._shares(x, t)[0].reshape(x.shape)
        eps = (x.double() - t.alpha * x0) / t.sigma
        return Prediction(self.sde, t, x, x0=x0.to(x.dtype), eps=eps.to(x.dtype))

    def log_density(self, x: Tensor, t: Level) -> Tensor:
        total = self._shares(x, t)[1]
        d = math.prod(self.event)
        sigma = column(t.sigma)
        norm = sigma.log().squeeze(-1) if isinstance(sigma, Tensor) else math.log(sigma)
        density = total - d * (norm + 0.5 * math.log(2 * math.pi)) - math.log(len(self.data))
        return density.to(x.dtype)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(self.data), (count,), generator=generator)
        return self.data[chosen].double()
