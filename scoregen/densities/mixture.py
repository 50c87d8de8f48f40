"""Mixtures of Gaussians."""

from __future__ import annotations

import math
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
from .base import Analytic, cancels, column, row, spectrum

__all__ = ["GaussianMixture"]


class GaussianMixture(Analytic):
    """Data sum_k w_k N(m_k, S_k), with the responsibilities of every component at every level.

    Computed in float64. With diagonal covariances and one level for the batch everything is matrix
    products of centred values, in memory for (batch, K) numbers; the rest, and levels with so
    little noise that the products would cancel (2.5e-8 in a log-density), takes differences
    (batch, K, d) in blocks of rows.

    Args:
        sde: the process.
        weights: shape (K,), positive; normalised here.
        means: shape (K, *event), with d coordinates each.
        covariances: shape (K,) variances, (K, d) variances per coordinate, or (K, d, d).
        chunk: most numbers in a block of differences; about five blocks of 8 bytes a number are
            held at once, 80 MiB by default.

    >>> from scoregen import EDMSDE
    >>> means = torch.tensor([[-1.0], [1.0]])
    >>> model = GaussianMixture(EDMSDE(), torch.ones(2), means, torch.full((2,), 0.01))
    >>> model(torch.zeros(1, 1), 1.0).x0
    tensor([[0.]])
    """

    def __init__(
        self,
        sde: SDE,
        weights: Tensor,
        means: Tensor,
        covariances: Tensor,
        chunk: int = 1 << 21,
    ):
        super().__init__()
        check_kind("sde", sde, SDE, "VPSDE()")
        for name, value in (("weights", weights), ("means", means), ("covariances", covariances)):
            check_finite(name, check_tensor(name, value))
        means, weights = means.double(), weights.double()
        if means.dim() < 1 or weights.shape != means.shape[:1] or not bool((weights > 0).all()):
            raise ValueError(
                "a mixture needs positive weights (K,) and means (K, *event), got shapes "
                f"{tuple(weights.shape)} and {tuple(means.shape)}"
            )
        self.sde, self.event = sde, tuple(means.shape[1:])
        self.chunk = check_count("chunk", chunk)
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
        self._radius2 = float((means - means.mean(0)).square().sum(1).max()) if len(means) else 0.0
        self._narrowest = float(values.min()) if values.numel() else math.inf

    def log_joint(self, x: Tensor, t: Level) -> Tensor:
        """log w_k + log N_k(x) of every component at a level, shape (batch, K), float64.

        The responsibilities are its softmax and the density is its logsumexp, over the last axis.
        """
        flat = self._flat(x)
        if self._one_product(t):
            return self._product(flat, t)[0]
        parts = [self._differences(part, at)[2] for part, at in self._rows(flat, t)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        flat = self._flat(x)
        if self._one_product(t):
            x0, score = self._by_products(flat, t)
        else:
            parts = [self._by_differences(part, at) for part, at in self._rows(flat, t)]
            x0, score = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        eps = -column(t.sigma, x) * score
        x0, eps, score = (form.to(x.dtype).reshape(x.shape) for form in (x0, eps, score))
        return Prediction(self.sde, t, x, x0=x0, eps=eps, score=score)

    def log_density(self, x: Tensor, t: Level) -> Tensor:
        return self.log_joint(x, t).logsumexp(-1).to(x.dtype)

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], self.means.shape[1]).to(self.means.dtype)

    def _one_product(self, t: Level) -> bool:
        """Whether matrix products serve: diagonal covariances, one level, enough spread."""
        if self.vectors is not None or isinstance(t.sigma, Tensor):
            return False
        spread = math.sqrt(t.alpha**2 * self._narrowest + t.sigma**2)
        return not cancels(self._radius2, t.alpha, spread)

    def _product(self, flat: Tensor, t: Level) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(log joint, centred x, centred means, precisions (K, d)) of one level of floats."""
        centre = self.means.mean(0)
        y, means = flat - t.alpha * centre, self.means - centre
        precision = 1 / (t.alpha**2 * self.variances + t.sigma**2)
        shifted = t.alpha * means * precision
        square = y.square() @ precision.mT - 2 * (y @ shifted.mT)
        norm = (t.alpha * means * shifted - precision.log() + math.log(2 * math.pi)).sum(-1)
        return self.log_weights - 0.5 * (square + norm), y, means, precision

    def _by_products(self, flat: Tensor, t: Level) -> tuple[Tensor, Tensor]:
        """x0 and score, (batch, d): sums over k of share_k times a (K, d) table."""
        joint, y, means, precision = self._product(flat, t)
        share = joint.softmax(-1)
        # m + alpha S P (x - alpha m) = sigma^2 P m + alpha S P x, with P the precision of x
        kept = share @ (t.sigma**2 * precision * means)
        gain = share @ (t.alpha * self.variances * precision)
        x0 = self.means.mean(0) + kept + gain * y
        score = share @ (t.alpha * means * precision) - (share @ precision) * y
        return x0, score

    def _rows(self, flat: Tensor, t: Level) -> list[tuple[Tensor, Level]]:
        """Blocks of rows, with their levels."""
        count = max(1, self.chunk // max(1, self.means.numel()))
        if len(flat) <= count:
            return [(flat, t)]
        starts = range(0, len(flat), count)
        each = isinstance(t.sigma, Tensor) and t.sigma.numel() == len(flat)
        return [
            (flat[i : i + count], Level(*(c[i : i + count] for c in t)) if each else t)
            for i in starts
        ]

    def _differences(self, flat: Tensor, t: Level) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals in each eigenbasis and their variances (batch, K, d), log joint (batch, K)."""
        alpha, sigma = row(column(t.alpha, flat)), row(column(t.sigma, flat))
        u = flat.unsqueeze(1) - alpha * self.means
        if self.vectors is not None:
            u = torch.einsum("bkd,kde->bke", u, self.vectors)
        total = alpha**2 * self.variances + sigma**2
        terms = u**2 / total + total.log() + math.log(2 * math.pi)
        return u, total, self.log_weights - 0.5 * terms.sum(-1)

    def _by_differences(self, flat: Tensor, t: Level) -> tuple[Tensor, Tensor]:
        u, total, joint = self._differences(flat, t)
        share = joint.softmax(-1)
        whitened = u / total
        shrunk = row(column(t.alpha, flat)) * self.variances * whitened
        if self.vectors is not None:
            whitened = torch.einsum("bke,kde->bkd", whitened, self.vectors)
            shrunk = torch.einsum("bke,kde->bkd", shrunk, self.vectors)
        x0 = torch.einsum("bk,bkd->bd", share, self.means + shrunk)
        return x0, -torch.einsum("bk,bkd->bd", share, whitened)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(
            self.log_weights.exp(), count, replacement=True, generator=generator
        )
        scale = self.variances[chosen].sqrt()
        z = scale * torch.randn(scale.shape, generator=generator, dtype=torch.float64)
        if self.vectors is not None:
            z = torch.einsum("be,bde->bd", z, self.vectors[chosen])
        return (self.means[chosen] + z).reshape(count, *self.event)
