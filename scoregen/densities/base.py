"""What a model of known density offers, and the pieces its kinds share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    check_count,
    check_same_shape,
    check_state,
    check_tensor,
    check_times,
)
from ..models import Prediction, ScoreModel
from ..processes import Level

__all__ = ["Analytic"]


class Analytic(ScoreModel):
    """A score model that also knows its density, and can draw from it, at every level.

    >>> from scoregen import VPSDE, Gaussian
    >>> isinstance(Gaussian(VPSDE(), torch.zeros(2), torch.ones(2)), Analytic)
    True
    """

    event: tuple[int, ...]

    def forward(self, x: Tensor, t: Level | float | Tensor, **condition: Any) -> Prediction:
        if isinstance(x, Tensor) and x.dim():
            self._check_event(x)
        return super().forward(x, t, **condition)

    def _check_event(self, x: Tensor) -> None:
        if x.shape[1:] != self.event:
            raise ValueError(
                f"x must have shape (batch, *event) with event {self.event}, got {tuple(x.shape)}"
            )

    def level(self, t: float | Tensor, x: Tensor) -> Level:
        """The level of a time in [0, t_max].

        Times in (0, t_min) are served too: that limit is a network's, and a closed form is exact
        on both sides of it.
        """
        if isinstance(t, Tensor):
            check_times(t, self.sde.t_max)
            return self.sde.level_of(t, x)
        return self.sde.level(t)

    @abstractmethod
    def log_density(self, x: Tensor, t: Level) -> Tensor:
        """log p_t(x) in nats, shape (batch,), without checks."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` clean samples, shape (count, *event), float64."""

    def log_prob(self, x: Tensor, t: Level | float | Tensor = 0.0) -> Tensor:
        """log p_t(x) in nats, shape (batch,)."""
        self._check_event(check_state(x))
        return self.log_density(x, t if isinstance(t, Level) else self.level(t, x))

    def sample(self, count: int, t: float = 0.0, *, generator: torch.Generator | int = 0) -> Tensor:
        """Exact samples of p_t, shape (count, *event), float64."""
        if not isinstance(generator, torch.Generator):
            generator = torch.Generator().manual_seed(check_count("generator", generator, 0))
        x0 = self.draw(check_count("count", count, 0), generator)
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


def spectrum(covariance: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues shaped (..., d) and eigenvectors; None where the covariance is diagonal."""
    c = check_tensor("the covariance", covariance).double()
    if not bool(torch.isfinite(c).all()):
        raise ValueError("the covariance must be finite, got NaN or infinity")
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


def column(value: Any, like: Tensor) -> Any:
    """A float as it is; one value per sample as a column in the widest precision of the device."""
    if not isinstance(value, Tensor):
        return value
    return value.reshape(-1, 1).to(torch.float32 if like.device.type == "mps" else torch.float64)


def row(value: Any) -> Any:
    return value.unsqueeze(-1) if isinstance(value, Tensor) else value


def cancels(radius2: float, alpha: Any, sigma: Any) -> bool:
    """Whether |x|^2 - 2 alpha x y + alpha^2 |y|^2 would lose the digits of |x - alpha y|^2.

    Its rounding error is about 4 u alpha^2 |y|^2 for x near the data, u = 2^-52, and halved over
    sigma^2 it is an error of a logarithm.

    Args:
        radius2: largest |y|^2, of points less their mean.
        alpha: scale of the data, a float or a tensor of all levels.
        sigma: standard deviation of x given y, likewise.
    """
    largest = float(alpha.abs().max()) if isinstance(alpha, Tensor) and alpha.numel() else alpha
    least = float(sigma.min()) if isinstance(sigma, Tensor) and sigma.numel() else sigma
    if isinstance(largest, Tensor) or isinstance(least, Tensor):
        return False  # an empty batch
    return bool(2 * 2.0**-52 * largest**2 * radius2 > 2.5e-8 * least**2)
