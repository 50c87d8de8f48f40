"""Score matching without a known score: by the exact trace of its Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    check_batch,
    check_kind,
    check_number,
)
from ..models import ScoreModel, check_model
from ..noise.sources import normal_like
from ..processes import Level, StaticSDE

__all__ = ["ImplicitScoreMatching"]


def noised(
    model: ScoreModel, x0: Tensor, t: float, generator: torch.Generator
) -> tuple[Tensor, Level]:
    """(x at time t, its level): the data themselves where the level has no noise."""
    check_model(model)
    check_batch(x0, "x0")
    check_kind("generator", generator, torch.Generator, "torch.Generator().manual_seed(0)")
    level = model.level(t, x0)
    if level.sigma == 0:
        if not isinstance(model.sde, StaticSDE):
            raise ValueError(
                f"t = {t:g} of {type(model.sde).__name__} has no noise, where the score may not "
                "exist: give the objective a time t > 0; a time-free energy is a model on StaticSDE"
            )
        return x0, level
    return level.alpha * x0 + level.sigma * normal_like(x0, generator), level


def differentiable_score(
    model: ScoreModel, x: Tensor, level: Level, condition: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """(leaf, score at the leaf), with a graph from one to the other and to the parameters."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        score = model(leaf, level, **condition).score
    if not score.requires_grad:
        raise ValueError(
            f"the score of {type(model).__name__} cannot be differentiated: it was computed under "
            "no_grad, or detached, or an operation of the network has no second derivative"
        )
    return leaf, score


def pulled_back(score: Tensor, leaf: Tensor, v: Tensor) -> Tensor:
    """J^T v, differentiable; names the usual reason when a second derivative is missing."""
    try:
        with torch.enable_grad():
            (out,) = torch.autograd.grad(
                score, leaf, v, create_graph=True, allow_unused=True, materialize_grads=True
            )
    except RuntimeError as error:
        raise RuntimeError(
            "the score could not be differentiated once more; some operation of the network has "
            "no second derivative (in-place, cdist, fused attention): replace it, or train by "
            "DenoisingScoreMatching, which needs one derivative less"
        ) from error
    return out


@dataclass(frozen=True)
class ImplicitScoreMatching:
    """norm(score)^2 / 2 + tr grad score, which is the Fisher divergence up to a constant.

    (Hyvarinen 2005, JMLR 6:695.) The trace is exact and costs one backward pass per coordinate; use
    `SlicedScoreMatching` for more than a few dozen. On Gaussian families its minimum is the maximum
    of the likelihood. Networks need two derivatives: a ReLU network's trace is blind to its kinks.

    Args:
        t: the time whose marginal is matched; 0 on StaticSDE.

    >>> from scoregen.energies import Potential
    >>> model = Potential(lambda x: x.square().sum(1) / 2)
    >>> g = torch.Generator().manual_seed(0)
    >>> ImplicitScoreMatching()(model, torch.ones(1, 2), generator=g).detach()
    tensor([-1.])
    """

    t: float = 0.0

    def __post_init__(self) -> None:
        check_number("t", self.t, 0.0)

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, generator: torch.Generator, **condition: Any
    ) -> Tensor:
        """One loss per sample, shape (batch,).

        Args:
            model: any score model, twice differentiable.
            x0: clean data, shape (batch, *event).
            generator: source of the noise where t > 0.
            **condition: passed on to the model.
        """
        x, level = noised(model, x0, self.t, generator)
        leaf, score = differentiable_score(model, x, level, condition)
        flat = score.reshape(len(x), -1)
        trace = torch.zeros_like(flat[:, 0])
        for i in range(flat.shape[1]):
            unit = torch.zeros_like(flat)
            unit[:, i] = 1
            row = pulled_back(score, leaf, unit.reshape(score.shape))
            trace = trace + row.reshape(len(x), -1)[:, i]
        return flat.square().sum(1) / 2 + trace
