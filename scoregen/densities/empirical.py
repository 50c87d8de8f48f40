"""A cloud of equally likely points."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    check_count,
    check_finite,
    check_kind,
    check_tensor,
)
from ..models import Prediction
from ..processes import SDE, Level
from .base import Analytic, cancels, column, row

__all__ = ["Empirical"]


class Empirical(Analytic):
    """Data that are equally likely points: the score a network would learn with no generalisation.

    The squared distances of a whole block of points are matrix products of centred values, in
    float64; where sigma is so small that their cancellation would cost digits (2.5e-8 in the
    logarithm of a weight), they are sums of squared differences. A device without float64 (MPS)
    computes in float32.

    Args:
        sde: the process.
        data: points of shape (N, *event), finite.
        chunk: most numbers in a block, (batch, points) of a product or (batch, points, event) of
            differences: three blocks of 8 bytes a number are held at once, 48 MiB by default.

    >>> from scoregen import EDMSDE
    >>> model = Empirical(EDMSDE(), torch.tensor([[-1.0], [1.0]]))
    >>> model(torch.zeros(1, 1), 1.0).x0
    tensor([[0.]])
    """

    def __init__(self, sde: SDE, data: Tensor, chunk: int = 1 << 21):
        super().__init__()
        check_kind("sde", sde, SDE, "VPSDE()")
        check_tensor("data", data)
        if data.dim() < 1 or len(data) == 0 or not data.is_floating_point():
            raise ValueError(
                f"need floating-point points (N, *event), got {tuple(data.shape)} {data.dtype}"
            )
        check_finite("data", data)
        self.sde, self.event = sde, tuple(data.shape[1:])
        self.chunk = check_count("chunk", chunk)
        self.register_buffer("data", data.detach().clone())
        self.data: Tensor
        flat = self.data.reshape(len(data), -1).cpu().double()
        self._centre = flat.mean(0)
        self._radius2 = float((flat - self._centre).square().sum(1).max())

    def _shares(self, x: Tensor, t: Level) -> tuple[Tensor, Tensor]:
        """(mean of the points under the posterior, log sum of the kernels), by streaming."""
        alpha, sigma = column(t.alpha, x), column(t.sigma, x)
        if not isinstance(sigma, Tensor) and sigma == 0:
            raise ValueError("a point cloud has no density at sigma = 0; take t >= t_min")
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        centre = self._centre.to(x.device, wide)
        flat = x.reshape(x.shape[0], math.prod(self.event)).to(wide) - alpha * centre
        top = flat.new_full((len(flat), 1), -math.inf)
        weight, mean = torch.zeros_like(top), torch.zeros_like(flat)
        for y, distance2 in self._blocks(flat, alpha, sigma, centre):
            log = distance2 / (-2 * sigma**2)
            new = torch.maximum(top, log.amax(1, keepdim=True))
            kernel, old = (log - new).exp(), (top - new).exp()
            weight = weight * old + kernel.sum(1, keepdim=True)
            mean = mean * old + kernel @ y
            top = new
        return mean / weight + centre, (top + weight.log()).squeeze(1)

    def _blocks(
        self, flat: Tensor, alpha: Any, sigma: Any, centre: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Centred points y (rows, d), and squared distances of alpha y from x, (batch, rows)."""
        far = cancels(self._radius2, alpha, sigma)
        each = flat.numel() if far else len(flat)
        norm2 = flat.square().sum(1, keepdim=True)
        points = self.data.reshape(len(self.data), flat.shape[1])
        for block in points.split(max(1, self.chunk // max(1, each))):
            y = block.to(flat) - centre
            if far:
                yield y, (flat.unsqueeze(1) - row(alpha) * y).square().sum(-1)
            else:
                cross = flat @ y.mT
                square = y.square().sum(1)
                yield y, (norm2 - 2 * alpha * cross + alpha**2 * square).clamp(min=0.0)

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        mean = self._shares(x, t)[0]
        x0 = mean.reshape(x.shape)
        eps = (x.to(mean) - t.alpha * x0) / t.sigma
        return Prediction(self.sde, t, x, x0=x0.to(x.dtype), eps=eps.to(x.dtype))

    def log_density(self, x: Tensor, t: Level) -> Tensor:
        total = self._shares(x, t)[1]
        d = math.prod(self.event)
        sigma = column(t.sigma, x)
        norm = sigma.log().squeeze(-1) if isinstance(sigma, Tensor) else math.log(sigma)
        density = total - d * (norm + 0.5 * math.log(2 * math.pi)) - math.log(len(self.data))
        return density.to(x.dtype)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(self.data), (count,), generator=generator)
        return self.data[chosen].double()
