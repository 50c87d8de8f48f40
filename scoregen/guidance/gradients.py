"""Guidance by a gradient: score + scale grad log p(y | x)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import (
    check_callable,
    check_choice,
    check_finite,
    check_number,
    check_tensor,
)
from ..models import Prediction, ScoreModel, Wrapped
from ..models.base import twin
from ..models.conditions import Kept, kept, select
from ..processes import Level, StaticSDE

__all__ = ["Classifier", "Reconstruction"]


def denoised(
    model: ScoreModel, x: Tensor, t: Level, condition: dict[str, Any]
) -> tuple[Prediction, Callable[[Tensor], Tensor]]:
    """The prediction at x, and u -> (d x0 / d x)^T u, one product with the model's Jacobian."""

    def forms(at: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        p = model.predict(at, t, **condition)
        return p.x0, (p.eps,) if p.spread is None else (p.eps, p.spread)

    # torch.func, so that likelihoods and other guidance may differentiate through this again
    x0, pull, *aux = torch.func.vjp(forms, x, has_aux=True)
    eps, *spread = aux[0]
    p = Prediction(model.sde, t, x, x0=x0, eps=eps, spread=spread[0] if spread else None)
    return p, lambda u: pull(u)[0]


def shifted(p: Prediction, gradient: Tensor) -> Prediction:
    """The prediction whose score is larger by `gradient`."""
    alpha, sigma = p.t.alpha, p.t.sigma
    if isinstance(p.sde, StaticSDE) or (not isinstance(alpha, Tensor) and alpha == 0):
        return Prediction(p.sde, p.t, p.x, score=p.score + gradient, spread=p.spread)
    return Prediction(
        p.sde,
        p.t,
        p.x,
        x0=p.x0 + sigma**2 / alpha * gradient,
        eps=p.eps - sigma * gradient,
        spread=p.spread,
    )


def gradient_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient of a per-sample function (batch, *event) -> (batch,), shaped like x."""

    def total(at: Tensor) -> Tensor:
        value = function(at)
        if value.shape != at.shape[:1]:
            raise ValueError(
                f"a log-probability must have one value per sample, shape {tuple(at.shape[:1])}, "
                f"got {tuple(value.shape)}"
            )
        return value.sum()

    return torch.func.grad(total)(x)


class Classifier(Wrapped):
    """score + scale grad log p(y | x_t) (Dhariwal and Nichol 2021, 2105.05233).

    at="x_t": the classifier is noise-aware, log_prob(x_t, t), and its gradient is taken at x_t.
    at="mean": the classifier knows clean data, log_prob(x0_hat(x_t), t), and its gradient is taken
    at the posterior mean of the data and carried to x_t through the model. The gradient at the mean
    of the next move, the paper's Algorithm 1, belongs to the solver: `GuidedAncestral`.

    Args:
        model: any score model.
        log_prob: (x, level) -> log p(y | x) of the wanted y, shape (batch,); differentiable.
        scale: factor on the gradient, at least 0.
        at: "x_t" or "mean".

    >>> from scoregen import VPSDE, Gaussian
    >>> model = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> guided = Classifier(model, lambda x, t: 3.0 * x[:, 0])
    >>> [round(v) for v in guided(torch.zeros(1, 2), 1.0).score[0].tolist()]
    [3, 0]
    """

    def __init__(
        self,
        model: ScoreModel,
        log_prob: Callable[[Tensor, Level], Tensor],
        scale: float = 1.0,
        *,
        at: Literal["x_t", "mean"] = "x_t",
    ):
        super().__init__(model)
        check_choice("at", at, ("x_t", "mean"))
        check_callable("log_prob", log_prob, "(x, level) -> (batch,)")
        self.log_prob, self.at = log_prob, at
        self.scale = check_number("scale", scale, 0.0)

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        if self.at == "mean":
            p, pull = denoised(self.model, x, t, condition)
            gradient = pull(gradient_of(lambda x0: self.log_prob(x0, t), p.x0))
        else:
            p = self.model.predict(x, t, **condition)
            gradient = gradient_of(lambda at: self.log_prob(at, t), x)
        return shifted(p, self.scale * gradient)


class Reconstruction(Wrapped):
    """x0 - scale alpha / 2 grad_x |y - A(x0_hat(x))|^2: reconstruction guidance.

    (Ho et al. 2022, 2204.03458.) A may be any differentiable map. The weight is a heuristic; for a
    linear A and Gaussian noise, `PiGDM` and `TMPD` weigh by the covariance.

    Args:
        model: any score model.
        measure: A, (batch, *event) -> (batch, *measurement).
        y: the measurement, shape measurement or (batch, *measurement).
        scale: factor on the gradient, at least 0.

    >>> from scoregen import VPSDE, Gaussian
    >>> model = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> guided = Reconstruction(model, lambda x: x[:, :1], torch.tensor([2.0]), 1.0)
    >>> bool(guided(torch.zeros(1, 2), 0.1).x0[0, 0] > 0)
    True
    """

    def __init__(
        self,
        model: ScoreModel,
        measure: Callable[[Tensor], Tensor],
        y: Tensor,
        scale: float = 1.0,
    ):
        super().__init__(model)
        check_callable("measure", measure, "(batch, *event) -> (batch, *measurement)")
        self.measure = measure
        self.register_buffer("y", check_measured(y))
        self.y: Tensor
        self.scale = check_number("scale", scale, 0.0)
        self._kept: Kept | None = None

    def rows(self, part: slice | Tensor, batch: int) -> ScoreModel:
        found: Any = super().rows(part, batch)
        found = twin(self) if found is self else found
        found._kept = kept(self._kept, part, batch)
        return found

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        p, pull = denoised(self.model, x, t, condition)
        step = pull(gradient_of(lambda x0: misfit(self.measure, self.y, x0, self._kept), p.x0))
        return p.with_x0(p.x0 - self.scale * t.alpha / 2 * step)


def check_measured(y: object) -> Tensor:
    """A measurement: a tensor of finite real numbers."""
    tensor = check_tensor("the measurement y", y)
    check_finite("the measurement y", tensor.reshape(1, tensor.numel()))
    return tensor


def misfit(
    measure: Callable[[Tensor], Tensor], y: Tensor, x0: Tensor, among: Kept | None = None
) -> Tensor:
    """|y - A(x0)|^2 per sample, shape (batch,); `among`: the rows of y that x0 stands for."""
    seen = measure(x0)
    batch = len(x0) if among is None else among.batch
    if y.shape == (batch, *seen.shape[1:]):
        y = y if among is None else select(y, among.rows)
    elif y.shape != seen.shape[1:]:
        raise ValueError(
            f"the measurement y must have shape {tuple(seen.shape[1:])}, or "
            f"{(batch, *seen.shape[1:])} with one per sample, got {tuple(y.shape)}"
        )
    return (y.to(seen) - seen).square().reshape(len(x0), math.prod(seen.shape[1:])).sum(1)
