"""Denoising score matching: the loss of DDPM, score SDEs, EDM and flow matching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    check_batch,
    check_callable,
    check_kind,
    check_same_shape,
    check_state,
    check_tensor,
)
from .._rows import moved
from ..models import ScoreModel, check_model
from ..noise.sources import normal_like
from ..processes import Level, StaticSDE
from .laws import TimeLaw, UniformLaw
from .weights import Simple, Weight

__all__ = ["DenoisingScoreMatching", "Draws", "Objective"]

Objective = Callable[..., Tensor]
"""(model, x0, *, generator, **condition) -> one loss per sample, shape (batch,)."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Times and noise of a batch, drawn before it is divided among processes.

    Args:
        t: times, shape (batch,).
        eps: noise, shape (batch, *event).

    >>> Draws(torch.zeros(4), torch.zeros(4, 2)).rows(slice(1, 3)).eps.shape
    torch.Size([2, 2])
    """

    t: Tensor
    eps: Tensor

    def rows(self, part: slice) -> Draws:
        """Those of some samples."""
        return Draws(self.t[part], self.eps[part])


@dataclass(frozen=True)
class DenoisingScoreMatching:
    """Squared error of what the model predicts at alpha x0 + sigma eps, at random times.

        loss = w(t) (norm(x0 - x0_hat)^2 + norm(eps - eps_hat)^2),  t ~ law,  eps ~ N(0, I)

    Summed over the coordinates of a sample, so with `Likelihood` it is in nats. With `UniformLaw`
    and `Simple`, the defaults, it is L_simple of Ho et al. (2020, 2006.11239); with
    `LogNormalSigma` and `EDMWeight` the loss of EDM (2206.00364); with `Unit()` on a velocity
    network flow matching (2210.02747). The same weight, times and noise give the same loss in
    every parameterization. (Vincent 2011, doi:10.1162/NECO_a_00142.)

    Args:
        law: the law of t.
        weight: what each level counts.

    >>> from scoregen import VPSDE, Gaussian
    >>> model = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> loss = DenoisingScoreMatching()
    >>> loss(model, torch.zeros(5, 2), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([5])
    """

    law: TimeLaw = field(default_factory=UniformLaw)
    weight: Weight = field(default_factory=Simple)

    def __post_init__(self) -> None:
        check_callable("law", self.law, "(sde, count, generator) -> times, such as UniformLaw()")
        check_callable("weight", self.weight, "(model, level, law) -> Tensor, such as Simple()")

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, generator: torch.Generator, **condition: Any
    ) -> Tensor:
        """One loss per sample, shape (batch,).

        Args:
            model: any score model.
            x0: clean data, shape (batch, *event).
            generator: source of the times and of the noise.
            **condition: passed on to the model.

        Raises:
            ValueError: if the model learns its variance too, which this loss would not train, or
                the process has no noise.
        """
        check_model(model)
        check_batch(x0, "x0")
        check_kind("generator", generator, torch.Generator, "torch.Generator().manual_seed(0)")
        return self.drawn(model, x0, self.draw(model, x0, generator), **condition)

    def draw(
        self,
        model: ScoreModel,
        x0: Tensor,
        generator: torch.Generator,
        times: torch.Generator | None = None,
    ) -> Draws:
        """The times and the noise of a batch, which need nothing of x0 but its shape and dtype.

        Args:
            model: any score model.
            x0: shaped like the batch, (batch, *event).
            generator: source of both.
            times: source of the times, on the host, so that nothing waits for a device where
                `generator` lives on one; `generator` unless given.

        Raises:
            ValueError: if the process has no noise.
        """
        if isinstance(model.sde, StaticSDE):
            raise ValueError(
                "StaticSDE has no noise to remove; train a time-free energy with another objective"
            )
        t = self.law(model.sde, len(x0), generator if times is None else times)
        return Draws(t, normal_like(x0, generator))

    def drawn(self, model: ScoreModel, x0: Tensor, draws: Draws, **condition: Any) -> Tensor:
        """One loss per sample, shape (batch,), at times and noise that `draw` gave.

        Args:
            model: any score model.
            x0: clean data, shape (batch, *event).
            draws: of these samples.
            **condition: passed on to the model.

        Raises:
            ValueError: if the model learns its variance too, which this loss would not train.
        """
        loss, spread = self._measure(model, x0, draws.t, draws.eps, condition)
        if spread is not None:
            raise ValueError(
                "denoising score matching gives no gradient to a learned variance; train it with "
                "a variational objective, or leave LearnedVariance out"
            )
        return loss

    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **condition: Any) -> Tensor:
        """The loss at given times and noise, shape (batch,): a pure function, and no law is drawn.

        A learned variance is ignored here, so that a hybrid loss can add its own term for it.

        Args:
            model: any score model.
            x0: clean data, shape (batch, *event).
            t: one time per sample, shape (batch,).
            eps: noise shaped like x0.
        """
        check_model(model)
        check_state(x0, "x0")
        check_same_shape("eps", check_tensor("eps", eps), x0)
        check_tensor("t", t)
        return self._measure(model, x0, t, eps, condition)[0]

    def _measure(
        self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, condition: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        if t.numel() not in (1, len(x0)) or t.numel() != (len(t) if t.dim() else 1):
            raise ValueError(
                f"need one time, or one per sample ({len(x0)}), got shape {tuple(t.shape)}"
            )
        # levels and weights in float64 on the host, since a device may have no float64; then all of
        # them in one transfer
        t = t.reshape(-1).cpu().double()
        exact: Level = model.sde.level_of(t, t)
        weight = self.weight(model, exact, self.law) / (exact.alpha**2 + exact.sigma**2)
        packed = torch.stack(torch.broadcast_tensors(*exact, weight)).to(x0.dtype)
        *columns, weight = moved(packed, x0.device)
        level = Level(*(column.reshape(-1, *(1,) * (x0.dim() - 1)) for column in columns))
        p = model(level.alpha * x0 + level.sigma * eps, level, **condition)
        # v carries both errors: v - v_hat = sqrt(alpha^2 + sigma^2) times the pair of them
        error = p.v - (level.alpha * eps - level.sigma * x0)
        squared = error.square().flatten(1).sum(1) if error.dim() > 1 else error.square()
        return weight * squared, p.spread


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Values of shape (batch,) in the dtype and on the device of x, shaped to broadcast with it."""
    return moved(values.to(x.dtype), x.device).reshape(len(values), *(1,) * (x.dim() - 1))
