"""Guidance by a linear measurement: the score plus an estimate of grad log p(y | x_t)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    check_kind,
    check_number,
)
from ..guidance.gradients import denoised, shifted
from ..models import Prediction, ScoreModel, Wrapped
from ..models.base import twin
from ..processes import Level
from .measurement import LinearMeasurement

__all__ = ["TMPD", "PiGDM"]


def isotropic_spread(t: Level, prior_variance: float) -> Any:
    """r^2 = v sigma^2 / (alpha^2 v + sigma^2), the variance of x0 given x_t for data N(., v I)."""
    return prior_variance * t.sigma**2 / (t.alpha**2 * prior_variance + t.sigma**2)


class _Measured(Wrapped):
    """A prior and what was measured; one y per sample goes with its rows."""

    def __init__(self, model: ScoreModel, measurement: LinearMeasurement):
        super().__init__(model)
        check_kind("measurement", measurement, LinearMeasurement, "LinearMeasurement(a, y, 0.1)")
        self.measurement = measurement

    def rows(self, part: slice | Tensor, batch: int) -> ScoreModel:
        found: Any = super().rows(part, batch)
        seen = self.measurement.rows(part, batch)
        if seen is self.measurement:
            return found
        found = twin(self) if found is self else found
        found.measurement = seen
        return found


class PiGDM(_Measured):
    """score + (d x0/d x)^T A^T (r^2 A A^T + noise^2 I)^-1 (y - A x0): pseudo-inverse guidance.

    (Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems", ICLR.) The
    covariance of x0 given x_t is taken for r^2 I, r^2 = v sigma^2 / (alpha^2 v + sigma^2): exact
    for data N(m, v I), and an approximation for any other. A score model: any solver takes it.

    Args:
        model: the prior.
        measurement: y = A x + noise.
        prior_variance: v, of the data per coordinate.

    >>> from scoregen import VPSDE, Gaussian
    >>> seen = LinearMeasurement(torch.eye(2)[:1], torch.tensor([1.0]), 1.0)
    >>> model = PiGDM(Gaussian(VPSDE(), torch.zeros(2), 1.0), seen)
    >>> x0 = model(torch.zeros(1, 2), 1.0).x0  # the posterior mean of N(0, 1) given 1 +- 1
    >>> [round(v, 3) for v in x0[0].tolist()]
    [0.5, 0.0]
    """

    def __init__(
        self, model: ScoreModel, measurement: LinearMeasurement, prior_variance: float = 1.0
    ):
        super().__init__(model, measurement)
        self.prior_variance = check_number("prior_variance", prior_variance, 0.0, open_low=True)

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        p, pull = denoised(self.model, x, t, condition)
        seen, spread2 = self.measurement, isotropic_spread(t, self.prior_variance)
        weighed = seen.solve(seen.residual(p.x0), spread2, seen.noise**2)
        return shifted(p, pull(seen.transposed(weighed, x)))


class TMPD(_Measured):
    """score + J^T A^T (A Cov A^T + noise^2 I)^-1 (y - A x0), Cov = sigma^2 / alpha J, J = d x0/d x.

    The covariance of x0 given x_t is Tweedie's own (Boys et al. 2023, 2310.06721), so the guidance
    is exact for Gaussian data of any covariance. Costs one product with the Jacobian per row of A.

    Args:
        model: the prior.
        measurement: y = A x + noise.

    >>> from scoregen import VPSDE, Gaussian
    >>> seen = LinearMeasurement(torch.eye(2)[:1], torch.tensor([1.0]), 1.0)
    >>> model = TMPD(Gaussian(VPSDE(), torch.zeros(2), 3.0), seen)
    >>> x0 = model(torch.zeros(1, 2), 1.0).x0  # the posterior mean of N(0, 3) given 1 +- 1
    >>> [round(v, 3) for v in x0[0].tolist()]
    [0.75, 0.0]
    """

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        p, pull = denoised(self.model, x, t, condition)
        if not isinstance(t.alpha, Tensor) and t.alpha == 0:
            return p  # x_t knows nothing of x0, so nothing of y
        seen, batch = self.measurement, len(x)
        rows = seen.matrix.to(x).reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
        pulled = torch.func.vmap(pull)(rows)  # J^T a_i, shape (m, batch, *event)
        flat = pulled.reshape(len(rows), batch, math.prod(x.shape[1:])).double()
        within = torch.einsum("mbd,nd->bmn", flat, seen.matrix.to(x.device))
        factor = t.sigma**2 / t.alpha
        factor = factor.double().reshape(-1, 1, 1) if isinstance(factor, Tensor) else factor
        noise = seen.noise**2 * torch.eye(len(rows), dtype=torch.float64, device=x.device)
        # J is symmetric for the exact model; for a network, its symmetric part is a covariance
        covariance = factor * (within + within.mT) / 2 + noise
        weighed = torch.linalg.solve(covariance, seen.residual(p.x0))
        gradient = torch.einsum("bm,mbd->bd", weighed, flat)
        return shifted(p, gradient.to(x.dtype).reshape(x.shape))
