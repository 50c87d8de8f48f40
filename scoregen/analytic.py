"""Data whose score is known exactly at every noise level: Gaussians, mixtures, point clouds."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ._checks import check_same_shape
from .model import ScoreModel
from .prediction import Prediction
from .sde import SDE, Level

__all__ = ["Analytic", "Empirical", "Gaussian", "GaussianMixture"]


class Analytic(ScoreModel):
    """A score model that also knows its density, and can draw from it, at every level.

    >>> from scoregen import Gaussian, VPSDE
    >>> isinstance(Gaussian(VPSDE(), torch.zeros(2), torch.ones(2)), Analytic)
    True
    """

    event: tuple[int, ...]

    def forward(self, x: Tensor, t: Level | float | Tensor, **condition: Any) -> Prediction:
        if isinstance(x, Tensor) and x.dim() and x.shape[1:] != self.event:
            raise ValueError(
                f"x must have shape (batch, *event) with event {self.event}, got {tuple(x.shape)}"
            )
        return super().forward(x, t, **condition)

    @abstractmethod
    def log_density(self, x: Tensor, t: Level) -> Tensor:
        """log p_t(x) in nats, shape (batch,), without checks."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` clean samples, shape (count, *event), float64."""

    def log_prob(self, x: Tensor, t: Level | float | Tensor = 0.0) -> Tensor:
        """log p_t(x) in nats, shape (batch,)."""
        return self.log_density(x, t if isinstance(t, Level) else self.level(t, x))

    def sample(self, count: int, t: float = 0.0, *, generator: torch.Generator | int = 0) -> Tensor:
        """Exact samples of p_t, shape (count, *event), float64."""
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        x0 = self.draw(count, generator)
        if t == 0:
            return x0
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        return self.sde.perturb(x0, t, eps)

    def energy_difference(
        self, x: Tensor, y: Tensor, t: Level | float, *, nodes: int = 8, **condition: Any
    ) -> Tensor:
        """log p_t(x) - log p_t(y): exact."""
        check_same_shape("y", y, x)
        return self.log_prob(x, t) - self.log_prob(y, t)


def _spectrum(covariance: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues shaped (..., d) and eigenvectors; None where the covariance is diagonal."""
    c = covariance.double()
    d = shape[-1]
    if c.shape == shape[:-1]:
        return c.unsqueeze(-1).expand(shape).clone(), None
    if c.shape == shape:
        return c.clone(), None
    if c.shape == (*shape, d):
        values, vectors = torch.linalg.eigh((c + c.mT) / 2)
        return values, vectors
    raise ValueError(
        f"the covariance must be a variance, one per coordinate {tuple(shape)}, or a matrix "
        f"{(*shape, d)}; got {tuple(c.shape)}"
    )


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
        mean = torch.as_tensor(mean, dtype=torch.float64)
        covariance = torch.as_tensor(covariance, dtype=torch.float64)
        self.sde, self.event = sde, tuple(mean.shape)
        if covariance.shape == mean.shape:
            covariance = covariance.reshape(-1)
        values, vectors = _spectrum(covariance, mean.reshape(-1).shape)
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
        alpha, sigma = _flat(t.alpha), _flat(t.sigma)
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


def _flat(value: Any) -> Any:
    return value.reshape(-1, 1).double() if isinstance(value, Tensor) else value


def _row(value: Any) -> Any:
    return value.unsqueeze(-1) if isinstance(value, Tensor) else value


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
        values, vectors = _spectrum(covariances, means.shape)
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
        alpha, sigma = _flat(t.alpha), _flat(t.sigma)
        alpha, sigma = _row(alpha), _row(sigma)
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
        alpha, sigma = _flat(t.alpha), _flat(t.sigma)
        if not isinstance(sigma, Tensor) and sigma == 0:
            raise ValueError("a point cloud has no density at sigma = 0; ask at t >= t_min")
        flat = x.reshape(x.shape[0], math.prod(self.event)).double()
        top = flat.new_full((len(flat), 1), -math.inf)
        weight, mean = torch.zeros_like(top), torch.zeros_like(flat)
        rows = max(1, self.chunk // max(1, flat.numel()))
        for points in self.data.reshape(len(self.data), flat.shape[1]).split(rows):
            y = points.double()
            # the differences, not the expanded square: no cancellation at small sigma
            distance2 = (flat.unsqueeze(1) - _row(alpha) * y).square().sum(-1)
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
        sigma = _flat(t.sigma)
        norm = sigma.log().squeeze(-1) if isinstance(sigma, Tensor) else math.log(sigma)
        density = total - d * (norm + 0.5 * math.log(2 * math.pi)) - math.log(len(self.data))
        return density.to(x.dtype)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(self.data), (count,), generator=generator)
        return self.data[chosen].double()
