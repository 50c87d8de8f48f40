"""Gaussian data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    check_kind,
    check_number,
    check_tensor,
)
from ..models import Prediction
from ..processes import SDE, Level
from .base import Analytic, column, spectrum

__all__ = ["Gaussian"]


class Gaussian(Analytic):
    """Data N(m, S): E[x0 | x_t] = m + alpha S C^-1 (x - alpha m) with C = alpha^2 S + sigma^2 I.

    Computed in float64 in the eigenbasis of S and cast to x's dtype.

    Args:
        sde: the process.
        mean: shape event.
        covariance: a variance (), one per coordinate (event), or a matrix (d, d) for d = the
            number of coordinates.

    >>> from scoregen import EDMSDE
    >>> model = Gaussian(EDMSDE(), torch.zeros(2), torch.tensor([1.0, 4.0]))
    >>> model(torch.ones(1, 2), 1.0).x0
    tensor([[0.5000, 0.8000]])
    """

    def __init__(self, sde: SDE, mean: Tensor, covariance: Tensor | float):
        super().__init__()
        check_kind("sde", sde, SDE, "VPSDE()")
        mean = _moment("mean", mean)
        covariance = _moment("covariance", covariance)
        if not bool(torch.isfinite(mean).all()):
            raise ValueError("mean must be finite, got NaN or infinity")
        self.sde, self.event = sde, tuple(mean.shape)
        if covariance.shape == mean.shape:
            covariance = covariance.reshape(-1)
        values, vectors = spectrum(covariance, mean.reshape(-1).shape)
        if bool((values < -1e-12 * values.abs().max()).any()):
            raise ValueError(
                f"a covariance has no negative eigenvalue, got {float(values.min()):g}"
            )
        self.register_buffer("mean", mean.reshape(-1))
        self.register_buffer("variances", values.clamp(min=0))
        self.register_buffer("vectors", vectors)
        self.mean: Tensor
        self.variances: Tensor
        self.vectors: Tensor | None

    def _inward(self, x: Tensor, t: Level) -> tuple[Tensor, Any, Any]:
        """x - alpha m in the eigenbasis, shape (batch, d), with flat alpha and sigma."""
        alpha, sigma = column(t.alpha, x), column(t.sigma, x)
        centred = x.reshape(x.shape[0], len(self.mean)).to(self.mean.dtype) - alpha * self.mean
        return (centred if self.vectors is None else centred @ self.vectors), alpha, sigma

    def _outward(self, u: Tensor) -> Tensor:
        return u if self.vectors is None else u @ self.vectors.mT

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        u, alpha, sigma = self._inward(x, t)
        total = alpha**2 * self.variances + sigma**2
        x0 = self.mean + self._outward(alpha * self.variances / total * u)
        whitened = self._outward(u / total)
        eps, score = sigma * whitened, -whitened
        shape = x.shape
        return Prediction(
            self.sde,
            t,
            x,
            x0=x0.to(x.dtype).reshape(shape),
            eps=eps.to(x.dtype).reshape(shape),
            score=score.to(x.dtype).reshape(shape),
        )

    def log_density(self, x: Tensor, t: Level) -> Tensor:
        u, alpha, sigma = self._inward(x, t)
        total = alpha**2 * self.variances + sigma**2
        terms = u**2 / total + total.log() + math.log(2 * math.pi)
        return (-0.5 * terms.sum(-1)).to(x.dtype)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        u = torch.randn((count, len(self.mean)), generator=generator, dtype=torch.float64)
        x = self.mean + self._outward(u * self.variances.sqrt())
        return x.reshape(count, *self.event)

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        """The exact probability-flow map from time t to time s, shaped like x.

        x_s = alpha_s m + C_s^(1/2) C_t^(-1/2) (x_t - alpha_t m).
        """
        u, _, _ = self._inward(x, self.level(t, x))
        a, b = self.level(t, x), self.level(s, x)
        before = a.alpha**2 * self.variances + a.sigma**2
        after = b.alpha**2 * self.variances + b.sigma**2
        moved = b.alpha * self.mean + self._outward((after / before).sqrt() * u)
        return moved.to(x.dtype).reshape(x.shape)


def _moment(name: str, value: object) -> Tensor:
    """A tensor, or a number as one, in float64."""
    if isinstance(value, Tensor):
        return check_tensor(name, value).double()
    return torch.tensor(check_number(name, value), dtype=torch.float64)
