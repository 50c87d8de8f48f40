"""A linear measurement with Gaussian noise, its algebra, and the posterior where it is known."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    check_finite,
    check_kind,
    check_number,
    check_tensor,
)
from ..densities import Gaussian, GaussianMixture
from ..densities.algebra import Moments, mixture_of, moments
from ..models import ScoreModel
from ..models.conditions import select

__all__ = ["LinearMeasurement", "exact_posterior"]


class LinearMeasurement:
    """y = A x + noise n, n ~ N(0, I): inpainting, colourisation, deblurring, averages.

    A sees the sample flattened. Calling the measurement applies A. The algebra is done in float64
    in the eigenbasis of A A^T, once.

    Args:
        matrix: A, shape (m, d).
        y: what was measured, shape (m,), or (batch, m) with one per sample.
        noise: standard deviation of the noise, at least 0.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, or no noise on rows
            that depend on one another.

    >>> average = LinearMeasurement(torch.tensor([[0.5, 0.5]]), torch.tensor([2.0]), 0.1)
    >>> average(torch.tensor([[1.0, 2.0]]))
    tensor([[1.5000]])
    """

    def __init__(self, matrix: Tensor, y: Tensor, noise: float):
        for name, tensor in (("the matrix", matrix), ("y", y)):
            check_tensor(name, tensor)
        if matrix.dim() != 2:
            raise ValueError(f"the matrix must have shape (m, d), got {tuple(matrix.shape)}")
        if y.dim() not in (1, 2) or y.shape[-1] != len(matrix):
            raise ValueError(
                f"y must have shape ({len(matrix)},) or (batch, {len(matrix)}), one entry per row "
                f"of the matrix, got {tuple(y.shape)}"
            )
        check_finite("the matrix", matrix)
        check_finite("y", y)
        self.noise = check_number("noise", noise, 0.0)
        self.matrix, self.y = matrix.double(), y.double()
        self._values, self._vectors = torch.linalg.eigh(self.matrix @ self.matrix.mT)
        least = float(self._values.min()) if len(matrix) else 1.0
        if self.noise == 0 and least <= 1e-12 * float(self._values.max()):
            raise ValueError(
                "without noise the rows of the matrix must be independent; drop the redundant "
                "ones, or give their noise"
            )

    @classmethod
    def mask(cls, mask: Tensor, known: Tensor, noise: float) -> LinearMeasurement:
        """Inpainting: the coordinates where the mask is True are seen.

        Args:
            mask: boolean, shape event, or one that broadcasts to it such as (1, H, W).
            known: shape event, or (batch, *event); only what the mask shows is read.
            noise: standard deviation of the noise, at least 0.
        """
        check_tensor("mask", mask)
        check_tensor("known", known)
        event = known.shape[max(0, known.dim() - mask.dim()) :]
        if mask.dtype != torch.bool or not broadcasts(mask.shape, event):
            raise ValueError(
                f"the mask must be boolean and shaped like one sample, got {mask.dtype} "
                f"{tuple(mask.shape)} beside known values of shape {tuple(known.shape)}"
            )
        mask = mask.expand(event)
        rows = torch.eye(mask.numel(), dtype=torch.float64)[mask.flatten().cpu()]
        return cls(rows, known[..., mask], noise)

    def rows(self, part: slice | Tensor, batch: int) -> LinearMeasurement:
        """The measurement of some rows of a batch; itself where one y is for all."""
        if self.y.dim() == 1:
            return self
        if len(self.y) != batch:
            raise ValueError(
                f"the measurement holds {len(self.y)} samples' y and the batch {batch} samples; "
                "give one y for all, or one per sample"
            )
        some = copy.copy(self)
        some.y = select(self.y, part)
        return some

    def __rmul__(self, prior: object) -> Gaussian | GaussianMixture:
        """prior * measurement, the posterior of a density that has one in closed form."""
        if not isinstance(prior, ScoreModel):
            return NotImplemented
        return exact_posterior(prior, self)

    def __call__(self, x: Tensor) -> Tensor:
        """A x, shape (batch, m)."""
        return self._flat(x) @ self.matrix.to(x).mT

    def transposed(self, u: Tensor, like: Tensor) -> Tensor:
        """A^T u for u of shape (batch, m), shaped like a batch of samples."""
        return (u.double() @ self.matrix.to(u.device)).to(like.dtype).reshape(like.shape)

    def residual(self, x: Tensor) -> Tensor:
        """y - A x, shape (batch, m), in float64."""
        if self.y.dim() == 2 and len(self.y) != len(x):
            raise ValueError(
                f"the measurement holds {len(self.y)} samples' y and the batch {len(x)} samples; "
                "give one y for all, or one per sample"
            )
        seen = self._flat(x).double() @ self.matrix.to(x.device).mT
        return self.y.to(x.device) - seen

    def solve(self, u: Tensor, spread2: Any, ridge: float) -> Tensor:
        """(spread2 A A^T + ridge I)^-1 u for u of shape (batch, m)."""
        vectors = self._vectors.to(u.device)
        values = _column(spread2) * self._values.to(u.device) + ridge
        return ((u.double() @ vectors) / values) @ vectors.mT

    def log_prob(self, x0: Tensor, spread2: Any = 0.0) -> Tensor:
        """log N(y; A x0, spread2 A A^T + noise^2 I), shape (batch,), in nats."""
        values = _column(spread2) * self._values.to(x0.device) + self.noise**2
        u = self.residual(x0) @ self._vectors.to(x0.device)
        terms = u.square() / values + values.log() + math.log(2 * math.pi)
        return (-0.5 * terms.sum(1)).to(x0.dtype)

    def proximal(self, x0: Tensor, ridge: float) -> Tensor:
        """argmin_x |y - A x|^2 + ridge |x - x0|^2, shaped like x0; ridge 0 projects."""
        return x0 + self.transposed(self.solve(self.residual(x0), 1.0, ridge), x0)

    def _flat(self, x: Tensor) -> Tensor:
        flat = x.reshape(len(x), math.prod(x.shape[1:]))
        if flat.shape[1] != self.matrix.shape[1]:
            raise ValueError(
                f"the matrix takes {self.matrix.shape[1]} coordinates, got samples of shape "
                f"{tuple(x.shape[1:])} with {flat.shape[1]}"
            )
        return flat


def exact_posterior(
    prior: ScoreModel, measurement: LinearMeasurement
) -> Gaussian | GaussianMixture:
    """p(x | y) of a Gaussian or a mixture, for y = A x + noise n: also `prior * measurement`.

    Component k has weight ~ w_k N(y; A m_k, A S_k A^T + noise^2 I), mean m_k + K_k (y - A m_k) and
    covariance (I - K_k A) S_k with K_k = S_k A^T (A S_k A^T + noise^2 I)^-1. It lives on the
    prior's process, so its score at any level is the exact score of the noised posterior.

    Args:
        prior: of x, a `Gaussian` or a `GaussianMixture`.
        measurement: with one y of shape (m,).

    Raises:
        TypeError: for another prior.
        ValueError: for one y per sample, or a mixture measured without noise.

    >>> import torch
    >>> from scoregen import VPSDE
    >>> seen = LinearMeasurement(torch.eye(2)[:1], torch.tensor([1.0]), 1.0)
    >>> exact_posterior(Gaussian(VPSDE(), torch.zeros(2), 1.0), seen).mean
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    check_kind("measurement", measurement, LinearMeasurement, "LinearMeasurement(a, y, 0.1)")
    if not isinstance(prior, Gaussian | GaussianMixture):
        raise TypeError(
            f"the posterior is known for Gaussian and GaussianMixture, got {type(prior).__name__}: "
            "use TwistedSMC, which is exact as particles grow, or TMPD or PiGDM, which are quick"
        )
    if measurement.y.dim() != 1:
        raise ValueError(
            f"need one y of shape (m,), got {tuple(measurement.y.shape)}: make one posterior each"
        )
    if isinstance(prior, GaussianMixture) and measurement.noise == 0:
        raise ValueError("a mixture measured without noise has no density: give some noise")
    logs, means, covariances = moments(prior)
    if covariances.dim() == 2:
        covariances = torch.diag_embed(covariances)
    a, noise2 = measurement.matrix.to(means.device), measurement.noise**2
    across = covariances @ a.mT  # S A^T
    total = a @ across + noise2 * torch.eye(len(a), dtype=a.dtype, device=a.device)
    gain = torch.linalg.solve(total, across.mT).mT
    residual = (measurement.y.to(means.device) - means @ a.mT).unsqueeze(-1)
    fit = (residual * torch.linalg.solve(total, residual)).sum((-2, -1))
    fit = fit + torch.linalg.slogdet(total).logabsdet + len(a) * math.log(2 * math.pi)
    kept = torch.eye(a.shape[1], dtype=a.dtype, device=a.device) - gain @ a
    # Joseph's form stays positive definite where the plain difference would lose digits
    narrowed = kept @ covariances @ kept.mT + noise2 * gain @ gain.mT
    narrowed = (narrowed + narrowed.mT) / 2
    means = means + (gain @ residual).squeeze(-1)
    if isinstance(prior, GaussianMixture):
        return mixture_of(prior.sde, Moments(logs - fit / 2, means, narrowed), prior.event)
    return Gaussian(prior.sde, means[0].reshape(prior.event), narrowed[0])


def _column(value: Any) -> Any:
    return value.double().reshape(-1, 1) if isinstance(value, Tensor) else value


def broadcasts(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether a shape with as many axes fits the other, each length equal or 1."""
    return len(small) == len(large) and all(a in (1, b) for a, b in zip(small, large, strict=True))
