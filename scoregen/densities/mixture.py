"""Mixtures of Gaussians."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..models import Prediction
from ..processes import SDE, Level
from .base import Analytic, column, row, spectrum

__all__ = ["GaussianMixture"]


class GaussianMixture(Analytic):
    """Data sum_k w_k N(m_k, S_k), with the responsibilities of every component at every level.

    Args:
        sde: the process.
        weights: shape (K,), positive; normalised here.
        means: shape (K, *event), with d coordinates each.
        covariances: shape (K,) variances, (K, d) variances per coordinate, or (K, d, d).

    >>> from scoregen import EDMSDE
    >>> means = torch.tensor([[-1.0], [1.0]])
    >>> model = GaussianMixture(EDMSDE(), torch.ones(2), means, torch.full((2,), 0.01))
    >>> model(torch.zeros(1, 1), 1.0).x0
    tensor([[0.]])
    """

    def __init__(self, sde: SDE, weights: Tensor, means: Tensor, covariances: Tensor):
        super().__init__()
        means, weights = means.double(), weights.double()
        if means.dim() < 1 or weights.shape != means.shape[:1] or not bool((weights > 0).all()):
            raise ValueError(
                "a mixture needs positive weights (K,) and means (K, *event), got shapes "
                f"{tuple(weights.shape)} and {tuple(means.shape)}"
            )
        self.sde, self.event = sde, tuple(means.shape[1:])
        means = means.reshape(len(means), -1)
        values, vectors = spectrum(covariances, means.shape)
        if bool((values <= 0).any()):
            raise ValueError("every component needs a positive definite covariance")
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.register_buffer("means", means)
        self.register_buffer("variances", values)
        self.register_buffer("vectors", vectors)
        self.log_weights: Tensor
        self.means: Tensor
        self.variances: Tensor
        self.vectors: Tensor | None

    def _parts(self, x: Tensor, t: Level) -> tuple[Tensor, Tensor, Tensor, Any, Any]:
        """Residuals in each eigenbasis (batch, K, d), spectra, log joint (batch, K)."""
        alpha, sigma = column(t.alpha), column(t.sigma)
        alpha, sigma = row(alpha), row(sigma)
        u = x.reshape(x.shape[0], 1, self.means.shape[1]).to(self.means.dtype) - alpha * self.means
        if self.vectors is not None:
            u = torch.einsum("bkd,kde->bke", u, self.vectors)
        total = alpha**2 * self.variances + sigma**2
        terms = u**2 / total + total.log() + math.log(2 * math.pi)
        return u, total, self.log_weights - 0.5 * terms.sum(-1), alpha, sigma

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        u, total, joint, alpha, sigma = self._parts(x, t)
        share = joint.softmax(-1)
        whitened = u / total
        shrunk = alpha * self.variances * whitened
        if self.vectors is not None:
            whitened = torch.einsum("bke,kde->bkd", whitened, self.vectors)
            shrunk = torch.einsum("bke,kde->bkd", shrunk, self.vectors)
        x0 = torch.einsum("bk,bkd->bd", share, self.means + shrunk)
        score = -torch.einsum("bk,bkd->bd", share, whitened)
        eps = -(sigma.squeeze(-1) if isinstance(sigma, Tensor) else sigma) * score
        x0, eps, score = (form.to(x.dtype).reshape(x.shape) for form in (x0, eps, score))
        return Prediction(self.sde, t, x, x0=x0, eps=eps, score=score)

    def log_density(self, x: Tensor, t: Level) -> Tensor:
        return self._parts(x, t)[2].logsumexp(-1).to(x.dtype)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(
            self.log_weights.exp(), count, replacement=True, generator=generator
        )
        scale = self.variances[chosen].sqrt()
        z = scale * torch.randn(scale.shape, generator=generator, dtype=torch.float64)
        if self.vectors is not None:
            z = torch.einsum("be,bde->bd", z, self.vectors[chosen])
        return (self.means[chosen] + z).reshape(count, *self.event)
